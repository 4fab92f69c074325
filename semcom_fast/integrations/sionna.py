"""Sionna 2.2's small-matrix MIMO functions on this package's kernels: same signatures, shapes, dtypes and results.

    import semcom_fast.integrations.sionna as fast
    fast.patch()                       # every sionna.phy block now runs on these functions; fast.unpatch() undoes it
    with fast.patch(): ...             # or for a while

They can be called directly as well. Rounding aside, results differ from Sionna's in two places. A channel that is singular
or not finite gives zeros (and infinite effective noise) where Sionna gives NaN or arbitrary numbers; path gains that are
not finite are an error on the CPU. And the phases of `cir_to_ofdm_channel` are exact for long delays.
"""

from typing import Any

import torch
from torch import Tensor

from ..errors import require_extra
from ..ops import cir_to_ofdm, lmmse_equalise, rzf_matrix
from ._sionna_patch import Patch, Swap

_mimo: Any = require_extra("sionna.phy.mimo", "sionna")
_channel: Any = require_extra("sionna.phy.channel", "sionna")
_settings: Any = require_extra("sionna.phy.config", "sionna")

# Sionna's own, kept for inputs that only it handles.
_SIONNA_RZF_MATRIX = _mimo.rzf_precoding_matrix
_SIONNA_LMMSE = _mimo.lmmse_equalizer


def _complex_dtype(precision: str | None) -> torch.dtype:
    return _settings.config.cdtype if precision is None else _settings.dtypes[precision]["torch"]["cdtype"]


def rzf_precoding_matrix(h: Tensor, alpha: float | Tensor = 0.0, precision: str | None = None) -> Tensor:
    """Regularised zero-forcing precoding matrices with unit-norm columns.

    Definition: G = V D, V = h^H (h h^H + alpha I)^-1, D scales every column to norm 1.

    Args:
        h: [...,K,M] channel matrices.
        alpha: regulariser, a number or a tensor [...] aligned from the left with h's leading dimensions.
        precision: "single", "double" or None for Sionna's global setting.

    Returns:
        g [...,M,K], complex of that precision. Where h h^H + alpha I is singular or not finite, g is 0.
    """
    dtype = _complex_dtype(precision)
    h = h.to(dtype)
    lead = h.ndim - 2
    if not isinstance(alpha, Tensor):
        alpha = torch.tensor(alpha, dtype=dtype, device=h.device)
    if alpha.ndim > lead:
        if any(size != 1 for size in alpha.shape[lead:]):  # not a multiple of the identity: Sionna takes it, too
            return _SIONNA_RZF_MATRIX(h, alpha, precision)
        alpha = alpha.reshape(alpha.shape[:lead])
    alpha = (alpha.real if alpha.is_complex() else alpha).to(h.device, dtype.to_real())
    v: Any = rzf_matrix(h, alpha, on_singular="flag")
    # Sums down the rows of real pairs: several times faster than a norm over the last but one dimension.
    power = torch.view_as_real(v).flatten(-2).square().sum(-2).unflatten(-1, (-1, 2)).sum(-1)  # [...,K]
    return v * torch.where(power > 0, power, 1.0).rsqrt().unsqueeze(-2)


def rzf_precoder(
    x: Tensor,
    h: Tensor,
    alpha: float | Tensor = 0.0,
    return_precoding_matrix: bool = False,
    precision: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Regularised zero-forcing precoding g x, with g from `rzf_precoding_matrix`.

    Args:
        x: [...,K] symbols.
        h: [...,K,M] channel matrices.
        alpha, precision: see `rzf_precoding_matrix`.
        return_precoding_matrix: return g as well.

    Returns:
        x_precoded [...,M], or (x_precoded, g [...,M,K]).
    """
    g = rzf_precoding_matrix(h, alpha, precision)
    x_precoded = (g @ x.to(g.dtype).unsqueeze(-1)).squeeze(-1)
    return (x_precoded, g) if return_precoding_matrix else x_precoded


def lmmse_equalizer(
    y: Tensor, h: Tensor, s: Tensor, whiten_interference: bool = True, precision: str | None = None
) -> tuple[Tensor, Tensor]:
    """Unbiased LMMSE equalisation under coloured noise.

    Model: y = h x + n, E[x x^H] = I, E[n n^H] = s. Estimate: x_hat = diag(G h)^-1 G y, G = h^H (h h^H + s)^-1, with error
    variances no_eff = 1/diag(G h) - 1.

    A multiple of the identity goes to `semcom_fast.lmmse_equalise` as it is, another diagonal covariance by scaling rows,
    any other after whitening by its Cholesky factor. Values are looked at on the CPU only, and not when `s` takes part
    in differentiation: there every covariance is whitened.

    Args:
        y: [...,M] received signals.
        h: [...,M,K] channel matrices.
        s: [...,M,M] noise covariances.
        whiten_interference: False keeps Sionna's other formula for covariances that are not diagonal with a positive
            diagonal; it also takes singular ones. Otherwise both formulas give the same.
        precision: see `rzf_precoding_matrix`.

    Returns:
        x_hat [...,K] complex and no_eff [...,K] real; 0 and infinity where operands are not finite.
    """
    dtype = _complex_dtype(precision)
    y, h, s = y.to(dtype), h.to(dtype), s.to(dtype)
    variances, equal = _row_variances(s)
    if variances is not None and equal:
        return _equalise(y, h, variances[..., 0])
    if variances is not None:
        scale = variances.rsqrt()
        return _equalise(y * scale, h * scale.unsqueeze(-1), None)
    if not whiten_interference:
        return _SIONNA_LMMSE(y, h, s, whiten_interference=False, precision=precision)
    root, _ = torch.linalg.cholesky_ex(s, check_errors=False)
    y = torch.linalg.solve_triangular(root, y.unsqueeze(-1), upper=False).squeeze(-1)
    return _equalise(y, torch.linalg.solve_triangular(root, h, upper=False), None)


def _row_variances(s: Tensor) -> tuple[Tensor | None, bool]:
    """The diagonal [...,M] of covariances that may be used as such, and whether it is a multiple of the identity.

    They may when they are diagonal and positive, provided that looking at them costs no wait and hides nothing from
    autograd; None otherwise.
    """
    if s.device.type != "cpu" or s.requires_grad or torch.compiler.is_compiling():
        return None, False
    # Repeated along a stride of 0 there is nothing new to see.
    stored = s[tuple(slice(0, 1) if step == 0 else slice(None) for step in s.stride()[:-2])]
    diagonal = stored.diagonal(dim1=-2, dim2=-1)
    variances = diagonal.real
    if not bool((variances > 0).all()) or int(torch.count_nonzero(stored)) != diagonal.numel() or diagonal.imag.any():
        return None, False
    equal = bool((variances == variances[..., :1]).all())
    return variances.expand(s.shape[:-1]), equal


def _equalise(y: Tensor, h: Tensor, noise_var: Tensor | None) -> tuple[Tensor, Tensor]:
    """`lmmse_equalise` under torch's broadcasting, aligned from the right, with a variance [...] or 1."""
    own = torch.broadcast_shapes(h.shape[:-2], () if noise_var is None else noise_var.shape)
    lead = torch.broadcast_shapes(y.shape[:-1], own)
    y, h = y.expand(*lead, -1), h.expand(*lead, -1, -1)
    x_hat, no_eff = lmmse_equalise(y, h, 1.0 if noise_var is None else noise_var.expand(lead), on_singular="flag")
    # The error variances do not depend on y, and Sionna's do not have its shape.
    extra = len(lead) - len(own)
    no_eff = no_eff[(0,) * extra] if 0 not in lead[:extra] else no_eff.new_empty(*lead[extra:], no_eff.shape[-1])
    return x_hat, no_eff[tuple(slice(0, size) for size in own)]


def cir_to_ofdm_channel(frequencies: Tensor, a: Tensor, tau: Tensor, normalize: bool = False) -> Tensor:
    """Frequency response of a channel impulse response, h(f) = sum_p a_p exp(-j 2 pi f tau_p).

    Args:
        frequencies: [fft_size] Hz.
        a: [batch, num_rx, num_rx_ant, num_tx, num_tx_ant, num_paths, num_time_steps] path gains.
        tau: [batch, num_rx, num_tx, num_paths] or [batch, num_rx, num_rx_ant, num_tx, num_tx_ant, num_paths] seconds.
        normalize: scale every link of every batch example to unit mean energy over antennas, time and frequency.

    Returns:
        h_f [batch, num_rx, num_rx_ant, num_tx, num_tx_ant, num_time_steps, fft_size] complex.
    """
    if tau.ndim == 4:
        tau = tau.unsqueeze(2).unsqueeze(4)
    h_f = cir_to_ofdm(a.mT, tau.unsqueeze(-2), frequencies.to(tau))
    if normalize:
        power = h_f.abs().square().mean(dim=(2, 4, 5, 6), keepdim=True, dtype=torch.float64)
        h_f = h_f * torch.where(power > 0, power, 1.0).rsqrt().to(h_f.real.dtype)
    return h_f


_SWAPS = (
    Swap(_SIONNA_RZF_MATRIX, rzf_precoding_matrix),
    Swap(_mimo.rzf_precoder, rzf_precoder),
    Swap(_SIONNA_LMMSE, lmmse_equalizer),
    Swap(_channel.cir_to_ofdm_channel, cir_to_ofdm_channel),
)
_patch = Patch(_SWAPS)


def patch() -> Patch:
    """Make Sionna use these functions, wherever one of its modules refers to its own.

    Covers `sionna.phy.mimo`, the OFDM precoders, equalisers and detectors, and the OFDM channel. As a context manager
    it undoes itself; calls may be nested, and Sionna is itself again after as many `unpatch()` as there were `patch()`.
    Names that other code imported from Sionna before keep Sionna's function, and so do `LinearDetector` objects built
    before, which hold on to their equaliser (as those built meanwhile hold on to this one).

    Raises:
        RuntimeError: the installed Sionna's functions take other arguments than those here.
    """
    return _patch.apply()


def unpatch() -> None:
    """Undo one `patch()`; without one, nothing happens."""
    _patch.undo()
