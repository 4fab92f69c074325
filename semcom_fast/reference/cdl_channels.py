"""Reference twin of the sum of rays inside :func:`semcom_fast.cdl_channels`."""

import math

import torch
from torch import Tensor


def cdl_steering(turns: Tensor, n: int) -> Tensor:
    """exp(j 2 pi turns (i - (n-1)/2)) of a uniform linear array, [B,R] -> complex128 [B,R,n]."""
    place = torch.arange(n, dtype=torch.float64, device=turns.device) - (n - 1) / 2
    phase = 2 * math.pi * turns.double().unsqueeze(-1) * place
    return torch.polar(torch.ones_like(phase), phase)


def cdl_channels(gains: Tensor, rx: Tensor, tx: Tensor, nr: int, nt: int) -> Tensor:
    """H[b,i,j] = sum_r gains_r exp(j 2 pi (rx_r (i - (nr-1)/2) + tx_r (j - (nt-1)/2))); all [B,R] -> [B,nr,nt].

    rx and tx are the phase progressions of the rays along the arrays in cycles per element. The sum over rays is one
    product of two steering matrices, formed in double precision.
    """
    left = gains.to(torch.complex128).unsqueeze(-1) * cdl_steering(rx, nr)
    return (left.mT @ cdl_steering(tx, nt)).to(gains.dtype)
