"""Channels as sums over rays of steering vectors formed in the kernel: the kernel of :func:`semcom_fast.cdl_channels`."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import check_flag, on
from ._tuned import Choice, choose, size_class
from ._vb import add_product, check_sizes, interleave, like_state, real_view
from .philox import turn

_NAME = "cdl_channels"
_RAYS = 32  # taken at a time


@triton.jit(do_not_specialize=["rays", "rows", "row_tiles", "column_tiles", "units"])
def kernel(
    out, gains, rx, tx, flag, rays, rows, row_tiles, column_tiles, units, FLAG: tl.constexpr, M: tl.constexpr,
    N: tl.constexpr, RAYS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    real = rx.dtype.element_ty
    pid = tl.program_id(0)
    b = pid // (row_tiles * column_tiles)
    pid -= b * row_tiles * column_tiles
    first = (pid % column_tiles) * N
    row = (pid // column_tiles) * M + tl.arange(0, M)
    columns = units * VEC // 2
    wide = b.to(tl.int64) * rays
    # element positions from the middle of the arrays, exact: they are halves of integers
    i = (row.to(real) - 0.5 * (rows - 1).to(real))[:, None]
    j = ((first + tl.arange(0, N)).to(real) - 0.5 * (columns - 1).to(real))[None, :]
    acc_re, acc_im = tl.zeros((M, N), real), tl.zeros((M, N), real)
    for r0 in range(0, rays, RAYS):
        ray = r0 + tl.arange(0, RAYS)
        there = ray < rays
        g_re = tl.load(gains + 2 * (wide + ray), mask=there, other=0.0)[None, :]
        g_im = tl.load(gains + 2 * (wide + ray) + 1, mask=there, other=0.0)[None, :]
        c, s = turn(tl.load(rx + wide + ray, mask=there, other=0.0)[None, :] + tl.zeros((M, RAYS), real), i)
        a_re, a_im = g_re * c - g_im * s, g_re * s + g_im * c
        b_re, b_im = turn(tl.load(tx + wide + ray, mask=there, other=0.0)[:, None] + tl.zeros((RAYS, N), real), j)
        acc_re, acc_im = add_product(acc_re, acc_im, a_re, a_im, b_re, b_im)
    value = interleave(acc_re, acc_im, M, N)
    column = 2 * first + tl.arange(0, 2 * N)[None, :]
    mask = (row < rows)[:, None] & (column < units * VEC)
    out += b.to(tl.int64) * rows * (units * VEC)
    tl.store(out + (row[:, None] * (units * VEC) + column), value, mask=mask)
    if FLAG:
        wrong = ((tl.abs(value) < float("inf")) == 0) & mask
        if tl.max(tl.max(wrong.to(tl.int32), axis=1), axis=0) > 0:
            tl.atomic_min(flag, b.to(flag.dtype.element_ty), sem="relaxed")


def run(
    gains: Tensor,
    rx: Tensor,
    tx: Tensor,
    nr: int,
    nt: int,
    *,
    flag: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """H [B,Nr,Nt], H_ij = sum_r gains_r exp(j 2 pi (rx_r (i-(Nr-1)/2) + tx_r (j-(Nt-1)/2))), of R rays per channel.

    gains [B,R] complex; rx, tx [B,R] of its real dtype, in cycles per element (turns). Phases are reduced to an eighth
    of a turn before they are rounded. `flag`, an int32 or int64 cell, is lowered to the smallest channel that is not
    finite. `out` receives the result. Raises ValueError for shapes that do not agree.
    """
    memory = real_view(_NAME, "gains", gains)
    check_flag(flag)
    if gains.ndim != 2 or nr < 0 or nt < 0:
        raise ValueError(f"{_NAME}: need gains [B,R] and sizes, got {tuple(gains.shape)}, nr {nr}, nt {nt}")
    for name, t in (("rx", rx), ("tx", tx)):
        like_state(_NAME, name, t, tuple(gains.shape), memory.dtype, gains.device)
    batch, rays = gains.shape
    result = gains.new_empty(batch, nr, nt) if out is None else out
    like_state(_NAME, "out", result, (batch, nr, nt), gains.dtype, gains.device)
    if not result.is_contiguous() or result.is_conj() or result.is_neg():
        raise ValueError(f"{_NAME}: out must be contiguous")
    if result.numel() == 0:
        return result
    check_sizes(batch, nr * nt)
    rows = min(16, triton.next_power_of_2(nr))
    columns = max(16, min(64, triton.next_power_of_2(nt)))
    row_tiles, column_tiles, vec = -(-nr // rows), -(-nt // columns), math.gcd(2 * nt, 4)
    default = Choice(_RAYS, 8 if columns > 32 else 4)
    choice = choose(_NAME, size_class(nt, 64), memory.dtype, memory.device, default)
    turns = (t.resolve_neg().contiguous() for t in (rx, tx))
    with on(gains.device):
        kernel[(batch * row_tiles * column_tiles,)](
            torch.view_as_real(result), memory, *turns, memory if flag is None else flag,
            rays, nr, row_tiles, column_tiles, 2 * nt // vec, FLAG=flag is not None, M=rows, N=columns, RAYS=choice.block,
            VEC=vec, **choice.options(),
        )  # fmt: skip
    return result
