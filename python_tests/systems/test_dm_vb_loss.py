"""The best possible loss of a noise predictor, of any that sees a window only, and how the loss is measured."""

import pytest
import torch
from sf_testing import within

from semcom_fast.systems.dm_vb.loss import (
    best_loss,
    best_window_loss,
    by_range,
    complex_noise,
    linear_loss,
    measured_loss,
    noisy_planes,
)
from semcom_fast.systems.dm_vb.network import to_complex, to_planes

EYE = torch.eye(12, dtype=torch.float64)


def _channels(*shape, seed=1):
    return complex_noise(shape, torch.Generator().manual_seed(seed))


def _covariance(nr, nt, seed=0):
    draw = complex_noise((nr * nt, 5), torch.Generator().manual_seed(seed)).to(torch.complex128)
    return draw @ draw.mH / 5 + 0.01 * torch.eye(nr * nt).double()


def test_best_loss_is_that_of_the_conditional_mean():
    """Against the error covariance of the linear estimate of eps from h_t, formed without eigenvalues."""
    cov, levels = _covariance(3, 4), [0.99, 0.5, 0.01]
    for level, loss in zip(levels, best_loss(cov, levels), strict=True):
        gain = (1 - level) ** 0.5 * torch.linalg.inv(level * cov + (1 - level) * EYE)
        error = EYE - (1 - level) ** 0.5 * gain
        assert float(loss) == pytest.approx(float(error.diagonal().real.mean()), rel=1e-10)


def test_best_loss_is_reached_by_the_best_predictor_and_by_no_scaled_one():
    cov, levels = _covariance(3, 4), torch.tensor([0.9, 0.3], dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    h = (complex_noise((4_000, 12), random).to(torch.complex128) @ torch.linalg.cholesky(cov).mT).reshape(-1, 3, 4)

    def best(scale):
        def network(x, t):
            level = levels[t[0] - 1]
            y = to_complex(x.double()).flatten(1)
            eps = (1 - level) ** 0.5 * y @ torch.linalg.inv(level * cov + (1 - level) * EYE).mT
            return to_planes(scale * eps.reshape(-1, 3, 4))

        return measured_loss(network, h.to(torch.complex64), levels, draws=4_000)

    expected = best_loss(cov, levels)
    torch.testing.assert_close(best(1.0), expected, rtol=0.03, atol=0)
    assert (best(0.7) > expected * 1.05).all()
    torch.testing.assert_close(best(0.0), torch.ones(2, dtype=torch.float64), rtol=0.02, atol=0)


def test_linear_loss_is_that_of_the_linear_predictor():
    """Equal to the best loss on Gaussian channels of its own moments, and to a run of the predictor on others."""
    cov, levels = _covariance(3, 4), torch.tensor([0.9, 0.3], dtype=torch.float64)
    mean = _channels(12, seed=4).to(torch.complex128)
    vectors = torch.linalg.cholesky(cov) * 12**0.5
    exact = torch.cat([vectors.mT, -vectors.mT]) + mean  # these channels have exactly these moments
    torch.testing.assert_close(linear_loss(mean, cov, exact.reshape(-1, 3, 4), levels), best_loss(cov, levels))
    others = _channels(2_000, 3, 4, seed=6) * 1.7

    def predictor(x, t):
        level = levels[t[0] - 1]
        y = to_complex(x.double()).flatten(1) - level.sqrt() * mean
        eps = (1 - level).sqrt() * y @ torch.linalg.inv(level * cov + (1 - level) * EYE).mT
        return to_planes(eps.reshape(-1, 3, 4))

    run = measured_loss(predictor, others, levels, draws=4_000)
    torch.testing.assert_close(linear_loss(mean, cov, others, levels), run, rtol=0.03, atol=0)
    assert (run > best_loss(cov, levels) * 1.1).all()


def test_a_window_over_everything_is_the_best_loss_and_a_smaller_one_is_worse():
    cov, levels = _covariance(3, 4), [0.99, 0.5]
    whole = best_window_loss(cov, levels, (3, 4), (2, 3), entries=None)
    torch.testing.assert_close(whole, best_loss(cov, levels), rtol=1e-9, atol=0)
    one = best_window_loss(cov, levels, (3, 4), (0, 0), entries=None)
    power = cov.diagonal().real
    for level, loss in zip(levels, one, strict=True):
        want = (level * power / (level * power + 1 - level)).mean()
        assert float(loss) == pytest.approx(float(want), rel=1e-9)
    near = best_window_loss(cov, levels, (3, 4), (1, 1), entries=None)
    assert (near > whole * 1.0001).all() and (near < one).all()
    with pytest.raises(ValueError, match=r"cov must be \[12,12\]"):
        best_window_loss(cov[:4, :4], levels, (3, 4), (1, 1))


def test_noisy_planes_and_ranges():
    h, noise = _channels(2, 3, 4), _channels(2, 3, 4, seed=5)
    level = torch.tensor([1.0, 0.36], dtype=torch.float64)
    x = to_complex(noisy_planes(h, noise, level))
    within(x[0], h[0], 0.0, "no noise at abar = 1")
    within(x[1], 0.6 * h[1] + 0.8 * noise[1], 1e-6, "abar = 0.36")
    losses = torch.arange(1, 101, dtype=torch.float64)
    assert by_range(losses) == {"t 1..10": 5.5, "t 11..30": 20.5, "t 31..60": 45.5, "t 61..100": 80.5, "all t": 50.5}
    assert by_range(losses[:15])["t 11..15"] == 13.0
