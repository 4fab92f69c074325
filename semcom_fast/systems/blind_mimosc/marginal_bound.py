"""The linearised bound of the channel with the channel integrated out: for sizes the joint matrix is too large for."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .bound import codeword_jacobian


def marginal_bound(
    encoder: Callable[[Tensor], Tensor], h: Tensor, d: Tensor, noise_var: float, precisions: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    r"""Channel NMSE and source error of the posterior linearised at the truth, for Rayleigh channels of unit variance.

    The same numbers as `bound.linearised_bound`. Given D, a row h of H_k has the LMMSE estimate L_k y with
    L_k = C_k X_k^*/s, C_k = (I + X_k^* X_k^T/s)^{-1} and s the noise variance; integrating H out leaves

    .. math:: S = P + \frac{2}{s} \mathrm{Re} \sum_{k,r} \left(J_{kr}^H J_{kr} - A_{kr}^H C_k A_{kr}/s\right),
              \qquad A_{kr} = X_k^* J_{kr},

    as the precision of D, J_{kr} [T, U n] the derivative of row r of block k in D, and each row of H has the covariance
    C_k + (C_k A_{kr}/s) S^{-1} (C_k A_{kr}/s)^H: what LMMSE leaves, and what not knowing the codeword adds.

    A count of the second term: n parameters per user fitted where their codewords leave the streams' row spaces, to
    U n of 2 K M (T - M) real dimensions of noise (the load q = n/(2 K Nt (T - M))), and carried to the row spaces, where
    H X cannot be told from H, are a share q/(1 - q) of LMMSE's error times M/Nr. A generic linear code, no prior and high
    SNR give (1 + q/(1 - q) M/Nr) where Nr is well above M; with Nr = M ill-conditioned blocks add to it.

    Args:
        encoder: [1,U,*shape] -> [1,U,K,Nt,T]; must work under torch.func (vmap and reverse mode).
        h: true channel [U,K,Nr,Nt]; d: true sources [U,*shape]. Computed in their precision, use float64.
        precisions: of every user's source, [n,n] each, n = prod(shape).

    Returns:
        NMSE per user (linear) [U] and the source's mean squared error per entry [U].
    """
    users, blocks, nr, nt = h.shape
    x, jacobian = codeword_jacobian(encoder, d)
    rows = torch.einsum("ukrm,ukmtn->krtn", h, jacobian)
    stacked = x.transpose(0, 1).flatten(1, 2)  # [K,M,T]
    gram = (stacked @ stacked.mH).conj() / noise_var
    left = torch.linalg.inv(torch.eye(users * nt, dtype=gram.dtype) + gram)  # C_k
    seen = stacked.conj().unsqueeze(1) @ rows  # A_kr [K,Nr,M,Un]
    moved = left.unsqueeze(1) @ seen / noise_var
    flat = rows.flatten(0, 2)
    information = (flat.mH @ flat).real - (seen.flatten(0, 2).mH @ moved.flatten(0, 2)).real
    information = information * (2 / noise_var) + torch.block_diag(*precisions).to(h.real.dtype)
    factor = torch.linalg.cholesky(information)
    parts = torch.cat((moved.real, moved.imag)).flatten(0, 2)
    added = torch.linalg.solve_triangular(factor, parts.mT, upper=False).square().sum(0)
    added = added.view(2, blocks, nr, users, nt).sum((0, 1, 2, 4))
    kept = nr * left.diagonal(dim1=-2, dim2=-1).real.unflatten(-1, (users, nt)).sum((0, 2))
    source = torch.cholesky_inverse(factor).diagonal().view(users, -1).mean(1)
    return (kept + added) / h.abs().square().flatten(1).sum(1), source
