"""Sweep the launch choices of the Triton kernels on the GPU at hand and store what wins: `semcom-fast bench tune`.

For every kernel, row length and dtype, each candidate's result is first compared with the default's: bit for bit, or
within the kernel's stated bound where it sums over a row. Candidates are then timed in turns with the default (CUDA graphs
of several launches, each past the last cache). A candidate replaces the default only where it is faster beyond the bands
of both, beyond what the default shows against itself, and again in a second measurement of the two alone.

Writes the sweep as CSV and the winners into the table of semcom_fast/triton/tuned.json.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import timing
from .bands import Band, band, change, paired

if TYPE_CHECKING:
    from semcom_fast.triton._tuned import Choice

    from .tune_kernels import Kernel

TOTAL = 256 << 20  # bytes a launch moves: past the last cache of every GPU so far
SMALL = 1 << 16  # where only the compiler matters
VISITS, ROUNDS = 3, 9
AGAIN = "default again"
Times = Callable[[Mapping[str, Callable[[], Any]]], list[list[dict[str, float]]]]  # seconds, by visit and round


@dataclass
class Swept:
    """One kernel, size class and dtype: the default, the winner, and a row per candidate."""

    op: str
    size: int
    dtype: torch.dtype
    default: "Choice"
    winner: "Choice"
    rows: list[dict[str, Any]] = field(default_factory=list)


def on_device(sides: Mapping[str, Callable[[], Any]], visits: int = VISITS) -> list[list[dict[str, float]]]:
    """Seconds per launch of every side in turns, each as a graph of some launches; its order changes every round."""
    entrants = [timing.Side(name, lambda _, fn=fn: fn()) for name, fn in sides.items()]
    for side in entrants:
        side.plan(1e-3, float("inf"), ROUNDS)
        side.capture(max(1, min(50, side.repeats)))
    return [timing.sample(entrants, ROUNDS) for _ in range(visits)]


def outputs(result: Any) -> tuple[torch.Tensor, ...]:
    return tuple(result) if isinstance(result, tuple) else (result,)


def difference(got: Any, want: Any, growth: float) -> str:
    """ "" where the results agree: bit for bit, or within `growth` unit roundoffs of the largest entry; else what is off."""
    for i, (a, b) in enumerate(zip(outputs(got), outputs(want), strict=True)):
        if not growth:
            if not torch.equal(a, b):
                return f"result {i} has other bits"
            continue
        unit = torch.finfo(a.dtype).eps / 2
        error, scale = float((a - b).abs().max()), float(b.abs().max())
        if not error <= growth * unit * scale:
            return f"result {i} is off by {error / (unit * scale):.0f} unit roundoffs of its largest entry"
    return ""


def decide(sides: Mapping[str, Callable[[], Any]], times: Times) -> tuple[str, dict[str, Band], dict[str, Band]]:
    """(the winner's name, seconds, ratios default/candidate), `sides` holding "default" and AGAIN."""
    visits = times(sides)
    seconds = {n: band([[r[n] for r in rounds] for rounds in visits]) for n in sides}
    ratios = {n: band(paired(visits, "default", n)) for n in sides if n != "default"}
    best = max((n for n in ratios if n != AGAIN), key=lambda n: ratios[n].median, default="default")
    if best == "default" or change(ratios[AGAIN], ratios[best]) <= 0:
        return "default", seconds, ratios
    second = times({n: sides[n] for n in ("default", AGAIN, best)})
    again, alone = (band(paired(second, "default", n)) for n in (AGAIN, best))
    return (best if change(again, alone) > 0 else "default"), seconds, ratios


def sweep(kernel: "Kernel", length: int, dtype: torch.dtype, device: torch.device, quick: bool, times: Times) -> Swept:
    """Check every candidate, time those that are right, name the winner."""
    from semcom_fast.triton import _tuned

    launch = kernel.make(length, kernel.items(length, dtype, TOTAL if device.type == "cuda" else SMALL), dtype, device)
    with _tuned.watching() as asked:
        launch()
    size, kind, default = asked[kernel.op]

    def forced(choice: "Choice") -> Callable[[], Any]:
        def run() -> Any:
            with _tuned.forced(kernel.op, choice):
                return launch()

        return run

    want = tuple(t.clone() for t in outputs(forced(default)()))  # launches may write into buffers of their own
    sides, rows = {"default": forced(default), AGAIN: forced(default)}, {}
    for choice in kernel.candidates(default, quick):
        name = "default" if choice == default else str(tuple(choice))
        row = {"op": kernel.op, "size": size, "length": length, "dtype": str(kind)[6:], **choice._asdict()}
        rows[name] = row | {"us": "", "low_us": "", "high_us": "", "ratio": "", "ratio_low": "", "ratio_high": ""}
        try:
            wrong = difference(forced(choice)(), want, kernel.growth)
        except Exception as err:  # out of registers, shared memory or the compiler's patience
            wrong = f"does not run: {type(err).__name__}"
        rows[name]["verdict"] = wrong or "slower or within its band"
        if not wrong and name != "default":
            sides[name] = forced(choice)
    winner, seconds, ratios = decide(sides, times)
    for name, row in rows.items():
        if name in seconds:
            s = seconds[name]
            row |= {"us": s.median * 1e6, "low_us": s.low * 1e6, "high_us": s.high * 1e6}
        if name in ratios:
            row |= dict(zip(("ratio", "ratio_low", "ratio_high"), ratios[name], strict=True))
    rows["default"]["verdict"] = "default"
    rows[winner]["verdict"] = "chosen" if winner != "default" else "default, kept"
    chosen = type(default)(*(rows[winner][f] for f in default._fields))
    return Swept(kernel.op, size, kind, default, chosen, list(rows.values()))


def store(path: Path, arch: str, found: Sequence[Swept], about: Mapping[str, str]) -> None:
    """Put the winners of an architecture into the table at `path`; a default that stays leaves no entry."""
    from semcom_fast.triton import _tuned

    table = json.loads(path.read_text()) if path.exists() else {"format": _tuned.FORMAT, "architectures": {}}
    entry = table["architectures"].get(arch, {})
    choices = entry.get("choices", {})
    for s in found:
        choices.pop(_tuned.key(s.op, s.size, s.dtype), None)
        if s.winner != s.default:
            choices[_tuned.key(s.op, s.size, s.dtype)] = s.winner._asdict()
    table["architectures"][arch] = {"status": "swept", **about, "choices": dict(sorted(choices.items()))}
    text = json.dumps(table, indent=1) + "\n"
    _tuned.parse(text, str(path))
    path.write_text(text)
    _tuned.reload()


def _tasks(stems: Sequence[str], quick: bool) -> list[tuple["Kernel", int, torch.dtype]]:
    """What is swept: with `quick` the first two row lengths in float32."""
    from .tune_kernels import KERNELS

    dtypes = (torch.float32,) if quick else (torch.float32, torch.float64)
    kernels = [k for k in KERNELS if not stems or k.stem in stems]
    return [(k, n, d) for d in dtypes for k in kernels for n in (k.lengths[:2] if quick else k.lengths)]


def compile_share(tasks: list, share: str, device: torch.device, quick: bool) -> None:
    """Compile the candidates of every n-th task into Triton's cache; tiny launches."""
    from semcom_fast.triton import _tuned

    part, parts = map(int, share.split("/"))
    for kernel, length, dtype in tasks[part::parts]:
        launch = kernel.make(length, kernel.items(length, dtype, SMALL), dtype, device)
        with _tuned.watching() as asked:
            launch()
        for choice in kernel.candidates(asked[kernel.op][2], quick):
            try:
                with _tuned.forced(kernel.op, choice):
                    launch()
            except Exception:  # the sweep itself says why
                continue


def _compile_ahead(args: argparse.Namespace, jobs: int) -> None:
    """The compiler takes longer than the sweep: spread it over processes, which share Triton's cache on disk."""
    command = [sys.executable, "-m", "benchmarks", "tune", *args.stems, "--device", args.device]
    command += ["--quick"] if args.quick else []
    root = Path(__file__).resolve().parents[1]
    started = [subprocess.Popen([*command, "--compile-share", f"{i}/{jobs}"], cwd=root) for i in range(jobs)]
    deadline = time.monotonic() + args.limit / 2 if args.limit else None
    for process in started:
        try:
            process.wait(None if deadline is None else max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="semcom-fast bench tune", description=__doc__.split("\n")[0])
    parser.add_argument("stems", nargs="*", help="ops to sweep (default: every Triton kernel with a choice)")
    parser.add_argument("--device", default="cuda", help="cuda, or cuda:1")
    parser.add_argument("--quick", action="store_true", help="float32, two row lengths, neighbours of the default")
    parser.add_argument("--csv", type=Path, help="the sweep (default: benchmarks/results/tune_<device>.csv)")
    parser.add_argument("--table", type=Path, help="the table to write (default: semcom_fast/triton/tuned.json)")
    parser.add_argument("--limit", type=float, help="seconds after which no further sweep begins")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile ahead")
    parser.add_argument("--compile-share", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Sweep, print, write; 2 without a CUDA device or Triton, or for an op that has nothing to sweep."""
    args = _arguments(argv)
    if not args.device.startswith("cuda") or not torch.cuda.is_available():
        print("bench tune: tuning needs a CUDA device, and torch sees none", file=sys.stderr)
        return 2
    from semcom_fast.triton import _tuned

    from .tune_kernels import STEMS

    unknown = [s for s in args.stems if s not in STEMS]
    if unknown:
        print(f"bench tune: {unknown[0]} has no launch to choose; one of {', '.join(STEMS)}", file=sys.stderr)
        return 2
    start = time.monotonic()
    device = torch.device(args.device if ":" in args.device else "cuda:0")
    torch.cuda.set_device(device)
    tasks = _tasks(args.stems, args.quick)
    if args.compile_share:
        compile_share(tasks, args.compile_share, device, args.quick)
        return 0
    timing.device = "cuda"
    arch = _tuned.architecture(device)
    name = "_".join(torch.cuda.get_device_name(device).lower().split())
    path = args.csv or timing.RESULTS / f"tune_{name}.csv"
    if args.jobs > 1:
        _compile_ahead(args, args.jobs)
    found: list[Swept] = []
    for i, (kernel, length, dtype) in enumerate(tasks):
        if args.limit and time.monotonic() - start > args.limit:
            print(f"bench tune: {len(tasks) - i} of {len(tasks)} sweeps left out after {args.limit:.0f} s")
            break
        try:
            swept = sweep(kernel, length, dtype, device, args.quick, on_device)
        except Exception as err:  # one kernel is no reason to lose the others
            print(f"{kernel.op} {length}: not swept, {type(err).__name__}: {err}", flush=True)
            continue
        found.append(swept)
        ratio = next((r["ratio"] for r in swept.rows if r["verdict"] == "chosen"), 1.0)
        what = "default kept" if swept.winner == swept.default else f"{tuple(swept.winner)}, {ratio:.2f}x"
        print(f"{_tuned.key(swept.op, swept.size, swept.dtype):44} default {tuple(swept.default)}: {what}", flush=True)
        timing.write_csv(path, [r for s in found for r in s.rows])
    if not found:
        return 1
    host = timing.machine()
    about = {k: host[k] for k in ("device", "driver", "torch", "commit", "date")}
    about |= {"triton": version("triton"), "sweep": f"benchmarks/results/{path.name}"}
    store(args.table or _tuned.PATH, str(arch), found, about)
    print(f"wrote {path} and {args.table or _tuned.PATH}")
    return 0 if len(found) == len(tasks) or args.limit else 1


if __name__ == "__main__":
    raise SystemExit(main())
