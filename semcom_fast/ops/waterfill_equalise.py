"""Equalisation of fading symbols to unit-power reals with a known noise level each."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import reference
from .._native import require_core
from ..reference.levels import Level
from . import _checks, _levels
from ._arrays import array_function
from ._register import Op, reference_vjp

if TYPE_CHECKING:
    from jaxtyping import Complex, Float

_NAME = "waterfill_equalise"


def _outputs(y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    *lead, m = _checks.broadcast_shapes(y.shape, h.shape)
    real = _checks.real_dtype(y)
    return y.new_empty((*lead, 2 * m), dtype=real), y.new_empty((*lead, m), dtype=real)


def _rows(level: Any, lead: tuple[int, ...]) -> Any:
    """A level tensor with one entry per row of the flattened leading dims."""
    if not isinstance(level, Tensor) or level.ndim == 0:
        return level
    return level.reshape(level.shape + (1,) * (len(lead) - level.ndim)).expand(lead).reshape(-1)


def _cpu(y, h, noise_var):
    f, d = _outputs(y, h)
    if not d.numel():
        return f, d
    lead, m = d.shape[:-1], d.shape[-1]
    y = _checks.plain(y.expand(d.shape))
    h = (h.resolve_conj() if h.is_conj() else h).resolve_neg().expand(d.shape).reshape(-1, m)
    if h.stride(1) not in (0, 1) or m == 1:
        h = h.contiguous()
    keep: list[Tensor] = []
    sizes = (h.shape[0], m, h.stride(0), h.stride(1) if m > 1 else 1)
    level = noise_var if type(noise_var) is float else _levels.cpu_level(_rows(noise_var, lead), False, keep)
    bad = require_core().cpu_waterfill_equalise(
        y.dtype is torch.complex128, sizes, y.data_ptr(), h.data_ptr(), level, f.data_ptr(), d.data_ptr()
    )
    if bad >= 0 and not _checks.tolerating_non_finite():
        raise _bad_row(bad)
    return f, d


def _bad_row(index: int) -> ValueError:
    return ValueError(
        f"{_NAME}: row {index} (of the flattened leading dimensions) is not finite, or its noise_var is negative or not "
        "finite"
    )


def _triton(y, h, noise_var):
    from ..triton import waterfill_equalise as kernel

    f, d = _outputs(y, h)
    if not d.numel():
        return f, d
    rows = (d.numel() // d.shape[-1], 1, d.shape[-1])
    level = _rows(noise_var, d.shape[:-1])
    if isinstance(level, Tensor):
        level = _levels.device_level(level, False, y.device)
    y, h = (t.resolve_conj().resolve_neg().expand(d.shape).reshape(rows) for t in (y, h))
    f, levels = kernel.run(y, h, level)
    return f.reshape(*d.shape[:-1], -1), levels.reshape(d.shape)


def _reference(y, h, noise_var):
    f, d = reference.waterfill_equalise(y, h, noise_var)
    if f.device.type == "cpu" and f.numel() and not _checks.tolerating_non_finite() and _checks.readable(f):
        bad = ~(torch.isfinite(f).all(-1) & torch.isfinite(d).all(-1)).flatten()
        if bool(bad.any()):
            raise _bad_row(int(bad.nonzero()[0]))
    return f, d


def _weight(y: Tensor, h: Tensor, noise_var: Level) -> Tensor:
    """w of f = w y."""
    one, _ = reference.waterfill_equalise(torch.ones_like(y), h, noise_var)
    return torch.complex(*one.chunk(2, -1))


def _backward(needs, args, outs, grads):
    y, h, noise_var = args
    if any(needs[1:]):
        return reference_vjp(reference.waterfill_equalise, args, needs, grads)
    back = torch.complex(*grads[0].chunk(2, -1)) * _weight(y, h, noise_var).conj()
    return back.sum_to_size(y.shape), None, None


def _jvp(args, outs, tangents):
    y, h, noise_var = args
    if tangents[1] is not None or tangents[2] is not None:
        return NotImplemented  # levels
    moved = _weight(y, h, noise_var) * tangents[0]
    return torch.cat([moved.real, moved.imag], -1), torch.zeros_like(outs[1])


def _vmap(args, mapped, size):
    rows = [_op(*[a[i] if m else a for a, m in zip(args, mapped, strict=True)]) for i in range(size)]
    return torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])


_op = Op(
    _NAME,
    "(Tensor y, Tensor h, Tensor noise_var) -> (Tensor, Tensor)",
    kernels={"cpu": _cpu, "triton": _triton, "reference": _reference},
    fake=lambda y, h, noise_var: _outputs(y, h),
    backward=_backward,
    jvp=_jvp,
    vmap=_vmap,
    packet_args=lambda a: (a[0], a[1], _levels.as_tensor(a[2], a[0].device)),
)


@array_function
def waterfill_equalise(
    y: "Complex[Tensor, '*batch m']",
    h: "Complex[Tensor, '*batch m']",
    noise_var: Level,
) -> tuple["Float[Tensor, '*batch 2*m']", "Float[Tensor, '*batch m']"]:
    r"""Turn received symbols into unit-power reals whose noise levels are known: the start of water-filling.

    Model: :math:`y_i = h_i z_i + n_i` with :math:`E|z_i|^2 = 2` (unit power per real part) and
    :math:`E|n_i|^2 =` ``noise_var``, so :math:`\sigma^2 =` ``noise_var``/2 per real part. Definition:

    .. math:: w_i = \frac{h_i^*}{|h_i|\sqrt{|h_i|^2+\sigma^2}}, \quad f = [\mathrm{Re}(w y) \,|\, \mathrm{Im}(w y)],
       \quad d_i = \frac{\sigma^2}{|h_i|^2+\sigma^2},

    hence :math:`f = \sqrt{1-d}\,z_r + \sqrt d\,n` with n ~ N(0, I): every real has unit power and noise variance d.

    Args:
        y: received symbols, [..., M], complex64 or complex128.
        h: channel of each symbol, broadcast against y: [..., M] for fast fading, [..., 1] for slow fading, 1 for AWGN.
        noise_var: E|n|^2 per complex entry; a number, or a tensor over the leading dims, aligned from the left.

    Returns:
        f [..., 2M] real, the real parts and then the imaginary parts; d [..., M] in [0, 1], one level per symbol.
        |h| = 0 takes phase 1 and gives d = 1 exactly; noise_var = 0 gives d = 0, and both together f = 0 and d = 1.

    Raises:
        ValueError: shapes do not broadcast; noise_var is negative; on the CPU a row with NaN or Inf (it is named).
        TypeError: y or h is not complex, or their dtypes differ.

    Source: equations (6) and (7) of "Semantics-Guided Diffusion for Deep Joint Source-Channel Coding in Wireless Image
    Transmission", with |h|/sqrt(|h|^2 + sigma^2) as the divisor, which alone gives unit power.
    """
    _checks.require_tensors(_NAME, y=y, h=h)
    if noise_var is None:
        raise TypeError(f"{_NAME}: noise_var must be a number or a tensor, got None")
    _checks.same_kind(_NAME, _checks.COMPLEX, "y h", y, h)
    try:
        shape = _checks.broadcast_shapes(y.shape, h.shape)
    except RuntimeError:
        shape = torch.Size()
    if not shape:
        raise _checks.shape_error(_NAME, "y [..., M] and h that broadcasts against it", y=y, h=h)
    if _levels.is_number(noise_var):
        noise_var = float(noise_var)
        if not 0 <= noise_var < float("inf"):
            raise ValueError(f"{_NAME}: noise_var must be finite and not negative, got {noise_var}")
    else:
        _levels.check(_NAME, "noise_var", noise_var, tuple(shape[:-1]), y.device)
    return _op(y, h, noise_var)
