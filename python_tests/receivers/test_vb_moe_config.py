"""Options, presets and schedules of VBMoE."""

import numpy as np
import pytest

import semcom_fast as sf


def test_defaults_and_presets():
    c = sf.VBMoEConfig()
    assert c == sf.VBMoEConfig.preset("recommended")
    assert c.elbo_steps == tuple(range(30, 101, 10)) and c.tau_step == 30 and c.steps == 100
    assert (c.lik, c.init, c.iterations, c.prune, c.eta, c.gamma0) == ("auto", "per_expert", 5, 1e-3, 1.0, 1.0)
    paper = sf.VBMoEConfig.preset("paper", iterations=3)
    assert (paper.lik, paper.init, paper.iterations) == ("dmps", "uniform", 3)
    assert sf.VBMoEConfig(steps=10).elbo_steps == tuple(range(3, 11))
    assert sf.VBMoEConfig(elbo_steps=[90, 40], tau=90).tau_step == 90
    with pytest.raises(ValueError, match="unknown preset 'other'; choose one of recommended, paper"):
        sf.VBMoEConfig.preset("other")


def test_tables_are_those_of_the_published_schedule():
    beta, alpha_bar, w = sf.VBMoEConfig().tables()
    assert beta.shape == alpha_bar.shape == w.shape == (101,) and beta.dtype == np.float64
    assert beta[0] == 0 and alpha_bar[0] == 1 and beta[1] == 1 / 10001 and beta[100] == 0.1
    snr = alpha_bar[1:] / (1 - alpha_bar[1:])
    np.testing.assert_allclose(w[2:], snr[:-1] / snr[1:] - 1, rtol=1e-9)
    assert w[0] == 0 and w[1] == pytest.approx(10001 / 10000)
    assert [round(float(w[t]), 3) for t in (2, 30, 50, 100)] == [11.104, 0.089, 0.074, 0.112]
    assert alpha_bar[100] == pytest.approx(5.6e-3, rel=0.02)


def test_likelihood_rules():
    c = sf.VBMoEConfig()
    assert [c.likelihood_scale(snr) for snr in (-20, 0, 10, 20, 40)] == [1, 1, 2, 4, 4]
    assert [c.residual_at_x0(snr) for snr in (-0.1, 0.0, 30)] == [False, True, True]
    assert sf.VBMoEConfig(lam=1.75).likelihood_scale(30) == 1.75
    assert sf.VBMoEConfig(lam=lambda snr: snr / 2).likelihood_scale(30) == 15
    assert not sf.VBMoEConfig(lik="dmps").residual_at_x0(30) and sf.VBMoEConfig(lik="x0").residual_at_x0(-30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lik": "x1"}, "lik must be 'auto' or 'x0' or 'dmps', got 'x1'"),
        ({"init": "random"}, "init must be 'per_expert' or 'uniform'"),
        ({"start": "one"}, "start must be 'noise' or 'zero'"),
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"iterations": 2.0}, "iterations must be an integer >= 1, got 2.0"),
        ({"beta_min": 0.2}, "need 0 < beta_min <= beta_max < 1"),
        ({"elbo_steps": (0, 10)}, r"elbo_steps must be different integers in 1..100, got \(0, 10\)"),
        ({"elbo_steps": (10, 10)}, "elbo_steps must be different"),
        ({"elbo_steps": (101,)}, "elbo_steps must be different integers in 1..100"),
        ({"elbo_steps": ()}, "elbo_steps must be different"),
        ({"elbo_steps": (10.5,)}, "elbo_steps must be different integers"),
        ({"tau": 31}, "tau must be one of elbo_steps"),
        ({"eta": -1.0}, "eta must not be negative"),
        ({"tolerance": float("nan")}, "tolerance must not be negative"),
        ({"prune": 1.0}, r"prune must lie in \[0, 1\)"),
        ({"lam": "best"}, "lam must be 'snr', a number >= 0 or a callable"),
        ({"lam": -1.0}, "lam must be 'snr', a number >= 0"),
        ({"gamma0": 0.0}, "gamma0 must be positive"),
        ({"gamma0": (1.0, -1.0)}, "gamma0 must be positive"),
    ],
)
def test_options_that_mean_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        sf.VBMoEConfig(**options)
