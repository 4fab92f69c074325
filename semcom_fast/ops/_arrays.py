"""NumPy and CuPy in, the same kind out; torch tensors pass through untouched."""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def _kind(value: Any) -> str | None:
    if isinstance(value, Tensor):
        return "torch"
    if isinstance(value, np.ndarray):
        return "numpy"
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.ndarray):
        return "cupy"
    return None


def _from_numpy(a: np.ndarray) -> Tensor:
    plain = a.flags.writeable and a.dtype.isnative and all(s >= 0 for s in a.strides)
    return torch.from_numpy(a if plain else np.array(a, dtype=a.dtype.newbyteorder("=")))


def _to_torch(value: Any, kind: str | None) -> Any:
    if kind == "numpy":
        return _from_numpy(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # what an op returned, e.g. a decomposition
        return type(value)(*(_to_torch(v, _kind(v)) for v in value))
    return torch.from_dlpack(value) if kind == "cupy" else value


def _back(value: Any, kind: str) -> Any:
    if isinstance(value, Tensor):
        if kind == "numpy":
            return value.detach().resolve_conj().resolve_neg().numpy()
        return sys.modules["cupy"].from_dlpack(value.detach())
    if isinstance(value, tuple):
        items = [_back(v, kind) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def array_function(fn: F) -> F:
    """Let a function of torch tensors accept NumPy or CuPy arrays and return the kind it was given.

    0-d arrays given as levels do not decide the kind; mixing kinds raises TypeError.
    """

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Tensor):
            for v in args:
                if type(v) is not Tensor and isinstance(v, np.ndarray):
                    break
            else:  # the common case; an array among the keywords is the op's own TypeError
                return fn(*args, **kwargs)
        kinds = set()
        for v in (*args, *kwargs.values()):
            kind = _kind(v)
            if kind and v.ndim:
                kinds.add(kind)
        if len(kinds) > 1:
            raise TypeError(f"{fn.__name__}: {' and '.join(sorted(kinds))} arrays are mixed; pass one kind")
        if not kinds or "torch" in kinds:
            return fn(*args, **kwargs)
        kind = str(kinds.pop())
        out = fn(*[_to_torch(v, _kind(v)) for v in args], **{k: _to_torch(v, _kind(v)) for k, v in kwargs.items()})
        return _back(out, kind)

    return wrapper  # type: ignore[return-value]
