"""A training loop that can be stopped at any time: Ctrl-C, resume, and the result is the same to the last bit.

Every step draws from a generator seeded by (seed, step), so a resumed run sees the numbers an unbroken one would. A
checkpoint is one safetensors file, replaced atomically.
"""

import contextlib
import copy
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import require_extra

_CHECKPOINT_SECONDS = 20.0


class Stopped(KeyboardInterrupt):
    """Training was interrupted between two steps, with everything saved; the message says how to go on."""


class TimeUp(Exception):
    """The time limit was reached between two steps; everything is saved."""


@dataclass(frozen=True)
class FitSettings:
    """AdamW with a short linear warm-up, a cosine to zero, and an exponential average of the weights."""

    steps: int
    rate: float
    weight_decay: float = 0.0
    average: float = 0.999
    warm_up: int = 100
    seed: int = 0

    def rate_at(self, step: int) -> float:
        return self.rate * min(1.0, (step + 1) / self.warm_up) * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class FlooredFitSettings(FitSettings):
    """Adam with a warm-up and a cosine from `rate` to `floor` over the planned steps."""

    floor: float = 1e-5

    def rate_at(self, step: int) -> float:
        share = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return min(1.0, (step + 1) / self.warm_up) * (self.floor + (self.rate - self.floor) * share)


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


def fast_bf16(asked: bool | None) -> bool:
    """Whether to compute in bfloat16: as asked, by default where the processor has AMX tiles (about twice the steps)."""
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return tiles() if asked is None else asked


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C only raises a flag; the yielded function reads it. A second Ctrl-C interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False

    def note(signum, frame):
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


class Fit:
    """Fits `model` so that `loss(model, generator)` gets small; `averaged` holds the averaged weights.

    `generator` is a torch.Generator seeded for the step: the loss takes all its random numbers from it.
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[Any, torch.Generator], Tensor], settings: FitSettings, path: Path
    ) -> None:
        self.model, self.loss, self.settings, self.path = model, loss, settings, path
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=settings.rate, weight_decay=settings.weight_decay, foreach=True
        )
        self.step = 0
        self.seconds = 0.0

    def _one_step(self) -> float:
        generator = torch.Generator().manual_seed(self.settings.seed * 2**32 + self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.rate_at(self.step)
        loss = self.loss(self.model, generator)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.step += 1
        keep = min(self.settings.average, self.step / (self.step + 9))  # a fresh average forgets the start fast
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - keep)
        return float(loss.detach())

    def run(self, label: str, progress: bool = True) -> nn.Module:
        """Train to the last step and return the averaged model in evaluation mode; raises Stopped on Ctrl-C."""
        tqdm = require_extra("tqdm", "demo").tqdm
        shown = {"total": self.settings.steps, "initial": self.step, "desc": label, "unit": "step"}
        self.model.train()
        saved = began = time.monotonic()
        before = self.seconds
        with deferred_interrupt() as stopped, tqdm(**shown, disable=not progress) as bar:
            while self.step < self.settings.steps:
                loss = self._one_step()
                self.seconds = before + time.monotonic() - began
                bar.update()
                if self.step % 50 == 0:
                    bar.set_postfix(loss=f"{loss:.4f}")
                if stopped():
                    self.save()
                    raise Stopped(f"stopped at step {self.step} of {self.settings.steps}; --resume goes on from there")
                if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.monotonic()
        self.save()
        return self.averaged.eval()

    def _named(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for prefix, module in (("model", self.model), ("average", self.averaged)):
            tensors.update({f"{prefix}/{name}": value for name, value in module.state_dict().items()})
        for name, parameter in self.model.named_parameters():
            for moment in ("exp_avg", "exp_avg_sq"):
                state = self.optimiser.state.get(parameter)
                if state:
                    tensors[f"{moment}/{name}"] = state[moment]
        return tensors

    def _description(self) -> str:
        return json.dumps(asdict(self.settings), sort_keys=True)

    def save(self) -> None:
        """Write the checkpoint; an interrupted write leaves the previous one in place."""
        save_file = require_extra("safetensors.torch", "demo").save_file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"step": str(self.step), "seconds": repr(self.seconds), "settings": self._description()}
        partial = self.path.with_suffix(".partial")
        save_file({k: v.contiguous() for k, v in self._named().items()}, partial, metadata=metadata)
        os.replace(partial, self.path)

    def resume(self) -> bool:
        """Go on from the checkpoint if there is one; False if there is none.

        Raises:
            ValueError: the checkpoint was made with other settings.
        """
        if not self.path.exists():
            return False
        with require_extra("safetensors", "demo").safe_open(self.path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if metadata["settings"] != self._description():
            raise ValueError(
                f"{self.path} was made with settings {metadata['settings']}, now {self._description()}: "
                "use the same ones, another --out, or train without --resume"
            )
        for prefix, module in (("model", self.model), ("average", self.averaged)):
            module.load_state_dict({name: tensors[f"{prefix}/{name}"] for name in module.state_dict()})
        self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
        for name, parameter in self.model.named_parameters():
            if self.step:
                self.optimiser.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": tensors[f"exp_avg/{name}"],
                    "exp_avg_sq": tensors[f"exp_avg_sq/{name}"],
                }
        return True


class TimedFit(Fit):
    """`Fit` with a time limit (minutes) and a check for divergence.

    The average also covers the running statistics of batch normalisation.
    """

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
