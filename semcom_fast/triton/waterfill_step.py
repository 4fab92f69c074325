"""The fused water-filling step: the Triton kernel of :func:`semcom_fast.waterfill_step`."""

import triton
import triton.language as tl
from torch import Tensor

from ._launch import check_flag, on, seed_arguments, step_argument
from ._waterfill import (
    advance,
    ddim,
    divide,
    draw,
    given_noise,
    number,
    on_tile,
    own_level,
    place,
    rounded,
    shrink,
    store_level,
    whole_quads,
)
from ._waterfill_args import (
    LevelLike,
    Levels,
    State,
    check_counter,
    check_level_out,
    check_state,
    check_table_noise,
    draw_mode,
    level_argument,
    noise_rows,
    results,
    table_argument,
    table_or_number,
)
from .philox import counter_word, flag_rows, key, over_lanes, tile


@triton.jit
def _load(pointer, offset, mask, REAL: tl.constexpr):
    return tl.load(pointer + offset, mask=mask, other=0.0).to(REAL)


@triton.jit(
    do_not_specialize=[
        "t_b", "s_b", "w_b", "ratio_b", "level_k", "w_k", "ratio_k", "last", "draws", "d_b", "seed", "seed_high", "step",
        "first_item", "chunks", "rows", "length",
    ],
)  # fmt: skip
def kernel(
    out, g, x0, uncond, prev, guided, f, d, noise, flag,
    beta_t, t_b, t_value: tl.float64, beta_s, s_b, s_value: tl.float64, guidance, w_b, w_value: tl.float64,
    ratio, ratio_b, ratio_value: tl.float64, counter, level_out, level_k, w_k, ratio_k, last, draws,
    noise_k: tl.int64,
    d_b, seed, seed_high, step, first_item, chunks, rows, length,
    T_TENSOR: tl.constexpr, S_TENSOR: tl.constexpr, W_TENSOR: tl.constexpr, RATIO_TENSOR: tl.constexpr,
    GUIDED: tl.constexpr, SECOND: tl.constexpr, KEEP: tl.constexpr, TABLE: tl.constexpr, LEVEL_OUT: tl.constexpr,
    MODE: tl.constexpr, KIND: tl.constexpr, FLAG: tl.constexpr, SEED_TENSOR: tl.constexpr, STEP_TENSOR: tl.constexpr,
    ITEM_TENSOR: tl.constexpr, QUADS: tl.constexpr, ROWS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    real = g.dtype.element_ty
    b, _, quad, offset, mask = tile(chunks, rows, 1, length, QUADS, ROWS, VEC)
    if TABLE:
        k, following = place(counter, last)
        beta_t += k * level_k
        beta_s += following * level_k
        if W_TENSOR:
            guidance += tl.minimum(k, last - 1) * w_k
        if RATIO_TENSOR:
            ratio += tl.minimum(k, last - 1) * ratio_k
        noise += tl.minimum(following, draws - 1) * noise_k
        count = following.to(tl.uint32)
    else:
        count = counter_word(step, STEP_TENSOR)
    # Every load is issued before the roots and divisions; only what the mask needs is waited for first.
    level = number(beta_s, s_value, s_b, b, S_TENSOR)
    high = rounded(number(beta_t, t_value, t_b, b, T_TENSOR), real)
    low = rounded(level, real)
    own = own_level(d, d_b, b, quad, offset, mask, length, KIND, ROWS, VEC)
    bar = tl.where(high == 0, float("-inf"), low).to(real)  # nothing waits where nothing is left to do
    own, waits, some = divide(own, bar, mask, KIND, ROWS)
    moves = whole_quads(mask & (waits == 0), KIND, VEC)
    needed = whole_quads(waits, KIND, VEC)
    used = mask if KEEP else moves
    state = tl.load(g + offset, mask=moves, other=0.0)
    x = _load(x0, offset, used, real)
    if GUIDED:
        other = _load(uncond, offset, used, real)
        w = number(guidance, w_value, w_b, b, W_TENSOR)
    if SECOND:
        before = _load(prev, offset, used, real)
        half = number(ratio, ratio_value, ratio_b, b, RATIO_TENSOR)
    still = _load(f, offset, needed, real)
    extra = given_noise(noise, offset, needed, still, MODE)
    k0, k1 = key(seed, seed_high, SEED_TENSOR)
    item = b.to(tl.uint32) + counter_word(first_item, ITEM_TENSOR)

    if LEVEL_OUT:
        store_level(level_out, b, level, chunks, rows, QUADS, ROWS)
    if SECOND:
        half = 0.5 / half
    a, c = ddim(high, low)  # while the loads are on their way
    if GUIDED:
        x = tl.fma(over_lanes(w.to(real), ROWS), x, over_lanes((1.0 - w).to(real), ROWS) * other)
    if KEEP:
        tl.store(guided + offset, x, mask=mask)
    if SECOND:
        share = on_tile(half.to(real), mask, ROWS)
        corrected = tl.fma(over_lanes((1.0 + half).to(real), ROWS), x, -share * before)
        x = tl.where(share == 0, x, corrected)  # an infinite ratio is the plain step, whatever x0_prev holds
    moved = tl.fma(over_lanes(a.to(real), ROWS), state, over_lanes(c.to(real), ROWS) * x)
    value = tl.where(on_tile(high.to(real), mask, ROWS) == 0, state, moved)
    if some:
        rest = over_lanes(tl.sqrt(1.0 - low).to(real), ROWS)
        keep, add = shrink(over_lanes(low.to(real), ROWS), rest, own)
        extra = draw(extra, quad, count, item, k0, k1, MODE)
        value = tl.where(waits, tl.fma(tl.sqrt(add), extra, keep * still), value)
    tl.store(out + offset, value, mask=mask)
    if FLAG:
        flag_rows(flag, b, value, mask, QUADS * ROWS)
    if TABLE:
        advance(counter, k)


_NAME = "waterfill_step"


def _launch(
    state: State, tensors: tuple[Tensor, ...], levels: list, tail: list, draws: tuple, like: Tensor, **switches: object
) -> None:
    """Both entries' launch: `levels` in kernel order, `tail` = counter, level_out, table strides, last, rows of noise."""
    noise, seed, step, first_item = draws
    shape = state.shape
    seed_low, seed_high, seed_cell = seed_arguments(seed, like.device)
    step_value, step_cell = step_argument(step, like.device)
    item, item_cell = step_argument(first_item, like.device, "first_item")
    flat = [v for level in levels for v in level[:3]]
    with on(like.device):
        kernel[(-(-len(like) // shape.rows) * shape.chunks,)](
            *tensors, *flat, *tail, state.d_stride, seed_low, seed_high, step_value, item, shape.chunks, len(like),
            state.length, T_TENSOR=levels[0].is_tensor, S_TENSOR=levels[1].is_tensor, W_TENSOR=levels[2].is_tensor,
            RATIO_TENSOR=levels[3].is_tensor, MODE=draw_mode(noise, seed), KIND=state.kind, SEED_TENSOR=seed_cell,
            STEP_TENSOR=step_cell, ITEM_TENSOR=item_cell, QUADS=shape.quads, ROWS=shape.rows, VEC=shape.vec,
            num_warps=shape.warps, **switches,
        )  # fmt: skip


def _both(pair: dict[str, object | None]) -> bool:
    """Whether an optional tensor is there; its level must come with it."""
    (tensor, value), (level, given) = pair.items()
    if (value is None) != (given is None):
        raise ValueError(f"{_NAME}: {tensor} and {level} belong together, got only one")
    return value is not None


def run(
    g: Tensor,
    x0: Tensor,
    f: Tensor,
    d: Tensor,
    beta_t: LevelLike,
    beta_s: LevelLike,
    x0_uncond: Tensor | None = None,
    guidance: LevelLike | None = None,
    x0_prev: Tensor | None = None,
    ratio: LevelLike | None = None,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    first_item: int | Tensor = 0,
    *,
    flag: Tensor | None = None,
    out: Tensor | None = None,
    x0_out: Tensor | None = None,
) -> Tensor:
    """One launch: the state at beta_s, ready for the network, from g at beta_t [B,N] and its x0; the public formula.

    g, f, noise float32 or float64; x0, x0_uncond, x0_prev bfloat16, float32 or the state's dtype; d as in
    `waterfill_inject.run`. Levels, guidance and ratio are numbers, 0-d or [B] tensors, or level tuples; an infinite
    ratio is the plain step. `out` may be g. `x0_out`, of the state's dtype, receives the guided x0 and may be x0_prev.
    Draws, cells and `flag` as in `waterfill_inject.run`. Raises ValueError for shapes that do not agree.
    """
    net = {"x0": x0, "x0_uncond": x0_uncond, "x0_prev": x0_prev}
    state = check_state(_NAME, ("g", g), {"f": f, "noise": noise}, d, net)
    check_flag(flag)
    guided = _both({"x0_uncond": x0_uncond, "guidance": guidance})
    second = _both({"x0_prev": x0_prev, "ratio": ratio})
    (result,) = results(_NAME, g, {"out": out})
    kept = result if x0_out is None else results(_NAME, g, {"x0_out": x0_out})[0]
    if g.numel() == 0:
        return result
    x0, f, g = x0.contiguous(), f.contiguous(), g.contiguous()
    levels = [level_argument(_NAME, "beta_t", beta_t, g), level_argument(_NAME, "beta_s", beta_s, g),
              level_argument(_NAME, "guidance", guidance, g), level_argument(_NAME, "ratio", ratio, g)]  # fmt: skip
    tensors = (
        result, g, x0, x0 if x0_uncond is None else x0_uncond.contiguous(),
        x0 if x0_prev is None else x0_prev.contiguous(), kept, f, state.d, g if noise is None else noise.contiguous(),
        g if flag is None else flag,
    )  # fmt: skip
    _launch(
        state, tensors, levels, [g, g, 0, 0, 0, 1, 1, 0], (noise, seed, step, first_item), g, GUIDED=guided,
        SECOND=second, KEEP=x0_out is not None, TABLE=False, LEVEL_OUT=False, FLAG=flag is not None,
    )  # fmt: skip
    return result


def run_table(
    g: Tensor,
    x0: Tensor,
    f: Tensor,
    d: Tensor,
    levels: Tensor,
    counter: Tensor,
    x0_uncond: Tensor | None = None,
    guidance: float | Tensor | None = None,
    x0_prev: Tensor | None = None,
    ratio: float | Tensor | None = None,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    first_item: int | Tensor = 0,
    *,
    flag: Tensor | None = None,
    x0_out: Tensor | None = None,
    level_out: Tensor | None = None,
) -> Tensor:
    """The step of a captured graph, one node: g in place from levels[k] to levels[k+1], k = counter[0], then k+1.

    levels [T+1], [T+1,1] or [T+1,B] float64 or float32; guidance and ratio are numbers or tables with at least T rows,
    read at k; noise [T,B,N] (T+1 rows unless the last level is 0), read at k+1, as is the Philox step. level_out [B]
    receives levels[k+1], what the network is told next. counter holds two int64 cells: k, and a ticket that is 0
    between launches. From k = T on g stays as it is. The rest as in `run`; what is not contiguous is copied by every
    replay, the tables excepted.
    """
    net = {"x0": x0, "x0_uncond": x0_uncond, "x0_prev": x0_prev}
    state = check_state(_NAME, ("g", g), {"f": f}, d, net)
    check_flag(flag)
    check_counter(_NAME, counter, g)
    check_level_out(_NAME, level_out, g)
    guided = _both({"x0_uncond": x0_uncond, "guidance": guidance})
    second = _both({"x0_prev": x0_prev, "ratio": ratio})
    results(_NAME, g, {"g": g, "x0_out": x0_out})
    last = levels.shape[0] - 1
    check_table_noise(_NAME, noise, g, last)
    if g.numel() == 0:
        return g
    table = table_argument(_NAME, "levels", levels, g, 2)
    level = Levels(table.tensor, table.stride, 0.0, True)
    w, w_k = table_or_number(_NAME, "guidance", guidance, g, last)
    r, ratio_k = table_or_number(_NAME, "ratio", ratio, g, last)
    tensors = (
        g, g, x0.contiguous(), x0 if x0_uncond is None else x0_uncond.contiguous(),
        x0 if x0_prev is None else x0_prev.contiguous(), g if x0_out is None else x0_out, f.contiguous(), state.d,
        g if noise is None else noise, g if flag is None else flag,
    )  # fmt: skip
    told = g if level_out is None else level_out
    tail = [counter, told, table.stride_k, w_k, ratio_k, last, *noise_rows(noise)]
    _launch(
        state, tensors, [level, level, w, r], tail,
        (noise, seed, 0, first_item), g, GUIDED=guided, SECOND=second, KEEP=x0_out is not None, TABLE=True,
        LEVEL_OUT=level_out is not None, FLAG=flag is not None,
    )  # fmt: skip
    return g
