"""Training of one variant of the MU-MIMO OFDM downlink: `semcom-fast train mu-mimo`.

May be stopped at any time and goes on with --resume; the result is what an unbroken run gives. A checkpoint is one
safetensors file, replaced atomically.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ... import weights
from ...data import tapped_channels
from ...data.cifar10 import Cifar10Python
from ...data.digits import Digits
from ...data.image_folder import ImageFolder
from ...data.images import ImageSource
from ...data.photos import PhotoCrops
from ...data.stamps import StampsTask
from ..fitting import TimedFit, check_call, fast_bf16
from .batches import DIGIT_SHARE, BatchSource, channel_source
from .evaluate import Protocol, measure, scenario_channels
from .fitting import LinkFitSettings, link_loss
from .networks import load_head, load_system, weights_name
from .system import VARIANTS, MuMimoSystem, SystemConfig

PHOTO_CROPS = 120_000
HELD_OUT = 512
IMAGE_SETS = ("photos", "digits", "stamps", "cifar10", "folder")
IMAGE_LICENCE = "images: see `sources`, each under its own licence; weights: Apache-2.0"


@dataclass(frozen=True)
class TrainSettings:
    """One call of the training command.

    Attributes:
        variant: one of VARIANTS but "zf", which has no weights of its own.
        batch: grids of one image per user in a step; 16 keeps a training within an hour on a CPU, the paper has 64.
        images: a name of IMAGE_SETS, then the folder for cifar10 and folder.
        bf16: convolutions in bfloat16; None where the processor has instructions for it.
        weights: the system a head is trained for; None means those shipped.
        minutes: stop after that long, with weights written and a checkpoint to go on from.
    """

    variant: str = "full"
    subcarriers: int = 32
    steps: int = 12_000
    batch: int = 16
    rate: float = 1e-3
    seed: int = 0
    scenario: str = "all"
    snr_db: tuple[float, float] = (-7.0, 7.0)
    images: Sequence[str] = ("photos",)
    out: Path = Path("out/mu_mimo")
    minutes: float | None = None
    bf16: bool | None = None
    weights: Path | None = None
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS or VARIANTS[self.variant].zero_forcing:
            trained = [name for name, parts in VARIANTS.items() if not parts.zero_forcing]
            raise ValueError(
                f"cannot train {self.variant!r}: choose one of {', '.join(trained)} (zf uses rzf's weights)"
            )
        check_call(self, "steps", "batch")
        if self.snr_db[0] > self.snr_db[1]:
            raise ValueError(f"the SNR range must not be empty, got {self.snr_db[0]:g} to {self.snr_db[1]:g} dB")


def image_source(choice: Sequence[str]) -> ImageSource:
    """The loader of a choice of images, checked.

    Raises:
        ValueError: unknown choice, or a folder missing or too many.
        FileNotFoundError: nothing at the folder.
    """
    name, *where = choice
    if name not in IMAGE_SETS:
        raise ValueError(f"unknown images {name!r}: choose one of {', '.join(IMAGE_SETS)}")
    own = name in ("cifar10", "folder")
    if len(where) != own:
        raise ValueError(f"--images {name} takes {'one folder' if own else 'no folder'}")
    if name == "photos":
        return PhotoCrops(size=32, n=PHOTO_CROPS)
    if not own:
        return Digits() if name == "digits" else StampsTask()
    return Cifar10Python(choice[1]) if choice[0] == "cifar10" else ImageFolder(choice[1], 32)


def batch_source(settings: TrainSettings) -> BatchSource:
    """What the training draws from: unlabelled images get DIGIT_SHARE digits mixed in, for the classifier's sake."""
    main = image_source(settings.images).load("train")
    extra = Digits().load("train") if main.labels is None else None
    return BatchSource(main, extra, channel_source(settings.scenario, settings.subcarriers), settings.snr_db)


def classes(source: BatchSource) -> int:
    """How many classes the classifier has to tell apart."""
    return len((source.digits or source.main).names)


def fit_settings(settings: TrainSettings) -> LinkFitSettings:
    """What the checkpoint is marked with."""
    low, high = settings.snr_db
    return LinkFitSettings(
        steps=settings.steps,
        rate=settings.rate,
        average=0.99,
        seed=settings.seed,
        batch=settings.batch,
        variant=settings.variant,
        subcarriers=settings.subcarriers,
        scenario=settings.scenario,
        images=" ".join(settings.images),
        low_db=low,
        high_db=high,
        bf16=fast_bf16(settings.bf16),
    )


def half(module: nn.Module) -> dict[str, Tensor]:
    """State with the layers' weights rounded to float16 and running statistics as they are."""
    layers = {name for name, _ in module.named_parameters()}
    state = module.state_dict()
    return {
        name: value.half() if name in layers else value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }


def validation(settings: TrainSettings, labels: str, *, system_folder: Path | None) -> dict[str, Any]:
    """What the stored weights reach on held-out images: PSNR and, on their labels, accuracy, at three SNRs.

    With labels other than those of the system in `system_folder`, the head for them in `settings.out` is judged.
    """
    system, card = load_system(settings.variant, settings.subcarriers, folder=system_folder)
    if labels != card["labels"]:
        system = load_head(system, labels, folder=settings.out)
    source = image_source(settings.images)
    images = source.load("val", HELD_OUT) if isinstance(source, PhotoCrops | StampsTask) else source.load("test")
    users = system.config.users
    if len(images) < users:
        return {"on": f"nothing: {len(images)} held out, a grid takes {users}"}
    images = images.first(min(len(images), HELD_OUT) // users * users)
    if settings.scenario == "tapped":
        channels = {"tapped": tapped_channels(64, seed=settings.seed + 1)}
    else:
        channels = scenario_channels([settings.scenario], "shipped")
    known = images if images.labels is not None else Digits().load("test")
    protocol = Protocol(images, {labels: known}, channels, seeds=(0,))
    kept = "of the validation photographs" if isinstance(source, PhotoCrops | StampsTask) else "of the test split"
    accuracy = f"accuracy on {'them' if known is images else 'the held-out digits'}"
    metrics: dict[str, Any] = {"on": f"{len(images)} images {kept}, 64 channels of each scenario; {accuracy}"}
    for scenario in channels:
        for snr in (-7.0, 0.0, 7.0):
            row = measure(settings.variant, scenario, snr, {labels: system}, protocol)
            metrics[f"{scenario} {snr:g} dB"] = {
                "psnr_db": round(row.psnr_db, 2),
                "ssim": round(row.ssim, 3),
                "accuracy": round(row.accuracy[labels][0], 3),
            }
    return metrics


def _card(settings: TrainSettings, fit: TimedFit, source: BatchSource) -> dict[str, Any]:
    sources = source.main.sources + (source.digits.sources if source.digits else ())
    share = f", {DIGIT_SHARE:.1%} of the draws digits with labels" if source.digits else ""
    return {
        "name": weights_name(settings.variant, settings.subcarriers),
        "what": f"MU-MIMO OFDM semantic downlink, variant {settings.variant}: encoder, precoder and decoder, "
        f"{settings.subcarriers} subcarriers, 4 users, 4 antennas",
        "data": f"{settings.images[0]}: {len(source.main)} images of 32x32{share}; not the paper's CIFAR-10 numbers",
        "labels": settings.images[0] if source.digits is None else "digits",
        "classes": classes(source),
        "licence": IMAGE_LICENCE,
        "sources": list(sources),
        "parameters": sum(parameter.numel() for parameter in fit.model.parameters()),
        "training": {
            **asdict(fit.settings),
            "optimiser": "Adam, cosine to the floor, averaged weights",
            "steps_done": fit.step,
            "images_seen": fit.step * settings.batch * source.users,
            "loss": "mean squared error on [0,1] + cross_entropy times the cross entropy of labelled images",
            "channels": "stored 3GPP TR 38.901 impulse responses, static, known to the transmitter"
            if settings.scenario != "tapped"
            else "built-in tapped channels, static, known to the transmitter",
        },
        "seconds": round(fit.seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "stored_as": "float16 layers, float32 statistics; metrics are of the rounded weights",
        "metrics": {},
        "commit": "see git log of this file",
    }


def train(settings: TrainSettings, source: BatchSource | None = None) -> dict[str, Any]:
    """Train one variant into `settings.out`; prints a line with the rate and returns the card.

    Args:
        source: what to draw from instead of what the settings name.

    Raises:
        Stopped: Ctrl-C, after the checkpoint was saved.
    """
    source = source or batch_source(settings)
    torch.manual_seed(settings.seed)
    model = MuMimoSystem(SystemConfig(settings.variant, settings.subcarriers, classes=classes(source)))
    name = weights_name(settings.variant, settings.subcarriers)
    marked = fit_settings(settings)
    path = settings.out / f"{name}.checkpoint"
    fit = TimedFit(model, link_loss(source, marked), marked, path, settings.minutes)
    speed = fit.train(
        f"{settings.variant}, {settings.batch * source.users} images a step",
        resume=settings.resume,
        progress=settings.progress,
    )
    card = _card(settings, fit, source)
    weights.save(name, settings.out, half(fit.averaged), card)
    card["metrics"] = validation(settings, card["labels"], system_folder=settings.out)
    weights.save(name, settings.out, half(fit.averaged), card)
    line = {
        "steps": fit.step,
        "images_per_second": round(speed * settings.batch * source.users, 1),
        "minutes": round(fit.seconds / 60, 1),
    }
    print(f"{settings.out / name}.safetensors: {json.dumps(line)}")
    return card
