"""The calibrated score variance against the float64 definition."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

from semcom_fast import reference
from semcom_fast.triton import pvd_calibrate

UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("b", "u"), [(1, 1), (5, 3), (300, 4)])
def test_values(b, u, dtype, device):
    gen = torch.Generator().manual_seed(b)
    var_h, probe_x = (torch.rand(b, u, dtype=dtype, generator=gen).to(device) for _ in range(2))
    probe_y = (1e3 * torch.rand(b, dtype=dtype, generator=gen)).to(device)
    noise_var = torch.rand(b, generator=gen)
    constants = (460.8 + 2.0**-30, 4, 4 * 192 * 24)
    got = pvd_calibrate.run(noise_var.to(device), var_h, probe_x, probe_y, *constants)
    wide = [t.cpu().double() for t in (var_h, probe_x, probe_y)]
    want = reference.pvd_calibrate(noise_var, *wide, x_energy=constants[0], nr=constants[1], count=constants[2])
    # Everything is positive: in float64 each of the u + 5 sums and products rounds once, then one rounding to dtype.
    bound = (UNIT[dtype] + 2 * (u + 5) * UNIT[torch.float64]) * want
    ratio = float(((got.cpu().double() - want).abs() / bound).max())
    print(f"B={b} U={u} {dtype}: worst error/bound {ratio:.3f}")
    assert got.dtype == dtype and got.shape == (b,) and ratio <= 1


def test_strides_levels_and_empty(device):
    one = torch.tensor([0.25, 0.5, 0.75], device=device)
    var_h = one.unsqueeze(1).expand(3, 2)  # the same variance for every user, stride 0
    probe = torch.arange(6.0, device=device).reshape(2, 3).T
    full = pvd_calibrate.run(0.5, var_h.contiguous(), probe.contiguous(), one, 10.0, 2, 8)
    assert torch.equal(full, pvd_calibrate.run(0.5, var_h, probe, one, 10.0, 2, 8))
    level = (torch.tensor(0.5, device=device), 0, 0, 0)
    assert torch.equal(full, pvd_calibrate.run(level, var_h, probe, one, 10.0, 2, 8))
    # by hand, row 1: 0.5 + (2*0.5*((10 + 1) + (10 + 4)) + 0.5)/8
    assert float(full[1]) == 0.5 + (25 + 0.5) / 8
    assert pvd_calibrate.run(0.5, var_h[:0], probe[:0], one[:0], 10.0, 2, 8).shape == (0,)


def test_wrong_arguments(device):
    pair, one = torch.ones(2, 3, device=device), torch.ones(2, device=device)
    with pytest.raises(ValueError, match="need var_h"):
        pvd_calibrate.run(1.0, pair, pair[:, :2], one, 1.0, 1, 1)
    with pytest.raises(TypeError, match="probe_y must be"):
        pvd_calibrate.run(1.0, pair, pair, one.half(), 1.0, 1, 1)
    with pytest.raises(ValueError, match="does not broadcast"):
        pvd_calibrate.run(torch.ones(5, device=device), pair, pair, one, 1.0, 1, 1)
