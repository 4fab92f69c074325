"""What the commands of every system take: threads, and whether to be quiet."""

from argparse import ArgumentParser, Namespace

import torch


def add_execution(parser: ArgumentParser) -> None:
    """--threads and --quiet."""
    # Networks this small gain next to nothing from a second thread, and threads that wait for each other at every
    # layer stall a run tenfold when the machine has other work.
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def use_threads(args: Namespace) -> None:
    """Set torch's threads; raises ValueError for less than one."""
    if args.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {args.threads}")
    torch.set_num_threads(args.threads)
