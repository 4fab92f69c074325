"""Microbenchmarks of the kernels and loops: checked, interleaved with their peers, held against this machine's limits.

semcom-fast bench                                  every op, then the loops
semcom-fast bench --quick                          small sizes, all ops and loops, under a minute
semcom-fast bench rzf_precode --size 4x4 --csv rows.csv --verbose
semcom-fast bench compare before.csv after.csv     which rows got faster or slower beyond their bands
semcom-fast bench grid|tune|roofline --help        the whole grid of sizes; launch choices; this machine's limits
"""

import argparse
import contextlib
import importlib
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import semcom_fast as sf
from semcom_fast._backend import BACKENDS
from semcom_fast.cli import Parser
from semcom_fast.errors import BackendUnavailable, MissingExtra

from . import report, timing
from .cases import RIVALS, STEMS, Case, choose, collect
from .rows import QUICK, Row, Settings
from .runner import Files, Outcome, Runner

COMMANDS = ("compare", "grid", "tune", "roofline")  # modules with a main(argv) of their own
LOOPS = ("pvd_loop", "waterfill_loop", "vb_loop")
GROUPS = {"ops": STEMS, "loops": LOOPS}
CACHES = ("hot", "rotated")
SECONDS = {True: 0.4, False: 5.0}  # a row and cache state on an idle machine, quick or not; compiling comes on top


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="semcom-fast bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stems", nargs="*", metavar="STEM", help="ops and loops to measure, `ops` or `loops` (all)")
    parser.add_argument(
        "--quick", action="store_true", help="smallest sizes, few rounds: under a minute for everything"
    )
    parser.add_argument("--list", action="store_true", help="print the rows that would be measured, and stop")
    parser.add_argument("--size", metavar="TEXT", help="rows of this size, or with this in their size, or a pattern")
    parser.add_argument("--op", help="rows of this op, where a stem has several (rzf_precode+grad)")
    parser.add_argument("--dtype", choices=["complex64", "complex128", "float32", "float64"])
    parser.add_argument("--cache", choices=CACHES, help="buffers that stay in the cache, or rotate past it (both)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--backend", choices=BACKENDS, help="force the kernels of one backend for our side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and ours (%(default)s)")
    parser.add_argument("--without", action="append", default=[], choices=RIVALS, help="leave another package out")
    parser.add_argument("--graphs", action="store_true", help="CUDA: time replays of captured calls, no launch cost")
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "thread"], help="thread: processor time, busy machine"
    )
    parser.add_argument("--csv", type=Path, help="write the rows here, whole after every visit")
    parser.add_argument("--json", type=Path, help="the same as JSON, with the machine and its limits")
    parser.add_argument("--append", action="store_true", help="keep the other rows that --csv's file already holds")
    parser.add_argument("--png", type=Path, help="draw the roofline of the rows here")
    parser.add_argument(
        "--verbose", "-v", action="store_true", help="all figures of a row and the command that repeats it"
    )
    args = parser.parse_args(argv)
    words = [w for s in args.stems or GROUPS for w in GROUPS.get(s, [s])]
    unknown = [w for w in words if w not in (*STEMS, *LOOPS)]
    if unknown:
        there = ", ".join((*GROUPS, *STEMS, *LOOPS, *COMMANDS))
        parser.error(f"unknown stem {unknown[0]!r}; there: {there}")
    if args.threads < 1:
        parser.error("--threads must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if args.graphs and args.device != "cuda":
        parser.error("--graphs needs --device cuda")
    if args.clock == "thread" and (args.threads > 1 or args.device != "cpu"):
        parser.error("--clock thread counts one CPU thread: give --threads 1")
    args.ops = [w for w in dict.fromkeys(words) if w in STEMS]
    args.loops = [w for w in dict.fromkeys(words) if w in LOOPS]
    if args.size or args.op or args.dtype or args.cache or args.backend:  # filters of rows: loops have none
        if not args.ops:
            parser.error("--size, --op, --dtype, --cache and --backend choose among ops' rows; a loop has none of them")
        args.loops = [] if not args.stems else args.loops
    return args


def reproduce(args: argparse.Namespace, case: Case, cache: str) -> str:
    """The command that measures one row again as it was measured."""
    words = ["semcom-fast", "bench", case.stem, "--op", case.op, "--size", case.size, "--dtype", case.dtype]
    words += ["--cache", cache, "--threads", str(args.threads)]
    for option, default in (("device", "cpu"), ("backend", None), ("clock", "wall")):
        value = getattr(args, option)
        words += [] if value == default else [f"--{option}", value]
    words += ["--quick"] * args.quick + ["--graphs"] * args.graphs
    for name in args.without:
        words += ["--without", name]
    return shlex.join(words)


def _settings(args: argparse.Namespace) -> Settings:
    return (QUICK if args.quick else Settings())._replace(graphs=args.graphs, without=tuple(args.without))


def _measure(args: argparse.Namespace, cases: list[Case], caches: Sequence[str], files: Files) -> tuple[Outcome, Any]:
    """Limits of the machine, then every row."""
    from . import roofline

    limits = roofline.limits(args.quick)
    files.limits = asdict(limits)
    host = timing.machine()
    rows = len(cases) * len(caches)
    print(
        f"{host['device']} {host['driver']}, level {host['isa']}, {args.threads} threads, torch {host['torch']}, commit "
        f"{host['commit']}\ncopy {limits.copy_bytes_per_s * 1e-9:.1f} GB/s, cgemm {limits.cgemm_flops_per_s * 1e-9:.0f} and "
        f"zgemm {limits.zgemm_flops_per_s * 1e-9:.0f} GFLOP/s, {limits.ns_per_normal:.2f} ns per normal; {rows} rows, about "
        f"{rows * SECONDS[args.quick]:.0f} s\n{report.HEADER}",
        flush=True,
    )

    def show(row: Row) -> None:
        print(report.line(row) + ("\n" + report.details(row) if args.verbose else ""), flush=True)

    runner = Runner(_settings(args), limits, files, show, lambda case, cache: reproduce(args, case, cache))
    forced = sf.use_backend(args.backend) if args.backend else contextlib.nullcontext()
    with forced:
        return runner.run(cases, caches), limits


def _loops(args: argparse.Namespace) -> None:
    """The loops' rows go to the CSV itself when nothing else is measured, else to a file beside it."""
    from . import loops

    path = args.csv and (args.csv if not args.ops else args.csv.with_stem(args.csv.stem + "_loops"))
    loops.run(args.loops, args.quick, args.threads, args.device, csv=path)
    if path:
        print(f"wrote {path}")


def _close(args: argparse.Namespace, out: Outcome, limits: Any) -> int:
    """Say what is missing and was refused; 1 after a wrong result, 130 after Ctrl-C, 2 when no row could run."""
    for text in report.closing(out.rows):
        print(text)
    for text in out.absent:
        print(f"no kernel: {text}")
    for text in out.refused:
        print(f"REFUSED {text}", file=sys.stderr)
    if not args.verbose and out.rows:
        print("every row's own command: --verbose, or the column `command`")
    for path in filter(None, (args.csv, args.json)):
        print(f"wrote {path}")
    if args.png and out.rows:
        from . import roofline

        roofline.plot([r.record() for r in out.rows], limits, args.png)
        print(f"wrote {args.png}")
    if out.interrupted:
        print(f"semcom-fast bench: interrupted after {len(out.rows)} rows, which are kept", file=sys.stderr)
        return 130
    if out.refused:
        return 1
    return 2 if out.absent and not out.rows else 0


def bench(argv: Sequence[str] | None = None) -> int:
    """Measure the rows and loops asked for."""
    start = time.monotonic()
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    timing.device = args.device
    timing.clock = time.thread_time if args.clock == "thread" else time.perf_counter
    caches = [args.cache] if args.cache else list(CACHES)
    code = 0
    if args.ops:
        cases = choose(collect(args.ops, args.quick), args.size, args.op, args.dtype)
        if args.list:
            print("\n".join(f"{c.op:22} {c.size:34} {c.dtype:10} {c.target}" for c in cases))
        else:
            code = _close(args, *_measure(args, cases, caches, Files(args.csv, args.json, args.append)))
    if args.list:
        print("".join(f"{name}\n" for name in args.loops), end="")
        return 0
    if args.loops and code in (0, 1):
        _loops(args)
    print(f"{time.monotonic() - start:.0f} s")
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch on the first word; errors a user can mend take one line and exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] in COMMANDS:
            return importlib.import_module(f".{words[0]}", __package__).main(words[1:])
        return bench(words)
    except KeyboardInterrupt:
        print("\nsemcom-fast bench: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, BackendUnavailable, MissingExtra) as err:
        print(f"semcom-fast bench: {' '.join(str(err).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
