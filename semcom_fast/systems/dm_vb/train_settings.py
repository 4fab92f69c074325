"""Settings of one training of an expert, or of the single network for all profiles."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..fitting import FlooredFitSettings, check_call, fast_bf16
from .channels import ARRAYS, KINDS, PROFILES, SCARCE, TRAIN
from .network import DOMAINS, WIDE, CNNConfig

SINGLE = "single"
SINGLE_WIDTH = 130  # four times the parameters of an expert
WINDOWS = {"wide": WIDE, "paper": None}


def weights_name(profile: str, kind: str = "fixed", array: str = "horizontal", scarce: str | None = None) -> str:
    """Name of the weights of an expert, "dm_vb_fixed_cdl_a", or of the single network, "dm_vb_fixed_single".

    Args:
        profile: "CDL-A".. or "single".
        kind, array: of the channel set.
        scarce: the profile of which few channels were known. It names the expert of that profile and the single
            network; experts of the other profiles are those of the balanced setting.
    """
    few = scarce is not None and profile in (scarce, SINGLE)
    data = "scarce" if few and kind == "fixed" else f"{kind}_scarce" if few else kind
    axis = "" if array == "horizontal" else f"_{array}"
    return f"dm_vb_{data}{axis}_{profile.lower().replace('-', '_')}"


@dataclass(frozen=True)
class NetFitSettings(FlooredFitSettings):
    """The cosine to a floor, and what else a checkpoint must agree on."""

    batch: int = 16
    config: str = ""
    data: str = ""
    time_power: float = 1.0
    bf16: bool = False


@dataclass(frozen=True)
class NetTrainSettings:
    """One call of the training command.

    Attributes:
        profile: an expert's profile, or "single" for one network on the pool of all four with four times the parameters.
        kind, array: of the channel set.
        scarce: the profile of which only `scarce_samples` channels are known.
        samples: training channels of every other profile.
        window: "wide" spaces the taps of the convolutions so that an entry sees 25x57 antennas, "paper" leaves them
            together, 11x11; parameters and operations are the same. Whatever it computes, a network that sees 11x11 stays
            17 to 31 % above the best possible loss of the fixed sets of CDL-A, CDL-C and CDL-D (on their cards).
        width: channels at the affine; None: 64 for an expert, 130 for the single network.
        steps, rate, average: planned updates, the learning rate they start from, and the memory of the averaged weights.
        time_power: steps are T u**time_power, u uniform; 1 is the paper's loss, more looks more often at the first steps,
            where the most is left to learn.
        minutes: stop after that long, with weights written and a checkpoint to go on from.
        bf16: convolutions in bfloat16; None where the processor has instructions for it.
    """

    profile: str = "CDL-A"
    kind: str = "fixed"
    array: str = "horizontal"
    scarce: str | None = None
    samples: int = TRAIN
    scarce_samples: int = SCARCE
    domain: str = "spatial"
    window: str = "wide"
    width: int | None = None
    steps: int = 9_000
    batch: int = 16
    rate: float = 3e-3
    average: float = 0.998
    time_power: float = 1.0
    seed: int = 0
    out: Path = Path("out/dm_vb")
    minutes: float | None = None
    bf16: bool | None = None
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name, choices in (
            ("profile", (*PROFILES, SINGLE)),
            ("kind", KINDS),
            ("array", ARRAYS),
            ("domain", DOMAINS),
            ("window", tuple(WINDOWS)),
            ("scarce", (None, *PROFILES)),
        ):
            value = getattr(self, name)
            if value not in choices:
                listed = ", ".join(choice for choice in choices if choice)
                raise ValueError(f"unknown {name} {value!r}: choose one of {listed}")
        check_call(self, "steps", "batch", "samples", "scarce_samples")
        for name in ("rate", "time_power"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name):g}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be on [0, 1), got {self.average:g}")
        if self.scarce is not None and self.profile not in (self.scarce, SINGLE):
            raise ValueError(
                f"with {self.scarce} scarce the expert of {self.profile} is that of the balanced setting: train it "
                f"without --scarce, or train {self.scarce} or {SINGLE}"
            )

    @property
    def name(self) -> str:
        """Of the weights."""
        return weights_name(self.profile, self.kind, self.array, self.scarce)

    @property
    def config(self) -> CNNConfig:
        """Of the network."""
        width = self.width or (SINGLE_WIDTH if self.profile == SINGLE else 64)
        return CNNConfig.scaled(width, domain=self.domain, dilations=WINDOWS[self.window])

    def counts(self) -> dict[str, int]:
        """Training channels by profile."""
        profiles = PROFILES if self.profile == SINGLE else (self.profile,)
        return {name: self.scarce_samples if name == self.scarce else self.samples for name in profiles}

    def fit(self, config: dict[str, Any], data: str) -> NetFitSettings:
        """What the checkpoint is marked with: network sizes and a fingerprint of the data."""
        return NetFitSettings(
            steps=self.steps,
            rate=self.rate,
            warm_up=min(100, max(1, self.steps // 10)),
            average=self.average,
            seed=self.seed,
            batch=self.batch,
            config=str(config),
            data=data,
            time_power=self.time_power,
            bf16=fast_bf16(self.bf16),
        )
