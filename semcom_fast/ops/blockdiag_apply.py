"""Block-diagonal MIMO channel application."""

from typing import TYPE_CHECKING

from torch import Tensor

from .. import reference
from . import _blocks, _checks
from ._arrays import array_function

if TYPE_CHECKING:
    from jaxtyping import Complex


def _backward(needs, args, outs, grads):
    from .blockdiag_adjoint import blockdiag_adjoint

    (h, x), (g,) = args, grads
    grad_h = _blocks.sum_to_batch(g.unsqueeze(1) @ x.mH, h) if needs[0] else None
    grad_x = _blocks.sum_to_batch(blockdiag_adjoint(h, g), x) if needs[1] else None
    return grad_h, grad_x


_NAME = "blockdiag_apply"
_op = _blocks.bilinear(
    _NAME,
    "x",
    shape_of=lambda h, x: (*h.shape[2:4], x.shape[-1]),
    contracted=lambda shape: shape[1] * shape[4],
    definition=reference.blockdiag_apply,
    backward=_backward,
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
