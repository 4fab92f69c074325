"""Figures of merit shared by the systems: linear ratios first, decibels last."""

import math

import torch
from torch import Tensor


def to_db(ratio: Tensor | float) -> Tensor | float:
    """10 log10 of a power ratio."""
    return 10.0 * torch.log10(ratio) if isinstance(ratio, Tensor) else 10.0 * math.log10(ratio)


def channel_nmse(h: Tensor, h_hat: Tensor) -> Tensor:
    """Normalised squared error of channel estimates, as a linear ratio per batch item.

    Definition: mean over users of |H_u - Hhat_u|^2 / |H_u|^2. Averages over items are taken over these linear ratios
    and turned into dB afterwards.

    Args:
        h, h_hat: true and estimated channels [B,U,K,Nr,Nt], complex. Users are compared in order, not re-sorted.

    Returns:
        [B], real.

    Source: "Blind MIMO Semantic Communication via Parallel Variational Diffusion", eq. (51), before its logarithm.
    """
    if h.shape != h_hat.shape or h.ndim != 5:
        raise ValueError(f"need two channels [B,U,K,Nr,Nt], got {tuple(h.shape)} and {tuple(h_hat.shape)}")
    dims = (-3, -2, -1)
    return ((h - h_hat).abs().square().sum(dims) / h.abs().square().sum(dims)).mean(-1)


def psnr(images: Tensor, recovered: Tensor, *, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of each item, for images on the scale [low, high].

    Recovered values are clamped to the scale first; the mean squared error is taken over all dims but the first.
    """
    error = (recovered.clamp(low, high) - images).flatten(1).square().mean(1)
    return -10.0 * torch.log10(error / (high - low) ** 2)
