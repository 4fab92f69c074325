"""What a run of parallel variational diffusion reports: its levels, its result, and how it fails."""

from typing import NamedTuple

import torch
from torch import Tensor


class PVDLevel(NamedTuple):
    """What `on_level` sees after level j.

    sigma: the level's noise level, or U of them where the users' differ. h, d: the means. energy [B*R]: the residual
    |Y - sum_u H0 f(D0)|^2 at the denoised sample of the level's last inner iteration, score_var [B*R]: the effective
    noise variance of that iteration. With L > 1 both are [L*B*R], sample by sample: ``.unflatten(0, (L, -1))``.
    """

    level: int
    sigma: float | tuple[float, ...]
    h: Tensor
    d: Tensor
    energy: Tensor
    score_var: Tensor


class PVDResult(NamedTuple):
    """h [B,U,K,Nr,Nt], d [B,U,*source_shape], energy [B] = |Y - sum_u H f(D)|^2 of the chosen restart (unnormalised),
    energy_all [B,R] of every restart (infinite where it diverged), chosen [B]."""

    h: Tensor
    d: Tensor
    energy: Tensor
    energy_all: Tensor
    chosen: Tensor


class DivergedError(ValueError):
    """Every restart of some image ended non-finite; `result` holds what the other images got."""

    def __init__(self, message: str, result: PVDResult) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[type, tuple[str, PVDResult]]:
        return type(self), (str(self), self.result)


def choose(h: Tensor, d: Tensor, energy: Tensor, images: int, restarts: int) -> PVDResult:
    """Keep the restart with the smallest residual energy; a non-finite one counts as infinite."""
    finite = torch.isfinite(energy)
    for t in (h, d):
        flat = torch.view_as_real(t) if t.is_complex() else t
        finite = finite & torch.isfinite(flat).flatten(1).all(1)
    all_energy = torch.where(finite, energy, torch.inf).reshape(images, restarts)
    best, chosen = all_energy.min(1) if images else (all_energy.new_zeros(0), all_energy.new_zeros(0, dtype=torch.long))
    rows = torch.arange(images, device=h.device) * restarts + chosen
    result = PVDResult(h[rows], d[rows], best, all_energy, chosen)
    lost = torch.isinf(best)
    if bool(lost.any()):
        index = int(lost.nonzero()[0])
        why = f"PVD.run: image {index} diverged in all {restarts} restarts (non-finite residual)"
        raise DivergedError(f"{why}; its results and those of the other images are in this error's .result", result)
    return result
