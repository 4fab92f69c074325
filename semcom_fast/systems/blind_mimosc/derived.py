"""Networks that are called hundreds of times with the same weights: what follows from the weights is computed once."""

from typing import Any

from torch import Tensor, nn


class KeepsDerived(nn.Module):
    """A module that keeps values derived from its weights in `_derived` while the weights cannot change.

    They are kept in evaluation mode with gradients of the weights off (`requires_grad_(False).eval()`), and dropped
    when the module trains, moves, changes its dtype or loads other weights, also as part of a larger module. Weights
    edited in place under these conditions are the caller's business: call `forget` afterwards.
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

    def _apply(self, *args, **kwargs):
        self.forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self.forget()
        return super()._load_from_state_dict(*args, **kwargs)
