"""The first top-up against the float64 definition: draws, masks, kinds of d, in place, flags."""

import math

import pytest
import torch
import waterfill_bounds as wb

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

from semcom_fast import reference
from semcom_fast.triton import waterfill_inject
from semcom_fast.triton._launch import as_level

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes discarded lanes
QUIET = 2**31 - 1
DTYPES = [torch.float32, torch.float64]
# rows that share a program, whole and broken quads, halves that split a quad, several programs per row
SIZES = [(3, 64), (5, 12), (3, 10), (2, 1032), (1, 2), (2, 1030)]
DRAW = {"seed": -7, "step": 3, "first_item": 5}
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _check(c, got, dtype, drawn):
    low, own = wb.as_state(c.low, dtype), wb.full(c.d, c.f.shape[1])
    z, off = wb.normals(c, dtype, drawn)
    want = reference.waterfill_inject(wb.wide(c.f), own, low[:, 0], noise=z)
    wb.within(got, want, wb.injection(c, own, low, z, off, dtype), f"inject {tuple(got.shape)} {dtype}")
    copied = own >= low
    assert torch.equal(got.cpu()[copied], c.f.cpu()[copied]) and not copied.all()


@dtypes
@pytest.mark.parametrize("per", ["symbol", "real", "item"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_drawn(size, per, dtype, device):
    c = wb.make(*size, dtype, per=per, device=device)
    if per == "item":
        c.d[0] = 0.25  # below its item's level, so that something waits
    flag = torch.full((1,), QUIET, dtype=torch.int32, device=device)
    got = waterfill_inject.run(c.f, c.d, c.low, **DRAW, flag=flag)
    assert got.dtype == dtype and int(flag) == QUIET
    _check(c, got, dtype, DRAW)


@dtypes
@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_given_noise(size, dtype, device):
    c = wb.make(*size, dtype, device=device)
    _check(c, waterfill_inject.run(c.f, c.d, c.low, c.noise), dtype, {"noise": c.noise})


def test_levels_cells_and_strides_give_the_same_bits(device):
    c = wb.make(3, 24, device=device)
    plain = waterfill_inject.run(c.f, c.d, 0.3, **DRAW)
    levels = [torch.tensor(0.3, dtype=torch.float64), torch.full((3,), 0.3, dtype=torch.float64, device=device)]
    levels += [levels[1].repeat(2)[::2], as_level(0.3, device=device, batch=3)]
    for level in levels:
        assert torch.equal(plain, waterfill_inject.run(c.f, c.d, level, **DRAW))
    cells = {k: torch.tensor(v, device=device) for k, v in DRAW.items()}
    assert torch.equal(plain, waterfill_inject.run(c.f, c.d, 0.3, **cells))
    strided = (c.f.T.contiguous().T, c.d.T.contiguous().T)
    assert torch.equal(plain, waterfill_inject.run(*strided, 0.3, **DRAW))
    assert torch.equal(plain, waterfill_inject.run(c.f, torch.cat([c.d, c.d], 1), 0.3, **DRAW))
    one = c.d[:, :1]
    spread = waterfill_inject.run(c.f, one.repeat(1, 12), 0.3, **DRAW)
    for d in (one, one.expand(3, 12), one.expand(3, 24)):
        assert torch.equal(spread, waterfill_inject.run(c.f, d, 0.3, **DRAW))


@pytest.mark.parametrize("n", [64, 10, 1032])
def test_a_split_batch_gives_the_same_bits(n, device):
    c = wb.make(5, n, device=device)
    whole = waterfill_inject.run(c.f, c.d, c.low, seed=8, first_item=100)
    for begin, end in ((0, 2), (2, 5)):
        part = waterfill_inject.run(c.f[begin:end], c.d[begin:end], c.low[begin:end], seed=8, first_item=100 + begin)
        assert torch.equal(part, whole[begin:end])


def test_in_place_empty_and_no_draw(device):
    c = wb.make(3, 24, device=device)
    want = waterfill_inject.run(c.f, c.d, c.low, **DRAW)
    f = c.f.clone()
    assert waterfill_inject.run(f, c.d, c.low, **DRAW, out=f) is f and torch.equal(f, want)
    still = waterfill_inject.run(c.f, c.d, c.low)
    assert torch.equal(still, waterfill_inject.run(c.f, c.d, c.low, torch.zeros_like(f)))
    for b, n in ((0, 24), (3, 0)):
        assert waterfill_inject.run(f.new_empty(b, n), f.new_empty(b, n // 2), 0.3, seed=1).shape == (b, n)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
def test_flag_names_the_lowest_item(kind, device):
    c = wb.make(4, 24, device=device)
    flag = torch.full((1,), QUIET, dtype=kind, device=device)
    c.f[3, 5], c.d[2, 1] = math.inf, math.nan
    got = waterfill_inject.run(c.f, c.d, c.low, seed=1, first_item=50, flag=flag)
    assert int(flag) == 2 and bool(torch.isfinite(got[:2]).all())


def test_wrong_arguments(device):
    c = wb.make(2, 8, device=device)
    with pytest.raises(ValueError, match="even N"):
        waterfill_inject.run(c.f[:, :7], c.d, 0.3, seed=1)
    with pytest.raises(ValueError, match=r"d must be \[B,N/2\]"):
        waterfill_inject.run(c.f, c.d[:, :3], 0.3, seed=1)
    with pytest.raises(ValueError, match="d must be"):
        waterfill_inject.run(c.f, c.d.double(), 0.3, seed=1)
    with pytest.raises(ValueError, match="noise must be"):
        waterfill_inject.run(c.f, c.d, 0.3, c.noise[:1])
    with pytest.raises(TypeError, match="float32 or float64"):
        waterfill_inject.run(c.f.half(), c.d, 0.3, seed=1)
    with pytest.raises(TypeError, match="first_item must be"):
        waterfill_inject.run(c.f, c.d, 0.3, seed=1, first_item=torch.ones(2, device=device))
    with pytest.raises(ValueError, match="does not broadcast"):
        waterfill_inject.run(c.f, c.d, torch.ones(3, device=device), seed=1)
    with pytest.raises(ValueError, match="over the items only"):
        waterfill_inject.run(c.f, c.d, (c.low, 1, 0, 0), seed=1)
    with pytest.raises(ValueError, match="out must be contiguous"):
        waterfill_inject.run(c.f, c.d, 0.3, seed=1, out=c.f.double())
