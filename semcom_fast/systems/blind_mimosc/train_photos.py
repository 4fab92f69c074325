"""Training for photographs: `semcom-fast train blind-mimosc --images photos --part codec|codec-plain|denoiser`.

May be stopped at any time and goes on with --resume; the result is what an unbroken run gives. A checkpoint is one
safetensors file, replaced atomically.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from ... import weights
from ...data.images import ImageSource
from ..fitting import TimedFit
from ..mu_mimo.train import IMAGE_LICENCE, half
from . import photo_losses as losses
from .networks import PHOTO_CODEC, PHOTO_CODEC_PLAIN, PHOTO_DENOISER, load_photo_codec, load_photo_denoiser
from .photo_codec import PhotoCodec
from .photo_denoiser import PhotoDenoiser
from .photo_images import HELD_OUT, SIDE, GreyCrops, as_source, grey_crops, photo_source
from .photo_settings import PhotoFitSettings, PhotoTrainSettings


@dataclass(frozen=True)
class Part:
    """How one part is built, trained and judged."""

    name: str
    what: str
    build: Callable[[GreyCrops], nn.Module]
    loss: Callable[[GreyCrops, PhotoFitSettings], losses.Loss]
    metrics: Callable[..., dict[str, Any]]
    load: Callable[..., nn.Module]
    training: str


def _denoiser(crops: GreyCrops) -> PhotoDenoiser:
    """A fresh denoiser that knows the crops' mean and spectrum."""
    model = PhotoDenoiser()
    model.set_statistics(as_source(crops.images))
    return model


_CODEC = "encoder of 32x32 grey crops to 256 complex symbols (CBR 0.25), and the decoder of its DJSCC baselines"
_NOISE = "mean squared error on [-1,1] after AWGN on the codeword, SNR uniform in dB"
PART = {
    "codec": Part(
        PHOTO_CODEC,
        f"{_CODEC}; not odd about the mean image, it carries a superimposed pilot (metrics)",
        lambda crops: PhotoCodec(),
        losses.codec_loss,
        losses.codec_metrics,
        load_photo_codec,
        f"{_NOISE}; plus mean(relu(-corr(f(D), f(2 mu - D)))^2) over antennas and blocks",
    ),
    "codec-plain": Part(
        PHOTO_CODEC_PLAIN,
        f"{_CODEC}; trained for noise alone",
        lambda crops: PhotoCodec(),
        losses.codec_loss,
        losses.codec_metrics,
        lambda folder=None: load_photo_codec("plain", folder),
        _NOISE,
    ),
    "denoiser": Part(
        PHOTO_DENOISER,
        "U-Net denoiser of 32x32 grey crops in EDM form around the Wiener filter, with a posterior-variance head",
        _denoiser,
        losses.denoiser_loss,
        losses.denoiser_metrics,
        load_photo_denoiser,
        "EDM-weighted denoising error; ln sigma 90 % N(-1.2, 1.5^2), 10 % uniform over 0.005..150; head: exponential "
        "likelihood of the error's size",
    ),
}


def _card(part: Part, fit: TimedFit, settings: PhotoFitSettings, crops: GreyCrops) -> dict[str, Any]:
    return {
        "name": part.name,
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
    part = PART[settings.part]
    source = source or photo_source()
    crops = grey_crops(source, "train")
    torch.manual_seed(settings.seed)
    model: Any = part.build(crops)
    convert_conv2d_weight_memory_format(model, torch.channels_last)
    marked = settings.fit(json.dumps(asdict(model.config)))
    path = settings.out / f"{part.name}.checkpoint"
    fit = TimedFit(model, part.loss(crops, marked), marked, path, settings.minutes)
    label = f"{settings.part}, {marked.batch} crops a step"
    speed = fit.train(label, resume=settings.resume, progress=settings.progress)
    card = _card(part, fit, marked, crops)
    weights.save(part.name, settings.out, half(fit.averaged), card)
    network = part.load(folder=settings.out)
    for split in ("val", "test"):
        held = grey_crops(source, split, HELD_OUT)
        card["metrics"][f"{split} photographs"] = {"crops": len(held.images), **part.metrics(network, held)}
    weights.save(part.name, settings.out, half(fit.averaged), card)
    line = {
        "steps": fit.step,
        "crops_per_second": round(speed * marked.batch, 1),
        "minutes": round(fit.seconds / 60, 1),
    }
    print(f"{settings.out / part.name}.safetensors: {json.dumps(line)} {json.dumps(card['metrics'])}")
    return card
