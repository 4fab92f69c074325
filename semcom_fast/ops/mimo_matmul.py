"""Batched products of small complex matrices."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _native, reference
from .._native import kernel
from . import _checks
from ._arrays import array_function
from ._matmul_rule import ours
from ._register import Op

if TYPE_CHECKING:
    from jaxtyping import Complex

_NAME = "mimo_matmul"
_NEED = "a [...,M,K], b [...,K,N] (after their adjoints)"


def _shape(a: Tensor, b: Tensor, adjoint_a: bool, adjoint_b: bool) -> tuple[int, ...]:
    """Shape of the product; raises where the operands do not fit."""
    sa, sb = a.shape, b.shape
    ok = len(sa) >= 2 and len(sb) >= 2
    if not ok or sa[-2 if adjoint_a else -1] != sb[-1 if adjoint_b else -2]:
        flags = "".join(f", {n} adjoint" for n, f in (("a", adjoint_a), ("b", adjoint_b)) if f)
        raise _checks.shape_error(_NAME, _NEED + flags, a=a, b=b)
    m, n = sa[-1 if adjoint_a else -2], sb[-2 if adjoint_b else -1]
    if len(sa) == len(sb) == 3 and sa[0] == sb[0]:
        return sa[0], m, n
    return (*_checks.lead_shape(_NAME, _NEED, "a b", (a, 2), (b, 2)), m, n)


def _cpu(a: Tensor, b: Tensor, adjoint_a: bool, adjoint_b: bool) -> Tensor:
    """`_product` of two batches of equal size, without what other operands need: here every look-up counts."""
    sa, sb = a.shape, b.shape
    if len(sa) == len(sb) == 3 and not (adjoint_a or adjoint_b or a.is_neg() or b.is_neg()):
        items, m, k = sa
        n, double, conj_a, conj_b = sb[2], a.dtype is torch.complex128, a.is_conj(), b.is_conj()
        plain = not (conj_a or conj_b)
        if sb[0] != items or sb[1] != k or not items * m * k * n:
            pass
        elif ours(m, k, n, items, False, plain):
            shape = items, m, n
            # new_empty would carry out a lazy conjugate first, and a tuple of sizes take it a microsecond more
            out = a.new_empty(items, m, n) if not conj_a else torch.empty(shape, dtype=a.dtype, device=a.device)
            of_a = a.data_ptr(), sa, a.stride(), conj_a, False
            of_b = b.data_ptr(), sb, b.stride(), conj_b, False
            bad = kernel("cpu_mimo_matmul")(double, of_a, of_b, out.data_ptr(), shape)
            return out if bad < 0 else _flagged(out, bad)
        elif plain:
            out = torch.bmm(a, b)  # torch.matmul ends here too, two microseconds later
            bad = kernel("cpu_mimo_matmul_check")(double, out.data_ptr(), items, m, n)
            return out if bad < 0 else _flagged(out, bad)
    return _product(a, b, adjoint_a, adjoint_b, False)


def _flagged(out: Tensor, item: int) -> Tensor:
    if not _checks.tolerating_non_finite():
        raise _checks.non_finite(_NAME, "batch item", item)
    return out


def _product(a: Tensor, b: Tensor, adjoint_a: bool, adjoint_b: bool, cuda: bool) -> Tensor:
    shape = _shape(a, b, adjoint_a, adjoint_b)
    m, n, k, items = shape[-2], shape[-1], a.shape[-2 if adjoint_a else -1], 1
    for size in shape[:-2]:
        items *= size
    if not (m and n and k and items):
        return a.new_zeros(shape)
    conj_a, conj_b = a.is_conj() != adjoint_a, b.is_conj() != adjoint_b
    double, bad = a.dtype is torch.complex128, -1
    if ours(m, k, n, items, cuda, not (conj_a or conj_b)):
        if a.is_neg() or b.is_neg():  # may carry out a lazy conjugate as well
            a, b = a.resolve_neg(), b.resolve_neg()
            conj_a, conj_b = a.is_conj() != adjoint_a, b.is_conj() != adjoint_b
        out, bad = _launch(double, (a, conj_a, adjoint_a), (b, conj_b, adjoint_b), shape, cuda)
    else:
        short = len(shape) == 3 and not (adjoint_a or adjoint_b) and len(a.shape) == len(b.shape)
        if short and a.shape[0] == b.shape[0]:  # as in _cpu
            out = torch.bmm(a, b)
        else:
            out = reference.mimo_matmul(a, b, adjoint_a=adjoint_a, adjoint_b=adjoint_b).contiguous()
        if not cuda:
            bad = kernel("cpu_mimo_matmul_check")(double, out.data_ptr(), items, m, n)
    return out if bad < 0 else _flagged(out, bad)


def _launch(double: bool, a: tuple, b: tuple, shape: tuple[int, ...], cuda: bool) -> tuple[Tensor, int]:
    """The kernel on operands as they lie; each comes with whether to conjugate and to transpose it."""
    x, conj, flip = a
    # new_empty would carry out a lazy conjugate first
    out = x.new_empty(*shape) if conj == flip else torch.empty(*shape, dtype=x.dtype, device=x.device)
    call = kernel("cuda_mimo_matmul" if cuda else "cpu_mimo_matmul")
    where = _native.stream_of(out.device) if cuda else ()
    while True:
        (x, conj_x, flip_x), (y, conj_y, flip_y) = a, b
        of_a = (x.data_ptr(), x.shape, x.stride(), conj_x, flip_x)
        of_b = (y.data_ptr(), y.shape, y.stride(), conj_y, flip_y)
        bad = call(double, of_a, of_b, out.data_ptr(), shape, *where)
        if bad != -2:
            return out, bad
        # more than four leading dimensions in different orders: copied (and a lazy conjugate carried out), they are one
        a, b = (
            (t.new_empty(*shape[:-2], *t.shape[-2:]).copy_(t), flip, flip) for t, flip in ((x, flip_x), (y, flip_y))
        )


def _reference(a: Tensor, b: Tensor, adjoint_a: bool, adjoint_b: bool) -> Tensor:
    shape = _shape(a, b, adjoint_a, adjoint_b)
    out = reference.mimo_matmul(a, b, adjoint_a=adjoint_a, adjoint_b=adjoint_b).contiguous()
    _checks.require_finite(_NAME, "batch item", out.reshape(math.prod(shape[:-2]), *shape[-2:]))
    return out


def _backward(needs: Sequence[bool], args: Sequence[Any], outs: Any, grads: Sequence[Tensor]) -> tuple:
    (a, b, fa, fb), (g,) = args, grads
    grad_a = grad_b = None
    if needs[0]:  # of A: G B^H
        grad_a = (_op(b, g, fb, True) if fa else _op(g, b, False, not fb)).sum_to_size(a.shape)
    if needs[1]:  # of B: A^H G
        grad_b = (_op(g, a, True, fa) if fb else _op(a, g, not fa, False)).sum_to_size(b.shape)
    return grad_a, grad_b, None, None


def _jvp(args: Sequence[Any], outs: Any, tangents: Sequence[Any]) -> Tensor:
    a, b, fa, fb = args
    pairs = ((tangents[0], b), (a, tangents[1]))
    terms = [_op(p, q, fa, fb) for p, q in pairs if p is not None and q is not None]
    return sum(terms[1:], terms[0])


def _vmap(args: Sequence[Any], mapped: Sequence[bool], size: int) -> Tensor:
    a, b, fa, fb = args
    rank = max(a.ndim - mapped[0], b.ndim - mapped[1])
    # the mapped axis leads; ones between it and an operand's own dimensions keep those aligned from the right
    spread = [
        t.reshape(size, *[1] * (rank - t.ndim + 1), *t.shape[1:]) if m else t
        for t, m in zip((a, b), mapped, strict=False)
    ]
    return _op(*spread, fa, fb)


_op = Op(
    _NAME,
    "(Tensor a, Tensor b, bool adjoint_a, bool adjoint_b) -> Tensor",
    kernels={
        "cpu": _cpu,
        "cuda": lambda a, b, adjoint_a, adjoint_b: _product(a, b, adjoint_a, adjoint_b, True),
        "reference": _reference,
    },
    fake=lambda a, b, adjoint_a, adjoint_b: a.new_empty(_shape(a, b, adjoint_a, adjoint_b)),
    backward=_backward,
    jvp=_jvp,
    vmap=_vmap,
)


@array_function
def mimo_matmul(
    a: "Complex[Tensor, '*batch rows inner']",
    b: "Complex[Tensor, '*batch inner columns']",
    *,
    adjoint_a: bool = False,
    adjoint_b: bool = False,
) -> "Complex[Tensor, '*batch rows columns']":
    r"""Product of many small complex matrices, either one replaced by its conjugate transpose.

    .. math:: C = A B, \quad A = a \text{ or } a^H, \quad B = b \text{ or } b^H

    Args:
        a: [..., M, K] ([..., K, M] with `adjoint_a`), complex64 or complex128.
        b: [..., K, N] ([..., N, K] with `adjoint_b`), same dtype and device. Leading dimensions broadcast like
            :func:`torch.matmul`'s; nothing is copied for a repeated operand, a strided, transposed or lazily conjugated
            view (`a.mH` is read exactly like `adjoint_a=True`).
        adjoint_a, adjoint_b: take the conjugate transpose of that operand.

    Returns:
        C [..., M, N], contiguous.

    Dispatch: this op alone chooses by the batch (`ops/_matmul_rule.py`). Torch's own GEMM computes sums of more than 128
    terms, up to four columns of a large matrix in batches of fewer than 16, and, without a conjugate, short calls (a
    single product of up to 2,048 multiply-adds, or B of at most 16,384 / B in all) and single products of more than
    65,536; on a GPU, every product with a side above 16. All others run in this package's kernels, where the bits of a
    product depend on its own operands alone; splitting a batch below those bounds changes who computes it, and may
    change the last bits.

    Raises:
        ValueError: shapes disagree (both are named), or on the CPU a result is not finite, whichever library computed
            it (the index among the flattened leading dimensions is named). CUDA never synchronises and does not check.
        TypeError: a real or mixed dtype.

    Source: the matrix product of every MIMO signal model, y = H x.
    """
    _checks.same_kind(_NAME, _checks.COMPLEX, "a b", a, b)
    return _op(a, b, bool(adjoint_a), bool(adjoint_b))
