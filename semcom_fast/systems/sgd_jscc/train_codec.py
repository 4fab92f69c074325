"""Training of the parts of the codec: `semcom-fast train sgd-jscc --part autoencoder|snr|edges`.

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
from ...data.image_folder import ImageFolder
from ...data.images import ImageSet, ImageSource
from ...data.photos import PhotoCrops
from ..fitting import TimedFit
from ..mu_mimo.train import IMAGE_LICENCE, half
from . import codec_losses as losses
from .autoencoder import Autoencoder, AutoencoderConfig
from .codec_networks import AUTOENCODER, EDGES, SNR, load_autoencoder, load_edge_codec, load_snr_estimator
from .codec_settings import CodecFitSettings, CodecTrainSettings
from .edge_codec import EdgeCodec, EdgeCodecConfig
from .snr_estimator import SnrEstimator, SnrEstimatorConfig

PHOTO_CROPS = 40_000
SIDE = 64
HELD_OUT = 512


@dataclass(frozen=True)
class Part:
    """How one part is built, trained and judged."""

    name: str
    what: str
    build: Callable[[], nn.Module]
    loss: Callable[..., losses.Loss]
    metrics: Callable[..., dict[str, Any]]
    load: Callable[..., nn.Module]
    training: str


PART = {
    "autoencoder": Part(
        AUTOENCODER,
        "JSCC autoencoder: 64x64 RGB to a latent of 16x8x8 reals of unit power (512 complex symbols) and back",
        lambda: Autoencoder(AutoencoderConfig.small()),
        losses.autoencoder_loss,
        losses.autoencoder_metrics,
        load_autoencoder,
        "mean squared error on [0,1] after AWGN on the latent and rescaling to unit RMS",
    ),
    "snr": Part(
        SNR,
        "SNR estimator: a received latent of 16x8x8 reals at unit RMS to its noise level 1/(1+gamma)",
        lambda: SnrEstimator(SnrEstimatorConfig.small()),
        losses.snr_loss,
        losses.snr_metrics,
        load_snr_estimator,
        f"mean squared error of the output on {losses.LATENTS} latents, half with one gain, half Rayleigh by symbol",
    ),
    "edges": Part(
        EDGES,
        "edge codec: soft edge maps of 64x64 pixels to 16 positions of 13 reals (104 complex symbols) and back",
        lambda: EdgeCodec(EdgeCodecConfig.small()),
        losses.edges_loss,
        losses.edges_metrics,
        load_edge_codec,
        "binary cross entropy plus Dice loss after AWGN on the code",
    ),
}


def image_source(settings: CodecTrainSettings) -> ImageSource:
    """The loader of the images of a training."""
    if settings.images[0] == "photos":
        return PhotoCrops(size=SIDE, n=PHOTO_CROPS)
    return ImageFolder(settings.images[1], SIDE)


def held_out(source: ImageSource) -> dict[str, ImageSet]:
    """Images that nothing was trained on: crops of the photographs held out, or the test split of a folder."""
    if isinstance(source, PhotoCrops):
        return {f"{split} photographs": source.load(split, HELD_OUT) for split in ("val", "test")}
    images = source.load("test")
    return {"test images": images.first(min(len(images), HELD_OUT))}


def validation(settings: CodecTrainSettings, source: ImageSource) -> dict[str, Any]:
    """What the weights stored in `settings.out` reach on held-out images."""
    part = PART[settings.part]
    network = part.load(settings.out)
    return {
        name: {"images": len(images), **part.metrics(network, images, settings.weights)}
        for name, images in held_out(source).items()
    }


def _card(part: Part, fit: TimedFit, settings: CodecFitSettings, images: ImageSet) -> dict[str, Any]:
    return {
        "name": part.name,
        "what": part.what,
        "config": json.loads(settings.config),
        "data": f"{settings.images}: {len(images)} images of {SIDE}x{SIDE}; not the paper's data set",
        "licence": IMAGE_LICENCE,
        "sources": list(images.sources),
        "parameters": sum(parameter.numel() for parameter in fit.model.parameters()),
        "training": {
            **asdict(settings),
            "optimiser": "Adam, warm-up and cosine to the floor, averaged weights",
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


def train(settings: CodecTrainSettings, source: ImageSource | None = None) -> dict[str, Any]:
    """Train one part into `settings.out`; prints a line with the rate and returns the card.

    Args:
        source: images to train and judge on instead of those the settings name.

    Raises:
        Stopped: Ctrl-C, after the checkpoint was saved.
    """
    part = PART[settings.part]
    source = source or image_source(settings)
    images = source.load("train")
    torch.manual_seed(settings.seed)
    model: Any = part.build()
    convert_conv2d_weight_memory_format(model, torch.channels_last)
    marked = settings.fit(json.dumps(asdict(model.config)))
    path = settings.out / f"{part.name}.checkpoint"
    fit = TimedFit(model, part.loss(images, marked, settings.weights), marked, path, settings.minutes)
    speed = fit.train(
        f"{settings.part}, {marked.batch} images a step", resume=settings.resume, progress=settings.progress
    )
    card = _card(part, fit, marked, images)
    weights.save(part.name, settings.out, half(fit.averaged), card)
    card["metrics"] = validation(settings, source)
    weights.save(part.name, settings.out, half(fit.averaged), card)
    line = {
        "steps": fit.step,
        "images_per_second": round(speed * marked.batch, 1),
        "minutes": round(fit.seconds / 60, 1),
    }
    print(f"{settings.out / part.name}.safetensors: {json.dumps(line)}")
    return card
