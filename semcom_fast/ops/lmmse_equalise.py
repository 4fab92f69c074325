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


def _native(
    backend: str, y: Tensor, h: Tensor, noise_var: Tensor, mode: int, shared: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y [n,T,Nr], h [n or 1,Nr,Nt], noise_var [A] -> s_hat and noise_eff [n T,Nt], info [n T]."""
    y, h, noise_var = _checks.plain(y), _checks.plain(h), _checks.plain(noise_var)
    (n, t), (nr, nt) = y.shape[:2], h.shape[1:]
    if backend == "cuda" and t > 1:  # its kernels factor a channel for every vector
        h, n, t = h if h.shape[0] == 1 else h.repeat_interleave(t, 0), n * t, 1
    s_hat, noise_eff = h.new_empty((n * t, nt)), h.new_empty((n * t, nt), dtype=_checks.real_dtype(h))
    info = h.new_empty(n * t, dtype=torch.int32)
    if not n * t:
        return s_hat, noise_eff, info
    flags = _regularised.flags(h, True, nt <= nr, shared=shared)
    pointers = [t.data_ptr() for t in (h, y, noise_var, s_hat, noise_eff, info)]
    sizes = _regularised.sizes(h, n, t, noise_var, 1)
    _regularised.launch(_NAME, backend, h.device, mode, (flags, sizes, 0.0), *pointers)
    return s_hat, noise_eff, info


def _definition(y: Tensor, h: Tensor, noise_var: Tensor, mode: int, shared: bool) -> tuple[Tensor, Tensor, Tensor]:
    each = _regularised.per_channel(noise_var, y.shape[0])
    s_hat, noise_eff, info = reference.lmmse_equalise(y, h.unsqueeze(1), each)
    return s_hat.flatten(0, 1), noise_eff.flatten(0, 1), info.flatten()


def _reference(y: Tensor, h: Tensor, noise_var: Tensor, mode: int, shared: bool) -> tuple[Tensor, Tensor, Tensor]:
    out = _definition(y, h, noise_var, mode, shared)
    _regularised.raise_flagged(out[2], mode)
    return out


def _fake(y: Tensor, h: Tensor, noise_var: Tensor, mode: int, shared: bool) -> tuple[Tensor, Tensor, Tensor]:
    vectors = y.shape[0] * y.shape[1]
    shape = (vectors, h.shape[2])
    return h.new_empty(shape), h.new_empty(shape, dtype=h.dtype.to_real()), h.new_empty(vectors, dtype=torch.int32)


def _backward(needs, args, outs, grads):
    return reference_vjp(lambda *operands: _definition(*operands)[:2], args, needs, grads[:2])


_op = Op(
    _NAME,
    "(Tensor y, Tensor h, Tensor noise_var, int mode, bool shared) -> (Tensor, Tensor, Tensor)",
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
        h: channels [...,Nr,Nt]; leading dimensions broadcast. On the CPU a channel that is constant over the last leading
            dimensions of y (size 1, missing, or stride 0 when it needs no gradient) is factored once for all of them.
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
    fold = _regularised.fold_of(h, noise_var, lead, len(lead)) if len(lead) > 1 else 0
    shared = _regularised.single(h, noise_var)
    own = lead[: len(lead) - fold]
    channels = _checks.flatten_lead(_regularised.without_last(h, fold) if fold else h, own, 2)
    each = _regularised.flat_alpha(_NAME, "noise_var", noise_var, lead, own, h)
    try:
        s_hat, noise_eff, info = _op(_regularised.flatten_symbols(y, lead, own, True), channels, each, mode, shared)
        if mode == _regularised.RAISE and not h.is_cpu:
            _regularised.raise_flagged(info, mode)
    except _regularised.FLAGGED as err:
        raise _regularised.located(_NAME, lead, err) from None
    if len(lead) == 1:
        return s_hat, noise_eff
    shape = (*lead, h.shape[-1])
    return s_hat.reshape(shape), noise_eff.reshape(shape)
