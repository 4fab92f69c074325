"""Regularised zero-forcing (RZF) precoding."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..reference.levels import Level
from ..reference.rzf_precode import rzf_rows, scale_power
from . import _checks, _regularised
from ._arrays import array_function
from ._register import Op, reference_vjp

if TYPE_CHECKING:
    from jaxtyping import Complex, Int

_NAME = "rzf_precode"
_NEED = "h [...,K,M] and s [...,K] or [...,K,T]"


def _out_shape(h: Tensor, s: Tensor | None, rows: bool) -> tuple[int, int, int]:
    k, m = h.shape[1:]
    if s is None:
        return h.shape[0], m, k
    return (s.shape[0], s.shape[1], m) if rows else (s.shape[0], m, s.shape[2])


def _native(backend, h, s, alpha, rows, m_form, mode, refuse, power, items, want_info, shared):
    h, alpha, s = _checks.plain(h), _checks.plain(alpha), None if s is None else _checks.plain(s)
    shape = _out_shape(h, s, rows)
    n, samples = shape[0], shape[1 if rows else 2]
    x = h.new_empty(shape)
    norm = h.new_empty(items if power else 0, dtype=torch.float64)
    info = h.new_empty(n * (samples if rows else 1) if want_info else 0, dtype=torch.int32)
    if 0 in shape:
        return x, norm.zero_(), info.zero_()
    sizes = _regularised.sizes(h, n, samples, alpha, items)
    flags = _regularised.flags(h, rows, m_form, mode == _regularised.PINV, refuse, shared)
    pointers = [0 if t is None else t.data_ptr() for t in (h, s, alpha, x, norm, info)]
    _regularised.launch(_NAME, backend, h.device, mode, (flags, sizes, _scale(x, power, items)), *pointers)
    return x, norm, info


def _scale(x: Tensor, power: float, items: int) -> float:
    """sqrt(power * count) of a group that shares one power scale: what an entry may be at most."""
    if not power:
        return 0.0
    scale = math.sqrt(power) * math.sqrt(x.numel() / items)
    if scale > torch.finfo(x.dtype).max:
        raise ValueError(f"{_NAME}: power {power:g} over {x.numel() // items} entries overflows {x.dtype}")
    return scale


def _solve(h, s, alpha, rows, m_form, mode, refuse):
    """The definition on flattened operands, with right-hand sides as columns."""
    k = h.shape[1]
    rhs = torch.eye(k, dtype=h.dtype, device=h.device).expand(h.shape[0], k, k) if s is None else s
    rhs = rhs.transpose(1, 2) if rows else rhs
    n = rhs.shape[0]
    reg = _regularised.per_channel(alpha, n)
    drop = mode == _regularised.PINV
    x, info = rzf_rows(h.expand(n, -1, -1), rhs, reg, m_form=m_form, drop=drop, refuse_zero=refuse, apart=rows)
    return (x.transpose(1, 2) if rows else x).contiguous(), info.reshape(-1)


def _power(x: Tensor, power: float, items: int) -> tuple[Tensor, Tensor]:
    grouped = x.reshape(items, x.numel() // max(items, 1))
    norm = torch.linalg.vector_norm(torch.view_as_real(grouped).double(), dim=(1, 2))
    return scale_power(grouped, power, (1,)).reshape(x.shape), norm


def _reference(h, s, alpha, rows, m_form, mode, refuse, power, items, want_info, shared):
    x, info = _solve(h, s, alpha, rows, m_form, mode, refuse)
    _regularised.raise_flagged(info, mode)
    norm = x.new_empty(0, dtype=torch.float64)
    if power:
        if x.numel():
            _scale(x, power, items)  # refuses what the dtype cannot hold
        x, norm = _power(x, power, items)
    return x, norm, info if want_info else info[:0].clone()


def _fake(h, s, alpha, rows, m_form, mode, refuse, power, items, want_info, shared):
    shape = _out_shape(h, s, rows)
    return (
        h.new_empty(shape),
        h.new_empty(items if power else 0, dtype=torch.float64),
        h.new_empty(shape[0] * (shape[1] if rows else 1) if want_info else 0, dtype=torch.int32),
    )


def _vjp_native(backend, h, s, alpha, x, norm, g, rows, m_form, mode, refuse, power, items, need_h, need_s):
    h, alpha, x, norm, g = (_checks.plain(t) for t in (h, alpha, x, norm, g))
    s = None if s is None else _checks.plain(s)
    n = x.shape[0]
    dh = h.new_empty((n if need_h else 0, *h.shape[1:]))
    ds = h.new_empty(s.shape if need_s and s is not None else (0,))
    da = h.new_empty(n, dtype=torch.float64)
    if x.numel() == 0:
        return dh.zero_(), ds.zero_(), da.zero_()
    sizes = _regularised.sizes(h, n, x.numel() // (n * h.shape[2]), alpha, items)
    flags = _regularised.flags(h, rows, m_form, mode == _regularised.PINV, refuse)
    pointers = [0 if t is None or not t.numel() else t.data_ptr() for t in (h, s, alpha, x, norm, g, dh, ds, da)]
    _regularised.launch(
        "rzf_precode_vjp", backend, h.device, _regularised.FLAG, (flags, sizes, _scale(x, power, items)), *pointers
    )
    return dh, ds, da


def _vjp_reference(h, s, alpha, x, norm, g, rows, m_form, mode, refuse, power, items, need_h, need_s):
    n = x.shape[0]
    reg = _regularised.per_channel(alpha, n).double()
    each = h.expand(n, -1, -1)

    def out(h_, s_, reg_):
        x_, _ = _solve(h_, s_, reg_, rows, m_form, mode, refuse)
        return _power(x_, power, items)[0] if power else x_

    needs = (True, s is not None, True)
    dh, ds, da = reference_vjp(out, (each, s, reg), needs, (g,))
    dh = dh if need_h else dh[:0]
    return dh, (ds if need_s and ds is not None else h.new_empty((0,))), da


def _vjp_fake(h, s, alpha, x, norm, g, rows, m_form, mode, refuse, power, items, need_h, need_s):
    n = x.shape[0]
    return (
        h.new_empty((n if need_h else 0, *h.shape[1:])),
        h.new_empty(s.shape if need_s and s is not None else (0,)),
        h.new_empty(n, dtype=torch.float64),
    )


def _vjp_backward(needs, args, outs, grads):
    return reference_vjp(_vjp_reference, args, needs, grads)


_vjp_op = Op(
    "rzf_precode_vjp",
    "(Tensor h, Tensor? s, Tensor alpha, Tensor x, Tensor norm, Tensor g, bool rows, bool m_form, int mode, "
    "bool refuse, float power, SymInt items, bool need_h, bool need_s) -> (Tensor, Tensor, Tensor)",
    kernels={
        "cpu": lambda *args: _vjp_native("cpu", *args),
        "cuda": lambda *args: _vjp_native("cuda", *args),
        "reference": _vjp_reference,
    },
    fake=_vjp_fake,
    backward=_vjp_backward,
    vmap="rows",
)


def _backward(needs, args, outs, grads):
    h, s, alpha, rows, m_form, mode, refuse, power, items, *_ = args
    x, norm, _ = outs
    dh, ds, da = _vjp_op(h, s, alpha, x, norm, grads[0], rows, m_form, mode, refuse, power, items, needs[0], needs[1])
    grad_h = None
    if needs[0]:
        grad_h = dh.sum(0, keepdim=True) if h.shape[0] == 1 and dh.shape[0] != 1 else dh
    grad_alpha = None
    if needs[2]:
        grad_alpha = (
            da.reshape(alpha.shape[0], -1).sum(1).to(alpha.dtype) if da.numel() else alpha.new_zeros(alpha.shape)
        )
    return grad_h, ds if needs[1] else None, grad_alpha, *[None] * 8


_op = Op(
    _NAME,
    "(Tensor h, Tensor? s, Tensor alpha, bool rows, bool m_form, int mode, bool refuse, float power, SymInt items, "
    "bool want_info, bool shared) -> (Tensor, Tensor, Tensor)",
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
def rzf_precode(
    h: "Complex[Tensor, '*batch users antennas']",
    s: "Complex[Tensor, '*batch users'] | Complex[Tensor, '*batch users streams']",
    alpha: Level,
    *,
    power: float | None = None,
    power_dims: int | None = None,
    on_singular: str | None = None,
    return_info: bool = False,
    form: str | None = None,
) -> "Tensor | tuple[Tensor, Int[Tensor, '*batch']]":
    r"""Regularised zero-forcing precoding, differentiable in the channel, the symbols and the regulariser.

    Signal model: K single-antenna users receive :math:`y = h x + n` from M antennas. Definition:

    .. math:: x = h^H (h h^H + \alpha I)^{-1} s

    computed from one Cholesky factor of the smaller of :math:`h h^H` and :math:`h^H h` (K-form and M-form are equal).
    With `power` P, x is then scaled so that the mean of :math:`|x|^2` over the group is P.

    complex64 channels are solved in float64 where alpha is below 1e-3 of the Gram matrix' mean diagonal, and with
    diagonal pivoting where it is within rounding of zero (zero forcing).

    Args:
        h: channels [...,K,M], complex64 or complex128. Leading dimensions broadcast against those of s. A channel
            that is constant over the last leading dimensions of s (size 1, or stride 0 when it needs no gradient) is
            factored once for all of them.
        s: symbols [...,K] (exactly when s.ndim == h.ndim - 1) or [...,K,T].
        alpha: the whole regulariser (:math:`\alpha \ge 0`, units of \|h\|^2): a number, a 0-d tensor, or a tensor
            aligned from the left with the leading dimensions ([B], [B,F], ..., sizes 1 or equal).
        power: mean \|x\|^2 per antenna entry, P > 0; None leaves x unscaled. All-zero groups stay zero; a
            group whose energy passes float64 (entries beyond 1e150) is NaN, and gradients through a scale that the
            dtype cannot hold (entries near its smallest number) are not finite.
        power_dims: how many of the last leading dimensions share one scale (default: all but the first).
        on_singular: a channel without inverse (only possible at alpha = 0, or with NaN or Inf in h) is an error with
            "raise" (default on the CPU), x = 0 with "flag" (default on CUDA: no synchronisation), and with "pinv" the
            users without a pivot are dropped and the others served exactly (for M < K: least squares over all users,
            with the antennas that have a pivot).
        return_info: also return `info` int32 [...]: 0; the 1-based failing pivot (M + 1: zero forcing to more users
            than antennas); -1 where x would not be finite.
        form: "K" or "M" forces a form; "M" with alpha = 0 and M < K is least squares.

    Returns:
        x [...,M] or [...,M,T], and `info` with `return_info`.

    Raises:
        SingularChannelError: with on_singular="raise"; names count and first index of the leading dimensions.
        ValueError: shapes disagree, alpha < 0, a non-finite symbol (named), power <= 0 or beyond the dtype.
        TypeError: a real or mixed dtype.

    Source: equations (3) and (7) of "Scenario-Adaptive MU-MIMO OFDM Semantic Communication With Asymmetric Neural
    Network"; alpha here is the product of its learnable factor and the noise variance.
    """
    call = _regularised.prepare(_NAME, _NEED, h, s, alpha, on_singular, form, power, power_dims)
    return finish(call, return_info)


def finish(call: "_regularised.Call", return_info: bool) -> Any:
    """Run the prepared call and give results the caller's leading dimensions."""
    synchronise = call.mode == _regularised.RAISE and not call.h.is_cpu
    try:
        x, _, info = _op(*call.operands, return_info or synchronise, call.shared)
        if synchronise:
            _regularised.raise_flagged(info, call.mode)
    except _regularised.FLAGGED as err:
        raise _regularised.located(call.op, call.lead, err, call.flags_each) from None
    if x.shape != call.out_shape:
        x = x.reshape(call.out_shape)
    return (x, info.reshape(call.lead)) if return_info else x
