"""Reference twin of :func:`semcom_fast.cir_to_ofdm`."""

import torch
from torch import Tensor


def cir_to_ofdm(gains: Tensor, delays: Tensor, frequencies: Tensor, *, frequency_dim: int = -1) -> Tensor:
    """h(f) = sum_p gains_p exp(-j 2 pi f tau_p); gains [...,P], delays [...,P], frequencies [F]."""
    turns = torch.remainder(frequencies.double() * delays.double().unsqueeze(-1), 1.0)  # [...,P,F]
    phase = torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)
    h = (gains.to(torch.complex128).unsqueeze(-1) * phase).sum(-2)
    return h.to(gains.dtype).movedim(-1, frequency_dim)
