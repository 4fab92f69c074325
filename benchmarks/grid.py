"""The whole grid of small-matrix sizes against the best plain torch: is there any size at which ours loses?

    semcom-fast bench grid                      every op, 1 and 2 threads, to benchmarks/results/cpu_grid.csv
    semcom-fast bench grid --device cuda        the same on a GPU, to benchmarks/results/<device>_grid.csv
    semcom-fast bench grid --ops rzf_precode    one op
    semcom-fast bench grid --failures FILE      measure only FILE's failing rows again, in place

Rows are appended as they come: Ctrl-C (or --limit) and the same command go on, `--fresh` starts again. Every call reads
operands that were last touched a whole arena (four times the last cache) earlier, so all rows are "rotated"; outputs lie
in memory that the process or torch's allocator already holds. A row is screened by a few short rounds of ours and the
formulations that were near the best at the batch before; one that fails the rule is measured again, longer, before it
counts. The rule: at least 0.95x the best torch where torch takes 20 us or more, at most 4 us more than torch below that.

Left out on a CPU: rows of more than 16 MiB or 1e8 real operations (256 MiB with --all): the next smaller batch leaves
the caches already, and time grows in proportion. A first look decides a row of 2x or more where torch takes 20 us, of
1.3x where it takes 1 ms (rounds = 2), and of 2.5x where it takes 10 ms (rounds = 1). `.mH` and 2 threads take T = 1 and
24, and 2 threads take contiguous operands from batch 256 or side 16 on (below, no side starts a second thread).
"mimo_matmul kernel" is the kernel that mimo_matmul's dispatch rule chooses or leaves to torch, measured for the crossover
(contiguous, 1 thread) and held to no rule. --all leaves nothing out. A GPU has one column "threads" of 1, and rows of up
to 256 MiB and 1e11 operations; a sample there is a batch of calls between two synchronisations, launches included. Its
rows come in an order drawn once, so that a run cut short has seen every op, dtype and size in proportion.
"""

import argparse
import csv
import gc
import itertools
import random
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from semcom_fast._native import cuda_usable

from . import crossover, timing
from .grid_bench import LARGEST, MEBI, Bench
from .grid_ops import BATCHES, BY_NAME, DTYPES, OPS, OWN_PRODUCT, SIDES, GridOp, Point

FIELDS = ["op", "dtype", "layout", "threads", "nr", "nt", "t", "batch", "kernel"]
FIELDS += ["ours_us", "best_torch", "torch_us", "ratio", "rounds"]
HOST = ("device", "driver", "torch", "commit", "date")  # of timing.machine(), behind them; older files have none
MOST_BROKEN = 20  # rows that may fail before a run gives up
QUICK_SIDES, QUICK_BATCHES = (1, 4, 16), (1, 256, 4096)
MOST_BYTES = {"cpu": 16 * MEBI, "cuda": LARGEST}
MOST_FLOPS = {"cpu": 1e8, "cuda": 1e11}


def points(
    ops: list[GridOp], threads: list[int], quick: bool, everything: bool, device: str = "cpu"
) -> Iterator[Point]:
    """The grid in the order of measuring: batches ascend innermost, dtypes change rarely."""
    limit = LARGEST if everything else MOST_BYTES[device]
    sides, batches = (QUICK_SIDES, QUICK_BATCHES) if quick else (SIDES, BATCHES)
    for n, dtype, op, layout in itertools.product(threads, DTYPES, ops, ("contiguous", "mH")):
        second = n > 1 or layout == "mH"
        if not everything and ((n > 1 and layout == "mH") or (op.name == OWN_PRODUCT and second)):
            continue
        for r, c, t, b in itertools.product(sides, sides, op.slots, batches):
            p = Point(op.name, dtype, layout, n, r, c, t, b)
            thinned = (second and t == 8) or (n > 1 and b < 256 and max(r, c) < 16)
            thinned = thinned or b * op.flops(r, c, t) > MOST_FLOPS[device]
            if op.bytes(p) <= limit and (everything or not thinned):
                yield p


def spread(todo: list[Point]) -> list[Point]:
    """The points in an order drawn once, batches ascending together as their measurement needs them."""
    groups: dict[Point, list[Point]] = {}
    for p in todo:
        groups.setdefault(replace(p, batch=0), []).append(p)
    drawn = list(groups.values())
    random.Random(0).shuffle(drawn)
    return list(itertools.chain.from_iterable(drawn))


def read(path: Path) -> dict[Point, dict[str, str]]:
    """Rows by point; a line cut short by an interruption is dropped."""
    if not path.exists():
        return {}
    with path.open(newline="") as f:
        return {Point.of(row): row for row in csv.DictReader(f) if None not in row.values()}


def write(path: Path, rows: Mapping[Point, Mapping[str, str]], more: tuple[str, ...] = ()) -> list[str]:
    """Rewrite the file, whole at any moment; its columns are FIELDS, `more` and whatever the rows have besides."""
    columns = list(dict.fromkeys([*FIELDS, *more, *itertools.chain.from_iterable(rows.values())]))
    scratch = path.with_name(path.name + ".part")
    with scratch.open("w", newline="") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(rows.values())
    scratch.replace(path)
    return columns


def work(p: Point) -> float:
    """Roughly the seconds that a row takes on a CPU core, so that a run can tell how much of it is left."""
    op = BY_NAME[p.op]
    solved = {"rzf_precode": p.nr, "rzf_matrix": p.nr, "lmmse_equalise": p.nt, "lmmse_channel": p.nt}.get(p.op)
    torch_solves = p.batch * (3e-6 + 2e-10 * solved**3) if solved else 0.0
    return 6e-3 + 1e-9 * op.bytes(p) + torch_solves


def _left(seconds: float) -> str:
    """A time to come, in words."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def run(
    todo: list[Point], path: Path, rows: dict[Point, dict[str, str]], bench: Bench, limit: float | None = None
) -> int:
    """Measure `todo`, appending every row as it comes, and print progress; how many rows could not be measured."""
    columns, host = write(path, rows, HOST), {k: v for k, v in timing.machine().items() if k in HOST}
    start = last = time.monotonic()
    failures, broken, done, whole = 0, 0, 0.0, sum(map(work, todo))
    before = torch.get_num_threads()
    gc.collect()
    gc.disable()
    try:
        with path.open("a", newline="", buffering=1) as f:
            writer = csv.DictWriter(f, columns)
            for i, p in enumerate(todo):
                if limit and time.monotonic() - start > limit:
                    print(f"{len(todo) - i} of {len(todo)} rows left out after {limit:.0f} s; the same command goes on")
                    break
                if torch.get_num_threads() != p.threads:
                    torch.set_num_threads(p.threads)
                done += work(p)
                try:
                    row = bench.row(p)
                except Exception as err:  # one broken row is no reason to lose the others
                    broken += 1
                    print(f"not measured: {p}: {type(err).__name__}: {' '.join(str(err).split())[:200]}", flush=True)
                    if broken >= MOST_BROKEN:
                        raise
                    continue
                line = row.line() | host
                writer.writerow(line)
                rows[p] = {k: str(v) for k, v in line.items()}
                failures += not row.passes
                if time.monotonic() - last > 10 or i + 1 == len(todo):
                    last = time.monotonic()
                    left = _left((last - start) * (whole - done) / done)
                    text = f"{failures} below the rule, {last - start:.0f} s, about {left} left"
                    print(f"{i + 1}/{len(todo)} rows, {text}", flush=True)
                    gc.collect()
    finally:
        gc.enable()
        torch.set_num_threads(before)
    return broken


def default_path(device: str) -> Path:
    """`<device>_grid.csv` among the results, the device by its name."""
    name = "cpu" if device == "cpu" else re.sub(r"\W+", "_", torch.cuda.get_device_name()).lower()
    return timing.RESULTS / f"{name}_grid.csv"


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="semcom-fast bench grid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ops", nargs="+", default=list(BY_NAME), choices=list(BY_NAME), metavar="OP")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", nargs="+", type=int, help="of a CPU (1 2)")
    parser.add_argument("--csv", type=Path, help="where rows go, and come from when going on (<device>_grid.csv)")
    parser.add_argument("--quick", action="store_true", help="3 x 3 sizes, 3 batches: under a minute")
    parser.add_argument("--all", action="store_true", help="nothing left out, up to 256 MiB a row")
    parser.add_argument("--fresh", action="store_true", help="forget the rows that are in the CSV")
    parser.add_argument("--failures", type=Path, metavar="CSV", help="measure only this file's failing rows again")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="begin no further row after these")
    parser.add_argument("--no-tables", action="store_true", help="leave the rows alone, no summary tables beside them")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: of this thread (1 thread only)")
    args = parser.parse_args(argv)
    if args.device == "cuda":
        if args.threads or args.clock == "cpu":
            parser.error("--threads and --clock cpu are a CPU's: leave them out with --device cuda")
        if not torch.cuda.is_available():
            parser.error("--device cuda: torch sees no CUDA device")
        if not cuda_usable():
            parser.error("--device cuda: the extension holds no CUDA kernels for this device: semcom-fast info")
    args.threads = args.threads or ([1, 2] if args.device == "cpu" else [1])
    if args.clock == "cpu" and args.threads != [1]:
        parser.error("--clock cpu counts one thread: add --threads 1")
    return args


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    timing.device = args.device
    path = args.failures or args.csv or default_path(args.device)
    rows = {} if args.fresh and not args.failures else read(path)
    ops = [op for op in OPS if op.name in args.ops]
    if args.failures:
        todo = [
            p for p, row in rows.items() if not crossover.passes(row) and p.op in args.ops and p.threads in args.threads
        ]
    else:
        todo = [p for p in points(ops, args.threads, args.quick, args.all, args.device) if p not in rows]
        todo = todo if args.device == "cpu" else spread(todo)
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"{len(todo)} rows to measure, {len(rows)} kept, to {path}")
    try:
        broken = run(todo, path, rows, Bench(args.clock), args.limit)
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on ({path})")
        return 130
    write(path, rows)
    measured = {p: {k: v for k, v in row.items() if k not in HOST} for p, row in rows.items()}
    crossover.summarise(measured, path, tables=not args.no_tables)
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
