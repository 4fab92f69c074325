"""Annealed Langevin dynamics: fixed point, stationary variance, annealing to the posterior mean, bad input."""

import math

import pytest
import torch
from sf_testing import draw

from semcom_fast.baselines.gaussian_mixture import GaussianEstimator
from semcom_fast.baselines.langevin import diffusion_score, langevin_channel
from semcom_fast.receivers.vb_moe_config import VBMoEConfig

NR, NT, SLOTS = 2, 6, 4


def _covariance(seed: int = 1) -> torch.Tensor:
    a = draw(NR * NT, NR * NT, seed=seed)
    return a @ a.mH / (NR * NT)


def _gaussian_score(cov: torch.Tensor):
    eye = torch.eye(len(cov), dtype=cov.dtype)

    def score(h: torch.Tensor, sigma: float) -> torch.Tensor:
        return -torch.linalg.solve(cov + sigma**2 * eye, h.flatten(1).mT).mT.reshape(h.shape)

    return score


def _kronecker(pilots: torch.Tensor) -> torch.Tensor:
    return torch.kron(torch.eye(NR, dtype=pilots.dtype), pilots.mT.contiguous())


def test_without_noise_it_rests_where_both_scores_cancel() -> None:
    """For a Gaussian prior the fixed point at one level solves a linear system; found here with the Kronecker product."""
    cov, p, noise_var, sigma = _covariance(), draw(NT, SLOTS, seed=2), 0.3, 0.5
    y = draw(3, NR, SLOTS, seed=3)
    got = langevin_channel(y, p, noise_var, _gaussian_score(cov), [sigma], rate=0.9, per_level=4000, temperature=0.0)
    a = _kronecker(p)
    seen = noise_var * torch.eye(NR * SLOTS, dtype=a.dtype) + sigma**2 * a @ a.mH
    precision = a.mH @ torch.linalg.solve(seen, a)
    prior = torch.linalg.inv(cov + sigma**2 * torch.eye(NR * NT, dtype=a.dtype))
    want = torch.linalg.solve(precision + prior, a.mH @ torch.linalg.solve(seen, y.flatten(1).mT)).mT
    torch.testing.assert_close(got, want.reshape(3, NR, NT), rtol=1e-9, atol=1e-10)
    each = langevin_channel(
        y, p.expand(3, NT, SLOTS), noise_var, _gaussian_score(cov), [sigma], rate=0.9, per_level=4000, temperature=0.0
    )
    torch.testing.assert_close(each, got, rtol=1e-9, atol=1e-10)


def test_injected_noise_has_the_stationary_variance() -> None:
    """Unseen entries are x <- (1 - a/v) x + sqrt(2 a tau) z, of variance 2 a tau/(1 - (1 - a/v)^2)."""
    p = torch.zeros(NT, 1, dtype=torch.complex128)
    p[0] = 1.0
    var, sigma, rate, temperature = 2.0, 1.0, 0.3, 0.7
    h = langevin_channel(
        draw(4000, NR, 1), p, 1.0, lambda h, sigma: -h / (var + sigma**2), [sigma], rate=rate, per_level=150,
        temperature=temperature, seed=3,
    )  # fmt: skip
    shrink = 1 - rate * sigma**2 / (var + sigma**2)
    want = 2 * rate * sigma**2 * temperature / (1 - shrink**2)
    unseen = h[:, :, 1:]
    assert float(unseen.abs().square().mean()) == pytest.approx(want, rel=4 / math.sqrt(unseen.numel()))
    assert float(unseen.mean().abs()) < 4 * math.sqrt(want / unseen.numel())


def test_annealing_reaches_the_posterior_mean() -> None:
    """With an exact diffusion expert of a Gaussian channel, cold dynamics end at LMMSE."""
    cov, p, noise_var = _covariance(), draw(NT, SLOTS, seed=2).sgn(), 0.2
    h = (draw(40, NR * NT, seed=4) @ torch.linalg.cholesky(cov).mT).reshape(40, NR, NT)
    y = h @ p + noise_var**0.5 * draw(40, NR, SLOTS, seed=5)
    alpha_bar = VBMoEConfig().tables().alpha_bar
    eye = torch.eye(NR * NT, dtype=torch.complex128)
    inverse = [torch.linalg.inv(float(a) * cov + (1 - float(a)) * eye).mT for a in alpha_bar]

    def expert(h_t: torch.Tensor, t: int) -> torch.Tensor:
        return (1 - float(alpha_bar[t])) ** 0.5 * (h_t.flatten(1) @ inverse[t]).reshape(h_t.shape)

    score, levels = diffusion_score(expert, alpha_bar.tolist())
    assert len(levels) == 100 and levels[0] > 13 and levels[-1] == pytest.approx(0.01, rel=1e-3)
    probe = draw(2, NR, NT, seed=6)
    torch.testing.assert_close(score(probe, levels[40]), _gaussian_score(cov)(probe, levels[40]), rtol=1e-9, atol=1e-10)
    mean = GaussianEstimator(torch.zeros(NR * NT), cov)(y, p, noise_var)
    got = langevin_channel(y, p, noise_var, score, levels, rate=0.5, per_level=6, temperature=0.0)
    slow = langevin_channel(y, p, noise_var, score, levels, rate=0.5, per_level=40, temperature=0.0)
    lag = [float((estimate - mean).norm() / mean.norm()) for estimate in (got, slow)]
    assert lag[1] < 0.5 * lag[0] < 0.1, "the lag behind the falling level shrinks with the steps taken"

    def error(estimate: torch.Tensor) -> float:
        return float((estimate - h).abs().square().mean())

    hot = langevin_channel(y, p, noise_var, score, levels, rate=0.1, per_level=20, temperature=1.0, seed=1)
    assert error(got) < 1.02 * error(mean)
    assert 1.8 < error(hot) / error(mean) < 2.2, "a sample of the posterior errs twice as much as its mean"


def test_channels_do_not_meet() -> None:
    p, y, score = draw(NT, SLOTS, seed=2), draw(4, NR, SLOTS), _gaussian_score(_covariance())
    whole = langevin_channel(y, p, 0.5, score, [2.0, 1.0], seed=9)
    part = langevin_channel(y[2:], p, 0.5, score, [2.0, 1.0], seed=9, first_item=2)
    torch.testing.assert_close(whole[2:], part, rtol=1e-10, atol=1e-11)
    assert not torch.allclose(whole, langevin_channel(y, p, 0.5, score, [2.0, 1.0], seed=8), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0.0}, "0 < rate < 1"),
        ({"rate": 1.0}, "0 < rate < 1"),
        ({"per_level": 0}, "per_level >= 1"),
        ({"temperature": -1.0}, "temperature >= 0"),
        ({"noise_var": 0.0}, "noise_var > 0"),
        ({"levels": []}, "at least one"),
        ({"levels": [1.0, 0.0]}, "must be positive"),
    ],
)
def test_arguments(changes, message: str) -> None:
    call = {"noise_var": 1.0, "levels": [1.0], **changes}
    with pytest.raises(ValueError, match=message):
        langevin_channel(draw(2, NR, SLOTS), draw(NT, SLOTS), score=lambda h, sigma: -h, **call)
