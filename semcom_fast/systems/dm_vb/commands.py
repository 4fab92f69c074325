"""The command line of this system: what `semcom-fast demo|run|train dm-vb` take and do."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..execution import add_execution, use_threads
from . import train
from .evaluate import add_protocol, protocol_of
from .report import RunSettings, run_report


def _add(parser: ArgumentParser, defaults: RunSettings) -> None:
    add_protocol(parser, defaults.protocol)
    parser.add_argument("--out", type=Path, default=defaults.out, metavar="PNG", help="picture (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="table as CSV (default: beside the picture); *_gains.csv beside it")
    parser.add_argument("--shown", type=float, default=defaults.shown_db, metavar="DB", help="SNR of the pictures")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="of the networks; auto: bfloat16 where the processor has instructions for it",
    )  # fmt: skip
    parser.add_argument("--weights", type=Path, metavar="DIR", help="weights of your own training (default: shipped)")
    add_execution(parser)


def add_demo(parser: ArgumentParser) -> None:
    _add(parser, RunSettings.demo())


def add_run(parser: ArgumentParser) -> None:
    _add(parser, RunSettings())


def unused_in_run(args: Namespace) -> dict[str, str]:
    """Options without effect beside the others, and what they need."""
    return {} if args.densities else {"density_snr": "needs --densities"}


def _settings(args: Namespace, keep: bool) -> RunSettings:
    use_threads(args)
    return RunSettings(
        protocol=protocol_of(args),
        out=args.out,
        csv=args.csv,
        shown_db=args.shown,
        bf16={"auto": None, "fp32": False, "bf16": True}[args.precision],
        weights=args.weights,
        strict=args.estimators is not None or args.weights is not None,
        keep=keep,
        progress=not args.quiet,
    )


def run_demo(args: Namespace) -> None:
    """Tables, CSV files and picture; nothing is kept."""
    run_report(_settings(args, keep=False))


def run(args: Namespace) -> None:
    """As the demonstration, one SNR by default; a stopped run goes on where it was."""
    run_report(_settings(args, keep=True))


def add_train(parser: ArgumentParser) -> None:
    train.add_arguments(parser)
    add_execution(parser)


def unused_in_training(args: Namespace) -> dict[str, str]:
    """Options without effect beside the others, and what they need."""
    if args.scarce is None:
        return {"scarce_samples": "needs --scarce"}
    return (
        {"samples": f"is for other profiles: {args.scarce} has --scarce-samples channels"}
        if args.profile == args.scarce
        else {}
    )


COMMANDS = {
    "demo": (add_demo, run_demo),
    "run": (add_run, run),
    "train": (add_train, train.execute),
}
UNUSED = {"demo": unused_in_run, "run": unused_in_run, "train": unused_in_training}
