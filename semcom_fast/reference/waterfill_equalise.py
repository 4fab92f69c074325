"""Reference twin of :func:`semcom_fast.waterfill_equalise`."""

import torch
from torch import Tensor

from .levels import Level, align_left


def waterfill_equalise(y: Tensor, h: Tensor, noise_var: Level) -> tuple[Tensor, Tensor]:
    """(7): unit-phase matched filter over the root of the received power; f = [Re | Im] and d per symbol."""
    y, h = torch.broadcast_tensors(y, h)
    real = y.real.dtype
    sigma2 = align_left(noise_var, y.ndim, y.device) / 2
    gain = h.abs().double()
    power = gain.square() + sigma2
    phase = torch.where(gain > 0, h.conj() / torch.where(gain > 0, gain, 1), 1)
    silent = power == 0  # no channel and no noise: nothing was received, nothing is known
    f = torch.where(silent, 0, phase * y / torch.where(silent, 1, power).sqrt())
    d = torch.where(silent, 1, sigma2 / torch.where(silent, 1, power))
    f = torch.where(
        (power - power == 0) & (sigma2 >= 0), f, torch.nan
    )  # also keeps an infinite channel from reading as 0
    return torch.cat([f.real, f.imag], -1).to(real), d.to(real)
