"""The channel estimators that are compared, by name, each made when it is first asked for."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...baselines.gaussian_mixture import GaussianEstimator, GaussianMixtureEstimator, Moments, pooled_moments
from ...baselines.gaussian_mixture import sample_moments as moments_of
from ...baselines.lasso import lasso_channel
from ...baselines.rls import rls_channel
from ...receivers.vb_moe import ExpertBank, VBMoE
from ...receivers.vb_moe_config import VBMoEConfig
from ..evaluation import fingerprint
from .bank import GroupedExperts
from .channels import ARRAYS, KINDS, NR, NT, PROFILES, SCARCE, TRAIN, ChannelSet, exact_moments, load_set
from .gaussian_experts import GaussianExpert
from .networks import load_experts, load_single

LABELS = {
    "dm-vb": "DM-VB, four experts",
    "dm-vb-paper": "DM-VB as the paper reads",
    "dm-vb-exact": "DM-VB, exact Gaussian experts",
    "single-dm": "single DM, 4x parameters",
    "gm-mmse": "GM-MMSE, sample moments",
    "gm-exact": "GM-MMSE, exact moments",
    "lmmse": "LMMSE, pooled covariance",
    "lasso": "LASSO, a beam per antenna",
    "lasso-2x": "LASSO, two beams per antenna",
    "rls": "RLS",
}
MAIN = ("dm-vb", "single-dm", "gm-mmse", "gm-exact", "lmmse", "lasso", "lasso-2x", "rls")
_COMPLEX_MAC = 8  # floating-point operations


@dataclass(frozen=True)
class Setting:
    """Which channels, and how many of them the trained estimators have seen.

    Attributes:
        kind, array: of the channel sets, see `ChannelSet`.
        scarce: the profile of which only 1,000 training channels are known; None: 10,000 of every one.
    """

    kind: str = "fixed"
    array: str = "horizontal"
    scarce: str | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (("set", self.kind, KINDS), ("array", self.array, ARRAYS)):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if self.scarce is not None and self.scarce not in PROFILES:
            raise ValueError(f"the scarce profile must be one of {', '.join(PROFILES)}, got {self.scarce!r}")

    def channels(self, profile: str) -> ChannelSet:
        count = SCARCE if profile == self.scarce else TRAIN
        return ChannelSet(profile, self.kind, self.array, count)

    @property
    def data(self) -> str:
        """ "balanced", or "scarce" and the profile."""
        return "balanced" if self.scarce is None else f"scarce {self.scarce}"


def fast_networks() -> bool:
    """Whether the processor multiplies bfloat16 faster than float32; convolutions then take half as long or less."""
    return any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )


class Experts(NamedTuple):
    """Noise predictors with what a table says of them.

    bank: as `VBMoE` takes it. flops: of one forward pass of one expert for one channel. mark: tells other weights apart.
    """

    bank: ExpertBank | Sequence[Callable[[Tensor, int], Tensor]]
    flops: float
    mark: str = ""


class Estimate(NamedTuple):
    """What one estimator made of B channels.

    h [B,Nr,Nt]; weights [B,K] of the profiles' experts or None; flops per channel; iterations, a mean over channels (0
    where there are none); processor seconds of all threads for the batch, without gains that are computed once for many
    channels.
    """

    h: Tensor
    weights: Tensor | None
    flops: float
    iterations: float
    seconds: float


class Estimators:
    """Makes estimators by name from training channels, closed forms and weights.

    Args:
        setting: of training and test.
        weights: folder of weights of your own training; None means those shipped.
        bf16: networks in bfloat16.
        networks: experts by estimator ("dm-vb", "single-dm") in place of those stored.
        config: of DM-VB.
    """

    def __init__(
        self,
        setting: Setting | None = None,
        *,
        weights: Path | None = None,
        bf16: bool = False,
        networks: dict[str, Experts] | None = None,
        config: VBMoEConfig | None = None,
    ) -> None:
        self.setting = setting or Setting()
        self.weights, self.bf16 = weights, bf16
        self.config = config or VBMoEConfig()
        self._networks = dict(networks or {})
        self._moments: dict[tuple[str, bool], Moments] = {}
        self._closed: dict[str, GaussianEstimator | GaussianMixtureEstimator] = {}

    def check(self, name: str) -> None:
        """Raises ValueError for a name there is not, or that this set does not have; FileNotFoundError without weights."""
        if name not in LABELS:
            raise ValueError(f"unknown estimator {name!r}: choose from {', '.join(LABELS)}")
        if name in ("gm-exact", "dm-vb-exact") and self.setting.kind == "rotated":
            raise ValueError(f"{name} needs moments in closed form, which the rotated set does not have")
        if name in ("dm-vb", "dm-vb-paper", "single-dm"):
            self.experts(name)

    def mark(self, name: str) -> str:
        """Tells apart what `estimate` would return for the same channels."""
        if name.startswith("dm-vb") or name == "single-dm":
            mark = "" if name == "dm-vb-exact" else self.experts(name).mark
            return f"{mark} {self.bf16} {self._config(name)}"
        return ""

    def estimate(
        self, name: str, y: Tensor, pilots: Tensor, noise_var: float, *, seed: int = 0, first_item: int = 0
    ) -> Estimate:
        """Channels from received pilots y [B,Nr,Np] for pilots [Nt,Np]; seed and first_item of the diffusion."""
        self.check(name)
        if name in ("rls", "lasso", "lasso-2x", "lmmse", "gm-mmse", "gm-exact"):
            return self._closed_form(name, y, pilots, noise_var)
        experts = self.experts(name)
        began = time.process_time()
        loop = VBMoE(experts.bank, self._config(name))
        result = loop.run(y, pilots, noise_var, seed=seed, first_item=first_item)
        seconds = time.process_time() - began
        flops = float(torch.as_tensor(result.calls).double().sum()) * experts.flops / max(len(y), 1)
        weights = result.responsibilities if len(experts.bank) > 1 else None
        return Estimate(result.h, weights, flops, float(result.iterations.double().mean()), seconds)

    def _config(self, name: str) -> VBMoEConfig:
        return replace(self.config, lik="dmps", init="uniform") if name == "dm-vb-paper" else self.config

    def experts(self, name: str) -> Experts:
        """The experts of a diffusion estimator; FileNotFoundError names the weights that are not there."""
        stored = "dm-vb" if name == "dm-vb-paper" else name
        if stored not in self._networks:
            self._networks[stored] = self._exact_experts() if name == "dm-vb-exact" else self._load(stored)
        return self._networks[stored]

    def _load(self, name: str) -> Experts:
        s, dtype = self.setting, torch.bfloat16 if self.bf16 else torch.float32
        if name == "dm-vb":
            networks = load_experts(s.kind, array=s.array, scarce=s.scarce, folder=self.weights)
        else:
            networks = [load_single(s.kind, array=s.array, scarce=s.scarce, folder=self.weights)]
        config = networks[0].config
        if config.steps != self.config.steps:
            raise ValueError(f"the networks know {config.steps} diffusion steps, not {self.config.steps}")
        mark = "".join(fingerprint(network) for network in networks)
        return Experts(GroupedExperts(networks, dtype), float(config.flops(NR, NT)), mark)

    def _exact_experts(self) -> Experts:
        parts = [self.moments(profile, exact=True) for profile in PROFILES]
        tables = self.config.tables()
        bank = [GaussianExpert(part.mean, part.cov, tables.alpha_bar) for part in parts]
        return Experts(bank, 2 * _COMPLEX_MAC * (NR * NT) ** 2)

    def moments(self, profile: str, *, exact: bool = False) -> Moments:
        """Of the training channels of a profile, or in closed form."""
        if (profile, exact) not in self._moments:
            channels = self.setting.channels(profile)
            self._moments[profile, exact] = (
                Moments(*exact_moments(channels), 0.0) if exact else moments_of(load_set(channels))
            )
        return self._moments[profile, exact]

    def _linear(self, name: str) -> GaussianEstimator | GaussianMixtureEstimator:
        if name not in self._closed:
            parts = [self.moments(profile, exact=name == "gm-exact") for profile in PROFILES]
            if name == "lmmse":
                counts = [self.setting.channels(profile).train_count for profile in PROFILES]
                self._closed[name] = GaussianEstimator.of(pooled_moments(parts, counts))
            else:
                self._closed[name] = GaussianMixtureEstimator.of(parts)
        return self._closed[name]

    def _closed_form(self, name: str, y: Tensor, pilots: Tensor, noise_var: float) -> Estimate:
        """Run twice: the first call makes the gains, the second is timed."""
        nr, nt, slots = y.shape[1], pilots.shape[0], pilots.shape[1]
        seen, size = nr * slots, nr * nt
        iterations, weights = 0, None
        for _ in range(2):
            began = time.process_time()
            if name == "rls":
                h, macs = rls_channel(y, pilots, noise_var), nr * slots * nt
            elif name in ("lasso", "lasso-2x"):
                beams = 2 if name == "lasso-2x" else 1  # per antenna, at either end
                h, info = lasso_channel(y, pilots, noise_var, oversampling=beams, return_info=True)
                iterations = info.iterations
                macs = iterations * beams**3 * (nr * nt * nt + (nr * nr * nt if beams > 1 else 0))
            else:
                estimator = self._linear(name)
                result = estimator(y, pilots, noise_var)
                h, weights = result if isinstance(result, tuple) else (result, None)
                macs = (seen * seen + seen * size) * (len(PROFILES) if weights is not None else 1)
            seconds = time.process_time() - began
        return Estimate(h, weights, float(_COMPLEX_MAC * macs), float(iterations), seconds)
