"""The whole grid of small-matrix sizes against the best plain torch: is there any size at which ours loses?

    semcom-fast bench grid                      every op, 1 and 2 threads, to benchmarks/results/cpu_grid.csv
    semcom-fast bench grid --ops rzf_precode    one op
    semcom-fast bench grid --failures FILE      measure only FILE's failing rows again, in place

Rows are appended as they come: Ctrl-C and the same command go on, `--fresh` starts again. Every call reads operands
that were last touched a whole arena (four times the last cache) earlier, so all rows are "rotated". A row is screened by
a few short rounds of ours and the formulations that were within 3x of the best at the batch before; one that fails the
rule is measured again, longer, before it counts. The rule: at least 0.95x the best torch where torch takes 20 us or
more, at most 4 us more than torch below that.

Left out: rows of more than 16 MiB or 1e8 real operations (256 MiB with --all): the next smaller batch leaves the caches
already, and time grows in proportion. A first look of 2x or more where torch takes 20 us decides a row (rounds = 2).
`.mH` and 2 threads take T = 1 and 24, and 2 threads take contiguous operands from batch 256 or side 16
on (below, no side starts a second thread). "mimo_matmul kernel" is the kernel that mimo_matmul's dispatch rule chooses
or leaves to torch, measured for the crossover (contiguous, 1 thread) and held to no rule. --all leaves nothing out.
"""

import argparse
import csv
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from semcom_fast import _native

from . import crossover, timing
from .grid_ops import BATCHES, BY_NAME, DTYPES, OPS, OWN_PRODUCT, SIDES, GridOp, Point, kernel_name

DEFAULT = timing.RESULTS / "cpu_grid.csv"
FIELDS = ["op", "dtype", "layout", "threads", "nr", "nt", "t", "batch", "kernel"]
FIELDS += ["ours_us", "best_torch", "torch_us", "ratio", "rounds"]
QUICK_SIDES, QUICK_BATCHES = (1, 4, 16), (1, 256, 4096)
MEBI = 1 << 20
MOST_FLOPS = 1e8
SHORT_US = crossover.SHORT_US


@dataclass
class GridRow:
    """Medians in microseconds; `rounds` paired rounds stand behind them."""

    point: Point
    kernel: str
    ours_us: float
    best_torch: str
    torch_us: float
    ratio: float
    rounds: int

    @property
    def passes(self) -> bool:
        return self.point.op == OWN_PRODUCT or crossover.obeys(self.ours_us, self.torch_us, self.ratio)

    def line(self) -> dict[str, object]:
        own = {"kernel": self.kernel, "best_torch": self.best_torch, "rounds": self.rounds}
        numbers = {"ours_us": f"{self.ours_us:.4g}", "torch_us": f"{self.torch_us:.4g}", "ratio": f"{self.ratio:.3g}"}
        return {**asdict(self.point), **own, **numbers}


class Arena:
    """Normal numbers in memory past the last cache, handed out in turn: no set is warm when it comes round again."""

    def __init__(self, dtype: torch.dtype, size: int) -> None:
        block = torch.randn(MEBI, dtype=dtype, generator=torch.Generator().manual_seed(0))
        self.values = block.repeat(max(1, size // (MEBI * dtype.itemsize)))
        self.at = 0

    def take(self, operands: list[tuple[tuple[int, ...], bool]], adjoint: bool) -> tuple[Tensor, ...]:
        out = []
        for shape, flips in operands:
            flip = adjoint and flips
            n = torch.Size(shape).numel()
            if self.at + n > self.values.numel():
                self.at = 0
            stored = (*shape[:-2], shape[-1], shape[-2]) if flip else shape
            t = self.values[self.at : self.at + n].view(stored)
            self.at += -(-n // 16) * 16  # whole cache lines
            out.append(t.mH if flip else t)
        return tuple(out)


class Bench:
    """Measures points; remembers which formulations were worth timing at the batch before."""

    def __init__(self, clock: str) -> None:
        self.clock = {"wall": time.perf_counter, "cpu": time.thread_time}[clock]
        self.arena: Arena | None = None
        self.level = "cpu " + _native.info().get("cpu level running", "none")
        self.near: tuple[object, list[str]] = (None, [])

    def _arena(self, dtype: torch.dtype) -> Arena:
        if self.arena is None or self.arena.values.dtype != dtype:
            self.arena = None
            self.arena = Arena(dtype, 4 * timing.last_cache_bytes())
        return self.arena

    def measure(self, p: Point, careful: bool = False) -> GridRow:
        op, arena = BY_NAME[p.op], self._arena(DTYPES[p.dtype])
        operands, adjoint = op.operands(p.batch, p.nr, p.nt, p.t), p.layout == "mH"
        key = (p.op, p.dtype, p.layout, p.threads, p.nr, p.nt, p.t)
        names = self.near[1] if self.near[0] == key and not careful else list(op.peers)
        sides: dict[str, Callable[..., object]] = {"ours": op.ours} | {n: op.peers[n] for n in names}

        def once(fn: Callable[..., object], count: int) -> float:
            sets = [arena.take(operands, adjoint) for _ in range(count)]
            start = self.clock()
            for s in sets:
                fn(*s)
            return (self.clock() - start) / count

        seen = {n: min(once(fn, 1), once(fn, 1)) for n, fn in sides.items()}
        best = min(seen[n] for n in names)
        if not careful and best * 1e6 >= SHORT_US and best >= 2 * seen["ours"]:  # decided: two calls of each are enough
            self.near = (key, [n for n in names if seen[n] <= 3 * best])
            rival, us = min(names, key=seen.__getitem__), seen["ours"] * 1e6
            return GridRow(p, kernel_name(p, self.level), us, rival, best * 1e6, best / seen["ours"], 2)
        keep = [n for n in names if seen[n] <= 2 * best + 10e-6]
        self.near = (key, [n for n in names if seen[n] <= 3 * best + 20e-6])
        cost = seen["ours"] + sum(seen[n] for n in keep)
        target, most, budget = (1e-3, 25, 0.3) if careful else (1e-4, 5, 0.02)
        if not careful and best > 4 * seen["ours"]:
            most = 3
        calls = max(1, min(200 if careful else 20, int(target / max(best, 1e-7))))
        rounds = max(1, min(most, int(budget / (cost * calls))))
        samples: dict[str, list[float]] = {n: [] for n in ("ours", *keep)}
        for r in range(rounds):
            for n in samples if r % 2 == 0 else reversed(list(samples)):
                samples[n].append(once(sides[n], calls))
        medians = {n: statistics.median(s) for n, s in samples.items()}
        rival = min(keep, key=medians.__getitem__)
        ratio = statistics.median(b / a for a, b in zip(samples["ours"], samples[rival], strict=True))
        return GridRow(p, kernel_name(p, self.level), medians["ours"] * 1e6, rival, medians[rival] * 1e6, ratio, rounds)

    def row(self, p: Point) -> GridRow:
        """Screened; measured twice more, longer, where the rule is not met."""
        row = self.measure(p)
        for _ in range(2):
            if row.passes:
                break
            row = self.measure(p, careful=True)
        return row


def points(ops: list[GridOp], threads: list[int], quick: bool, everything: bool) -> Iterator[Point]:
    """The grid in the order of measuring: batches ascend innermost, dtypes change rarely."""
    limit = (256 if everything else 16) * MEBI
    sides, batches = (QUICK_SIDES, QUICK_BATCHES) if quick else (SIDES, BATCHES)
    for n, dtype, op, layout in itertools.product(threads, DTYPES, ops, ("contiguous", "mH")):
        second = n > 1 or layout == "mH"
        if not everything and ((n > 1 and layout == "mH") or (op.name == OWN_PRODUCT and second)):
            continue
        for r, c, t, b in itertools.product(sides, sides, op.slots, batches):
            p = Point(op.name, dtype, layout, n, r, c, t, b)
            thinned = (second and t == 8) or (n > 1 and b < 256 and max(r, c) < 16)
            thinned = thinned or b * op.flops(r, c, t) > MOST_FLOPS
            if op.bytes(p) <= limit and (everything or not thinned):
                yield p


def read(path: Path) -> dict[Point, dict[str, str]]:
    """Rows by point; a line cut short by an interruption is dropped."""
    if not path.exists():
        return {}
    with path.open(newline="") as f:
        return {Point.of(row): row for row in csv.DictReader(f) if None not in row.values()}


def write(path: Path, rows: dict[Point, dict[str, str]]) -> None:
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, FIELDS)
        writer.writeheader()
        writer.writerows(rows.values())


def run(todo: list[Point], path: Path, rows: dict[Point, dict[str, str]], bench: Bench) -> None:
    """Measure `todo`, appending every row as it comes; prints failures and progress."""
    write(path, rows)
    start = last = time.monotonic()
    failures = 0
    before = torch.get_num_threads()
    gc.collect()
    gc.disable()
    try:
        with path.open("a", newline="", buffering=1) as f:
            writer = csv.DictWriter(f, FIELDS)
            for i, p in enumerate(todo):
                if torch.get_num_threads() != p.threads:
                    torch.set_num_threads(p.threads)
                row = bench.row(p)
                line = row.line()
                writer.writerow(line)
                rows[p] = {k: str(v) for k, v in line.items()}
                failures += not row.passes
                if time.monotonic() - last > 10 or i + 1 == len(todo):
                    last = time.monotonic()
                    print(f"{i + 1}/{len(todo)} rows, {failures} below the rule, {last - start:.0f} s", flush=True)
                    gc.collect()
    finally:
        gc.enable()
        torch.set_num_threads(before)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="semcom-fast bench grid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ops", nargs="+", default=list(BY_NAME), choices=list(BY_NAME), metavar="OP")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--csv", type=Path, default=DEFAULT, help="where rows go, and come from when going on")
    parser.add_argument("--quick", action="store_true", help="3 x 3 sizes, 3 batches: under a minute")
    parser.add_argument("--all", action="store_true", help="nothing left out, up to 256 MiB a row")
    parser.add_argument("--fresh", action="store_true", help="forget the rows that are in the CSV")
    parser.add_argument("--failures", type=Path, metavar="CSV", help="measure only this file's failing rows again")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: of this thread (1 thread only)")
    args = parser.parse_args(argv)
    if args.clock == "cpu" and args.threads != [1]:
        parser.error("--clock cpu counts one thread: add --threads 1")
    path = args.failures or args.csv
    rows = {} if args.fresh and not args.failures else read(path)
    ops = [op for op in OPS if op.name in args.ops]
    if args.failures:
        todo = [
            p for p, row in rows.items() if not crossover.passes(row) and p.op in args.ops and p.threads in args.threads
        ]
    else:
        todo = [p for p in points(ops, args.threads, args.quick, args.all) if p not in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"{len(todo)} rows to measure, {len(rows)} kept, to {path}")
    try:
        run(todo, path, rows, Bench(args.clock))
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on ({path})")
        return 130
    write(path, rows)
    crossover.summarise(rows, path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
