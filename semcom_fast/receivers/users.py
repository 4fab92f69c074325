"""One callable for all users, or one per user: the loops see a single encoder and a single denoiser."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Encoder = Callable[[Tensor], Tensor]
Denoiser = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _per_user(fn, users: int, name: str) -> list | None:
    if callable(fn):
        return None
    fns = list(fn)
    if len(fns) != users or not all(callable(f) for f in fns):
        raise ValueError(f"PVD: {name} must be one callable or a list of users={users} callables, got {len(fns)}")
    return fns


def pullback(out: Tensor, leaf: Tensor) -> Callable[[Tensor], Tensor]:
    """The vector-Jacobian product of `out` in `leaf`; zero when `out` does not depend on it (a known channel, say)."""
    if not out.requires_grad:
        return lambda g: torch.zeros_like(leaf)
    return lambda g: torch.autograd.grad(out, leaf, g, materialize_grads=True)[0]


class ParallelEncoder:
    """d [B,U,...] -> x [B,U,K,Nt,T] whatever form the user gave."""

    def __init__(self, encoder: Encoder | Sequence[Encoder], users: int) -> None:
        self._each = _per_user(encoder, users, "encoder")
        self._all = encoder

    def __call__(self, d: Tensor) -> Tensor:
        if self._each is None:
            return self._all(d)  # type: ignore[operator]
        return torch.stack([f(d[:, u]) for u, f in enumerate(self._each)], 1)


class ParallelDenoiser:
    """(x [B,U,...], sigma) -> (mean, var [B,U] clamped to [0, sigma^2]) whatever form the user gave."""

    def __init__(self, denoiser: Denoiser | Sequence[Denoiser], users: int, name: str) -> None:
        self._each = _per_user(denoiser, users, name)
        self._all, self._name = denoiser, name
        self._vjp = getattr(denoiser, "vjp", None)

    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        if self._each is None:
            mean, var = self._all(x, sigma)  # type: ignore[operator]
        else:
            pairs = [f(x[:, u], sigma) for u, f in enumerate(self._each)]
            mean, var = (torch.stack(parts, 1) for parts in zip(*pairs, strict=True))
        if mean.shape != x.shape:
            raise ValueError(f"PVD: {self._name} got x {tuple(x.shape)} but returned a mean of {tuple(mean.shape)}")
        if mean.dtype is not x.dtype or mean.device != x.device:
            raise TypeError(
                f"PVD: {self._name} got x of {x.dtype} on {x.device} but returned {mean.dtype} on {mean.device}"
            )
        if var.ndim == 1:
            var = var.unsqueeze(1).expand(x.shape[:2])
        if var.shape != x.shape[:2]:
            raise ValueError(
                f"PVD: {self._name} must return var [B,U] = {tuple(x.shape[:2])} or [B], got {tuple(var.shape)}"
            )
        if sigma.device.type == "cpu":  # a number: one small op in place of three
            return mean, var.clamp(0.0, float(sigma) ** 2)
        return mean, torch.minimum(var.clamp_min(0), sigma * sigma)

    def with_vjp(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Mean, variance and the vector-Jacobian product of the mean; complex cotangents are packed real ones."""
        if self._vjp is not None:
            vjp = self._vjp
            mean, var = self(x, sigma)
            return mean, var, lambda g: vjp(g, sigma)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            mean, var = self(leaf, sigma)
        return mean.detach(), var.detach(), pullback(mean, leaf)
