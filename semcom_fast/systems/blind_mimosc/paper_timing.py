"""Time and memory of inner iterations of the blind receiver, with networks of any size and any weights."""

import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...receivers import PVD, PVDLevel
from .overhead import network_pass

_LEVELS = (0.5, 1.0)  # noise levels of the timed iterations: mild ones, so that untrained networks stay finite


class StepTiming(NamedTuple):
    """Seconds per inner iteration of `batch` starts, and of their network calls alone; medians of `steps`."""

    step: float
    network: float
    batch: int
    steps: int

    @property
    def network_share(self) -> float:
        """Part of an iteration that the networks take."""
        return self.network / self.step

    def run_seconds(self, iterations: int) -> float:
        """Seconds that so many iterations take for one image, extrapolated."""
        return self.step * iterations / self.batch


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch allocated on a GPU, or the largest resident size the whole process had on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_steps(
    receiver: PVD,
    encoder,
    denoiser,
    y: Tensor,
    noise_var: float,
    steps: int,
    *,
    on_step: Callable[[], None] | None = None,
) -> StepTiming:
    """Time `steps` inner iterations after one that warms up, then the same number of network calls alone.

    Args:
        receiver: whose sizes are used; its schedule is replaced by one of `steps` + 1 levels of one iteration each.
        encoder, denoiser: of the source, those of the receiver.
        y: [B,K,Nr,T]; all of it is one batch.
        on_step: called after every iteration.
    """
    if steps < 1:
        raise ValueError(f"time at least 1 inner step, got {steps}")
    low, high = _LEVELS
    config = replace(receiver.config, J=steps + 1, Jin=1, sigma_min=low, sigma_max=high)
    stamps: list[float] = []

    def stamp(level: PVDLevel) -> None:
        stamps.append(_clock(y.device))
        if on_step is not None:
            on_step()

    PVD(encoder, receiver.denoiser_h, denoiser, config).run(y, noise_var, on_level=stamp)
    loop = statistics.median(b - a for a, b in itertools.pairwise(stamps))
    alone = network_pass(encoder, denoiser, replace(config, J=1), y, noise_var, receiver.denoiser_h, end=False)
    seconds = []
    for turn in range(steps + 1):
        began = _clock(y.device)
        alone()
        if turn:
            seconds.append(_clock(y.device) - began)
    return StepTiming(loop, statistics.median(seconds), len(y), steps)
