"""One step of posterior diffusion from pilots: expert mixture, likelihood score and deterministic update, fused."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from .._native import require_core
from ..reference.levels import Level
from ..reference.pilot_posterior_step import step_scales
from ..reference.pilot_svd import PilotSVD
from . import _checks, _levels, _pilots
from ._arrays import array_function
from ._register import Op

if TYPE_CHECKING:
    from jaxtyping import Complex, Float

_NAME = "pilot_posterior_step"
_LIKELIHOODS = ("dmps", "x0")


def _cpu(h_t, eps, weights, yv, u, s, noise_var, alpha_bar, beta, lam, x0) -> Tensor:
    out = torch.empty(h_t.shape, dtype=h_t.dtype, device=h_t.device)  # new_empty would carry out a lazy conjugate
    if not out.numel():
        return out
    keep: list[Tensor] = []
    operands = tuple(_checks.address(t, keep) for t in (h_t, eps, weights, yv, u, s))
    bad = require_core().cpu_pilot_posterior_step(
        (h_t.dtype is torch.complex128, x0, u.ndim == 3),
        (*eps.shape[:2], *h_t.shape[1:], u.shape[-1]),
        operands,
        tuple(_levels.cpu_level(v, False, keep) for v in (noise_var, alpha_bar, beta, lam)),
        out.data_ptr(),
    )
    if bad >= 0 and not _checks.tolerating_non_finite():
        raise _checks.non_finite(_NAME, "channel", bad)
    return out


def _triton(*args) -> Tensor:
    from ..triton import pilot_posterior_step as kernel

    return kernel.run(*args)


def _reference(h_t, eps, weights, yv, u, s, noise_var, alpha_bar, beta, lam, x0) -> Tensor:
    out = reference.pilot_posterior_step(
        h_t, eps, weights, yv, PilotSVD(u, s, u), noise_var=noise_var, alpha_bar=alpha_bar, beta=beta, lam=lam,
        lik="x0" if x0 else "dmps",
    )  # fmt: skip
    _checks.require_finite(_NAME, "channel", out)
    return out


def _backward(needs, args, outs, grads):
    """The step is linear in h_t, eps and yv, and in the weights."""
    eps, weights, u, s = (args[i] for i in (1, 2, 4, 5))
    *levels, x0 = args[6:]
    if any(needs[4:10]):
        raise NotImplementedError(f"semcom_fast.{_NAME} has no derivative in the pilots or the levels; detach them")
    noise_var, alpha_bar, beta, lam = levels
    scales = step_scales(s, 3, noise_var=noise_var, alpha_bar=alpha_bar, beta=beta, lam=lam, x0=x0)
    a, b, p, q, gain = (v.to(s.dtype) for v in scales)
    g = grads[0]
    g_yv = (g @ u) * gain
    back = (g_yv * s.unsqueeze(-2)) @ u.mH
    g_mixed = q * back - b * g
    return (
        a * g - p * back if needs[0] else None,
        weights[..., None, None] * g_mixed.unsqueeze(1) if needs[1] else None,
        torch.view_as_real(eps.conj() * g_mixed.unsqueeze(1))[..., 0].sum((-2, -1)) if needs[2] else None,
        g_yv if needs[3] else None,
        *(None,) * 7,
    )


_op = Op(
    _NAME,
    "(Tensor h_t, Tensor eps, Tensor weights, Tensor yv, Tensor u, Tensor s, Tensor noise_var, Tensor alpha_bar, "
    "Tensor beta, Tensor lam, bool x0) -> Tensor",
    kernels={"cpu": _cpu, "triton": _triton, "reference": _reference},
    fake=lambda h_t, *rest: h_t.new_empty(h_t.shape),
    backward=_backward,
    vmap="rows",
    packet_args=lambda a: (*a[:6], *(_levels.as_tensor(v, a[0].device) for v in a[6:10]), a[10]),
)


def _check_levels(noise_var: Level, alpha_bar: Level, beta: Level) -> None:
    """What may be looked at: numbers, and the entries of tensors in host memory."""
    _pilots.positive_rows(_NAME, "noise_var", noise_var)
    for name, level, low, closed in (("alpha_bar", alpha_bar, "(0", False), ("beta", beta, "[0", True)):
        if isinstance(level, Tensor) and not (level.is_cpu and _checks.readable(level)):
            continue
        level = level.item() if isinstance(level, Tensor) and level.numel() == 1 else level
        inside = (level >= 0 if closed else level > 0) & (level < 1)
        if not (inside.all() if isinstance(inside, Tensor) else inside):
            raise ValueError(f"{_NAME}: {name} must lie in {low}, 1), got {level}")


@array_function
def pilot_posterior_step(
    h_t: "Complex[Tensor, '*batch nr nt']",
    eps: "Complex[Tensor, '*batch e nr nt']",
    weights: "Float[Tensor, '*batch e']",
    yv: "Complex[Tensor, '*batch nr r']",
    svd: PilotSVD,
    *,
    noise_var: Level,
    alpha_bar: Level,
    beta: Level,
    lam: Level = 1.0,
    lik: str = "dmps",
) -> "Complex[Tensor, '*batch nr nt']":
    r"""Carry a channel estimate from diffusion step t to t-1 given the experts' predictions and received pilots.

    Model: Y = H P + N, N entries CN(0, noise_var), P = U diag(s) V^H (:func:`pilot_svd`), yv = Y V. Definition, with
    :math:`\hat\varepsilon = \sum_e w_e \varepsilon_e` and :math:`\bar\alpha, \beta` of step t:

    .. math:: H_{t-1} = \frac{1}{\sqrt{1-\beta}} \Big(H_t - \frac{\beta}{\sqrt{1-\bar\alpha}}\hat\varepsilon
              + \lambda\beta\,G_t\Big), \quad
              G_t = \frac{1}{\sqrt{\bar\alpha}} \big[(YV - R\,U\,\mathrm{diag}(s))\,
              \mathrm{diag}\big(\tfrac{s}{\sigma^2 + s^2(1-\bar\alpha)/\bar\alpha}\big)\big] U^H .

    G_t is the Wirtinger score d/dH* of the likelihood. R is :math:`H_t/\sqrt{\bar\alpha}` for ``lik="dmps"`` and the
    denoised channel :math:`(H_t - \sqrt{1-\bar\alpha}\,\hat\varepsilon)/\sqrt{\bar\alpha}` for ``lik="x0"``. One pass over
    H; the coefficients are formed in float64 and rounded once.

    Args:
        h_t: state [..., Nr, Nt], complex. Leading dims broadcast.
        eps: predictions of E experts [..., E, Nr, Nt]. weights: their responsibilities [..., E], real.
        yv: svd.project(y) [..., Nr, r]. svd: of one pilot matrix, or of one per channel (leading dims).
        noise_var, alpha_bar, beta, lam: numbers or tensors over the leading dims; lam scales the likelihood score.

    Returns:
        H_{t-1} like h_t.

    Raises:
        ValueError: shapes disagree; noise_var not positive, alpha_bar outside (0, 1), beta outside [0, 1); an unknown
            lik; on the CPU a channel that is not finite (its index in the flattened batch is named). TypeError: mixed
            dtypes. Derivatives exist in h_t, eps, weights and yv (reverse mode).

    Source: equations (24)-(26), (28), (29) of "Mixture-of-Experts Diffusion Models for Adaptive Massive MIMO Channel
    Estimation via Variational Bayesian Inference".
    """
    _checks.require_tensors(_NAME, h_t=h_t, eps=eps, weights=weights, yv=yv)
    _checks.same_kind(_NAME, _checks.COMPLEX, "h_t eps yv", h_t, eps, yv)
    if lik not in _LIKELIHOODS:
        raise ValueError(f"{_NAME}: lik must be one of {', '.join(_LIKELIHOODS)}, got {lik!r}")
    ok = h_t.ndim >= 2 and eps.ndim >= 3 and weights.ndim >= 1 and eps.shape[-2:] == h_t.shape[-2:]
    if not (ok and weights.shape[-1] == eps.shape[-3] > 0):
        need = "h_t [...,Nr,Nt], eps [...,E,Nr,Nt] and weights [...,E] with E >= 1"
        raise _checks.shape_error(_NAME, need, h_t=h_t, eps=eps, weights=weights)
    if weights.dtype is not _checks.real_dtype(h_t) or weights.device != h_t.device:
        raise TypeError(
            f"{_NAME}: weights is {weights.dtype} on {weights.device}, the state {h_t.dtype} on {h_t.device}"
        )
    _pilots.check_svd(_NAME, svd, yv, h_t)
    parts = ((h_t, 2), (eps, 3), (weights, 1), (yv, 2), (svd.u, 2))[: 4 if svd.u.ndim == 2 else 5]
    lead = _checks.lead_shape(_NAME, "operands", "h_t eps weights yv svd.u", *parts)
    rows = [_pilots.rows_of(t, lead, n) for t, n in parts[:4]]
    given = {"noise_var": noise_var, "alpha_bar": alpha_bar, "beta": beta, "lam": lam}
    levels = [_pilots.level_rows(_NAME, name, v, lead, h_t.device) for name, v in given.items()]
    _check_levels(*levels[:3])
    out = _op(*rows, *_pilots.decomposition_rows(svd, lead), *levels, lik == "x0")
    return out if len(lead) == 1 else out.reshape(*lead, *h_t.shape[-2:])
