"""LMMSE channel estimation from pilots."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..reference.levels import Level
from ..reference.rzf_precode import refuses_zero
from . import _checks, _regularised
from ._arrays import array_function
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

    Signal model: :math:`Y = H P + N`, rows of H independent CN(0, C), N white with variance noise_var. Definition:

    .. math:: \hat H = Y (P^H C P + \sigma^2 I)^{-1} P^H C

    With :math:`C = L L^H` this is the RZF system of :math:`(L^H P)^H`, so the same small Cholesky solves it, on the
    smaller of Nt and T.

    Args:
        y: received pilots [...,Nr,T], complex64 or complex128.
        pilots: known symbols [...,Nt,T]; leading dimensions broadcast.
        noise_var: E|n|^2 per entry, a number or a tensor aligned from the left with the leading dimensions.
        cov: covariance C [...,Nt,Nt] of every row of H, positive definite; None is the identity.

    Returns:
        h_hat [...,Nr,Nt]. Differentiable in y, pilots, noise_var and cov.

    Raises:
        SingularChannelError: pilots without full rank at noise_var = 0 (count and first index).
        ValueError: shapes disagree, noise_var < 0, cov not positive definite.

    Source: the LMMSE baselines of "Blind MIMO Semantic Communication via Parallel Variational Diffusion", Table I, and
    of "Scenario-Adaptive MU-MIMO OFDM Semantic Communication With Asymmetric Neural Network".
    """
    _checks.same_kind(_NAME, _checks.COMPLEX, "y pilots cov", y, pilots, cov)
    nt = pilots.shape[-2] if pilots.ndim > 1 else -1
    slots = y.shape[-1] if y.ndim > 1 else 0
    if nt < 1 or slots < 1 or slots != pilots.shape[-1] or (cov is not None and cov.shape[-2:] != (nt, nt)):
        given = {"y": y, "pilots": pilots} | ({} if cov is None else {"cov": cov})
        raise _checks.shape_error(_NAME, _NEED, **given)
    pairs = [(y, 2), (pilots, 2)] + ([] if cov is None else [(cov, 2)])
    lead = _checks.lead_shape(_NAME, _NEED, "y pilots" if cov is None else "y pilots cov", *pairs)
    root = None
    if cov is not None:
        root, failed = torch.linalg.cholesky_ex(cov)
        if _checks.readable(failed) and failed.is_cpu and bool(failed.any()):
            bad = tuple(failed.nonzero()[0].tolist())
            raise ValueError(f"{_NAME}: cov at index {bad} is not positive definite")
        pilots = root.mH @ pilots
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
    call = _regularised.Call(
        _NAME, h, rows, alpha, True, form == "M", mode, refuse, 0.0, 1, (*lead, nr, nt), lead, flags_each=nr
    )
    estimate = finish(call, return_info=False)
    if root is None:
        return estimate
    return estimate @ root.mH
