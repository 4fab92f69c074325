"""Adjoint of the block-diagonal MIMO channel (matched filter)."""

from typing import TYPE_CHECKING

from torch import Tensor

from .. import reference
from . import _blocks, _checks
from ._arrays import array_function

if TYPE_CHECKING:
    from jaxtyping import Complex


def _backward(needs, args, outs, grads):
    from .blockdiag_apply import blockdiag_apply

    (h, y), (g,) = args, grads
    grad_h = _blocks.sum_to_batch(y.unsqueeze(1) @ g.mH, h) if needs[0] else None
    grad_y = _blocks.sum_to_batch(blockdiag_apply(h, g), y) if needs[1] else None
    return grad_h, grad_y


_NAME = "blockdiag_adjoint"
_op = _blocks.bilinear(
    _NAME,
    "y",
    shape_of=lambda h, y: (*h.shape[1:3], h.shape[4], y.shape[-1]),
    contracted=lambda shape: shape[3],
    definition=reference.blockdiag_adjoint,
    backward=_backward,
    adjoint=True,
)


@array_function
def blockdiag_adjoint(
    h: "Complex[Tensor, '*batch users blocks nr nt']", y: "Complex[Tensor, '*batch blocks nr slots']"
) -> "Complex[Tensor, '*batch users blocks nt slots']":
    r"""Apply every user's Hermitian channel to the received blocks: the adjoint of :func:`blockdiag_apply`.

    Definition: ``out[u, k] = H_k^(u)^H Y_k``, so that <Y, apply(H, X)> = <adjoint(H, Y), X>.

    Args:
        h: channels [..., U, K, Nr, Nt], complex64 or complex128.
        y: received blocks [..., K, Nr, T], same dtype and device. Leading dimensions broadcast like torch's.

    Returns:
        [..., U, K, Nt, T].

    Raises:
        ValueError: shapes disagree (both are named), or on the CPU a result is not finite (the block is named).
        TypeError: a real or mixed dtype.
    """
    _checks.same_kind(_NAME, _checks.COMPLEX, "h y", h, y)
    hs, ys = h.shape, y.shape
    if len(hs) == 5 and len(ys) == 4 and hs[0] == ys[0] and hs[2:4] == ys[1:3]:
        return _op(h, y)
    _blocks.check_hy(_NAME, h, y)
    lead = _checks.lead_shape(_NAME, _blocks.NEED, "h y", (h, 4), (y, 3))
    x = _op(_checks.flatten_lead(h, lead, 4), _checks.flatten_lead(y, lead, 3))
    return x if len(lead) == 1 else x.reshape(*lead, *x.shape[1:])
