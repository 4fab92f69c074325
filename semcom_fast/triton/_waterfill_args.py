"""What every water-filling launch checks and passes: states, noise levels d, levels, level tables, cells."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._launch import Cell, Tiling, as_level, fits_32_bits, real_dtype, tiling
from ._waterfill import DRAW, EXPLICIT, NO_DRAW, PER_ITEM, PER_REAL, PER_SYMBOL

LevelLike = float | Tensor | Cell


class Levels(NamedTuple):
    """One level argument of a kernel: a tensor with its stride over the items, or a number, and which of the two."""

    tensor: Tensor
    stride: int
    value: float
    is_tensor: bool


def level_argument(op: str, name: str, value: LevelLike | None, like: Tensor) -> Levels:
    """A number, a 0-d or [B] tensor, or a (tensor, stride_l, stride_b, stride_g) tuple; None passes nothing.

    Numbers travel as float64 kernel arguments, tensors are read in place. `like` is the state [B, ...].
    """
    if isinstance(value, Tensor) and value.ndim == 0 and value.device.type == "cpu" != like.device.type:
        value = float(value)
    if value is None or isinstance(value, (int, float)):
        return Levels(like, 0, 0.0 if value is None else float(value), False)
    cell = as_level(value, device=like.device, batch=like.shape[0]) if isinstance(value, Tensor) else value
    tensor, stride_l, stride_b, stride_g = cell
    if stride_l != 0 or stride_g != 0:
        raise ValueError(f"{op}: {name} can vary over the items only, got strides {(stride_l, stride_b, stride_g)}")
    return Levels(tensor, stride_b, 0.0, True)


class Table(NamedTuple):
    """A level table of a captured step: [T+1] or [T+1,B] with its strides over levels and items."""

    tensor: Tensor
    stride: int
    stride_k: int


def table_argument(op: str, name: str, value: Tensor, like: Tensor, rows: int) -> Table:
    """Check a table with at least `rows` levels on the state's device; it is read in place at every replay."""
    if value.dtype not in (torch.float32, torch.float64) or value.device != like.device:
        raise TypeError(f"{op}: {name} must be float32 or float64 on {like.device}, got {value.dtype} {value.device}")
    if value.ndim not in (1, 2) or value.shape[0] < rows or (value.ndim == 2 and value.shape[1] not in (1, len(like))):
        raise ValueError(
            f"{op}: {name} must be [{rows}] or [{rows},{len(like)}] or have more rows, got {tuple(value.shape)}"
        )
    return Table(value, value.stride(1) if value.ndim == 2 and value.shape[1] > 1 else 0, value.stride(0))


def table_or_number(op: str, name: str, value: float | Tensor | None, like: Tensor, rows: int) -> tuple[Levels, int]:
    """What a captured step reads besides the levels: a table with its stride over steps, or a number for all of them."""
    if not isinstance(value, Tensor):
        return level_argument(op, name, value, like), 0
    table = table_argument(op, name, value, like, rows)
    return Levels(table.tensor, table.stride, 0.0, True), table.stride_k


class State(NamedTuple):
    """How a launch covers the state, and what kind of noise level d is."""

    shape: Tiling
    d: Tensor
    d_stride: int
    kind: int
    length: int  # in units of shape.vec reals


def check_state(
    op: str, state: tuple[str, Tensor], same: dict[str, Tensor | None], d: Tensor, net: dict[str, Tensor | None]
) -> State:
    """Shapes, dtypes and devices; `same` like the state, `net` (network outputs) bfloat16, float32 or its dtype."""
    name, g = state
    dtype = real_dtype(f"{op}: {name}", g)
    if g.ndim != 2 or g.shape[1] % 2:
        raise ValueError(f"{op}: need {name} [B,N] with an even N, got {tuple(g.shape)}")
    for key, t in same.items():
        if t is not None and (t.shape != g.shape or t.dtype != dtype or t.device != g.device):
            raise ValueError(f"{op}: {key} must be {dtype} {tuple(g.shape)} on {g.device}, got {_what(t)}")
    for key, t in net.items():
        if t is not None and (t.shape != g.shape or t.device != g.device):
            raise ValueError(f"{op}: {key} must be {tuple(g.shape)} on {g.device}, got {_what(t)}")
        if t is not None and t.dtype not in (torch.bfloat16, torch.float32, dtype):
            raise TypeError(f"{op}: {key} must be bfloat16, float32 or {dtype}, got {t.dtype}")
    fits_32_bits("the number of reals of one item", g.shape[1])
    fits_32_bits("the number of items", g.shape[0])
    return _state(op, g, d)


def _what(t: Tensor) -> str:
    return f"{t.dtype} {tuple(t.shape)} on {t.device}"


def _state(op: str, g: Tensor, d: Tensor) -> State:
    batch, n = g.shape
    if d.dtype != g.dtype or d.device != g.device or d.ndim != 2 or d.shape[0] != batch:
        raise ValueError(f"{op}: d must be {g.dtype} [{batch}, ...] on {g.device}, got {_what(d)}")
    if d.shape[1] not in (1, n // 2, n):
        raise ValueError(f"{op}: d must be [B,N/2], [B,N] or [B,1] with N = {n}, got {tuple(d.shape)}")
    shape = tiling(max(n, 2), 1, op, g, quad_per_thread=True)  # which keeps the registers few
    if d.shape[1] == 1 or d.stride(1) == 0:
        return State(shape, d, d.stride(0), PER_ITEM, n // shape.vec)
    if d.shape[1] == n:
        return State(shape, d.contiguous(), 0, PER_REAL, n // shape.vec)
    shape = shape._replace(vec=math.gcd(n // 2, 4))
    return State(shape, d.contiguous(), 0, PER_SYMBOL, n // shape.vec)


def results(op: str, like: Tensor, out: dict[str, Tensor | None]) -> list[Tensor]:
    """The given output tensors, or new ones like the state."""
    found = []
    for name, t in out.items():
        if t is not None and (
            t.shape != like.shape or t.dtype != like.dtype or t.device != like.device or not t.is_contiguous()
        ):
            raise ValueError(f"{op}: {name} must be contiguous and like the state, got {_what(t)}")
        found.append(torch.empty_like(like, memory_format=torch.contiguous_format) if t is None else t)
    return found


def draw_mode(noise: Tensor | None, seed: int | Tensor | None) -> int:
    return EXPLICIT if noise is not None else NO_DRAW if seed is None else DRAW


def check_counter(op: str, counter: Tensor, like: Tensor) -> None:
    """Two int64 cells on the state's device: the level index k, and the ticket of the running launch (0 between)."""
    if counter.dtype != torch.int64 or counter.shape != (2,) or counter.device != like.device:
        raise TypeError(f"{op}: counter must be int64 [2] on {like.device}, got {_what(counter)}")
    if not counter.is_contiguous():
        raise ValueError(f"{op}: counter must be contiguous")


def check_level_out(op: str, level_out: Tensor | None, like: Tensor) -> None:
    if level_out is not None and (
        level_out.shape != like.shape[:1] or level_out.device != like.device or not level_out.is_contiguous()
        or level_out.dtype not in (torch.float32, torch.float64)
    ):  # fmt: skip
        raise ValueError(f"{op}: level_out must be float32 or float64 [{len(like)}], got {_what(level_out)}")


def check_table_noise(op: str, noise: Tensor | None, like: Tensor, steps: int) -> None:
    if noise is not None and (
        noise.shape[1:] != like.shape or noise.shape[0] < steps or noise.dtype != like.dtype
        or noise.device != like.device or not noise.is_contiguous()
    ):  # fmt: skip
        raise ValueError(
            f"{op}: noise must be contiguous {like.dtype} [{steps},{like.shape[0]},{like.shape[1]}], got {_what(noise)}"
        )


def noise_rows(noise: Tensor | None) -> tuple[int, int]:
    """(rows, stride over them) of a noise table; a kernel never reads past its last row."""
    return (1, 0) if noise is None else (noise.shape[0], noise.stride(0))
