"""Tensors that follow from others and are made once."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from .ops import _checks


class Kept:
    """Derived tensors by key. They serve later callers in any mode, so what is traced, or seen through a dispatch mode,
    leaves nothing here, and inference tensors are not kept."""

    def __init__(self) -> None:
        self._found: dict[Hashable, tuple[Tensor, ...]] = {}

    def get(self, key: Hashable, like: Tensor, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """make(), or what it gave for this key before; `like` is the caller's own tensor."""
        if torch.compiler.is_dynamo_compiling() and key in self._found:
            return self._found[key]  # an input of the graph, made before
        if not _checks.readable(like):
            return make()
        if key not in self._found:
            with torch.inference_mode(False):
                self._found[key] = tuple(t.clone() if t.is_inference() else t for t in make())
        return self._found[key]
