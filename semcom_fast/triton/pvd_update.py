"""The fused inner iteration of parallel variational diffusion: the Triton kernel of :func:`semcom_fast.pvd_update`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import (
    Cell,
    LevelFields,
    PvdLevels,
    as_level,
    check_flag,
    fits_32_bits,
    on,
    real_dtype,
    seed_arguments,
    step_argument,
    tiling,
    word,
)
from ._pvd_algebra import between, differences, pull
from ._pvd_table import Prior, PvdTable, clamped, row_of, tell_level
from ._waterfill import advance
from .philox import counter_word, flag_rows, key, normals, over_lanes, tile

NO_DRAW, DRAW, EXPLICIT = 0, 1, 2


@triton.jit
def _level(pointer, stride_b, stride_g, b, g):
    """One level per row, in float64."""
    return tl.load(pointer + b.to(tl.int64) * stride_b + g.to(tl.int64) * stride_g).to(tl.float64)


@triton.jit
def _share(of_score, weight, TABLE: tl.constexpr):
    """of_score / score_var; captured steps are given the inverse."""
    if TABLE:
        out = of_score * weight
    else:
        out = of_score / weight
    return out


@triton.jit
def _spread(root, MODE: tl.constexpr, COMPLEX: tl.constexpr):
    """Standard deviation of each drawn real: a complex entry splits its variance between its two reals."""
    if MODE == 1 and COMPLEX:
        root = root * 0.70710678118654752
    return root


@triton.jit
def _emit(
    new_sample, noise, flag, at, mask, mean, spread, quad, b, step, item, stream, k0, k1,
    MODE: tl.constexpr, FLAG: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Store mean + spread * normal (Philox, explicit or none) as the sample at offset `at`."""
    if MODE == 1:
        value = tl.fma(spread, normals(quad, step, item, stream, k0, k1, mean.dtype == tl.float64), mean)
    elif MODE == 2:
        value = tl.fma(spread, tl.load(noise + at, mask=mask), mean)
    else:
        value = mean
    tl.store(new_sample + at, value, mask=mask)
    if FLAG:
        flag_rows(flag, b, value, mask, SIZE)


@triton.jit(
    do_not_specialize=[
        "seed", "seed_high", "step", "stream", "first_item", "chunks", "rows", "groups", "length", "samples",
        "sample_stride", "sigma_b", "sigma_g", "above_b", "above_g", "zeta_b", "zeta_g", "var_l", "var_b", "var_g",
        "next_b", "next_g", "prior_k", "prior_g", "levels", "last",
    ],
)  # fmt: skip
def kernel(
    mean, anchor, sample, denoised, score, noise, new_mean, new_sample, flag,
    sigma, sigma_b, sigma_g, above, above_b, above_g, zeta, zeta_b, zeta_g,
    score_var, var_l, var_b, var_g, next_var, next_b, next_g, prior, prior_k, prior_g, counter, level_out, levels, last,
    seed, seed_high, step, stream, first_item, chunks, rows, groups, length, samples, sample_stride: tl.int64,
    MODE: tl.constexpr, DEFAULT_NEXT: tl.constexpr, MANY: tl.constexpr, COMPLEX: tl.constexpr, FLAG: tl.constexpr,
    SEED_TENSOR: tl.constexpr, STEP_TENSOR: tl.constexpr, ITEM_TENSOR: tl.constexpr, TABLE: tl.constexpr,
    PROBE: tl.constexpr, WHITE: tl.constexpr, LEVELS: tl.constexpr, QUADS: tl.constexpr, ROWS: tl.constexpr,
    VEC: tl.constexpr,
):  # fmt: skip
    real = mean.dtype.element_ty
    b, g, quad, offset, mask = tile(chunks, rows, groups, length, QUADS, ROWS, VEC)
    table = sigma
    if TABLE:  # `sigma` is the table; a probe's next_var is not in it, and its draw is of this iteration
        k, sigma, _ = row_of(table, counter, last, levels)
        above = sigma + levels
        count = (k + (0 if PROBE else 1)).to(tl.uint32)
    else:
        count = counter_word(step, STEP_TENSOR)
    # Every load is issued before the divisions, whose rare slow path is a branch that loads do not cross.
    s = _level(sigma, sigma_b, sigma_g, b, g)
    top = _level(above, above_b, above_g, b, g)
    if PROBE:  # nothing moves
        step_size, weight = 0.0 * s, s
    else:
        step_size = _level(zeta, zeta_b, zeta_g, b, g)
        weight = _level(score_var, var_b, var_g, b, g)
    variance = weight
    if not DEFAULT_NEXT:
        variance = _level(next_var, next_b, next_g, b, g)
    if TABLE:
        delta = _level(sigma + 4 * levels, 0, sigma_g, b, g)
        ratio = _level(sigma + 5 * levels, 0, sigma_g, b, g)
        root = _level(sigma + 6 * levels, 0, sigma_g, b, g)
    if WHITE:
        shrink = _level(prior + k * prior_k, 0, prior_g, b, g)
    a = tl.load(anchor + offset, mask=mask)
    x = tl.load(sample + offset, mask=mask)
    if not WHITE:
        d = tl.load(denoised + offset, mask=mask)
    grad = tl.load(score + offset, mask=mask)
    old = tl.load(mean + offset, mask=mask)
    # Coefficients once per row, in float64; rounded once to the state's dtype.
    s2 = s * s
    if not TABLE:
        delta, ratio = differences(s2, top)
    rho = over_lanes(ratio.to(real), ROWS)
    of_score = delta
    if WHITE:  # an i.i.d. Gaussian channel: w denoises the sample, and pulls the score back
        of_score = delta * shrink
        kept = over_lanes(shrink.to(real), ROWS)
        d = x * kept
    if DEFAULT_NEXT:
        variance = between(s2, top, delta)
    if PROBE:
        variance = clamped(variance, s)
    if PROBE or not TABLE:
        root = tl.sqrt(variance)
    spread = over_lanes(_spread(root, MODE, COMPLEX).to(real), ROWS)
    move = pull(a, x, d, grad, rho, over_lanes(_share(of_score, weight, TABLE).to(real), ROWS))
    if MANY:
        for n in range(1, samples):
            at = offset + n * (sample_stride * VEC)
            weight = _level(score_var + n * var_l, var_b, var_g, b, g)
            x = tl.load(sample + at, mask=mask)
            if WHITE:
                d = x * kept
            else:
                d = tl.load(denoised + at, mask=mask)
            grad = tl.load(score + at, mask=mask)
            move += pull(a, x, d, grad, rho, over_lanes(_share(of_score, weight, TABLE).to(real), ROWS))
        move = move / samples.to(real)
    new = tl.fma(over_lanes(step_size.to(real), ROWS), move, old)
    if not PROBE:
        tl.store(new_mean + offset, new, mask=mask)
    if TABLE and not PROBE:
        _, row, _ = row_of(table, counter, last, levels)  # again: registers are scarcer than cached loads
        if tl.load(row + 3 * levels) > 0:  # the means of a level condition the next one
            tl.store(anchor + offset, new, mask=mask)

    k0, k1 = key(seed, seed_high, SEED_TENSOR)
    item = b.to(tl.uint32) + counter_word(first_item, ITEM_TENSOR)
    lane = stream.to(tl.uint32)
    SIZE: tl.constexpr = QUADS * ROWS
    _emit(new_sample, noise, flag, offset, mask, new, spread, quad, b, count, item, lane, k0, k1, MODE, FLAG, SIZE)
    if MANY:
        for n in range(1, samples):
            at = offset + n * (sample_stride * VEC)
            lane += 16
            _emit(new_sample, noise, flag, at, mask, new, spread, quad, b, count, item, lane, k0, k1, MODE, FLAG, SIZE)
    if LEVELS > 0:  # the last launch of a captured step
        k, _, after = row_of(table, counter, last, levels)
        tell_level(level_out, after, levels, LEVELS)
        advance(counter, k)


def _check(mean: Tensor, anchor: Tensor, samples: dict[str, Tensor | None], out: tuple[Tensor, Tensor] | None) -> None:
    dtype = real_dtype("mean", mean)
    shape = samples["sample"].shape if samples["sample"] is not None else ()
    if mean.ndim != 3 or len(shape) != 4 or shape[1:] != mean.shape:
        given = f"{tuple(mean.shape)} and {tuple(shape)}"
        raise ValueError(f"pvd_update: need mean [B,G,E] and sample [L,B,G,E], got {given}")
    pairs: list[tuple[str, Tensor | None, tuple[int, ...]]] = [("anchor", anchor, mean.shape)]
    pairs += [(name, t, shape) for name, t in samples.items()]
    if out is not None:
        pairs += [("out[0]", out[0], mean.shape), ("out[1]", out[1], shape)]
        if not (out[0].is_contiguous() and out[1].is_contiguous()):
            raise ValueError("pvd_update: out must be contiguous")
    for name, t, need in pairs:
        if t is not None and (t.shape != need or t.dtype != dtype or t.device != mean.device):
            raise ValueError(
                f"pvd_update: {name} must be {dtype} {tuple(need)} on {mean.device}, "
                f"got {t.dtype} {tuple(t.shape)} on {t.device}"
            )
    fits_32_bits("the number of reals of one item", mean.shape[1] * mean.shape[2])
    fits_32_bits("the number of rows", mean.shape[0] * mean.shape[1])


def _level_arguments(levels: LevelFields, mode: int, device: torch.device) -> tuple[list[Tensor | int], bool]:
    """The kernel's level arguments in order, and whether next_var takes its default."""
    default = mode == NO_DRAW or levels.next_var is None
    args: list[Tensor | int] = []
    for name in ("sigma", "sigma_above", "zeta", "score_var", "next_var"):
        level = levels.sigma if name == "next_var" and default else getattr(levels, name)
        if isinstance(level, (int, float)):
            level = as_level(level, device=device, batch=1)
        tensor, stride_l, stride_b, stride_g = level
        args += [tensor, stride_b, stride_g] if name != "score_var" else [tensor, stride_l, stride_b, stride_g]
        if stride_l != 0 and name != "score_var":
            raise ValueError(f"pvd_update: {name} cannot vary over samples, only score_var can")
    return args, default


def _launch(
    states: tuple[Tensor, ...], noise: Tensor | None, flag: Tensor | None, level_args: list, tail: tuple, draws: tuple,
    **switches: object,
) -> None:  # fmt: skip
    """Every entry's launch: states mean to score and the two results, `tail` = prior to last, draws = seed to first_item."""
    mean, sample = states[0], states[2]
    count, batch, groups, entries = sample.shape
    shape = tiling(entries, groups, "pvd_update", mean)
    seed, step, stream, first_item = draws
    seed_low, seed_high, seed_cell = seed_arguments(seed, mean.device)
    step_value, step_cell = step_argument(step, mean.device)
    item, item_cell = step_argument(first_item, mean.device, "first_item")
    with on(mean.device):
        kernel[(-(-batch * groups // shape.rows) * shape.chunks,)](
            *states[:5], mean if noise is None else noise, *states[5:], mean if flag is None else flag, *level_args,
            *tail, seed_low, seed_high, step_value, word(stream), item, shape.chunks, batch * groups, groups,
            entries // shape.vec, count, sample.numel() // count // shape.vec, MANY=count > 1, FLAG=flag is not None,
            SEED_TENSOR=seed_cell, STEP_TENSOR=step_cell, ITEM_TENSOR=item_cell, QUADS=shape.quads, ROWS=shape.rows,
            VEC=shape.vec, num_warps=shape.warps, **switches,
        )  # fmt: skip


def run(
    mean: Tensor,
    anchor: Tensor,
    sample: Tensor,
    denoised: Tensor,
    score: Tensor,
    noise: Tensor | None,
    levels: LevelFields,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    stream: int = 0,
    first_item: int = 0,
    *,
    complex_draw: bool = False,
    flag: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """One launch: new_mean [B,G,E] and new_sample [L,B,G,E] of real views; the formula is the public function's.

    mean, anchor [B,G,E] and sample, denoised, score, noise [L,B,G,E] are float32 or float64 (complex states through
    `view_as_real`, E counting reals, with complex_draw=True: the drawn normals then carry sqrt(1/2)). `noise` None
    draws from Philox with `seed`; without both, or with next_var the number 0, new_sample is new_mean. seed and step
    may be integer cells on the device. `flag`, an int32 or int64 cell the caller set to INT32_MAX, is lowered to the
    smallest index of axis B (first_item not added) whose new sample is non-finite, which it is where the new mean is.
    `out` takes the results in place; it may alias mean and sample. Raises ValueError for shapes that do not agree.
    """
    _check(mean, anchor, {"sample": sample, "denoised": denoised, "score": score, "noise": noise}, out)
    check_flag(flag)
    new_mean, new_sample = out if out is not None else (mean.new_empty(mean.shape), sample.new_empty(sample.shape))
    if sample.numel() == 0:
        return new_mean.copy_(mean), new_sample
    mean, anchor, sample, denoised, score = (t.contiguous() for t in (mean, anchor, sample, denoised, score))
    still = (noise is None and seed is None) or (isinstance(levels.next_var, (int, float)) and levels.next_var == 0)
    mode = NO_DRAW if still else DRAW if noise is None else EXPLICIT
    level_args, default = _level_arguments(levels, mode, mean.device)
    _launch(
        (mean, anchor, sample, denoised, score, new_mean, new_sample), None if noise is None else noise.contiguous(),
        flag, level_args, (mean, 0, 0, mean, mean, 1, 0), (seed, step, stream, first_item), MODE=mode,
        DEFAULT_NEXT=default, COMPLEX=complex_draw, TABLE=False, PROBE=False, WHITE=False, LEVELS=0,
    )  # fmt: skip
    return new_mean, new_sample


def run_table(
    mean: Tensor,
    anchor: Tensor,
    sample: Tensor,
    denoised: Tensor | None,
    score: Tensor,
    zeta: Cell,
    per_score: Cell,
    table: PvdTable,
    *,
    prior: Prior | None = None,
    seed: int | Tensor | None,
    stream: int,
    first_item: int | Tensor = 0,
    complex_draw: bool = False,
    level_out: Tensor | None = None,
) -> None:
    """The update of a captured step, one node: mean and sample in place, levels of iteration k = counter[0].

    The draw is of Philox step k+1 (none without a seed); after a level's last iteration the anchor becomes the mean.
    per_score: 1/score_var, float64. prior: in place of `denoised`, the sample is denoised as an i.i.d. Gaussian channel
    and the score is that of the denoised channel. level_out: the last update of a step; it receives sigma of iteration
    k+1, and the counter moves on. All states are contiguous; seed and first_item may be cells on the device. The rest
    as in `run`.
    """
    many: dict[str, Tensor | None] = {"sample": sample, "denoised": denoised, "score": score}
    _check(mean, anchor, many, (mean, sample))
    table.check("pvd_update", mean, mean.shape[1])
    if (denoised is None) is not (prior is not None):
        raise ValueError("pvd_update: a captured update takes either denoised or prior")
    given = [("anchor", anchor), *many.items(), ("level_out", level_out)]
    for name, t in given:
        if t is not None and not t.is_contiguous():
            raise ValueError(f"pvd_update: {name} must be contiguous in a captured update")
    if sample.numel() == 0:
        return
    cell = (table.table, 0, 0, table.stride)
    mode = NO_DRAW if seed is None else DRAW
    level_args, _ = _level_arguments(PvdLevels(cell, cell, zeta, per_score, cell), mode, mean.device)
    told = mean if level_out is None else level_out
    weights = (mean, 0, 0) if prior is None else (prior.weights, prior.weights.stride(0), prior.stride)
    _launch(
        (mean, anchor, sample, sample if denoised is None else denoised, score, mean, sample), None, None, level_args,
        (*weights, table.counter, told, table.levels, table.last), (seed, 0, stream, first_item), MODE=mode,
        DEFAULT_NEXT=mode == NO_DRAW, COMPLEX=complex_draw, TABLE=True, PROBE=False, WHITE=prior is not None,
        LEVELS=0 if level_out is None else triton.next_power_of_2(table.levels),
    )  # fmt: skip


def run_probe_table(
    point: Tensor,
    variance: Cell,
    out: Tensor,
    table: PvdTable,
    *,
    seed: int | Tensor,
    stream: int,
    first_item: int | Tensor = 0,
) -> None:
    """out = point + sqrt(variance) times normals of Philox step k = counter[0]; contiguous [B,G,E].

    The variance is a denoiser's, over items and groups: it is brought into [0, sigma^2] of iteration k.
    """
    many = point.unsqueeze(0)
    _check(point, point, {"sample": many}, (point, out.unsqueeze(0)))
    table.check("pvd_update", point, point.shape[1])
    if out.numel() == 0:
        return
    cell = (table.table, 0, 0, table.stride)
    level_args, _ = _level_arguments(PvdLevels(cell, cell, cell, cell, variance), DRAW, point.device)
    _launch(
        (point, point, many, many, many, point, out), None, None, level_args,
        (point, 0, 0, table.counter, point, table.levels, table.last), (seed, 0, stream, first_item), MODE=DRAW,
        DEFAULT_NEXT=False, COMPLEX=False, TABLE=True, PROBE=True, WHITE=False, LEVELS=0,
    )  # fmt: skip
