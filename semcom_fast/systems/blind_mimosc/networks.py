"""The networks Blind-MIMOSC receivers are built from, loaded and ready to use."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from ... import weights
from .codec import DigitEncoder
from .denoiser import DigitDenoiser
from .photo_codec import PhotoCodec, PhotoCodecConfig
from .photo_denoiser import PhotoDenoiser, UNetConfig
from .train import DENOISER, ENCODERS

PHOTO_CODEC = "blind_mimosc_photo_codec"
PHOTO_CODEC_PLAIN = "blind_mimosc_photo_codec_plain"
PHOTO_DENOISER = "blind_mimosc_photo_denoiser"
PHOTO_CODECS = {"penalised": PHOTO_CODEC, "plain": PHOTO_CODEC_PLAIN}


def _ready(module: nn.Module, name: str, folder: Path | None):
    module.load_state_dict(weights.load(name, folder)[0])
    return module.requires_grad_(False).eval()


def load_denoiser(folder: Path | None = None) -> DigitDenoiser:
    """The trained digit denoiser; `folder` holds weights of your own training, None means those shipped."""
    return _ready(DigitDenoiser(), DENOISER, folder)


def load_encoder(
    variant: str = "penalised",
    blocks: int = 8,
    nt: int = 1,
    slots: int = 8,
    *,
    users: int = 1,
    folder: Path | None = None,
) -> DigitEncoder:
    """The trained digit encoder, "plain" or "penalised", laid out as [B,U,K,Nt,T] with K Nt T = 64.

    Raises:
        ValueError: unknown variant, or K Nt T is not the number of symbols of the weights.
    """
    if variant not in ENCODERS:
        raise ValueError(f"unknown encoder {variant!r}: choose one of {', '.join(ENCODERS)}")
    if blocks * nt * slots != DigitEncoder().symbols:
        raise ValueError(f"these weights make {DigitEncoder().symbols} symbols, not K*Nt*T = {blocks * nt * slots}")
    return _ready(DigitEncoder(blocks, nt, slots, users=users), ENCODERS[variant], folder)


def _photo_network(network, config, name: str, folder: Path | None):
    card = weights.load(name, folder)[1]
    module = network(config(**card["config"]))
    convert_conv2d_weight_memory_format(module, torch.channels_last)
    return _ready(module, name, folder)


def load_photo_codec(variant: str = "penalised", folder: Path | None = None) -> PhotoCodec:
    """The trained encoder and decoder of 32x32 grey photographs, "penalised" or "plain".

    Raises:
        ValueError: unknown variant. FileNotFoundError: no such weights in `folder` (None: those shipped).
    """
    if variant not in PHOTO_CODECS:
        raise ValueError(f"unknown codec {variant!r}: choose one of {', '.join(PHOTO_CODECS)}")
    return _photo_network(PhotoCodec, PhotoCodecConfig, PHOTO_CODECS[variant], folder)


def load_photo_denoiser(folder: Path | None = None) -> PhotoDenoiser:
    """The trained U-Net denoiser of 32x32 grey photographs, as `load_photo_codec`."""
    return _photo_network(PhotoDenoiser, UNetConfig, PHOTO_DENOISER, folder)
