"""Reference twin of :func:`semcom_fast.power_normalise`."""

import math

import torch
from torch import Tensor


def power_normalise(z: Tensor, *, power: float = 1.0, dims: int = 3) -> tuple[Tensor, Tensor]:
    """x = z sqrt(power*count)/|z| with |x|^2 = power*count over the last `dims` dims; also returns |z|."""
    real = z.real.dtype
    last = tuple(range(-dims, 0))
    squares = (
        (torch.view_as_real(z.resolve_conj()).double().square().sum(-1)) if z.is_complex() else z.double().square()
    )
    norm = squares.sum(last, keepdim=True).sqrt()
    count = math.prod(z.shape[-dims:])
    x = z * (math.sqrt(power * count) / norm).to(real)
    return x, norm.reshape(z.shape[: z.ndim - dims]).to(real)
