"""The normalised MMSE equaliser of single symbols: the Triton kernel of :func:`semcom_fast.waterfill_equalise`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Cell, as_level, check_flag, fits_32_bits, on, tiling
from .philox import flag_rows, over_lanes, tile


@triton.jit
def _parts(at):
    """Offsets [T, 4, 2] of the real and imaginary parts of the complex entries at [T, 4], so that loads are wide."""
    return at[:, :, None] * 2 + tl.arange(0, 2)[None, None, :]


@triton.jit
def _phase(re, im, DOUBLE: tl.constexpr):
    """(re, im, squared modulus) of a number with the channel's phase; scaled where squares could leave the range."""
    if DOUBLE:
        size = tl.maximum(tl.abs(re), tl.abs(im))
        size = tl.where(size > 0, size, 1.0)
        re = re / size
        im = im / size
    square = re * re + im * im
    silent = square == 0
    return tl.where(silent, 1.0, re), tl.where(silent, 0.0, im), tl.where(silent, 1.0, square)


@triton.jit(
    do_not_specialize=["h_b", "h_g", "h_m", "noise_b", "noise_g", "chunks", "rows", "groups", "length"],
)  # fmt: skip
def kernel(
    f, d, y, h, flag, noise_var, noise_b, noise_g, noise_value: tl.float64, h_b, h_g, h_m, chunks, rows, groups, length,
    TENSOR: tl.constexpr, DENSE: tl.constexpr, FLAG: tl.constexpr, QUADS: tl.constexpr, ROWS: tl.constexpr,
    VEC: tl.constexpr,
):  # fmt: skip
    real = d.dtype.element_ty
    # A row of the tile is one of the rows [B*G] of M symbols.
    row, _, quad, at, mask = tile(chunks, rows, 1, length, QUADS, ROWS, VEC)
    b = row // groups
    g = row - b * groups
    both = mask[:, :, None] & (tl.arange(0, 2)[None, None, :] >= 0)
    received = tl.load(y + _parts(at), mask=both, other=0.0).to(tl.float64)
    if DENSE:
        channel = tl.load(h + _parts(at), mask=both, other=0.0)
    else:
        index = quad.to(tl.int64)[:, None] * 4 + tl.arange(0, 4)[None, :]
        start = b.to(tl.int64) * h_b + g.to(tl.int64) * h_g
        channel = tl.load(h + _parts(over_lanes(start, ROWS) + index * h_m), mask=both, other=0.0)
    if TENSOR:
        twice = tl.load(noise_var + b.to(tl.int64) * noise_b + g.to(tl.int64) * noise_g).to(tl.float64)
    else:
        twice = noise_value + b.to(tl.float64) * 0.0
    sigma2 = tl.broadcast_to(over_lanes(0.5 * twice, ROWS), mask.shape)
    y_re, y_im = tl.split(received)
    h_re, h_im = tl.split(channel.to(tl.float64))
    power = h_re * h_re + h_im * h_im + sigma2
    re, im, square = _phase(h_re, h_im, real == tl.float64)
    nothing = power == 0  # no channel and no noise: nothing was received, nothing is known
    gain = 1.0 / tl.sqrt(square * tl.where(nothing, 1.0, power))
    # An infinite power or a negative variance must not read as a silent symbol.
    gain = tl.where((power - power == 0) & (sigma2 >= 0), gain, float("nan"))
    gain = tl.where(nothing, 0.0, gain)
    f_re = ((re * y_re + im * y_im) * gain).to(real)
    f_im = ((re * y_im - im * y_re) * gain).to(real)
    level = tl.where(nothing, 1.0, sigma2 / tl.where(nothing, 1.0, power)).to(real)
    out = at + over_lanes(row.to(tl.int64), ROWS) * (length * VEC)  # twice the row's start, then the symbol
    tl.store(f + out, f_re, mask=mask)
    tl.store(f + (out + length * VEC), f_im, mask=mask)
    tl.store(d + at, level, mask=mask)
    if FLAG:
        flag_rows(flag, b, tl.abs(f_re) + tl.abs(f_im) + tl.abs(level), mask, QUADS * ROWS)


_NAME = "waterfill_equalise"


def _check(y: Tensor, h: Tensor) -> torch.dtype:
    if y.ndim != 3 or h.shape != y.shape or h.dtype != y.dtype or h.device != y.device:
        given = f"{y.dtype} {tuple(y.shape)} and {h.dtype} {tuple(h.shape)} on {h.device}"
        raise ValueError(f"{_NAME}: need y and h [B,G,M] of one dtype and device, got {given}")
    if not y.is_complex():
        raise TypeError(f"{_NAME}: y and h must be complex, got {y.dtype}")
    fits_32_bits("the number of reals of one row", 2 * y.shape[2])
    fits_32_bits("the number of rows", y.shape[0] * y.shape[1])
    return y.dtype.to_real()


def run(
    y: Tensor,
    h: Tensor,
    noise_var: float | Tensor | Cell,
    *,
    flag: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """One launch: f [B,G,2M] = [Re | Im] and d [B,G,M] of complex y, h [B,G,M]; the formula is the public function's.

    h may have any strides (an expanded channel is read in place). noise_var: a number, a tensor over [B] or [B,G], or a
    (tensor, stride_l, stride_b, stride_g) tuple. Arithmetic is float64, rounded once. `flag`, an int32 or int64 cell the
    caller set to INT32_MAX, is lowered to the smallest index of axis B with a non-finite result. `out` = (f, d).
    Lazily conjugated tensors must be resolved by the caller. Raises ValueError for shapes that do not agree.
    """
    real = _check(y, h)
    check_flag(flag)
    batch, groups, symbols = y.shape
    if out is None:
        out = (y.new_empty((batch, groups, 2 * symbols), dtype=real), y.new_empty((batch, groups, symbols), dtype=real))
    f, d = out
    for name, t, n in (("out[0]", f, 2 * symbols), ("out[1]", d, symbols)):
        if t.shape != (batch, groups, n) or t.dtype != real or t.device != y.device or not t.is_contiguous():
            raise ValueError(f"{_NAME}: {name} must be contiguous {real} {(batch, groups, n)}, got {tuple(t.shape)}")
    if y.numel() == 0:
        return f, d
    value, cell = 0.0, (d, 0, 0, 0)
    is_tensor = not isinstance(noise_var, (int, float))
    if isinstance(noise_var, (int, float)):
        value = float(noise_var)
    else:
        cell = (
            noise_var
            if isinstance(noise_var, tuple)
            else as_level(noise_var, device=y.device, batch=batch, groups=groups)
        )
    level, _, noise_b, noise_g = cell
    shape = tiling(symbols, 1, _NAME, d)
    rows = batch * groups
    with on(y.device):
        kernel[(-(-rows // shape.rows) * shape.chunks,)](
            f, d, torch.view_as_real(y.contiguous()), torch.view_as_real(h), d if flag is None else flag,
            level, noise_b, noise_g, value, *h.stride(), shape.chunks, rows, groups, symbols // shape.vec,
            TENSOR=is_tensor, DENSE=h.is_contiguous(), FLAG=flag is not None, QUADS=shape.quads, ROWS=shape.rows,
            VEC=shape.vec, num_warps=shape.warps,
        )  # fmt: skip
    return f, d
