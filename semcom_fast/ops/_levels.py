"""Level arguments (sigma, zeta, noise_var, ...) on their way to a kernel: numbers, 0-d tensors, or [B] and [B,U]."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..reference.levels import Level
from . import _checks


def is_number(value: Any) -> bool:
    return isinstance(value, _checks.NUMBERS)


def plain_number(level: Level | None) -> Level | None:
    """A Python float for any kind of number; tensors and None as they are."""
    return float(level) if level is not None and is_number(level) else level


_RANGES = {"seed": (-(2**63), 2**64)}  # the other words of a counter have 32 bits


def check_draw(op: str, seed: Any = 0, step: Any = 0, stream: Any = 0, first_item: Any = 0) -> None:
    """What addresses a Philox draw are integers that fit: others would wrap to somebody else's draw, as item numbers do
    past 2^32. Tensors, which hold seed and step on a device, are not looked at; None draws nothing."""
    words = (seed, step, stream, first_item)
    if all(type(value) is int and 0 <= value < 2**32 for value in words):
        return
    for name, value in zip(("seed", "step", "stream", "first_item"), words, strict=True):
        if value is None or (isinstance(value, Tensor) and name in ("seed", "step")):
            continue
        if isinstance(value, (Tensor, np.ndarray)) or (type(value) is not int and not hasattr(value, "__index__")):
            raise TypeError(f"{op}: {name} must be an integer, got {value!r}")
        if type(value) is not int and torch.compiler.is_compiling():
            continue  # a symbol, whose value is not known
        low, high = _RANGES.get(name, (0, 2**32))
        if not low <= value < high:
            least = "must not be negative" if low == 0 else f"must be at least {low}"
            raise ValueError(f"{op}: {name} {least} and must be less than 2^{high.bit_length() - 1}, got {value}")


def level_tensor(op: str, name: str, value: Any) -> Tensor:
    """A level as a tensor; numbers (in float64) and arrays in host memory, whatever torch's defaults are."""
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(value, dtype=None if isinstance(value, np.ndarray) else torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{op}: {name} must be a number or a tensor, got {type(value).__name__}") from None


def off_host(level: Level, device: torch.device) -> Level:
    """A 0-d tensor in host memory as a number where the data are elsewhere: it travels with the launch, and a copy would
    wait. Tensors that are traced or want a gradient stay tensors."""
    if not isinstance(level, Tensor) or level.ndim or not level.is_cpu or device.type in ("cpu", "meta"):
        return level
    plain = not level.requires_grad and not level.is_complex() and _checks.readable(level)
    return float(level) if plain else level


def check(op: str, name: str, level: Level | None, lead: tuple[int, ...], device: torch.device) -> None:
    """A level tensor is real, on the state's device, and every dim is 1 or matches the leading dims of the state."""
    if level is None or is_number(level):
        return
    if not isinstance(level, Tensor):
        raise TypeError(f"{op}: {name} must be a number or a tensor, got {type(level).__name__}")
    if level.device != device and level.ndim:
        raise ValueError(f"{op}: {name} is on {level.device} but the state is on {device}")
    if level.is_complex():
        raise TypeError(f"{op}: {name} is a level and must be real, got {level.dtype}")
    shape = tuple(level.shape)
    if len(shape) > len(lead) or any(s != 1 and s != n for s, n in zip(shape, lead, strict=False)):
        raise ValueError(f"{op}: {name} {shape} must align from the left with the leading dimensions {lead}")


def require_positive(op: str, name: str, level: Tensor) -> None:
    """On the CPU in eager mode, every entry is positive and finite; on a GPU looking would synchronise."""
    if level.device.type != "cpu" or not level.numel() or not _checks.readable(level):
        return
    good = (level > 0) & torch.isfinite(level)
    if not bool(good.all()):
        bad = int((~good).flatten().nonzero()[0])
        raise ValueError(f"{op}: {name} must be positive and finite, entry {bad} is {float(level.flatten()[bad])}")


def _real(level: Tensor) -> Tensor:
    level = level.resolve_neg()
    return level if level.dtype in _checks.REAL else level.to(torch.float64)


def _strides(t: Tensor, sample_axis: bool) -> tuple[int, int, int]:
    """Strides over sample, item and group; 0 where the level is shared."""
    first = t.stride(0) if t.ndim > 0 and t.shape[0] != 1 else 0
    second = t.stride(1) if t.ndim > 1 and t.shape[1] != 1 else 0
    return (first, second, 0) if sample_axis else (0, first, second)


def cpu_level(level: Level, sample_axis: bool, keep: list[Tensor]) -> float | tuple[int, int, int, int, int]:
    """A number, or (address, is_double, strides over sample, item, group) for the bindings; `keep` pins it."""
    if not isinstance(level, Tensor):
        return float(level)
    t = level if level.is_cpu else level.cpu()
    if t.is_neg() or t.dtype not in _checks.REAL:
        t = _real(t)
    keep.append(t)
    return (t.data_ptr(), int(t.dtype is torch.float64), *_strides(t, sample_axis))


def device_level(level: Level, sample_axis: bool, device: torch.device) -> tuple[Tensor, int, int, int]:
    """(tensor, strides over sample, item, group) for a GPU kernel; a number is filled on the device, without a copy."""
    level = off_host(level, device)
    if is_number(level):
        return torch.full((), float(level), dtype=torch.float64, device=device), 0, 0, 0
    assert isinstance(level, Tensor)
    t = _real(level.detach()).to(device, non_blocking=True)
    return (t, *_strides(t, sample_axis))


def as_tensor(level: Level | None, device: torch.device) -> Tensor | None:
    """What the traced op takes: numbers become 0-d float64 tensors."""
    if level is None or isinstance(level, Tensor):
        return level
    return torch.full((), float(level), dtype=torch.float64, device=device)


def int_tensor(value: int | Tensor | None, device: torch.device) -> Tensor | None:
    """seed and step of the traced op: 64-bit patterns in int64."""
    return value if value is None or isinstance(value, Tensor) else seed_cell(value, device)


def wrapped(value: int) -> int:
    """The number that int64 holds for the 64 bits of a seed."""
    return (int(value) + 2**63) % 2**64 - 2**63


def seed_cell(value: int, device: torch.device) -> Tensor:
    """A 0-d int64 with the 64 bits of a seed, filled on the device."""
    return torch.full((), wrapped(value), dtype=torch.int64, device=device)


def to_int(value: int | Tensor | None) -> int:
    """The unsigned 64-bit value of a seed or step on the CPU."""
    return 0 if value is None else int(value) % 2**64
