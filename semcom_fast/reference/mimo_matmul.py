"""Reference twin of :func:`semcom_fast.mimo_matmul`."""

import torch
from torch import Tensor


def mimo_matmul(a: Tensor, b: Tensor, *, adjoint_a: bool = False, adjoint_b: bool = False) -> Tensor:
    """C_ij = sum_k A_ik B_kj with A = a or a^H and B = b or b^H; leading dimensions broadcast."""
    return torch.matmul(a.mH if adjoint_a else a, b.mH if adjoint_b else b)
