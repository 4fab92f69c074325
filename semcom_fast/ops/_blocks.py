"""Shapes, strides and addresses of block-diagonal MIMO operands, for the ops over csrc/cpu/block_worker.hpp."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from .._native import kernel
from . import _checks
from ._checks import plain
from ._register import Op, fold

NEED = "h [...,U,K,Nr,Nt], x [...,U,K,Nt,T], y [...,K,Nr,T]"


def check_hx(op: str, h: Tensor, x: Tensor) -> None:
    """h and x agree on users, blocks and transmit antennas."""
    ok = h.ndim >= 4 and x.ndim >= 4
    if not (ok and h.shape[-4:-2] == x.shape[-4:-2] and h.shape[-1] == x.shape[-2]):
        raise _checks.shape_error(op, NEED, h=h, x=x)


def check_hy(op: str, h: Tensor, y: Tensor) -> None:
    """h and y agree on blocks and receive antennas."""
    ok = h.ndim >= 4 and y.ndim >= 3
    if not (ok and h.shape[-3] == y.shape[-3] and h.shape[-2] == y.shape[-2]):
        raise _checks.shape_error(op, NEED, h=h, y=y)


def batch_stride(t: Tensor) -> int:
    """Entries between batch items of a contiguous [B,...] tensor; 0 when one item serves the whole batch."""
    return 0 if t.shape[0] == 1 else t.stride(0)


def batch_size(*tensors: Tensor | None) -> int:
    """The common batch of flattened operands, where 1 broadcasts and 0 wins."""
    size = 1
    for t in tensors:
        if t is not None and t.shape[0] != 1:
            size = t.shape[0]
    return size


def is_double(t: Tensor) -> bool:
    return t.dtype in (torch.complex128, torch.float64)


def launch(op: str, cuda: bool, device: torch.device, *args) -> None:
    """Call the CPU kernel and raise at its non-finite flag, or enqueue the CUDA kernel on torch's current stream."""
    if cuda:
        kernel(f"cuda_{op}")(*args, *_native.stream_of(device))
        return
    bad = kernel(f"cpu_{op}")(*args)
    if bad >= 0:
        _raise_at(op, bad, args[-1][2])


def _raise_at(op: str, bad: int, blocks: int) -> None:
    if not _checks.tolerating_non_finite():
        raise _checks.non_finite(op, f"batch item {bad // blocks}, block", bad % blocks)


def sum_to_batch(grad: Tensor, like: Tensor) -> Tensor:
    """Undo the broadcast of a shared (B = 1) operand."""
    return grad.sum(0, keepdim=True) if like.shape[0] == 1 and grad.shape[0] != 1 else grad


__all__ = [
    "batch_size",
    "batch_stride",
    "bilinear",
    "check_hx",
    "check_hy",
    "is_double",
    "launch",
    "plain",
    "sum_to_batch",
]


def bilinear(
    name: str,
    operand: str,
    shape_of: Callable[[Tensor, Tensor], tuple[int, ...]],
    contracted: Callable[[torch.Size], int],
    definition: Callable[[Tensor, Tensor], Tensor],
    backward: Callable,
    adjoint: bool = False,
) -> Op:
    """Registration of out = name(h, operand), linear in both; `adjoint`: by h^H, and every user has a result.

    shape_of: the result's shape without the batch. contracted: entries summed over, of h's shape; none means zero.
    definition: the reference twin.
    """

    def cpu(h: Tensor, other: Tensor) -> Tensor:
        """Without a sum over users, the kernel of plain products, which packs blocks along the lanes where there are few
        slots and takes any strides. (Small calls are a few microseconds: every look-up counts.)"""
        hs, conj = h.shape, h.is_conj()
        shape: Sequence[int] = other.shape
        b, u, k, nr, nt = hs
        t = shape[-1]
        double = h.dtype is torch.complex128
        if adjoint:  # rows of H^H are strided: the block worker reads H along its rows instead, which doubles need
            products = not (double and t > 2 and nr > 1) or conj or not h.is_contiguous()
        else:
            products = u == 1
        if not products or h.is_neg():
            return native(h, other, False)
        if b == 1:
            b = shape[0]
        if other.is_conj() or other.is_neg():
            other = plain(other)
        # h.new_empty would carry out a lazy conjugate first, and a tuple of sizes take a microsecond more
        out = other.new_empty(b, u, k, nt, t) if adjoint else other.new_empty(b, k, nr, t)
        if not (b and u and k and nr and nt and t):
            return out.zero_()
        stride = other.stride()
        if adjoint:
            shape, stride, of = (shape[0], 1, k, nr, t), (stride[0], 0, *stride[1:]), (b, u, k, nt, t)
        else:
            of = (b, 1, k, nr, t)
        bad = kernel("cpu_mimo_matmul")(
            double,
            (h.data_ptr(), hs, h.stride(), conj != adjoint, adjoint),
            (other.data_ptr(), shape, stride, False, False),
            out.data_ptr(),
            of,
        )
        if bad >= 0:
            _raise_at(name, bad // (u * k) * k + bad % k, k)
        return out

    def native(h: Tensor, other: Tensor, cuda: bool) -> Tensor:
        h, other = plain(h), plain(other)
        b = batch_size(h, other)
        out = h.new_empty((b, *shape_of(h, other)))
        if contracted(h.shape) == 0:
            return out.zero_()
        if out.numel():
            sizes = (b, *h.shape[1:], other.shape[-1])
            pointers = h.data_ptr(), other.data_ptr(), out.data_ptr()
            launch(name, cuda, h.device, is_double(h), *pointers, batch_stride(h), batch_stride(other), sizes)
        return out

    def reference(h: Tensor, other: Tensor) -> Tensor:
        out = definition(h, other)
        _checks.require_finite(name, "batch item", out)
        return out

    def fake(h: Tensor, other: Tensor) -> Tensor:
        b = h.shape[0] if other.shape[0] == 1 else other.shape[0]
        return h.new_empty((b, *shape_of(h, other)))

    def jvp(args: Any, outs: Any, tangents: Any) -> Tensor:
        (h, other), (dh, d_other) = args, tangents
        terms = [op(a, b) for a, b in ((dh, other), (h, d_other)) if a is not None and b is not None]
        return sum(terms[1:], terms[0])

    def vmap(args: Any, mapped: Any, size: int) -> Tensor:
        out = op(*fold(args, mapped, size, (True, True)))
        return out.reshape(size, -1, *out.shape[1:])

    op = Op(
        name,
        f"(Tensor h, Tensor {operand}) -> Tensor",
        kernels={
            "cpu": cpu,
            "cuda": lambda h, other: native(h, other, True),
            "reference": reference,
        },
        fake=fake,
        backward=backward,
        jvp=jvp,
        vmap=vmap,
    )
    return op
