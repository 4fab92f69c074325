"""How exact complex64 is: the table of condition numbers and regularisers, and the regime of the MU-MIMO link."""

import pytest
import torch
from rzf_cases import conditioned, textbook
from sf_testing import draw, wide, within

import semcom_fast as sf

# 99 % quantiles of the relative error of x, K = M = 4. alpha below 1e-3 of the mean diagonal is solved in float64:
# what is left is the rounding of the result.
SINGLE = {1e1: (3e-6, 3e-7), 1e2: (2e-5, 7e-7), 1e3: (3e-5, 1e-6), 3e3: (4e-5, 1e-6), 1e4: (5e-5, 1e-6)}
PRINTED = 1.5  # the figures have one digit: 1e-6 stands for anything below 1.5e-6


def _errors(got, want, dims=(-2, -1)):
    want, got = wide(want)[0], wide(got)[0]
    return (got - want).norm(dim=dims) / want.norm(dim=dims)


def _channels(cond):
    h = conditioned(4000, 4, 4, cond, seed=3).to(torch.complex64)
    return h, draw(4000, 4, 1, seed=4, dtype=torch.complex64)


def _quantile(x, h, s, alpha):
    return torch.quantile(_errors(x, textbook(h, s, alpha)), 0.99)


@pytest.mark.parametrize("form", ["K", "M"])
@pytest.mark.parametrize("cond", SINGLE)
def test_single_precision(cond, form):
    """alpha = 1e-2 and 1 in float32 arithmetic: the table, and what LAPACK's Cholesky makes of the same channels."""
    h, s = _channels(cond)
    for level, limit in zip((1e-2, 1.0), SINGLE[cond], strict=True):
        alpha = torch.tensor(level)  # rounded to float32 like everything else
        x, info = sf.rzf_precode(h, s, alpha, form=form, return_info=True)
        assert not info.any()
        got, label = _quantile(x, h, s, alpha), f"99 % error, cond {cond:g}, alpha {level:g}"
        within(got, torch.zeros(()), PRINTED * limit, label)
        gram = h @ h.mH + alpha * torch.eye(4)
        lapack = _quantile(h.mH @ torch.cholesky_solve(s, torch.linalg.cholesky(gram)), h, s, alpha)
        within(got, torch.zeros(()), 1.25 * lapack, f"{label}, against LAPACK")


@pytest.mark.parametrize("form", ["K", "M"])
@pytest.mark.parametrize("alpha", [0.0, 1e-6, 1e-4])
@pytest.mark.parametrize("cond", SINGLE)
def test_float64_inside(cond, alpha, form):
    """alpha = 0 and small: the half ulp of the rounded result, 4e-8, at every condition number."""
    h, s = _channels(cond)
    x, info = sf.rzf_precode(h, s, torch.tensor(alpha), form=form, return_info=True)
    assert not info.any()
    got = _quantile(x, h, s, torch.tensor(alpha))
    within(got, torch.zeros(()), 1.25 * 4e-8, f"99 % error, cond {cond:g}, float64 inside")


@pytest.mark.parametrize("k", [2, 4, 8, 16])
def test_at_the_switch(k):
    """alpha just above and below 1e-3 of the mean diagonal: at most 8e-4 above, rounding only below."""
    h = draw(2000, k, k, seed=5, dtype=torch.complex64)
    s = draw(2000, k, 1, seed=6, dtype=torch.complex64)
    mean = h.abs().square().sum((-2, -1)) / k
    for factor, limit in ((1.001e-3, 8e-4), (0.999e-3, 2 * 2.0**-24)):
        alpha = factor * mean
        errors = _errors(sf.rzf_precode(h, s, alpha), textbook(h, s, alpha))
        within(errors.max(), torch.zeros(()), limit, f"worst error at {factor:g} of the mean diagonal")


def test_regime_of_the_link():
    """alpha = 0.2..5 with unit-power 4x4 channels: x and the gradient of h within 7e-6, worst of 20,000."""
    h, s = draw(20_000, 4, 4, seed=7, dtype=torch.complex64), draw(20_000, 4, 1, seed=8, dtype=torch.complex64)
    g, alpha = draw(20_000, 4, 1, seed=9, dtype=torch.complex64), torch.linspace(0.2, 5, 20_000)
    grads, outs = [], []
    for operands in ((h, s, alpha, g), wide(h, s, alpha, g)):
        leaf = operands[0].clone().requires_grad_(True)
        outs.append(sf.rzf_precode(leaf, *operands[1:3]))
        grads.append(torch.autograd.grad(outs[-1], leaf, operands[3])[0])
    within(_errors(outs[0].detach(), outs[1].detach()).max(), torch.zeros(()), 7e-6, "x, alpha 0.2..5")
    within(_errors(*grads).max(), torch.zeros(()), 7e-6, "dh, alpha 0.2..5")


def test_gradient_of_alpha_shared_by_a_grid():
    """alpha's gradient per channel cancels; the sum over a grid is as exact as the terms it is made of."""
    h, s = draw(1, 2000, 4, 4, seed=10, dtype=torch.complex64), draw(1, 2000, 4, seed=11, dtype=torch.complex64)
    g, sums = draw(1, 2000, 4, seed=12, dtype=torch.complex64), []
    for operands in ((h, s, g), wide(h, s, g)):
        alpha = torch.full((1,), 0.5, dtype=operands[0].dtype.to_real()).requires_grad_(True)
        sums.append(torch.autograd.grad(sf.rzf_precode(*operands[:2], alpha), alpha, operands[2])[0])
    a = wide(h)[0] @ wide(h)[0].mH + 0.5 * torch.eye(4)
    size = (torch.linalg.solve(a, wide(h)[0] @ wide(g)[0].unsqueeze(-1)).norm(dim=-2)
            * torch.linalg.solve(a, wide(s)[0].unsqueeze(-1)).norm(dim=-2)).sum()  # fmt: skip
    within(sums[0], sums[1], 7e-6 * size, "alpha over a grid")
