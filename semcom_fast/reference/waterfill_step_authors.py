"""Reference twin of :func:`semcom_fast.waterfill_step_authors`."""

import torch
from torch import Tensor

from .levels import Level
from .waterfill_inject import drawn, per_real, root, rounded, shrink
from .waterfill_step import ddim

TOPUPS = ("amplitude", "variance")
BASES = ("own", "common")


def waterfill_step_authors(
    f: Tensor,
    g: Tensor,
    d: Tensor,
    x0: Tensor,
    beta_t: Level,
    beta_s: Level,
    *,
    topup: str = "amplitude",
    renorm: bool = True,
    base: str = "own",
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    first_item: int = 0,
) -> tuple[Tensor, Tensor]:
    """The masked update and top-up of the authors' published code: f is the state, g what the network sees next."""
    high, low = rounded(beta_t, f), rounded(beta_s, f)
    own = torch.minimum(per_real(d, f.shape[-1]).double(), high)
    origin, start = (f, own) if base == "own" else (g, high.expand_as(own))
    a, b = ddim(start, low)
    ended = (start + low == 0) & (high > 0)  # the end of a noise-free element, as of nearly noise-free ones
    a, b = torch.where(ended, 0, a), torch.where(ended, 1, b)
    moved = a.to(f.dtype) * origin + b.to(f.dtype) * x0.to(f.dtype)
    f = torch.where((own >= low) & ((own > 0) | (low == 0)), moved, f)
    own = torch.minimum(own, low)
    keep, add = shrink(low, own)
    spread = root(add) if topup == "variance" else low.sqrt() - root(keep * own)
    draw = drawn(f, noise, seed, step, first_item)
    g = torch.where(add > 0, keep.sqrt().to(f.dtype) * f + spread.to(f.dtype) * draw, f)
    if renorm:
        wide = g.double()
        energy = wide.square().mean(tuple(range(1, g.ndim)), keepdim=True)
        g = (wide / torch.where(energy == torch.inf, torch.nan, energy).sqrt()).to(g.dtype)
    return f, g
