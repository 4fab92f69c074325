"""One reverse step of the expert mixture given pilots: the Triton kernel of :func:`semcom_fast.pilot_posterior_step`."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import check_flag, on
from ._vb import (
    Tiles,
    add_product,
    add_product_adjoint,
    check_sizes,
    interleave,
    item_level,
    like_state,
    planes,
    real_matrices,
    real_view,
    shared_or_batched,
    tiles,
)
from ._waterfill import advance, number
from ._waterfill_args import LevelLike, Levels, Table, check_counter, level_argument, table_argument

_NAME = "pilot_posterior_step"


@triton.jit
def _mixed(
    h, eps, eps_e, weights, experts, row, rows, first, units, VEC: tl.constexpr, M: tl.constexpr, N: tl.constexpr
):
    """The state's tile and that of the mixed noise, in planes."""
    h_re, h_im = planes(h, row, rows, first, units, VEC, M, N)
    mix_re, mix_im = tl.zeros_like(h_re), tl.zeros_like(h_im)
    for e in range(experts):
        weight = tl.load(weights + e)
        e_re, e_im = planes(eps + e * eps_e, row, rows, first, units, VEC, M, N)
        mix_re = tl.fma(weight, e_re, mix_re)
        mix_im = tl.fma(weight, e_im, mix_im)
    return h_re, h_im, mix_re, mix_im


@triton.jit
def _coefficients(kept, beta, scale):
    """(of H, of the mixed noise, of the likelihood score, sqrt(1 - alpha_bar)) in H_{t-1}, float64."""
    root = 1.0 / tl.sqrt(1.0 - beta)
    rest = tl.sqrt(1.0 - kept)
    return root, root * beta / rest, root * scale * beta / tl.sqrt(kept), rest


@triton.jit(
    do_not_specialize=[
        "noise_b", "bar_b", "beta_b", "lam_b", "bar_k", "beta_k", "last", "experts", "eps_b", "u_b", "s_b", "rows",
        "row_tiles", "column_tiles", "units", "rank", "rank_units",
    ],
)  # fmt: skip
def kernel(
    out, h, eps, weights, yv, u, s, flag,
    noise_var, noise_b, noise_value: tl.float64, alpha_bar, bar_b, bar_value: tl.float64,
    beta, beta_b, beta_value: tl.float64, lam, lam_b, lam_value: tl.float64, counter, bar_k, beta_k, last,
    experts, eps_b: tl.int64, eps_e: tl.int64, u_b: tl.int64, s_b: tl.int64, rows, row_tiles, column_tiles, units,
    rank, rank_units,
    NOISE_TENSOR: tl.constexpr, BAR_TENSOR: tl.constexpr, BETA_TENSOR: tl.constexpr, LAM_TENSOR: tl.constexpr,
    X0: tl.constexpr, TABLE: tl.constexpr, FLAG: tl.constexpr, WHOLE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    R: tl.constexpr, VEC: tl.constexpr, RANK_VEC: tl.constexpr,
):  # fmt: skip
    real = h.dtype.element_ty
    pid = tl.program_id(0)
    n = pid // (row_tiles * column_tiles)
    pid -= n * row_tiles * column_tiles
    first = (pid % column_tiles) * N
    row = (pid // column_tiles) * M + tl.arange(0, M)
    wide = n.to(tl.int64)
    h += wide * rows * (units * VEC)
    out += wide * rows * (units * VEC)
    eps += wide * eps_b * VEC
    weights += wide * experts
    yv += wide * rows * (rank_units * RANK_VEC)
    u += wide * u_b
    s += wide * s_b
    moves = True
    if TABLE:
        k = tl.load(counter)
        moves = k < last
        at = tl.minimum(k, last - 1)
        alpha_bar += at * bar_k
        beta += at * beta_k
    if moves:
        kept = number(alpha_bar, bar_value, bar_b, n, BAR_TENSOR)
        variance = number(noise_var, noise_value, noise_b, n, NOISE_TENSOR)
        of_h, of_eps, of_score, rest = _coefficients(
            kept, number(beta, beta_value, beta_b, n, BETA_TENSOR), number(lam, lam_value, lam_b, n, LAM_TENSOR)
        )
        h_re, h_im, mix_re, mix_im = _mixed(h, eps, eps_e * VEC, weights, experts, row, rows, first, units, VEC, M, N)
        back = rest.to(real)
        g_re, g_im = tl.zeros((M, N), real), tl.zeros((M, N), real)
        for r0 in range(0, rank, R):
            along = tl.arange(0, N)
            u_re, u_im = planes(u, first + along, units * VEC // 2, r0, rank_units, RANK_VEC, N, R)
            z_re, z_im = tl.zeros((M, R), real), tl.zeros((M, R), real)
            if WHOLE:
                if X0:
                    z_re, z_im = add_product(z_re, z_im, h_re - back * mix_re, h_im - back * mix_im, u_re, u_im)
                else:
                    z_re, z_im = add_product(z_re, z_im, h_re, h_im, u_re, u_im)
            else:
                for c in range(0, column_tiles * N, N):
                    x_re, x_im, m_re, m_im = _mixed(
                        h, eps, eps_e * VEC, weights, experts, row, rows, c, units, VEC, M, N
                    )
                    if X0:
                        x_re, x_im = x_re - back * m_re, x_im - back * m_im
                    a_re, a_im = planes(u, c + along, units * VEC // 2, r0, rank_units, RANK_VEC, N, R)
                    z_re, z_im = add_product(z_re, z_im, x_re, x_im, a_re, a_im)
            r = r0 + tl.arange(0, R)
            size = tl.load(s + r, mask=r < rank, other=0.0).to(tl.float64)
            gain = tl.where(r < rank, of_score * size / (variance + (1.0 - kept) / kept * size * size), 0.0)
            scale = (size / tl.sqrt(kept)).to(real)[None, :]
            gain = gain.to(real)[None, :]
            y_re, y_im = planes(yv, row, rows, r0, rank_units, RANK_VEC, M, R)
            w_re, w_im = gain * tl.fma(-scale, z_re, y_re), gain * tl.fma(-scale, z_im, y_im)
            g_re, g_im = add_product_adjoint(g_re, g_im, w_re, w_im, u_re, u_im)
        a, b = of_h.to(real), -of_eps.to(real)
        new_re = tl.fma(a, h_re, tl.fma(b, mix_re, g_re))
        new_im = tl.fma(a, h_im, tl.fma(b, mix_im, g_im))
        column = 2 * first + tl.arange(0, 2 * N)[None, :]
        mask = (row < rows)[:, None] & (column < units * VEC)
        value = interleave(new_re, new_im, M, N)
        tl.debug_barrier()  # in place: every thread has read the tile
        tl.store(out + (row[:, None] * (units * VEC) + column), value, mask=mask)
        if FLAG:
            wrong = ((tl.abs(value) < float("inf")) == 0) & mask
            if tl.max(tl.max(wrong.to(tl.int32), axis=1), axis=0) > 0:
                tl.atomic_min(flag, n.to(flag.dtype.element_ty), sem="relaxed")
    if TABLE:
        advance(counter, k)


class _Operands(NamedTuple):
    """Tensors in kernel order behind `out`, sizes, and how programs cover them."""

    tensors: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    grid: int
    switches: dict[str, object]
    items: int


def _plain(t: Tensor) -> Tensor:
    return t.resolve_neg().contiguous()


def _operands(h: Tensor, eps: Tensor, weights: Tensor, yv: Tensor, u: Tensor, s: Tensor, copies: bool) -> _Operands:
    """Check and lay out everything but the levels; `copies`: a state in several column tiles is not updated in place."""
    *lead, nr, nt = h.shape
    rank, experts, items = u.shape[-1], eps.shape[-3] if eps.ndim > 2 else 0, h.shape[:-2].numel()
    real, device = h.dtype.to_real(), h.device
    like_state(_NAME, "eps", eps, (*lead, experts, nr, nt), h.dtype, device)
    like_state(_NAME, "weights", weights, (*lead, experts), real, device)
    like_state(_NAME, "yv", yv, (*lead, nr, rank), h.dtype, device)
    for name, t, dtype in (("u", u, h.dtype), ("s", s, real)):
        if t.dtype != dtype or t.device != device:
            raise ValueError(f"{_NAME}: {name} must be {dtype} on {device}, got {t.dtype} on {t.device}")
    check_sizes(items, nr * nt)
    state = real_view(_NAME, "h_t", h)
    shape: Tiles = tiles(nr, nt, rank, state, _NAME)
    u = real_view(_NAME, "u", shared_or_batched(_NAME, "u", u, (nt, rank), tuple(lead)))
    s = shared_or_batched(_NAME, "s", s, (rank,), tuple(lead))
    s = _plain(s)
    noise = eps.reshape(items, experts, nr, nt) if len(lead) != 1 else eps
    noise = real_matrices(_NAME, "eps", noise, 2) if eps.numel() else real_view(_NAME, "eps", noise)
    row_tiles, column_tiles = -(-nr // shape.rows), -(-nt // shape.columns)
    sizes = (
        experts, noise.stride(0) // shape.vec, noise.stride(1) // shape.vec, u.stride(0) if u.ndim == 4 else 0,
        s.stride(0) if s.ndim == 2 else 0, nr, row_tiles, column_tiles, 2 * nt // shape.vec, rank,
        2 * rank // shape.rank_vec,
    )  # fmt: skip
    switches: dict[str, object] = {
        "WHOLE": column_tiles == 1, "M": shape.rows, "N": shape.columns, "R": shape.rank, "VEC": shape.vec,
        "RANK_VEC": shape.rank_vec, "num_warps": shape.warps,
        "num_stages": shape.stages,
    }  # fmt: skip
    tensors = (
        state.clone() if copies and column_tiles > 1 else state, noise, _plain(weights),
        real_view(_NAME, "yv", yv), u, s,
    )  # fmt: skip
    return _Operands(tensors, sizes, items * row_tiles * column_tiles, switches, items)


def _launch(
    op: _Operands, out: Tensor, flag: Tensor | None, levels: list[Levels], tail: tuple, x0: bool, on_table: bool
) -> None:
    with on(out.device):
        kernel[(op.grid,)](
            torch.view_as_real(out), *op.tensors, op.tensors[0] if flag is None else flag,
            *(v for level in levels for v in level[:3]), *tail, *op.sizes, NOISE_TENSOR=levels[0].is_tensor,
            BAR_TENSOR=levels[1].is_tensor, BETA_TENSOR=levels[2].is_tensor, LAM_TENSOR=levels[3].is_tensor,
            X0=bool(x0), TABLE=on_table, FLAG=flag is not None, **op.switches,
        )  # fmt: skip


def _result(out: Tensor | None, h: Tensor) -> Tensor:
    if out is None:
        return torch.empty_like(h, memory_format=torch.contiguous_format)
    like_state(_NAME, "out", out, tuple(h.shape), h.dtype, h.device)
    if not out.is_contiguous() or out.is_conj() or out.is_neg():
        raise ValueError(f"{_NAME}: out must be contiguous")
    return out


def run(
    h: Tensor,
    eps: Tensor,
    weights: Tensor,
    yv: Tensor,
    u: Tensor,
    s: Tensor,
    noise_var: LevelLike,
    alpha_bar: LevelLike,
    beta: LevelLike,
    lam: LevelLike = 1.0,
    x0: bool = False,
    *,
    flag: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """H_{t-1} [...,Nr,Nt] from H_t, the experts' noise eps [...,E,Nr,Nt] and their weights [...,E], in one launch.

    yv [...,Nr,r]; u [Nt,r] and s [r] shared or with leading dims; complex64 with float32 or complex128 with float64.
    noise_var, alpha_bar, beta, lam are numbers, which travel as kernel arguments (no node of their own in a graph),
    tensors over the leading dims, or level tuples. The leading strides of eps are free, so that experts may be stacked
    in any order. `out` may be h. `flag`, an int32 or int64 cell, is lowered to the
    smallest item whose result is not finite. Raises ValueError for shapes that do not agree.
    """
    check_flag(flag)
    result = _result(out, h)
    if h.numel() == 0:
        return result
    lead = tuple(h.shape[:-2])
    op = _operands(h, eps, weights, yv, u, s, copies=out is h)
    flat = op.tensors[0].reshape(op.items, -1)
    named = {"noise_var": noise_var, "alpha_bar": alpha_bar, "beta": beta, "lam": lam}
    levels = [item_level(_NAME, name, value, lead, flat) for name, value in named.items()]
    _launch(op, result, flag, levels, (flat, 0, 0, 1), x0, on_table=False)
    return result


def run_table(
    h: Tensor,
    eps: Tensor,
    weights: Tensor,
    yv: Tensor,
    u: Tensor,
    s: Tensor,
    noise_var: LevelLike,
    alpha_bar: Tensor,
    beta: Tensor,
    counter: Tensor,
    lam: LevelLike = 1.0,
    x0: bool = False,
    *,
    flag: Tensor | None = None,
) -> Tensor:
    """The step of a captured graph, one node: h [B,Nr,Nt] in place with row k = counter[0] of the tables, then k+1.

    alpha_bar and beta [T] or [T,B], float64 or float32, in the order of the chain (row 0 is diffusion step T); the rest
    as in `run`. counter holds two int64 cells: k, and a ticket that is 0 between launches. From k = T on h stays as it
    is. What is not contiguous is copied by every replay, the tables and the leading dims of eps excepted.
    """
    check_flag(flag)
    if h.ndim != 3:
        raise ValueError(f"{_NAME}: need h [B,Nr,Nt], got {tuple(h.shape)}")
    _result(h, h)
    check_counter(_NAME, counter, h)
    steps = alpha_bar.shape[0]
    bar, rate = (
        table_argument(_NAME, name, t, h, steps) for name, t in (("alpha_bar", alpha_bar), ("beta", beta))
    )  # fmt: skip
    if h.numel() == 0 or steps == 0:
        return h
    op = _operands(h, eps, weights, yv, u, s, copies=True)
    var, scale = (level_argument(_NAME, n, v, op.tensors[0]) for n, v in (("noise_var", noise_var), ("lam", lam)))
    levels = [var, _row(bar), _row(rate), scale]
    _launch(op, h, flag, levels, (counter, bar.stride_k, rate.stride_k, steps), x0, on_table=True)
    return h


def _row(table: Table) -> Levels:
    return Levels(table.tensor, table.stride, 0.0, True)
