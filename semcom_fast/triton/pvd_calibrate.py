"""The calibrated score variance in one launch: the Triton kernel of :func:`semcom_fast.pvd_calibrate`."""

import triton
import triton.language as tl
from torch import Tensor

from ._launch import Cell, as_level, on, real_dtype

_BLOCK = 128


@triton.jit
def of_user(variance, moved, x_energy, nr):
    """What the uncertainty of one user's channel adds to the residual's energy."""
    return nr * variance * (x_energy + moved)


@triton.jit(do_not_specialize=["noise_b", "var_b", "var_u", "probe_b", "probe_u", "energy_b", "users", "batch"])
def kernel(
    noise_var, noise_b, var_h, var_b, var_u, probe_x, probe_b, probe_u, probe_y, energy_b, out,
    x_energy: tl.float64, nr: tl.float64, count: tl.float64, users, batch, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = b < batch
    spread = tl.load(probe_y + b * energy_b, mask=mask, other=0.0).to(tl.float64)
    for u in range(users):
        variance = tl.load(var_h + (b * var_b + u * var_u), mask=mask, other=0.0).to(tl.float64)
        moved = tl.load(probe_x + (b * probe_b + u * probe_u), mask=mask, other=0.0).to(tl.float64)
        spread += of_user(variance, moved, x_energy, nr)
    total = tl.load(noise_var + b * noise_b, mask=mask, other=0.0).to(tl.float64) + spread / count
    tl.store(out + b, total.to(out.dtype.element_ty), mask=mask)


def run(
    noise_var: Cell | float | Tensor,
    var_h: Tensor,
    probe_x: Tensor,
    probe_y: Tensor,
    x_energy: float,
    nr: int,
    count: int,
) -> Tensor:
    """s = noise_var + (sum_u nr var_h (x_energy + probe_x) + probe_y)/count, in float64, rounded to probe_y's dtype.

    var_h, probe_x [B,U] and probe_y [B] may have any strides (expanded views are read in place); noise_var is a number,
    a tensor over [B] or a (tensor, strides) tuple as `as_level` gives. Raises ValueError for shapes that do not agree.
    """
    if probe_y.ndim != 1 or var_h.ndim != 2 or var_h.shape != probe_x.shape or var_h.shape[0] != probe_y.shape[0]:
        raise ValueError(
            f"pvd_calibrate: need var_h, probe_x [B,U] and probe_y [B], got {tuple(var_h.shape)}, "
            f"{tuple(probe_x.shape)}, {tuple(probe_y.shape)}"
        )
    for name, t in (("var_h", var_h), ("probe_x", probe_x), ("probe_y", probe_y)):
        real_dtype(name, t)
    batch = probe_y.shape[0]
    out = probe_y.new_empty(batch)
    if batch == 0:
        return out
    if not isinstance(noise_var, tuple):
        noise_var = as_level(noise_var, device=probe_y.device, batch=batch)
    level, _, noise_stride, _ = noise_var
    with on(probe_y.device):
        kernel[(-(-batch // _BLOCK),)](
            level, noise_stride, var_h, *var_h.stride(), probe_x, *probe_x.stride(), probe_y,
            *probe_y.stride(), out, float(x_energy), float(nr), float(count), var_h.shape[1], batch, BLOCK=_BLOCK,
            num_warps=4,
        )  # fmt: skip
    return out
