"""The diffusion loops: time of a step and of a run, of the networks alone, and what the loop adds to them.

Every case is measured beside the same algorithm in plain torch with the same networks, and beside a user-style program
that waits for the device as published code does; both give the same result on the same draws, which is checked first.

python -m benchmarks.loops [pvd_loop waterfill_loop vb_loop] --threads 1 2 --csv benchmarks/results/loops.csv
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import timing
from .bands import band, paired
from .counts import count, peak_bytes

LOOPS = ["pvd_loop", "waterfill_loop", "vb_loop"]
ROUNDS, QUICK_ROUNDS = 7, 3
COUNTED = ("loop", "network", "plain", "user")

Run = Callable[[], Any]


@dataclass
class LoopCase:
    """One loop at one size.

    Attributes:
        loop, size, variant: which loop ("pvd_loop"), "small" or "paper", and which of its configurations.
        facts: more columns: batch, antennas, networks.
        steps: of one run; times are per step. networks: the modules that the loop calls.
        sides: whole runs by name: "loop" (ours), "network" (its own network calls: same inputs, shapes, dtype and count,
            all else removed), "plain" and "user" (see this module), and any others.
        agree: the largest difference of each side from ours, relative, by name; on the same draws, raises where large.
        finish: columns that need the times: takes the row.
    """

    loop: str
    size: str
    steps: int
    networks: Sequence[nn.Module]
    sides: dict[str, Run]
    agree: Callable[[], dict[str, float]]
    variant: str = "default"
    facts: dict[str, Any] = field(default_factory=dict)
    finish: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: {}


def difference(name: str, got: Tensor, ours: Tensor, bound: float) -> float:
    """Largest difference over the largest entry of ours; beyond the bound their times mean nothing."""
    error = float((got - ours).abs().max() / ours.abs().max())
    if not error < bound:
        raise RuntimeError(f"{name} and the loop differ by {error:.1e}, more than {bound:.0e}: not the same algorithm")
    return error


def counted(case: LoopCase) -> dict[str, Any]:
    """Launches a step, waits a run and inside it, copies to the device inside it; own = loop less its network calls."""
    found = {name: count(case.sides[name], case.networks) for name in COUNTED if name in case.sides}
    row: dict[str, Any] = {"counted_by": "dispatcher" if timing.device == "cpu" else "profiler"}
    for name, c in found.items():
        row[f"{name}_launches_per_step"] = c.inside.launches / case.steps
        row[f"{name}_syncs_per_step"] = c.inside.syncs / case.steps
        row[f"{name}_syncs_per_run"] = c.run.syncs
        row[f"{name}_copies_per_step"] = c.inside.copies / case.steps
    for what in ("launches_per_step", "syncs_per_step"):
        row[f"own_{what}"] = row[f"loop_{what}"] - row[f"network_{what}"]
    return row


def _call(run: Run, _: int) -> Any:
    return run()


def timed(case: LoopCase, rounds: int) -> dict[str, Any]:
    """Medians over interleaved whole runs, their order turning round; ratios are of paired rounds, with quartiles."""
    sides = [timing.Side(name, partial(_call, side)) for name, side in case.sides.items()]
    found = timing.sample(sides, rounds)
    us = {name: statistics.median(r[name] for r in found) / case.steps * 1e6 for name in case.sides}
    over = band(paired([found], "loop", "network"))
    row = {
        "rounds": rounds,
        "run_ms": us["loop"] * case.steps / 1e3,
        "loop_us_per_step": us["loop"],
        "network_us_per_step": us["network"],
        "own_us_per_step": us["loop"] - us["network"],
        "overhead": over.median - 1,
        "overhead_low": over.low - 1,
        "overhead_high": over.high - 1,
    }
    for name in us:
        if name not in ("loop", "network"):
            ratio = band(paired([found], name, "loop"))
            row[f"{name}_us_per_step"] = us[name]
            row |= {
                f"ratio_to_{name}": ratio.median,
                f"ratio_to_{name}_low": ratio.low,
                f"ratio_to_{name}_high": ratio.high,
            }
    return row


def measure(case: LoopCase, rounds: int) -> dict[str, Any]:
    """One row: differences, counts, times, memory."""
    row: dict[str, Any] = {"loop": case.loop, "size": case.size, "variant": case.variant, **case.facts}
    row["steps"] = case.steps
    row |= {f"{name}_difference": value for name, value in case.agree().items()}
    peaks = {name: peak_bytes(side) / 1e6 for name, side in case.sides.items()}  # warms up, too
    row |= timed(case, rounds) | counted(case)
    row |= {f"{name}_peak_mb": peaks[name] for name in COUNTED if name in peaks}
    return row | {"threads": torch.get_num_threads()} | case.finish(row)


def show(row: dict[str, Any]) -> None:
    """One row as two lines."""
    name = f"{row['loop']} {row['size']}, {row['variant']}, batch {row['batch']}, {row['threads']} thread(s)"
    print(
        f"{name}: {row['loop_us_per_step']:.0f} us a step x {row['steps']} = {row['run_ms']:.0f} ms; networks "
        f"{row['network_us_per_step']:.0f}, own {row['own_us_per_step']:.0f} us = {100 * row['overhead']:.1f} % "
        f"({100 * row['overhead_low']:.1f} to {100 * row['overhead_high']:.1f})"
    )
    ratios = [
        f"{k.removeprefix('ratio_to_')} {row[k]:.2f}x" for k in row if k.startswith("ratio_to_") and k.count("_") == 2
    ]
    parts = [
        f"  against {', '.join(ratios)}",
        f"launches a step {row['loop_launches_per_step']:.1f}, own {row['own_launches_per_step']:.1f}",
    ]
    syncs = [f"{n} {row[f'{n}_syncs_per_step']:.2f}" for n in COUNTED if f"{n}_syncs_per_step" in row]
    peaks = [f"{n} {row[f'{n}_peak_mb']:.1f}" for n in COUNTED if f"{n}_peak_mb" in row]
    print("; ".join([*parts, "waits a step: " + ", ".join(syncs), "peak MB: " + ", ".join(peaks)]), flush=True)


def run(
    names: Sequence[str] = LOOPS,
    quick: bool = False,
    threads: int | Sequence[int] | None = None,
    device: str = "cpu",
    rounds: int | None = None,
    sizes: Sequence[str] | None = None,
    csv: Path | None = None,
) -> list[dict[str, Any]]:
    """Measure these loops; prints and returns their rows. quick: the small sizes and few rounds, about 10 s for all.
    csv: a file that holds every row measured so far, at any moment."""
    unknown = [n for n in names if n not in LOOPS]
    if unknown:
        raise ValueError(f"no loop named {unknown[0]!r}; there: {', '.join(LOOPS)}")
    before, timing.device = (timing.device, torch.get_num_threads()), device
    rows = []
    try:
        for t in [threads or before[1]] if threads is None or isinstance(threads, int) else threads:
            torch.set_num_threads(t)
            for name in names:
                for case in importlib.import_module(f".{name}", __package__).cases(quick, sizes):
                    rows.append(measure(case, rounds or (QUICK_ROUNDS if quick else ROUNDS)))
                    show(rows[-1])
                    if csv:
                        timing.write_csv(csv, rows)
    finally:
        timing.device = before[0]
        torch.set_num_threads(before[1])
    return rows


def main(argv: list[str] | None = None, names: Sequence[str] = LOOPS) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loops", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("loops", nargs="*", help=f"any of {', '.join(LOOPS)} (default: {' '.join(names)})")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: about 10 s")
    parser.add_argument("--size", nargs="+", choices=["small", "paper"], help="default: all")
    parser.add_argument("--rounds", type=int, help=f"interleaved rounds (default: {ROUNDS}, quick {QUICK_ROUNDS})")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--processor-time", action="store_true", help="on a busy machine; provisional, for one thread")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args(argv)
    unknown = [n for n in args.loops if n not in LOOPS]
    if unknown:
        parser.error(f"no loop named {unknown[0]!r}; there: {', '.join(LOOPS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if args.processor_time:
        timing.clock = time.process_time
    run(args.loops or names, args.quick, args.threads, args.device, args.rounds, args.size, args.csv)
    if args.csv:
        print(f"wrote {args.csv}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
