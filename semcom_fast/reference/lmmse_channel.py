"""Reference twin of :func:`semcom_fast.lmmse_channel`."""

import torch
from torch import Tensor

from .levels import Level, align_left


def lmmse_channel(y: Tensor, pilots: Tensor, noise_var: Level, cov: Tensor | None = None) -> Tensor:
    """h_hat = y (p^H R p + noise_var I)^-1 p^H R for y [...,Nr,T], pilots p [...,Nt,T]; R = conj(C), cov C [...,Nt,Nt] with
    C_ij = E[h_i h_j^*] of every row of the channel, or None = I."""
    nt, slots = pilots.shape[-2:]
    p = pilots.to(torch.complex128)
    c = torch.eye(nt, dtype=p.dtype, device=p.device) if cov is None else cov.to(p.dtype).conj()
    lead = torch.broadcast_shapes(y.shape[:-2], p.shape[:-2], c.shape[:-2])
    reg = align_left(noise_var, len(lead), y.device)[..., None, None]
    a = p.mH @ c @ p + reg * torch.eye(slots, dtype=p.dtype, device=p.device)
    return (torch.linalg.solve(a, y.to(p.dtype).mH).mH @ p.mH @ c).to(y.dtype)
