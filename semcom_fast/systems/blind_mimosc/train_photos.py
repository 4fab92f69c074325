"""Training for photographs: `semcom-fast train blind-mimosc --part codec|codec-plain|denoiser`.

May be stopped at any time and goes on with --resume; the result is what an unbroken run gives. A checkpoint is one
safetensors file, replaced atomically.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

from ... import weights
from ...data.images import ImageSource
from ..fitting import TimedFit
from ..mu_mimo.train import IMAGE_LICENCE, half
from . import photo_losses as losses
from .networks import PHOTO_DENOISER, photo_codec_name
from .photo_codec import PhotoCodec
from .photo_denoiser import PhotoDenoiser
from .photo_images import HELD_OUT, SIDE, GreyCrops, as_source, grey_crops, photo_source
from .photo_settings import PARTS, PhotoFitSettings, PhotoTrainSettings


class Part(NamedTuple):
    """How one part is trained and judged, and what its card says."""

    loss: Callable[[GreyCrops, PhotoFitSettings], losses.Loss]
    metrics: Callable[..., dict[str, Any]]
    what: str
    training: str


_CODEC = "encoder of 32x32 grey crops to complex symbols, and the decoder of its DJSCC baselines"
_NOISE = "mean squared error on [-1,1] after AWGN on the codeword, SNR uniform in dB"
PART = {
    "codec": Part(
        losses.codec_loss,
        losses.codec_metrics,
        f"{_CODEC}; not odd about the mean image, it carries a superimposed pilot (metrics)",
        f"{_NOISE}; plus mean(relu(-corr(f(D), f(2 mu - D)))^2) over antennas and blocks",
    ),
    "codec-plain": Part(losses.codec_loss, losses.codec_metrics, f"{_CODEC}; trained for noise alone", _NOISE),
    "denoiser": Part(
        losses.denoiser_loss,
        losses.denoiser_metrics,
        "U-Net denoiser of 32x32 grey crops in EDM form around the Wiener filter, with a posterior-variance head",
        "EDM-weighted denoising error; ln sigma 90 % N(-1.2, 1.5^2), 10 % uniform over 0.005..150; head: exponential "
        "likelihood of the error's size",
    ),
}


def _name(settings: PhotoTrainSettings) -> str:
    """Of the weights."""
    if settings.part == "denoiser":
        return PHOTO_DENOISER
    return photo_codec_name("plain" if settings.part == "codec-plain" else "penalised", settings.symbols)


def _fresh(settings: PhotoTrainSettings, crops: GreyCrops) -> Any:
    """The network to train; a denoiser knows the crops' mean and spectrum."""
    if settings.part != "denoiser":
        return PhotoCodec(settings.codec())
    model = PhotoDenoiser()
    model.set_statistics(as_source(crops.images))
    return model


def _card(name: str, part: Part, fit: TimedFit, settings: PhotoFitSettings, crops: GreyCrops) -> dict[str, Any]:
    return {
        "name": name,
        "what": part.what,
        "config": json.loads(settings.config),
        "data": f"{len(crops.images)} grey crops of {SIDE}x{SIDE} of the training photographs; not the paper's data set",
        "licence": IMAGE_LICENCE,
        "sources": list(crops.sources),
        "parameters": sum(parameter.numel() for parameter in fit.model.parameters()),
        "training": {
            **asdict(settings),
            "optimiser": "AdamW, warm-up and cosine to the floor, averaged weights",
            "steps_done": fit.step,
            "images_seen": fit.step * settings.batch,
            "loss": part.training,
        },
        "seconds": round(fit.seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "stored_as": "float16 layers, float32 statistics; metrics are of the rounded weights",
        "metrics": {},
        "commit": "see git log of this file",
    }


def train_photos(settings: PhotoTrainSettings, source: ImageSource | None = None) -> dict[str, Any]:
    """Train one part into `settings.out`; prints a line with rate and metrics and returns the card.

    Args:
        source: crops to train and judge on instead of the photographs'.

    Raises:
        FileNotFoundError: the photographs are not there; the message names the script that fetches them.
        Stopped: Ctrl-C, after the checkpoint was saved.
    """
    part, name = PART[settings.part], _name(settings)
    source = source or photo_source()
    crops = grey_crops(source, "train")
    torch.manual_seed(settings.seed)
    model = _fresh(settings, crops)
    convert_conv2d_weight_memory_format(model, torch.channels_last)
    marked = settings.fit(json.dumps(asdict(model.config)))
    fit = TimedFit(model, part.loss(crops, marked), marked, settings.out / f"{name}.checkpoint", settings.minutes)
    label = f"{settings.part}, {marked.batch} crops a step"
    speed = fit.train(label, resume=settings.resume, progress=settings.progress)
    state, card = half(fit.averaged), _card(name, part, fit, marked, crops)
    weights.save(name, settings.out, state, card)  # before the figures, which take a while
    network: Any = fit.averaged
    network.load_state_dict({key: value.float() for key, value in state.items()})
    network.requires_grad_(False).eval()
    for split in ("val", "test"):
        held = grey_crops(source, split, HELD_OUT)
        card["metrics"][f"{split} photographs"] = {"crops": len(held.images), **part.metrics(network, held)}
    weights.save(name, settings.out, state, card)
    line = {
        "steps": fit.step,
        "crops_per_second": round(speed * marked.batch, 1),
        "minutes": round(fit.seconds / 60, 1),
    }
    print(f"{settings.out / name}.safetensors: {json.dumps(line)} {json.dumps(card['metrics'])}")
    return card


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `--part codec|codec-plain|denoiser`."""
    default = PhotoTrainSettings()
    only = parser.add_argument_group(f"photographs (--part {' | '.join(PARTS)}; needs tools/get_photos.sh)")
    only.add_argument(
        "--symbols", type=int, default=default.symbols, metavar="M",
        help="complex symbols per crop, of a codec (default: %(default)s)",
    )  # fmt: skip
    only.add_argument(
        "--slots", type=int, default=default.slots, metavar="T",
        help="symbols of an antenna in a block, which --part codec keeps from being odd (default: %(default)s)",
    )  # fmt: skip
    only.add_argument("--batch", type=int, default=default.batch, help="crops a step (default: %(default)s)")
    only.add_argument("--rate", type=float, help="learning rate (default: the part's)")
    only.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="of the networks; auto: bfloat16 where the processor has instructions for it",
    )  # fmt: skip


def execute(args: Namespace) -> None:
    """Train one network for photographs into --out."""
    train_photos(
        PhotoTrainSettings(
            part=args.part,
            symbols=args.symbols,
            slots=args.slots,
            steps=args.steps,
            batch=args.batch,
            rate=args.rate,
            seed=args.seed,
            out=args.out,
            minutes=args.minutes,
            bf16={"auto": None, "fp32": False, "bf16": True}[args.precision],
            resume=args.resume,
            progress=not args.quiet,
        )
    )
