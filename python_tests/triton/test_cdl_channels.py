"""Sums over rays against double precision: sizes, phases of many turns, layouts, splits and flags."""

import math

import pytest
import torch
from sf_testing import DTYPES, dot_growth, draw, same_bits, unit, within

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

from semcom_fast import reference
from semcom_fast.triton import cdl_channels

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
QUIET = 2**31 - 1


def _rays(batch, rays, dtype, device, turns=0.5):
    gains = draw(batch, rays, dtype=dtype) / rays**0.5
    rx, tx = (turns * (2 * torch.rand(batch, rays, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) - 1)
              for i in (1, 2))  # fmt: skip
    return [t.to(device) for t in (gains, rx.to(dtype.to_real()), tx.to(dtype.to_real()))]


@dtypes
@pytest.mark.parametrize("size", [(2, 70, 16, 64), (3, 5, 3, 7), (1, 33, 20, 70), (2, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("turns", [0.5, 9.0])
def test_values(turns, size, dtype, device):
    """Both steering factors err by a few roundings and, where no fused product is had, by those of their turns."""
    batch, rays, nr, nt = size
    gains, rx, tx = _rays(batch, rays, dtype, device, turns)
    flag = torch.full((1,), QUIET, dtype=torch.int32, device=device)
    got = cdl_channels.run(gains, rx, tx, nr, nt, flag=flag)
    wide = [t.cpu().to(torch.complex128 if t.is_complex() else torch.float64) for t in (gains, rx, tx)]
    far = 2 * math.pi * turns * (nr + nt) / 2
    growth = dot_growth(rays) + 8 + far
    wide_too = 2 if dtype is torch.complex128 else 1
    bound = wide_too * growth * unit(dtype) * wide[0].abs().sum(1)[:, None, None]
    within(got.cpu(), reference.cdl_channels(*wide, nr, nt), bound, f"triton cdl, {turns} turns, {str(dtype)[6:]}")
    assert got.dtype == dtype and int(flag) == QUIET


def test_one_ray_is_a_plane_wave(device):
    """A quarter turn per element: the entries are powers of j, exactly."""
    one = torch.ones(1, 1, dtype=torch.complex64, device=device)
    got = cdl_channels.run(one, one.real * 0.25, one.real * 0.5, 3, 5)
    want = torch.tensor([[-1j], [1], [1j]]) * torch.tensor([1, -1, 1, -1, 1])
    assert torch.equal(got[0].cpu(), want.to(torch.complex64))


def test_splits_layouts_out_and_empty(device):
    gains, rx, tx = _rays(3, 5, torch.complex64, device)
    want = cdl_channels.run(gains, rx, tx, 3, 4)
    same_bits(cdl_channels.run(gains[1:], rx[1:], tx[1:], 3, 4), want[1:])
    out = torch.empty_like(want)
    lazy = (gains.T.contiguous().T.conj().resolve_conj().conj(), torch._neg_view(-rx), tx.T.contiguous().T)
    assert cdl_channels.run(*lazy, 3, 4, out=out) is out
    same_bits(out, want)
    assert cdl_channels.run(gains[:0], rx[:0], tx[:0], 3, 4).shape == (0, 3, 4)
    assert not cdl_channels.run(gains[:, :0], rx[:, :0], tx[:, :0], 3, 4).any()


def test_flag_and_wrong_arguments(device):
    gains, rx, tx = _rays(4, 5, torch.complex64, device)
    with pytest.raises(ValueError, match=r"rx must be torch\.float32"):
        cdl_channels.run(gains, rx.double(), tx, 3, 4)
    with pytest.raises(ValueError, match="out must be"):
        cdl_channels.run(gains, rx, tx, 3, 4, out=torch.empty(4, 4, 3, dtype=gains.dtype, device=device))
    gains[2:, 1] = torch.inf
    flag = torch.full((1,), QUIET, dtype=torch.int64, device=device)
    cdl_channels.run(gains, rx, tx, 3, 4, flag=flag)
    assert int(flag) == 2
