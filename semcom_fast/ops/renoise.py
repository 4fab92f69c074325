"""Forward diffusion of a channel estimate at several steps, for the evidence of every expert."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from .._native import require_core
from ..reference.renoise import STREAM
from . import _checks, _levels, _pilots
from ._arrays import array_function
from ._register import Op

if TYPE_CHECKING:
    from jaxtyping import Complex

_NAME = "renoise"


def _cpu(h, steps, alpha_bar, seed, first_item, noise) -> Tensor:
    out = torch.empty((h.shape[0], steps.shape[0], *h.shape[1:]), dtype=h.dtype, device=h.device)
    if not out.numel():
        return out
    keep: list[Tensor] = []
    bad = require_core().cpu_renoise(
        (h.dtype is torch.complex128, 2 if noise is None else 1),
        (*out.shape[:2], h[0].numel()),
        tuple(_checks.address(t, keep) for t in (h, noise)),
        (steps.tolist(), alpha_bar.tolist()),
        (_levels.to_int(seed), 0, STREAM, first_item),
        out.data_ptr(),
    )
    if bad >= 0 and not _checks.tolerating_non_finite():
        raise _checks.non_finite(_NAME, "channel", bad)
    return out


def _triton(h, steps, alpha_bar, *rest) -> Tensor:
    from ..triton import renoise as kernel

    return kernel.run(h, _pilots.beside(steps, h), _pilots.beside(alpha_bar, h), *rest)


def _reference(h, steps, alpha_bar, seed, first_item, noise) -> Tensor:
    out = reference.renoise(h, steps, alpha_bar, seed=seed, first_item=first_item, noise=noise)
    _checks.require_finite(_NAME, "channel", out)
    return out


def _backward(needs, args, outs, grads):
    if needs[2]:
        raise NotImplementedError(f"semcom_fast.{_NAME} has no derivative in alpha_bar; detach it")
    bar = args[2].to(grads[0].device)[:, None, None]
    real = _checks.real_dtype(grads[0])
    d_h = (bar.sqrt().to(real) * grads[0]).sum(1) if needs[0] else None
    return d_h, None, None, None, None, (1 - bar).sqrt().to(real) * grads[0] if needs[5] else None


_op = Op(
    _NAME,
    "(Tensor h, Tensor steps, Tensor alpha_bar, Tensor? seed, int first_item, Tensor? noise) -> Tensor",
    kernels={"cpu": _cpu, "triton": _triton, "reference": _reference},
    fake=lambda h, steps, *rest: h.new_empty((h.shape[0], steps.shape[0], *h.shape[1:])),
    backward=_backward,
    vmap="rows",
    packet_args=lambda a: (*a[:3], _levels.int_tensor(a[3], a[0].device), *a[4:]),
)


def drawn_noise(h: Tensor, steps: Tensor, seed: int | Tensor | None, first_item: int) -> Tensor:
    """The CN(0, 1) that the op adds to h [B,Nr,Nt] at `steps` [S]: [B,S,Nr,Nt]."""
    nothing_left = torch.zeros(steps.shape, dtype=torch.float64, device=steps.device)
    return _op(torch.zeros_like(h), steps, nothing_left, seed, first_item, None)


@array_function
def renoise(
    h: "Complex[Tensor, 'b nr nt']",
    steps: Sequence[int] | Tensor,
    alpha_bar: Tensor | Sequence[float],
    *,
    seed: int | Tensor | None = None,
    first_item: int = 0,
    noise: "Complex[Tensor, 'b s nr nt'] | None" = None,
) -> "Complex[Tensor, 'b s nr nt']":
    r"""Noise a channel estimate to several diffusion steps at once; Philox in the kernel, nothing stored.

    Definition: :math:`H_t = \sqrt{\bar\alpha_t}\,\hat H + \sqrt{1-\bar\alpha_t}\,\varepsilon_t` for every t of `steps`,
    :math:`\varepsilon_t \sim \mathcal{CN}(0, 1)` per entry. The draw depends on (seed, t, item) alone, so that all experts
    and all outer iterations see the same noise, and :func:`elbo_reduce` can draw it again.

    Args:
        h: [B,Nr,Nt] complex. steps: diffusion steps t [S]. alpha_bar: the schedule's table (entry t at index t, so entry
            0 is 1), or one value per step [S].
        seed: of the Philox normals, stream 8, Philox step t, item first_item + index in the batch. noise: explicit
            CN(0, 1) instead.

    Returns:
        [B,S,Nr,Nt] like h.

    Raises:
        ValueError: shapes disagree, a step outside the table, alpha_bar outside (0, 1], neither seed nor noise; on the
            CPU a channel that is not finite (it is named).

    Source: equation (36) of "Mixture-of-Experts Diffusion Models for Adaptive Massive MIMO Channel Estimation via
    Variational Bayesian Inference".
    """
    _checks.same_kind(_NAME, _checks.COMPLEX, "h noise", h, noise, optional=1)
    at = _pilots.check_steps(_NAME, steps)
    if h.ndim != 3 or (noise is not None and noise.shape != (h.shape[0], len(at), *h.shape[1:])):
        given = {"h": h} if noise is None else {"h": h, "noise": noise}
        raise _checks.shape_error(_NAME, f"h [B,Nr,Nt] and noise [B,{len(at)},Nr,Nt]", **given)
    _pilots.check_draw(_NAME, noise, seed, first_item)
    bar = _pilots.check_alpha_bar(_NAME, alpha_bar, at)
    return _op(h, _pilots.step_table(at), bar, seed, first_item, noise)
