"""The evidence terms against NumPy's double precision: tilings, draws, layouts, splits and flags."""

import pytest
import torch
import vb_cases as cases
from sf_testing import DTYPES, same_bits, within

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

from semcom_fast import reference
from semcom_fast.triton import elbo_reduce

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes discarded lanes
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# S, E, Nr, Nt, Np: the paper's, tau alone, odd rows, several row and column tiles, several pieces of a row
SIZES = [(3, 4, 16, 64, 38), (1, 2, 3, 4, 4), (4, 1, 3, 7, 5), (2, 2, 17, 33, 20), (2, 1, 20, 70, 75)]
QUIET = 2**31 - 1


def _operands(c, device):
    bar, w = c.table[c.steps], c.weights[c.steps]
    pilots = (c.yv, c.svd.u, c.svd.s)
    return [t.to(device) for t in (c.eps, c.h, torch.tensor(c.steps), bar, w, *pilots)]


@dtypes
@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "given"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values(size, drawn, dtype, device):
    c = cases.elbo_state(2, *size, dtype=dtype, shared=drawn)
    var = torch.tensor([0.3, 2.0], dtype=torch.float64)
    flag = torch.full((1,), QUIET, dtype=torch.int32, device=device)
    noise, off, given = c.noise, 0.0, {"noise": c.noise.to(device)}
    if drawn:
        given, off = {"seed": -7, "first_item": 5}, cases.NORMAL[dtype]
        like = {"seed": -7, "first_item": 5, "stream": 8, "dtype": torch.complex128}
        noise = torch.stack([reference.philox_normal(tuple(c.h.shape), step=t, **like) for t in c.steps], 1)
    at = len(c.steps) // 2
    L, D = elbo_reduce.run(*_operands(c, device), var.to(device), at, **given, flag=flag)
    want_l, want_d, bound_l, bound_d = cases.elbo_expected(c, var, at, noise, off)
    assert L.dtype == D.dtype == dtype.to_real() and int(flag) == QUIET
    label = f"{'drawn' if drawn else 'given'} {str(dtype)[6:]}"
    within(L.cpu(), want_l, bound_l, f"triton L {label}")
    within(D.cpu(), want_d, bound_d, f"triton D {label}")


@pytest.mark.parametrize("size", [(3, 2, 3, 6, 5), (2, 2, 5, 65, 20)], ids=str)
def test_splits_cells_layouts_and_out(size, device):
    c = cases.elbo_state(3, *size, dtype=torch.complex64)
    eps, h, steps, bar, w, yv, u, s = _operands(c, device)
    var = torch.tensor([0.3, 2.0, 1.0], dtype=torch.float64, device=device)
    want = elbo_reduce.run(eps, h, steps, bar, w, yv, u, s, var, 1, 9, 100)
    part = elbo_reduce.run(eps[1:], h[1:], steps, bar, w, yv[1:], u, s, var[1:], 1, 9, 101)
    by_expert = eps.permute(2, 1, 0, 3, 4).contiguous().permute(2, 1, 0, 3, 4)
    assert not by_expert.is_contiguous()
    cells = [torch.tensor(v, device=device) for v in (9, 100)]
    out = (torch.empty_like(want[0]), torch.empty_like(want[1]))
    lazy = (h.mT.contiguous().mT, steps, bar, w, yv.conj().resolve_conj().conj(), u, torch._neg_view(-s))
    again = elbo_reduce.run(by_expert, *lazy, var, 1, *cells, out=out)
    for i in range(2):
        assert again[i] is out[i]
        same_bits(out[i], want[i])
        same_bits(part[i], want[i][1:])
    assert elbo_reduce.run(eps[:0], h[:0], steps, bar, w, yv[:0], u, s, 0.1, 1, 9)[0].shape == (0, 2)


@pytest.mark.parametrize("wrong", ["eps", "h", "yv"])
def test_flag_names_the_lowest_item(wrong, device):
    c = cases.elbo_state(4, 2, 2, 3, 6, 5, dtype=torch.complex64)
    eps, h, steps, bar, w, yv, u, s = _operands(c, device)
    {"eps": eps[2:, 1, 1], "h": h[2:], "yv": yv[2:]}[wrong][..., 0, 0] = torch.nan
    flag = torch.full((1,), QUIET, dtype=torch.int64, device=device)
    L, D = elbo_reduce.run(eps, h, steps, bar, w, yv, u, s, 0.3, 0, 9, flag=flag)
    assert int(flag) == 2 and bool(torch.isfinite(L[:2] + D[:2]).all())


def test_wrong_arguments(device):
    c = cases.elbo_state(2, 2, 2, 3, 6, 5, dtype=torch.complex64)
    eps, h, steps, bar, w, yv, u, s = _operands(c, device)
    with pytest.raises(ValueError, match="need eps"):
        elbo_reduce.run(eps[:, 0], h, steps, bar, w, yv, u, s, 0.3, 0, 9)
    with pytest.raises(ValueError, match="tau_index must be one of the 2 steps"):
        elbo_reduce.run(eps, h, steps, bar, w, yv, u, s, 0.3, 2, 9)
    with pytest.raises(ValueError, match="either noise or seed"):
        elbo_reduce.run(eps, h, steps, bar, w, yv, u, s, 0.3, 0)
    with pytest.raises(ValueError, match=r"w must be torch.float64 \[2\]"):
        elbo_reduce.run(eps, h, steps, bar, w.float(), yv, u, s, 0.3, 0, 9)
    with pytest.raises(ValueError, match="yv must be"):
        elbo_reduce.run(eps, h, steps, bar, w, yv[:1], u, s, 0.3, 0, 9)
