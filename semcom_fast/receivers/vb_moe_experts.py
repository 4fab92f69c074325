"""The experts of a mixture, one by one or all at once, with what they return looked at."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Expert = Callable[[Tensor, int], Tensor]


@runtime_checkable
class ExpertBank(Protocol):
    """Experts that can be called together: bank(h_t [B,Nr,Nt], t) -> eps [B,E,Nr,Nt], every expert on every row; bank[k]
    is one of them, (h_t, t) -> eps like h_t. A bank may also have `each(h_t [B,E,Nr,Nt], t) -> eps`, expert e on its own
    state h_t[:, e]. Whether the experts run as one grouped convolution or one after another is the bank's choice."""

    def __len__(self) -> int: ...

    def __call__(self, h_t: Tensor, t: int) -> Tensor: ...

    def __getitem__(self, k: int) -> Expert: ...


class Experts:
    """K >= 1 noise predictors (h_t complex [B,Nr,Nt], t = 1..T) -> eps like h_t: a list, a bank, or one alone."""

    def __init__(self, experts: Any) -> None:
        self.bank: Any = None
        if isinstance(experts, (list, tuple, torch.nn.ModuleList)):
            members: Sequence[Any] = list(experts)
        elif callable(experts) and hasattr(experts, "__len__") and hasattr(experts, "__getitem__"):
            self.bank, members = experts, [experts[k] for k in range(len(experts))]
        else:
            members = [experts]
        if not members:
            raise ValueError("VBMoE: at least one expert is needed")
        for k, member in enumerate(members):
            if not callable(member):
                raise TypeError(
                    f"VBMoE: expert {k} must be a callable (h_t, t) -> eps, a {type(member).__name__} is not"
                )
        self.members = members
        self.each: Any = getattr(self.bank, "each", None)

    def __len__(self) -> int:
        return len(self.members)

    def one(self, k: int, h_t: Tensor, t: int) -> Tensor:
        """Expert k on [N,Nr,Nt]."""
        eps = self.members[k](h_t, t)
        if (
            not isinstance(eps, Tensor)
            or eps.shape != h_t.shape
            or eps.dtype is not h_t.dtype
            or eps.device != h_t.device
        ):
            raise _unlike(f"expert {k}", eps, h_t, tuple(h_t.shape), t)
        return eps

    def all(self, h_t: Tensor, t: int) -> Tensor:
        """Every expert on the same rows, by the bank: [N,K,Nr,Nt]."""
        need = (h_t.shape[0], len(self.members), *h_t.shape[1:])
        return self._of_bank(self.bank(h_t, t), h_t, need, t)

    def all_own(self, h_t: Tensor, t: int) -> Tensor:
        """Expert k on its own rows h_t[:, k], by the bank: [N,K,Nr,Nt]."""
        return self._of_bank(self.each(h_t, t), h_t, tuple(h_t.shape), t)

    def _of_bank(self, eps: Any, h_t: Tensor, need: tuple[int, ...], t: int) -> Tensor:
        if not isinstance(eps, Tensor) or tuple(eps.shape) != need or eps.dtype is not h_t.dtype:
            raise _unlike("the expert bank", eps, h_t, need, t)
        return eps


def _unlike(who: str, eps: Any, h_t: Tensor, need: tuple[int, ...], t: int) -> Exception:
    """The error for a prediction that does not fit its state."""
    if not isinstance(eps, Tensor):
        return TypeError(f"VBMoE: {who} must return a tensor, got {type(eps).__name__} at diffusion step {t}")
    if tuple(eps.shape) != need:
        return ValueError(f"VBMoE: {who} must return eps {need} at diffusion step {t}, got {tuple(eps.shape)}")
    return TypeError(f"VBMoE: {who} must return {h_t.dtype} on {h_t.device}, as the state is; it gave {eps.dtype} on "
                     f"{eps.device} at diffusion step {t}")  # fmt: skip
