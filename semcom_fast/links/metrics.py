"""Figures of merit shared by the systems: linear ratios first, decibels last."""

import math

import torch
from torch import Tensor
from torch.nn import functional


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


def psnr(
    images: Tensor, recovered: Tensor, *, low: float = -1.0, high: float = 1.0, cap_db: float = math.inf
) -> Tensor:
    """Peak signal-to-noise ratio in dB of each item, for images on the scale [low, high].

    Recovered values are clamped to the scale first; the mean squared error is taken over all dims but the first.
    Averages over images are taken over these decibels; `cap_db` keeps identical images from making them infinite.

    Raises:
        ValueError: images of different shapes.
    """
    if images.shape != recovered.shape:
        raise ValueError(f"psnr: need images of one shape, got {tuple(images.shape)} and {tuple(recovered.shape)}")
    error = (recovered.clamp(low, high) - images).flatten(1).square().mean(1)
    return (-10.0 * torch.log10(error / (high - low) ** 2)).clamp_max(cap_db)


def ssim(images: Tensor, recovered: Tensor, *, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Structural similarity of each item, single scale, for images [N,C,H,W] on the scale [low, high].

    The standard setting: Gaussian window of 11x11 and standard deviation 1.5, K1 = 0.01, K2 = 0.03, means over the
    window positions that lie inside the image and over channels. Recovered values are clamped to the scale first.
    (Five-scale MS-SSIM needs images of at least 176 pixels.)

    Raises:
        ValueError: images smaller than the window.

    Source: Z. Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", eq. (13).
    """
    size, sigma = 11, 1.5
    if images.ndim != 4 or images.shape != recovered.shape or min(images.shape[-2:]) < size:
        raise ValueError(
            f"need two [N,C,H,W] of at least {size}x{size} pixels, got {tuple(images.shape)}, {tuple(recovered.shape)}"
        )
    ramp = torch.arange(size, dtype=images.dtype, device=images.device) - size // 2
    window = torch.exp(-ramp.square() / (2 * sigma**2))
    window = window / window.sum()

    def local_mean(z: Tensor) -> Tensor:
        rows = functional.conv2d(z.flatten(0, 1).unsqueeze(1), window.view(1, 1, size, 1))
        return functional.conv2d(rows, window.view(1, 1, 1, size)).unflatten(0, z.shape[:2]).squeeze(2)

    a, b = images - low, recovered.clamp(low, high) - low
    mean_a, mean_b = local_mean(a), local_mean(b)
    var_a, var_b = local_mean(a * a) - mean_a.square(), local_mean(b * b) - mean_b.square()
    cov = local_mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * (high - low)) ** 2, (0.03 * (high - low)) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return (top / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))).flatten(1).mean(1)
