"""Settings of one training of the denoiser or its control branch."""

from dataclasses import dataclass
from pathlib import Path

from ..fitting import FlooredFitSettings, check_call, fast_bf16


@dataclass(frozen=True)
class PartDefaults:
    """What a part is trained with unless told otherwise: as the shipped weights were."""

    steps: int
    rate: float
    crops: int
    text_dropped: float


DEFAULTS = {
    "dit": PartDefaults(6_000, 1e-3, 20_000, 0.5),
    "control": PartDefaults(4_000, 1e-3, 16_000, 1.0),
}
PARTS = tuple(DEFAULTS)


@dataclass(frozen=True)
class DenoiserFitSettings(FlooredFitSettings):
    """The cosine to a floor, and what else a checkpoint must agree on."""

    batch: int = 32
    part: str = "dit"
    config: str = ""
    data: str = ""
    latest: float = 1.0
    time_power: float = 1.0
    relative: bool = False
    text_dropped: float = 0.15
    masked_rows: float = 0.0
    bf16: bool = False


@dataclass(frozen=True)
class DenoiserTrainSettings:
    """One call of the training command for the denoiser.

    Attributes:
        part: "dit", or "control", which needs trained "dit" weights.
        steps, rate, crops, text_dropped: None means the part's default.
        crops: photograph crops whose latents are used; the denoiser also sees their mirror images.
        highest_level: largest noise level trained on; its time is the last one.
        time_power: times are the last one times u**time_power, u uniform. Algorithm 1 has highest_level and power 1.
        relative: divide every image's error by that of the denoiser's linear estimate at its level, so that all levels
            count alike; needs output="residual". False is the paper's loss.
        text_dropped: share of images whose caption is withheld. A caption names one of a few photographs here, so it is
            withheld more often than the usual 0.1 to 0.2, and always while the control branch is trained.
        masked_rows: share of a batch that also goes through the network with masked tokens, for the second term of (20);
            1 is the paper's loss, 0 leaves the side block out.
        weights: folder with the autoencoder (for "control", also the edge codec and "dit"); None means those shipped.
        minutes: stop after that long, with weights written and a checkpoint to go on from.
        bf16: networks in bfloat16; None where the processor has instructions for it.
    """

    part: str = "dit"
    steps: int | None = None
    batch: int = 32
    rate: float | None = None
    seed: int = 0
    crops: int | None = None
    highest_level: float = 0.97
    time_power: float = 2.0
    relative: bool = True
    text_dropped: float | None = None
    masked_rows: float = 0.125
    out: Path = Path("out/sgd_jscc")
    weights: Path | None = None
    minutes: float | None = None
    bf16: bool | None = None
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"unknown part {self.part!r}: choose one of {', '.join(PARTS)}")
        for name in ("steps", "rate", "crops", "text_dropped"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(DEFAULTS[self.part], name))
        check_call(self, "steps", "batch", "crops")
        for name in ("text_dropped", "masked_rows"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be on [0, 1], got {getattr(self, name)}")
        if not 0 < self.highest_level <= 1:
            raise ValueError(f"highest_level must be on (0, 1], got {self.highest_level}")

    @property
    def masked(self) -> float:
        """Share of masked rows; the control branch is trained without."""
        return self.masked_rows if self.part == "dit" else 0.0

    def fit(self, config: str, data: str, latest: float) -> DenoiserFitSettings:
        """What the checkpoint is marked with: network sizes, a fingerprint of the data, and the last time trained on."""
        assert self.steps is not None and self.rate is not None and self.text_dropped is not None
        return DenoiserFitSettings(
            steps=self.steps,
            rate=self.rate,
            warm_up=min(100, max(1, self.steps // 10)),
            average=0.999 if self.steps >= 4000 else 0.998 if self.steps >= 1000 else 0.98,
            seed=self.seed,
            batch=self.batch,
            part=self.part,
            config=config,
            data=data,
            latest=latest,
            time_power=self.time_power,
            relative=self.relative,
            text_dropped=self.text_dropped,
            masked_rows=self.masked,
            bf16=fast_bf16(self.bf16),
        )
