"""The command line of this system: what `semcom-fast demo|run|sweep|train blind-mimosc` take and do."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ...data import load_digits
from ..evaluation import where
from ..execution import add_execution, use_threads
from . import run_preset, sweep, train_channel, train_photos
from .demo import DemoSettings, run_demo
from .evaluate_photos import NEED_TRAINING_CROPS, training_crops_missing
from .experiment import Link, send_and_receive, summarise
from .measures import pixel_variance
from .networks import load_denoiser, load_encoder
from .paper_nets import RANDOM
from .photo_reception import RECEIVERS
from .photo_settings import PARTS
from .presets import CROPS, PRESETS
from .report_photos import PhotoRunSettings, run_photos
from .train import ENCODERS, train_all

DIGITS, CHANNEL, PHOTOS = "digits", "channel", "photos"
SNR_DB = 10.0
# Options of one kind of run alone.
DIGITS_ONLY = ("users", "blocks", "nr", "nt", "slots")
PHOTOS_ONLY = ("receivers", "bf16", "out")
PRESET_ONLY = ("nets", "size", "steps", "orientation", "device", "limit", "memory")
# Options of one kind of training alone.
CHANNEL_ONLY = ("correlation", "cdl", "nr", "nt", "head")
CODEC_ONLY = ("symbols", "slots")


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
    parser.add_argument(
        "--starts", type=int, default=1, help="restarts per digit or transmission, the best by residual energy kept"
    )
    only = parser.add_argument_group("with digits")
    only.add_argument("--users", type=int, default=link.users)
    only.add_argument("--blocks", type=int, default=link.blocks, metavar="K")
    only.add_argument("--nr", type=int, default=link.nr)
    only.add_argument("--nt", type=int, default=link.nt)
    only.add_argument("--slots", type=int, default=link.slots, metavar="T")
    only = parser.add_argument_group("with --images photos (K, Nr, Nt, T = 8, 8, 2, 16)")
    only.add_argument("--crops", type=int, help=f"held-out crops (default: {photos.crops}; with --preset {CROPS})")
    only.add_argument(
        "--photos", choices=("bundled", "fetched", "all"), default=photos.photos,
        help="test photos: inside scikit-image and scikit-learn, those tools/get_photos.sh fetched, or both "
        "(default: %(default)s)",
    )  # fmt: skip
    only.add_argument(
        "--receivers", nargs="+", metavar="NAME",
        help=f"of {', '.join(RECEIVERS)} (default: all; {' and '.join(NEED_TRAINING_CROPS)} need the training "
        "photographs, which tools/get_photos.sh fetches, and are left out of --photos bundled without them)",
    )  # fmt: skip
    only.add_argument("--bf16", action="store_true", help="denoiser in bfloat16")
    only.add_argument("--out", type=Path, default=photos.out, metavar="PNG", help="picture; table beside it as CSV")
    run_preset.add_arguments(parser)
    _reception(parser)


def unused_in_run(args: Namespace) -> dict[str, str]:
    """Options without effect beside the others, and what they need."""
    if args.preset is None:
        idle = dict.fromkeys(PRESET_ONLY, "needs --preset: it belongs to the settings of the paper's tables")
        if args.images == PHOTOS:
            idle |= dict.fromkeys(DIGITS_ONLY, "is for digits: --images photos has sizes of its own")
            return idle | {"starts": "is for digits and --preset: with --images photos, --receivers says how many"}
        idle |= dict.fromkeys(PHOTOS_ONLY, "needs --images photos")
        return idle | dict.fromkeys(("crops", "photos"), "needs --images photos or --preset")
    idle = {"images": "is not for --preset, which sends photographs: --crops says how many"}
    idle |= dict.fromkeys(DIGITS_ONLY, "is for digits: the preset has sizes of its own")
    idle |= dict.fromkeys(PHOTOS_ONLY, "needs --images photos: it is not for --preset")
    if args.preset in PRESETS and PRESETS[args.preset].cdl is None:
        idle["orientation"] = f"needs CDL channels: those of {args.preset} are Rayleigh"
    if args.nets is not None:
        idle |= dict.fromkeys(("encoder", "weights"), "is for the small networks: --nets brings others")
    if args.nets == RANDOM:
        return idle | dict.fromkeys(("photos", "starts"), "is not for --nets random, which only times a step")
    return idle | dict.fromkeys(("size", "steps"), "needs --nets random")


def _chosen_receivers(args: Namespace) -> tuple[str, ...]:
    """Those asked for; by default all but those that need training photographs which a bundled run does without."""
    if args.receivers is not None:
        return tuple(args.receivers)
    if args.photos != "bundled" or training_crops_missing() is None:
        return tuple(RECEIVERS)
    left_out = " and ".join(NEED_TRAINING_CROPS)
    print(f"left out: {left_out}, which need the training photographs: tools/get_photos.sh", file=sys.stderr)
    return tuple(name for name in RECEIVERS if name not in NEED_TRAINING_CROPS)


def _run_photos(args: Namespace) -> None:
    run_photos(
        PhotoRunSettings(
            out=args.out,
            encoder=args.encoder,
            crops=PhotoRunSettings().crops if args.crops is None else args.crops,
            photos=args.photos,
            snrs_db=tuple(args.snr or PhotoRunSettings().snrs_db),
            receivers=_chosen_receivers(args),
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
        if args.device.partition(":")[0] not in ("cpu", "cuda"):
            raise ValueError(f"--device must be cpu or cuda, got {args.device!r}")
        run_preset.execute(args)
        return
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


def unused_in_training(args: Namespace) -> dict[str, str]:
    """Options without effect on --part, and what they need."""
    parts = "|".join(PARTS)
    idle = {} if args.part == CHANNEL else dict.fromkeys(CHANNEL_ONLY, f"needs --part {CHANNEL}")
    if args.part not in PARTS:
        idle |= dict.fromkeys((*CODEC_ONLY, "batch", "rate", "precision"), f"needs --part {parts}")
    if args.part == "denoiser":
        idle |= dict.fromkeys(CODEC_ONLY, "needs --part codec|codec-plain")
    if args.part == DIGITS:
        idle |= dict.fromkeys(("minutes", "seed"), f"needs --part {CHANNEL}|{parts}")
    return idle


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
UNUSED = {"run": unused_in_run, "train": unused_in_training}
