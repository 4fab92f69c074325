"""Noise-level schedules of diffusion receivers, in forms that keep their digits at both ends."""

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Value = TypeVar("Value", float, Tensor, np.ndarray)


def _elementwise(x: Any, formula: Any) -> Any:
    """`formula(xp, values)` in float64 on a Python number, an array or a tensor; the kind it was given comes back.

    Tensors in host memory go through NumPy, whose results do not depend on an element's place in its array (torch's
    vectorised loops differ in their last bit there), so that a split batch has the same levels.
    """
    if isinstance(x, Tensor):
        if x.device.type == "cpu" and not x.requires_grad:
            return torch.from_numpy(np.asarray(formula(np, x.detach().double().numpy())))
        return formula(torch, x.double())
    if isinstance(x, np.ndarray):
        return np.asarray(formula(np, x.astype(np.float64)))
    return float(formula(np, np.float64(x)))


@dataclass(frozen=True)
class SigmoidSchedule:
    r"""The sigmoid noise schedule: time in [0, 1] to noise level (variance) in [0, 1].

    Definition, with the logistic function :math:`\sigma`, start g, end e and temperature :math:`\tau`:

    .. math:: S(t) = \frac{\sigma((g + t(e-g))/\tau) - \sigma(g/\tau)}{\sigma(e/\tau) - \sigma(g/\tau)},

    evaluated in hyperbolic forms; with g = 0 and :math:`\kappa = e/2\tau`: S = tanh(kappa t)/tanh(kappa),
    1 - S = sinh(kappa (1-t))/(sinh(kappa) cosh(kappa t)), S^-1 = atanh(beta tanh(kappa))/kappa. Differences of
    logistics lose their digits near t = 0 and t = 1 instead (2 % of the inverse at beta = 1e-6 in float32).

    The methods take Python numbers, NumPy arrays or tensors of any shape and compute in float64 (tensors come back as
    float64 on their device). Times and levels outside [0, 1] are clipped to it.

    Raises ValueError when tau is not positive, start equals end, or one of them is not finite.

    Source: (17) of "Semantics-Guided Diffusion for Deep Joint Source-Channel Coding in Wireless Image Transmission",
    with e = 3, g = 0, tau = 0.7.
    """

    end: float = 3.0
    start: float = 0.0
    tau: float = 0.7

    def __post_init__(self) -> None:
        if not all(math.isfinite(v) for v in (self.end, self.start, self.tau)) or not self.tau > 0:
            raise ValueError(f"SigmoidSchedule: need finite start and end and tau > 0, got {self}")
        if self.end == self.start:
            raise ValueError(f"SigmoidSchedule: start and end must differ, both are {self.end}")
        if abs(self.end - self.start) / self.tau > 500 or max(abs(self.end), abs(self.start)) / self.tau > 500:
            raise ValueError(f"SigmoidSchedule: |end|, |start| and |end - start| may be 500 tau at most, got {self}")

    def _constants(self) -> tuple[float, float, float]:
        """g/(2 tau), (e-g)/(2 tau) and cosh(e/(2 tau))/sinh((e-g)/(2 tau))."""
        span = (self.end - self.start) / (2 * self.tau)
        return self.start / (2 * self.tau), span, math.cosh(self.end / (2 * self.tau)) / math.sinh(span)

    def level(self, t: Value) -> Value:
        """S(t), the noise level at time t."""
        low, span, scale = self._constants()

        def formula(xp: Any, t: Any) -> Any:
            u = span * xp.clip(t, 0.0, 1.0)
            return xp.clip(scale * (xp.sinh(u) / xp.cosh(low + u)), 0.0, 1.0)

        return _elementwise(t, formula)

    def complement(self, t: Value) -> Value:
        """1 - S(t), the signal's share, with all its digits where S(t) is close to 1."""
        low, span, _ = self._constants()
        scale = math.cosh(low) / math.sinh(span)

        def formula(xp: Any, t: Any) -> Any:
            t = xp.clip(t, 0.0, 1.0)
            return xp.clip(scale * (xp.sinh(span * (1 - t)) / xp.cosh(low + span * t)), 0.0, 1.0)

        return _elementwise(t, formula)

    def time(self, level: Value) -> Value:
        """S^-1(level), the time at which the schedule has this noise level (19)."""
        low, span, scale = self._constants()
        sign = math.copysign(1.0, span)  # scale has the sign of span

        def formula(xp: Any, level: Any) -> Any:
            level = xp.clip(level, 0.0, 1.0)
            # atanh(p/q) = log1p(2p/(q-p))/2; a steep schedule rounds q - p to 0 or past it at level 1
            rest = xp.clip(sign * (scale - level * math.exp(low)), 1e-300, None)
            u = 0.5 * xp.log1p(2 * math.cosh(low) * level * sign / rest)
            return xp.clip(u / span, 0.0, 1.0)

        return _elementwise(level, formula)


@dataclass(frozen=True)
class ScaledLinearSchedule:
    r"""The discrete schedule of latent image diffusion: beta_k evenly spaced in its square root, k = 0..steps-1.

    Definition: :math:`\sqrt{\beta_k}` linear from sqrt(start) to sqrt(end), level(k) = 1 - prod_{i<=k} (1 - beta_i). The
    defaults are those of Stable Diffusion 1.4. A receiver matches its channel to it as the authors' published code of
    "Semantics-Guided Diffusion for Deep Joint Source-Channel Coding in Wireless Image Transmission" does with
    step_style "discrete": WaterfillDDIM.run(f, schedule.match(d)).
    """

    start: float = 0.00085
    end: float = 0.012
    steps: int = 1000

    def __post_init__(self) -> None:
        if not (0 < self.start < 1 and 0 < self.end < 1 and self.steps >= 1):
            raise ValueError(f"ScaledLinearSchedule: need start and end inside (0, 1) and steps >= 1, got {self}")

    def levels(self) -> np.ndarray:
        """Noise level at every k, float64 [steps]."""
        root = np.linspace(math.sqrt(self.start), math.sqrt(self.end), self.steps)
        return -np.expm1(np.cumsum(np.log1p(-(root**2))))

    def match(self, level: float | Tensor | np.ndarray) -> float:
        """The level of the step nearest to each image's level [B], averaged over the batch and rounded down."""
        given = level.detach().double().cpu().numpy() if isinstance(level, Tensor) else np.asarray(level, np.float64)
        if not given.size:
            raise ValueError("ScaledLinearSchedule: match needs at least one level")
        table = self.levels()
        nearest = np.abs(table - given.reshape(-1, 1)).argmin(1)
        return float(table[int(nearest.mean())])
