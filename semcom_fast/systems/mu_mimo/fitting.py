"""The training loop of this system: that of Blind-MIMOSC with a rate floor, a time limit and a check for divergence."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..blind_mimosc.fitting import Fit, FitSettings, FlooredFitSettings
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


class TrainingCall(Protocol):
    """What the settings of one call of a training command have in common."""

    @property
    def minutes(self) -> float | None: ...


def check_call(settings: TrainingCall, *counts: str) -> None:
    """The named counts are at least 1, and a time limit is positive; raises ValueError."""
    for name in counts:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(settings, name)}")
    if settings.minutes is not None and not settings.minutes > 0:
        raise ValueError(f"minutes must be positive, got {settings.minutes:g}")


class TimeUp(Exception):
    """The time limit was reached between two steps; everything is saved."""


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


class LinkFit(Fit):
    """`Fit` with a time limit (minutes). The average also covers the running statistics of batch normalisation."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, torch.Generator], Tensor],
        settings: FitSettings,
        path: Path,
        minutes: float | None = None,
    ) -> None:
        super().__init__(model, loss, settings, path)
        self.ends = None if minutes is None else time.monotonic() + 60 * minutes

    def _one_step(self) -> float:
        loss = super()._one_step()
        if not math.isfinite(loss):
            raise ValueError(
                f"training diverged: the loss of step {self.step} is {loss}; {self.path} holds the last saved state"
            )
        keep = min(self.settings.average, self.step / (self.step + 9))
        for mine, theirs in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - keep)
        if self.ends is not None and time.monotonic() > self.ends:
            self.save()
            raise TimeUp
        return loss

    def resume(self) -> bool:
        found = super().resume()
        for parameter, state in self.optimiser.state.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                # In the parameter's own memory layout: another one rounds differently.
                state[moment] = torch.empty_like(parameter).copy_(state[moment])
        return found

    def train(self, label: str, *, resume: bool, progress: bool) -> float:
        """Go on from the checkpoint if asked, then train to the last step or the time limit; returns steps per second."""
        if resume:
            self.resume()
        began, before = self.step, self.seconds
        try:
            self.run(label, progress)
        except TimeUp:
            print(f"time limit reached at step {self.step} of {self.settings.steps}; --resume goes on from there")
        return (self.step - began) / max(self.seconds - before, 1e-9)
