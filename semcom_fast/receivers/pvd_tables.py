"""What inner iterations of parallel variational diffusion read of their schedule, on the device, made once for all runs."""

from typing import Any

import torch
from torch import Tensor

from ..reference import default_next_var
from .pvd_config import Level, PVDConfig
from .users import ParallelDenoiser


def next_variances(config: PVDConfig, sigmas: Tensor) -> Tensor:
    """Variance of the draws at levels 0..J-1 [J,...] of sigma_0..sigma_J; zeros where none are asked for."""
    if not config.sample_noise:
        return torch.zeros_like(sigmas[1:])
    return default_next_var(sigmas[:-1], sigmas[1:], config.v0)


class Tables:
    """Levels of one configuration on one device; a later run there copies nothing from the host.

    schedule: sigma_0..sigma_J as numbers, or tuples over users. sigmas: the same as 0-d tensors ([U] where the users'
    differ) for the denoisers, limits: their squares, which posterior variances cannot exceed. levels: (sigma_j,
    next_var_j) as the ops take them. channel: (weight, variance) of the posterior of an i.i.d. Gaussian channel at each
    level, where its prior is one and numbers serve better than tensors: reading a number waits for nothing on a CPU.
    """

    def __init__(self, config: PVDConfig, prior: ParallelDenoiser, device: torch.device, real: torch.dtype) -> None:
        self.config, self.device, self.real = config, device, real
        self.schedule = config.schedule()
        exact = torch.tensor(self.schedule, dtype=torch.float64, device="cpu")
        rounded = exact.to(real)
        sigmas = rounded.to(device)
        self.sigmas, self.limits = sigmas.unbind(), sigmas.square().unbind()
        self.zero = torch.zeros((), dtype=real, device=device)
        self.levels = self._levels(exact)
        self._users: dict[tuple, Tensor] = {}
        white = prior.white_variance()
        self.channel: list[tuple[float, float]] | None = None
        if device.type == "cpu" and isinstance(white, float) and not config.sigma_per_user:
            powers = [sigma**2 for sigma in rounded.tolist()]
            self.channel = [(white / (white + p), white / (white + p) * p) for p in powers]

    def _levels(self, sigmas: Tensor) -> list[tuple[Any, ...]]:
        """sigma_j and next_var = lambda_j of every level, as the ops take them: numbers, 0-d on a GPU, or [1,U]."""
        spread = torch.cat((next_variances(self.config, sigmas), torch.zeros_like(sigmas[:1])))
        table = torch.stack((sigmas, spread), 1)
        if self.config.sigma_per_user:
            table = table.unsqueeze(2)
        elif self.device.type == "cpu":
            return [tuple(row) for row in table.tolist()]
        # on the device once, instead of a fill per level argument
        return [tuple(row.unbind()) for row in table.to(self.device)]

    def over_users(self, level: Level, ndim: int, dtype: torch.dtype) -> float | Tensor:
        """A number, or numbers per user [1,U,1,...] that broadcast over a state of `ndim` dimensions."""
        if not isinstance(level, tuple):
            return level
        key = (level, ndim, dtype)
        if key not in self._users:
            made = torch.tensor(level, dtype=dtype, device=self.device)
            self._users[key] = made.reshape(1, -1, *(1,) * (ndim - 2))
        return self._users[key]

    def clamp(self, var: Tensor, j: int) -> Tensor:
        """A posterior variance per entry at level j, brought into [0, sigma^2]."""
        return torch.clamp(var, self.zero, self.limits[j])
