"""Settings of one training of a part of the codec."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..fitting import FlooredFitSettings, check_call, fast_bf16


@dataclass(frozen=True)
class CodecFitSettings(FlooredFitSettings):
    """The cosine to a floor, and what else a checkpoint must agree on."""

    batch: int = 16
    part: str = "autoencoder"
    config: str = ""
    images: str = "photos"
    low_db: float = 10.0
    high_db: float = 10.0
    bf16: bool = False


@dataclass(frozen=True)
class PartDefaults:
    """What a part is trained with unless told otherwise."""

    steps: int
    batch: int
    rate: float
    snr_db: tuple[float, float]


DEFAULTS = {
    "autoencoder": PartDefaults(12_000, 16, 1e-3, (10.0, 10.0)),
    "snr": PartDefaults(3_000, 64, 1e-3, (-18.0, 18.0)),
    "edges": PartDefaults(6_000, 16, 1e-3, (-15.0, 15.0)),
}
PARTS = tuple(DEFAULTS)


@dataclass(frozen=True)
class CodecTrainSettings:
    """One call of the training command for a part of the codec; None means the part's default.

    Attributes:
        part: one of PARTS. "snr" needs trained "autoencoder" weights.
        snr_db: each image's SNR is uniform between these, in dB.
        images: "photos", or "folder" and its path.
        weights: folder with the autoencoder whose latents "snr" is trained on; None means the one shipped.
        minutes: stop after that long, with weights written and a checkpoint to go on from.
        bf16: networks in bfloat16; None where the processor has instructions for it.
    """

    part: str = "autoencoder"
    steps: int | None = None
    batch: int | None = None
    rate: float | None = None
    snr_db: tuple[float, float] | None = None
    seed: int = 0
    images: Sequence[str] = ("photos",)
    out: Path = Path("out/sgd_jscc")
    weights: Path | None = None
    minutes: float | None = None
    bf16: bool | None = None
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if self.part not in DEFAULTS:
            raise ValueError(f"unknown part {self.part!r}: choose one of {', '.join(PARTS)}")
        for name in ("steps", "batch", "rate", "snr_db"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(DEFAULTS[self.part], name))
        assert self.snr_db is not None
        check_call(self, "steps", "batch")
        if self.snr_db[0] > self.snr_db[1]:
            raise ValueError(f"the SNR range must not be empty, got {self.snr_db[0]:g} to {self.snr_db[1]:g} dB")
        if self.images[0] not in ("photos", "folder") or len(self.images) != 1 + (self.images[0] == "folder"):
            raise ValueError(f'images must be "photos", or "folder" and its path, got {" ".join(self.images)}')

    def fit(self, config: str) -> CodecFitSettings:
        """What the checkpoint is marked with, for networks of these sizes."""
        assert self.steps is not None and self.batch is not None and self.rate is not None and self.snr_db is not None
        return CodecFitSettings(
            steps=self.steps,
            rate=self.rate,
            average=0.999 if self.steps >= 2000 else 0.99,
            seed=self.seed,
            batch=self.batch,
            part=self.part,
            config=config,
            images=" ".join(self.images),
            low_db=self.snr_db[0],
            high_db=self.snr_db[1],
            bf16=fast_bf16(self.bf16),
        )
