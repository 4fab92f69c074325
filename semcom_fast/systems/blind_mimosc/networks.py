"""The networks Blind-MIMOSC receivers are built from, loaded and ready to use."""

import math
from dataclasses import replace
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
PHOTO_SYMBOLS = PhotoCodecConfig().symbols


def photo_codec_name(variant: str, symbols: int = PHOTO_SYMBOLS) -> str:
    """Name of the weights of a codec with so many complex symbols per crop; the default number is not named.

    Raises:
        ValueError: unknown variant.
    """
    if variant not in PHOTO_CODECS:
        raise ValueError(f"unknown codec {variant!r}: choose one of {', '.join(PHOTO_CODECS)}")
    return PHOTO_CODECS[variant] + ("" if symbols == PHOTO_SYMBOLS else f"_{symbols}")


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


def _placed(network: nn.Module, name: str, folder: Path | None):
    convert_conv2d_weight_memory_format(network, torch.channels_last)
    return _ready(network, name, folder)


def load_photo_codec(
    variant: str = "penalised",
    folder: Path | None = None,
    *,
    symbols: int = PHOTO_SYMBOLS,
    layout: tuple[int, int, int] | None = None,
    users: int = 1,
) -> PhotoCodec:
    """The trained encoder and decoder of 32x32 grey photographs, "penalised" or "plain".

    Args:
        symbols: complex symbols per crop, m; each number has weights of its own.
        layout: K, Nt, T with K Nt T = m; default the one of the training. The penalty against odd encoders was on rows of
            the training's T symbols, whatever K and Nt.
        users: with distinct encoders made of the same weights, see `photo_codec.UserTurns`.

    Raises:
        ValueError: unknown variant, or a layout of another number of symbols. FileNotFoundError: no such weights in
        `folder` (None: those shipped).
    """
    name = photo_codec_name(variant, symbols)
    config = PhotoCodecConfig(**weights.load(name, folder)[1]["config"])
    if layout is not None:
        if math.prod(layout) != config.symbols:
            raise ValueError(f"these weights make {config.symbols} symbols, not K*Nt*T = {math.prod(layout)}")
        config = replace(config, **dict(zip(("blocks", "nt", "slots"), layout, strict=True)))
    return _placed(PhotoCodec(config, users), name, folder)


def load_photo_denoiser(folder: Path | None = None) -> PhotoDenoiser:
    """The trained U-Net denoiser of 32x32 grey photographs, from `folder` or those shipped."""
    config = UNetConfig(**weights.load(PHOTO_DENOISER, folder)[1]["config"])
    return _placed(PhotoDenoiser(config), PHOTO_DENOISER, folder)
