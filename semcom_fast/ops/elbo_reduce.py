"""What the responsibilities are made of: every expert's diffusion evidence and data fit, in one pass."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from .._native import require_core
from ..reference.elbo_reduce import evidence
from ..reference.levels import Level
from ..reference.pilot_svd import PilotSVD
from ..reference.renoise import STREAM
from . import _checks, _levels, _pilots
from ._arrays import array_function
from ._register import Op, reference_vjp
from .renoise import drawn_noise

if TYPE_CHECKING:
    from jaxtyping import Complex, Float

_NAME = "elbo_reduce"


def _cpu(eps, h, steps, alpha_bar, w, yv, u, s, noise_var, tau_index, seed, first_item, noise):
    b, n_steps, e, nr, nt = eps.shape
    out = tuple(h.new_zeros((b, e), dtype=_checks.real_dtype(h)) for _ in range(2))
    if not eps.numel():
        return out
    keep: list[Tensor] = []
    bad = require_core().cpu_elbo_reduce(
        (h.dtype is torch.complex128, 2 if noise is None else 1, u.ndim == 3),
        (b, n_steps, e, nr, nt, u.shape[-1]),
        tuple(_checks.address(t, keep) for t in (eps, h, yv, u, s, noise)),
        (steps.tolist(), alpha_bar.tolist(), w.tolist(), tau_index),
        _levels.cpu_level(noise_var, False, keep),
        (_levels.to_int(seed), 0, STREAM, first_item),
        (out[0].data_ptr(), out[1].data_ptr()),
    )
    if bad >= 0 and not _checks.tolerating_non_finite():
        raise _bad_entry(bad // e, bad % e)
    return out


def _triton(eps, h, steps, alpha_bar, w, *rest):
    from ..triton import elbo_reduce as kernel

    steps, alpha_bar, w = (_pilots.beside(t, h) for t in (steps, alpha_bar, w))
    return kernel.run(eps, h, steps, alpha_bar, w, *rest)


def _reference(eps, h, steps, alpha_bar, w, yv, u, s, noise_var, tau_index, seed, first_item, noise):
    out = reference.elbo_reduce(
        eps, h, steps, alpha_bar, w, yv, PilotSVD(u, s, u), noise_var=noise_var, tau=int(steps[tau_index]), seed=seed,
        first_item=first_item, noise=noise,
    )  # fmt: skip
    both = torch.stack(out, -1)
    if both.device.type == "cpu" and both.numel() and _checks.readable(both) and not _checks.tolerating_non_finite():
        bad = ~torch.isfinite(both).all(-1)
        if bool(bad.any()):
            raise _bad_entry(*bad.nonzero()[0].tolist())
    return out


def _bad_entry(channel: int, expert: int) -> ValueError:
    return ValueError(
        f"{_NAME}: channel {channel}, expert {expert} is not finite (NaN or Inf in the input, or overflow)"
    )


def _backward(needs, args, outs, grads):
    if any(needs[2:5]) or any(needs[6:9]):
        raise NotImplementedError(f"semcom_fast.{_NAME} has no derivative in the schedule, the pilots or noise_var")
    noise = args[12]
    if noise is None:
        noise = drawn_noise(args[1].detach(), args[2], args[10], args[11])

    def formula(eps, h, steps, alpha_bar, w, yv, u, s, noise_var, tau_index, seed, first_item, noise):
        return evidence(eps, h, noise, alpha_bar, w, yv, u, s, noise_var, tau_index)

    return reference_vjp(formula, (*args[:12], noise), needs, grads)


def _fake(eps, h, *rest):
    shape, real = (eps.shape[0], eps.shape[2]), _checks.real_dtype(h)
    return h.new_empty(shape, dtype=real), h.new_empty(shape, dtype=real)


def _packet(a):
    device = a[0].device
    return (*a[:8], _levels.as_tensor(a[8], device), a[9], _levels.int_tensor(a[10], device), *a[11:])


_op = Op(
    _NAME,
    "(Tensor eps, Tensor h, Tensor steps, Tensor alpha_bar, Tensor w, Tensor yv, Tensor u, Tensor s, Tensor noise_var, "
    "int tau_index, Tensor? seed, int first_item, Tensor? noise) -> (Tensor, Tensor)",
    kernels={"cpu": _cpu, "triton": _triton, "reference": _reference},
    fake=_fake,
    backward=_backward,
    vmap="rows",
    packet_args=_packet,
)


@array_function
def elbo_reduce(
    eps: "Complex[Tensor, 'b s e nr nt']",
    h: "Complex[Tensor, 'b nr nt']",
    steps: Sequence[int] | Tensor,
    alpha_bar: Tensor | Sequence[float],
    w: Tensor | Sequence[float],
    yv: "Complex[Tensor, 'b nr r']",
    svd: PilotSVD,
    *,
    noise_var: Level,
    tau: int,
    seed: int | Tensor | None = None,
    first_item: int = 0,
    noise: "Complex[Tensor, 'b s nr nt'] | None" = None,
) -> "tuple[Float[Tensor, 'b e'], Float[Tensor, 'b e']]":
    r"""Evidence of every expert for a channel estimate: the diffusion bound's terms and the fit to the received pilots.

    Definition, with :math:`\varepsilon_t` the noise that :func:`renoise` adds (drawn again here) and
    :math:`\varepsilon_{t,e}` the experts' predictions of it:

    .. math:: L_e = -\sum_t w_t \|\varepsilon_t - \varepsilon_{t,e}\|^2, \qquad
       D_e = -\frac{1}{\sigma^2}\|YV - \tilde H_e U\,\mathrm{diag}(s)\|^2, \quad
       \tilde H_e = \hat H + \sqrt{\tfrac{1-\bar\alpha_\tau}{\bar\alpha_\tau}}\,(\varepsilon_\tau - \varepsilon_{\tau,e}).

    :math:`\tilde H_e` is the expert's denoised channel at step tau. The part of Y outside the row space of the pilots (it
    exists where Np > Nt) is the same for all experts and left out. Sums are formed in float64.

    Args:
        eps: predictions [B,S,E,Nr,Nt] at renoise(h, steps, ...). h: the estimate [B,Nr,Nt].
        steps, alpha_bar, seed, first_item, noise: as they were given to `renoise`. w: the bound's weights, a table like
            alpha_bar or one per step.
        yv, svd: as for `pilot_posterior_step`. noise_var: E|n|^2, a number or [B]. tau: one of `steps`.

    Returns:
        (L [B,E], D [B,E]) in the real dtype of h.

    Raises:
        ValueError: shapes disagree; tau is not one of the steps; noise_var not positive; neither seed nor noise; on the
            CPU a value that is not finite (channel and expert are named). Derivatives exist in eps, h, yv and noise.

    Source: equations (32), (33), (36), (37) of "Mixture-of-Experts Diffusion Models for Adaptive Massive MIMO Channel
    Estimation via Variational Bayesian Inference"; the constant of (37) is dropped.
    """
    _checks.same_kind(_NAME, _checks.COMPLEX, "eps h yv noise", eps, h, yv, noise, optional=1)
    at = _pilots.check_steps(_NAME, steps)
    like = (h.shape[0], len(at), *h.shape[1:]) if h.ndim == 3 else None
    ok = like is not None and eps.ndim == 5 and (*eps.shape[:2], *eps.shape[3:]) == like and yv.ndim == 3
    if not (ok and yv.shape[0] == h.shape[0] and (noise is None or noise.shape == like)):
        given = {"eps": eps, "h": h, "yv": yv} | ({} if noise is None else {"noise": noise})
        raise _checks.shape_error(_NAME, f"eps [B,{len(at)},E,Nr,Nt], h [B,Nr,Nt] and yv [B,Nr,r]", **given)
    _pilots.check_svd(_NAME, svd, yv, h)
    lead = _checks.lead_shape(_NAME, "operands", "h svd.u", (h, 2), (svd.u, 2))
    if lead != h.shape[:1]:
        raise _checks.shape_error(_NAME, "one decomposition, or one per channel", **{"h": h, "svd.u": svd.u})
    _pilots.check_draw(_NAME, noise, seed, first_item)
    if tau not in at:
        raise ValueError(f"{_NAME}: tau must be one of the steps {at}, got {tau}")
    bar, weight = _pilots.check_alpha_bar(_NAME, alpha_bar, at), _pilots.check_table(_NAME, "w", w, at)
    level = _pilots.level_rows(_NAME, "noise_var", noise_var, lead, h.device)
    _pilots.positive_rows(_NAME, "noise_var", level)
    rows = _pilots.decomposition_rows(svd, lead)
    return _op(eps, h, _pilots.step_table(at), bar, weight, yv, *rows, level, at.index(tau), seed, first_item, noise)
