"""What blind reception can reach near the truth: the linearised Bayesian bound."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class BoundResult(NamedTuple):
    """Predicted errors of one transmission: channel NMSE per user (linear) [U], source MSE per real entry [U], and that
    MSE were the channel known [U]."""

    nmse: Tensor
    source_mse: Tensor
    source_mse_known: Tensor


def codeword_jacobian(encoder: Callable[[Tensor], Tensor], d: Tensor, chunk: int = 64) -> tuple[Tensor, Tensor]:
    """The codeword x [U,K,Nt,T] of sources d [U,...] and dx/dd, complex [U,K,Nt,T,U*n], by reverse mode."""

    def real_codeword(source: Tensor) -> Tensor:
        return torch.view_as_real(encoder(source.unsqueeze(0)).squeeze(0))

    jacobian = torch.func.jacrev(real_codeword, chunk_size=chunk)(d)
    jacobian = jacobian.flatten(5).movedim(4, -1)
    with torch.no_grad():
        x = encoder(d.unsqueeze(0)).squeeze(0)
    return x, torch.view_as_complex(jacobian.contiguous())


def received_jacobian(h: Tensor, x: Tensor, jacobian: Tensor) -> tuple[Tensor, Tensor]:
    r"""Derivatives of the noiseless signal :math:`Y_k = \sum_u H_k^{(u)} X_k^{(u)}`, complex rows [K*Nr*T, .].

    Args:
        h: [U,K,Nr,Nt], x [U,K,Nt,T], jacobian dx/dd [U,K,Nt,T,n] of all n real source entries.

    Returns:
        in the real and imaginary parts of h, [., 2*U*K*Nr*Nt] (all real parts first), and in the source, [., n].
    """
    users, blocks, nr, nt = h.shape
    slots = x.shape[-1]
    in_h = h.new_zeros(blocks, nr, slots, users, blocks, nr, nt)
    k, r = torch.arange(blocks).view(-1, 1), torch.arange(nr).view(1, -1)
    in_h[k, r, :, :, k, r, :] = x.permute(1, 3, 0, 2).unsqueeze(1).expand(-1, nr, -1, -1, -1)
    in_h = in_h.flatten(3).flatten(0, 2)
    in_d = torch.einsum("ukrm,ukmtn->krtn", h, jacobian).flatten(0, 2)
    return torch.cat((in_h, 1j * in_h), 1), in_d


def linearised_bound(
    encoder: Callable[[Tensor], Tensor],
    h: Tensor,
    d: Tensor,
    noise_var: float,
    source_precision: Tensor,
    *,
    channel_var: float = 1.0,
) -> BoundResult:
    r"""Posterior covariance of channel and source for a Gaussian prior and the signal model linearised at the truth.

    .. math:: C = \left(\frac{2}{\sigma_n^2} J^T J + P\right)^{-1}

    with J the real-stacked Jacobian of :math:`Y = \sum_u H_u f_u(D_u)` in (Re H, Im H, D) and P block diagonal:
    2/channel_var for each part of a Rayleigh entry, `source_precision` for every user's source. The bound sees local
    ambiguity only: what nearby pairs (H, D) explain the same Y, and how far the prior's second moments tell them apart.
    It is blind to distant solutions such as (-H, reflected D) of an odd encoder, and a prior that knows more than second
    moments can fall below it in the source. An Nt x Nt factor per block can pass between H and X: along these 2 Nt^2 real
    directions a code that fills its whole space is told apart by P alone.

    Args:
        encoder: [1,U,*shape] -> [1,U,K,Nt,T]; must work under torch.func (vmap and reverse mode).
        h: true channel [U,K,Nr,Nt] complex; d: true sources [U,*shape] real. Computed in their precision, use float64.
        noise_var: E|n|^2 per complex entry.
        source_precision: inverse covariance [n,n] of one source, n = prod(shape).
        channel_var: E|h|^2.

    Raises:
        ValueError: shapes disagree or noise_var is not positive.

    Source: the Bayesian Cramér-Rao form of eqs. (1), (13) of "Blind MIMO Semantic Communication via Parallel Variational
    Diffusion", evaluated at the truth.
    """
    users, n = d.shape[0], d[0].numel()
    if h.ndim != 4 or h.shape[0] != users or source_precision.shape != (n, n) or not noise_var > 0:
        raise ValueError(
            f"need h [U,K,Nr,Nt], d [U,...], a source precision [n,n] and noise_var > 0; got {tuple(h.shape)}, "
            f"{tuple(d.shape)}, {tuple(source_precision.shape)} and {noise_var}"
        )
    in_h, in_d = received_jacobian(h, *codeword_jacobian(encoder, d))
    rows = torch.cat((in_h, in_d), 1)
    information = (rows.mH @ rows).real * (2 / noise_var)
    split = in_h.shape[1]
    information[:split, :split].diagonal().add_(2 / channel_var)
    prior = torch.block_diag(*[source_precision.to(information)] * users)
    information[split:, split:] += prior
    variances = torch.cholesky_inverse(torch.linalg.cholesky(information)).diagonal()
    known = torch.cholesky_inverse(torch.linalg.cholesky(information[split:, split:])).diagonal()
    of_h = variances[:split].view(2, users, -1).sum((0, 2))
    return BoundResult(
        nmse=of_h / h.abs().square().flatten(1).sum(1),
        source_mse=variances[split:].view(users, n).mean(1),
        source_mse_known=known.view(users, n).mean(1),
    )
