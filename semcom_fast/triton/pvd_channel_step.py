"""The channel's inner iteration for i.i.d. Gaussian entries: the Triton kernels of :func:`semcom_fast.pvd_channel_step`.

One program holds one block's residual [Nr, T] in registers. Columns of a user's channel tile [Nr, Nt] are picked out one
after the other, so that nothing is padded to the shapes of a matrix unit; the update then moves the tile as it lies in
memory. A second launch adds the block energies of an item, in float64 and in the order of the blocks.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Cell, check_flag, fits_32_bits, on, real_dtype, seed_arguments, step_argument, word
from ._pvd_algebra import between, differences, pull
from ._pvd_finish import finish_kernel
from ._pvd_table import PvdTable, row_of
from ._tuned import Choice, choose, size_class
from ._vb import interleave, planes
from .philox import counter_word, key, stream_normals

NO_DRAW, DRAW, EXPLICIT = 0, 1, 2
_NAME = "pvd_channel_step"
_LARGEST = 4096  # complex float32 entries of a tile
_BLOCK = 64


class ChannelLevels(NamedTuple):
    """The levels of one step: numbers or (tensor, strides over sample, item, user); `next_var` None is lambda_j."""

    sigma: Cell | float
    sigma_above: Cell | float
    zeta: Cell | float
    score_var: Cell | float
    next_var: Cell | float | None
    var: Cell | float


@triton.jit
def _level(cell, b, u, TENSOR: tl.constexpr):
    """One float64: `cell` is (tensor over items and users, Python number, stride over items, over users)."""
    if TENSOR:
        out = tl.load(cell[0] + b.to(tl.int64) * cell[2] + u * cell[3]).to(tl.float64)
    else:
        out = cell[1] + b.to(tl.float64) * 0.0
    return out


@triton.jit
def _denoiser(prior, sigma, b, u, PRIOR: tl.constexpr, SIGMA: tl.constexpr):
    """(var/(var + sigma^2), sigma) of user u, in float64."""
    v, s = _level(prior, b, u, PRIOR), _level(sigma, b, u, SIGMA)
    return v / (v + s * s), s


@triton.jit
def _row(pointer, slots, T: tl.constexpr):
    """(re, im) of `slots` complex entries, zeros behind them."""
    at = tl.arange(0, 2 * T)
    value = tl.load(pointer + at, mask=at < 2 * slots, other=0.0)
    return tl.split(tl.reshape(value, (T, 2)))


@triton.jit
def _column(re, im, own):
    """The column of a tile in planes that `own` marks."""
    return tl.sum(tl.where(own, re, 0.0), 1)[:, None], tl.sum(tl.where(own, im, 0.0), 1)[:, None]


@triton.jit
def _energy(re, im):
    """Sum of squares of a tile, in float64."""
    wide_re, wide_im = re.to(tl.float64), im.to(tl.float64)
    return tl.sum(tl.sum(wide_re * wide_re + wide_im * wide_im, 1), 0)


@triton.jit
def _scores(r_re, r_im, h_re, h_im, x, score_x, nt, slots, R: tl.constexpr, N: tl.constexpr, T: tl.constexpr):
    """R X^H of one user's tile, in planes; stores H^H R."""
    column = tl.arange(0, N)[None, :]
    lanes = tl.arange(0, 2 * T)
    g_re, g_im = tl.zeros_like(h_re), tl.zeros_like(h_im)
    for m in range(nt):
        own = column == m
        c_re, c_im = _column(h_re, h_im, own)
        at = m * (2 * slots)
        a, c = _row(x + at, slots, T)
        g_re = tl.where(own, tl.sum(r_re * a[None, :] + r_im * c[None, :], 1)[:, None], g_re)
        g_im = tl.where(own, tl.sum(r_im * a[None, :] - r_re * c[None, :], 1)[:, None], g_im)
        back_re = tl.sum(c_re * r_re + c_im * r_im, 0)
        back_im = tl.sum(c_re * r_im - c_im * r_re, 0)
        tl.store(score_x + at + lanes, tl.reshape(tl.join(back_re, back_im), (2 * T,)), mask=lanes < 2 * slots)
    return g_re, g_im


@triton.jit
def _note(flag, b, wrong):
    """Lower `flag` to item b where any of `wrong` holds."""
    if tl.max(tl.max(wrong.to(tl.int32), axis=1), axis=0) > 0:
        tl.atomic_min(flag, b.to(flag.dtype.element_ty), sem="relaxed")


@triton.jit
def _subtract(
    r_re, r_im, v_re, v_im, h_re, h_im, x, probe, nt, slots,
    PROBE: tl.constexpr, TABLE: tl.constexpr, N: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """(r - H x, v + H d, |d|^2) of one user's tile H; d is `probe`, with TABLE the codeword `probe` less x."""
    column = tl.arange(0, N)[None, :]
    distance = tl.zeros((T,), tl.float64)
    for m in range(nt):
        c_re, c_im = _column(h_re, h_im, column == m)
        at = m * (2 * slots)
        a, c = _row(x + at, slots, T)
        r_re -= c_re * a[None, :] - c_im * c[None, :]
        r_im -= c_re * c[None, :] + c_im * a[None, :]
        if PROBE:
            to_a, to_c = _row(probe + at, slots, T)
            if TABLE:
                a, c = to_a - a, to_c - c
            else:
                a, c = to_a, to_c
            v_re += c_re * a[None, :] - c_im * c[None, :]
            v_im += c_re * c[None, :] + c_im * a[None, :]
            distance += a.to(tl.float64) * a.to(tl.float64) + c.to(tl.float64) * c.to(tl.float64)
    return r_re, r_im, v_re, v_im, tl.sum(distance, 0)


@triton.jit
def _moved(
    x, h, g, mean, anchor, size, rho, of_score, row, nr, units, VEC: tl.constexpr, R: tl.constexpr, N: tl.constexpr
):
    """One user's mean after a step of `size`; sample x, denoised h, score g and the result are (re, im)."""
    a_re, a_im = planes(anchor, row, nr, 0, units, VEC, R, N)
    m_re, m_im = planes(mean, row, nr, 0, units, VEC, R, N)
    m_re = tl.fma(size, pull(a_re, x[0], h[0], g[0], rho, of_score), m_re)
    m_im = tl.fma(size, pull(a_im, x[1], h[1], g[1], rho, of_score), m_im)
    return m_re, m_im


@triton.jit
def _drawn(
    m_re, m_im, spread, noise, offset, mask, entry, count, item, lane, k0, k1,
    MODE: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """mean + spread * normal (Philox, explicit or none) as reals [R, 2N]; `entry` numbers the tile's first column."""
    if MODE == 1:
        entry = (entry[:, None] + tl.arange(0, N)[None, :]).to(tl.uint32)
        z_re, z_im = stream_normals(entry, count, item, lane, k0, k1, m_re.dtype == tl.float64)
        m_re, m_im = tl.fma(spread, z_re, m_re), tl.fma(spread, z_im, m_im)
    out = interleave(m_re, m_im, R, N)
    if MODE == 2:
        out = tl.fma(spread, tl.load(noise + offset, mask=mask, other=0.0), out)
    return out


@triton.jit(
    do_not_specialize=[
        "y_b", "x_b", "probe_b", "sigma_b", "sigma_u", "above_b", "above_u", "zeta_b", "zeta_u", "var_b", "var_u",
        "next_b", "next_u", "prior_b", "prior_u", "seed", "seed_high", "step", "stream", "first_item", "users",
        "blocks", "nr", "nt", "slots", "units", "slot_units", "levels", "last",
    ],
)  # fmt: skip
def kernel(
    y, x, probe, mean, anchor, sample, noise, new_mean, new_sample, score_x, energies, flag,
    y_b: tl.int64, x_b: tl.int64, probe_b: tl.int64,
    sigma, sigma_value: tl.float64, sigma_b, sigma_u, above, above_value: tl.float64, above_b, above_u,
    zeta, zeta_value: tl.float64, zeta_b, zeta_u, score_var, var_value: tl.float64, var_b, var_u,
    next_var, next_value: tl.float64, next_b, next_u, prior, prior_value: tl.float64, prior_b, prior_u,
    counter, levels, last,
    seed, seed_high, step, stream, first_item, users, blocks, nr, nt, slots, units, slot_units,
    SIGMA: tl.constexpr, ABOVE: tl.constexpr, ZETA: tl.constexpr, SCORE_VAR: tl.constexpr, NEXT: tl.constexpr,
    PRIOR: tl.constexpr, DEFAULT_NEXT: tl.constexpr, MODE: tl.constexpr, PROBE: tl.constexpr, FLAG: tl.constexpr,
    SEED_TENSOR: tl.constexpr, STEP_TENSOR: tl.constexpr, ITEM_TENSOR: tl.constexpr, TABLE: tl.constexpr,
    SCORE: tl.constexpr, DENOISED: tl.constexpr, R: tl.constexpr, N: tl.constexpr, T: tl.constexpr, VEC: tl.constexpr,
    SLOT_VEC: tl.constexpr,
):  # fmt: skip
    # TABLE: `sigma` is the table and `probe` the probe's codeword. SCORE: new_mean takes R X^H and nothing moves; with
    # DENOISED the sample is denoised already.
    real = mean.dtype.element_ty
    if TABLE:
        step_k, sigma, _ = row_of(sigma, counter, last, levels)
        above = sigma + levels
        next_var = sigma + 2 * levels
        border = sigma + 3 * levels
    at_sigma = (sigma, sigma_value, sigma_b, sigma_u)
    at_prior = (prior, prior_value, prior_b, prior_u)
    pid = tl.program_id(0)
    b = pid // blocks
    k = pid - b * blocks
    wide = b.to(tl.int64)
    row = tl.arange(0, R)
    tile = 2 * nr * nt
    rows_x = 2 * nt * slots  # reals of a user's codeword in one block
    y += wide * y_b + k * (2 * nr * slots)
    x += wide * x_b + k * rows_x
    probe += wide * probe_b + k * rows_x
    score_x += wide * users * blocks * rows_x + k * rows_x
    energies += pid.to(tl.int64) * (2 + users)
    state = wide * users * blocks * tile + k * tile  # this block's reals of user 0

    r_re, r_im = planes(y, row, nr, 0, slot_units, SLOT_VEC, R, T)
    v_re, v_im = tl.zeros_like(r_re), tl.zeros_like(r_im)
    for u in range(users):
        h_re, h_im = planes(sample + (state + u * blocks * tile), row, nr, 0, units, VEC, R, N)
        if not DENOISED:
            w = _denoiser(at_prior, at_sigma, b, u, PRIOR, SIGMA)[0].to(real)
            h_re, h_im = h_re * w, h_im * w
        at = u * blocks * rows_x
        r_re, r_im, v_re, v_im, distance = _subtract(
            r_re, r_im, v_re, v_im, h_re, h_im, x + at, probe + at, nt, slots, PROBE, TABLE, N, T
        )
        if PROBE:
            tl.store(energies + 2 + u, distance)
    tl.store(energies, _energy(r_re, r_im))
    if PROBE:
        tl.store(energies + 1, _energy(v_re, v_im))
    if FLAG:
        _note(flag, b, (tl.abs(r_re) + tl.abs(r_im) < float("inf")) == 0)

    k0, k1 = key(seed, seed_high, SEED_TENSOR)
    if TABLE:
        count = (step_k + 1).to(tl.uint32)
    else:
        count = counter_word(step, STEP_TENSOR)
    item = b.to(tl.uint32) + counter_word(first_item, ITEM_TENSOR)
    lane = stream.to(tl.uint32)
    reals = tl.arange(0, 2 * N)[None, :]
    offset = row[:, None] * (units * VEC) + reals
    mask = (row < nr)[:, None] & (reals < 2 * nt)
    for u in range(users):
        if not DENOISED:
            wide_w, s = _denoiser(at_prior, at_sigma, b, u, PRIOR, SIGMA)
            w = wide_w.to(real)
        if not SCORE:
            top = _level((above, above_value, above_b, above_u), b, u, ABOVE)
            size = _level((zeta, zeta_value, zeta_b, zeta_u), b, u, ZETA).to(real)
            effective = _level((score_var, var_value, var_b, var_u), b, u, SCORE_VAR)
            delta, ratio = differences(s * s, top)
            rho, of_score = ratio.to(real), (delta * wide_w / effective).to(real)
            if DEFAULT_NEXT:
                variance = between(s * s, top, delta)
            else:
                variance = _level((next_var, next_value, next_b, next_u), b, u, NEXT)
        here = state + u * blocks * tile
        at = u * blocks * rows_x
        x_re, x_im = planes(sample + here, row, nr, 0, units, VEC, R, N)
        h_re, h_im = x_re, x_im
        if not DENOISED:
            h_re, h_im = x_re * w, x_im * w
        g_re, g_im = _scores(r_re, r_im, h_re, h_im, x + at, score_x + at, nt, slots, R, N, T)
        if SCORE:
            tl.store(new_mean + here + offset, interleave(g_re, g_im, R, N), mask=mask)
        else:
            m_re, m_im = _moved(
                (x_re, x_im), (h_re, h_im), (g_re, g_im), mean + here, anchor + here, size, rho, of_score,
                row, nr, units, VEC, R, N,
            )  # fmt: skip
            new = interleave(m_re, m_im, R, N)
            if TABLE:  # in place: every thread has read the tile before any of it is overwritten
                tl.debug_barrier()
                if tl.load(border) > 0:  # the means of a level condition the next one
                    tl.store(anchor + here + offset, new, mask=mask)
            tl.store(new_mean + here + offset, new, mask=mask)
            spread = tl.sqrt(variance).to(real)
            entry = ((u * blocks + k) * nr + row) * nt
            drawn = _drawn(m_re, m_im, spread, noise + here, offset, mask, entry, count, item, lane, k0, k1, MODE, R, N)
            tl.store(new_sample + here + offset, drawn, mask=mask)
            if FLAG:
                _note(flag, b, ((tl.abs(drawn) < float("inf")) == 0) & mask)


def fits(nr: int, nt: int, slots: int) -> bool:
    """Whether a block's tiles fit the registers of one program."""
    rows = triton.next_power_of_2(nr)
    return rows * max(triton.next_power_of_2(slots), 2 * triton.next_power_of_2(nt)) <= _LARGEST


def _check(y, x, probe, mean, anchor, sample, noise, out) -> tuple[int, ...]:
    """Shapes, dtypes and devices of the real views; the sizes (B, U, K, Nr, Nt, T)."""
    dtype = real_dtype("mean", mean)
    if mean.ndim != 6 or x.ndim != 6 or y.ndim != 5:
        given = f"{tuple(mean.shape)}, {tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"{_NAME}: need mean [B,U,K,Nr,Nt,2], x [B,U,K,Nt,T,2] and y [B,K,Nr,T,2], got {given}")
    b, u, k, nr, nt, _ = mean.shape
    t = x.shape[-2]
    state, codeword, received = (u, k, nr, nt, 2), (u, k, nt, t, 2), (k, nr, t, 2)
    shapes = [("y", y, received), ("x", x, codeword), ("probe", probe, codeword), ("mean", mean, state),
              ("anchor", anchor, state), ("sample", sample, state), ("noise", noise, state),
              ("out[0]", out[0], state), ("out[1]", out[1], state), ("out[2]", out[2], codeword)]  # fmt: skip
    for name, tensor, need in shapes:
        if tensor is None:
            continue
        batch = (1, b) if name in ("y", "x", "probe") else (b,)
        wrong = tensor.shape[1:] != need or tensor.shape[0] not in batch or not tensor.is_contiguous()
        if wrong or tensor.dtype != dtype or tensor.device != mean.device:
            raise ValueError(
                f"{_NAME}: {name} must be contiguous {dtype} {(b, *need)} on {mean.device}, "
                f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )
    if not fits(nr, nt, t):
        raise ValueError(f"{_NAME}: blocks of Nr={nr}, Nt={nt}, T={t} exceed a tile of {_LARGEST} entries")
    fits_32_bits("the number of reals of one item", 2 * u * k * max(nr * nt, nt * t, nr * t))
    fits_32_bits("the number of blocks", b * k)
    return b, u, k, nr, nt, t


def _arguments(level: Cell | float | None, like: Tensor) -> tuple[tuple[Tensor, float, int, int], bool]:
    """(tensor, number, strides over item and user) and which of the two it is."""
    if level is None or isinstance(level, (int, float)):
        return (like, 0.0 if level is None else float(level), 0, 0), False
    tensor, stride_l, stride_b, stride_u = level
    if stride_l != 0:
        raise ValueError(f"{_NAME}: levels cannot vary over samples")
    return (tensor, 0.0, stride_b, stride_u), True


def _batch_stride(t: Tensor | None) -> int:
    return 0 if t is None or t.shape[0] == 1 else t.stride(0)


def run(
    y: Tensor,
    x: Tensor,
    probe: Tensor | None,
    mean: Tensor,
    anchor: Tensor,
    sample: Tensor,
    noise: Tensor | None,
    levels: ChannelLevels,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    stream: int = 1,
    first_item: int = 0,
    *,
    out: tuple[Tensor, ...],
    flag: Tensor | None = None,
) -> None:
    """Two launches; every tensor is a contiguous real view [..., 2], the formula the public function's.

    out: (mean, sample, score_x, energy [B], probe_x [B,U], probe_y [B]), none of them an input; the last two of size 0
    without probe. Without noise and seed, the new sample is the new mean. seed and step may be integer cells on the
    device. `flag`, an int32 or int64 cell, is lowered to the smallest item with a non-finite residual or sample. Raises
    ValueError for shapes that do not agree or exceed a tile (`fits`).
    """
    size = _check(y, x, probe, mean, anchor, sample, noise, out)
    check_flag(flag)
    b, u, k = size[:3]
    mode = EXPLICIT if noise is not None else NO_DRAW if seed is None else DRAW
    scratch = torch.empty((b * k, 2 + u), dtype=torch.float64, device=mean.device)
    states = (mean, anchor, sample, mean if noise is None else noise)
    _launch(
        (y, x, probe), states, out[:3], scratch, flag, levels, size, (seed, step, stream, first_item), MODE=mode,
        DEFAULT_NEXT=levels.next_var is None,
    )  # fmt: skip
    with on(mean.device):
        finish_kernel[(b,)](
            scratch, *out[3:], *(out[3],) * 3, 0, out[3], 0, 0, out[3], 0, out[3], out[3], 1, 1, 0.0, 0.0, 1.0, u, k,
            PROBE=probe is not None, CALIBRATE=False, WHITE=False, LAGGED=False, PER_USER=False, BLOCK=_BLOCK,
            num_warps=2,
        )  # fmt: skip


def _launch(
    signals: tuple[Tensor | None, ...], states: tuple[Tensor, ...], out: tuple[Tensor, ...], scratch: Tensor,
    flag: Tensor | None, levels: ChannelLevels, size: tuple[int, ...], draws: tuple, table: PvdTable | None = None,
    *, SCORE: bool = False, DENOISED: bool = False, **switches: object,
) -> None:  # fmt: skip
    """Every entry's first launch. signals: y, x, probe; states: mean, anchor, sample, noise; draws: seed to first_item."""
    y, x, probe = signals
    b, u, k, nr, nt, t = size
    mean = states[0]
    seed, step, stream, first_item = draws
    given = [_arguments(level, mean) for level in levels]
    seed_low, seed_high, seed_cell = seed_arguments(seed, mean.device)
    step_value, step_cell = step_argument(step, mean.device)
    item, item_cell = step_argument(first_item, mean.device, "first_item")
    rows, columns, slots = (triton.next_power_of_2(n) for n in (nr, nt, t))
    entries = rows * slots
    default = Choice(0, min(8, max(1, entries // 256)))
    choice = choose(_NAME, size_class(entries, _LARGEST), mean.dtype, mean.device, default)
    place = (mean, 1, 1) if table is None else (table.counter, table.levels, table.last)
    with on(mean.device):
        kernel[(b * k,)](
            y, x, x if probe is None else probe, *states, *out, scratch, mean if flag is None else flag,
            *map(_batch_stride, (y, x, probe)), *(v for arguments, _ in given for v in arguments), *place, seed_low,
            seed_high, step_value, word(stream), item, u, k, nr, nt, t, 2 * nt // math.gcd(2 * nt, 4),
            2 * t // math.gcd(2 * t, 4),
            **dict(zip(("SIGMA", "ABOVE", "ZETA", "SCORE_VAR", "NEXT", "PRIOR"), (c for _, c in given), strict=True)),
            PROBE=probe is not None, FLAG=flag is not None, SEED_TENSOR=seed_cell, STEP_TENSOR=step_cell,
            ITEM_TENSOR=item_cell, TABLE=table is not None, SCORE=SCORE, DENOISED=DENOISED, R=rows, N=columns, T=slots,
            VEC=math.gcd(2 * nt, 4), SLOT_VEC=math.gcd(2 * t, 4), **choice.options(),
            **switches,
        )  # fmt: skip
