"""Trace networks and variance heads are one object: in closed form, in their training targets, and not in float32."""

import pytest
import torch
from pvd_toys import GaussianSource, KnownCodeword, link
from sf_testing import draw, within

import semcom_fast as sf
from semcom_fast.receivers.second_order import (
    ScoreDenoiser,
    trace_loss,
    trace_of_variance,
    variance_loss,
    variance_of_trace,
)
from semcom_fast.systems.blind_mimosc.mixture import GaussianMixturePrior

SIGMAS = (0.05, 0.5, 3.0)


def _cov(n, seed):
    a = draw(n, n, seed=seed)
    return a @ a.mH / n


def _mixture(n):
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = 1.5 * draw(2, n, seed=20, dtype=torch.float64)
    covs = torch.stack([_cov(n, 10 + k).real + 0.05 * torch.eye(n, dtype=torch.float64) for k in range(2)])
    return weights, means, covs


def _noisy_mixture(n, count, sigma):
    """Clean samples, noise and noisy samples of the mixture."""
    weights, means, covs = _mixture(n)
    generator = torch.Generator().manual_seed(0)
    component = (torch.rand(count, generator=generator) > weights[0]).long()
    spread = torch.linalg.cholesky(covs)[component] @ torch.randn(count, n, 1, generator=generator, dtype=torch.float64)
    clean = means[component] + spread.squeeze(-1)
    noise = torch.randn(count, n, generator=generator, dtype=torch.float64)
    return clean, noise, clean + sigma * noise


@pytest.mark.parametrize("sigma", [*SIGMAS, 100.0])
def test_gaussian_channel(sigma):
    """Complex trace of the score -C_noisy^-1 x, by differentiating it: -dim/(v + s^2), and minus the sum over eigenmodes."""
    level = torch.tensor(sigma, dtype=torch.float64)
    rx, tx = _cov(3, 1), _cov(2, 2)
    modes = torch.linalg.eigvalsh(torch.kron(rx, tx))
    for prior, values in (
        (sf.GaussianChannelPrior(0.7), torch.full((6,), 0.7, dtype=torch.float64)),
        (sf.GaussianChannelPrior(cov_rx=rx, cov_tx=tx), modes),
    ):
        x = torch.eye(6, dtype=torch.complex128).reshape(6, 1, 1, 3, 2)
        mean, var = prior(x, level)
        jacobian = ((mean - x) / sigma**2).reshape(6, 6)  # linear: its columns are the images of the unit vectors
        want = -(1 / (values + sigma**2)).sum()
        bound = 1e-14 * 6 * (1 / sigma**2 + 1 / (values + sigma**2).min())
        within(jacobian.diagonal().sum().real, want, bound, "trace of a Gaussian channel's score")
        within(trace_of_variance(var[0, 0], sigma, 6), want, 10 * bound, "trace from the posterior variance")
        within(variance_of_trace(want, sigma, 6), var[0, 0], 1e-13 * (1 + sigma**2), "variance from the trace")


@pytest.mark.parametrize("sigma", SIGMAS)
def test_mixture(sigma):
    """Real trace of the second-order score of a Gaussian mixture: the Laplacian of its log density."""
    n = 3
    weights, means, covs = _mixture(n)
    total = covs + sigma**2 * torch.eye(n, dtype=torch.float64)

    def log_density(x):
        parts = [w.log() + torch.distributions.MultivariateNormal(m, c).log_prob(x)
                 for w, m, c in zip(weights, means, total, strict=True)]  # fmt: skip
        return torch.stack(parts).logsumexp(0)

    x = 2 * draw(6, n, seed=30, dtype=torch.float64)
    hessian = torch.stack([torch.autograd.functional.hessian(log_density, row) for row in x])
    trace = hessian.diagonal(dim1=-2, dim2=-1).sum(-1)
    _, var = GaussianMixturePrior(weights, means, covs)(x, sigma)
    within(trace_of_variance(var, sigma, n), trace, 1e-11 * (1 + 1 / sigma**4), "mixture trace from the variance")
    within(variance_of_trace(trace, sigma, n), var, 1e-11 * (1 + sigma**2), "mixture variance from the trace")


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_targets_are_one(dtype):
    """Sample by sample |z + sigma S|^2 = |x0 - den|^2/sigma^2, whatever the denoiser: one regression, two scales."""
    sigma, dim = 0.6, 5
    clean, z = draw(7, dim, dtype=dtype), draw(7, dim, seed=3, dtype=dtype)
    noisy = clean + sigma * z
    denoised = 0.3 * noisy + 0.1 * noisy.roll(1, -1)
    score = (denoised - noisy) / sigma**2
    error = (clean - denoised).abs().square().sum(-1)
    within((z + sigma * score).abs().square().sum(-1), error / sigma**2, 1e-13, "targets")
    var = 0.2 + draw(7, seed=4, dtype=torch.float64).square()
    want = ((var - error / dim) / sigma**2).square().mean()
    within(trace_loss(trace_of_variance(var, sigma, dim), error, sigma, dim), want, 1e-13 * want, "trace loss")


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_optimum_of_both_losses(sigma):
    """At the closed-form trace and variance of a mixture the gradient of either loss vanishes along any function of x.

    400,000 samples, five standard errors; a variance five per cent too large is found out by both losses.
    """
    n = 3
    clean, _, noisy = _noisy_mixture(n, 400_000, sigma)
    mean, var = GaussianMixturePrior(*_mixture(n))(noisy, sigma)
    error = (clean - mean).square().sum(-1)
    directions = torch.stack([torch.ones_like(var), torch.tanh(noisy[:, 0]), torch.cos(2 * noisy[:, 1])])

    def pulls(v):
        """Gradients along the three directions in units of their standard errors, for both losses."""
        trace = trace_of_variance(v, sigma, n).requires_grad_(True)
        (by_trace,) = torch.autograd.grad(trace_loss(trace, error, sigma, n), trace)
        own = v.clone().requires_grad_(True)
        (by_variance,) = torch.autograd.grad(variance_loss(own, error, n), own)
        moved = torch.stack([directions * by_trace, directions * by_variance * v])
        return moved.sum(-1) / (moved.std(-1) * noisy.shape[0] ** 0.5)

    within(pulls(var), torch.zeros(2, 3), 5.0, "gradient at the closed form, in standard errors")
    assert (pulls(1.05 * var)[:, 0].abs() > 15).all()


def test_float32_at_large_noise():
    """sigma = 100: a trace loses the variance, a variance head does not; a score loses the mean, EDM form does not."""
    sigma, dim = 100.0, 16
    exact = torch.linspace(0.5, 2.0, 101, dtype=torch.float64)  # prior variances of an entry
    var = exact * sigma**2 / (exact + sigma**2)
    trace = -dim / (exact + sigma**2)
    by_trace = variance_of_trace(trace.float(), torch.tensor(sigma), dim)
    by_head = sigma**2 * exact.float() / (sigma**2 + exact.float())
    assert float((by_trace - var).abs().max()) > 2e-4
    within(by_trace, var, 2e-3, "float32 variance from a trace: sigma^2 times a few ulp")
    within(by_head, var, 1e-6, "float32 variance from a head")
    # a trace network that errs by one part in a thousand
    one = variance_of_trace(torch.tensor(-dim / (1 + sigma**2) * 1.001, dtype=torch.float64), sigma, dim)
    within(one, torch.tensor(-9.0, dtype=torch.float64), 0.01, "variance from a trace 0.1 % off")

    x = draw(4000, dim) * (1 + sigma**2) ** 0.5
    mean = x / (1 + sigma**2)
    narrow, level = x.to(torch.complex64), torch.tensor(sigma)
    score = ScoreDenoiser(lambda x, s: -x / (1 + s * s), lambda x, s: -dim / (1 + s * s) * torch.ones(len(x), 1))
    by_score, _ = score(narrow.unsqueeze(1), level)
    relative = ((by_score.squeeze(1) - mean).abs().square().mean() / mean.abs().square().mean()).sqrt()
    assert 5e-5 < float(relative) < 2e-3
    edm = narrow * (1 / (1 + level * level))
    within(edm, mean, 1e-6 * mean.abs().max(), "float32 mean in EDM form")


def test_score_and_trace_networks_receive():
    """PVD with a channel prior given as score and trace is PVD with the denoiser they stand for."""
    x = sf.power_normalise(draw(3, 1, 2, 2, 6, seed=11))[0]
    _, y = link(3, 1, 2, 3, x, 0.1)
    config = sf.PVDConfig(nt=2, source_shape=(1,), J=8, Jin=5, sigma_max=10.0)
    prior = ScoreDenoiser(
        lambda x, s: -x / (1 + s * s), lambda x, s: -12 / (1 + s * s) * torch.ones(len(x), 1).double()
    )

    def run(prior):
        return sf.PVD(KnownCodeword(x), prior, GaussianSource(), config).run(y, 0.1, seed=1)

    within(run(prior).h, run(sf.GaussianChannelPrior()).h, 1e-10, "PVD by score and trace")
