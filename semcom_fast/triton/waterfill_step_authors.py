"""The update of the authors' published code: the Triton kernels of :func:`semcom_fast.waterfill_step_authors`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import _LONGEST, Tiling, check_flag, on, seed_arguments, step_argument
from ._tuned import Choice, choose, size_class
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
)
from .philox import counter_word, flag_rows, key, tile

# Quads of one program, one per thread: rows up to this size are scaled in the same launch. float64 needs the registers.
_LARGEST = {torch.float32: 1024, torch.float64: 512}
_PARTS = 256  # partial sums a scaling program reads at once


@triton.jit
def _own_ddim(own, low, root_low, root_rest):
    """A and B of the step from an element's own level down to `low`, in the state's dtype; B without cancellation.

    B = sqrt(1-low) - sqrt(low/own) sqrt(1-own) = (own - low)/(sqrt(own) (sqrt(1-low) sqrt(own) + sqrt(low (1-own)))).
    """
    start = tl.sqrt(own)
    c = (own - low) / (start * tl.fma(root_rest, start, root_low * tl.sqrt(1.0 - own)))
    a = root_low / start
    same = own == low
    end = tl.broadcast_to(low, own.shape) == 0  # also of a noise-free element: the limit of nearly noise-free ones
    return tl.where(end, 0.0, tl.where(same, 1.0, a)), tl.where(end, 1.0, tl.where(same, 0.0, c))


@triton.jit
def _finish(value, total, count, REAL: tl.constexpr):
    """The row at unit root mean square, by a factor in two parts as in csrc/common/power_scale.hpp."""
    norm = tl.sqrt(total)
    factor = tl.where(norm <= 1.7976931348623157e308, tl.sqrt(count) / norm, float("nan"))
    first = tl.minimum(tl.maximum(factor, 2.0**-100), 2.0**100)
    return value * first.to(REAL) * (factor / first).to(REAL)


@triton.jit(
    do_not_specialize=[
        "t_b", "s_b", "level_k", "last", "draws", "d_b", "seed", "seed_high", "step", "first_item",
        "chunks", "rows", "length",
    ],
)  # fmt: skip
def kernel(
    new_f, new_g, f, g, x0, d, noise, partial, flag,
    beta_t, t_b, t_value: tl.float64, beta_s, s_b, s_value: tl.float64, counter, level_out, level_k, last, draws,
    noise_k: tl.int64, d_b, seed, seed_high, step, first_item, chunks, rows, length,
    T_TENSOR: tl.constexpr, S_TENSOR: tl.constexpr, OWN: tl.constexpr, AMPLITUDE: tl.constexpr, RENORM: tl.constexpr,
    TABLE: tl.constexpr, LEVEL_OUT: tl.constexpr, MODE: tl.constexpr, KIND: tl.constexpr, FLAG: tl.constexpr,
    SEED_TENSOR: tl.constexpr, STEP_TENSOR: tl.constexpr, ITEM_TENSOR: tl.constexpr, QUADS: tl.constexpr,
    VEC: tl.constexpr,
):  # fmt: skip
    real = f.dtype.element_ty
    b, _, quad, offset, mask = tile(chunks, rows, 1, length, QUADS, 1, VEC)
    if TABLE:
        k, following = place(counter, last)
        beta_t += k * level_k
        beta_s += following * level_k
        noise += tl.minimum(following, draws - 1) * noise_k
        count = following.to(tl.uint32)
    else:
        count = counter_word(step, STEP_TENSOR)
    level = number(beta_s, s_value, s_b, b, S_TENSOR)
    high = rounded(number(beta_t, t_value, t_b, b, T_TENSOR), real)
    low = rounded(level, real)
    bar = low.to(real)
    state = tl.load(f + offset, mask=mask, other=0.0)
    own = own_level(d, d_b, b, quad, offset, mask, length, KIND, 1, VEC)
    own = tl.where(own > high.to(real), high.to(real), own)  # keeps a NaN, unlike a minimum
    own, waits, some = divide(own, bar, mask, KIND, 1)
    moves = mask & (waits == 0)
    if TABLE:
        moves = moves & (on_tile((k < last).to(tl.int32), mask, 1) != 0)  # past the last level f stays
    read = whole_quads(moves, KIND, VEC)
    x = tl.load(x0 + offset, mask=read, other=0.0).to(real)
    origin = state
    if not OWN:
        origin = tl.load(g + offset, mask=read, other=0.0)
    extra = given_noise(noise, offset, whole_quads(waits, KIND, VEC), state, MODE)
    if LEVEL_OUT:
        store_level(level_out, b, level, chunks, rows, QUADS, 1)
    root_low = tl.sqrt(low).to(real)
    root_rest = tl.sqrt(1.0 - low).to(real)
    if OWN:
        a, c = _own_ddim(own, bar, root_low, root_rest)
    else:
        wide_a, wide_c = ddim(high, low)
        a = tl.where(low == 0, 0.0, wide_a).to(real)
        c = tl.where(low == 0, 1.0, wide_c).to(real)
    state = tl.where(moves, tl.fma(a, origin, c * x), state)
    tl.store(new_f + offset, state, mask=mask)
    value = state
    k0, k1 = key(seed, seed_high, SEED_TENSOR)
    item = b.to(tl.uint32) + counter_word(first_item, ITEM_TENSOR)
    if some:
        keep, add = shrink(bar, root_rest, own)
        spread = tl.sqrt(add)
        if AMPLITUDE:  # sqrt(low) - sqrt(r own), without cancellation
            spread = add / tl.fma(keep, tl.sqrt(own), root_low)
        extra = draw(extra, quad, count, item, k0, k1, MODE)
        value = tl.where(waits, tl.fma(spread, extra, keep * state), value)
    if RENORM > 0:
        wide = tl.where(mask, value, 0.0).to(tl.float64)
        total = tl.sum(tl.sum(wide * wide, axis=1), axis=0)
        if RENORM == 1:
            value = _finish(value, total, (length * VEC).to(tl.float64), real)
        else:
            tl.store(partial + tl.program_id(0), total)
    tl.store(new_g + offset, value, mask=mask)
    if FLAG:
        flag_rows(flag, b, value, mask, QUADS)
    if TABLE:
        advance(counter, k)


@triton.jit(do_not_specialize=["chunks", "length"])
def scale_kernel(
    g, partial, flag, chunks, length, FLAG: tl.constexpr, PARTS: tl.constexpr, QUADS: tl.constexpr, VEC: tl.constexpr
):
    """Scale one chunk of a row by the root mean square of the whole row, whose partial sums are added in one order."""
    real = g.dtype.element_ty
    b, _, _, offset, mask = tile(chunks, 1, 1, length, QUADS, 1, VEC)
    value = tl.load(g + offset, mask=mask, other=0.0)
    part = tl.arange(0, PARTS)
    sums = tl.zeros((PARTS,), tl.float64)
    for start in range(0, chunks, PARTS):
        at = start + part
        sums += tl.load(partial + (b.to(tl.int64) * chunks + at), mask=at < chunks, other=0.0)
    value = _finish(value, tl.sum(sums, axis=0), (length * VEC).to(tl.float64), real)
    tl.store(g + offset, value, mask=mask)
    if FLAG:
        flag_rows(flag, b, value, mask, QUADS)


_NAME = "waterfill_step_authors"
TOPUPS, BASES = ("amplitude", "variance"), ("own", "common")


def _row_tiling(length: int, vec: int, like: Tensor) -> Tiling:
    """One program per row where it fits, else chunks of 256 quads; depends on the row alone, as does the sum's order."""
    quads = -(-length // 4)
    whole = quads <= _LARGEST[like.dtype]
    block = triton.next_power_of_2(max(quads, 32)) if whole else 256
    default = Choice(0 if whole else block, block // 32)
    choice = choose(_NAME, size_class(quads, _LONGEST), like.dtype, like.device, default)
    block = choice.block or block
    return Tiling(vec, block, 1, -(-quads // block), choice.num_warps)


def _options(topup: str, base: str) -> None:
    for name, value, known in (("topup", topup, TOPUPS), ("base", base, BASES)):
        if value not in known:
            raise ValueError(f"{_NAME}: {name} must be one of {known}, got {value!r}")


def _launch(
    state: State, new: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor, Tensor, Tensor | None], levels: list[Levels],
    tail: list, draws: tuple, options: tuple[str, bool, str], flag: Tensor | None, **switches: bool,
) -> None:  # fmt: skip
    """Both entries' launches: `tail` = counter, level_out, level_k, last, rows of noise."""
    new_f, new_g = new
    f, g, x0, noise = old
    seed, step, first_item = draws
    topup, renorm, base = options
    shape = _row_tiling(f.shape[1], state.shape.vec, f)
    grid = (len(f) * shape.chunks,)
    mode = 0 if not renorm else 1 if shape.chunks == 1 else 2
    partial = torch.empty(grid, dtype=torch.float64, device=f.device) if mode == 2 else f
    seed_low, seed_high, seed_cell = seed_arguments(seed, f.device)
    step_value, step_cell = step_argument(step, f.device)
    item, item_cell = step_argument(first_item, f.device, "first_item")
    first_flag = flag is not None and mode != 2
    flag_cell = f if flag is None else flag
    with on(f.device):
        kernel[grid](
            new_f, new_g, f, g, x0, state.d, f if noise is None else noise, partial, flag_cell, *levels[0][:3],
            *levels[1][:3], *tail, state.d_stride, seed_low, seed_high, step_value, item, shape.chunks, len(f),
            state.length, T_TENSOR=levels[0].is_tensor, S_TENSOR=levels[1].is_tensor, OWN=base == "own",
            AMPLITUDE=topup == "amplitude", RENORM=mode, MODE=draw_mode(noise, seed), KIND=state.kind, FLAG=first_flag,
            SEED_TENSOR=seed_cell, STEP_TENSOR=step_cell, ITEM_TENSOR=item_cell, QUADS=shape.quads, VEC=shape.vec,
            num_warps=shape.warps, **switches,
        )  # fmt: skip
        if mode == 2:
            parts = min(triton.next_power_of_2(shape.chunks), _PARTS)
            scale_kernel[grid](
                new_g, partial, flag_cell, shape.chunks, state.length, FLAG=flag is not None, PARTS=parts,
                QUADS=shape.quads, VEC=shape.vec, num_warps=shape.warps,
            )  # fmt: skip


def run(
    f: Tensor,
    g: Tensor,
    d: Tensor,
    x0: Tensor,
    beta_t: LevelLike,
    beta_s: LevelLike,
    topup: str = "amplitude",
    renorm: bool = True,
    base: str = "own",
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    first_item: int | Tensor = 0,
    *,
    flag: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(f, g) at beta_s from (f, g) at beta_t [B,N]: one launch for rows of up to 4,096 reals, else two with `renorm`.

    f, g, noise float32 or float64; x0 bfloat16, float32 or the state's dtype; d as in `waterfill_inject.run`, the
    channel's level. The sum of squares of a row is float64 in a fixed order. `out` takes (f, g) in place; it may alias
    them. Levels, draws, cells and `flag` (of the new g) as in `waterfill_inject.run`.
    Raises ValueError for shapes that do not agree and for unknown options.
    """
    _options(topup, base)
    state = check_state(_NAME, ("f", f), {"g": g, "noise": noise}, d, {"x0": x0})
    check_flag(flag)
    new_f, new_g = results(
        _NAME, f, {"out[0]": None if out is None else out[0], "out[1]": None if out is None else out[1]}
    )
    if f.numel() == 0:
        return new_f, new_g
    levels = [level_argument(_NAME, "beta_t", beta_t, f), level_argument(_NAME, "beta_s", beta_s, f)]
    f, g, x0 = f.contiguous(), g.contiguous(), x0.contiguous()
    old = (f, g, x0, None if noise is None else noise.contiguous())
    _launch(
        state, (new_f, new_g), old, levels, [f, f, 0, 1, 1, 0], (seed, step, first_item), (topup, renorm, base), flag,
        TABLE=False, LEVEL_OUT=False,
    )  # fmt: skip
    return new_f, new_g


def run_table(
    f: Tensor,
    g: Tensor,
    d: Tensor,
    x0: Tensor,
    levels: Tensor,
    counter: Tensor,
    topup: str = "amplitude",
    renorm: bool = True,
    base: str = "own",
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    first_item: int | Tensor = 0,
    *,
    flag: Tensor | None = None,
    level_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The step of a captured graph: f and g in place from levels[k] to levels[k+1], k = counter[0], which becomes k+1.

    One node for rows of up to 4,096 reals, else two with `renorm`. levels, counter, noise and level_out as in
    `waterfill_step.run_table`; the rest as in `run`. From k = T on f stays as it is.
    """
    _options(topup, base)
    state = check_state(_NAME, ("f", f), {"g": g}, d, {"x0": x0})
    check_flag(flag)
    check_counter(_NAME, counter, f)
    check_level_out(_NAME, level_out, f)
    results(_NAME, f, {"f": f, "g": g})
    check_table_noise(_NAME, noise, f, levels.shape[0] - 1)
    if f.numel() == 0:
        return f, g
    table = table_argument(_NAME, "levels", levels, f, 2)
    level = Levels(table.tensor, table.stride, 0.0, True)
    tail = [counter, f if level_out is None else level_out, table.stride_k, levels.shape[0] - 1, *noise_rows(noise)]
    _launch(
        state, (f, g), (f, g, x0.contiguous(), noise), [level, level],
        tail, (seed, 0, first_item), (topup, renorm, base), flag,
        TABLE=True, LEVEL_OUT=level_out is not None,
    )  # fmt: skip
    return f, g
