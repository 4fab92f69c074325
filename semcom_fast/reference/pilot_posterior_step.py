"""Reference twin of :func:`semcom_fast.pilot_posterior_step`."""

from typing import NamedTuple

import torch
from torch import Tensor

from .levels import Level, align_left
from .pilot_svd import PilotSVD


class StepScales(NamedTuple):
    """h' = a h - b m + [(Yv - (p h - q m) U S) gain] U^H with m = sum_e w_e eps_e; all formed in float64."""

    a: Tensor
    b: Tensor
    p: Tensor
    q: Tensor
    gain: Tensor  # [..., 1, r]


def step_scales(
    s: Tensor, ndim: int, *, noise_var: Level, alpha_bar: Level, beta: Level, lam: Level, x0: bool
) -> StepScales:
    """Factors of one step; levels are aligned with the leading dims of an `ndim`-dimensional state."""
    var, bar, rate, scale = (align_left(v, ndim, s.device) for v in (noise_var, alpha_bar, beta, lam))
    values = s.double().unsqueeze(-2)
    a, p = 1 / (1 - rate).sqrt(), 1 / bar.sqrt()
    gain = a * scale * rate * p * values / (var + (1 - bar) / bar * values**2)
    q = p * (1 - bar).sqrt() if x0 else torch.zeros_like(p)
    return StepScales(a, a * rate / (1 - bar).sqrt(), p, q, gain)


def pilot_posterior_step(
    h_t: Tensor,
    eps: Tensor,
    weights: Tensor,
    yv: Tensor,
    svd: PilotSVD,
    *,
    noise_var: Level,
    alpha_bar: Level,
    beta: Level,
    lam: Level = 1.0,
    lik: str = "dmps",
) -> Tensor:
    """Equations (25), (26), (28), (29): mix the experts' predictions, add the likelihood score, take the mean."""
    u, s = svd.u, svd.s
    levels = {"noise_var": noise_var, "alpha_bar": alpha_bar, "beta": beta, "lam": lam}
    scales = step_scales(s, h_t.ndim, **levels, x0=lik == "x0")
    a, b, p, q, gain = (v.to(s.dtype) for v in scales)
    mixed = (weights[..., None, None] * eps).sum(-3)
    residual = yv - (p * h_t - q * mixed) @ u * s.unsqueeze(-2)
    return a * h_t - b * mixed + (residual * gain) @ u.mH
