"""Reference twin of :func:`semcom_fast.waterfill_inject`."""

import torch
from torch import Tensor

from .levels import Level, align_left
from .philox_normal import philox_normal

STREAM = 6  # of docs/conventions.md


def per_real(d: Tensor, n: int) -> Tensor:
    """The noise level of every real: one per symbol serves both halves of [Re | Im]."""
    return d if d.shape[-1] == n else torch.cat([d, d], -1)


def rounded(level: Level, state: Tensor) -> Tensor:
    """A level rounded once to the state's dtype, as float64, broadcastable against the state."""
    return align_left(level, state.ndim, state.device).to(state.dtype).double()


def drawn(state: Tensor, noise: Tensor | None, seed, step, first_item: int) -> Tensor:
    """The given noise, or Philox normals of stream 6; zeros without a seed, for a level to which nothing is injected."""
    if noise is not None or seed is None:
        return torch.zeros_like(state) if noise is None else noise
    shape = state.shape if state.ndim > 1 else (1, *state.shape)  # a one-dimensional state is one item
    draw = philox_normal(shape, seed=seed, step=step, stream=STREAM, first_item=first_item, dtype=state.dtype)
    return draw.reshape(state.shape).to(state.device)


def shrink(level: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """r = (1-beta)/(1-b) and 1-r = (beta-b)/(1-b) of (23), without cancellation; 1 and 0 where b >= beta."""
    copy = own >= level
    left = torch.where(copy, 1, 1 - own)
    return torch.where(copy, 1, (1 - level) / left), torch.where(copy, 0, (level - own) / left)


def root(x: Tensor) -> Tensor:
    """Square root whose derivative at 0 is 0: where nothing is injected, nothing depends on how much."""
    return torch.where(x > 0, torch.where(x > 0, x, 1).sqrt(), 0)


def waterfill_inject(
    f: Tensor,
    d: Tensor,
    beta_bar: Level,
    *,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    first_item: int = 0,
) -> Tensor:
    """(23): every element cleaner than beta_bar gets the noise that brings it there; the others are copied."""
    keep, add = shrink(rounded(beta_bar, f), per_real(d, f.shape[-1]).double())
    g = keep.sqrt().to(f.dtype) * f + root(add).to(f.dtype) * drawn(f, noise, seed, step, first_item)
    return torch.where(add > 0, g, f)
