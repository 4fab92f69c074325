"""How a level argument (sigma, zeta, noise_var, ...) meets the leading dimensions of a state."""

import torch
from torch import Tensor

Level = float | int | Tensor


def align_left(level: Level, ndim: int, device: torch.device) -> Tensor:
    """A number or a tensor over the leading dims, as float64 broadcastable against an `ndim`-dimensional state."""
    t = torch.as_tensor(level, device=device).to(torch.float64)
    return t.reshape(t.shape + (1,) * (ndim - t.ndim))
