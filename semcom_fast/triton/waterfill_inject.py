"""The first top-up of a water-filling run: the Triton kernel of :func:`semcom_fast.waterfill_inject`."""

import triton
import triton.language as tl
from torch import Tensor

from ._launch import check_flag, on, seed_arguments, step_argument
from ._waterfill import divide, draw, given_noise, number, own_level, rounded, shrink, whole_quads
from ._waterfill_args import LevelLike, check_state, draw_mode, level_argument, results
from .philox import counter_word, flag_rows, key, over_lanes, tile


@triton.jit(
    do_not_specialize=[
        "beta_b", "d_b", "seed", "seed_high", "step", "first_item", "chunks", "rows", "length",
    ],
)  # fmt: skip
def kernel(
    out, f, d, noise, flag, beta, beta_b, beta_value: tl.float64, d_b, seed, seed_high, step, first_item,
    chunks, rows, length, TENSOR: tl.constexpr, MODE: tl.constexpr, KIND: tl.constexpr, FLAG: tl.constexpr,
    SEED_TENSOR: tl.constexpr, STEP_TENSOR: tl.constexpr, ITEM_TENSOR: tl.constexpr, QUADS: tl.constexpr,
    ROWS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    real = f.dtype.element_ty
    b, _, quad, offset, mask = tile(chunks, rows, 1, length, QUADS, ROWS, VEC)
    low = rounded(number(beta, beta_value, beta_b, b, TENSOR), real)
    own = own_level(d, d_b, b, quad, offset, mask, length, KIND, ROWS, VEC)
    value = tl.load(f + offset, mask=mask, other=0.0)
    bar = low.to(real)
    own, waits, some = divide(own, bar, mask, KIND, ROWS)
    extra = given_noise(noise, offset, whole_quads(waits, KIND, VEC), value, MODE)
    k0, k1 = key(seed, seed_high, SEED_TENSOR)
    count = counter_word(step, STEP_TENSOR)
    item = b.to(tl.uint32) + counter_word(first_item, ITEM_TENSOR)
    if some:
        rest = over_lanes(tl.sqrt(1.0 - low).to(real), ROWS)
        keep, add = shrink(over_lanes(bar, ROWS), rest, own)
        extra = draw(extra, quad, count, item, k0, k1, MODE)
        value = tl.where(waits, tl.fma(tl.sqrt(add), extra, keep * value), value)
    tl.store(out + offset, value, mask=mask)
    if FLAG:
        flag_rows(flag, b, value, mask, QUADS * ROWS)


_NAME = "waterfill_inject"


def run(
    f: Tensor,
    d: Tensor,
    beta_bar: LevelLike,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    first_item: int | Tensor = 0,
    *,
    flag: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One launch: g [B,N], every element of f [B,N] with d < beta_bar brought to that level by equation (23).

    f, noise: float32 or float64; d of the same dtype, [B,N/2] (real i reads i mod N/2), [B,N], or [B,1] and views with
    stride 0 along the last axis (a level per item, no traffic). beta_bar: a number, a 0-d or [B] tensor, or a level
    tuple. `noise` None draws stream 6 with `seed`; without both the draw is zero. seed, step and first_item may be
    integer cells on the device. `flag`, an int32 or int64 cell the caller set to INT32_MAX, is lowered to the smallest
    non-finite item. `out` may be f. Raises ValueError for shapes that do not agree.
    """
    state = check_state(_NAME, ("f", f), {"noise": noise}, d, {})
    check_flag(flag)
    (g,) = results(_NAME, f, {"out": out})
    if f.numel() == 0:
        return g
    level = level_argument(_NAME, "beta_bar", beta_bar, f)
    shape = state.shape
    seed_low, seed_high, seed_cell = seed_arguments(seed, f.device)
    step_value, step_cell = step_argument(step, f.device)
    item, item_cell = step_argument(first_item, f.device, "first_item")
    with on(f.device):
        kernel[(-(-len(f) // shape.rows) * shape.chunks,)](
            g, f.contiguous(), state.d, f if noise is None else noise.contiguous(), f if flag is None else flag,
            level.tensor, level.stride, level.value, state.d_stride, seed_low, seed_high, step_value,
            item, shape.chunks, len(f), state.length, TENSOR=level.is_tensor,
            MODE=draw_mode(noise, seed), KIND=state.kind, FLAG=flag is not None, SEED_TENSOR=seed_cell,
            STEP_TENSOR=step_cell, ITEM_TENSOR=item_cell, QUADS=shape.quads, ROWS=shape.rows, VEC=shape.vec,
            num_warps=shape.warps,
        )  # fmt: skip
    return g
