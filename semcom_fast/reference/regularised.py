"""The regularised Gram system behind RZF precoding and LMMSE equalisation, and when it counts as singular.

Gradients on a GPU come from these definitions: nothing here reads a value, so that the host never waits.
"""

import torch
from torch import Tensor


def tolerance(n: int, dtype: torch.dtype) -> float:
    """Relative pivot at which a Gram matrix of n rows counts as singular.

    The arithmetic is float64, so its own rounding is 4 n eps64. Rows stored in float32 are known to eps32 only, and a
    pivot is a squared distance: (4 n eps32)^2.
    """
    single = dtype in (torch.complex64, torch.float32)
    own = 4 * n * torch.finfo(torch.float64).eps
    return max(own, (4 * n * torch.finfo(torch.float32).eps) ** 2) if single else own


def kept_rows(gram: Tensor, rel: float) -> tuple[Tensor, Tensor]:
    """Diagonally pivoted Cholesky of gram [N,n,n]: which rows keep a pivot above rel*max diag, and `info` [N].

    info is 0, or the 1-based position of the first failing pivot; a NaN or Inf fails.
    """
    n = gram.shape[-1]
    schur = gram.clone()
    free = torch.ones(gram.shape[:-1], dtype=torch.bool, device=gram.device)
    info = torch.zeros(gram.shape[0], dtype=torch.int32, device=gram.device)
    bound = rel * gram.diagonal(dim1=-2, dim2=-1).real.amax(-1)
    items = torch.arange(gram.shape[0], device=gram.device)
    for j in range(n):
        diag = schur.diagonal(dim1=-2, dim2=-1).real.masked_fill(~free, -1.0)
        value, p = diag.max(-1)
        good = (info == 0) & (value > bound) & torch.isfinite(value)
        info = torch.where((info == 0) & ~good, j + 1, info).to(torch.int32)
        row = p.unsqueeze(1)
        free = free.scatter(1, row, free.gather(1, row) & ~good.unsqueeze(1))
        column = schur[items, :, p]
        update = column.unsqueeze(-1) * column.unsqueeze(-2).conj() / value.reshape(-1, 1, 1)
        schur = torch.where(good.reshape(-1, 1, 1), schur - update, schur)
    return ~free, info


def system(v: Tensor, reg: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A = v v^H + reg I for v [N,n,m] complex128, reg [N]; rows without a pivot are replaced by those of I.

    Returns (A, kept [N,n], info [N]). Only a regulariser within rounding of zero is checked row by row.
    """
    n = v.shape[-2]
    eye = torch.eye(n, dtype=v.dtype, device=v.device)
    gram = v @ v.mH + reg.reshape(-1, 1, 1) * eye
    top = gram.detach().diagonal(dim1=-2, dim2=-1).real.amax(-1)
    rel = tolerance(n, dtype)
    safe = (reg > rel * top) & torch.isfinite(top)
    kept, info = kept_rows(gram.detach(), rel)
    kept, info = kept | safe.unsqueeze(-1), torch.where(safe, 0, info)
    both = kept.unsqueeze(-1) & kept.unsqueeze(-2)
    return torch.where(both, gram, eye), kept, info
