"""Reference twin of :func:`semcom_fast.blockdiag_adjoint`."""

import torch
from torch import Tensor


def blockdiag_adjoint(h: Tensor, y: Tensor) -> Tensor:
    """H_k^(u)H Y_k for every user; h [...,U,K,Nr,Nt], y [...,K,Nr,T] -> [...,U,K,Nt,T]."""
    return torch.matmul(h.mH, y.unsqueeze(-4))
