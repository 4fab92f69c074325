"""What the kernels of the expert mixture share: tiles of complex matrices as real planes, their products, and draws.

A complex [M, N] matrix lies in memory as [M, 2N] reals; a tile is loaded whole, as wide as the row length allows, and
split into its two planes. Products are four real ones in full precision.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import fits_32_bits
from ._tuned import Choice, choose, size_class
from ._waterfill_args import LevelLike, Levels, level_argument
from .philox import stream_normals

STREAM = tl.constexpr(8)  # of docs/conventions.md
_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


@triton.jit
def planes(pointer, row, rows, first, units, VEC: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """(re, im) of rows `row` [M], columns first..first+N of a complex matrix with units*VEC reals a row; 0 outside."""
    column = 2 * first + tl.arange(0, 2 * N)[None, :]
    offset = row[:, None] * (units * VEC) + column
    mask = (row < rows)[:, None] & (column < units * VEC)
    value = tl.load(pointer + offset, mask=mask, other=0.0)
    return tl.split(tl.reshape(value, (M, N, 2)))


@triton.jit
def interleave(re, im, M: tl.constexpr, N: tl.constexpr):
    return tl.reshape(tl.join(re, im), (M, 2 * N))


@triton.jit
def add_product(acc_re, acc_im, a_re, a_im, b_re, b_im):
    """acc + a b of complex matrices in planes."""
    real = acc_re.dtype
    acc_re = tl.dot(a_re, b_re, acc_re, input_precision="ieee", out_dtype=real)
    acc_im = tl.dot(a_re, b_im, acc_im, input_precision="ieee", out_dtype=real)
    acc_re = tl.dot(-a_im, b_im, acc_re, input_precision="ieee", out_dtype=real)
    acc_im = tl.dot(a_im, b_re, acc_im, input_precision="ieee", out_dtype=real)
    return acc_re, acc_im


@triton.jit
def add_product_adjoint(acc_re, acc_im, a_re, a_im, b_re, b_im):
    """acc + a b^H of complex matrices in planes."""
    real = acc_re.dtype
    t_re, t_im = tl.trans(b_re), tl.trans(b_im)
    acc_re = tl.dot(a_re, t_re, acc_re, input_precision="ieee", out_dtype=real)
    acc_im = tl.dot(a_im, t_re, acc_im, input_precision="ieee", out_dtype=real)
    acc_re = tl.dot(a_im, t_im, acc_re, input_precision="ieee", out_dtype=real)
    acc_im = tl.dot(-a_re, t_im, acc_im, input_precision="ieee", out_dtype=real)
    return acc_re, acc_im


@triton.jit
def complex_normals(entry, step, item, k0, k1, DOUBLE: tl.constexpr):
    """(re, im) of circular normals, entries `entry` (uint32, any shape): reals 2e and 2e+1, times sqrt(1/2)."""
    return stream_normals(entry, step, item, STREAM, k0, k1, DOUBLE)


class Tiles(NamedTuple):
    """How programs cover complex [Nr, Nt] matrices that meet [Nt, r] ones; depends on sizes and dtype alone."""

    rows: int  # of a tile
    columns: int
    rank: int  # columns of U taken at a time
    vec: int  # reals of one access of a row of Nt entries, at most 4
    rank_vec: int
    warps: int
    stages: int


def tiles(nr: int, nt: int, rank: int, state: Tensor, op: str, widest: int = 64) -> Tiles:
    """Tiles of at most 16 x `widest` entries; several tiles of float64 state fit the registers at half that size.

    Warps and stages as tuned for `op` on the device of `state`, the reals of the matrices.
    """
    rows = min(16, triton.next_power_of_2(nr))
    columns = max(16, min(widest, triton.next_power_of_2(nt)))
    if state.dtype == torch.float64 and nt > widest:
        rows, columns = min(8, rows), 32
    # one stage: buffers for loads in flight would cost the registers of the tiles
    default = Choice(0, 8 if nt > 32 and columns >= 32 else 4, 1)
    choice = choose(op, size_class(nt, 2 * widest), state.dtype, state.device, default)
    stages = choice.num_stages or 1
    return Tiles(rows, columns, 16, math.gcd(2 * nt, 4), math.gcd(2 * rank, 4), choice.num_warps, stages)


def real_view(op: str, name: str, t: Tensor) -> Tensor:
    """The interleaved reals of a complex tensor, contiguous: what a kernel reads."""
    if t.dtype not in _REAL:
        raise TypeError(f"{op}: {name} must be complex64 or complex128, got {t.dtype}")
    return torch.view_as_real(t.resolve_conj().resolve_neg().contiguous())


def real_matrices(op: str, name: str, t: Tensor, lead: int) -> Tensor:
    """Reals of a complex [..., Nr, Nt] tensor whose first `lead` dims keep their strides: only matrices must be dense."""
    if t.dtype not in _REAL:
        raise TypeError(f"{op}: {name} must be complex64 or complex128, got {t.dtype}")
    t = t.resolve_conj().resolve_neg()
    dense = not t.numel() or t[(0,) * lead].is_contiguous()
    # so that wide accesses stay aligned
    even = t.shape[-2] * t.shape[-1] % 2 == 1 or all(s % 2 == 0 for s in t.stride()[:lead])
    return torch.view_as_real(t if dense and even else t.contiguous())


def like_state(op: str, name: str, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if t.shape != shape or t.dtype != dtype or t.device != device:
        raise ValueError(
            f"{op}: {name} must be {dtype} {shape} on {device}, got {t.dtype} {tuple(t.shape)} on {t.device}"
        )


def item_level(op: str, name: str, value: LevelLike, lead: tuple[int, ...], like: Tensor) -> Levels:
    """A level over the leading dims (aligned from the left) as one over the flattened items of `like` [N, ...]."""
    if isinstance(value, tuple):
        tensor, stride_l, stride_b, stride_g = value
        if len(lead) > 1 and stride_g:
            value = tensor.as_strided(lead[:2], (stride_b, stride_g))
        elif len(lead) > 1 and stride_b:
            value = tensor.as_strided(lead[:1], (stride_b,))
        else:
            value = (tensor, stride_l, stride_b, stride_g)
    if isinstance(value, Tensor) and value.ndim and len(lead) > 1:
        shape = value.shape
        if len(shape) > len(lead) or any(s not in (1, n) for s, n in zip(shape, lead, strict=False)):
            raise ValueError(f"{op}: {name} {tuple(shape)} must align from the left with the leading dims {lead}")
        value = value.reshape(*shape, *(1,) * (len(lead) - len(shape))).expand(lead).reshape(-1)
    return level_argument(op, name, value, like)


def shared_or_batched(op: str, name: str, t: Tensor, tail: tuple[int, ...], lead: tuple[int, ...]) -> Tensor:
    """[*tail] shared by all items, or [N, *tail]: leading dims that broadcast from the left are laid out."""
    given = tuple(t.shape[: t.ndim - len(tail)])
    if tuple(t.shape[t.ndim - len(tail) :]) != tail or len(given) > len(lead):
        raise ValueError(f"{op}: {name} must be {tail} or {(*lead, *tail)}, got {tuple(t.shape)}")
    if all(n == 1 for n in given):
        return t.reshape(tail)
    if any(s not in (1, n) for s, n in zip(given, lead[len(lead) - len(given) :], strict=True)):
        raise ValueError(f"{op}: {name} must be {tail} or {(*lead, *tail)}, got {tuple(t.shape)}")
    return t.expand(*lead, *tail).reshape(-1, *tail)


def table(op: str, name: str, t: Tensor, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A device table of one value per diffusion step of the set."""
    if t.shape != (count,) or t.dtype != dtype or t.device != device:
        raise ValueError(
            f"{op}: {name} must be {dtype} [{count}] on {device}, got {t.dtype} {tuple(t.shape)} {t.device}"
        )
    return t.resolve_neg().contiguous()


def check_sizes(items: int, entries: int) -> None:
    fits_32_bits("the number of reals of one item", 2 * entries)
    fits_32_bits("the number of items", items)
