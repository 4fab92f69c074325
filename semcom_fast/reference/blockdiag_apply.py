"""Reference twin of :func:`semcom_fast.blockdiag_apply`."""

import torch
from torch import Tensor


def blockdiag_apply(h: Tensor, x: Tensor) -> Tensor:
    """y_k = sum_u H_k^(u) X_k^(u); h [...,U,K,Nr,Nt], x [...,U,K,Nt,T] -> [...,K,Nr,T]."""
    return torch.matmul(h, x).sum(-4)
