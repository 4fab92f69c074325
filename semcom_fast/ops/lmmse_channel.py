"""LMMSE channel estimation from pilots."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..reference.levels import Level
from ..reference.rzf_precode import refuses_zero
from . import _checks, _regularised
from ._arrays import array_function
from .blockdiag_adjoint import blockdiag_adjoint
from .blockdiag_apply import blockdiag_apply
from .rzf_precode import finish

if TYPE_CHECKING:
    from jaxtyping import Complex

_NAME = "lmmse_channel"
_NEED = "y [...,Nr,T], pilots [...,Nt,T] and cov [...,Nt,Nt]"


@array_function
def lmmse_channel(
    y: "Complex[Tensor, '*batch nr slots']",
    pilots: "Complex[Tensor, '*batch nt slots']",
    noise_var: Level,
    cov: "Complex[Tensor, '*batch nt nt'] | None" = None,
) -> "Complex[Tensor, '*batch nr nt']":
    r"""LMMSE estimate of a channel from what was received for known symbols.

    Signal model: :math:`Y = H P + N`, rows of H independent CN(0, C), :math:`C_{ij} = E[h_i h_j^*]` as `cov_tx` of
    :func:`semcom_fast.links.draw_channel` and :class:`GaussianChannelPrior`; N white with variance noise_var. Definition:

    .. math:: \hat H = Y (P^H R P + \sigma^2 I)^{-1} P^H R, \quad R = \bar C = E[H^H H]/N_r

    With :math:`R = L L^H` this is the RZF system of :math:`(L^H P)^H`, so the same small Cholesky solves it, on the
    smaller of Nt and T.

    Args:
        y: received pilots [...,Nr,T], complex64 or complex128.
        pilots: known symbols [...,Nt,T]; leading dimensions broadcast.
        noise_var: E|n|^2 per entry, a number or a tensor aligned from the left with the leading dimensions.
        cov: covariance C [...,Nt,Nt] of every row of H, Hermitian and positive definite; None is the identity. (Textbooks
            that write R for E[H^H H] mean its conjugate.)

    Returns:
        h_hat [...,Nr,Nt]. Differentiable in y, pilots, noise_var and cov.

    Raises:
        SingularChannelError: pilots without full rank at noise_var = 0 (count and first index).
        ValueError: shapes disagree, noise_var < 0; on the CPU a cov that is not Hermitian and positive definite (its
            index is named).

    Source: the LMMSE baselines of "Blind MIMO Semantic Communication via Parallel Variational Diffusion", Table I, and
    of "Scenario-Adaptive MU-MIMO OFDM Semantic Communication With Asymmetric Neural Network".
    """
    _checks.same_kind(_NAME, _checks.COMPLEX, "y pilots cov", y, pilots, cov, optional=1)
    nt = pilots.shape[-2] if pilots.ndim > 1 else -1
    slots = y.shape[-1] if y.ndim > 1 else 0
    if nt < 1 or slots < 1 or slots != pilots.shape[-1] or (cov is not None and cov.shape[-2:] != (nt, nt)):
        given = {"y": y, "pilots": pilots} | ({} if cov is None else {"cov": cov})
        raise _checks.shape_error(_NAME, _NEED, **given)
    pairs = [(y, 2), (pilots, 2)] + ([] if cov is None else [(cov, 2)])
    lead = _checks.lead_shape(_NAME, _NEED, "y pilots" if cov is None else "y pilots cov", *pairs)
    root = None
    if cov is not None:
        root = _conjugate_root(cov)
        with _checks.tolerate_non_finite():  # the solve names what is wrong
            pilots = blockdiag_adjoint(*_as_blocks(root, pilots))[..., 0, 0, :, :]
    # The RZF system of h = P^T, which is the above conjugated: rows of Y are then right-hand sides and rows of the
    # estimate solutions as they lie in memory, and only P is transposed.
    nr = y.shape[-2]
    h = _checks.flatten_lead(pilots.mT, lead, 2)
    # Least squares where there are fewer antennas than slots: noise_var = 0 is then a question of the pilots' rank.
    form = "M" if nt <= slots else "K"
    mode = _regularised.mode_of(_NAME, None, h.device)
    rows = _regularised.flatten_symbols(y, lead, lead, False)
    alpha = _regularised.flat_alpha(_NAME, "noise_var", noise_var, lead, lead, h)
    refuse = refuses_zero(slots, nt, form, None)
    shape, shared = (*lead, nr, nt), _regularised.single(pilots, noise_var)
    call = _regularised.Call(
        _NAME, h, rows, alpha, True, form == "M", mode, refuse, 0.0, 1, shape, lead, flags_each=nr, shared=shared
    )
    estimate = finish(call, return_info=False)
    if root is None:
        return estimate
    with _checks.tolerate_non_finite():
        estimate = blockdiag_apply(*_as_blocks(estimate, root.mH.resolve_conj().contiguous(), users=1))[..., 0, :, :]
    _checks.require_finite(_NAME, "channel", estimate.reshape(math.prod(lead), nr, nt))
    return estimate


def _conjugate_root(cov: Tensor) -> Tensor:
    """L with conj(C) = L L^H; checked where values may be read."""
    root, failed = torch.linalg.cholesky_ex(cov)
    if _checks.readable(cov) and cov.is_cpu:
        spread = (cov - cov.mH).abs().amax((-2, -1)) <= 1e-5 * cov.abs().amax((-2, -1))  # False for NaN
        for good, what in ((failed == 0, "positive definite"), (spread, "Hermitian")):
            if not bool(good.all()):
                raise ValueError(f"{_NAME}: cov at index {tuple((~good).nonzero()[0].tolist())} is not {what}")
    return root.conj().resolve_conj().contiguous()  # one layout, whatever the batch: it chooses the products' kernel


def _as_blocks(h: Tensor, other: Tensor, users: int = 0) -> tuple[Tensor, Tensor]:
    """Operands of a product that does not depend on the batch: one user, one block; `users`: also of the second one."""
    return h[..., None, None, :, :], other[(..., *(None,) * (1 + users), slice(None), slice(None))]
