"""How well a codeword explains what was received, whatever the channel was: the exact evidence of an i.i.d. channel."""

import math

import torch
from torch import Tensor

from .lmmse import stacked_estimate


def log_marginal(y: Tensor, x: Tensor, noise_var: float | Tensor, *, channel_var: float = 1.0) -> Tensor:
    r"""ln p(Y | X) of blocks received through i.i.d. Rayleigh channels that nobody knows.

    Model: :math:`Y_k = H_k X_k + N_k`, entries of H CN(0, v), of N CN(0, noise_var), all users stacked along the transmit
    dimension (M = U Nt). The rows of Y_k are then independent with covariance :math:`R_k = v X_k^H X_k + \sigma^2 I`:

    .. math:: \ln p(Y|X) = -\sum_k \left[N_r (T \ln \pi + \ln\det R_k) + \sum_r y_{kr} R_k^{-1} y_{kr}^H\right]

    It depends on X through :math:`X^H X` alone: codewords that differ by a unitary factor, such as X and -X, cannot be told
    apart blindly by any receiver. The X that maximises it over a set of images is the maximum-likelihood choice, which says
    whether a blind receiver was trapped or the image was not identifiable.

    Args:
        y: [B,K,Nr,T] complex.
        x: codewords [B,U,K,Nt,T]; a batch or block dimension of 1 broadcasts.
        noise_var: E|n|^2 per entry, > 0; a number, or a tensor [B].
        channel_var: v = E|h|^2 per entry.

    Returns:
        ln p in nats, float64 [B].

    Raises:
        ValueError: shapes disagree, or a noise variance is 0.

    Source: the model of "Blind MIMO Semantic Communication via Parallel Variational Diffusion", H integrated out.
    """
    y, x = y.to(torch.complex128), x.to(torch.complex128)
    stacked, estimate, noise = stacked_estimate("log_marginal", y, x, noise_var, channel_var)
    if not bool((noise > 0).all()):
        raise ValueError("log_marginal: without noise there is no density: noise_var must be positive everywhere")
    noise = noise.reshape(-1, 1)
    # y R^-1 y^H is y (y - H X)^H / noise with the estimate H: no difference of large numbers
    misfit = (y.conj() * (y - estimate @ stacked)).real.sum((-2, -1)) / noise
    eye = torch.eye(stacked.shape[-2], dtype=y.dtype, device=y.device)
    gram = eye + (channel_var / noise)[..., None, None] * (stacked @ stacked.mH)
    root = torch.linalg.cholesky(gram).diagonal(dim1=-2, dim2=-1).real
    nr, slots = y.shape[-2:]
    spread = nr * (slots * (math.log(math.pi) + noise.log()) + 2 * root.log().sum(-1))
    return -(misfit + spread).sum(-1)
