"""Effective noise variance of the PVD likelihood."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from .._native import require_core
from ..reference.levels import Level
from . import _checks, _levels
from ._arrays import array_function
from ._register import Op, reference_vjp

if TYPE_CHECKING:
    from jaxtyping import Real


def _cpu(noise_var, var_h, probe_x, probe_y, x_energy, nr, count) -> Tensor:
    keep: list[Tensor] = []
    level = _levels.cpu_level(noise_var, False, keep)
    var_h, probe_x, probe_y = var_h.resolve_neg(), probe_x.resolve_neg(), probe_y.resolve_neg()
    b, u = probe_x.shape
    out = probe_y.new_empty(b)
    strides = (*var_h.stride(), *probe_x.stride(), *probe_y.stride())
    bad = require_core().cpu_pvd_calibrate(
        probe_y.dtype is torch.float64, b, u, nr, count, x_energy, level,
        var_h.data_ptr(), probe_x.data_ptr(), probe_y.data_ptr(), strides, out.data_ptr(),
    )  # fmt: skip
    if bad >= 0 and not _checks.tolerating_non_finite():
        raise ValueError(f"{_NAME}: item {bad} has effective noise variance {float(out[bad])}; noise_var and the sum must "
                         "be positive and finite")  # fmt: skip
    return out


def _triton(noise_var, var_h, probe_x, probe_y, x_energy, nr, count) -> Tensor:
    from ..triton import pvd_calibrate as kernel

    level = _levels.device_level(noise_var, False, probe_y.device)
    var_h, probe_x, probe_y = (t.resolve_neg() for t in (var_h, probe_x, probe_y))
    return kernel.run(level, var_h, probe_x, probe_y, x_energy, nr, count)


def _reference(noise_var, var_h, probe_x, probe_y, x_energy, nr, count) -> Tensor:
    out = reference.pvd_calibrate(noise_var, var_h, probe_x, probe_y, x_energy=x_energy, nr=nr, count=count)
    if not _checks.tolerating_non_finite():
        if isinstance(noise_var, Tensor):
            _levels.require_positive(_NAME, "noise_var", noise_var)
        _levels.require_positive(_NAME, "the effective noise variance", out)
    return out


def _backward(needs, args, outs, grads):
    def formula(noise_var, var_h, probe_x, probe_y, x_energy, nr, count):
        return reference.pvd_calibrate(noise_var, var_h, probe_x, probe_y, x_energy=x_energy, nr=nr, count=count)

    return reference_vjp(formula, args, needs, grads)


_NAME = "pvd_calibrate"
_op = Op(
    _NAME,
    "(Tensor noise_var, Tensor var_h, Tensor probe_x, Tensor probe_y, float x_energy, int nr, int count) -> Tensor",
    kernels={"cpu": _cpu, "triton": _triton, "reference": _reference},
    fake=lambda noise_var, var_h, probe_x, probe_y, x_energy, nr, count: probe_y.new_empty(probe_y.shape),
    backward=_backward,
    vmap="rows",
    packet_args=lambda a: (_levels.as_tensor(a[0], a[3].device), *a[1:]),
)


@array_function
def pvd_calibrate(
    noise_var: Level,
    var_h: "Real[Tensor, 'b u']",
    probe_x: "Real[Tensor, 'b u']",
    probe_y: "Real[Tensor, '*batch']",
    *,
    x_energy: float,
    nr: int,
    count: int,
) -> "Real[Tensor, '*batch']":
    r"""Variance of channel noise plus what the uncertainty of channel and codeword adds to the residual.

    Definition, with dH ~ CN(0, var_h) and the secant probe dX_u = f(D_u + sqrt(var_d) z) - f(D_u):

    .. math:: s = \sigma^2 + \frac{1}{\mathrm{count}} \Big[\sum_u N_r v_{H,u} (\|X_u\|^2 + \|dX_u\|^2)
              + \big\|\sum_u H_u dX_u\big\|^2\Big]

    Args:
        noise_var: E|n|^2 per complex entry: a number or [B].
        var_h: posterior variance per channel entry [B,U]. probe_x [B,U] and probe_y [B] come from `likelihood_score`.
        x_energy: ||X_u||^2 = P*K*Nt*T, fixed by the power constraint. nr: receive antennas. count: Nr*K*T.

    Returns:
        s [B], formed in float64. It goes into `pvd_update` as `score_var`.

    Raises:
        ValueError: shapes disagree, or on the CPU an item's s is not positive and finite (the item is named).

    Source: equation (42) of "Blind MIMO Semantic Communication via Parallel Variational Diffusion", taken at inference.
    """
    _checks.same_kind(_NAME, _checks.REAL, "probe_y probe_x var_h", probe_y, probe_x, var_h)
    if probe_x.ndim != 2 or var_h.shape != probe_x.shape or probe_y.shape != probe_x.shape[:1]:
        need = "var_h [B,U], probe_x [B,U], probe_y [B]"
        raise _checks.shape_error(_NAME, need, var_h=var_h, probe_x=probe_x, probe_y=probe_y)
    _checks.positive_level(_NAME, "noise_var", noise_var)
    _levels.check(_NAME, "noise_var", noise_var, tuple(probe_y.shape), probe_y.device)
    if count <= 0:
        raise ValueError(f"{_NAME}: count must be positive, got {count}")
    return _op(noise_var, var_h, probe_x, probe_y, _checks.number(_NAME, "x_energy", x_energy), nr, count)
