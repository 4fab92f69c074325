"""Channels have the stated covariances, draws do not depend on how a batch is split, and noise adds to the signal."""

import math

import pytest
import torch
from sf_testing import draw, same_bits

from semcom_fast.links import channel_nmse, draw_channel, psnr, to_db, transmit
from semcom_fast.ops import philox_normal
from semcom_fast.reference import blockdiag_apply


def _exponential(n: int, rho: complex) -> torch.Tensor:
    """Hermitian correlation rho^(i-j)."""
    i = torch.arange(n)
    lag = i[:, None] - i[None, :]
    base = torch.tensor(rho, dtype=torch.complex128)
    power = base ** lag.abs()
    return torch.where(lag >= 0, power, power.conj())


def test_rayleigh_entries_have_the_asked_variance():
    h = draw_channel(2000, 2, 4, 4, 2, seed=5, var=3.0)
    assert h.shape == (2000, 2, 4, 4, 2) and h.dtype is torch.complex64
    count = h.numel()
    assert float(h.abs().double().square().mean()) == pytest.approx(3.0, rel=5 / math.sqrt(count))
    assert abs(complex((h * h).to(torch.complex128).mean())) < 5 * 3.0 * math.sqrt(2 / count)  # circular


def test_kronecker_covariances():
    rx, tx = _exponential(3, 0.7 * 1j), _exponential(2, 0.5 + 0.2j)
    h = draw_channel(20_000, 1, 2, 3, 2, seed=6, cov_rx=rx, cov_tx=tx, dtype=torch.complex128)
    flat = h.reshape(-1, 3, 2)
    tolerance = 6 / math.sqrt(len(flat))
    measured_rx = torch.einsum("nij,nkj->ik", flat, flat.conj()) / len(flat) / 2  # tr(cov_tx) = 2
    measured_tx = torch.einsum("nij,nil->jl", flat, flat.conj()) / len(flat) / 3
    assert (measured_rx - rx).abs().max() < tolerance
    assert (measured_tx - tx).abs().max() < tolerance
    assert (measured_tx - tx.conj()).abs().max() > 0.1  # so that a transposed convention would fail


@pytest.mark.parametrize("cov", [torch.ones(2, 3), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), -torch.eye(2)])
def test_bad_covariances_are_named(cov):
    with pytest.raises(ValueError, match="covariance must"):
        draw_channel(1, 1, 1, 2, 1, seed=0, cov_rx=cov)


def test_a_split_batch_changes_nothing():
    h = draw_channel(7, 2, 3, 4, 2, seed=9)
    x = philox_normal((7, 2, 3, 2, 5), seed=8, dtype=torch.complex64)
    y = transmit(h, x, 0.3, seed=9)
    part = draw_channel(4, 2, 3, 4, 2, seed=9, first_item=3)
    same_bits(part, h[3:], "channel")
    same_bits(transmit(part, x[3:], 0.3, seed=9, first_item=3), y[3:], "received")


def test_channel_and_noise_of_one_seed_are_independent():
    h = draw_channel(50_000, 1, 1, 1, 1, seed=2)
    y = transmit(h, torch.zeros(50_000, 1, 1, 1, 1, dtype=torch.complex64), 1.0, seed=2)
    assert abs(complex((h.flatten().conj() * y.flatten()).mean())) < 5 / math.sqrt(50_000)


def test_noise_variance_may_differ_between_items():
    h = torch.zeros(2, 1, 50, 4, 1, dtype=torch.complex128)
    y = transmit(h, torch.zeros(2, 1, 50, 1, 50, dtype=torch.complex128), torch.tensor([0.1, 10.0]), seed=1)
    energy = y.abs().square().mean((1, 2, 3))
    torch.testing.assert_close(energy, torch.tensor([0.1, 10.0]).double(), rtol=5 / math.sqrt(10_000), atol=0)


def test_signal_passes_unchanged_without_noise():
    h = draw_channel(3, 2, 3, 4, 2, seed=1, dtype=torch.complex128)
    x = philox_normal((3, 2, 3, 2, 5), seed=2, dtype=torch.complex128)
    torch.testing.assert_close(transmit(h, x, 0.0, seed=1), blockdiag_apply(h, x), rtol=1e-13, atol=1e-13)


def test_nmse_is_the_mean_ratio_over_users():
    h = torch.ones(1, 2, 1, 1, 2, dtype=torch.complex128)
    h[0, 1] *= 10
    estimate = h.clone()
    estimate[0, 0] += 1j  # error 1 relative to |1|^2
    torch.testing.assert_close(channel_nmse(h, estimate), torch.tensor([0.5], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"need two channels"):
        channel_nmse(h, estimate[:, :1])


def test_psnr_and_decibels():
    image = torch.zeros(1, 64)
    assert float(psnr(image, image + 0.2)[0]) == pytest.approx(20.0, abs=1e-4)  # peak-to-peak 2, error 0.2
    assert float(psnr(image + 1, image + 5)[0]) == math.inf  # clamped to the scale
    assert to_db(0.1) == pytest.approx(-10) and float(to_db(torch.tensor(100.0))) == pytest.approx(20)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), torch.tensor([0.1, -0.1])])
def test_variances_that_are_none(value):
    """Refused by name, where a root of them would be NaN or imaginary."""
    h, x = draw(2, 1, 3, 4, 2), draw(2, 1, 3, 2, 5)
    with pytest.raises(ValueError, match="transmit: noise_var must be finite and >= 0"):
        transmit(h, x, value, 1)
    if not isinstance(value, torch.Tensor):
        with pytest.raises(ValueError, match="draw_channel: var must be finite and >= 0"):
            draw_channel(2, 1, 3, 4, 2, seed=1, var=value)


def test_transmit_under_transforms():
    h, x, noise = draw(2, 3, 1, 3, 4, 2), draw(2, 3, 1, 3, 2, 5), torch.tensor([[0.1, 0.2, 0.3]] * 2).double()
    got = torch.func.vmap(lambda h, x, v: transmit(h, x, v, 1))(h, x, noise)
    for i in range(2):
        same_bits(got[i], transmit(h[i], x[i], noise[i], 1))
