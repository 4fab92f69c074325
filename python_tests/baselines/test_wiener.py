"""The linear Wiener denoiser: closed forms, optimality on Gaussian vectors, equal and unequal noise levels."""

import math

import pytest
import torch

from semcom_fast.baselines.wiener import WienerDenoiser, sample_moments


def markov(n: int, rho: float) -> torch.Tensor:
    place = torch.arange(n, dtype=torch.float64)
    return rho ** (place[:, None] - place).abs()


def draw(covariance: torch.Tensor, d: torch.Tensor, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    root = torch.linalg.cholesky(covariance)
    n = len(covariance)
    f0 = torch.randn(count, n, generator=random, dtype=torch.float64) @ root.T
    noise = torch.randn(count, n, generator=random, dtype=torch.float64)
    return f0, (1 - d).sqrt() * f0 + d.sqrt() * noise


def test_white_prior_is_a_scalar() -> None:
    f = torch.randn(5, 6, dtype=torch.float64)
    d = torch.rand(5, 6, dtype=torch.float64)
    assert torch.allclose(WienerDenoiser(torch.eye(6)).denoise(f, d), (1 - d).sqrt() * f, rtol=1e-12, atol=1e-12)


def test_two_elements_by_hand() -> None:
    c = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    d, f = torch.tensor([[0.2, 0.7]], dtype=torch.float64), torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    a, b = math.sqrt(0.8), math.sqrt(0.3)
    g = torch.tensor([[1.0, 0.8 * a * b], [0.8 * a * b, 1.0]], dtype=torch.float64)  # 0.8 + 0.2 and 0.3 + 0.7
    right = torch.linalg.inv(g) @ f[0]
    expected = torch.stack([a * right[0] + 0.8 * b * right[1], 0.8 * a * right[0] + b * right[1]])
    assert torch.allclose(WienerDenoiser(c).denoise(f, d)[0], expected, rtol=1e-12)


@pytest.mark.parametrize("mean", [False, True])
def test_unequal_solve_equals_eigenbasis_at_equal_levels(mean: bool) -> None:
    c = markov(24, 0.9)
    denoiser = WienerDenoiser(c, torch.linspace(-1, 1, 24) if mean else None)
    f, level = torch.randn(11, 24, dtype=torch.float64), torch.rand(11, 1, dtype=torch.float64)
    a, b = denoiser.denoise(f, level), denoiser.denoise(f, level.expand(11, 24))
    assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)
    assert torch.allclose(a, denoiser.denoise(f, level[:, 0]), rtol=1e-14, atol=1e-14)
    assert not torch.allclose(a, denoiser.denoise(f, 1 - level), atol=1e-3)


def test_half_as_many_levels_are_shared_by_pairs() -> None:
    denoiser = WienerDenoiser(markov(8, 0.7))
    f, d = torch.randn(3, 2, 2, 2, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    whole = denoiser.denoise(f, torch.cat([d, d], 1))
    assert torch.equal(denoiser.denoise(f, d), whole) and whole.shape == f.shape


@pytest.mark.parametrize("unequal", [False, True])
def test_error_is_the_posterior_variance_and_orthogonal_to_the_data(unequal: bool) -> None:
    n, count = 16, 40_000
    c = markov(n, 0.9)
    d = torch.linspace(0.05, 0.95, n, dtype=torch.float64) if unequal else torch.full((n,), 0.5, dtype=torch.float64)
    f0, f = draw(c, d, count)
    denoiser = WienerDenoiser(c)
    error = f0 - denoiser.denoise(f, d.expand(count, n))
    signal = (1 - d).sqrt()
    gain = c * signal @ torch.linalg.inv(signal[:, None] * c * signal + d.diag())
    expected = float((c - gain * signal @ c).trace()) / n
    mse = float(error.square().mean())
    bound = 5 * expected * math.sqrt(2 / count)  # 5 standard errors; the n errors of a draw are taken as one
    print(f"mse {mse:.5f}, posterior variance {expected:.5f}, off by {abs(mse - expected):.1e}, bound {bound:.1e}")
    assert abs(mse - expected) < bound
    if not unequal:
        assert denoiser.error(0.5) == pytest.approx(expected, rel=1e-10)
    cross = (error.T @ f / count).abs().max()
    assert cross < 6 / math.sqrt(count), "the error of the best linear estimate is uncorrelated with what was received"


def test_no_other_linear_estimate_is_better() -> None:
    n, count = 12, 20_000
    c, d = markov(n, 0.8), torch.linspace(0.1, 0.9, n, dtype=torch.float64)
    f0, f = draw(c, d, count)
    best = float((f0 - WienerDenoiser(c).denoise(f, d.expand(count, n))).square().mean())
    ignoring = float((f0 - WienerDenoiser(c).denoise(f, d.mean().expand(count))).square().mean())
    scalar = float((f0 - (1 - d).sqrt() * f).square().mean())
    assert best < 0.97 * ignoring and best < 0.9 * scalar


def test_ends_of_the_levels() -> None:
    c = markov(6, 0.9)
    mean = torch.arange(6.0)
    denoiser = WienerDenoiser(c, mean)
    f = torch.randn(2, 6, dtype=torch.float64)
    assert torch.allclose(denoiser.denoise(f, 0.0), f, atol=1e-10)
    assert torch.allclose(denoiser.denoise(f, 1.0), mean.double().expand(2, 6), atol=1e-12)
    d = torch.full((2, 6), 0.5, dtype=torch.float64)
    d[:, 2] = 0
    assert torch.allclose(denoiser.denoise(f, d)[:, 2], f[:, 2], atol=1e-10)


def test_covariance_without_full_rank() -> None:
    direction = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    denoiser = WienerDenoiser(torch.outer(direction, direction))
    f = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)
    assert torch.allclose(denoiser.denoise(f, torch.zeros(1, 3)), f, atol=1e-5)
    unequal = denoiser.denoise(f, torch.tensor([[0.3, 0.5, 0.2]]))
    assert torch.allclose(unequal / unequal[0, 0], direction, atol=1e-9)


def test_fit_finds_the_moments() -> None:
    c = markov(5, 0.6)
    f0, _ = draw(c, torch.zeros(5, dtype=torch.float64), 50_000)
    mean, covariance = sample_moments((f0 + 2).reshape(-1, 5, 1, 1))
    assert float((mean - 2).abs().max()) < 0.03 and float((covariance - c).abs().max()) < 0.03
    assert torch.allclose(WienerDenoiser.fit(f0 + 2).mean, mean, atol=1e-12)


def test_result_has_the_type_of_f_and_empty_batches_pass() -> None:
    denoiser = WienerDenoiser(torch.eye(4))
    assert denoiser.denoise(torch.randn(3, 4), 0.5).dtype == torch.float32
    assert denoiser.denoise(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WienerDenoiser(torch.ones(2, 3)), "must be \\[N,N\\]"),
        (lambda: WienerDenoiser(torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (lambda: WienerDenoiser(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "negative eigenvalues"),
        (lambda: WienerDenoiser(torch.eye(2), torch.zeros(3)), "mean must be"),
        (lambda: WienerDenoiser(torch.eye(2)).denoise(torch.zeros(1, 3), 0.5), "2 reals"),
        (lambda: WienerDenoiser(torch.eye(2)).denoise(torch.zeros(1, 2), 1.5), "\\[0, 1\\]"),
        (lambda: WienerDenoiser(torch.eye(2)).denoise(torch.zeros(1, 2), torch.zeros(3)), "d must be"),
        (lambda: WienerDenoiser(torch.eye(4)).denoise(torch.zeros(1, 4), torch.zeros(1, 3)), "half as wide"),
        (lambda: sample_moments(torch.zeros(1, 4)), "two latents"),
    ],
)
def test_wrong_arguments(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
