"""Power normalisation of codewords."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from .._native import require_core
from . import _blocks, _checks
from ._arrays import array_function
from ._register import Op, reference_vjp

if TYPE_CHECKING:
    from jaxtyping import Inexact, Real


def _rows(z: Tensor, power: float, dims: int) -> tuple[int, int, float]:
    """Items, reals per item, and the scale sqrt(power*count)."""
    count = math.prod(z.shape[z.ndim - dims :])
    return math.prod(z.shape[: z.ndim - dims]), count * (2 if z.is_complex() else 1), math.sqrt(power * count)


def _cpu(z: Tensor, power: float, dims: int) -> tuple[Tensor, Tensor]:
    z = _blocks.plain(z)
    x = z.new_empty(z.shape)
    norm = z.new_empty(z.shape[: z.ndim - dims], dtype=_checks.real_dtype(z))
    b, n, scale = _rows(z, power, dims)
    if b == 0:
        return x, norm
    double = _blocks.is_double(z)
    bad = require_core().cpu_power_normalise(double, b, n, scale, z.data_ptr(), x.data_ptr(), norm.data_ptr())
    if bad >= 0 and not _checks.tolerating_non_finite():
        raise ValueError(f"{_NAME}: codeword {bad} has norm {float(norm.flatten()[bad])} and cannot be normalised")
    return x, norm


def _triton(z: Tensor, power: float, dims: int) -> tuple[Tensor, Tensor]:
    from ..triton import power_normalise as kernel

    z = _blocks.plain(z)
    b, _, scale = _rows(z, power, dims)
    x, norm = kernel.run(z.reshape(b, math.prod(z.shape[z.ndim - dims :])), scale)
    return x.reshape(z.shape), norm.reshape(z.shape[: z.ndim - dims])


def _reference(z: Tensor, power: float, dims: int) -> tuple[Tensor, Tensor]:
    x, norm = reference.power_normalise(z, power=power, dims=dims)
    if z.device.type == "cpu" and not _checks.tolerating_non_finite():
        good = (norm > 0) & torch.isfinite(norm)
        if not bool(good.all()):
            bad = int((~good).flatten().nonzero()[0])
            raise ValueError(f"{_NAME}: codeword {bad} has norm {float(norm.flatten()[bad])} and cannot be normalised")
    return x, norm


def _fake(z: Tensor, power: float, dims: int) -> tuple[Tensor, Tensor]:
    real = z.dtype.to_real() if z.is_complex() else z.dtype
    return z.new_empty(z.shape), z.new_empty(z.shape[: z.ndim - dims], dtype=real)


def _vjp_formula(z: Tensor, norm: Tensor, g: Tensor, power: float, dims: int) -> Tensor:
    """(scale/|z|) (g - z Re<z,g>/|z|^2) in plain torch."""
    last = tuple(range(z.ndim - dims, z.ndim))
    inner = (z.conj() * g).real if z.is_complex() else z * g
    inner = inner.double().sum(last, keepdim=True)
    n = norm.double().reshape(norm.shape + (1,) * dims)
    _, _, scale = _rows(z, power, dims)
    real = norm.dtype
    return (scale / n).to(real) * (g - z * (inner / n**2).to(real))


def _vjp_cpu(z: Tensor, norm: Tensor, g: Tensor, power: float, dims: int) -> Tensor:
    z, norm, g = _blocks.plain(z), _blocks.plain(norm), _blocks.plain(g)
    out = z.new_empty(z.shape)
    b, n, scale = _rows(z, power, dims)
    pointers = z.data_ptr(), norm.data_ptr(), g.data_ptr(), out.data_ptr()
    if out.numel():
        require_core().cpu_power_normalise_vjp(_blocks.is_double(z), b, n, scale, *pointers)
    return out


def _vjp_triton(z: Tensor, norm: Tensor, g: Tensor, power: float, dims: int) -> Tensor:
    from ..triton import power_normalise as kernel

    z, norm, g = _blocks.plain(z), _blocks.plain(norm), _blocks.plain(g)
    b, _, scale = _rows(z, power, dims)
    flat = (b, math.prod(z.shape[z.ndim - dims :]))
    return kernel.vjp(z.reshape(flat), norm.reshape(b), g.reshape(flat), scale).reshape(z.shape)


def _vjp_backward(needs, args, outs, grads):
    return reference_vjp(_vjp_formula, args, needs, grads)


def _vjp_vmap(args, mapped, size):
    wide = [a if m else a.expand(size, *a.shape) for a, m in zip(args[:3], mapped, strict=False)]
    return _vjp_op(*wide, *args[3:])


_vjp_op = Op(
    "power_normalise_vjp",
    "(Tensor z, Tensor norm, Tensor g, float power, int dims) -> Tensor",
    kernels={"cpu": _vjp_cpu, "triton": _vjp_triton, "reference": _vjp_formula},
    fake=lambda z, norm, g, power, dims: z.new_empty(z.shape),
    backward=_vjp_backward,
    vmap=_vjp_vmap,
)


def _backward(needs, args, outs, grads):
    (z, power, dims), (_, norm) = args, outs
    g_x, g_norm = grads
    grad = None
    if g_x is not None:
        grad = _vjp_op(z, norm, g_x, power, dims)
    if g_norm is not None:
        along = z * (g_norm / norm).reshape(norm.shape + (1,) * dims)
        grad = along if grad is None else grad + along
    return grad, None, None


def _jvp(args, outs, tangents):
    """The Jacobian is symmetric in the real inner product, so the tangent of x is the same formula."""
    (z, power, dims), (_, norm) = args, outs
    dz = tangents[0]
    inner = (z.conj() * dz).real if z.is_complex() else z * dz
    last = tuple(range(z.ndim - dims, z.ndim))
    return _vjp_formula(z, norm, dz, power, dims), inner.sum(last) / norm


def _vmap(args, mapped, size):
    return _op(*args)  # the mapped axis becomes one more leading dimension


_NAME = "power_normalise"
_op = Op(
    _NAME,
    "(Tensor z, float power, int dims) -> (Tensor, Tensor)",
    kernels={"cpu": _cpu, "triton": _triton, "reference": _reference},
    fake=_fake,
    backward=_backward,
    jvp=_jvp,
    vmap=_vmap,
)


@array_function
def power_normalise(
    z: "Inexact[Tensor, '*batch ...']", *, power: float = 1.0, dims: int = 3
) -> "tuple[Inexact[Tensor, '*batch ...'], Real[Tensor, '*batch']]":
    r"""Scale every codeword to its power constraint, met with equality over the whole codeword.

    Definition: :math:`x = z \sqrt{P m}/\|z\|` over the last `dims` dims, m their number of entries, so that
    :math:`\|x\|^2 = P m`.

    Args:
        z: [..., *codeword], real or complex; a codeword spans the last `dims` dims (K, Nt, T by default).
        power: P, mean power per entry.

    Returns:
        (x, norm): x like z; norm [...] = ||z||, summed in float64. Both are differentiable.

    Raises:
        ValueError: `dims` exceeds z's dims, power <= 0, or on the CPU a codeword is zero or not finite (it is named).

    Source: the power constraint (12b) of "Blind MIMO Semantic Communication via Parallel Variational Diffusion".
    """
    _checks.same_kind(_NAME, _checks.ANY, "z", z)
    power = _checks.positive_number(_NAME, "power", power)
    if not 1 <= dims <= z.ndim:
        raise ValueError(f"{_NAME}: dims={dims} does not fit z of shape {tuple(z.shape)}")
    if math.prod(z.shape[z.ndim - dims :]) == 0:
        raise ValueError(f"{_NAME}: an empty codeword cannot be normalised; got z {tuple(z.shape)} with dims={dims}")
    return _op(z, float(power), dims)
