"""Reference twin of :func:`semcom_fast.lmmse_equalise`."""

import torch
from torch import Tensor

from .levels import Level, align_left
from .regularised import system


def lmmse_equalise(y: Tensor, h: Tensor, noise_var: Level) -> tuple[Tensor, Tensor, Tensor]:
    """s_hat = diag(G h)^-1 G y, G = (h^H h + noise_var I)^-1 h^H; noise_eff = 1/diag(G h) - 1; and info.

    y [...,Nr], h [...,Nr,Nt] -> s_hat [...,Nt], noise_eff [...,Nt], info [...].
    """
    lead = torch.broadcast_shapes(y.shape[:-1], h.shape[:-2])
    nr, nt = h.shape[-2:]
    wide = h.to(torch.complex128).expand(*lead, nr, nt).reshape(-1, nr, nt)
    rhs = y.to(torch.complex128).expand(*lead, nr).reshape(-1, nr, 1)
    reg = align_left(noise_var, len(lead), h.device).expand(lead).reshape(-1)
    inner = nt <= nr  # the smaller Gram matrix
    a, kept, info = system(wide.mH if inner else wide, reg, h.dtype)
    g = torch.linalg.solve(a, wide.mH) if inner else torch.linalg.solve(a, wide).mH
    mu = (g @ wide).diagonal(dim1=-2, dim2=-1).real
    dead = (info != 0).unsqueeze(-1) | (mu <= 0)  # singular, or a column of zeros
    s_hat = torch.where(dead, 0, (g @ rhs).squeeze(-1) / torch.where(dead, 1, mu))
    noise_eff = torch.where(dead, torch.inf, 1 / torch.where(dead, 1, mu) - 1)
    return (
        s_hat.to(h.dtype).reshape(*lead, nt),
        noise_eff.to(h.dtype.to_real()).reshape(*lead, nt),
        info.reshape(lead),
    )
