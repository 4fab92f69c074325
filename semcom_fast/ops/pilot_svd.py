"""The singular value decomposition of a pilot matrix, formed once per run."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from ..reference.pilot_svd import PilotSVD
from . import _checks
from ._arrays import array_function

if TYPE_CHECKING:
    from jaxtyping import Complex

_NAME = "pilot_svd"


def _first_bad(bad: Tensor) -> str:
    """Which pilot matrix, for a message; nothing for a single one."""
    return f" {int(bad.reshape(-1).nonzero()[0])}" if bad.ndim else ""


@array_function
def pilot_svd(pilots: "Complex[Tensor, '*batch nt np']") -> PilotSVD:
    r"""Decompose pilots as :math:`P = U\,\mathrm{diag}(s)\,V^H`, r = min(Nt, Np).

    Model: Y = H P + N with H [Nr,Nt], P [Nt,Np]. In this basis the likelihood score needs no inverse: with
    ``yv = svd.project(y)`` = Y V it is a scaling of the columns of Y V - R U diag(s), see
    :func:`pilot_posterior_step`. Formed in double precision by torch.linalg.svd and rounded once.

    Args:
        pilots: P [..., Nt, Np], complex; one for the whole batch or one per channel. Zero rows, and Np > Nt, are fine.

    Returns:
        PilotSVD(u [..., Nt, r], s [..., r] real, v [..., Np, r]) with the method ``project(y [..., Nr, Np])``.

    Raises:
        ValueError: fewer than two dimensions or an empty matrix; a pilot matrix with NaN or Inf, or of zeros alone (its
            index in the flattened batch is named). TypeError: real pilots.

    Source: equations (28) and (29) of "Mixture-of-Experts Diffusion Models for Adaptive Massive MIMO Channel Estimation
    via Variational Bayesian Inference".
    """
    _checks.same_kind(_NAME, _checks.COMPLEX, "pilots", pilots)
    if pilots.ndim < 2 or 0 in pilots.shape[-2:]:
        raise _checks.shape_error(_NAME, "pilots [..., Nt, Np] with Nt, Np >= 1", pilots=pilots)
    if pilots.numel() and _checks.readable(pilots):
        peak = torch.view_as_real(pilots.resolve_conj()).abs().amax((-3, -2, -1))
        bad = ~torch.isfinite(peak)
        if bool(bad.any()):
            raise ValueError(f"{_NAME}: pilot matrix{_first_bad(bad)} holds NaN or Inf")
        if bool((peak == 0).any()):
            raise ValueError(f"{_NAME}: pilot matrix{_first_bad(peak == 0)} is all zeros: nothing was sent")
    return reference.pilot_svd(pilots)
