"""Measures many rows: visits spread over time, files kept whole after every visit, a wrong kernel refused."""

import csv
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semcom_fast.errors import BackendUnavailable

from . import timing
from .cases import Case
from .rows import Measurement, Row, Settings, WrongResult, check

BLOCK = 8  # rows measured side by side in a long run; --quick takes all rows as one block
GRAPH_VISITS = 3  # of a quick run with --graphs: every visit captures every side anew
BATCH_BYTES = 1 << 29  # input sets built before one eviction
KEY = ("op", "size", "dtype", "cache", "threads", "device", "kernel")  # one row of a file


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV or JSON file that a run has written, every value as text."""
    if path.suffix == ".json":
        rows = json.loads(path.read_text())["rows"]
        return [{k: str(v) for k, v in r.items()} for r in rows]
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


class Files:
    """CSV and JSON of a run, rewritten whole (and at most once a second) so that a stopped run loses nothing."""

    def __init__(self, csv_path: Path | None, json_path: Path | None, append: bool = False) -> None:
        self.csv, self.json = csv_path, json_path
        self.limits: dict[str, Any] = {}
        self.last = 0.0
        self.kept = read_rows(csv_path) if append and csv_path and csv_path.exists() else []
        for path in filter(None, (csv_path, json_path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()  # an unwritable place is known before an hour of measuring

    def write(self, rows: Iterable[Row], last: bool = True) -> None:
        """Replace the files' contents; `last` = False may skip it."""
        if (not last and time.monotonic() - self.last < 1) or not (self.csv or self.json):
            return
        self.last = time.monotonic()
        records = list(timing.with_machine([r.record() for r in rows]))
        if self.csv:
            mine = {tuple(str(r[k]) for k in KEY) for r in records}
            old = [r for r in self.kept if tuple(r.get(k, "") for k in KEY) not in mine]
            timing.write_csv(self.csv, [*old, *records])
        if self.json:
            text = json.dumps({"machine": timing.machine(), "limits": self.limits, "rows": records}, indent=1)
            scratch = self.json.with_name(self.json.name + ".part")
            scratch.write_text(text + "\n")
            scratch.replace(self.json)


@dataclass
class Outcome:
    """What a run leaves: rows in order, and what was not timed, with the reason."""

    rows: list[Row] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # a wrong result, or a failure
    absent: list[str] = field(default_factory=list)  # no kernel on the backend asked for
    interrupted: bool = False


class Progress:
    """One line on a terminal: where the run is and how long it will still take."""

    def __init__(self) -> None:
        self.total, self.done, self.start = 1, 0, time.monotonic()
        self.on = sys.stderr.isatty()

    def step(self, what: str) -> None:
        """Count a visit that begins."""
        self.done += 1
        if self.on:
            passed = time.monotonic() - self.start
            left = passed / max(self.done - 1, 1) * (self.total - self.done + 1)
            text = (
                f"{self.done}/{self.total} {what}, about {left:.0f} s left" if self.done > 4 else f"{self.done} {what}"
            )
            print(f"\r\x1b[K{text[:110]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room for a line of the table."""
        if self.on:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class Runner:
    """Runs cases in blocks and hands every finished row to `show` at once."""

    def __init__(
        self,
        settings: Settings,
        limits: Any,
        files: Files,
        show: Callable[[Row], None],
        command: Callable[[Case, str], str] = lambda case, cache: "",
    ) -> None:
        if settings.quick and settings.graphs:
            settings = settings._replace(visits=min(settings.visits, GRAPH_VISITS))
        self.settings, self.limits, self.files, self.show, self.command = settings, limits, files, show, command
        self.out = Outcome()
        self.open: list[Measurement] = []  # begun and not shown yet
        self.progress = Progress()

    def run(self, cases: Sequence[Case], caches: Sequence[str]) -> Outcome:
        """Every case in every cache state; Ctrl-C ends it with what has been measured."""
        self.progress.total = len(cases) * len(caches) * self.settings.visits
        block = len(cases) if self.settings.quick else max(1, BLOCK // len(caches))
        try:
            for at in range(0, len(cases), max(block, 1)):
                self.open = list(self._checked(cases[at : at + block], caches))
                self._block()
        except KeyboardInterrupt:
            self.out.interrupted = True
            for m in [m for m in self.open if m.visits]:
                self._finish(m)
        self.progress.clear()
        self.files.write(self.out.rows)
        return self.out

    def _checked(self, cases: Sequence[Case], caches: Sequence[str]) -> Iterator[Measurement]:
        """Rows whose results are right, once per case; the others are named and left out."""
        for case in cases:
            name = f"{case.op} {case.size} {case.dtype}"
            try:
                worst = check(case)
                found = [Measurement(case, cache == "hot", self.settings, worst) for cache in caches]
            except BackendUnavailable as err:
                self.out.absent.append(f"{name}: {err}")
            except WrongResult as err:
                self.out.refused.append(f"{name}: {err}")
            except Exception as err:  # one broken row is no reason to lose the others
                self._refuse(case, err, "not timed")
            else:
                yield from found
                continue
            self.progress.total -= len(caches) * self.settings.visits

    def _refuse(self, case: Case, err: Exception, what: str) -> None:
        text = f"{case.op} {case.size} {case.dtype}: {type(err).__name__}: {' '.join(str(err).split())[:300]}; {what}"
        self.out.refused.append(text)

    def _leave(self, m: Measurement, err: Exception) -> None:
        """A row that cannot be measured any further keeps its visits so far."""
        self._refuse(m.case, err, f"left after {len(m.visits)} of {self.settings.visits} visits")
        if m.visits:
            self._finish(m)
        else:
            self.open.remove(m)

    def _block(self) -> None:
        """All visits to the rows that are open; a row is shown after its last."""
        for number in range(1, self.settings.visits + 1):
            for batch in self._batches(list(self.open)):
                if any(not m.hot for m in batch):
                    timing.evict()
                for m in batch:
                    self.progress.step(f"visit {number} of {self.settings.visits}: {m.case.op} {m.case.size}")
                    try:
                        m.sample()
                    except Exception as err:
                        self._leave(m, err)
                        continue
                    if number == self.settings.visits:
                        self._finish(m)
                self.files.write([*self.out.rows, *(self._row(m) for m in self.open if m.visits)], last=False)

    def _batches(self, rows: Sequence[Measurement]) -> Iterator[list[Measurement]]:
        """Rows with input sets, as many at a time as fit into some memory."""
        batch: list[Measurement] = []
        held = 0
        for m in rows:
            try:
                held += m.prepare()
            except Exception as err:
                self._leave(m, err)
                continue
            batch.append(m)
            if held > BATCH_BYTES:
                yield batch
                batch, held = [], 0
        if batch:
            yield batch

    def _row(self, m: Measurement) -> Row:
        return m.row(self.limits, self.command(m.case, "hot" if m.hot else "rotated"))

    def _finish(self, m: Measurement) -> None:
        self.open.remove(m)
        row = self._row(m)
        self.out.rows.append(row)
        self.progress.clear()
        self.show(row)
