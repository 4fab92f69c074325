"""How good a noise predictor can be at best, and how good one is.

Every loss here is E|eps - eps_theta(H_t, t)|^2 per complex entry of the channel, eps of unit variance: 1 for a predictor
that returns zero. "Mixture-of-Experts Diffusion Models for Adaptive Massive MIMO Channel Estimation via Variational
Bayesian Inference", the training loss under equation (13).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .network import to_planes

RANGES = ((1, 10), (11, 30), (31, 60), (61, 100))  # of diffusion steps, in the cards
_BLOCK = 64


def best_loss(cov: Tensor, alpha_bar: Sequence[float] | np.ndarray | Tensor) -> Tensor:
    """Smallest possible loss of Gaussian channels at every noise level: mean_i abar lam_i/(abar lam_i + 1 - abar).

    The conditional mean of eps is the best predictor; its error for h ~ CN(m, C) has this closed form in the
    eigenvalues lam_i of C, whatever m is.

    Args:
        cov: covariance C [n,n] of the channel's entries, Hermitian.
        alpha_bar: levels abar [L] on (0, 1).

    Returns:
        float64 [L].
    """
    lam = torch.linalg.eigvalsh(cov.to(torch.complex128)).clamp_min(0)
    level = torch.as_tensor(alpha_bar, dtype=torch.float64)[:, None]
    return (level * lam / (level * lam + 1 - level)).mean(1)


def best_window_loss(
    cov: Tensor,
    alpha_bar: Sequence[float] | np.ndarray | Tensor,
    shape: tuple[int, int],
    reach: tuple[int, int],
    entries: int | None = 64,
    seed: int = 0,
) -> Tensor:
    """Smallest possible loss of Gaussian channels for predictors that see a window around each entry: no network of
    that receptive field can be better, whatever its layers compute.

    The predictor of every entry is the best one for that entry: it knows where in the array it is, and the mean.

    Args:
        cov: covariance [Nr Nt, Nr Nt] of h.flatten(), index i Nt + j.
        alpha_bar: levels abar [L] on (0, 1).
        shape: (Nr, Nt).
        reach: rows and columns seen on either side; (5, 5) for five 3x3 convolutions. The window ends at the array.
        entries: over how many entries, drawn without replacement with `seed`, the mean is taken; None means all.

    Returns:
        float64 [L].
    """
    nr, nt = shape
    if cov.shape != (nr * nt, nr * nt):
        raise ValueError(f"cov must be [{nr * nt},{nr * nt}] for an array of {nr}x{nt}, got {tuple(cov.shape)}")
    order = torch.randperm(nr * nt, generator=torch.Generator().manual_seed(seed))
    chosen = order if entries is None else order[:entries]
    level = torch.as_tensor(alpha_bar, dtype=torch.float64)[:, None]
    total = torch.zeros(len(level), dtype=torch.float64)
    index = torch.arange(nr * nt).reshape(nr, nt)
    for entry in chosen.tolist():
        i, j = divmod(entry, nt)
        rows, columns = (slice(max(0, at - by), at + by + 1) for at, by in zip((i, j), reach, strict=True))
        seen = index[rows, columns].flatten()
        lam, vectors = torch.linalg.eigh(cov[seen][:, seen].to(torch.complex128))
        share = vectors[(seen == entry).nonzero()[0, 0]].abs().square()
        lam = lam.clamp_min(0)
        total += (share * level * lam / (level * lam + 1 - level)).sum(1)
    return total / len(chosen)


def linear_loss(mean: Tensor, cov: Tensor, channels: Tensor, alpha_bar: Tensor) -> Tensor:
    """Loss on channels [N,Nr,Nt] of the predictor that would be best if they were Gaussian with these moments.

    eps = sqrt(1 - abar) (abar C + (1 - abar) I)^-1 (h_t - sqrt(abar) m); the mean over the noise is exact.

    Args:
        mean, cov: m [n] and C [n,n] of h.flatten(), estimated or exact.
        alpha_bar: levels abar [L] on (0, 1), float64.

    Returns:
        float64 [L].
    """
    lam, vectors = torch.linalg.eigh(cov.to(torch.complex128))
    lam = lam.clamp_min(0)
    centred = channels.flatten(1).to(torch.complex128) - mean.to(torch.complex128)
    power = (centred @ vectors.conj()).abs().square().mean(0)  # along every eigenvector; lam itself on its own channels
    level = alpha_bar[:, None]
    gain = (1 - level).sqrt() / (level * lam + 1 - level)
    return ((1 - (1 - level).sqrt() * gain).square() + level * gain.square() * power).mean(1)


def complex_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """CN(0, 1) entries, complex64."""
    return torch.view_as_complex(torch.randn(*shape, 2, generator=generator) * 0.5**0.5)


def noisy_planes(h: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """sqrt(abar) h + sqrt(1 - abar) noise as planes [B,2,Nr,Nt] (channels last) of complex64 [B,Nr,Nt], abar [B]."""
    level = alpha_bar[:, None, None]
    return to_planes(level.sqrt().float() * h + (1 - level).sqrt().float() * noise)


@torch.no_grad()
def measured_loss(
    network: Callable[[Tensor, Tensor], Tensor],
    channels: Tensor,
    alpha_bar: Tensor,
    steps: Sequence[int] | None = None,
    draws: int = 64,
    seed: int = 1,
) -> Tensor:
    """Loss of a network on held-out channels [N,Nr,Nt], at every step or at those named: float64 [len(steps)].

    Args:
        network: (planes [B,2,Nr,Nt], t [B]) -> eps [B,2,Nr,Nt].
        alpha_bar: abar_1..abar_T [T], float64.
        draws: channels for each step, drawn anew.
    """
    random = torch.Generator().manual_seed(seed)
    steps = range(1, len(alpha_bar) + 1) if steps is None else steps
    losses = []
    for step in steps:
        total = 0.0
        for first in range(0, draws, _BLOCK):
            count = min(_BLOCK, draws - first)
            h = channels[torch.randint(len(channels), (count,), generator=random)]
            noise = complex_noise(h.shape, random)
            t = torch.full((count,), step)
            error = network(noisy_planes(h, noise, alpha_bar[t - 1]), t).float() - to_planes(noise)
            total += float(error.double().square().sum())
        losses.append(total / (draws * channels[0].numel()))
    return torch.tensor(losses, dtype=torch.float64)


def by_range(losses: Tensor) -> dict[str, float]:
    """Means of losses [T] over the ranges of steps that a card shows, and over all of them."""
    found = {
        f"t {low}..{min(high, len(losses))}": float(losses[low - 1 : high].mean())
        for low, high in RANGES
        if low <= len(losses)
    }
    return {**found, "all t": float(losses.mean())}
