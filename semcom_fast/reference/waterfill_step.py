"""Reference twin of :func:`semcom_fast.waterfill_step`."""

import torch
from torch import Tensor

from .levels import Level, align_left
from .waterfill_inject import per_real, rounded, waterfill_inject


def ddim(beta_t: Tensor, beta_s: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of g_s = A g_t + B x0: the deterministic step (18) with its first term as in (24); float64."""
    same = beta_t == beta_s  # also 0 to 0
    a = torch.where(same, 1, (beta_s / torch.where(same, 1, beta_t)).sqrt())
    return a, torch.where(same, 0, (1 - beta_s).sqrt() - a * (1 - beta_t).sqrt())


def combine(
    x0: Tensor,
    x0_uncond: Tensor | None,
    guidance: Level | None,
    x0_prev: Tensor | None,
    ratio: Level | None,
    dtype: torch.dtype,
) -> Tensor:
    """Classifier-free guidance, then the second-order correction of DPM-Solver++(2M), in the state's dtype."""
    x0 = x0.to(dtype)
    if x0_uncond is not None:
        assert guidance is not None
        w = align_left(guidance, x0.ndim, x0.device)
        x0 = w.to(dtype) * x0 + (1 - w).to(dtype) * x0_uncond.to(dtype)
    if x0_prev is not None:
        assert ratio is not None
        half = 0.5 / align_left(ratio, x0.ndim, x0.device)
        # an infinite ratio is the plain step, whatever came before
        x0 = torch.where(half == 0, x0, (1 + half).to(dtype) * x0 - half.to(dtype) * x0_prev.to(dtype))
    return x0


def waterfill_step(
    g: Tensor,
    x0: Tensor,
    f: Tensor,
    d: Tensor,
    beta_t: Level,
    beta_s: Level,
    *,
    x0_uncond: Tensor | None = None,
    guidance: Level | None = None,
    x0_prev: Tensor | None = None,
    ratio: Level | None = None,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    first_item: int = 0,
) -> Tensor:
    """Lines 5-12 of Algorithm 3 and the next injection, on one state array."""
    high, low = rounded(beta_t, g), rounded(beta_s, g)
    a, b = ddim(high, low)
    x0 = combine(x0, x0_uncond, guidance, x0_prev, ratio, g.dtype)
    active = per_real(d, g.shape[-1]) >= low
    moved = a.to(g.dtype) * g + b.to(g.dtype) * x0
    waiting = waterfill_inject(f, d, beta_s, noise=noise, seed=seed, step=step, first_item=first_item)
    return torch.where(high == 0, g, torch.where(active, moved, waiting))
