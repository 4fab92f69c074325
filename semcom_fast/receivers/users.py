"""One callable for all users, or one per user: the loops see a single encoder and a single denoiser."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .priors import GaussianChannelPrior

Encoder = Callable[[Tensor], Tensor]
Denoiser = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _per_user(fn, users: int, name: str) -> list | None:
    if callable(fn):
        return None
    fns = list(fn)
    if len(fns) != users or not all(callable(f) for f in fns):
        raise ValueError(f"PVD: {name} must be one callable or a list of users={users} callables, got {len(fns)}")
    return fns


class Pullback:
    """The vector-Jacobian product of `out` in `leaf`; zero when `out` does not depend on it (a known channel, say).

    `then`: the product of a map before it, applied to what is pulled back.
    """

    def __init__(self, out: Tensor, leaf: Tensor, then: Callable[[Tensor], Tensor] = lambda pulled: pulled) -> None:
        self._out, self._leaf, self._then = out, leaf, then

    def __call__(self, cotangent: Tensor) -> Tensor:
        if not self._out.requires_grad:
            return self._then(torch.zeros_like(self._leaf))
        pulled = torch.autograd.grad(self._out, self._leaf, cotangent, allow_unused=True)[0]
        return self._then(torch.zeros_like(self._leaf) if pulled is None else pulled)

    def warn_if_lost(self, cotangent: Tensor, pulled: Tensor, moved: Tensor | None) -> None:
        """Networks that pass nothing back: detached ones, and some compiled ones, which say nothing themselves. `moved` is
        how far another source moves `out`: a codeword that no source moves is a known one."""
        if pulled.device.type != "cpu" or not (self._out.requires_grad or (moved is not None and bool(moved.any()))):
            return
        if bool(cotangent.any()) and not bool(pulled.any()):
            why = (
                "torch.compile loses those of some complex-valued networks under autocast: compile in float32, or do not "
                "compile the encoder"
                if self._out.requires_grad
                else "One of them is detached or constant: look for torch.no_grad, inference_mode, .detach or .data inside"
            )
            warnings.warn(
                f"PVD: the gradient through encoder and denoiser_d is exactly zero, so the source cannot be found. {why}",
                stacklevel=2,
            )


def _at(vjp: Callable[[Tensor, Tensor], Tensor], sigma: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda g: vjp(g, sigma)


class ParallelEncoder:
    """d [B,U,...] -> x [B,U,K,Nt,T] whatever form the user gave."""

    def __init__(self, encoder: Encoder | Sequence[Encoder], users: int) -> None:
        self._each = _per_user(encoder, users, "encoder")
        self._all = encoder
        self.callables = [encoder] if self._each is None else self._each

    def __call__(self, d: Tensor) -> Tensor:
        if self._each is None:
            return _codeword(self._all(d))  # type: ignore[operator]
        return torch.stack([_codeword(f(d[:, u])) for u, f in enumerate(self._each)], 1)


def _codeword(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"PVD: an encoder must give a tensor, got {type(x).__name__}; sf.power_normalise gives (x, |x|), so take its [0]"
        )
    return x


class ParallelDenoiser:
    """(x [B,U,...], sigma) -> (mean, var [B,U] clamped to [0, sigma^2]) whatever form the user gave.

    sigma is a 0-d tensor, or [U] where the users' noise levels differ (`sigma_per_user`). Each callable of a list gets
    the 0-d level of its own user; one callable for all users gets the [U] levels, if it says so by an attribute
    `per_user_sigma = True`, and is refused otherwise.
    """

    def __init__(
        self, denoiser: Denoiser | Sequence[Denoiser], users: int, name: str, *, sigma_per_user: bool = False
    ) -> None:
        self._each = _per_user(denoiser, users, name)
        self._all, self._name = denoiser, name
        self.callables = [denoiser] if self._each is None else self._each
        self._vjp = getattr(denoiser, "vjp", None)
        if sigma_per_user and self._each is None and not getattr(denoiser, "per_user_sigma", False):
            raise ValueError(
                f"PVD: the users' noise levels differ but {name} is one callable: give a list of users={users} callables, "
                "each called with the 0-d sigma of its user, or one that takes sigma [U] and has per_user_sigma = True"
            )
        self.has_vjp = self._vjp is not None or any(hasattr(f, "vjp") for f in self._each or ())

    def white_variance(self) -> float | tuple[float, ...] | None:
        """v where every user's channel prior is i.i.d. CN(0, v) in closed form, or (v_1..v_U); else None."""
        values = []
        for prior in self.callables:
            if type(prior) is not GaussianChannelPrior or not prior.white:
                return None
            values.append(prior.var)
        return values[0] if len(set(values)) == 1 else tuple(values)

    def _check(self, mean: Tensor, var: Tensor, x: Tensor, lead: int, name: str) -> Tensor:
        """Mean like x; var over the leading dims of x, or one per item, then spread over its users."""
        if mean.shape != x.shape:
            raise ValueError(f"PVD: {name} got x {tuple(x.shape)} but returned a mean of {tuple(mean.shape)}")
        if mean.dtype is not x.dtype or mean.device != x.device:
            low = mean.dtype in (torch.bfloat16, torch.float16)
            hint = f"; wrap it: semcom_fast.receivers.half_precision({name})" if low else ""
            raise TypeError(
                f"PVD: {name} got x of {x.dtype} on {x.device} but returned {mean.dtype} on {mean.device}{hint}"
            )
        if lead == 2 and var.shape == x.shape[:1]:
            var = var.unsqueeze(1).expand(x.shape[:2])
        if var.shape != x.shape[:lead]:
            need = f"[B,U] = {tuple(x.shape[:2])} or [B]" if lead == 2 else f"[B] = {tuple(x.shape[:1])}"
            raise ValueError(f"PVD: {name} must return var {need}, got {tuple(var.shape)}")
        return var

    def _user(self, u: int, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of user u alone, x [B,...]."""
        assert self._each is not None
        mean, var = self._each[u](x, sigma)
        return mean, self._check(mean, var, x, 1, f"{self._name}[{u}]")

    def _levels(self, sigma: Tensor) -> Sequence[Tensor]:
        assert self._each is not None
        return sigma.unbind() if sigma.ndim else [sigma] * len(self._each)

    @staticmethod
    def _clamp(var: Tensor, sigma: Tensor) -> Tensor:
        if sigma.device.type == "cpu" and not sigma.ndim:  # a number: one small op in place of three
            return var.clamp(0.0, float(sigma) ** 2)
        return torch.minimum(var.clamp_min(0), sigma * sigma)

    def __call__(self, x: Tensor, sigma: Tensor, *, clamp: bool = True) -> tuple[Tensor, Tensor]:
        """clamp=False leaves the variance as it is, for kernels that bring it into its range themselves."""
        if self._each is None:
            mean, var = self._all(x, sigma)  # type: ignore[operator]
            var = self._check(mean, var, x, 2, self._name)
        else:
            pairs = [self._user(u, x[:, u], s) for u, s in enumerate(self._levels(sigma))]
            mean, var = (torch.stack(parts, 1) for parts in zip(*pairs, strict=True))
        return mean, self._clamp(var, sigma) if clamp else var

    def with_vjp(
        self, x: Tensor, sigma: Tensor, *, clamp: bool = True
    ) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Mean, variance and the vector-Jacobian product of the mean; complex cotangents are packed real ones."""
        if self._vjp is not None:
            vjp = self._vjp
            mean, var = self(x, sigma, clamp=clamp)
            return mean, var, lambda g: vjp(g, sigma)
        if self._each is not None and self.has_vjp:
            return self._with_vjps(x, sigma, clamp)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            mean, var = self(leaf, sigma, clamp=clamp)
        return mean.detach(), var.detach(), Pullback(mean, leaf)

    def _with_vjps(self, x: Tensor, sigma: Tensor, clamp: bool) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """User by user: by its own `vjp` where a denoiser has one, else by automatic differentiation."""
        assert self._each is not None
        means, variances, pulls = [], [], []
        for u, s in enumerate(self._levels(sigma)):
            own = getattr(self._each[u], "vjp", None)
            with torch.set_grad_enabled(own is None):
                leaf = x[:, u].detach()
                leaf = leaf if own is not None else leaf.requires_grad_(True)
                mean, var = self._user(u, leaf, s)
            means.append(mean.detach())
            variances.append(var.detach())
            pulls.append(_at(own, s) if own is not None else Pullback(mean, leaf))
        whole = torch.stack(variances, 1)
        whole = self._clamp(whole, sigma) if clamp else whole
        return torch.stack(means, 1), whole, lambda g: torch.stack([p(g[:, u]) for u, p in enumerate(pulls)], 1)
