"""Settings of one training for photographs."""

from dataclasses import dataclass
from pathlib import Path

from ..fitting import FlooredFitSettings, check_call, fast_bf16
from .photo_codec import PhotoCodecConfig


@dataclass(frozen=True)
class PhotoFitSettings(FlooredFitSettings):
    """The cosine to a floor, and what else a checkpoint must agree on."""

    batch: int = 32
    part: str = "codec"
    config: str = ""
    low_db: float = 8.0
    high_db: float = 26.0
    penalty: float = 1.0
    bf16: bool = False


@dataclass(frozen=True)
class PartDefaults:
    """What a part is trained with unless told otherwise: as the shipped weights were, whose cards say it too."""

    steps: int
    rate: float
    weight_decay: float = 0.0
    penalty: float = 0.0


DEFAULTS = {
    "codec": PartDefaults(4_000, 1.5e-3, weight_decay=0.1, penalty=1.0),
    "codec-plain": PartDefaults(6_000, 7e-4, weight_decay=0.1),
    "denoiser": PartDefaults(36_000, 1e-3),
}
PARTS = tuple(DEFAULTS)


@dataclass(frozen=True)
class PhotoTrainSettings:
    """One call of the training command for photographs; None means the part's default.

    Attributes:
        part: one of PARTS; "codec-plain" is trained without the penalty against odd encoders.
        symbols: of a codec, per crop. slots: T of the rows that the penalty looks at; symbols a multiple of 2 T.
        batch: crops a step.
        minutes: stop after that long, with weights written and a checkpoint to go on from.
        bf16: networks in bfloat16; None where the processor has instructions for it.
    """

    part: str = "codec"
    symbols: int = PhotoCodecConfig().symbols
    slots: int = PhotoCodecConfig().slots
    steps: int | None = None
    batch: int = 32
    rate: float | None = None
    seed: int = 0
    out: Path = Path("out/blind_mimosc")
    minutes: float | None = None
    bf16: bool | None = None
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if self.part not in DEFAULTS:
            raise ValueError(f"unknown part {self.part!r}: choose one of {', '.join(PARTS)}")
        for name in ("steps", "rate"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(DEFAULTS[self.part], name))
        check_call(self, "steps", "batch", "symbols", "slots")
        self.codec()

    def codec(self) -> PhotoCodecConfig:
        """Sizes of the codec to train."""
        nt = PhotoCodecConfig.nt
        if self.symbols % (nt * self.slots):
            raise ValueError(f"need symbols a multiple of {nt} slots, got {self.symbols} and {self.slots}")
        return PhotoCodecConfig(blocks=self.symbols // (nt * self.slots), slots=self.slots)

    def fit(self, config: str) -> PhotoFitSettings:
        """What the checkpoint is marked with, for networks of these sizes."""
        assert self.steps is not None and self.rate is not None
        return PhotoFitSettings(
            steps=self.steps,
            rate=self.rate,
            average=0.999 if self.steps >= 2000 else 0.99,
            seed=self.seed,
            batch=self.batch,
            part=self.part,
            config=config,
            weight_decay=DEFAULTS[self.part].weight_decay,
            penalty=DEFAULTS[self.part].penalty,
            bf16=fast_bf16(self.bf16),
        )
