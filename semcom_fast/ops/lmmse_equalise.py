"""LMMSE equalisation of MIMO symbols."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from ..reference.levels import Level
from . import _checks, _regularised
from ._arrays import array_function
from ._register import Op, reference_vjp

if TYPE_CHECKING:
    from jaxtyping import Complex, Real

_NAME = "lmmse_equalise"
_NEED = "y [...,Nr] and h [...,Nr,Nt]"


def _native(backend: str, y: Tensor, h: Tensor, noise_var: Tensor, mode: int) -> tuple[Tensor, Tensor, Tensor]:
    y, h, noise_var = _checks.plain(y), _checks.plain(h), _checks.plain(noise_var)
    n, (nr, nt) = y.shape[0], h.shape[1:]
    s_hat, noise_eff = h.new_empty((n, nt)), h.new_empty((n, nt), dtype=_checks.real_dtype(h))
    info = h.new_empty(n, dtype=torch.int32)
    if not n:
        return s_hat, noise_eff, info
    flags = _regularised.flags(h, True, nt <= nr, False, False)
    pointers = [t.data_ptr() for t in (h, y, noise_var, s_hat, noise_eff, info)]
    sizes = _regularised.sizes(h, n, 1, noise_var, 1)
    _regularised.launch(_NAME, backend, h.device, mode, (flags, sizes, 0.0), *pointers)
    return s_hat, noise_eff, info


def _definition(y: Tensor, h: Tensor, noise_var: Tensor, mode: int) -> tuple[Tensor, Tensor]:
    return reference.lmmse_equalise(y, h, _regularised.per_channel(noise_var, y.shape[0]))[:2]


def _reference(y: Tensor, h: Tensor, noise_var: Tensor, mode: int) -> tuple[Tensor, Tensor, Tensor]:
    out = reference.lmmse_equalise(y, h, _regularised.per_channel(noise_var, y.shape[0]))
    _regularised.raise_flagged(out[2], mode)
    return out


def _fake(y: Tensor, h: Tensor, noise_var: Tensor, mode: int) -> tuple[Tensor, Tensor, Tensor]:
    shape = (y.shape[0], h.shape[2])
    return h.new_empty(shape), h.new_empty(shape, dtype=h.dtype.to_real()), h.new_empty(y.shape[0], dtype=torch.int32)


def _backward(needs, args, outs, grads):
    return reference_vjp(_definition, args, needs, grads[:2])


_op = Op(
    _NAME,
    "(Tensor y, Tensor h, Tensor noise_var, int mode) -> (Tensor, Tensor, Tensor)",
    kernels={
        "cpu": lambda *args: _native("cpu", *args),
        "cuda": lambda *args: _native("cuda", *args),
        "reference": _reference,
    },
    fake=_fake,
    backward=_backward,
    vmap="rows",
)


@array_function
def lmmse_equalise(
    y: "Complex[Tensor, '*batch nr']",
    h: "Complex[Tensor, '*batch nr nt']",
    noise_var: Level,
    *,
    on_singular: str | None = None,
) -> "tuple[Complex[Tensor, '*batch nt'], Real[Tensor, '*batch nt']]":
    r"""Unbiased LMMSE estimates of unit-power symbols, and the noise variance that is left on each.

    Signal model: :math:`y = h s + n` with :math:`E[s s^H] = I` and n ~ CN(0, noise_var I). Definition:

    .. math:: G = (h^H h + \sigma^2 I)^{-1} h^H, \quad \hat s = \mathrm{diag}(G h)^{-1} G y, \quad
              \sigma^2_{\mathrm{eff}} = \mathrm{diag}(G h)^{-1} - 1

    One Cholesky factor of the smaller Gram matrix, in float64 inside.

    Args:
        y: received [...,Nr], complex64 or complex128.
        h: channels [...,Nr,Nt]; leading dimensions broadcast.
        noise_var: E|n|^2 per entry, a number or a tensor aligned from the left with the leading dimensions; 0 is zero
            forcing.
        on_singular: "raise" (default on the CPU) or "flag" (default on CUDA): s_hat = 0 and noise_eff = inf there.
            A column of zeros always gives that for its own symbol.

    Returns:
        (s_hat [...,Nt], noise_eff [...,Nt] real). Both are differentiable.

    Raises:
        SingularChannelError: at noise_var = 0, or NaN or Inf in h; names count and first index.
        ValueError: shapes disagree, noise_var < 0, a non-finite y (named).

    Source: the per-user LMMSE detection of the classical baseline of "Scenario-Adaptive MU-MIMO OFDM Semantic
    Communication With Asymmetric Neural Network"; the textbook form is Kay, Estimation Theory, section 12.5.
    """
    _checks.same_kind(_NAME, _checks.COMPLEX, "y h", y, h)
    if h.ndim < 2 or y.ndim < 1 or y.shape[-1] != h.shape[-2] or min(h.shape[-2:]) == 0:
        raise _checks.shape_error(_NAME, _NEED, y=y, h=h)
    if on_singular == "pinv":
        raise ValueError(f"{_NAME}: on_singular is 'raise' or 'flag'; dropping symbols has no unbiased estimate")
    lead = _checks.lead_shape(_NAME, _NEED, "y h", (y, 1), (h, 2))
    mode = _regularised.mode_of(_NAME, on_singular, h.device)
    each = _regularised.flat_alpha(_NAME, "noise_var", noise_var, lead, lead, h)
    flat = len(lead) == 1
    flat_y = y if flat and y.shape[0] == lead[0] else y.expand(*lead, y.shape[-1]).reshape(-1, y.shape[-1])
    try:
        s_hat, noise_eff, info = _op(flat_y, _checks.flatten_lead(h, lead, 2), each, mode)
        if mode == _regularised.RAISE and not h.is_cpu:
            _regularised.raise_flagged(info, mode)
    except _regularised.FLAGGED as err:
        raise _regularised.located(_NAME, lead, err) from None
    if flat:
        return s_hat, noise_eff
    nt = h.shape[-1]
    return s_hat.reshape(*lead, nt), noise_eff.reshape(*lead, nt)
