"""The command `semcom-fast`: demo, run, train, sweep, bench and info."""

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import __version__, _backend, _native
from .errors import BackendUnavailable, MissingExtra

# Systems by name. Each module has COMMANDS: verb -> (add arguments to a parser, execute them), and UNUSED: verb -> (parsed
# options -> those that would do nothing beside the others, each with what it needs instead).
SYSTEMS = {
    "blind-mimosc": "semcom_fast.systems.blind_mimosc.commands",
    "dm-vb": "semcom_fast.systems.dm_vb.commands",
    "mu-mimo": "semcom_fast.systems.mu_mimo.commands",
    "sgd-jscc": "semcom_fast.systems.sgd_jscc.commands",
}
ALIASES = {"pvd": "blind-mimosc"}  # the receiver's name, for its system
DEFAULT_SYSTEM = "blind-mimosc"


class Verb(NamedTuple):
    """What a command does, and the systems that have it."""

    what: str
    systems: tuple[str, ...] = tuple(SYSTEMS)


VERBS = {
    "demo": Verb("show a system at work: a table and one picture, in about a minute"),
    "run": Verb("one setting of a system, its figures printed"),
    "train": Verb("train a system's networks; may be stopped and resumed"),
    "sweep": Verb("SNRs, seeds and settings of a system into one CSV; may be stopped and resumed", ("blind-mimosc",)),
}
SOURCE_TREE = Path(__file__).resolve().parent.parent


class Parser(argparse.ArgumentParser):
    """Errors in one line, exit code 2."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (try {self.prog} --help)\n")


def _given(parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """Names of the options that `argv` gives, whatever their values."""
    defaults = vars(parser.parse_args([]))
    # argparse leaves alone what a namespace already has; lists, since an option may append to its default
    unset = {name: [*value] if isinstance(value, list) else object() for name, value in defaults.items()}
    found = vars(parser.parse_args(argv, argparse.Namespace(**unset)))
    return [name for name, mark in unset.items() if found[name] is not mark]


def _system(verb: str, rest: list[str]) -> None:
    """`rest` is everything after the verb: an optional system name, then that system's own options."""
    name = rest.pop(0) if rest and not rest[0].startswith("-") else DEFAULT_SYSTEM
    name = ALIASES.get(name, name)
    if name not in SYSTEMS:
        also = ", ".join(f"{short} for {full}" for short, full in ALIASES.items())
        raise ValueError(f"no system named {name!r}; there: {', '.join(SYSTEMS)} ({also})")
    if name not in VERBS[verb].systems:
        there = [other for other, offered in VERBS.items() if name in offered.systems]
        raise ValueError(f"{name} has no command {verb!r}; there: {', '.join(there)}")
    module = importlib.import_module(SYSTEMS[name])
    add, execute = module.COMMANDS[verb]
    others = [f"semcom-fast {verb} {other} --help" for other in VERBS[verb].systems if other != name]
    note = f"Each system has options of its own; the other systems': {', '.join(others)}." if others else None
    parser = Parser(prog=f"semcom-fast {verb} {name}", description=VERBS[verb].what, epilog=note)
    add(parser)
    args = parser.parse_args(rest)
    unused = module.UNUSED[verb](args) if verb in module.UNUSED else {}
    for option in _given(parser, rest):
        if option in unused:
            raise ValueError(f"--{option.replace('_', '-')} {unused[option]}")
    if verb == "train" and args.resume and not any(args.out.glob("*.checkpoint")):
        print(f"semcom-fast: no checkpoint in {args.out} to go on from: training starts anew", file=sys.stderr)
    execute(args)


def _bench(rest: list[str]) -> int:
    """Run the microbenchmarks of a source tree with the options given; file names in them are the caller's own."""
    if not (SOURCE_TREE / "benchmarks" / "__main__.py").exists():
        raise FileNotFoundError(
            "the benchmarks do not come with the installed package: clone the source tree, install it with -e, and run "
            f"this command again (looked in {SOURCE_TREE})"
        )
    paths = [str(SOURCE_TREE), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen([sys.executable, "-P", "-m", "benchmarks", *rest], env=env)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # a terminal interrupts both: the benchmarks write what they have and end by themselves


def _check_environment() -> None:
    """Raise for a value of SEMCOM_FAST_ISA or SEMCOM_FAST_BACKEND that names nothing."""
    backend = os.environ.get("SEMCOM_FAST_BACKEND")
    if backend and backend not in _backend.BACKENDS:
        raise ValueError(f"SEMCOM_FAST_BACKEND={backend} is unknown; choose one of {', '.join(_backend.BACKENDS)}")
    if _native.core is not None:
        try:
            _native.core.isa()
        except RuntimeError as err:
            raise BackendUnavailable(str(err)) from err


def _info() -> None:
    lines = _native.info()
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:{width}}  {value}")


def _dispatch(argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog="semcom-fast",
        description="Fast kernels and systems for semantic communication receivers.",
        epilog="Each system has options of its own: semcom-fast run pvd --help lists those of one command of one system. "
        f"Without a system's name it is {DEFAULT_SYSTEM}, {'|'.join(ALIASES)} for short.",
    )
    parser.add_argument("--version", action="version", version=f"semcom-fast {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, parser_class=Parser)
    for name, verb in VERBS.items():
        verbs.add_parser(name, help=f"{verb.what} [{'|'.join(verb.systems)}]", add_help=False)
    verbs.add_parser("bench", help="run the benchmarks of a source tree", add_help=False)
    verbs.add_parser("info", help="versions, ISA, threads, what was built and what loaded")
    args, rest = parser.parse_known_args(argv)
    _check_environment()
    if args.verb == "info":
        if rest:
            parser.error(f"info takes no arguments, got {' '.join(rest)}")
        _info()
        return 0
    if args.verb == "bench":
        return _bench(rest)
    _system(args.verb, rest)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 on success, 2 with one line on an error a user can mend, 130 on Ctrl-C."""
    try:
        return _dispatch(argv)
    except KeyboardInterrupt as stop:
        print(f"\nsemcom-fast: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, BackendUnavailable, MissingExtra) as err:
        message = " ".join(str(err).split())
        if isinstance(err, (FileExistsError, NotADirectoryError)) and err.filename is not None:
            message = f"{err.filename} is needed as a folder or below one, and a file is in its place"
        print(f"semcom-fast: {message}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
