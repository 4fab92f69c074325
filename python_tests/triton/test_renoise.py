"""The forward diffusion of an estimate against double precision: row tilings, given and drawn noise, splits, flags."""

import pytest
import torch
import vb_math as vb
from sf_testing import DTYPES, draw, same_bits, unit, within
from vb_cases import NORMAL

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

from semcom_fast import reference
from semcom_fast.triton import renoise

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes discarded lanes
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
STEPS = (30, 70, 100)
QUIET = 2**31 - 1


def _tables(device):
    return torch.tensor(STEPS, device=device), torch.from_numpy(vb.schedule(100)[1][list(STEPS)]).to(device)


def _bound(h, bar, noise, off):
    """Coefficient, product and sum round once each; a complex draw is scaled by sqrt(1/2), one rounding more."""
    wide = 2 if h.dtype is torch.complex128 else 1
    keep, add = bar.sqrt()[:, None, None], (1 - bar).sqrt()[:, None, None]
    return wide * 4 * unit(h) * (keep * h[:, None].abs() + add * noise.abs()) + add * off


@dtypes
@pytest.mark.parametrize("size", [(3, 16, 64), (2, 3, 7), (5, 1, 2), (2, 9, 65), (1, 2, 4100)], ids=str)
def test_values(size, dtype, device):
    h = draw(*size, dtype=dtype)
    steps, bar = _tables(device)
    shape = (size[0], len(STEPS), *size[1:])
    flag = torch.full((1,), QUIET, dtype=torch.int32, device=device)
    for noise in (None, draw(*shape, seed=1, dtype=dtype)):
        given = {"seed": -7, "first_item": 5} if noise is None else {"noise": noise.to(device)}
        got = renoise.run(h.to(device), steps, bar, **given, flag=flag)
        z = noise
        if z is None:
            like = {"seed": -7, "stream": 8, "first_item": 5, "dtype": torch.complex128}
            z = torch.stack([reference.philox_normal(size, step=t, **like) for t in STEPS], 1)
        want = reference.renoise(h.to(torch.complex128), STEPS, bar.cpu(), noise=z.to(torch.complex128))
        assert got.dtype == dtype and got.is_contiguous() and int(flag) == QUIET
        bound = _bound(h, bar.cpu(), z, 0.0 if noise is not None else NORMAL[dtype])
        within(got.cpu(), want, bound, f"triton renoise {'drawn' if noise is None else 'given'} {str(dtype)[6:]}")


def test_splits_cells_layouts_and_out(device):
    h = draw(4, 3, 6, dtype=torch.complex64).to(device)
    steps, bar = _tables(device)
    want = renoise.run(h, steps, bar, 3, 100)
    same_bits(renoise.run(h[1:], steps, bar, 3, 101), want[1:])
    cells = [torch.tensor(v, device=device) for v in (3, 100)]
    out = torch.empty_like(want)
    assert renoise.run(h.mT.contiguous().mT.conj().resolve_conj().conj(), steps, bar, *cells, out=out) is out
    same_bits(out, want)
    same_bits(renoise.run(h, steps[1:], bar[1:], 3, 100), want[:, 1:])  # a draw belongs to its step, not to its place
    assert renoise.run(h[:0], steps, bar, 3).shape == (0, 3, 3, 6)
    assert renoise.run(h, steps[:0], bar[:0], 3).shape == (4, 0, 3, 6)


def test_flag_names_the_lowest_item(device):
    h = draw(4, 3, 6, dtype=torch.complex64).to(device)
    h[2, 1, 1] = torch.inf
    flag = torch.full((1,), QUIET, dtype=torch.int64, device=device)
    renoise.run(h, *_tables(device), 3, 50, flag=flag)
    assert int(flag) == 2


def test_wrong_arguments(device):
    h = draw(2, 3, 4, dtype=torch.complex64).to(device)
    steps, bar = _tables(device)
    with pytest.raises(ValueError, match=r"alpha_bar must be torch.float64 \[3\]"):
        renoise.run(h, steps, bar[:2], 1)
    with pytest.raises(ValueError, match="either noise or seed"):
        renoise.run(h, steps, bar)
    with pytest.raises(ValueError, match="noise must be"):
        renoise.run(h, steps, bar, noise=h[:, None])
    with pytest.raises(TypeError, match="must be complex"):
        renoise.run(h.real, steps, bar, 1)
