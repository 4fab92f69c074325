"""Linear minimum-mean-square-error channel estimates: from pilots, or from the codeword itself (an oracle)."""

import math

import torch
from torch import Tensor

from ..links import channel_nmse, transmit
from ..links.block_fading import variances
from ..ops import lmmse_channel, philox_normal
from .rls import named

_PILOT_STEP = 2  # block_fading draws channels with step 0 and noise with step 1 of the same stream


def lmmse_pilot_channel(y: Tensor, x: Tensor, noise_var: float | Tensor, *, channel_var: float = 1.0) -> Tensor:
    """LMMSE estimate of an i.i.d. channel from what was received for known symbols.

    Model: Y_k = H_k X_k + N_k, entries of H CN(0, channel_var), of N CN(0, noise_var), all users stacked along the
    transmit dimension (M = U Nt). Then

        Hhat_k = Y_k X_k^H (X_k X_k^H + (noise_var/channel_var) I)^-1.

    Args:
        y: [B,K,Nr,Np] complex.
        x: known symbols of every user [B,U,K,Nt,Np]; a batch or block dimension of 1 broadcasts.
        noise_var: E|n|^2 per entry; a number, or a tensor [B].
        channel_var: E|h|^2 per entry.

    Returns:
        h_hat [B,U,K,Nr,Nt].

    Raises:
        ValueError: shapes disagree. SingularChannelError: pilots without full rank at noise_var = 0, or not finite.

    Source: the LMMSE baseline of "Blind MIMO Semantic Communication via Parallel Variational Diffusion", Table I.
    """
    h = stacked_estimate("lmmse_pilot_channel", y, x, noise_var, channel_var)[1]
    return h.unflatten(-1, (x.shape[1], x.shape[3])).movedim(-2, 1)


def stacked_estimate(
    name: str, y: Tensor, x: Tensor, noise_var: float | Tensor, channel_var: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The users' symbols as one [B,K,M,Np], the estimate [B,K,Nr,M], and noise_var as a tensor; errors in the name of the
    caller."""
    if x.ndim != 5 or y.ndim != 4 or y.shape[-1] != x.shape[-1]:
        raise ValueError(f"need y [B,K,Nr,Np] and x [B,U,K,Nt,Np], got {tuple(y.shape)} and {tuple(x.shape)}")
    stacked = x.transpose(1, 2).flatten(2, 3)
    noise = variances(name, "noise_var", noise_var).to(y.device, y.real.dtype)
    with named(name):
        return stacked, lmmse_channel(y, stacked, noise / channel_var), noise


def oracle_lmmse_channel(y: Tensor, x: Tensor, noise_var: float | Tensor, *, channel_var: float = 1.0) -> Tensor:
    """LMMSE with the transmitted codeword known: a bound on the NMSE that no blind receiver here beats on average.

    Shapes and definition as in :func:`lmmse_pilot_channel`, with x the codeword [B,U,K,Nt,T] itself.
    """
    return lmmse_pilot_channel(y, x, noise_var, channel_var=channel_var)


def gaussian_pilots(
    batch: int,
    users: int,
    blocks: int,
    nt: int,
    length: int,
    *,
    seed: int,
    first_item: int = 0,
    power: float = 1.0,
    dtype: torch.dtype = torch.complex64,
) -> Tensor:
    """I.i.d. CN(0, power) pilots [B,U,K,Nt,Np], drawn anew for every item, user and block."""
    shape = (batch, users, blocks, nt, length)
    return philox_normal(shape, seed=seed, step=_PILOT_STEP, first_item=first_item, dtype=dtype) * math.sqrt(power)


def orthogonal_pilots(users: int, nt: int, length: int, *, power: float = 1.0, dtype=torch.complex64) -> Tensor:
    """Rows of a DFT matrix as pilots [1,U,1,Nt,Np]: X X^H = power Np I over all users; needs Np >= U Nt."""
    m = users * nt
    if length < m:
        raise ValueError(f"{m} orthogonal pilot sequences need at least {m} slots, got {length}")
    grid = torch.outer(torch.arange(m), torch.arange(length)).double() * (2 * math.pi / length)
    rows = torch.polar(torch.full_like(grid, math.sqrt(power)), grid).to(dtype)
    return rows.reshape(1, users, 1, nt, length)


def pilot_lmmse_nmse(
    h: Tensor, length: int, noise_var: float, *, seed: int, first_item: int = 0, power: float = 1.0
) -> Tensor:
    """NMSE [B] (linear) of LMMSE on channels h [B,U,K,Nr,Nt] after `length` slots of Gaussian random pilots."""
    batch, users, blocks, _, nt = h.shape
    x = gaussian_pilots(batch, users, blocks, nt, length, seed=seed, first_item=first_item, power=power, dtype=h.dtype)
    y = transmit(h, x, noise_var, seed, first_item=first_item)
    return channel_nmse(h, lmmse_pilot_channel(y, x, noise_var))
