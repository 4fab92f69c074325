"""What the ops of pilot-aided variational Bayes share: the decomposition's shapes, levels per row, schedules."""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.levels import Level
from ..reference.pilot_svd import PilotSVD
from ..reference.renoise import table_entries
from . import _checks, _levels


def check_svd(op: str, svd: PilotSVD, yv: Tensor, h: Tensor) -> None:
    """The parts of a decomposition agree with each other, with Y V and with the channel's shape."""
    if not isinstance(svd, tuple) or len(svd) != 3:
        raise TypeError(f"{op}: svd must be what pilot_svd returned, got {type(svd).__name__}")
    u, s, _ = svd
    _checks.require_tensors(op, **{"yv": yv, "svd.u": u, "svd.s": s})
    _checks.same_kind(op, _checks.COMPLEX, "h svd.u yv", h, u, yv)
    if s.dtype is not _checks.real_dtype(u) or s.device != u.device:
        raise TypeError(f"{op}: svd.s is {s.dtype} on {s.device} beside svd.u {u.dtype} on {u.device}")
    ok = u.ndim >= 2 and s.shape == u.shape[:-2] + u.shape[-1:] and u.shape[-2] == h.shape[-1]
    if not (ok and yv.ndim >= 2 and yv.shape[-2:] == (h.shape[-2], u.shape[-1])):
        need = "h [...,Nr,Nt], yv [...,Nr,r], svd.u [...,Nt,r], svd.s [...,r]"
        raise _checks.shape_error(op, need, **{"h": h, "yv": yv, "svd.u": u, "svd.s": s})


def level_rows(op: str, name: str, level: Level, lead: torch.Size, device: torch.device) -> Level:
    """A level over flattened leading dims: a float, or a tensor [] or [rows]."""
    if _levels.is_number(level):
        return float(level)
    if not isinstance(level, Tensor):
        raise TypeError(f"{op}: {name} must be a number or a tensor, got {type(level).__name__}")
    _levels.check(op, name, level, tuple(lead), device)
    if level.ndim == 0:
        return level
    return level.reshape(level.shape + (1,) * (len(lead) - level.ndim)).expand(lead).reshape(math.prod(lead))


def positive_rows(op: str, name: str, level: Level) -> None:
    """A number, or on the CPU every entry of a tensor, is positive and finite."""
    _checks.positive_level(op, name, level)
    if isinstance(level, Tensor):
        _levels.require_positive(op, name, level)


def rows_of(t: Tensor, lead: torch.Size, item_ndim: int) -> Tensor:
    """`t` with its leading dims broadcast to `lead` and flattened: [rows, *item]."""
    t = _checks.flatten_lead(t, lead, item_ndim)
    return t if t.shape[0] == math.prod(lead) else t.expand(math.prod(lead), *t.shape[1:])


def decomposition_rows(svd: PilotSVD, lead: torch.Size) -> tuple[Tensor, Tensor]:
    """u and s of one decomposition [Nt,r], [r], or of one per row [rows,Nt,r], [rows,r]."""
    if svd.u.ndim == 2:
        return svd.u, svd.s
    if math.prod(svd.u.shape[:-2]) == 1 and math.prod(lead) != 0:
        return svd.u.reshape(svd.u.shape[-2:]), svd.s.reshape(svd.s.shape[-1:])
    return rows_of(svd.u, lead, 2), rows_of(svd.s, lead, 1)


def step_table(steps: Sequence[int]) -> Tensor:
    """Diffusion steps as the ops take them: int64 [S] in host memory."""
    return torch.tensor(steps, dtype=torch.int64, device="cpu")


@functools.lru_cache(maxsize=256)
def _on_device(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def beside(table: Tensor, like: Tensor) -> Tensor:
    """A schedule's entries on the device of `like`: copied once for each content, for a copy makes the host wait and cannot
    be captured."""
    return table if table.device == like.device else _on_device(tuple(table.tolist()), table.dtype, like.device)


def check_steps(op: str, steps: Sequence[int] | Tensor) -> list[int]:
    """Diffusion steps as Python integers."""
    if isinstance(steps, Tensor) and (steps.ndim != 1 or steps.dtype.is_floating_point or steps.dtype is torch.bool):
        raise ValueError(f"{op}: steps must be integers [S], got {tuple(steps.shape)} of {steps.dtype}")
    listed = steps.tolist() if isinstance(steps, Tensor) else list(steps)
    if not all(hasattr(t, "__index__") for t in listed):
        raise TypeError(f"{op}: steps must be integers, got {listed}")
    listed = [operator.index(t) for t in listed]
    if any(t < 0 for t in listed):
        raise ValueError(f"{op}: steps must not be negative, got {listed}")
    return listed


def check_table(op: str, name: str, table: Tensor | Sequence[float], steps: list[int]) -> Tensor:
    """A schedule's entries at `steps`, float64 [S] on the host; see :func:`table_entries`."""
    values = torch.as_tensor(table, dtype=torch.float64, device="cpu")
    if values.ndim != 1 or (values.shape[0] != len(steps) and max(steps, default=0) >= values.shape[0]):
        raise ValueError(
            f"{op}: {name} must hold one value per step ({len(steps)}) or be a table that reaches step "
            f"{max(steps, default=0)}, got {tuple(values.shape)}"
        )
    return table_entries(values, step_table(steps))


def check_alpha_bar(op: str, alpha_bar: Tensor | Sequence[float], steps: list[int]) -> Tensor:
    """The schedule's signal shares at `steps`, each in (0, 1]."""
    values = check_table(op, "alpha_bar", alpha_bar, steps)
    if _checks.readable(values) and not bool(((values > 0) & (values <= 1)).all()):
        raise ValueError(f"{op}: alpha_bar must lie in (0, 1], got {values.tolist()}")
    return values


def check_draw(op: str, noise: Tensor | None, seed: Any, first_item: int) -> None:
    """Someone says where the noise comes from."""
    _levels.check_draw(op, seed, first_item=first_item)
    if noise is None and seed is None:
        raise ValueError(f"{op} draws noise: pass seed= or noise=")
