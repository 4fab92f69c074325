"""Sweeps of a system over SNRs, seeds and settings: one row of a CSV per cell, written when the cell is finished.

The CSV is all the state there is. A sweep that was stopped, or killed, goes on with the cells whose rows are not there;
more SNRs, seeds or settings given with the same file add their cells to it. A row says what it was made with, and a row
made with something else is an error, never a value to go on from.
"""

import datetime
import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, Protocol

import numpy as np

from .. import __version__
from ..errors import require_extra
from .evaluation import where
from .execution import add_execution, use_threads
from .journal import Journal, Line, read_rows
from .settings import S, add_settings, difference, kinds_of, setting_of, settings_from, text_of, texts_of, value_of


@dataclass(frozen=True)
class Cell(Generic[S]):
    """What one row is about."""

    seed: int
    snr_db: float
    setting: S

    def __str__(self) -> str:
        return self.title(kinds_of(type(self.setting)))

    def title(self, names: Sequence[str] | Mapping[str, object]) -> str:
        """Seed, SNR and the settings of those names."""
        texts = texts_of(self.setting)
        return ", ".join([f"seed {self.seed}", f"{self.snr_db:g} dB", *(f"{name}={texts[name]}" for name in names)])


class Measured(NamedTuple):
    """Figures of a cell, and what went wrong with it, if anything did (a receiver that diverged, say)."""

    figures: Mapping[str, float]
    failure: str = ""


class SweptSystem(Protocol[S]):
    """What a system gives to be swept.

    Attributes:
        kind: its settings, a frozen dataclass (see `settings`).
        figures: names of the figures of a row.
    """

    kind: type[S]
    figures: Sequence[str]

    def fingerprint(self, setting: S) -> str:
        """By which everything that a row depends on besides its cell is recognised: networks, data, protocol.

        Raises:
            ValueError: the system cannot run this setting.
        """

    def measure(self, cell: Cell[S]) -> Measured:
        """Run a cell; the same cell gives the same figures, times apart."""


def cells_of(seeds: Sequence[int], snrs_db: Sequence[float], settings: Sequence[S]) -> list[Cell[S]]:
    """Seed by seed, then SNR by SNR, so that a stopped sweep holds whole comparisons; each cell once."""
    if not (seeds and snrs_db and settings):
        raise ValueError("a sweep needs at least one seed, one SNR and one setting")
    cells = [Cell(seed, snr_db, setting) for seed in seeds for snr_db in snrs_db for setting in settings]
    return list(dict.fromkeys(cells))


class Table(Generic[S]):
    """The columns of a system's sweeps, and what rows under them say.

    seed, snr_db, the settings, the figures, `failure` (empty: none), the fingerprint `made_with`, `version` of this
    package, where() of `evaluation`, and the time (UTC) at which the cell was finished.
    """

    def __init__(self, system: SweptSystem[S]) -> None:
        self.system = system
        self.place = where()
        made = ("failure", "made_with", "version", *self.place, "finished")
        self.columns = ("seed", "snr_db", *kinds_of(system.kind), *system.figures, *made)

    def row(self, cell: Cell[S], measured: Measured, made_with: str) -> dict[str, object]:
        """A finished cell's row."""
        return {
            "seed": cell.seed,
            "snr_db": text_of(cell.snr_db),
            **texts_of(cell.setting),
            **{name: f"{measured.figures[name]:.6g}" for name in self.system.figures},
            "failure": measured.failure,
            "made_with": made_with,
            "version": __version__,
            **self.place,
            "finished": _now(),
        }

    def cells(self, rows: Sequence[Line], path: Path) -> dict[Cell[S], Line]:
        """The rows by their cells.

        Raises:
            ValueError: a row that says something else than this table's, or two rows of one cell.
        """
        found: dict[Cell[S], Line] = {}
        for row in rows:
            try:
                setting = setting_of(self.system.kind, row.values)
                snr_db = value_of(float, row.values["snr_db"])
                cell = Cell(int(row.values["seed"]), float(snr_db), setting)
                for name in self.system.figures:
                    float(row.values[name])
            except ValueError as err:
                raise ValueError(f"{path}, line {row.number}: {err}") from err
            if cell in found:
                raise ValueError(
                    f"{path}, lines {found[cell].number} and {row.number} are about the same cell ({cell}): delete one"
                )
            found[cell] = row
        return found


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass
class Sweep(Generic[S]):
    """Runs the cells of a system whose rows are not yet in a file.

    Attributes:
        system: what is run. cells: in the order to run them (see `cells_of`). out: the CSV.
    """

    system: SweptSystem[S]
    cells: Sequence[Cell[S]]
    out: Path

    def __post_init__(self) -> None:
        self.table = Table(self.system)
        self.made_with = {cell.setting: self.system.fingerprint(cell.setting) for cell in self.cells}

    def run(self, *, restart: bool = False, progress: bool = True) -> None:
        """Run what is missing, a row each; `restart` begins a new file and keeps the old one beside it as OUT.bak.

        Raises:
            ValueError: rows of the file were made with something else. BlockingIOError: another process writes to it.
            KeyboardInterrupt: on Ctrl-C, with a message that says where it stands and how to go on.
        """
        with Journal(self.out, self.table.columns, restart=restart) as journal:
            done = self.table.cells(journal.rows, self.out)
            self._check(done)
            left = [cell for cell in self.cells if cell not in done]
            if progress and (done or journal.torn):
                torn = ", and a torn line, whose cell is run again" if journal.torn else ""
                print(f"{self.out} holds {len(self.cells) - len(left)} of {len(self.cells)} cells{torn}", flush=True)
            try:
                self._fill(journal, left, progress)
            except KeyboardInterrupt as stop:
                again = "the same command without --restart" if restart else "the same command"
                raise KeyboardInterrupt(f"{stop}; {again} goes on from there") from None

    def _fill(self, journal: Journal, left: Sequence[Cell[S]], progress: bool) -> None:
        """Run cells and append their rows; on Ctrl-C the interrupt says how many are finished."""
        before = len(self.cells) - len(left)
        names = difference(cell.setting for cell in self.cells)
        tqdm = require_extra("tqdm", "demo").tqdm
        with tqdm(total=len(self.cells), initial=before, unit="cell", disable=not progress, dynamic_ncols=True) as bar:
            finished = before
            try:
                for cell in left:
                    bar.set_description(cell.title(names))
                    measured = self.system.measure(cell)
                    journal.append(self.table.row(cell, measured, self.made_with[cell.setting]))
                    finished += 1
                    bar.update()
            except KeyboardInterrupt:
                stand = f"{finished} of {len(self.cells)} cells finished, all of them in {self.out}"
                raise KeyboardInterrupt(f"stopped with {stand}") from None

    def _check(self, done: Mapping[Cell[S], Line]) -> None:
        """Every row of the file, of this sweep's cells or not, would be made alike today."""
        for cell, row in done.items():
            if cell.setting not in self.made_with:
                self.made_with[cell.setting] = self.system.fingerprint(cell.setting)
            for name, now in (("made_with", self.made_with[cell.setting]), ("version", __version__)):
                if row.values[name] != now:
                    raise ValueError(
                        f"{self.out}, line {row.number} ({cell}) has {name} = {row.values[name]}, but it is {now} now: "
                        "other networks, protocol or version; give another --out, or --restart to begin a new file "
                        f"(the old one is kept as {self.out.name}.bak)"
                    )


class Spread(NamedTuple):
    """Mean and standard error of a figure over those of its `seeds` for which it is `defined` (not NaN)."""

    mean: float
    error: float
    defined: int
    seeds: int

    def __str__(self) -> str:
        text = f"{self.mean:.4g}"
        if math.isfinite(self.error) and abs(self.mean) < 1e6:  # two digits of the error, as many places of the mean
            places = min(max(1 - math.floor(math.log10(self.error)), 0), 6) if self.error else 4
            text = f"{self.mean:.{places}f} ± {self.error:.{places}f}"
        elif math.isfinite(self.error):
            text = f"{self.mean:.4g} ± {self.error:.2g}"
        return text if self.defined == self.seeds else f"{text} ({self.defined} of {self.seeds})"


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard error; the error is NaN for a single value."""
    kept = np.array([value for value in values if not math.isnan(value)])
    if not len(kept):
        return Spread(math.nan, math.nan, 0, len(values))
    with np.errstate(invalid="ignore"):  # of infinite values
        error = float(kept.std(ddof=1) / len(kept) ** 0.5) if len(kept) > 1 else math.nan
    return Spread(float(kept.mean()), error, len(kept), len(values))


def summary(system: SweptSystem[S], path: Path) -> str:
    """For every figure, a table of the means over seeds with their standard errors: a line per setting, a column per SNR.

    Figures in dB are averaged in dB. Everything in the file counts, also a sweep still running.
    """
    table = Table(system)
    found = table.cells(read_rows(path, table.columns), path)
    if not found:
        return f"{path} holds no cells"
    settings = list(dict.fromkeys(cell.setting for cell in found))
    snrs = sorted({cell.snr_db for cell in found})
    names = difference(settings)
    alike = {name: text for name, text in texts_of(settings[0]).items() if name not in names}
    seeds = len({cell.seed for cell in found})
    lines = [f"{len(found)} cells, {seeds} seeds; mean ± standard error over seeds"]
    if alike:
        lines.append("everywhere " + ", ".join(f"{name}={text}" for name, text in alike.items()))
    failed = sum(bool(row.values["failure"]) for row in found.values())
    if failed:
        lines.append(f"{failed} cells with failures: see the column `failure`")
    over_seeds: dict[tuple[S, float], list[Line]] = {}
    for cell, row in found.items():
        over_seeds.setdefault((cell.setting, cell.snr_db), []).append(row)
    for figure in system.figures:
        rows = [[*names, *(f"{snr:g} dB" for snr in snrs)]]
        for setting in settings:
            groups = [over_seeds.get((setting, snr)) for snr in snrs]
            spreads = [str(spread([float(row.values[figure]) for row in group])) if group else "" for group in groups]
            rows.append([*(texts_of(setting)[name] for name in names), *spreads])
        lines += ["", figure, *_aligned(rows)]
    return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))


def _seeds(text: str) -> range:
    """N is 0..N-1, A:B is A..B-1."""
    first, colon, last = text.partition(":")
    try:
        seeds = range(int(first), int(last)) if colon else range(int(first))
    except ValueError:
        seeds = range(0)
    if not seeds or seeds[0] < 0:
        raise ArgumentTypeError(f"{text!r} is neither a number of seeds nor FIRST:END")
    return seeds


def _snr(text: str) -> float:
    try:
        return float(value_of(float, text))
    except ValueError as err:
        raise ArgumentTypeError(f"{text!r} is not a finite number of dB") from err


def add_sweep(parser: ArgumentParser, kind: type[S], *, snrs_db: Sequence[float], out: Path) -> None:
    """The options of `semcom-fast sweep` for a system with settings of class `kind`."""
    parser.add_argument("--snr", type=_snr, nargs="+", default=list(snrs_db), metavar="DB", help="default: %(default)s")
    parser.add_argument("--seeds", type=_seeds, default=range(4), metavar="N|A:B", help="0..N-1 or A..B-1 (default: 4)")
    parser.add_argument("--out", type=Path, default=out, metavar="CSV", help="finished cells; default: %(default)s")
    parser.add_argument("--restart", action="store_true", help="begin --out anew, what is there is kept as CSV.bak")
    parser.add_argument("--summary", action="store_true", help="run nothing; means and standard errors of --out")
    add_settings(parser, kind)
    add_execution(parser)


def execute_sweep(args: Namespace, system: SweptSystem[S]) -> None:
    """Run the sweep of parsed options, or what is left of it, and print the summary of its file."""
    use_threads(args)
    if not args.summary:
        cells = cells_of(args.seeds, args.snr, settings_from(args, system.kind))
        Sweep(system, cells, args.out).run(restart=args.restart, progress=not args.quiet)
    print(summary(system, args.out))
