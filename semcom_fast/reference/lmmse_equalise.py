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
    real, heard = _finite(wide), _finite(rhs)
    wide = torch.where(real.reshape(-1, 1, 1), wide, 0)  # keeps NaN out of the gradients
    rhs = torch.where(heard.reshape(-1, 1, 1), rhs, 0)
    reg = align_left(noise_var, len(lead), h.device).expand(lead).reshape(-1)
    inner = nt <= nr  # the smaller Gram matrix
    a, _, info = system(wide.mH if inner else wide, reg, h.dtype)
    info = torch.where(real, info, 1).to(torch.int32)
    # `_ex`: the system was checked above, and a second check would wait for a GPU. The inverse, not solve_ex, whose backward
    # keeps a factor without its tangent: forward over reverse mode would be wrong.
    inverse = torch.linalg.inv_ex(a)[0]
    g = inverse @ wide.mH if inner else (inverse @ wide).mH
    gain = (g @ wide).diagonal(dim1=-2, dim2=-1).real
    # 1 - gain, without the cancellation at high SNR
    level = reg.unsqueeze(-1)
    if inner:
        rest = level * inverse.diagonal(dim1=-2, dim2=-1).real
    else:  # never less than noise alone leaves, where the difference has no digits
        alone = level + torch.view_as_real(wide).square().sum((-3, -1))
        rest = torch.maximum(1 - gain, level / torch.where(alone > 0, alone, 1))
    silent = gain <= 0  # a column of zeros: nothing is known of its symbol
    dead = (info != 0).unsqueeze(-1) | ~heard.unsqueeze(-1) | silent
    s_hat = torch.where(dead, 0, (g @ rhs).squeeze(-1) / torch.where(dead, 1, gain))
    noise_eff = torch.where(dead, torch.inf, rest / torch.where(dead, 1, gain))
    info = torch.where((info == 0) & ~heard, -1, info).to(torch.int32)
    return (
        s_hat.to(h.dtype).reshape(*lead, nt),
        noise_eff.to(h.dtype.to_real()).reshape(*lead, nt),
        info.reshape(lead),
    )


def _finite(t: Tensor) -> Tensor:
    return torch.isfinite(torch.view_as_real(t.resolve_conj())).flatten(1).all(1)
