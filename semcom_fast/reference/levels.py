"""How a level argument (sigma, zeta, noise_var, ...) meets the leading dimensions of a state."""

import torch
from torch import Tensor

Level = float | int | Tensor


def align_left(level: Level, ndim: int, device: torch.device) -> Tensor:
    """A number or a tensor over the leading dims, as float64 broadcastable against an `ndim`-dimensional state."""
    t = (
        level.to(device, torch.float64)
        if isinstance(level, Tensor)
        else torch.full((), float(level), dtype=torch.float64, device=device)  # filled there: no copy, no wait
    )
    return t.reshape(t.shape + (1,) * (ndim - t.ndim))
