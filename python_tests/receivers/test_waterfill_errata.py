"""The printed forms of (18), line 11 and line 5 of Algorithm 3, shown failing beside the corrected ones."""

import itertools
import math

import numpy as np
import pytest
import torch
import waterfill_cases as cases
from sf_testing import draw, within

import semcom_fast as sf


def _true_source(b=3, n=4000):
    f0, noise = draw(b, n, seed=1, dtype=torch.float64).numpy(), draw(b, n, seed=2, dtype=torch.float64).numpy()
    return f0, noise


def test_printed_update_keeps_the_noise():
    """(18) with sqrt(beta_s) in its first term misses sqrt(1-beta_s) f0 + sqrt(beta_s) n even with the true f0."""
    f0, n = _true_source()
    t, s = 0.5, 0.2
    g = math.sqrt(1 - t) * f0 + math.sqrt(t) * n
    want = math.sqrt(1 - s) * f0 + math.sqrt(s) * n
    a = math.sqrt(s / t)
    printed = a * g + (math.sqrt(s) - a * math.sqrt(1 - t)) * f0
    assert np.abs(printed - want).max() > 0.5
    args = [torch.from_numpy(v) for v in (g, f0, g, np.full((3, 2000), t))]
    ours = sf.waterfill_step(*args, t, s, noise=torch.zeros(3, 4000).double())
    within(ours, torch.from_numpy(want), 1e-14 * 4, "(18) as corrected")


def test_printed_mask_never_moves():
    """Line 11 with b >= sqrt(beta_s): at equal d nothing is ever active while sqrt(beta_s) > d, then (23) has 1-r < 0."""
    d, table = 0.4, cases.span_levels(0.4, 20)[:, 0]
    moved = [d >= math.sqrt(s) for s in table[1:]]
    first = moved.index(True)
    assert first > 5
    missing = (table[first] - d) / (1 - d)  # of an element that still has b = d at level beta_t < d
    assert missing < 0
    ours = [min(d, t) >= s for t, s in itertools.pairwise(table)]
    assert all(ours)
    f = draw(1, 8, seed=1, dtype=torch.float64)
    levels = []
    loop = sf.WaterfillDDIM(lambda g, b: (levels.append(float(b)), 0 * g)[1], sf.WaterfillConfig(steps=20))
    loop.run(f, torch.full((1, 4), d, dtype=torch.float64), seed=1)
    assert levels[0] == d and np.allclose(levels, table[:-1], rtol=1e-14)


def test_printed_step_rule_passes_below_zero():
    """Line 5 with s = t - 1/T ends below t = 0 for beta = 0.8, T = 20, where S is negative; both of our rules end at 0."""
    m = float(cases.schedule_time(0.8))
    ends = m - math.ceil(m * 20) / 20
    assert ends == pytest.approx(-0.014, abs=1e-3) and float(cases.schedule(ends)) < 0
    for rule in ("span", "fixed"):
        levels = sf.WaterfillConfig(steps=20, step_rule=rule).tables(np.array([0.8])).levels
        assert levels.min() == levels[-1, 0] == 0
