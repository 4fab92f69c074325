"""Block-diagonal MIMO channel application."""

from typing import TYPE_CHECKING

from torch import Tensor

from .. import reference
from . import _blocks, _checks
from ._arrays import array_function
from ._register import Op, fold

if TYPE_CHECKING:
    from jaxtyping import Complex


def _native(h: Tensor, x: Tensor, *, cuda: bool) -> Tensor:
    h, x = _blocks.plain(h), _blocks.plain(x)
    b, (u, k, nr, nt), t = _blocks.batch_size(h, x), h.shape[1:], x.shape[-1]
    y = h.new_empty((b, k, nr, t))
    if u * nt == 0:
        return y.zero_()
    if y.numel():
        strides = _blocks.batch_stride(h), _blocks.batch_stride(x)
        pointers = h.data_ptr(), x.data_ptr(), y.data_ptr()
        _blocks.launch(_NAME, cuda, h.device, _blocks.is_double(h), *pointers, *strides, (b, u, k, nr, nt, t))
    return y


def _reference(h: Tensor, x: Tensor) -> Tensor:
    y = reference.blockdiag_apply(h, x)
    _checks.require_finite(_NAME, "batch item", y)
    return y


def _fake(h: Tensor, x: Tensor) -> Tensor:
    b = h.shape[0] if x.shape[0] == 1 else x.shape[0]
    return h.new_empty((b, *h.shape[2:4], x.shape[-1]))


def _backward(needs, args, outs, grads):
    from .blockdiag_adjoint import blockdiag_adjoint

    (h, x), (g,) = args, grads
    grad_h = _blocks.sum_to_batch(g.unsqueeze(1) @ x.mH, h) if needs[0] else None
    grad_x = _blocks.sum_to_batch(blockdiag_adjoint(h, g), x) if needs[1] else None
    return grad_h, grad_x


def _jvp(args, outs, tangents):
    (h, x), (dh, dx) = args, tangents
    terms = [_op(a, b) for a, b in ((dh, x), (h, dx)) if a is not None and b is not None]
    return sum(terms[1:], terms[0])


def _vmap(args, mapped, size):
    h, x = fold(args, mapped, size, (True, True))
    out = _op(h, x)
    return out.reshape(size, -1, *out.shape[1:])


_NAME = "blockdiag_apply"
_op = Op(
    _NAME,
    "(Tensor h, Tensor x) -> Tensor",
    kernels={
        "cpu": lambda h, x: _native(h, x, cuda=False),
        "cuda": lambda h, x: _native(h, x, cuda=True),
        "reference": _reference,
    },
    fake=_fake,
    backward=_backward,
    jvp=_jvp,
    vmap=_vmap,
)


@array_function
def blockdiag_apply(
    h: "Complex[Tensor, '*batch users blocks nr nt']", x: "Complex[Tensor, '*batch users blocks nt slots']"
) -> "Complex[Tensor, '*batch blocks nr slots']":
    r"""Send the users' codewords through their block-fading channels; the block-diagonal matrix is never built.

    Signal model: in block k the receiver sees

    .. math:: Y_k = \sum_{u=1}^{U} H_k^{(u)} X_k^{(u)}

    Args:
        h: channels [..., U, K, Nr, Nt], complex64 or complex128.
        x: codewords [..., U, K, Nt, T], same dtype and device. Leading dimensions broadcast like torch's.

    Returns:
        y: noiseless received blocks [..., K, Nr, T].

    Raises:
        ValueError: shapes disagree (both are named), or on the CPU a result is not finite (the block is named).
        TypeError: a real or mixed dtype.

    Source: equations (1), (2) and (45) of "Blind MIMO Semantic Communication via Parallel Variational Diffusion".
    """
    _checks.same_kind(_NAME, _checks.COMPLEX, "h x", h, x)
    hs, xs = h.shape, x.shape
    if len(hs) == len(xs) == 5 and hs[:3] == xs[:3] and hs[4] == xs[3]:
        return _op(h, x)
    _blocks.check_hx(_NAME, h, x)
    lead = _checks.lead_shape(_NAME, _blocks.NEED, "h x", (h, 4), (x, 4))
    y = _op(_checks.flatten_lead(h, lead, 4), _checks.flatten_lead(x, lead, 4))
    return y if len(lead) == 1 else y.reshape(*lead, *y.shape[1:])
