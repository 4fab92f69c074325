"""The command line of this system: what `semcom-fast demo|run|train sgd-jscc` take and do."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..execution import add_execution, use_threads
from . import codec_settings, denoiser_settings, train_codec, train_denoiser
from .evaluate import receivers
from .link import CHANNELS, EDGE_CHANNELS, MAPPINGS
from .report import RunSettings, run_report


def _add(parser: ArgumentParser, defaults: RunSettings) -> None:
    parser.add_argument("--out", type=Path, default=defaults.out, metavar="PNG", help="picture (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="table as CSV (default: beside the picture); *_gains.csv beside it")
    parser.add_argument(
        "--receivers", nargs="+", default=list(defaults.receivers), metavar="NAME", help=f"of {', '.join(receivers())}"
    )
    parser.add_argument("--channels", nargs="+", default=list(defaults.channels), choices=CHANNELS)
    parser.add_argument("--snr", type=float, nargs="+", default=list(defaults.snrs_db), metavar="DB")
    parser.add_argument("--images", type=int, default=defaults.images, help="held-out crops (default: %(default)s)")
    parser.add_argument(
        "--photos", choices=("bundled", "fetched", "all"), default=defaults.photos,
        help="test photos: inside scikit-image and scikit-learn, those tools/get_photos.sh fetched, or both",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=defaults.steps, help="of the diffusion (default: %(default)s)")
    parser.add_argument("--shown", type=float, default=defaults.shown_db, metavar="DB", help="SNR of the pictures")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of channels and noise")
    parser.add_argument("--mapping", choices=MAPPINGS, default=defaults.mapping, help="latents to symbols")
    parser.add_argument("--edge-channel", choices=EDGE_CHANNELS, default=defaults.edge_channel)
    parser.add_argument("--bf16", action="store_true", help="networks of the diffusion in bfloat16")
    parser.add_argument("--lpips", type=Path, nargs=2, metavar=("ALEXNET", "HEADS"), help="your weight files for LPIPS")
    parser.add_argument("--clip", type=Path, metavar="DIR", help="your CLIP model for the CLIP score")
    parser.add_argument("--inception", type=Path, metavar="FILE", help="your inception-2015-12-05.pt for FID")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="weights of your own training (default: shipped)")
    add_execution(parser)


def add_demo(parser: ArgumentParser) -> None:
    _add(parser, RunSettings.demo())


def add_run(parser: ArgumentParser) -> None:
    _add(parser, RunSettings())


def _settings(args: Namespace, keep: bool) -> RunSettings:
    use_threads(args)
    return RunSettings(
        out=args.out,
        csv=args.csv,
        receivers=tuple(args.receivers),
        channels=tuple(args.channels),
        snrs_db=tuple(args.snr),
        images=args.images,
        photos=args.photos,
        steps=args.steps,
        shown_db=args.shown,
        seed=args.seed,
        mapping=args.mapping,
        edge_channel=args.edge_channel,
        bf16=args.bf16,
        lpips=tuple(args.lpips) if args.lpips else None,
        clip=args.clip,
        inception=args.inception,
        weights=args.weights,
        keep=keep,
        progress=not args.quiet,
    )


def run_demo(args: Namespace) -> None:
    """Tables, CSV files and picture; nothing is kept."""
    run_report(_settings(args, keep=False))


def run(args: Namespace) -> None:
    """As the demonstration; a stopped run goes on where it was."""
    run_report(_settings(args, keep=True))


def add_train(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--part", choices=(*codec_settings.PARTS, *denoiser_settings.PARTS), default="autoencoder",
        help="in this order, each on the weights of those before: autoencoder, snr, edges, dit, control",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("out/sgd_jscc"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--steps", type=int, help="planned, sets the cosine (default: the part's)")
    parser.add_argument("--batch", type=int, help="images a step (default: the part's)")
    parser.add_argument("--rate", type=float, help="learning rate (default: the part's)")
    parser.add_argument("--minutes", type=float, help="stop after that long, weights written; --resume goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--images", nargs="+", default=["photos"], metavar="SET",
        help="autoencoder, snr, edges: photos (tools/get_photos.sh) or folder DIR",
    )  # fmt: skip
    parser.add_argument(
        "--weights", type=Path, metavar="DIR", help="where the earlier parts' weights lie (default: shipped)"
    )
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="of the networks; auto: bfloat16 where the processor has instructions for it",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    add_execution(parser)


def unused_in_training(args: Namespace) -> dict[str, str]:
    """Options without effect on --part, and what they need."""
    alone = args.part in ("autoencoder", "edges")
    return {"weights": f"needs --part snr|dit|control: {args.part} is trained on images alone"} if alone else {}


def run_training(args: Namespace) -> None:
    """Train one part into --out."""
    use_threads(args)
    chosen = {name: getattr(args, name) for name in ("steps", "batch", "rate") if getattr(args, name) is not None}
    common = {
        "part": args.part,
        "seed": args.seed,
        "out": args.out,
        "weights": args.weights,
        "minutes": args.minutes,
        "bf16": {"auto": None, "fp32": False, "bf16": True}[args.precision],
        "resume": args.resume,
        "progress": not args.quiet,
        **chosen,
    }
    if args.part in codec_settings.PARTS:
        train_codec.train(codec_settings.CodecTrainSettings(**common, images=tuple(args.images)))
    elif args.images != ["photos"]:
        raise ValueError(f"--part {args.part} trains on latents of the photographs: --images is for the other parts")
    else:
        train_denoiser.train(denoiser_settings.DenoiserTrainSettings(**common))


COMMANDS = {"demo": (add_demo, run_demo), "run": (add_run, run), "train": (add_train, run_training)}
UNUSED = {"train": unused_in_training}
