"""Reference twin of :func:`semcom_fast.pvd_update`."""

import torch
from torch import Tensor

from .levels import Level, align_left
from .philox_normal import philox_normal


def default_next_var(sigma, sigma_above, v0=0.0):
    """lambda_j = (s_j^2 + v0) (s_{j+1}^2 - s_j^2)/(s_{j+1}^2 + v0), the variance of (32); numbers or tensors.

    Of p(x_j | x_{j+1}, x_0) with v0 = 0; with v0 the variance of an entry of x_0, of p(x_j | x_{j+1}) for a Gaussian one.
    """
    return (sigma**2 + v0) * (sigma_above**2 - sigma**2) / (sigma_above**2 + v0)


def _score_var(score_var: Level, sample: Tensor, samples: bool) -> Tensor:
    """score_var may carry the sample axis as [L,B]; without it, it aligns with the mean's leading dims."""
    stacked = samples and isinstance(score_var, Tensor) and score_var.ndim == 2
    return align_left(score_var, sample.ndim if stacked else sample.ndim - samples, sample.device)


def coefficients(
    mean: Tensor,
    sample: Tensor,
    sigma: Level,
    sigma_above: Level,
    zeta: Level,
    score_var: Level,
    next_var: Level | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """zeta, rho = D/s_j^2, D/score_var and next_var in float64, broadcastable against the state."""
    s, above, z = (align_left(v, mean.ndim, mean.device) for v in (sigma, sigma_above, zeta))
    delta = above**2 - s**2
    variance = default_next_var(s, above) if next_var is None else align_left(next_var, mean.ndim, mean.device)
    return z, delta / s**2, delta / _score_var(score_var, sample, sample.ndim > mean.ndim), variance


def pvd_update(
    mean: Tensor,
    anchor: Tensor,
    sample: Tensor,
    denoised: Tensor,
    score: Tensor,
    *,
    sigma: Level,
    sigma_above: Level,
    zeta: Level,
    score_var: Level = 1.0,
    next_var: Level | None = None,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    stream: int = 0,
    first_item: int = 0,
) -> tuple[Tensor, Tensor]:
    """One inner iteration of (34)-(36) with the plus sign, then the draw (31) of the next sample."""
    real = mean.real.dtype
    samples = sample.ndim > mean.ndim
    z, rho, per_score, variance = coefficients(mean, sample, sigma, sigma_above, zeta, score_var, next_var)
    pull = rho.to(real) * (denoised - sample) + (anchor - sample)
    pull = pull + per_score.to(real) * score
    if samples:
        pull = pull.mean(0)
    new_mean = mean + z.to(real) * pull
    if noise is None:
        if seed is None:
            if isinstance(next_var, (int, float)) and next_var == 0:
                return new_mean, new_mean.expand_as(sample).clone()
            raise ValueError("pvd_update draws the next sample: pass noise= or seed=, or next_var=0 for no draw")
        draw = [
            philox_normal(
                mean.shape, seed=seed, step=step, stream=stream + 16 * k, first_item=first_item, dtype=mean.dtype
            ).to(mean.device)
            for k in range(sample.shape[0] if samples else 1)
        ]
        noise = torch.stack(draw) if samples else draw[0]
    return new_mean, new_mean + variance.sqrt().to(real) * noise
