"""Responsibilities of a mixture of experts under a Dirichlet prior on its weights."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from .._native import kernel
from . import _checks, _levels
from ._arrays import array_function
from ._register import Op, reference_vjp

if TYPE_CHECKING:
    from jaxtyping import Float

_NAME = "dirichlet_responsibilities"


def _cpu(L, D, gamma0, gamma, eta):
    L, D, prior = _checks.plain(L), _checks.plain(D), _checks.plain(gamma0)
    now = prior if gamma is gamma0 else _checks.plain(gamma)
    rho, after = torch.empty_like(L), torch.empty_like(L)
    bad = kernel("cpu_dirichlet_responsibilities")(
        L.dtype is torch.float64, L.shape, (L.data_ptr(), D.data_ptr(), prior.data_ptr(), now.data_ptr()), eta,
        (rho.data_ptr(), after.data_ptr()),
    )  # fmt: skip
    if bad >= 0 and not _checks.tolerating_non_finite():
        raise _bad_row(bad)
    return rho, after


def _triton(*args):
    from ..triton import dirichlet_responsibilities as kernel

    return kernel.run(*args)


def _formula(L, D, gamma0, gamma, eta):
    return reference.dirichlet_responsibilities(L, D, gamma0, gamma=gamma, eta=eta)


def _reference(*args):
    out = _formula(*args)
    if out[0].device.type == "cpu" and _checks.readable(out[0]) and not _checks.tolerating_non_finite():
        bad = ~torch.isfinite(out[0] + out[1]).all(1)
        if bool(bad.any()):
            raise _bad_row(int(bad.nonzero()[0]))
    return out


def _bad_row(row: int) -> ValueError:
    return ValueError(f"{_NAME}: row {row} is not finite (NaN or Inf in L or D, or a Dirichlet parameter <= 0)")


def _backward(needs, args, outs, grads):
    return reference_vjp(_formula, args, needs, grads)


_op = Op(
    _NAME,
    "(Tensor L, Tensor D, Tensor gamma0, Tensor gamma, float eta) -> (Tensor, Tensor)",
    kernels={"cpu": _cpu, "triton": _triton, "reference": _reference},
    fake=lambda L, *rest: (L.new_empty(L.shape), L.new_empty(L.shape)),
    backward=_backward,
    vmap="rows",
)


def _parameters(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """Dirichlet parameters as a tensor [B,E] like the evidence."""
    if _levels.is_number(value):
        _checks.positive_level(_NAME, name, value)
        return like.new_full(like.shape, float(value))
    if not isinstance(value, Tensor):
        raise TypeError(f"{_NAME}: {name} must be a number or a tensor, got {type(value).__name__}")
    _checks.same_kind(_NAME, _checks.REAL, f"L {name}", like, value)
    if value.shape not in (like.shape, like.shape[1:], ()):
        raise _checks.shape_error(_NAME, f"{name} a number, [E] or [B,E]", L=like, **{name: value})
    _levels.require_positive(_NAME, name, value)
    return value.expand(like.shape)


@array_function
def dirichlet_responsibilities(
    L: "Float[Tensor, 'b e']",
    D: "Float[Tensor, 'b e']",
    gamma0: "float | Float[Tensor, '...']",
    *,
    gamma: "Float[Tensor, '...'] | None" = None,
    eta: float = 1.0,
    shared: bool = False,
) -> "tuple[Float[Tensor, 'b e'], Float[Tensor, '...']]":
    r"""Update the responsibilities of E experts and the Dirichlet posterior of their weights.

    Definition, psi the digamma function:

    .. math:: \rho_e = \mathrm{softmax}_e\big(L_e + \psi(\gamma_e) - \psi(\textstyle\sum_j\gamma_j) + \eta D_e\big),
       \qquad \gamma_e' = \gamma_{0,e} + \rho_e .

    Args:
        L, D: evidence of :func:`elbo_reduce`, [B,E] real. eta: weight of the data term.
        gamma0: prior, a positive number, [E] or [B,E]. gamma: the current posterior, [E] or [B,E]; the prior at first.
        shared: the weights belong to all B channels: gamma' = gamma0 + sum_b rho_b, [E].

    Returns:
        (rho [B,E], gamma' [B,E], or [E] where shared), formed in float64.

    Raises:
        ValueError: shapes disagree, a prior that is not positive, on the CPU a row that is not finite (it is named).

    Source: equations (35), (38)-(40) of "Mixture-of-Experts Diffusion Models for Adaptive Massive MIMO Channel
    Estimation via Variational Bayesian Inference".
    """
    _checks.same_kind(_NAME, _checks.REAL, "L D", L, D)
    if L.ndim != 2 or D.shape != L.shape or L.shape[1] == 0:
        raise _checks.shape_error(_NAME, "L [B,E] and D [B,E] with E >= 1", L=L, D=D)
    prior = _parameters("gamma0", gamma0, L)
    if shared and isinstance(gamma0, Tensor) and gamma0.ndim == 2:
        raise _checks.shape_error(_NAME, "gamma0 a number or [E] where the weights are shared", gamma0=gamma0)
    now = prior if gamma is None else _parameters("gamma", gamma, L)
    rho, after = _op(L, D, prior, now, _checks.number(_NAME, "eta", eta))
    if not shared:
        return rho, after
    base = gamma0 if isinstance(gamma0, Tensor) else float(gamma0)
    return rho, (rho.double().sum(0) + base).to(L.dtype)
