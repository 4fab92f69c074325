"""The normalised equaliser against the float64 definition: broadcast channels, silent symbols, range, flags."""

import math

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

from semcom_fast import reference
from semcom_fast.triton import waterfill_equalise

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
UNIT = {torch.complex64: 2.0**-24, torch.complex128: 2.0**-53}
DTYPES = list(UNIT)
QUIET = 2**31 - 1
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _draw(*shape, dtype=torch.complex64, seed=0, device="cpu"):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).to(device)


def _check(y, h, noise_var, got):
    """Both results round once in complex64; in complex128 about ten roundings here and as many in the reference.

    What underflows may be off by the smallest normal number.
    """
    unit, tiny = UNIT[y.dtype], torch.finfo(y.dtype.to_real()).tiny
    growth = 1 + 1e-6 if y.dtype == torch.complex64 else 20
    y, h = y.cpu().to(torch.complex128), h.cpu().to(torch.complex128)
    noise_var = noise_var.cpu().double() if isinstance(noise_var, torch.Tensor) else noise_var
    f, d = reference.waterfill_equalise(y, h, noise_var)
    size = torch.complex(*f.chunk(2, -1)).abs()
    for name, g, w, bound in (("f", got[0], f, torch.cat([size, size], -1)), ("d", got[1], d, d)):
        ratio = float(((g.cpu().double() - w).abs() / (growth * unit * bound + tiny)).max())
        print(f"{name} {tuple(g.shape)} {y.dtype}: worst error/bound {ratio:.3f}")
        assert g.dtype == got[1].dtype and g.shape == w.shape and ratio <= 1


@dtypes
@pytest.mark.parametrize("symbols", [1, 6, 7, 64, 516, 1030])
@pytest.mark.parametrize("channel", ["fast", "slow", "fixed", "strided"])
def test_values(symbols, channel, dtype, device):
    shape = (2, 3, symbols)
    y = _draw(*shape, dtype=dtype, device=device)
    h = {
        "fast": lambda: _draw(*shape, dtype=dtype, seed=1, device=device),
        "slow": lambda: _draw(2, 3, 1, dtype=dtype, seed=1, device=device).expand(shape),
        "fixed": lambda: torch.ones((), dtype=dtype, device=device).expand(shape),
        "strided": lambda: _draw(symbols, 4, 3, dtype=dtype, seed=1, device=device)[:, ::2].permute(1, 2, 0),
    }[channel]()
    noise_var = torch.tensor([[0.1, 0.3, 2.0], [1e-9, 0.0, 7.0]], dtype=torch.float64, device=device)
    flag = torch.full((1,), QUIET, dtype=torch.int32, device=device)
    got = waterfill_equalise.run(y, h, noise_var, flag=flag)
    assert got[0].dtype == dtype.to_real() and int(flag) == QUIET
    _check(y, h, noise_var, got)


def test_noise_levels_and_out(device):
    y, h = _draw(2, 3, 10, device=device), _draw(2, 3, 10, seed=1, device=device)
    plain = waterfill_equalise.run(y, h, 0.3)
    cell = torch.full((2, 6), 0.3, dtype=torch.float64, device=device)[:, ::2]
    for level in (torch.full((2,), 0.3, dtype=torch.float64, device=device), cell, (cell, 0, *cell.stride())):
        assert all(map(torch.equal, plain, waterfill_equalise.run(y, h, level)))
    out = (torch.empty_like(plain[0]), torch.empty_like(plain[1]))
    got = waterfill_equalise.run(y, h, 0.3, out=out)
    assert got[0] is out[0] and got[1] is out[1] and all(map(torch.equal, plain, out))
    f, d = waterfill_equalise.run(y[:0], h[:0], 0.3)
    assert f.shape == (0, 3, 20) and d.shape == (0, 3, 10)


@dtypes
def test_silent_tiny_and_huge_channels(dtype, device):
    """h = 0 gives phase 1 and d = 1; nothing at all gives 0; modules whose squares leave float32 keep their phase."""
    tiny, huge = (1e-30, 1e30) if dtype == torch.complex64 else (1e-200, 1e120)
    h = torch.tensor([0, tiny * 1j, huge * 1j, 1, 1], dtype=dtype, device=device).expand(1, 1, 5)
    y = torch.tensor([1 + 1j, 1, 1, 0, 2j], dtype=dtype, device=device).expand(1, 1, 5)
    f, d = waterfill_equalise.run(y, h, 2.0)
    _check(y, h, 2.0, (f, d))
    assert f[0, 0, [0, 5]].tolist() == [1, 1] and float(d[0, 0, 0]) == 1  # y/sigma
    assert f[0, 0, [1, 6]].tolist() == [0, -1] and float(d[0, 0, 1]) == 1  # conj(i) y/sigma
    f, d = waterfill_equalise.run(y[..., :1], h[..., :1], 0.0)
    assert f.abs().max() == 0 and float(d) == 1


@pytest.mark.parametrize("wrong", ["y", "h", "noise_var"])
def test_flag_names_the_lowest_item(wrong, device):
    y, h = _draw(4, 1, 10, device=device), _draw(4, 1, 10, seed=1, device=device)
    noise_var = torch.full((4,), 0.5, dtype=torch.float64, device=device)
    if wrong == "noise_var":
        noise_var[2:] = -0.1
    else:
        (y if wrong == "y" else h)[2, 0, 3] = math.inf
    flag = torch.full((1,), QUIET, dtype=torch.int64, device=device)
    f, _ = waterfill_equalise.run(y, h, noise_var, flag=flag)
    assert int(flag) == 2 and bool(torch.isfinite(f[:2]).all())


def test_wrong_arguments(device):
    y = _draw(2, 1, 4, device=device)
    with pytest.raises(ValueError, match="need y and h"):
        waterfill_equalise.run(y, y[:1], 0.1)
    with pytest.raises(TypeError, match="must be complex"):
        waterfill_equalise.run(y.real, y.real, 0.1)
    with pytest.raises(ValueError, match="does not broadcast"):
        waterfill_equalise.run(y, y, torch.ones(3, device=device))
    with pytest.raises(ValueError, match=r"out\[1\] must be contiguous"):
        waterfill_equalise.run(y, y, 0.1, out=(y.real.new_empty(2, 1, 8), y.real.new_empty(2, 1, 8)))
