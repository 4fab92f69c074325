"""Reference twin of :func:`semcom_fast.renoise`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .philox_normal import philox_normal

STREAM = 8  # docs/conventions.md


def table_entries(table: Tensor | Sequence[float], steps: Tensor) -> Tensor:
    """Entries of a schedule at `steps`, float64: the table of all steps (entry t at index t), or one value per step."""
    values = torch.as_tensor(table, dtype=torch.float64, device=steps.device)
    return values if values.shape == steps.shape else values[steps]


def draw(like: Tensor, steps: Tensor, seed: int | Tensor, first_item: int) -> Tensor:
    """CN(0, 1) of every step for states like `like` [B,Nr,Nt]: [B,S,Nr,Nt]."""
    made = [
        philox_normal(
            like.shape, seed=seed, step=int(t), stream=STREAM, first_item=first_item, dtype=like.dtype,
            device=like.device,
        )
        for t in steps
    ]  # fmt: skip
    return torch.stack(made, 1) if made else like.new_empty((like.shape[0], 0, *like.shape[1:]))


def renoise(
    h: Tensor,
    steps: Sequence[int] | Tensor,
    alpha_bar: Tensor | Sequence[float],
    *,
    seed: int | Tensor | None = None,
    first_item: int = 0,
    noise: Tensor | None = None,
) -> Tensor:
    """The forward diffusion of h at several steps, equation (36): sqrt(ab) h + sqrt(1 - ab) eps."""
    steps = torch.as_tensor(steps, device=h.device)
    if noise is None:
        assert seed is not None
        noise = draw(h, steps, seed, first_item)
    bar = table_entries(alpha_bar, steps)[:, None, None]
    real = h.real.dtype
    return bar.sqrt().to(real) * h.unsqueeze(1) + (1 - bar).sqrt().to(real) * noise
