"""Networks that are called hundreds of times with the same weights: what follows from the weights is computed once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class KeepsDerived(nn.Module):
    """A module that keeps values derived from its weights in `_derived` while the weights cannot change.

    They are kept in evaluation mode with gradients of the weights off (`requires_grad_(False).eval()`), and dropped
    when the module trains, moves, changes its dtype or loads other weights, also as part of a larger module. Weights
    edited in place under these conditions are the caller's business: call `forget` afterwards. Nothing is kept under
    torch.compile, whose graphs would be made again for every new key.
    """

    def __init__(self) -> None:
        super().__init__()
        self._derived: dict[Any, Any] = {}

    def forget(self) -> None:
        """Drop everything derived from the weights."""
        self._derived.clear()

    def _frozen(self, weight: Tensor) -> bool:
        """Whether values may be kept, judged by one of the weights; drops them when not."""
        if self.training or weight.requires_grad:
            self.forget()
            return False
        return True

    def _kept(self, key: Any, weight: Tensor, make: Callable[[], Any]) -> Any:
        """make(), kept under `key` where that is allowed. What is kept serves later callers in any mode, so it is made
        outside autocast and inference mode, whatever the present caller's."""
        if torch.compiler.is_compiling() or not self._frozen(weight):
            return make()
        if key not in self._derived:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
                self._derived[key] = make()
        return self._derived[key]

    def _apply(self, *args, **kwargs):
        self.forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self.forget()
        return super()._load_from_state_dict(*args, **kwargs)
