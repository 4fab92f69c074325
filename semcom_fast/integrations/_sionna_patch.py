"""Swap functions in every loaded module of Sionna, and back."""

import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Swap:
    """Sionna's function and what stands in for it."""

    theirs: Callable[..., Any]
    ours: Callable[..., Any]

    def check(self) -> None:
        """Both must take the same arguments with the same defaults."""

        def arguments(function: Callable[..., Any]) -> list[tuple[str, Any]]:
            return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]

        if arguments(self.theirs) != arguments(self.ours):
            raise RuntimeError(
                f"the installed Sionna's {self.theirs.__name__}{inspect.signature(self.theirs)} is not the one of 2.2"
            )


class Patch:
    """A counted swap; `with patch.apply():` undoes itself."""

    def __init__(self, swaps: Sequence[Swap]) -> None:
        self._swaps = swaps
        self._depth = 0
        self._lock = threading.Lock()

    def apply(self) -> "Patch":
        """Swap to ours, if no outer call did."""
        with self._lock:
            if self._depth == 0:
                for swap in self._swaps:
                    swap.check()
                self._exchange({id(swap.theirs): swap.ours for swap in self._swaps})
            self._depth += 1
        return self

    def undo(self) -> None:
        """Swap back when the outermost call is undone; modules loaded meanwhile are covered."""
        with self._lock:
            if self._depth == 1:
                self._exchange({id(swap.ours): swap.theirs for swap in self._swaps})
            self._depth = max(self._depth - 1, 0)

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    @staticmethod
    def _exchange(replacements: dict[int, Callable[..., Any]]) -> None:
        for module in _sionna_modules():
            for name, value in list(vars(module).items()):
                if id(value) in replacements:
                    setattr(module, name, replacements[id(value)])


def _sionna_modules() -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and name.split(".")[0] == "sionna":
            yield module
