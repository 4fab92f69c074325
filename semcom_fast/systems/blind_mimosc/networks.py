"""The networks a Blind-MIMOSC receiver on digits is built from, loaded and ready to use."""

from pathlib import Path

from torch import nn

from ... import weights
from .codec import DigitEncoder
from .denoiser import DigitDenoiser
from .train import DENOISER, ENCODERS


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
