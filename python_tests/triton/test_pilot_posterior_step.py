"""The posterior step against NumPy's double precision: tiles, levels, layouts, in place, flags and the captured entry."""

import pytest
import torch
import vb_cases as cases
import vb_math as vb
from sf_testing import DTYPES, draw, same_bits, within

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

from semcom_fast.triton import pilot_posterior_step

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes discarded lanes
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
liks = pytest.mark.parametrize("lik", ["dmps", "x0"])
LEVELS = {"noise_var": 0.3, "alpha_bar": 0.42, "beta": 0.05, "lam": 1.3}
# Nr, Nt, Np: the paper's, one entry, odd rows, several row tiles, several column tiles, more pilots than antennas
SIZES = [(16, 64, 38), (1, 1, 1), (3, 7, 5), (20, 12, 17), (5, 70, 20), (2, 4, 9), (17, 33, 33)]
QUIET = 2**31 - 1


def _operands(c, device):
    return [t.to(device) for t in (c.h, c.eps, c.w, c.yv, c.svd.u, c.svd.s)]


def _run(c, device, noise_var, alpha_bar, beta, lam=1.0, lik="dmps", **more):
    levels = [v.to(device) if isinstance(v, torch.Tensor) else v for v in (noise_var, alpha_bar, beta, lam)]
    return pilot_posterior_step.run(*_operands(c, device), *levels, lik == "x0", **more)


@dtypes
@liks
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size, lik, dtype, device):
    shared = lik == "dmps"
    c = cases.state(2, *size, 1 if shared else 4, dtype=dtype, shared=shared)
    flag = torch.full((1,), QUIET, dtype=torch.int32, device=device)
    got = _run(c, device, **LEVELS, lik=lik, flag=flag)
    assert got.dtype == dtype and got.is_contiguous() and int(flag) == QUIET
    within(got.cpu(), *cases.expected(c, **LEVELS, lik=lik), f"triton step {size} {str(dtype)[6:]}")


@liks
def test_levels(lik, device):
    """Numbers, 0-d and [B] tensors, float32 tensors and level tuples; one value per channel."""
    c = cases.state(3, 4, 6, 5, 2, dtype=torch.complex64)
    rows = {
        "noise_var": [0.3, 1e-3, 40.0],
        "alpha_bar": [0.9, 0.42, 0.006],
        "beta": [1e-4, 0.05, 0.1],
        "lam": [1, 2, 4.0],
    }
    full = {k: torch.tensor(v, dtype=torch.float64) for k, v in rows.items()}
    within(_run(c, device, **full, lik=lik).cpu(), *cases.expected(c, **full, lik=lik), "triton step, levels")
    number = _run(c, device, **LEVELS, lik=lik)
    cells = {k: torch.tensor(v, dtype=torch.float64) for k, v in LEVELS.items()}
    same_bits(number, _run(c, device, **cells, lik=lik))
    wide = {k: torch.full((3, 2), v, dtype=torch.float64, device=device)[:, 0] for k, v in LEVELS.items()}
    same_bits(number, _run(c, device, **wide, lik=lik))
    tuples = {k: (v, 0, v.stride(0), 0) for k, v in wide.items()}
    same_bits(number, _run(c, device, **tuples, lik=lik))


def test_leading_dimensions(device):
    """[A,B,...] with levels over [A], [A,B] and a level tuple over both; pilots shared, per item and broadcast."""
    c = cases.state(6, 3, 4, 3, 2, dtype=torch.complex64, shared=False)
    h, eps, w, yv, u, s = (t.reshape(2, 3, *t.shape[1:]) for t in _operands(c, device))
    var, bar = torch.tensor([0.5, 0.1]), torch.rand(2, 3, dtype=torch.float64) * 0.5 + 0.2
    got = pilot_posterior_step.run(h, eps, w, yv, u, s, var.to(device), bar.to(device), 0.05, 2.0)
    levels = {"noise_var": var.double().repeat_interleave(3), "alpha_bar": bar.flatten(), "beta": 0.05, "lam": 2.0}
    within(got.flatten(0, 1).cpu(), *cases.expected(c, **levels), "triton step, [A,B]")
    cell = bar.to(device)
    again = pilot_posterior_step.run(h, eps, w, yv, u, s, (var.to(device), 0, 1, 0), (cell, 0, 3, 1), 0.05, 2.0)
    same_bits(got, again)
    one = [t[0, 0] for t in (h, eps, w, yv, u, s)]
    same_bits(pilot_posterior_step.run(*one, 0.5, float(bar[0, 0]), 0.05, 2.0), got[0, 0])


@dtypes
def test_layouts_and_in_place(dtype, device):
    """Experts stacked in any order, lazy views, an output that is the state: the same bits."""
    for size in ((17, 12, 9), (5, 70, 20)):
        c = cases.state(2, *size, 2, dtype=dtype)
        h, eps, w, yv, u, s = _operands(c, device)
        want = pilot_posterior_step.run(h, eps, w, yv, u, s, 0.3, 0.4, 0.05, 1.3, True)
        stacked = eps.transpose(0, 1).contiguous().transpose(0, 1)
        assert not stacked.is_contiguous()
        lazy = (
            h.mT.contiguous().mT,
            stacked,
            torch._neg_view(-w),
            yv.conj().resolve_conj().conj(),
            u,
            torch._neg_view(-s),
        )
        same_bits(want, pilot_posterior_step.run(*lazy, 0.3, 0.4, 0.05, 1.3, True))
        state = h.clone()
        got = pilot_posterior_step.run(state, eps, w, yv, u, s, 0.3, 0.4, 0.05, 1.3, True, out=state)
        assert got is state
        same_bits(want, state)


def test_a_split_batch_gives_the_same_bits(device):
    c = cases.state(3, 16, 64, 38, 2, dtype=torch.complex64)
    h, eps, w, yv, u, s = _operands(c, device)
    want = pilot_posterior_step.run(h, eps, w, yv, u, s, 0.3, 0.4, 0.05)
    for part in (slice(0, 1), slice(1, 3)):
        same_bits(pilot_posterior_step.run(h[part], eps[part], w[part], yv[part], u, s, 0.3, 0.4, 0.05), want[part])
    assert pilot_posterior_step.run(h[:0], eps[:0], w[:0], yv[:0], u, s, 0.3, 0.4, 0.05).shape == (0, 16, 64)


def test_zero_singular_values(device):
    """Pilot rows of zeros leave s = 0: their directions get no pull, and nothing becomes NaN."""
    c = cases.state(2, 4, 6, 6, 2, dtype=torch.complex64)
    c.svd = c.svd._replace(s=torch.cat([c.svd.s[:4], torch.zeros(2)]))
    within(_run(c, device, **LEVELS).cpu(), *cases.expected(c, **LEVELS), "triton step, s = 0")


@pytest.mark.parametrize("wrong", ["h", "eps", "weights", "yv"])
def test_flag_names_the_lowest_item(wrong, device):
    c = cases.state(4, 5, 7, 4, 2, dtype=torch.complex64)
    tensors = dict(zip(("h", "eps", "weights", "yv", "u", "s"), _operands(c, device), strict=True))
    tensors[wrong][2:].view(2, -1)[:, 0] = torch.nan
    flag = torch.full((1,), QUIET, dtype=torch.int64, device=device)
    got = pilot_posterior_step.run(*tensors.values(), 0.3, 0.4, 0.05, flag=flag)
    assert int(flag) == 2 and bool(torch.isfinite(torch.view_as_real(got[:2])).all())


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("size", [(5, 70, 20), (3, 7, 5)], ids=str)
def test_captured_entry_walks_down_the_tables(size, per_channel, device):
    """T table steps are T plain steps bit for bit; past the end nothing changes; tables may vary by channel."""
    steps = 3
    c = cases.state(2, *size, 2, dtype=torch.complex64)
    h, eps, w, yv, u, s = _operands(c, device)
    beta, bar = (torch.from_numpy(t[[90, 60, 20]]).to(device) for t in vb.schedule(100))
    if per_channel:
        bar = bar[:, None] * torch.tensor([1.0, 0.5], dtype=torch.float64, device=device)
    var = torch.tensor([0.3, 2.0], dtype=torch.float64, device=device)
    counter = torch.zeros(2, dtype=torch.int64, device=device)
    plain, state = h.clone(), h.clone()
    for k in range(steps):
        plain = pilot_posterior_step.run(plain, eps + k, w, yv, u, s, var, bar[k], beta[k], 1.5, per_channel)
        got = pilot_posterior_step.run_table(state, eps + k, w, yv, u, s, var, bar, beta, counter, 1.5, per_channel)
        assert got is state and counter.tolist() == [k + 1, 0]
        same_bits(state, plain)
    pilot_posterior_step.run_table(state, eps * torch.nan, w, yv, u, s, var, bar, beta, counter, 1.5, per_channel)
    same_bits(state, plain)


def test_wrong_arguments(device):
    c = cases.state(2, 3, 4, 3, 2, dtype=torch.complex64)
    h, eps, w, yv, u, s = _operands(c, device)
    levels = (0.3, 0.4, 0.05)
    bars, counter = torch.ones(3, dtype=torch.float64, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match=r"weights must be torch\.float32"):
        pilot_posterior_step.run(h, eps, w[:, :1], yv, u, s, *levels)
    with pytest.raises(ValueError, match="yv must be"):
        pilot_posterior_step.run(h, eps, w, yv[..., :1], u, s, *levels)
    with pytest.raises(ValueError, match="u must be"):
        pilot_posterior_step.run(h, eps, w, yv, u[:3], s, *levels)
    with pytest.raises(ValueError, match=r"s must be torch\.float32"):
        pilot_posterior_step.run(h, eps, w, yv, u, s.double(), *levels)
    with pytest.raises(ValueError, match="does not broadcast"):
        pilot_posterior_step.run(h, eps, w, yv, u, s, torch.ones(3, device=device), *levels[1:])
    with pytest.raises(ValueError, match="out must be contiguous"):
        pilot_posterior_step.run(h, eps, w, yv, u, s, *levels, out=draw(2, 4, 3, dtype=h.dtype).to(device).mT)
    with pytest.raises(TypeError, match=r"counter must be int64 \[2\]"):
        pilot_posterior_step.run_table(h, eps, w, yv, u, s, 0.3, bars, bars, counter[:1])
    with pytest.raises(ValueError, match="beta must be"):
        pilot_posterior_step.run_table(h, eps, w, yv, u, s, 0.3, bars, bars[:2], counter)
    with pytest.raises(ValueError, match="out must be contiguous"):
        pilot_posterior_step.run_table(h.mT.contiguous().mT, eps, w, yv, u, s, 0.3, bars, bars, counter)
