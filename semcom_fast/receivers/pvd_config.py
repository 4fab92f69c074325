"""Sizes and schedule of a run of parallel variational diffusion."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Level = float | tuple[float, ...]

_PER_USER = ("sigma_max", "sigma_min", "zeta_h", "zeta_d")


def per_user(fn: Callable[..., float], *levels: Level) -> Level:
    """fn of numbers; where some of them are tuples over users, fn user by user, as a tuple."""
    users = next((len(v) for v in levels if isinstance(v, tuple)), None)
    if users is None:
        return fn(*levels)
    return tuple(fn(*(v[u] if isinstance(v, tuple) else v for v in levels)) for u in range(users))


def _level(name: str, value: Any, users: int) -> Level:
    """A number as it is, or a tuple with one number per user; equal numbers are the one number."""
    values = value.tolist() if getattr(value, "ndim", 0) == 1 else value
    several = isinstance(values, (tuple, list))
    for number in values if several else (values,):
        if not hasattr(number, "__float__"):
            raise TypeError(f"PVDConfig: {name} must be a number or a tuple of users={users} numbers, got {value!r}")
    if not several:
        return values
    if len(values) != users:
        raise ValueError(
            f"PVDConfig: {name} must be a number or a tuple of users={users} numbers, got {len(values)} of them"
        )
    numbers = tuple(float(v) for v in values)
    return numbers[0] if len(set(numbers)) == 1 else numbers


@dataclass(frozen=True)
class PVDConfig:
    """Sizes and schedule of a PVD run.

    users U and nt Nt: transmitters and their antennas; source_shape: one source; power P: E|x|^2 per symbol, met with
    equality over a codeword. J levels of Jin inner iterations, L samples each, noise levels from sigma_max down to
    sigma_min geometrically; zeta_h, zeta_d: step sizes. These four may each be a tuple of U numbers, one per user (J and
    Jin are everybody's); equal numbers are kept as the one number, with the same bits.

    L samples of every state are denoised and scored, each with draws of its own, and the means move by the average.

    calibration: "secant" (probe of the encoder) or "moment" (match the residual energy). sample_noise=False evaluates at
    the means: deterministic given the initial draws.

    v0: variance of an entry of H_0 and of D_0 in the samples' variance (32), (s_j^2 + v0) (s_{j+1}^2 - s_j^2)/(s_{j+1}^2 +
    v0). 0 is that of p(H_j | H_{j+1}, H_0); the prior's own variance that of p(H_j | H_{j+1}), with which the samples hold
    up to twice the noise, nearer to what learned denoisers were trained for.

    exact_covariance: the channel's score with the covariance of the residual that its own uncertainty makes, instead of
    (42)'s white one; needs "secant". At the means it reaches LMMSE where the codeword is known; blindly it is not always
    better.

    lagged_noise: an inner iteration divides its scores by the effective noise variance (42) of the iteration before (the
    first by its own). The variance is then known before the residual is, and with L = 1 and i.i.d. Gaussian channel
    priors one op (`pvd_channel_step`) denoises, scores and moves the channel.
    """

    users: int = 1
    nt: int = 1
    source_shape: tuple[int, ...] = (64,)
    power: float = 1.0
    J: int = 30
    Jin: int = 20
    L: int = 1
    sigma_max: Level = 100.0
    sigma_min: Level = 0.01
    zeta_h: Level = 0.1
    zeta_d: Level = 0.1
    calibration: str = "secant"
    sample_noise: bool = True
    v0: float = 0.0
    exact_covariance: bool = False
    lagged_noise: bool = False

    def __post_init__(self) -> None:
        for name in ("users", "nt", "J", "Jin", "L"):
            if getattr(self, name) < 1:
                raise ValueError(f"PVDConfig: {name} must be at least 1, got {getattr(self, name)}")
        for name in _PER_USER:
            object.__setattr__(self, name, _level(name, getattr(self, name), self.users))
        self._check_levels()
        if not self.power > 0:
            raise ValueError(f"PVDConfig: power must be positive, got {self.power}")
        if self.calibration not in ("secant", "moment"):
            raise ValueError(f"PVDConfig: calibration must be 'secant' or 'moment', got {self.calibration!r}")
        if not 0 <= self.v0 < math.inf:
            raise ValueError(f"PVDConfig: v0 must be finite and not negative, got {self.v0}")
        if self.exact_covariance and self.calibration != "secant":
            raise ValueError("PVDConfig: exact_covariance needs calibration 'secant'")
        if self.exact_covariance and self.lagged_noise:
            raise ValueError("PVDConfig: exact_covariance needs the noise of its own iteration, not lagged_noise")
        object.__setattr__(self, "source_shape", tuple(self.source_shape))

    def _check_levels(self) -> None:
        for u in range(self.users):
            high, low, *zetas = (v[u] if isinstance(v, tuple) else v for v in (getattr(self, n) for n in _PER_USER))
            whose = f" for user {u}" if self.sigma_per_user else ""
            if not 0 < low < high < math.inf:
                raise ValueError(f"PVDConfig: need 0 < sigma_min < sigma_max, got {low} and {high}{whose}")
            for name, zeta in zip(_PER_USER[2:], zetas, strict=True):
                if not math.isfinite(zeta):
                    whose = f" for user {u}" if isinstance(getattr(self, name), tuple) else ""
                    raise ValueError(f"PVDConfig: {name} must be finite, got {zeta}{whose}")

    @property
    def sigma_per_user(self) -> bool:
        """Whether the users' noise levels differ."""
        return isinstance(self.sigma_max, tuple) or isinstance(self.sigma_min, tuple)

    def schedule(self) -> list[Any]:
        """sigma_j = sigma_min (sigma_max/sigma_min)^(j/J), j = 0..J: nothing is ever evaluated at sigma = 0.

        J + 1 numbers; where the users' noise levels differ, J + 1 tuples of U numbers.
        """

        def level(low: float, high: float, j: int) -> float:
            return low * (high / low) ** (j / self.J)

        return [per_user(level, self.sigma_min, self.sigma_max, j) for j in range(self.J + 1)]
