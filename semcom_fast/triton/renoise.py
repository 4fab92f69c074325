"""An estimate carried to several diffusion steps: the Triton kernel of :func:`semcom_fast.renoise`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import check_flag, on, seed_arguments, step_argument, tiling
from ._vb import STREAM, check_sizes, like_state, real_view, table
from .philox import counter_word, flag_rows, key, normals, over_lanes, tile

_NAME = "renoise"


@triton.jit
def drawn(given, offset, mask, quad, step, item, k0, k1, like, EXPLICIT: tl.constexpr):
    """Reals whose pairs are the complex draws times sqrt(2), or the given noise, which holds complex draws themselves."""
    if EXPLICIT:
        out = tl.load(given + offset, mask=mask, other=0.0)
    else:
        out = normals(quad, step, item, STREAM, k0, k1, like.dtype.element_ty == tl.float64)
    return out


@triton.jit(do_not_specialize=["draws", "seed", "seed_high", "first_item", "chunks", "rows", "length"])
def kernel(
    out, h, steps, alpha_bar, noise, flag, draws, seed, seed_high, first_item, chunks, rows, length,
    EXPLICIT: tl.constexpr, FLAG: tl.constexpr, SEED_TENSOR: tl.constexpr, ITEM_TENSOR: tl.constexpr,
    QUADS: tl.constexpr, ROWS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    real = h.dtype.element_ty
    row, _, quad, offset, mask = tile(chunks, rows, 1, length, QUADS, ROWS, VEC)
    b = row // draws
    place = row - b * draws
    source = offset + over_lanes((b - row).to(tl.int64) * (length * VEC), ROWS)
    state = tl.load(h + source, mask=mask, other=0.0)
    kept = tl.load(alpha_bar + place)
    step = tl.load(steps + place).to(tl.uint32)
    k0, k1 = key(seed, seed_high, SEED_TENSOR)
    item = b.to(tl.uint32) + counter_word(first_item, ITEM_TENSOR)
    z = drawn(noise, offset, mask, quad, step, item, k0, k1, h, EXPLICIT)
    share = (1.0 - kept) if EXPLICIT else 0.5 * (1.0 - kept)
    keep, add = tl.sqrt(kept).to(real), tl.sqrt(share).to(real)
    value = tl.fma(over_lanes(keep, ROWS), state, over_lanes(add, ROWS) * z)
    tl.store(out + offset, value, mask=mask)
    if FLAG:
        flag_rows(flag, b, value, mask, QUADS * ROWS)


def run(
    h: Tensor,
    steps: Tensor,
    alpha_bar: Tensor,
    seed: int | Tensor | None = None,
    first_item: int | Tensor = 0,
    noise: Tensor | None = None,
    *,
    flag: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """sqrt(alpha_bar_s) h + sqrt(1 - alpha_bar_s) eps_s for every step s: h [B,Nr,Nt] complex -> [B,S,Nr,Nt].

    steps int64 [S] and alpha_bar float64 [S] are tables on h's device, read by the kernel; coefficients are formed in
    float64 and rounded once. eps is `noise` [B,S,Nr,Nt], or CN(0, 1) of (seed, step, stream 8, item first_item + b),
    never stored. seed and first_item may be one-element integer tensors. `flag` as in `power_normalise.run`. `out`
    receives the result. Raises ValueError for shapes that do not agree, TypeError for a state that is not complex.
    """
    memory = real_view(_NAME, "h", h)
    check_flag(flag)
    if h.ndim != 3:
        raise ValueError(f"{_NAME}: need h [B,Nr,Nt], got {tuple(h.shape)}")
    if (noise is None) == (seed is None):
        raise ValueError(f"{_NAME}: give either noise or seed")
    draws = steps.shape[0]
    shape = (h.shape[0], draws, *h.shape[1:])
    steps = table(_NAME, "steps", steps, draws, torch.int64, h.device)
    alpha_bar = table(_NAME, "alpha_bar", alpha_bar, draws, torch.float64, h.device)
    for name, t in (("noise", noise), ("out", out)):
        if t is not None:
            like_state(_NAME, name, t, shape, h.dtype, h.device)
    if out is not None and (not out.is_contiguous() or out.is_conj() or out.is_neg()):
        raise ValueError(f"{_NAME}: out must be contiguous")
    result = h.new_empty(shape) if out is None else out
    if result.numel() == 0:
        return result
    check_sizes(h.shape[0] * draws, h.shape[1] * h.shape[2])
    cover, rows = tiling(2 * h.shape[1] * h.shape[2], 1, _NAME, memory), h.shape[0] * draws
    seed_low, seed_high, seed_cell = seed_arguments(seed, h.device)
    item, item_cell = step_argument(first_item, h.device, "first_item")
    with on(h.device):
        kernel[(-(-rows // cover.rows) * cover.chunks,)](
            torch.view_as_real(result), memory, steps, alpha_bar,
            memory if noise is None else real_view(_NAME, "noise", noise), steps if flag is None else flag, draws,
            seed_low, seed_high, item, cover.chunks, rows, 2 * h.shape[1] * h.shape[2] // cover.vec,
            EXPLICIT=noise is not None, FLAG=flag is not None, SEED_TENSOR=seed_cell, ITEM_TENSOR=item_cell,
            QUADS=cover.quads, ROWS=cover.rows, VEC=cover.vec, num_warps=cover.warps,
        )  # fmt: skip
    return result
