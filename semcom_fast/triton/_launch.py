"""What every launch needs: the device guard, 32-bit words of Python integers, and level arguments."""

import contextlib
import math
from typing import NamedTuple, Protocol

import torch
import triton
from torch import Tensor

from ..errors import BackendUnavailable
from ._tuned import Choice, choose, size_class

INTERPRETED = bool(triton.knobs.runtime.interpret)
_LIMIT = 2**31
_SHORT = 64  # quads up to which several rows share a program
_LONGEST = 4096  # quads of the last size class of the table of launch choices


class Level(NamedTuple):
    """A level argument as a kernel reads it: one float of `tensor` per (sample, batch, group), stride 0 = shared."""

    tensor: Tensor
    stride_l: int
    stride_b: int
    stride_g: int


Cell = tuple[Tensor, int, int, int]
"""What a `Level` is to a kernel: any tuple of a float32 or float64 tensor and its three strides will do."""


class LevelFields(Protocol):
    """The five levels of one `pvd_update`."""

    @property
    def sigma(self) -> Cell: ...
    @property
    def sigma_above(self) -> Cell: ...
    @property
    def zeta(self) -> Cell: ...
    @property
    def score_var(self) -> Cell: ...
    @property
    def next_var(self) -> Cell | float | None: ...


class PvdLevels(NamedTuple):
    """The levels of one `pvd_update`; `next_var` None means s^2 (S^2 - s^2)/S^2, the Python number 0 means no draw."""

    sigma: Cell
    sigma_above: Cell
    zeta: Cell
    score_var: Cell
    next_var: Cell | float | None = None


def as_level(
    value: float | Tensor, *, device: torch.device, batch: int, groups: int = 1, samples: int | None = None
) -> Level:
    """A number, or a tensor over [B] or [B,G] (aligned from the left; [L,B] when `samples` is L), as a `Level`.

    Numbers become a float64 0-d tensor through `torch.full`: no synchronisation, so the call can be captured. Tensors
    are read in place, whatever their strides. Raises ValueError for a shape that does not broadcast.
    """
    if not isinstance(value, Tensor):
        return Level(torch.full((), float(value), dtype=torch.float64, device=device), 0, 0, 0)
    value = value.resolve_neg()
    if value.dtype not in (torch.float32, torch.float64):
        value = value.to(torch.float64)
    if value.device != device:
        if value.ndim == 0 and value.device.type == "cpu":
            return as_level(float(value), device=device, batch=batch)
        value = value.to(device, non_blocking=True)
    shape = value.shape
    if samples is not None and shape == (samples, batch):
        return Level(value, value.stride(0), value.stride(1), 0)
    while len(shape) > 2 and shape[-1] == 1:
        value = value.squeeze(-1)
        shape = value.shape
    sizes = (batch, groups)[: len(shape)]
    if len(shape) > 2 or any(n not in (1, size) for n, size in zip(shape, sizes, strict=True)):
        raise ValueError(f"a level of shape {tuple(shape)} does not broadcast to the leading dims {(batch, groups)}")
    strides = [0 if n == 1 else st for n, st in zip(shape, value.stride(), strict=True)] + [0, 0]
    return Level(value, 0, strides[0], strides[1])


def word(value: int) -> int:
    """The low 32 bits as a signed int32, so that an integer argument has one type in every launch."""
    low = int(value) & 0xFFFFFFFF
    return low - 2**32 if low >= _LIMIT else low


def seed_arguments(seed: int | Tensor | None, device: torch.device) -> tuple[int | Tensor, int, bool]:
    """(low word or device cell, high word, whether it is a cell): the two key words of a 64-bit seed."""
    value = _integer("seed", 0 if seed is None else seed, device)
    return (value, 0, True) if isinstance(value, Tensor) else (word(value), word(value >> 32), False)


def step_argument(step: int | Tensor, device: torch.device, name: str = "step") -> tuple[int | Tensor, bool]:
    """(word or device cell, whether it is a cell)."""
    value = _integer(name, step, device)
    return (value, True) if isinstance(value, Tensor) else (word(value), False)


def _integer(name: str, value: int | Tensor, device: torch.device) -> int | Tensor:
    """An int, or an int64 tensor with one element on `device`; a tensor in host memory is read without a wait."""
    if not isinstance(value, Tensor):
        return int(value)
    if value.numel() != 1 or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must be an int or an integer tensor with one element, got {value.dtype} {value.shape}")
    if value.device.type == "cpu" and device.type != "cpu":
        return int(value)
    return value.to(device=device, dtype=torch.int64)


def check_flag(flag: Tensor | None) -> None:
    if flag is not None and (flag.dtype not in (torch.int32, torch.int64) or flag.numel() != 1):
        raise TypeError(f"flag must be an int32 or int64 tensor with one element, got {flag.dtype} {tuple(flag.shape)}")


def real_dtype(name: str, t: Tensor) -> torch.dtype:
    if t.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64 (complex tensors go through view_as_real), got {t.dtype}")
    return t.dtype


def fits_32_bits(what: str, count: int) -> None:
    """Indices inside one item are 32-bit, offsets between items 64-bit."""
    if count >= _LIMIT:
        raise ValueError(f"{what} is {count}; the Triton kernels index at most {_LIMIT - 1}")


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """Triton launches on the current device: make it the tensors'. CPU tensors run in the interpreter only."""
    if device.type == "cuda":
        return torch.cuda.device(device)
    if INTERPRETED:
        return contextlib.nullcontext()
    raise BackendUnavailable(
        f"the Triton kernels need CUDA tensors, got {device}; move them to a CUDA device, or set TRITON_INTERPRET=1 "
        "before triton is imported to run them in its interpreter"
    )


class Tiling(NamedTuple):
    """How rows of `length` reals map to programs of quads; depends on the row alone, so a split batch is the same."""

    vec: int  # 4, 2 or 1: largest power of two up to 4 that divides the row length; it bounds the access width
    quads: int  # quads one program covers of one row
    rows: int  # rows of one program, more than 1 only when a row fits into it
    chunks: int  # programs per row
    warps: int


def tiling(length: int, groups: int, op: str = "", like: Tensor | None = None, quad_per_thread: bool = False) -> Tiling:
    """The tiling of rows of `length` reals; with `op` and a tensor `like` the state, as tuned for its device."""
    vec = math.gcd(length, 4)
    straddle = vec != 4 and groups > 1  # a quad may then belong to two rows: both compute it, each stores its part
    quads = -(-length // 4) + int(straddle)
    block = 256 if quads >= 2048 or (quads > _SHORT and quads % 256 == 0) else 128
    choice = Choice(block, block // 32 if quad_per_thread else 4)
    if like is not None:
        choice = choose(op, size_class(quads, _LONGEST), like.dtype, like.device, choice)
    if quads <= _SHORT:
        own = triton.next_power_of_2(quads)
        return Tiling(vec, own, max(1, choice.block // own), 1, choice.num_warps)
    return Tiling(vec, choice.block, 1, -(-quads // choice.block), choice.num_warps)
