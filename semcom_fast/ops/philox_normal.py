"""Counter-based standard normals."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _backend, reference
from .._native import kernel
from . import _checks, _levels
from ._register import Op


def _sizes(shape: Sequence[int], dtype: torch.dtype) -> tuple[int, int, float]:
    shape = tuple(shape)
    reals = math.prod(shape[1:]) * (2 if dtype.is_complex else 1)
    return (shape[0] if shape else 1), reals, (math.sqrt(0.5) if dtype.is_complex else 1.0)


def _cpu(shape, seed, step, stream, first_item, dtype, device) -> Tensor:
    out = torch.empty(tuple(shape), dtype=dtype, device=device)
    items, reals, scale = _sizes(shape, dtype)
    if out.numel():
        double = dtype is torch.float64 or dtype is torch.complex128
        key = _levels.to_int(seed), _levels.to_int(step) & 0xFFFFFFFF, stream, first_item
        kernel("cpu_philox_normal")(double, out.data_ptr(), items, reals, scale, *key)
    return out


def _triton(shape, seed, step, stream, first_item, dtype, device) -> Tensor:
    from ..triton import philox_normal as triton

    items, reals, scale = _sizes(shape, dtype)
    real = dtype.to_real()
    out = triton.run(items, reals, seed, step, stream, first_item, real, torch.device(device), scale)
    out = torch.view_as_complex(out.reshape(items, reals // 2, 2)) if dtype.is_complex else out
    return out.reshape(tuple(shape))


def _reference(shape, seed, step, stream, first_item, dtype, device) -> Tensor:
    return reference.philox_normal(
        shape, seed=seed, step=step, stream=stream, first_item=first_item, dtype=dtype, device=device
    )


class _DrawOp(Op):
    """No tensor argument decides the device here; the `device` argument does."""

    def run(self, *args):
        device = torch.device(args[6])
        if device.type == "cpu" and _backend.unforced():
            return self.kernels["cpu"](*args)  # what `select` finds, sooner
        if device.type == "meta":
            return self._fake(*args)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        return self.kernels[_backend.select(self.name, self.homes, device)](*args)


_NAME, _HOST = "philox_normal", torch.device("cpu")
_op = _DrawOp(
    _NAME,
    "(SymInt[] shape, Tensor seed, Tensor step, int stream, int first_item, ScalarType dtype, Device device) -> Tensor",
    kernels={"cpu": _cpu, "triton": _triton, "reference": _reference},
    fake=lambda shape, seed, step, stream, first_item, dtype, device: torch.empty(shape, dtype=dtype, device=device),
    packet_args=lambda a: (a[0], _levels.int_tensor(a[1], a[6]), _levels.int_tensor(a[2], a[6]), *a[3:]),
)


def philox_normal(
    shape: Sequence[int],
    *,
    seed: int | Tensor,
    step: int | Tensor = 0,
    stream: int = 0,
    first_item: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normals from Philox4x32-10, addressed by (seed, step, stream, item, index): no state, no order.

    Definition: key = (seed low 32 bits, high 32 bits); counter = (i//4, step, item, stream) with i the row-major real
    index inside an item and item = first_item + index on axis 0, so a split batch draws the same numbers. Four words
    give four normals by Box-Muller; a complex entry e is (normal 2e + i normal 2e+1)/sqrt(2), that is CN(0, 1).

    Args:
        shape: of the result; axis 0 counts items.
        seed: 64 bits. step: 32 bits. Both may be 0-d int64 tensors on the device, so that a captured graph can replay.
        stream: which of several independent draws (0 is the user's; docs/conventions.md lists those the loops use).
        first_item: item index of row 0.
        dtype: float32, float64, complex64 or complex128.

    Returns:
        Tensor of `shape`. The 32-bit words are equal on every back end and thread count; float32 normals agree with
        float64 to 2e-6 absolute, element by element.
    """
    if dtype not in _checks.ANY:
        raise TypeError(f"{_NAME}: dtype must be float32, float64, complex64 or complex128, got {dtype}")
    if seed is None:
        raise ValueError(f"{_NAME}: a draw needs a seed")
    _levels.check_draw(_NAME, seed, step, stream, first_item)
    device = _HOST if device == "cpu" else torch.device(device)
    return _op(tuple(shape), seed, step, stream, first_item, dtype, device)
