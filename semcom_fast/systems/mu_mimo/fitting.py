"""Settings and loss of this system's training."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from ..fitting import FlooredFitSettings
from .batches import UNLABELLED, BatchSource
from .system import MuMimoSystem


@dataclass(frozen=True)
class LinkFitSettings(FlooredFitSettings):
    """The cosine to a floor, and what else a checkpoint must agree on."""

    warm_up: int = 1
    batch: int = 16
    variant: str = "full"
    subcarriers: int = 32
    scenario: str = "all"
    images: str = "photos"
    low_db: float = -7.0
    high_db: float = 7.0
    cross_entropy: float = 0.01
    bf16: bool = False


def link_loss(source: BatchSource, settings: LinkFitSettings):
    """Mean squared error of the recovered images plus a little cross entropy over those that have labels."""

    def loss(model: MuMimoSystem, generator: torch.Generator):
        batch = source.draw(settings.batch, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            result = model(batch.images, batch.h, batch.noise_var, seed=batch.seed)
        total = (result.images - batch.images).square().mean()
        scores, labels = result.scores.flatten(0, 1), batch.labels.flatten()
        # A sum over no labels is zero with zero gradients: every parameter takes part in every step, as resuming needs.
        entropy = functional.cross_entropy(scores, labels, ignore_index=UNLABELLED, reduction="sum")
        total = total + settings.cross_entropy * entropy / labels.ne(UNLABELLED).sum().clamp_min(1)
        return total

    return loss
