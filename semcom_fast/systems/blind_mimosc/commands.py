"""The command line of this system: what `semcom-fast demo|run|train blind-mimosc` take and do."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ...data import load_digits
from ..evaluation import where
from ..execution import add_execution, use_threads
from . import train_channel
from .demo import DemoSettings, run_demo
from .experiment import Link, send_and_receive, summarise
from .measures import pixel_variance
from .networks import load_denoiser, load_encoder
from .train import ENCODERS, train_all

DIGITS, CHANNEL = "digits", "channel"


def _reception(parser: ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, metavar="DIR", help="weights of your own training (default: shipped)")
    parser.add_argument("--seed", type=int, default=0, help="of channels, noise and the receiver's draws")
    add_execution(parser)


def add_demo(parser: ArgumentParser) -> None:
    defaults = DemoSettings()
    parser.add_argument("--out", type=Path, default=defaults.out, metavar="PNG", help="picture (default: %(default)s)")
    parser.add_argument("--images", type=int, default=defaults.images, help="held-out digits to send")
    parser.add_argument("--snr", type=float, nargs="+", default=list(defaults.snrs_db), metavar="DB")
    _reception(parser)


def demo(args: Namespace) -> None:
    """The table and the picture."""
    use_threads(args)
    run_demo(
        DemoSettings(
            out=args.out,
            images=args.images,
            snrs_db=tuple(args.snr),
            seed=args.seed,
            weights=args.weights,
            progress=not args.quiet,
        )
    )


def add_run(parser: ArgumentParser) -> None:
    link = Link()
    parser.add_argument("--snr", type=float, default=10.0, metavar="DB", help="per receive antenna, all streams")
    parser.add_argument("--encoder", choices=sorted(ENCODERS), default="penalised")
    parser.add_argument("--images", type=int, default=24, help="held-out digits to send")
    parser.add_argument("--starts", type=int, default=1, help="restarts per image, the best by residual energy kept")
    parser.add_argument("--users", type=int, default=link.users)
    parser.add_argument("--blocks", type=int, default=link.blocks, metavar="K")
    parser.add_argument("--nr", type=int, default=link.nr)
    parser.add_argument("--nt", type=int, default=link.nt)
    parser.add_argument("--slots", type=int, default=link.slots, metavar="T")
    _reception(parser)


def run(args: Namespace) -> None:
    """One setting at one SNR; prints every figure of its summary, one per line."""
    use_threads(args)
    link = Link(args.blocks, args.nr, args.nt, args.slots, args.users)
    encoder = load_encoder(args.encoder, link.blocks, link.nt, link.slots, users=link.users, folder=args.weights)
    digits = load_digits()
    if not 1 <= args.images <= len(digits.test):
        raise ValueError(f"--images must be 1 to {len(digits.test)}, got {args.images}")
    outcome = send_and_receive(
        link,
        encoder,
        load_denoiser(args.weights),
        digits.test[: args.images],
        args.snr,
        seed=args.seed,
        restarts=args.starts,
        progress=not args.quiet,
    )
    for name, value in summarise(outcome, pixel_variance(digits.train))._asdict().items():
        print(f"{name:18} {value:.4f}")
    for name, text in where().items():
        print(f"{name:18} {text}")


def add_train(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("out/blind_mimosc"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--steps", type=int, help="of every network (default: 3000, 1300 and 4000)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    parser.add_argument(
        "--part", choices=(DIGITS, CHANNEL), default=DIGITS, help="all networks for digits, or a channel prior"
    )
    parser.add_argument("--minutes", type=float, help=f"of --part {CHANNEL}: stop after that long, weights written")
    parser.add_argument("--seed", type=int, default=0, help=f"of --part {CHANNEL}")
    train_channel.add_arguments(parser)
    add_execution(parser)


def train(args: Namespace) -> None:
    """Train all networks for digits, or a channel prior, into --out."""
    use_threads(args)
    if args.part == CHANNEL:
        train_channel.execute(args)
        return
    train_all(args.out, steps=args.steps, resume=args.resume, progress=not args.quiet)


COMMANDS = {"demo": (add_demo, demo), "run": (add_run, run), "train": (add_train, train)}
