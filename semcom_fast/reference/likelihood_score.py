"""Reference twin of :func:`semcom_fast.likelihood_score`."""

from typing import NamedTuple

import torch
from torch import Tensor

from .blockdiag_adjoint import blockdiag_adjoint
from .blockdiag_apply import blockdiag_apply
from .levels import Level, align_left


class LikelihoodScore(NamedTuple):
    """What one pass over the residual R = Y - sum_u H_u X_u yields."""

    score_h: Tensor
    score_x: Tensor
    energy: Tensor
    probe_x: Tensor | None
    probe_y: Tensor | None


def _energy(t: Tensor, dims: tuple[int, ...]) -> Tensor:
    real = t.real.dtype
    squares = torch.view_as_real(t.resolve_conj()).double().square().sum(-1)
    return squares.sum(dims).to(real)


def likelihood_score(
    y: Tensor, h: Tensor, x: Tensor, noise_var: Level = 1.0, *, probe: Tensor | None = None
) -> LikelihoodScore:
    """score_h = R X^H/noise_var, score_x = H^H R/noise_var, energy = |R|^2, probe energies of dX = `probe`."""
    r = y - blockdiag_apply(h, x)
    inv = (1.0 / align_left(noise_var, h.ndim, y.device)).to(y.real.dtype)
    score_h = torch.matmul(r.unsqueeze(-4), x.mH) * inv
    score_x = blockdiag_adjoint(h, r) * inv
    energy = _energy(r, (-3, -2, -1))
    if probe is None:
        return LikelihoodScore(score_h, score_x, energy, None, None)
    probe_x = _energy(probe, (-3, -2, -1))
    probe_y = _energy(blockdiag_apply(h, probe), (-3, -2, -1))
    return LikelihoodScore(score_h, score_x, energy, probe_x, probe_y)
