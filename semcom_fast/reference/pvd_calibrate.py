"""Reference twin of :func:`semcom_fast.pvd_calibrate`."""

from torch import Tensor

from .levels import Level, align_left


def pvd_calibrate(
    noise_var: Level, var_h: Tensor, probe_x: Tensor, probe_y: Tensor, *, x_energy: float, nr: int, count: int
) -> Tensor:
    """s = noise_var + (sum_u nr*var_h*(x_energy + probe_x) + probe_y)/count, [B]; var_h, probe_x [B,U], probe_y [B]."""
    spread = (nr * var_h.double() * (x_energy + probe_x.double())).sum(-1) + probe_y.double()
    return (align_left(noise_var, 1, probe_y.device) + spread / count).to(probe_y.dtype)
