"""Argument checks shared by the ops: every message names the op, the argument and the offending shape or index."""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

REAL = (torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)
ANY = REAL + COMPLEX
NUMBERS = (int, float, np.integer, np.floating)  # what is a number, in types; NumPy's complex ones are not


def real_dtype(t: Tensor) -> torch.dtype:
    """float32 for complex64, float64 for complex128; a real dtype stays (cheaper than `t.real.dtype`)."""
    return torch.float32 if t.dtype is torch.complex64 else torch.float64 if t.dtype is torch.complex128 else t.dtype


def same_kind(op: str, dtypes: tuple[torch.dtype, ...], names: str, *tensors: Tensor | None, optional: int = 0) -> None:
    """All tensors share one of `dtypes` and one device; `names` lists them for the message. The last `optional` ones may be
    None."""
    first, required = tensors[0], len(tensors) - optional
    try:
        dtype, on_cpu = first.dtype, first.is_cpu  # type: ignore[union-attr]
        good = dtype in dtypes
        for t in tensors[1:required]:  # `is_cpu` costs a quarter of comparing devices
            if t.dtype is not dtype or not (t.is_cpu if on_cpu else t.device == first.device):  # type: ignore[union-attr]
                good = False
        for t in tensors[required:]:
            if t is not None and (t.dtype is not dtype or t.device != first.device):  # type: ignore[union-attr]
                good = False
    except AttributeError:
        good = False
    if not good:
        given = dict(zip(names.split(), tensors, strict=True))
        require_tensors(op, **dict(list(given.items())[:required]))
        raise _kind_error(op, dtypes, given)


def require_tensors(op: str, **operands: object) -> None:
    """Operands are tensors; what is missing or something else is named."""
    for name, t in operands.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {'None' if t is None else type(t).__name__}")


def _kind_error(op: str, dtypes: tuple[torch.dtype, ...], tensors: dict[str, Tensor | None]) -> Exception:
    first_name, first = "", None
    for name, t in tensors.items():
        if t is None:
            continue
        if not isinstance(t, Tensor):
            return TypeError(f"{op}: {name} must be a tensor, got {type(t).__name__}")
        if t.dtype not in dtypes:
            need = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
            return TypeError(f"{op}: {name} is {str(t.dtype).removeprefix('torch.')} but must be {need}")
        if first is None:
            first_name, first = name, t
        elif t.dtype is not first.dtype:
            return TypeError(f"{op}: {name} is {t.dtype} but {first_name} is {first.dtype}; nothing is cast silently")
        elif t.device != first.device:
            return ValueError(f"{op}: {name} is on {t.device} but {first_name} is on {first.device}")
    raise AssertionError("all of one kind")


def shape_error(op: str, need: str, **tensors: Tensor) -> ValueError:
    """An error that shows the expected pattern beside every shape that was given."""
    got = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
    return ValueError(f"{op}: need {need}; got {got}")


def broadcast_shapes(*shapes: torch.Size) -> torch.Size:
    """torch.broadcast_shapes, which takes 27 us because it looks out for symbolic sizes, also where there are none."""
    first = shapes[0]
    if all(s == first for s in shapes):
        return first
    out = []
    for sizes in zip_longest(*map(reversed, shapes), fillvalue=1):
        size: Any = 1
        for other in sizes:
            if type(other) is not int:  # traced
                return torch.broadcast_shapes(*shapes)
            if other != 1:
                if size not in (1, other):
                    raise RuntimeError(f"shapes {', '.join(str(tuple(s)) for s in shapes)} do not broadcast")
                size = other
        out.append(size)
    return torch.Size(reversed(out))


def lead_shape(op: str, need: str, names: str, *tensors: tuple[Tensor, int]) -> torch.Size:
    """The broadcast of the leading dims, where each tensor's last `n` dims belong to the item."""
    leads = [t.shape[: t.ndim - n] for t, n in tensors]
    try:
        return broadcast_shapes(*leads)
    except RuntimeError:
        shapes = {name: t for name, (t, _) in zip(names.split(), tensors, strict=False)}
        raise shape_error(op, f"{need} with leading dimensions that broadcast", **shapes) from None


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
    if t.is_conj() or t.is_neg():
        # one pass, where resolving keeps strides that are then copied again; new_empty would resolve as well
        return torch.empty(t.shape, dtype=t.dtype, device=t.device).copy_(t)
    return t if t.is_contiguous() else t.contiguous()


def all_plain(*tensors: Tensor) -> tuple[Tensor, ...]:
    """`plain` of each, all complex or all real, in one call where nothing has to be copied."""
    conj = tensors[0].is_complex()
    for t in tensors:
        if (conj and t.is_conj()) or t.is_neg() or not t.is_contiguous():
            return tuple(plain(t) for t in tensors)
    return tensors


def address(t: Tensor | None, keep: list[Tensor]) -> int:
    """Where a kernel reads `t` from; `keep` pins what had to be copied."""
    if t is None:
        return 0
    keep.append(plain(t))
    return keep[-1].data_ptr()


_tolerate: ContextVar[bool] = ContextVar("semcom_fast_tolerate_non_finite", default=False)


@contextlib.contextmanager
def tolerate_non_finite() -> Iterator[None]:
    """Inside, kernels return non-finite results instead of raising: a loop checks once at the end of its run."""
    if torch.compiler.is_compiling():  # which cannot follow context variables; compiled ops raise for themselves
        yield
        return
    token = _tolerate.set(True)
    try:
        yield
    finally:
        _tolerate.reset(token)


def tolerating_non_finite() -> bool:
    return _tolerate.get()


def readable(t: Tensor) -> bool:
    """True where a value may be looked at: not while tracing, and not under a torch.func transform."""
    if not isinstance(t, Tensor) or type(t) not in (Tensor, torch.nn.Parameter) or torch.compiler.is_compiling():
        return False
    if torch._C._functorch.maybe_current_level() is not None or torch._C._get_tracing_state() is not None:
        return False
    return not torch._C._len_torch_dispatch_stack()


def non_finite_row(t: Tensor) -> int | None:
    """Index on axis 0 of the first row with NaN or Inf, None if there is none. Waits for the device."""
    flat = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
    bad = ~torch.isfinite(flat if flat.ndim > 1 else flat.unsqueeze(1)).flatten(1).all(1)
    return int(bad.nonzero()[0]) if bool(bad.any()) else None


def require_finite(op: str, what: str, result: Tensor) -> None:
    """The check of the plain torch path on the CPU, matching the kernels' flag: names the first bad index of axis 0."""
    if result.device.type != "cpu" or not readable(result) or _tolerate.get() or not result.numel():
        return
    row = non_finite_row(result)
    if row is not None:
        raise non_finite(op, what, row)


def non_finite(op: str, what: str, index: int) -> ValueError:
    """The error of a kernel flag: input held NaN or Inf, or the result overflowed."""
    return ValueError(f"{op}: {what} {index} is not finite (NaN or Inf in the input, or overflow)")


def positive_level(op: str, name: str, value: Any) -> None:
    """A number must be finite and > 0; tensors are checked inside the kernels."""
    if isinstance(value, np.number) and torch.compiler.is_compiling():
        return  # a symbol, whose value is not known
    if isinstance(value, NUMBERS) and not 0 < value < math.inf:
        raise ValueError(f"{op}: {name} must be positive and finite, got {value}")


def number(op: str, name: str, value: Any) -> float:
    """A number that no tensor can stand for: it has no gradient, and reading it would make a GPU's host wait."""
    if not isinstance(value, NUMBERS):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    return float(value)


def positive_number(op: str, name: str, value: Any) -> float:
    found = number(op, name, value)
    positive_level(op, name, found)
    return found
