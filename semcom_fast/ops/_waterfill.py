"""What the water-filling ops share: shapes, levels, layouts and addresses of f = [Re | Im] and its noise levels d."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._native import kernel
from ..reference.levels import Level
from ..reference.waterfill_inject import STREAM
from . import _checks, _levels, _register

NEED = "f [..., N] with N even, and d [..., N/2] (one level per symbol) or [..., N]"


def check_state(op: str, f: Tensor, d: Tensor, **like_f: Tensor | None) -> None:
    """f, d and everything shaped like f agree."""
    n = f.shape[-1] if f.ndim else 0
    ok = f.ndim >= 1 and d.ndim == f.ndim and d.shape[:-1] == f.shape[:-1]
    ok = ok and (d.shape[-1] == n or 2 * d.shape[-1] == n)
    if not (ok and all(t is None or t.shape == f.shape for t in like_f.values())):
        given = {name: t for name, t in like_f.items() if t is not None}
        extra = f"; {', '.join(given)} like f" if given else ""
        raise _checks.shape_error(op, NEED + extra, f=f, d=d, **given)


def check_level(op: str, name: str, level: Level | None, f: Tensor) -> None:
    """A noise level is a variance in [0, 1]; entries of a tensor are the kernel's to check."""
    if level is None:
        raise TypeError(f"{op}: {name} must be a number or a tensor, got None")
    if _levels.is_number(level):
        if not 0 <= level <= 1:
            raise ValueError(f"{op}: {name} is a noise variance beside unit power and must lie in [0, 1], got {level}")
    else:
        _levels.check(op, name, level, tuple(f.shape[:-1]), f.device)


def check_weight(op: str, name: str, weight: Level | None, f: Tensor, *, needs: str, given: Any) -> None:
    """guidance and ratio: present exactly when the prediction they weigh is, and no NaN."""
    if (weight is None) != (given is None):
        raise ValueError(f"{op}: {needs} and {name} go together; pass both or neither")
    if _levels.is_number(weight):
        if math.isnan(weight) or (name == "ratio" and weight == 0):  # type: ignore[arg-type]
            raise ValueError(f"{op}: {name} must be a number other than {'0 or ' * (name == 'ratio')}NaN, got {weight}")
    else:
        _levels.check(op, name, weight, tuple(f.shape[:-1]), f.device)


def check_draw(op: str, noise: Tensor | None, level: Level, seed: Any, step: Any, first_item: int) -> None:
    """Someone says where the noise comes from, unless the level is the number 0 and none is injected."""
    _levels.check_draw(op, seed, 0 if noise is not None else step, 0, first_item)
    if noise is None and seed is None and not (_levels.is_number(level) and level == 0):
        raise ValueError(f"{op} draws the noise of elements cleaner than the level: pass noise= or seed=")


def check_predictions(op: str, f: Tensor, **predictions: Tensor | None) -> None:
    """Predictions share one dtype: the state's, or bfloat16 beside a float32 state."""
    allowed = (f.dtype, torch.bfloat16) if f.dtype is torch.float32 else (f.dtype,)
    first = predictions["x0"]
    for name, t in predictions.items():
        if t is None and name != "x0":
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(t).__name__}")
        if t.dtype not in allowed or t.dtype is not first.dtype:  # type: ignore[union-attr]
            need = " or ".join(str(a).removeprefix("torch.") for a in allowed)
            raise TypeError(f"{op}: {name} is {t.dtype} but must be {need}, and like x0; nothing is cast silently")
        if t.device != f.device:
            raise ValueError(f"{op}: {name} is on {t.device} but the state is on {f.device}")


def require_unit(op: str, d: Tensor, level: Level) -> None:
    """The plain torch path's check on the CPU: every noise level lies in [0, 1]."""
    for t in (d, level):
        if not isinstance(t, Tensor) or t.device.type != "cpu" or not t.numel() or not _checks.readable(t):
            continue
        bad = ~((t >= 0) & (t <= 1))
        if bool(bad.any()) and not _checks.tolerating_non_finite():
            raise not_a_level(
                op, int(bad.reshape(bad.shape[0] if t.ndim > 1 or t is level else 1, -1).any(1).nonzero()[0])
            )


def not_a_level(op: str, item: int) -> ValueError:
    """The error of a kernel flag."""
    return ValueError(
        f"{op}: item {item} is not finite (NaN or Inf in the input, or overflow), or one of its noise levels lies "
        "outside [0, 1]"
    )


def still_waiting(op: str, item: int) -> ValueError:
    """The error of a second-order step that elements are about to join."""
    return ValueError(
        f"{op}: x0_prev given, but item {item} has elements that still wait at beta_t; the second-order step is defined "
        "only where all elements share one level (slow fading)"
    )


def item_rows(f: Tensor) -> tuple[int, int, int]:
    """(items, rows per item, N). A one-dimensional state is one item."""
    items, n = (f.shape[0] if f.ndim > 1 else 1), f.shape[-1]
    return items, math.prod(f.shape[1:-1]) if f.ndim > 2 else 1, n


def over_rows(level: Any, f: Tensor) -> Any:
    """A level over more than the items as [items, rows per item]; others as they are."""
    if isinstance(level, Tensor) and level.ndim > 1:
        lead = f.shape[:-1]
        level = level.reshape(level.shape + (1,) * (len(lead) - level.ndim)).expand(lead)
        return level.reshape(lead[0], math.prod(lead[1:]))
    return level


def levels_of_d(d: Tensor) -> tuple[Tensor, int, int]:
    """d as the CPU kernels read it: a tensor, its stride over rows and over symbols (0: one level per row)."""
    if d.is_neg():
        d = d.resolve_neg()
    if d.shape[-1] > 1 and d.stride(-1) == 0:
        return d.select(-1, 0).contiguous(), 1, 0
    return d if d.is_contiguous() else d.contiguous(), d.shape[-1], 1


def run_cpu(
    op: str,
    f: Tensor,
    d: Tensor,
    inputs: Sequence[Tensor | None],
    outputs: Sequence[Tensor | None],
    levels: Sequence[Level | None],
    draw: tuple[Tensor | None, Any, Any, int],
    choices: tuple[bool, bool, bool] = (False, False, False),
) -> None:
    """Call the kernel of `op`: inputs are (state, x0, uncond, prev), levels (beta_t, beta_s, guidance, ratio)."""
    noise, seed, step, first_item = draw
    keep: list[Tensor] = []

    kernel_levels, d_row, d_symbol = levels_of_d(d)
    x0 = inputs[1]
    table = [
        v if type(v) is float else 0.0 if v is None else _levels.cpu_level(over_rows(v, f), False, keep) for v in levels
    ]
    bad, joined = kernel(f"cpu_{op}")(
        (
            f.dtype is torch.float64,
            x0 is not None and x0.dtype is torch.bfloat16,
            d.shape[-1] != f.shape[-1],
            1 if noise is not None else 0 if seed is None else 2,
        ),
        (*item_rows(f), d_row, d_symbol),
        tuple(_checks.address(t, keep) for t in (*inputs, f, kernel_levels, noise)),
        tuple(0 if t is None else t.data_ptr() for t in outputs),
        table,
        choices,
        (_levels.to_int(seed), _levels.to_int(step) & 0xFFFFFFFF, STREAM, first_item),
    )
    if joined >= 0:
        raise still_waiting(op, joined)
    if bad >= 0 and not _checks.tolerating_non_finite():
        raise not_a_level(op, bad)


def with_noise(args: Sequence[Any], like: Tensor, noise: int, seed: int) -> list[Any]:
    """The draw for the state `like` made explicit."""
    return _register.with_noise(args, noise, seed, partial(draw_like, like))


def draw_like(f: Tensor, seed: Any, step: Any, first_item: int) -> Tensor:
    """The normals a kernel draws for the state f."""
    from .philox_normal import philox_normal

    shape = f.shape if f.ndim > 1 else (1, *f.shape)
    draw = philox_normal(
        shape, seed=seed, step=step, stream=STREAM, first_item=first_item, dtype=f.dtype, device=f.device
    )
    return draw.reshape(f.shape)


def triton_operands(
    f: Tensor, d: Tensor, others: Sequence[Tensor | None], levels: Sequence[Level | None], draw: tuple
) -> tuple[Tensor, Tensor, list[Any], list[Any], tuple]:
    """Everything as [rows, N] for the GPU kernels, whose items are rows.

    With several rows per item the draw of an item runs on from row to row, so it is made beforehand.
    """
    items, rows, n = item_rows(f)
    noise, seed, step, first_item = draw
    if rows > 1 and noise is None and seed is not None:
        noise, seed = draw_like(f, seed, step, first_item), None
    flat = items * rows

    def over(level: Any) -> Any:
        level = over_rows(level, f)
        if not isinstance(level, Tensor) or level.ndim == 0 or rows == 1:
            return level.reshape(-1) if isinstance(level, Tensor) and level.ndim > 1 else level
        return (level if level.ndim > 1 else level.unsqueeze(-1)).expand(items, rows).reshape(flat)

    def flatten(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.resolve_neg().reshape(flat, n)

    d = d.resolve_neg().reshape(flat, d.shape[-1])
    state = flatten(f)
    assert state is not None
    return state, d, [flatten(t) for t in others], [over(v) for v in levels], (flatten(noise), seed, step, first_item)
