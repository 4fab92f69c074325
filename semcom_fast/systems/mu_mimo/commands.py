"""The command line of this system: what `semcom-fast demo|run|train mu-mimo` take and do."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ...data.channels import set_path
from ..execution import add_execution, use_threads
from .batches import SCENARIOS
from .heads import train_head
from .networks import SHIPPED_SUBCARRIERS
from .report import RunSettings, run_report
from .system import VARIANTS
from .train import TrainSettings, image_source, train


def _execution(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--subcarriers", type=int, default=SHIPPED_SUBCARRIERS, metavar="NF", help="default: %(default)s"
    )
    add_execution(parser)


def add_run(parser: ArgumentParser) -> None:
    defaults = RunSettings()
    parser.add_argument("--out", type=Path, default=defaults.out, metavar="PNG", help="picture (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="table as CSV (default: beside the picture)")
    parser.add_argument(
        "--variants", nargs="+", metavar="NAME", help=f"of {', '.join(VARIANTS)} (default: all with weights)"
    )
    parser.add_argument(
        "--scenarios", nargs="+", default=list(defaults.scenarios), metavar="NAME", help="umi uma rma all"
    )
    parser.add_argument("--snr", type=float, nargs="+", default=list(defaults.snrs_db), metavar="DB")
    parser.add_argument(
        "--images", type=int, default=defaults.images, help="held-out photo crops (default: %(default)s)"
    )
    parser.add_argument("--digits", type=int, default=defaults.digits, help="held-out digits, for the accuracy")
    parser.add_argument("--seeds", type=int, default=defaults.seeds, help="repetitions with other channels and noise")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="the first of them")
    parser.add_argument(
        "--photos", choices=("bundled", "fetched", "all"), default=defaults.photos,
        help="test photos: inside scikit-image and scikit-learn, those tools/get_photos.sh fetched, or both",
    )  # fmt: skip
    parser.add_argument(
        "--channels", choices=("shipped", "eval"), default=defaults.channels,
        help="64 topologies that come with the package, or 2,048 generated ones (python -m semcom_fast.data.tr38901)",
    )  # fmt: skip
    parser.add_argument("--csi-error-var", type=float, default=0.0, metavar="V", help="of the transmitter's channel")
    parser.add_argument(
        "--classical", nargs="+", default=[], metavar="CODEC",
        help="beside it a classical link, 5G LDPC and QAM in its best mode, with jpeg, webp or bpg (needs the extra sionna)",
    )  # fmt: skip
    parser.add_argument(
        "--on-singular", choices=("raise", "flag", "pinv"), help="zero-forcing on channels without an inverse"
    )
    parser.add_argument("--weights", type=Path, metavar="DIR", help="weights of your own training (default: shipped)")
    _execution(parser)


def run(args: Namespace) -> None:
    """The table, the CSV and the picture."""
    use_threads(args)
    run_report(
        RunSettings(
            out=args.out,
            csv=args.csv,
            variants=tuple(args.variants or ()),
            scenarios=tuple(args.scenarios),
            snrs_db=tuple(args.snr),
            images=args.images,
            digits=args.digits,
            seeds=args.seeds,
            seed=args.seed,
            photos=args.photos,
            channels=args.channels,
            csi_error_var=args.csi_error_var,
            classical=tuple(args.classical),
            on_singular=args.on_singular,
            subcarriers=args.subcarriers,
            weights=args.weights,
            progress=not args.quiet,
        )
    )


def add_train(parser: ArgumentParser) -> None:
    defaults = TrainSettings()
    trained = [name for name, parts in VARIANTS.items() if not parts.zero_forcing]
    parser.add_argument("--variant", choices=trained, default=defaults.variant, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=defaults.out, metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--steps", type=int, default=defaults.steps, help="planned, sets the cosine (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, help="stop after that long, weights written; --resume goes on")
    parser.add_argument(
        "--batch", type=int, default=defaults.batch, help="grids of 4 images a step (default: %(default)s)"
    )
    parser.add_argument("--rate", type=float, default=defaults.rate, help="learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--scenario", default=defaults.scenario,
        help="umi, uma, rma, all (default): generated once by python -m semcom_fast.data.tr38901 --split train; or tapped, "
        "which needs nothing generated",
    )  # fmt: skip
    parser.add_argument("--snr", type=float, nargs=2, default=list(defaults.snr_db), metavar=("LOW", "HIGH"), help="dB")
    parser.add_argument(
        "--images", nargs="+", default=list(defaults.images), metavar="SET",
        help="photos (tools/get_photos.sh), digits, stamps (tools/get_photos.sh --tuxpaint), cifar10 DIR, folder DIR",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="of the convolutions; auto: bfloat16 where the processor has instructions for it",
    )  # fmt: skip
    parser.add_argument(
        "--head", action="store_true", help="train only a classifier head for the labels of --images on stored weights"
    )
    parser.add_argument("--weights", type=Path, metavar="DIR", help="of the system --head works on (default: shipped)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    _execution(parser)


def unused_in_training(args: Namespace) -> dict[str, str]:
    """Options without effect beside the others, and what they need."""
    return {} if args.head else {"weights": "needs --head: a whole system is trained from its beginning"}


def _require_channels(scenario: str) -> None:
    """Raise FileNotFoundError for sets of channels that were not generated, with the one command for all of them."""
    names = SCENARIOS if scenario == "all" else [scenario] if scenario in SCENARIOS else []
    missing = [name for name in names if not set_path(name, "train").exists()]
    if missing:
        which = "" if len(missing) > 1 else f" --scenario {missing[0]}"
        raise FileNotFoundError(
            f"the channels of {', '.join(missing)} were not generated: run  python -m semcom_fast.data.tr38901 --split "
            f"train{which}  once (needs the extra sionna), or train with --scenario tapped"
        )


def run_training(args: Namespace) -> None:
    """Train one variant, or a head for it, into --out."""
    use_threads(args)
    settings = TrainSettings(
        variant=args.variant,
        subcarriers=args.subcarriers,
        steps=args.steps,
        batch=args.batch,
        rate=args.rate,
        seed=args.seed,
        scenario=args.scenario,
        snr_db=(args.snr[0], args.snr[1]),
        images=tuple(args.images),
        out=args.out,
        minutes=args.minutes,
        bf16={"auto": None, "fp32": False, "bf16": True}[args.precision],
        weights=args.weights,
        resume=args.resume,
        progress=not args.quiet,
    )
    image_source(settings.images)  # a wrong choice is told first
    _require_channels(settings.scenario)
    (train_head if args.head else train)(settings)


COMMANDS = {"demo": (add_run, run), "run": (add_run, run), "train": (add_train, run_training)}
UNUSED = {"train": unused_in_training}
