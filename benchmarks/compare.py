"""Two files of rows, before and after: what got faster or slower beyond both bands.

    semcom-fast bench compare before.csv after.csv
    semcom-fast bench compare before.csv after.csv --fail-on-slower

A kernel is judged by best torch's time over ours, which both runs measured round by round: a machine that is slower as a
whole changes nothing. With another torch that yardstick moves, and microseconds are compared instead.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from semcom_fast.cli import Parser

from .bands import LEAST_CHANGE, Band, change
from .report import SHORT, number
from .rows import ratio_band, time_band
from .runner import read_rows

SAME_ROW = ("op", "size", "dtype", "cache", "threads")
SAME_MACHINE = ("device", "isa", "flags", "driver", "torch", "threads")
WORDS = {1: "faster", 0: "same", -1: "slower"}

File = Mapping[tuple[str, ...], Mapping[str, str]]


@dataclass
class Verdict:
    """One row of both files: +1 faster, -1 slower, 0 within the bands; and what was compared."""

    key: tuple[str, ...]
    way: int
    by: str  # "ratio" or "us"
    before: Band
    after: Band
    before_us: float
    after_us: float

    @property
    def factor(self) -> float:
        """How many times faster than before."""
        return self.after.median / self.before.median if self.by == "ratio" else self.before.median / self.after.median


def keyed(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """Rows of a file by what identifies them; an older file without a dtype column has it in its size or not at all."""
    rows = read_rows(path)
    if not rows or not {"op", "size", "ours_us"} <= rows[0].keys():
        raise ValueError(f"{path} holds no rows of this suite")
    return {tuple(r.get(k, "") for k in SAME_ROW): r for r in rows}


def machines(before: File, after: File) -> list[str]:
    """Sentences on what differs between the machines of two files."""
    out = []
    for name in SAME_MACHINE:
        found = [sorted({r.get(name, "") for r in rows.values()} - {""}) for rows in (before, after)]
        if all(found) and found[0] != found[1]:
            out.append(f"{name} differs: {', '.join(found[0])} before, {', '.join(found[1])} after")
    return out


def verdicts(before: File, after: File, by: str = "auto", least: float = LEAST_CHANGE) -> list[Verdict]:
    """Every row that both files have."""
    out = []
    for key in (k for k in before if k in after):
        old, new = before[key], after[key]
        ratios = ratio_band(old), ratio_band(new)
        use = by if by != "auto" else "ratio" if old.get("torch") == new.get("torch") else "us"
        if use == "ratio" and ratios[0] and ratios[1]:
            bands = ratios[0], ratios[1]
            way = change(*bands, least=least)
        else:
            use, bands = "us", (time_band(old), time_band(new))
            way = -change(*bands, least=least)
        out.append(Verdict(key, way, use, *bands, float(old["ours_us"]), float(new["ours_us"])))
    return out


def _line(v: Verdict) -> str:
    op, size, dtype, cache, threads = v.key
    unit = "x" if v.by == "ratio" else " us"
    sides = " -> ".join(f"{number(b.median)}{unit} [{number(b.low)} {number(b.high)}]" for b in (v.before, v.after))
    return (
        f"{WORDS[v.way]:6} {v.factor:6.2f}x  {op:22} {size:32} {SHORT.get(dtype, dtype):5} {cache:7} {threads} thr  "
        f"{sides}  ({number(v.before_us)} -> {number(v.after_us)} us)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdicts; 1 when a row got slower and --fail-on-slower was given."""
    parser = Parser(
        prog="semcom-fast bench compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="CSV or JSON of an earlier run")
    parser.add_argument("after", type=Path, help="CSV or JSON of a later run")
    parser.add_argument("--by", choices=["auto", "ratio", "us"], default="auto", help="what to judge by (see above)")
    parser.add_argument("--least", type=float, default=LEAST_CHANGE, help="smallest relative change worth a word")
    parser.add_argument("--all", action="store_true", help="also rows that agree")
    parser.add_argument("--fail-on-slower", action="store_true", help="exit code 1 when any row got slower")
    args = parser.parse_args(argv)
    before, after = keyed(args.before), keyed(args.after)
    for text in machines(before, after):
        print(f"note: {text}")
    found = verdicts(before, after, args.by, args.least)
    if not found:
        raise ValueError(f"{args.before} and {args.after} have no row in common")
    for v in sorted(found, key=lambda v: v.factor):
        if v.way or args.all:
            print(_line(v))
    for rows, others, name in ((before, after, args.before), (after, before, args.after)):
        for key in rows:
            if key not in others:
                print(f"only in {name}: {' '.join(key[:4])}, {key[4]} threads")
    count = {way: sum(v.way == way for v in found) for way in WORDS}
    print(f"{len(found)} rows: {count[1]} faster, {count[-1]} slower, {count[0]} within their bands")
    return 1 if args.fail_on_slower and count[-1] else 0
