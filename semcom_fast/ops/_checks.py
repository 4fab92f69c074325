"""Argument checks shared by the ops: every message names the op, the argument and the offending shape or index."""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

REAL = (torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)


def same_kind(op: str, tensors: dict[str, Tensor | None], dtypes: tuple[torch.dtype, ...]) -> None:
    """All tensors share one of `dtypes` and one device."""
    first_name, first = "", None
    for name, t in tensors.items():
        if t is None:
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(t).__name__}")
        if t.dtype not in dtypes:
            need = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
            raise TypeError(f"{op}: {name} is {str(t.dtype).removeprefix('torch.')} but must be {need}")
        if first is None:
            first_name, first = name, t
        elif t.dtype is not first.dtype:
            raise TypeError(f"{op}: {name} is {t.dtype} but {first_name} is {first.dtype}; nothing is cast silently")
        elif t.device != first.device:
            raise ValueError(f"{op}: {name} is on {t.device} but {first_name} is on {first.device}")


def shape_error(op: str, need: str, **tensors: Tensor) -> ValueError:
    """An error that shows the expected pattern beside every shape that was given."""
    got = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
    return ValueError(f"{op}: need {need}; got {got}")


def lead_shape(op: str, need: str, tensors: dict[str, tuple[Tensor, int]]) -> torch.Size:
    """The broadcast of the leading dims, where each tensor's last `n` dims belong to the item."""
    for t, n in tensors.values():
        if t.ndim < n:
            raise shape_error(op, need, **{name: t for name, (t, _) in tensors.items()})
    leads = [t.shape[: t.ndim - n] for t, n in tensors.values()]
    if all(lead == leads[0] for lead in leads[1:]):
        return leads[0]
    try:
        return torch.broadcast_shapes(*leads)
    except RuntimeError:
        raise shape_error(op, f"{need} with leading dimensions that broadcast", **{k: t for k, (t, _) in tensors.items()}) from None


def flatten_lead(t: Tensor, lead: torch.Size, item_ndim: int) -> Tensor:
    """View `t` as [B, *item]; a tensor shared by the whole batch keeps B = 1, so nothing is copied for it."""
    item = t.shape[t.ndim - item_ndim :]
    own = t.shape[: t.ndim - item_ndim]
    if own == lead:
        return t if len(lead) == 1 else t.reshape(math.prod(lead), *item)
    if math.prod(own) == 1 and math.prod(lead) != 0:
        return t.reshape(1, *item)
    return t.expand(*lead, *item).reshape(math.prod(lead), *item)


def plain(t: Tensor) -> Tensor:
    """Contiguous memory without lazy conjugate or negative bits: what `data_ptr()` of a kernel argument must see."""
    if t.is_conj():
        t = t.resolve_conj()
    if t.is_neg():
        t = t.resolve_neg()
    return t if t.is_contiguous() else t.contiguous()


_tolerate: ContextVar[bool] = ContextVar("semcom_fast_tolerate_non_finite", default=False)


@contextlib.contextmanager
def tolerate_non_finite() -> Iterator[None]:
    """Inside, kernels return non-finite results instead of raising: a loop checks once at the end of its run."""
    token = _tolerate.set(True)
    try:
        yield
    finally:
        _tolerate.reset(token)


def tolerating_non_finite() -> bool:
    return _tolerate.get()


def require_finite(op: str, what: str, result: Tensor) -> None:
    """The check of the plain torch path on the CPU, matching the kernels' flag: names the first bad index of axis 0."""
    if result.device.type != "cpu" or _tolerate.get() or not result.numel():
        return
    bad = ~torch.isfinite(torch.view_as_real(result) if result.is_complex() else result).flatten(1).all(1)
    if bool(bad.any()):
        raise non_finite(op, what, int(bad.nonzero()[0]))


def non_finite(op: str, what: str, index: int) -> ValueError:
    """The error of a kernel flag: input held NaN or Inf, or the result overflowed."""
    return ValueError(f"{op}: {what} {index} is not finite (NaN or Inf in the input, or overflow)")


def positive_level(op: str, name: str, value) -> None:
    """A Python number must be finite and > 0; tensors are checked inside the kernels."""
    if isinstance(value, (int, float)) and not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{op}: {name} must be positive and finite, got {value}")
