"""The command line of this system: what `semcom-fast demo|run|sweep|train blind-mimosc` take and do."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ...data import load_digits
from ..evaluation import where
from ..execution import add_execution, use_threads
from . import run_preset, sweep, train_channel, train_photos
from .demo import DemoSettings, run_demo
from .experiment import Link, send_and_receive, summarise
from .measures import pixel_variance
from .networks import load_denoiser, load_encoder
from .photo_settings import PARTS
from .presets import CROPS
from .report_photos import PhotoRunSettings, run_photos
from .train import ENCODERS, train_all

DIGITS, CHANNEL, PHOTOS = "digits", "channel", "photos"
SNR_DB = 10.0


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


def _images(text: str) -> int | str:
    return PHOTOS if text == PHOTOS else int(text)


def add_run(parser: ArgumentParser) -> None:
    link, photos = Link(), PhotoRunSettings()
    parser.add_argument(
        "--snr", type=float, nargs="+", metavar="DB", help="per receive antenna (default: 10; photos: 10, 20)"
    )
    parser.add_argument("--encoder", choices=sorted(ENCODERS), default="penalised")
    parser.add_argument(
        "--images", type=_images, default=24, metavar="N|photos",
        help="held-out digits to send; or photos: 32x32 grey crops of held-out photographs, with all baselines",
    )  # fmt: skip
    parser.add_argument("--starts", type=int, default=1, help="restarts per digit, the best by residual energy kept")
    parser.add_argument("--users", type=int, default=link.users)
    parser.add_argument("--blocks", type=int, default=link.blocks, metavar="K")
    parser.add_argument("--nr", type=int, default=link.nr)
    parser.add_argument("--nt", type=int, default=link.nt)
    parser.add_argument("--slots", type=int, default=link.slots, metavar="T")
    only = parser.add_argument_group("with --images photos (K, Nr, Nt, T = 8, 8, 2, 16)")
    only.add_argument("--crops", type=int, help=f"held-out crops (default: {photos.crops}; with --preset {CROPS})")
    only.add_argument(
        "--photos", choices=("bundled", "fetched", "all"), default=photos.photos,
        help="test photos: inside scikit-image and scikit-learn, those tools/get_photos.sh fetched, or both",
    )  # fmt: skip
    only.add_argument("--receivers", nargs="+", default=list(photos.receivers), metavar="NAME", help="default: all")
    only.add_argument("--bf16", action="store_true", help="denoiser in bfloat16")
    only.add_argument("--out", type=Path, default=photos.out, metavar="PNG", help="picture; table beside it as CSV")
    run_preset.add_arguments(parser)
    _reception(parser)


def _run_photos(args: Namespace) -> None:
    run_photos(
        PhotoRunSettings(
            out=args.out,
            encoder=args.encoder,
            crops=PhotoRunSettings().crops if args.crops is None else args.crops,
            photos=args.photos,
            snrs_db=tuple(args.snr or PhotoRunSettings().snrs_db),
            receivers=tuple(args.receivers),
            seed=args.seed,
            bf16=args.bf16,
            weights=args.weights,
            progress=not args.quiet,
        )
    )


def run(args: Namespace) -> None:
    """Digits: one setting at one SNR; prints every figure of its summary, one per line. Photographs: a report. A preset:
    one of the paper's settings, on photographs."""
    use_threads(args)
    if args.preset is not None:
        run_preset.execute(args)
        return
    if args.nets is not None:
        raise ValueError("--nets needs --preset")
    if args.images == PHOTOS:
        _run_photos(args)
        return
    if args.snr and len(args.snr) != 1:
        raise ValueError(f"--snr takes one value for digits, got {len(args.snr)}")
    link = Link(args.blocks, args.nr, args.nt, args.slots, args.users)
    encoder = load_encoder(args.encoder, link.blocks, link.nt, link.slots, users=link.users, folder=args.weights)
    digits = load_digits()
    if not 1 <= args.images <= len(digits.test):
        raise ValueError(f"--images must be 1 to {len(digits.test)}, or photos; got {args.images}")
    outcome = send_and_receive(
        link,
        encoder,
        load_denoiser(args.weights),
        digits.test[: args.images],
        args.snr[0] if args.snr else SNR_DB,
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
    parser.add_argument(
        "--part", choices=(DIGITS, CHANNEL, *PARTS), default=DIGITS,
        help="all networks for digits, a channel prior, or one of the networks for photographs",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, help="of every network (default: what the shipped weights were given)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    parser.add_argument("--minutes", type=float, help="stop after that long, weights written (not with --part digits)")
    parser.add_argument("--seed", type=int, default=0, help="(not with --part digits)")
    train_channel.add_arguments(parser)
    train_photos.add_arguments(parser)
    add_execution(parser)


def train(args: Namespace) -> None:
    """Train all networks for digits, a channel prior, or one of the networks for photographs, into --out."""
    use_threads(args)
    if args.part == CHANNEL:
        train_channel.execute(args)
        return
    if args.part == DIGITS:
        train_all(args.out, steps=args.steps, resume=args.resume, progress=not args.quiet)
        return
    train_photos.execute(args)


COMMANDS = {
    "demo": (add_demo, demo),
    "run": (add_run, run),
    "train": (add_train, train),
    "sweep": (sweep.add_arguments, sweep.execute),
}
