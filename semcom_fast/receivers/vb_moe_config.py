"""Options of the mixture-of-experts channel estimator, and the schedules they stand for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

CHOICES = {
    "lik": ("auto", "x0", "dmps"),
    "init": ("per_expert", "uniform"),
    "start": ("noise", "zero"),
}
PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {},
    "paper": {"lik": "dmps", "init": "uniform"},
}


class VBMoETables(NamedTuple):
    """Float64 schedules [T+1] by diffusion step; entry 0 is the clean channel.

    beta (0 at step 0); alpha_bar = prod(1 - beta) (1 at step 0); elbo_weights: w_t of the evidence (0 at step 0).
    """

    beta: np.ndarray
    alpha_bar: np.ndarray
    elbo_weights: np.ndarray


def linear_schedule(steps: int, beta_min: float, beta_max: float) -> VBMoETables:
    """beta_1..beta_T linear from beta_min to beta_max.

    w_t = beta_t/(alpha_t (1 - abar_{t-1})) = SNR_{t-1}/SNR_t - 1 with SNR_t = abar_t/(1 - abar_t), the divergence of two
    complex Gaussians of equal variance; w_1 = 1/alpha_1, the reconstruction term.
    """
    beta = np.concatenate([[0.0], np.linspace(beta_min, beta_max, steps)])
    alpha_bar = np.cumprod(1 - beta)
    weights = np.zeros(steps + 1)
    weights[1] = 1 / (1 - beta[1])
    weights[2:] = beta[2:] / ((1 - beta[2:]) * (1 - alpha_bar[1:-1]))
    return VBMoETables(beta, alpha_bar, weights)


@dataclass(frozen=True)
class VBMoEConfig:
    r"""Schedule and variants of variational Bayes over diffusion experts. The defaults are the recommended ones.

    Diffusion: steps T, beta linear from beta_min to beta_max.
    Update of q(H), one chain of T steps (`pilot_posterior_step`):
        lik: residual of the likelihood score, "dmps" (at H_t) or "x0" (at the denoised channel); "auto" takes "x0" for
        channels of SNR >= 0 dB and "dmps" below, SNR = Nt/noise_var.
        lam: factor of the likelihood score; "snr" = clip(2^(SNR_dB/10), 1, 4), a number, or a callable of SNR_dB.
        start: H_T of every chain, "noise" (CN(0, I), drawn once per channel) or "zero".
    Update of q(z) (`renoise`, `elbo_reduce`, `dirichlet_responsibilities`):
        elbo_steps S: steps of the evidence; None = T times (0.3, 0.4, ..., 1). Small steps in S drown the others
        (w_2 is 11, w_50 is 0.07) and pick the broadest expert. tau: step of the data term, a member of S; None = its
        smallest. eta: weight of the data term.
        gamma0: Dirichlet prior, a number or one per expert. shared: one q(pi) for all channels of the batch (then
        channels are no longer independent of each other).
    First pass: init "per_expert" runs one chain per expert (with "dmps" and lam = 1) and scores each by its own evidence;
        "uniform" starts at rho = 1/K, whose chain follows the product of the experts. Either is iteration 1.
    Stop: a channel is done when its largest change of rho is below `tolerance`, and after `iterations` at the latest. A
        chain that would repeat itself (same weights, same start) is not run again. tolerance = 0: always run all.
    prune: experts with rho below it are not evaluated (the largest always is), and the others' weights are rescaled to
        sum to 1; 0: every expert on every channel.
    graph: replay chains as CUDA graphs, recorded at their second use; without a GPU a warning says so. Graphs are kept from
        run to run while the experts' tensors and plain attributes stay as they are; for functions, which may read anything,
        and under autocast they are recorded anew in every run.

    Raises ValueError for values that mean nothing, or nothing together.

    Source: "Mixture-of-Experts Diffusion Models for Adaptive Massive MIMO Channel Estimation via Variational Bayesian
    Inference"; schedule from the published code of the works it builds on. preset("paper") has its likelihood residual
    (28) and a uniform start.
    """

    steps: int = 100
    beta_min: float = 1 / (1 + 1e4)
    beta_max: float = 0.1
    elbo_steps: Sequence[int] | None = None
    tau: int | None = None
    eta: float = 1.0
    lam: float | str | Callable[[float], float] = "snr"
    lik: str = "auto"
    init: str = "per_expert"
    gamma0: float | Sequence[float] = 1.0
    shared: bool = False
    iterations: int = 5
    tolerance: float = 1e-6
    prune: float = 1e-3
    start: str = "noise"
    graph: bool = False

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                allowed = " or ".join(repr(c) for c in choices)
                raise ValueError(f"VBMoEConfig: {name} must be {allowed}, got {getattr(self, name)!r}")
        for name in ("steps", "iterations"):
            _require_integer(name, getattr(self, name))
        if not 0 < self.beta_min <= self.beta_max < 1:
            raise ValueError(f"VBMoEConfig: need 0 < beta_min <= beta_max < 1, got {self.beta_min} and {self.beta_max}")
        self._resolve_elbo_steps()
        for name in ("eta", "tolerance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"VBMoEConfig: {name} must not be negative and must be finite, got {getattr(self, name)}"
                )
        if not 0 <= self.prune < 1:
            raise ValueError(f"VBMoEConfig: prune must lie in [0, 1), got {self.prune}")
        self._check_lam()
        prior = np.atleast_1d(np.asarray(self.gamma0, dtype=np.float64))
        if prior.ndim != 1 or not ((prior > 0) & np.isfinite(prior)).all():
            raise ValueError(f"VBMoEConfig: gamma0 must be positive, a number or one per expert, got {self.gamma0}")
        if np.ndim(self.gamma0):
            object.__setattr__(self, "gamma0", tuple(prior.tolist()))

    def _resolve_elbo_steps(self) -> None:
        given = self.elbo_steps
        if given is None:
            given = sorted({max(1, round(self.steps * k / 10)) for k in range(3, 11)})
        given = tuple(given)
        steps = tuple(int(t) for t in given)
        if (
            not steps
            or steps != given
            or len(set(steps)) < len(steps)
            or not 1 <= min(steps) <= max(steps) <= self.steps
        ):
            raise ValueError(f"VBMoEConfig: elbo_steps must be different integers in 1..{self.steps}, got {given}")
        object.__setattr__(self, "elbo_steps", steps)
        if self.tau is not None and self.tau not in steps:
            raise ValueError(f"VBMoEConfig: tau must be one of elbo_steps {steps}, got {self.tau}")

    def _check_lam(self) -> None:
        lam = self.lam
        if callable(lam) or lam == "snr":
            return
        if isinstance(lam, str) or not 0 <= float(lam) < math.inf:
            raise ValueError(
                f"VBMoEConfig: lam must be 'snr', a number >= 0 or a callable of the SNR in dB, got {lam!r}"
            )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "VBMoEConfig":
        """A named set of options, with some replaced: "recommended" (the defaults) or "paper"."""
        if name not in PRESETS:
            raise ValueError(f"VBMoEConfig: unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    @property
    def tau_step(self) -> int:
        """The step of the data term."""
        assert self.elbo_steps is not None
        return min(self.elbo_steps) if self.tau is None else self.tau

    def tables(self) -> VBMoETables:
        """The schedules of this configuration."""
        return linear_schedule(self.steps, self.beta_min, self.beta_max)

    def likelihood_scale(self, snr_db: float) -> float:
        """lam at an SNR of `snr_db`."""
        if self.lam == "snr":
            return float(min(max(2 ** (snr_db / 10), 1.0), 4.0))
        lam = float(self.lam(snr_db)) if callable(self.lam) else float(self.lam)
        if not 0 <= lam < math.inf:
            raise ValueError(f"VBMoEConfig: lam({snr_db:.4g} dB) must be a finite number >= 0, got {lam}")
        return lam

    def residual_at_x0(self, snr_db: float) -> bool:
        """Whether the likelihood residual is taken at the denoised channel at this SNR."""
        return snr_db >= 0 if self.lik == "auto" else self.lik == "x0"


def _require_integer(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"VBMoEConfig: {name} must be an integer >= 1, got {value!r}")
