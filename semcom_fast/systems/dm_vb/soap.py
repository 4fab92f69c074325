"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., arXiv 2409.11321).

At high SNR a noise predictor must tell noise from a channel ten thousand times as strong, so its loss is badly
conditioned; one step of this does what about three of Adam do, and costs next to nothing beside the convolutions.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MATRICES = ("left", "right", "left_basis", "right_basis")  # of a parameter's state, beside Adam's moments
_TINY = 1e-8


class SOAP(torch.optim.Optimizer):
    """Args:
    lr: learning rate.
    betas: memories of the two moments; the second also of the gradient's covariances.
    every: steps between two updates of the eigenbases.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, betas: tuple[float, float] = (0.95, 0.95), every: int = 10
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "every": every})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; the very first only sets the bases."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, self.state[parameter], group)

    @staticmethod
    def _update(parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        keep, keep_square = group["betas"]
        grad = parameter.grad.float()  # type: ignore[union-attr]
        rows = _rows(grad)
        if not bool(torch.isfinite(rows).all()):
            return  # nothing to learn from; the loss tells whether training has diverged
        if not state:
            state.update(step=torch.ones(()), exp_avg=torch.zeros_like(grad), exp_avg_sq=torch.zeros_like(grad))
            if grad.ndim > 1:
                state.update(left=rows @ rows.mT, right=rows.mT @ rows)
                for side in MATRICES[:2]:
                    state[f"{side}_basis"] = torch.linalg.eigh(state[side]).eigenvectors.contiguous()
            return
        state["step"] += 1
        step = float(state["step"]) - 1
        state["exp_avg"].lerp_(grad, 1 - keep)
        square = _rows(state["exp_avg_sq"]).lerp(_turned(rows, state).square(), 1 - keep_square)
        mean = _turned(_rows(state["exp_avg"]), state) / (1 - keep**step)
        move = mean / ((square / (1 - keep_square**step)).sqrt() + _TINY)
        if grad.ndim > 1:
            move = state["left_basis"] @ move @ state["right_basis"].mT
            state["left"].lerp_(rows @ rows.mT, 1 - keep_square)
            state["right"].lerp_(rows.mT @ rows, 1 - keep_square)
            if step == 1 or step % group["every"] == 0:
                square = _new_bases(state, square)
        state["exp_avg_sq"].copy_(square.view(grad.shape))
        parameter.add_(move.view(grad.shape), alpha=-group["lr"])


def _rows(value: Tensor) -> Tensor:
    """A filter bank as a matrix, one row for each output."""
    return value.reshape(value.shape[0], -1) if value.ndim > 1 else value


def _turned(rows: Tensor, state: dict[str, Any]) -> Tensor:
    return state["left_basis"].mT @ rows @ state["right_basis"] if rows.ndim > 1 else rows


def _new_bases(state: dict[str, Any], square: Tensor) -> Tensor:
    """One orthogonal iteration on both bases, largest first; returns the second moment in the new order."""
    for axis, side in enumerate(MATRICES[:2]):
        covariance, basis = state[side], state[f"{side}_basis"]
        order = (basis * (covariance @ basis)).sum(0).argsort(descending=True)
        square = square.index_select(axis, order)
        state[f"{side}_basis"] = torch.linalg.qr(covariance @ basis[:, order]).Q.contiguous()
    return square
