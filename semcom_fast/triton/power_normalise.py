"""Power normalisation of one codeword per program: the Triton kernels of :func:`semcom_fast.power_normalise`."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import check_flag, fits_32_bits, on, real_dtype
from ._tuned import Choice, choose, size_class

_LARGEST_BLOCK = 4096


@triton.jit
def _columns(start, length, BLOCK: tl.constexpr, VEC: tl.constexpr):
    """Indices of one chunk of a row and their mask; `length` counts units of VEC reals, which bounds access width."""
    column = start + tl.arange(0, BLOCK)
    return column, column < length * VEC


@triton.jit(do_not_specialize=["length"])
def kernel(z, x, norm, flag, length, scale: tl.float64, BLOCK: tl.constexpr, VEC: tl.constexpr, FLAG: tl.constexpr):
    real = z.dtype.element_ty
    row = tl.program_id(0)
    base = row.to(tl.int64) * (length * VEC)
    column, mask = _columns(0, length, BLOCK, VEC)
    first = tl.load(z + (base + column), mask=mask, other=0.0)
    wide = first.to(tl.float64)
    squares = wide * wide
    for start in range(BLOCK, length * VEC, BLOCK):
        column, mask = _columns(start, length, BLOCK, VEC)
        wide = tl.load(z + (base + column), mask=mask, other=0.0).to(tl.float64)
        squares += wide * wide
    size = tl.sqrt(tl.sum(squares, axis=0))
    factor = (scale / size).to(real)
    tl.store(norm + row, size.to(real))
    column, mask = _columns(0, length, BLOCK, VEC)
    tl.store(x + (base + column), first * factor, mask=mask)
    for start in range(BLOCK, length * VEC, BLOCK):
        column, mask = _columns(start, length, BLOCK, VEC)
        value = tl.load(z + (base + column), mask=mask, other=0.0)
        tl.store(x + (base + column), value * factor, mask=mask)
    if FLAG:
        # An infinite norm gives a factor of 0 and a zero norm an infinite one; NaN fails both tests.
        good = (size.to(real) < float("inf")) & (tl.abs(factor) < float("inf")) & (size > 0)
        tl.atomic_min(flag, row.to(flag.dtype.element_ty), mask=good == 0, sem="relaxed")


@triton.jit(do_not_specialize=["length"])
def vjp_kernel(z, norm, g, out, length, scale: tl.float64, BLOCK: tl.constexpr, VEC: tl.constexpr):
    real = z.dtype.element_ty
    row = tl.program_id(0)
    base = row.to(tl.int64) * (length * VEC)
    column, mask = _columns(0, length, BLOCK, VEC)
    first_z = tl.load(z + (base + column), mask=mask, other=0.0)
    first_g = tl.load(g + (base + column), mask=mask, other=0.0)
    inner = first_z.to(tl.float64) * first_g.to(tl.float64)
    for start in range(BLOCK, length * VEC, BLOCK):
        column, mask = _columns(start, length, BLOCK, VEC)
        a = tl.load(z + (base + column), mask=mask, other=0.0).to(tl.float64)
        inner += a * tl.load(g + (base + column), mask=mask, other=0.0).to(tl.float64)
    size = tl.load(norm + row).to(tl.float64)
    factor = (scale / size).to(real)
    along = (tl.sum(inner, axis=0) / (size * size)).to(real)
    column, mask = _columns(0, length, BLOCK, VEC)
    tl.store(out + (base + column), factor * tl.fma(-along, first_z, first_g), mask=mask)
    for start in range(BLOCK, length * VEC, BLOCK):
        column, mask = _columns(start, length, BLOCK, VEC)
        a = tl.load(z + (base + column), mask=mask, other=0.0)
        b = tl.load(g + (base + column), mask=mask, other=0.0)
        tl.store(out + (base + column), factor * tl.fma(-along, a, b), mask=mask)


def _rows(name: str, t: Tensor) -> tuple[Tensor, int, int, int, int]:
    """Real [B, n] memory of a real or complex [B, n] tensor, and (reals per row, vec, block, warps)."""
    if t.ndim != 2:
        raise ValueError(f"power_normalise: {name} must be [B,n], got {tuple(t.shape)}")
    t = t.resolve_conj().resolve_neg().contiguous()
    real = torch.view_as_real(t).flatten(1) if t.is_complex() else t
    real_dtype(name, real)
    fits_32_bits("the number of reals of a row", real.shape[1])
    block = size_class(max(real.shape[1], 32), _LARGEST_BLOCK)
    choice = Choice(block, max(1, min(8, block // 128)))
    choice = choose("power_normalise", block, real.dtype, real.device, choice)
    return real, real.shape[1], math.gcd(real.shape[1], 4), choice.block, choice.num_warps


def run(z: Tensor, scale: float, *, flag: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x = scale z/|z| per row of z [B,n] (real or complex), and |z| [B] in the real dtype; the sum is in float64.

    `flag`, an int32 or int64 cell set to INT32_MAX by the caller, is lowered to the smallest row whose norm is zero or
    non-finite or whose result overflows; such a row's x holds NaN or Inf (an infinite entry) as plain torch gives.
    """
    check_flag(flag)
    memory, n, vec, block, warps = _rows("z", z)
    x = z.new_empty(z.shape)
    norm = memory.new_empty(z.shape[0])
    if z.shape[0] == 0:
        return x, norm
    flat = torch.view_as_real(x) if x.is_complex() else x
    with on(z.device):
        kernel[(z.shape[0],)](
            memory, flat, norm, norm if flag is None else flag, n // vec, float(scale), BLOCK=block, VEC=vec,
            FLAG=flag is not None, num_warps=warps,
        )  # fmt: skip
    return x, norm


def vjp(z: Tensor, norm: Tensor, g: Tensor, scale: float) -> Tensor:
    """(scale/|z|) (g - z Re<z,g>/|z|^2) per row: the gradient at z [B,n] of `run` for the gradient g of x."""
    if g.shape != z.shape or g.dtype != z.dtype or norm.shape != z.shape[:1]:
        raise ValueError(f"power_normalise: g must be like z and norm [B], got {tuple(g.shape)}, {tuple(norm.shape)}")
    memory, n, vec, block, warps = _rows("z", z)
    gradient = _rows("g", g)[0]
    out = z.new_empty(z.shape)
    if z.numel() == 0:
        return out
    flat = torch.view_as_real(out) if out.is_complex() else out
    with on(z.device):
        vjp_kernel[(z.shape[0],)](
            memory, norm.contiguous(), gradient, flat, n // vec, float(scale), BLOCK=block, VEC=vec, num_warps=warps
        )
    return out
