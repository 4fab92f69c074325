"""What a captured graph takes for granted about the callables it went through: addresses and plain values they hold."""

import functools
import pathlib
import types
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    type,
    range,
    torch.dtype,
    torch.device,
    torch.memory_format,
    pathlib.PurePath,
)
_SMALL = 65536  # bytes of a NumPy array that are compared each time
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)


class _Walk:
    """Goes through everything that objects hold; `key` tells two states of them apart, `held` is what they read."""

    def __init__(self) -> None:
        self.key: list[Any] = []
        self.held: list[Any] = []
        self.hidden = False
        self.seen: set[int] = set()

    def visit(self, value: Any) -> None:
        if isinstance(value, Tensor) and value.layout is not torch.strided:
            self.hidden = True
        elif isinstance(value, Tensor):
            self.held.append(value)
            view = value.shape, value.stride(), value.is_conj(), value.is_neg()
            self.key.append((value.data_ptr(), *view, value.dtype, value.device, value.requires_grad))
        elif isinstance(value, _PLAIN):
            self.key.append(value)
        elif isinstance(value, (dict, list, tuple)):
            self.key.append(len(value))
            for part in (*value, *value.values()) if isinstance(value, dict) else value:
                self.visit(part)
        elif isinstance(value, weakref.ref):
            self.visit(value())
        elif isinstance(value, slice):
            self.visit((value.start, value.stop, value.step))
        elif isinstance(value, (set, frozenset)) and all(isinstance(part, _PLAIN) for part in value):
            self.key.append(frozenset(value))
        elif isinstance(value, (np.ndarray, np.generic)) and value.nbytes <= _SMALL and value.dtype != object:
            self.key.append((value.shape, value.dtype.str, value.tobytes()))
        else:
            self.key.append((type(value), id(value)))
            if id(value) not in self.seen:
                self.seen.add(id(value))
                self.held.append(value)  # or another object could get its id
                self._inside(value)

    def _inside(self, value: Any) -> None:
        if isinstance(value, types.MethodType):
            self.visit(value.__self__)
        elif isinstance(value, _FUNCTIONS):  # an activation is as good as its name, a closure may hold anything
            bound = isinstance(value, functools.partial) or getattr(value, "__closure__", None) is not None
            self.hidden = self.hidden or bound
        elif isinstance(value, torch.nn.Module) and hasattr(value, "_orig_mod"):  # compiled
            self.visit(value._orig_mod)
        else:
            self.hidden = self.hidden or not hasattr(value, "__dict__")  # large arrays, slots, containers of C
            for part in getattr(value, "__dict__", {}).values():
                self.visit(part)


def identity(networks: Iterable[Any]) -> tuple[tuple[Any, ...], list[Any]] | None:
    """(key, held) of callables: a graph captured through them is good for as long as the key is the same and what is held
    is alive. None where that cannot be told: functions read what they like."""
    walk = _Walk()
    for network in networks:
        if isinstance(network, _FUNCTIONS):
            return None
        walk.visit(network)
    return None if walk.hidden else (tuple(walk.key), walk.held)


def precision() -> tuple[str, str]:
    """What decides the arithmetic of float32 products and convolutions on a GPU; a graph keeps that of its capture."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return torch.backends.cuda.matmul.fp32_precision, convolutions.fp32_precision
