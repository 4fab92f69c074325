"""The training loop of this system: SOAP in place of Adam, and the average kept that did best on held-back channels."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import require_extra
from ..fitting import FitSettings, TimedFit
from .soap import MATRICES, SOAP

CHECKS = 40  # over a whole training


class AveragedBest(TimedFit):
    """`TimedFit` with SOAP; given a judge, it looks at the average now and then and remembers the best.

    Args:
        judge: (averaged network) -> a number to get small, without random numbers of its own; None keeps the last average.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, torch.Generator], Tensor],
        settings: FitSettings,
        path: Path,
        minutes: float | None = None,
        judge: Callable[[nn.Module], float] | None = None,
    ) -> None:
        super().__init__(model, loss, settings, path, minutes)
        self.optimiser = SOAP(model.parameters(), settings.rate)  # type: ignore[assignment]
        self.judge = judge
        self.best = copy.deepcopy(self.averaged) if judge else None
        self.best_value, self.best_step = math.inf, 0
        self._every = max(1, settings.steps // CHECKS)

    def kept(self) -> nn.Module:
        """The best average, or the last one where nothing judges."""
        return (self.averaged if self.best is None or not self.best_step else self.best).eval()

    def _one_step(self) -> float:
        self._look()  # before the step: whatever ends the run comes after it, and a resumed run has seen the same
        return super()._one_step()

    def _look(self, last: bool = False) -> None:
        if self.judge is None or self.best is None or not self.step or (self.step % self._every and not last):
            return
        value = self.judge(self.averaged)
        if value < self.best_value:
            self.best_value, self.best_step = value, self.step
            self.best.load_state_dict(self.averaged.state_dict())

    def train(self, label: str, *, resume: bool, progress: bool) -> float:
        speed = super().train(label, resume=resume, progress=progress)
        self._look(last=True)
        return speed

    def _named(self) -> dict[str, Tensor]:
        tensors = super()._named()
        for name, parameter in self.model.named_parameters():
            state = self.optimiser.state.get(parameter, {})
            tensors.update({f"{matrix}/{name}": state[matrix] for matrix in MATRICES if matrix in state})
        if self.best is not None:
            tensors.update({f"best/{name}": value for name, value in self.best.state_dict().items()})
            tensors["best_value"] = torch.tensor(self.best_value, dtype=torch.float64)
            tensors["best_step"] = torch.tensor(self.best_step)
        return tensors

    def resume(self) -> bool:
        if not super().resume():
            return False
        with require_extra("safetensors", "demo").safe_open(self.path, framework="pt") as file:
            stored = set(file.keys())
            for name, parameter in self.model.named_parameters():
                for matrix in MATRICES:
                    if f"{matrix}/{name}" in stored:
                        self.optimiser.state[parameter][matrix] = file.get_tensor(f"{matrix}/{name}")
            if self.best is not None:
                self.best.load_state_dict({name: file.get_tensor(f"best/{name}") for name in self.best.state_dict()})
                self.best_value = float(file.get_tensor("best_value"))
                self.best_step = int(file.get_tensor("best_step"))
        return True
