"""Evidence terms of every expert, L and D, from one pass over their noise: the kernels of :func:`semcom_fast.elbo_reduce`.

The first launch sums |eps_s - eps_{s,e}|^2 over every step but tau, a program per piece of a row; the second takes step
tau, where the same differences give D, and adds everything up in a fixed order. Normals are drawn again, never stored.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Tiling, check_flag, on, seed_arguments, step_argument, tiling
from ._vb import (
    Tiles,
    add_product,
    check_sizes,
    complex_normals,
    item_level,
    like_state,
    planes,
    real_matrices,
    real_view,
    shared_or_batched,
    table,
    tiles,
)
from ._waterfill import number
from ._waterfill_args import LevelLike, Levels
from .philox import counter_word, key, over_lanes, tile
from .renoise import drawn

_NAME = "elbo_reduce"
_ROOT_HALF = tl.constexpr(0.70710678118654752)


@triton.jit(
    do_not_specialize=["draws", "tau", "experts", "seed", "seed_high", "first_item", "chunks", "rows", "length"],
)
def kernel(
    partial, eps, steps, noise, draws, tau, experts, eps_b: tl.int64, eps_s: tl.int64, eps_e: tl.int64,
    seed, seed_high, first_item, chunks, rows, length,
    EXPLICIT: tl.constexpr, SEED_TENSOR: tl.constexpr, ITEM_TENSOR: tl.constexpr, QUADS: tl.constexpr,
    ROWS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """partial[row, chunk, e] = the piece's |eps_s - eps_{s,e}|^2 in float64; row counts the items' steps without tau."""
    row, _, quad, offset, mask = tile(chunks, rows, 1, length, QUADS, ROWS, VEC)
    b = row // (draws - 1)
    place = row - b * (draws - 1)
    place = tl.where(place < tau, place, place + 1)
    inner = offset - over_lanes(row.to(tl.int64) * (length * VEC), ROWS)
    step = tl.load(steps + place).to(tl.uint32)
    k0, k1 = key(seed, seed_high, SEED_TENSOR)
    item = b.to(tl.uint32) + counter_word(first_item, ITEM_TENSOR)
    given = inner + over_lanes((b * draws + place).to(tl.int64) * (length * VEC), ROWS)
    z = drawn(noise, given, mask, quad, step, item, k0, k1, eps, EXPLICIT)
    if not EXPLICIT:
        z = z * _ROOT_HALF
    base = inner + over_lanes((b.to(tl.int64) * eps_b + place.to(tl.int64) * eps_s) * VEC, ROWS)
    for e in range(experts):
        gap = z - tl.load(eps + e * eps_e * VEC + base, mask=mask, other=0.0)
        gap = tl.where(mask, gap, 0.0).to(tl.float64)
        lanes = tl.sum(gap * gap, axis=1)
        if ROWS == 1:
            tl.store(
                partial + (row.to(tl.int64) * chunks + tl.program_id(0) % chunks) * experts + e, tl.sum(lanes, axis=0)
            )
        else:
            sums = tl.sum(tl.reshape(lanes, (ROWS, QUADS)), axis=1)
            at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
            tl.store(partial + at.to(tl.int64) * experts + e, sums, mask=at < rows)


@triton.jit
def _difference(
    eps, noise, row, rows, c, units, step, item, k0, k1, VEC: tl.constexpr, EXPLICIT: tl.constexpr, M: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """eps_tau - eps_{tau,e} on one tile, in planes, 0 outside the matrix."""
    e_re, e_im = planes(eps, row, rows, c, units, VEC, M, N)
    if EXPLICIT:
        z_re, z_im = planes(noise, row, rows, c, units, VEC, M, N)
    else:
        column = c + tl.arange(0, N)[None, :]
        entry = (row[:, None] * (units * VEC // 2) + column).to(tl.uint32)
        z_re, z_im = complex_normals(entry, step, item, k0, k1, e_re.dtype == tl.float64)
        inside = (row < rows)[:, None] & (column < units * VEC // 2)
        z_re, z_im = tl.where(inside, z_re, 0.0), tl.where(inside, z_im, 0.0)
    return z_re - e_re, z_im - e_im


@triton.jit
def _squares(re, im):
    re, im = re.to(tl.float64), im.to(tl.float64)
    return tl.sum(tl.sum(re * re + im * im, axis=1), axis=0)


@triton.jit
def _previous(partial, w, item_rows, chunks, tau, experts, BLOCK: tl.constexpr):
    """sum over the steps but tau of w_s times the first launch's pieces; `partial` points at this item and expert."""
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, item_rows * chunks, BLOCK):
        at = first + tl.arange(0, BLOCK)
        place = at // chunks
        place = tl.where(place < tau, place, place + 1)
        there = at < item_rows * chunks
        piece = tl.load(partial + at * experts, mask=there, other=0.0)
        total += tl.load(w + place, mask=there, other=0.0) * piece
    return tl.sum(total, axis=0)


@triton.jit(
    do_not_specialize=[
        "noise_b", "draws", "tau", "experts", "eps_b", "eps_s", "eps_e", "u_b", "s_b", "seed", "seed_high",
        "first_item", "chunks", "rows", "columns", "units", "rank", "rank_units",
    ],
)  # fmt: skip
def finish_kernel(
    bound, fit, partial, eps, h, steps, alpha_bar, w, yv, u, s, noise, flag,
    noise_var, noise_b, noise_value: tl.float64, draws, tau, experts, eps_b: tl.int64, eps_s: tl.int64,
    eps_e: tl.int64, u_b: tl.int64, s_b: tl.int64, seed, seed_high, first_item, chunks, rows, columns, units, rank,
    rank_units,
    NOISE_TENSOR: tl.constexpr, EXPLICIT: tl.constexpr, FLAG: tl.constexpr, SEED_TENSOR: tl.constexpr,
    ITEM_TENSOR: tl.constexpr, M: tl.constexpr, N: tl.constexpr, R: tl.constexpr, VEC: tl.constexpr,
    RANK_VEC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    real = h.dtype.element_ty
    pid = tl.program_id(0)
    b = pid // experts
    e = pid - b * experts
    wide = b.to(tl.int64)
    entries = rows * (units * VEC)
    eps += (wide * eps_b + tau * eps_s + e * eps_e) * VEC
    h += wide * entries
    noise += (wide * draws + tau) * entries
    yv += wide * rows * (rank_units * RANK_VEC)
    u += wide * u_b
    s += wide * s_b
    step = tl.load(steps + tau).to(tl.uint32)
    k0, k1 = key(seed, seed_high, SEED_TENSOR)
    item = b.to(tl.uint32) + counter_word(first_item, ITEM_TENSOR)
    kept = tl.load(alpha_bar + tau)
    back = tl.sqrt((1.0 - kept) / kept).to(real)
    variance = number(noise_var, noise_value, noise_b, b, NOISE_TENSOR)
    gap = _previous(partial + wide * (draws - 1) * chunks * experts + e, w, draws - 1, chunks, tau, experts, BLOCK)
    mine = tl.zeros((1, 1), tl.float64)
    miss = tl.zeros((1, 1), tl.float64)
    for m in range(0, rows, M):
        row = m + tl.arange(0, M)
        for r0 in range(0, rank, R):
            z_re, z_im = tl.zeros((M, R), real), tl.zeros((M, R), real)
            for c in range(0, columns, N):
                d_re, d_im = _difference(eps, noise, row, rows, c, units, step, item, k0, k1, VEC, EXPLICIT, M, N)
                if r0 == 0:
                    mine += _squares(d_re, d_im)
                h_re, h_im = planes(h, row, rows, c, units, VEC, M, N)
                x_re, x_im = tl.fma(back, d_re, h_re), tl.fma(back, d_im, h_im)
                u_re, u_im = planes(u, c + tl.arange(0, N), columns, r0, rank_units, RANK_VEC, N, R)
                z_re, z_im = add_product(z_re, z_im, x_re, x_im, u_re, u_im)
            r = r0 + tl.arange(0, R)
            size = tl.load(s + r, mask=r < rank, other=0.0)[None, :]
            y_re, y_im = planes(yv, row, rows, r0, rank_units, RANK_VEC, M, R)
            miss += _squares(tl.fma(-size, z_re, y_re), tl.fma(-size, z_im, y_im))
    mine = tl.sum(tl.sum(mine, axis=1), axis=0)
    miss = tl.sum(tl.sum(miss, axis=1), axis=0)
    loss = -(gap + tl.load(w + tau) * mine)
    data = -miss / variance
    tl.store(bound + pid, loss.to(real))
    tl.store(fit + pid, data.to(real))
    if FLAG:
        good = (tl.abs(loss.to(real)) < float("inf")) & (tl.abs(data.to(real)) < float("inf"))
        tl.atomic_min(flag, b.to(flag.dtype.element_ty), mask=good == 0, sem="relaxed")


class _Case(NamedTuple):
    """What both launches share, laid out."""

    eps: Tensor
    steps: Tensor
    noise: Tensor
    explicit: bool
    draw: tuple
    cells: dict[str, bool]
    batch: int
    draws: int
    experts: int
    tau: int


def _case(eps: Tensor, h: Tensor, steps: Tensor, tau: int, seed, first_item, noise: Tensor | None) -> _Case:
    if h.ndim != 3 or eps.ndim != 5 or eps.shape[0] != h.shape[0] or eps.shape[3:] != h.shape[1:]:
        raise ValueError(f"{_NAME}: need eps [B,S,E,Nr,Nt] and h [B,Nr,Nt], got {tuple(eps.shape)}, {tuple(h.shape)}")
    like_state(_NAME, "eps", eps, tuple(eps.shape), h.dtype, h.device)
    batch, draws, experts = eps.shape[:3]
    if (noise is None) == (seed is None):
        raise ValueError(f"{_NAME}: give either noise or seed")
    if noise is not None:
        like_state(_NAME, "noise", noise, (batch, draws, *h.shape[1:]), h.dtype, h.device)
    if draws and not 0 <= int(tau) < draws:
        raise ValueError(f"{_NAME}: tau_index must be one of the {draws} steps, got {tau}")
    check_sizes(batch * max(draws, 1) * max(experts, 1), h.shape[1] * h.shape[2])
    seed_low, seed_high, seed_cell = seed_arguments(seed, h.device)
    item, item_cell = step_argument(first_item, h.device, "first_item")
    memory = real_matrices(_NAME, "eps", eps, 3)
    return _Case(
        memory, table(_NAME, "steps", steps, draws, torch.int64, h.device),
        memory if noise is None else real_view(_NAME, "noise", noise), noise is not None, (seed_low, seed_high, item),
        {"EXPLICIT": noise is not None, "SEED_TENSOR": seed_cell, "ITEM_TENSOR": item_cell}, batch, draws, experts,
        int(tau),
    )  # fmt: skip


def _pieces(c: _Case, cover: Tiling, length: int) -> Tensor:
    """The first launch: [B*(S-1), chunks, E] float64."""
    rows = c.batch * (c.draws - 1)
    partial = torch.empty((max(rows, 1), cover.chunks, c.experts), dtype=torch.float64, device=c.eps.device)
    if rows:
        with on(c.eps.device):
            kernel[(-(-rows // cover.rows) * cover.chunks,)](
                partial, c.eps, c.steps, c.noise, c.draws, c.tau, c.experts,
                *(c.eps.stride(i) // cover.vec for i in range(3)), *c.draw, cover.chunks, rows, length // cover.vec,
                **c.cells, QUADS=cover.quads, ROWS=cover.rows, VEC=cover.vec, num_warps=cover.warps,
            )  # fmt: skip
    return partial


def run(
    eps: Tensor,
    h: Tensor,
    steps: Tensor,
    alpha_bar: Tensor,
    w: Tensor,
    yv: Tensor,
    u: Tensor,
    s: Tensor,
    noise_var: LevelLike,
    tau_index: int,
    seed: int | Tensor | None = None,
    first_item: int | Tensor = 0,
    noise: Tensor | None = None,
    *,
    flag: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(L, D) [B,E] in the real dtype from eps [B,S,E,Nr,Nt] of the experts at `renoise`'s states of h [B,Nr,Nt].

    L = -sum_s w_s |eps_s - eps_{s,e}|^2; D = -|yv - Htilde_e U diag(s)|^2/noise_var at step number `tau_index` of the
    set. steps int64, alpha_bar and w float64, all [S] on the device; u [Nt,r] and s [r] shared or with a batch dim;
    noise_var a number, 0-d or [B] tensor, or a level tuple. The draws are those of `renoise.run` with the same
    arguments. Sums are float64 in a fixed order: no atomics, and a split batch gives the same bits. The leading strides
    of eps are free. `flag` as in `power_normalise.run`. Raises ValueError for shapes that do not agree.
    """
    state = real_view(_NAME, "h", h)
    check_flag(flag)
    c = _case(eps, h, steps, tau_index, seed, first_item, noise)
    (nr, nt), rank, real = h.shape[1:], u.shape[-1], h.dtype.to_real()
    if rank == 0:
        raise ValueError(f"{_NAME}: need at least one singular value of the pilots")
    like_state(_NAME, "yv", yv, (c.batch, nr, rank), h.dtype, h.device)
    tables = [
        table(_NAME, name, t, c.draws, torch.float64, h.device) for name, t in (("alpha_bar", alpha_bar), ("w", w))
    ]
    for name, t, dtype in (("u", u, h.dtype), ("s", s, real)):
        if t.dtype != dtype or t.device != h.device:
            raise ValueError(f"{_NAME}: {name} must be {dtype} on {h.device}, got {t.dtype} on {t.device}")
    u = real_view(_NAME, "u", shared_or_batched(_NAME, "u", u, (nt, rank), (c.batch,)))
    s = shared_or_batched(_NAME, "s", s, (rank,), (c.batch,)).resolve_neg().contiguous()
    bound, fit = (state.new_empty(c.batch, c.experts) for _ in range(2)) if out is None else out
    for i, t in enumerate((bound, fit)):
        like_state(_NAME, f"out[{i}]", t, (c.batch, c.experts), real, h.device)
        if not t.is_contiguous():
            raise ValueError(f"{_NAME}: out[{i}] must be contiguous")
    if bound.numel() == 0 or eps.numel() == 0:
        return bound.zero_(), fit.zero_()
    level: Levels = item_level(_NAME, "noise_var", noise_var, (c.batch,), state)
    cover, shape = tiling(2 * nr * nt, 1, _NAME, state), tiles(nr, nt, rank, state, f"{_NAME}.finish", 32)
    partial = _pieces(c, cover, 2 * nr * nt)
    _finish(c, (bound, fit, partial), (state, *tables, real_view(_NAME, "yv", yv), u, s), flag, level, cover, shape)
    return bound, fit


def _finish(
    c: _Case, results: tuple, tensors: tuple, flag: Tensor | None, level: Levels, cover: Tiling, shape: Tiles
) -> None:
    """The second launch: a program per item and expert.

    The register limits keep the compiler from trading a few spills for occupancy.
    """
    bound, fit, partial = results
    h, alpha_bar, w, yv, u, s = tensors
    nr, nt, rank = h.shape[1], h.shape[2], s.shape[-1]
    with on(h.device):
        finish_kernel[(c.batch * c.experts,)](
            bound, fit, partial, c.eps, h, c.steps, alpha_bar, w, yv, u, s, c.noise, c.steps if flag is None else flag,
            *level[:3], c.draws, c.tau, c.experts, *(c.eps.stride(i) // shape.vec for i in range(3)),
            u.stride(0) if u.ndim == 4 else 0, s.stride(0) if s.ndim == 2 else 0, *c.draw, cover.chunks, nr, nt,
            2 * nt // shape.vec, rank, 2 * rank // shape.rank_vec, NOISE_TENSOR=level.is_tensor, FLAG=flag is not None,
            **c.cells, M=shape.rows, N=shape.columns, R=shape.rank, VEC=shape.vec, RANK_VEC=shape.rank_vec, BLOCK=64,
            num_warps=shape.warps, num_stages=shape.stages,
            maxnreg=128 if h.dtype == torch.float32 and shape.warps == 4 else 255,
        )  # fmt: skip
