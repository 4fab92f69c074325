"""Responsibilities and Dirichlet parameters against NumPy's double precision, far apart and near, small and large gamma."""

import numpy as np
import pytest
import torch
import vb_math as vb
from sf_testing import draw, same_bits, unit, within

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

from semcom_fast.triton import dirichlet_responsibilities

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes discarded lanes
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
QUIET = 2**31 - 1


def _terms(batch, experts, dtype, device):
    """L and D between nearly equal and thousands of nats apart; gamma0 and gamma from 1e-3 to 1e3."""
    spread = torch.logspace(-2, 3, batch, dtype=torch.float64)[:, None]
    bound, fit = (spread * draw(batch, experts, seed=i, dtype=torch.float64) - 2000 for i in (0, 1))
    gamma0, gamma = (10 ** draw(batch, experts, seed=i, dtype=torch.float64).clamp(-3, 3) for i in (2, 3))
    return [t.to(device, dtype) for t in (bound, fit, gamma0, gamma)]


@dtypes
@pytest.mark.parametrize("size", [(70, 4), (3, 1), (5, 7), (2, 300)], ids=str)
def test_values(size, dtype, device):
    terms = _terms(*size, dtype, device)
    flag = torch.full((1,), QUIET, dtype=torch.int32, device=device)
    rho, gamma = dirichlet_responsibilities.run(*terms, 0.7, flag=flag)
    wide = [t.cpu().double().numpy() for t in terms]
    want_rho, want_gamma = (torch.from_numpy(v) for v in vb.responsibilities(*wide[:3], wide[3], eta=0.7))
    # the exponent is formed in float64, a few roundings of its largest term, and the result rounded once
    size_of = np.abs(wide[0]) + 0.7 * np.abs(wide[1]) + np.abs(vb.digamma(wide[3])) + 10
    relative = unit(dtype) + 16 * 2.0**-53 * torch.from_numpy(size_of).amax(1, keepdim=True)
    within(rho.cpu(), want_rho, relative * want_rho + 1e-300 + (dtype == torch.float32) * 1e-45, f"triton rho {dtype}")
    within(gamma.cpu(), want_gamma, 2 * relative * want_gamma, f"triton gamma {dtype}")
    assert int(flag) == QUIET
    np.testing.assert_allclose(rho.cpu().double().sum(1), 1, atol=size[1] * unit(dtype))


def test_no_data_term_views_splits_and_out(device):
    bound, fit, gamma0, gamma = _terms(6, 3, torch.float32, device)
    rho, after = dirichlet_responsibilities.run(bound, fit, gamma0, gamma, 0.0)
    want = vb.responsibilities(*(t.cpu().double().numpy() for t in (bound, 0 * fit, gamma0, gamma)))
    within(rho.cpu(), torch.from_numpy(want[0]), 1e-7, "triton rho, eta = 0")
    views = (torch._neg_view(-bound), fit.T.contiguous().T, gamma0.expand(6, 3), gamma)
    same_bits(
        dirichlet_responsibilities.run(*views, 1.0)[0], dirichlet_responsibilities.run(bound, fit, gamma0, gamma)[0]
    )
    out = (torch.empty_like(rho), gamma.clone())
    got = dirichlet_responsibilities.run(bound, fit, gamma0, out[1], 1.0, out=out)
    assert got[0] is out[0] and got[1] is out[1]
    for a, b in zip(out, dirichlet_responsibilities.run(bound, fit, gamma0, gamma, 1.0), strict=True):
        same_bits(a, b)
    for a, b in zip(dirichlet_responsibilities.run(bound[4:], fit[4:], gamma0[4:], gamma[4:], 1.0), out, strict=True):
        same_bits(a, b[4:])
    assert dirichlet_responsibilities.run(bound[:0], fit[:0], gamma0[:0], gamma[:0])[1].shape == (0, 3)
    ones = torch.ones(2, 4, device=device)
    assert torch.equal(dirichlet_responsibilities.run(0 * ones, 0 * ones, ones, ones)[0], ones / 4)
    assert bool((after > gamma0).any())


@pytest.mark.parametrize("wrong", ["bound", "gamma", "all"])
def test_flag_names_the_lowest_row(wrong, device):
    bound, fit, gamma0, gamma = _terms(5, 3, torch.float64, device)
    if wrong == "gamma":
        gamma[2:, 1] = 0
    else:
        bound[2:, 1 if wrong == "bound" else slice(None)] = torch.nan if wrong == "bound" else -torch.inf
    flag = torch.full((1,), QUIET, dtype=torch.int64, device=device)
    rho, _ = dirichlet_responsibilities.run(bound, fit, gamma0, gamma, flag=flag)
    assert int(flag) == 2 and bool(torch.isfinite(rho[:2]).all())


def test_wrong_arguments(device):
    terms = _terms(5, 3, torch.float32, device)
    with pytest.raises(ValueError, match="gamma must be"):
        dirichlet_responsibilities.run(*terms[:3], terms[3][:2])
    with pytest.raises(ValueError, match=r"L must be \[B,E\]"):
        dirichlet_responsibilities.run(*(t[0] for t in terms))
