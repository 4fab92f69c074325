"""Block-fading MIMO: channels that stay fixed over a block of T slots, and transmission over them.

Every draw is counter-based (docs/conventions.md): item b of a batch gets the numbers of item `first_item + b`, so a
split batch sees the same channels and the same noise. Channels use step 0 of the user stream and noise step 1; one seed
serves both.
"""

import torch
from torch import Tensor

from ..ops import blockdiag_apply, philox_normal
from ..ops._checks import readable
from ..ops._levels import level_tensor

_USER_STREAM = 0
_CHANNEL_STEP = 0
_NOISE_STEP = 1


def hermitian_root(cov: Tensor) -> Tensor:
    """The Hermitian square root of a covariance [...,N,N]; rejects matrices that are not Hermitian and non-negative."""
    if cov.ndim < 2 or cov.shape[-1] != cov.shape[-2]:
        raise ValueError(f"a covariance must be square, got {tuple(cov.shape)}")
    tolerance = 1e-5 * cov.abs().max()
    if (cov - cov.mH).abs().max() > tolerance:
        raise ValueError("a covariance must be Hermitian")
    values, vectors = torch.linalg.eigh(cov)
    if values.min() < -tolerance:
        raise ValueError(f"a covariance must not have negative eigenvalues, got {float(values.min()):.3g}")
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mH


def variances(op: str, name: str, value: float | Tensor) -> Tensor:
    """As a tensor; in host memory, where looking costs nothing, every entry is finite and >= 0."""
    level = level_tensor(op, name, value)
    if level.is_cpu and readable(level) and not bool(((level >= 0) & torch.isfinite(level)).all()):
        raise ValueError(f"{op}: {name} must be finite and >= 0, got {value}")
    return level


def draw_channel(
    batch: int,
    users: int,
    blocks: int,
    nr: int,
    nt: int,
    *,
    seed: int,
    first_item: int = 0,
    var: float = 1.0,
    cov_rx: Tensor | None = None,
    cov_tx: Tensor | None = None,
    dtype: torch.dtype = torch.complex64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Independent Rayleigh channels, or Kronecker-correlated ones.

    Model: H_k^(u) = sqrt(var) A G B^T with G of i.i.d. CN(0,1) entries, A A^H = cov_rx and B B^H = cov_tx. Then
    E[H H^H] = var tr(cov_tx) cov_rx and E[h_i h_j^*] over the transmit index of one row is var cov_tx[i,j] times that
    row's receive variance. Without covariances A and B are identities and every entry is CN(0, var).

    Args:
        batch, users, blocks, nr, nt: the shape [B,U,K,Nr,Nt].
        seed, first_item: see the module's remark on draws.
        var: common factor of all entry variances.
        cov_rx: [Nr,Nr] Hermitian, or None.
        cov_tx: [Nt,Nt] Hermitian, or None.

    Returns:
        h [B,U,K,Nr,Nt], complex.

    Raises:
        ValueError: var negative or not finite; a covariance that is not Hermitian or not non-negative.
    """
    variances("draw_channel", "var", var)
    h = philox_normal(
        (batch, users, blocks, nr, nt),
        seed=seed,
        step=_CHANNEL_STEP,
        stream=_USER_STREAM,
        first_item=first_item,
        dtype=dtype,
        device=device,
    )
    if cov_rx is not None:
        h = hermitian_root(cov_rx).to(h) @ h
    if cov_tx is not None:
        h = h @ hermitian_root(cov_tx).to(h).mT
    return h if var == 1.0 else h * var**0.5


def transmit(h: Tensor, x: Tensor, noise_var: float | Tensor, seed: int, *, first_item: int = 0) -> Tensor:
    """What the receiver gets: every user's codeword through its channel, summed, plus white noise.

    Model: Y_k = sum_u H_k^(u) X_k^(u) + N_k with N i.i.d. CN(0, noise_var).

    Args:
        h: [B,U,K,Nr,Nt] complex.
        x: [B,U,K,Nt,T] complex, the dtype of h.
        noise_var: E|n|^2 per entry; a number, or a tensor [B].
        seed, first_item: see the module's remark on draws.

    Returns:
        y [B,K,Nr,T].

    Raises:
        ValueError: shapes disagree; a noise variance that is negative or not finite.

    Source: "Blind MIMO Semantic Communication via Parallel Variational Diffusion", eqs. (1), (2), (45).
    """
    clean = blockdiag_apply(h, x)
    noise = philox_normal(
        clean.shape,
        seed=seed,
        step=_NOISE_STEP,
        stream=_USER_STREAM,
        first_item=first_item,
        dtype=clean.dtype,
        device=clean.device,
    )
    level = variances("transmit", "noise_var", noise_var)
    scale = level.to(device=clean.device, dtype=clean.real.dtype).sqrt()
    return clean + noise * scale.reshape(scale.shape + (1,) * (clean.ndim - scale.ndim))
