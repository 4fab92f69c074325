"""LMMSE and mixture MMSE from moments: golden values, the definitions with the Kronecker product, shrinkage, bad input."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sf_testing import draw, within

from semcom_fast.baselines import gaussian_mixture
from semcom_fast.baselines.gaussian_mixture import (
    GaussianEstimator,
    GaussianMixtureEstimator,
    pooled_moments,
    sample_moments,
)
from semcom_fast.baselines.rls import rls_channel

GOLDEN = Path(__file__).parents[1] / "golden" / "dm_vb.npz"
NR, NT, SLOTS = 4, 16, 9


@pytest.fixture(scope="module")
def exact() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN) as file:
        return {k: torch.from_numpy(np.asarray(v)) for k, v in file.items() if v.dtype.kind in "fci"}


def _row_major(exact) -> tuple[torch.Tensor, torch.Tensor]:
    """The golden's moments stack columns (entry j Nr + i); here they become row-major (i Nt + j)."""
    order = torch.arange(NR * NT).reshape(NT, NR).T.flatten()
    return exact["expert_mean"][:, order], exact["expert_cov"][:, order][:, :, order]


def _covariance(size: int, seed: int) -> torch.Tensor:
    a = draw(size, size, seed=seed)
    return a @ a.mH / size + 0.01 * torch.eye(size, dtype=torch.float64)


def test_golden_mixture(exact) -> None:
    h, weights = GaussianMixtureEstimator(*_row_major(exact))(exact["y"], exact["pilots"], float(exact["noise_var"]))
    noise_var, pilots = float(exact["noise_var"]), exact["pilots"]
    largest = max(float(torch.linalg.matrix_norm(c, 2)) for c in exact["expert_cov"])
    condition = 1 + largest * float(torch.linalg.matrix_norm(pilots, 2)) ** 2 / noise_var
    # solves of 36 unknowns; log evidences of the size of 36 times the condition number in the worst case
    bound = 36 * condition * 2.0**-53
    within(weights, exact["mixture_weights"], 36 * bound, "mixture weights golden")
    within(h, exact["mixture_mmse"], 36 * bound * float(exact["mixture_mmse"].abs().max()), "mixture mmse golden")
    assert weights.argmax(1).tolist() == exact["mixture_weights"].argmax(1).tolist()


def _kronecker(pilots: torch.Tensor) -> torch.Tensor:
    return torch.kron(torch.eye(NR, dtype=pilots.dtype), pilots.mT.contiguous())


def test_definition_with_the_kronecker_product() -> None:
    mean, cov, p, y = (
        draw(NR * NT, seed=1),
        _covariance(NR * NT, 2),
        draw(NT, SLOTS, seed=3),
        draw(5, NR, SLOTS, seed=4),
    )
    h, evidence = GaussianEstimator(mean, cov).estimate(y, p, 0.4)
    a = _kronecker(p)
    seen = a @ cov @ a.mH + 0.4 * torch.eye(NR * SLOTS, dtype=torch.float64)
    residual = (y.flatten(1) - a @ mean).mT
    want = (mean[:, None] + cov @ a.mH @ torch.linalg.solve(seen, residual)).mT.reshape(5, NR, NT)
    torch.testing.assert_close(h, want, rtol=1e-10, atol=1e-11)
    quadratic = (residual.conj() * torch.linalg.solve(seen, residual)).real.sum(0)
    log_density = -quadratic - torch.linalg.slogdet(torch.pi * seen).logabsdet
    torch.testing.assert_close(evidence, log_density, rtol=1e-11, atol=1e-10)


def test_white_channels_give_rls() -> None:
    y, p = draw(3, NR, SLOTS), draw(NT, SLOTS, seed=1)
    got = GaussianEstimator(torch.zeros(NR, NT), torch.eye(NR * NT, dtype=torch.float64))(y, p, 0.7)
    torch.testing.assert_close(got, rls_channel(y, p, 0.7), rtol=1e-11, atol=1e-12)


def test_mixture_weights_follow_the_evidence() -> None:
    covs = torch.stack([_covariance(NR * NT, seed) for seed in (1, 2)])
    means = draw(2, NR * NT, seed=3)
    y, p = draw(4, NR, SLOTS, seed=4) * 2, draw(NT, SLOTS, seed=5)
    log_weights = torch.tensor([0.3, -1.1], dtype=torch.float64)
    h, weights = GaussianMixtureEstimator(means, covs, log_weights)(y, p, 5.0)
    a = _kronecker(p)
    densities = []
    for mean, cov in zip(means, covs, strict=True):
        seen = a @ cov @ a.mH + 5.0 * torch.eye(NR * SLOTS, dtype=torch.float64)
        r = (y.flatten(1) - a @ mean).mT
        densities.append(-(r.conj() * torch.linalg.solve(seen, r)).real.sum(0) - torch.linalg.slogdet(seen).logabsdet)
    want = torch.softmax(torch.stack(densities, 1) + log_weights, 1)
    torch.testing.assert_close(weights, want, rtol=1e-9, atol=1e-9)
    parts = [GaussianEstimator(m, c)(y, p, 5.0) for m, c in zip(means, covs, strict=True)]
    torch.testing.assert_close(h, sum(want[:, k, None, None] * parts[k] for k in range(2)), rtol=1e-9, atol=1e-9)
    twins = GaussianMixtureEstimator(covs.new_zeros(2, NR * NT), covs[:1].expand(2, -1, -1))(y, p, 5.0)[1]
    torch.testing.assert_close(twins, torch.full_like(twins, 0.5))


def test_single_precision_at_high_snr() -> None:
    """What complex64 loses at 30 dB is far below the estimate's own error."""
    cov = _covariance(NR * NT, 1)
    root = torch.linalg.cholesky(cov)
    h = (draw(50, NR * NT, seed=2) @ root.mT).reshape(50, NR, NT)
    p, noise_var = draw(NT, SLOTS, seed=3).sgn(), NT * 1e-3
    y = h @ p + noise_var**0.5 * draw(50, NR, SLOTS, seed=4)
    wide = GaussianEstimator(torch.zeros(NR * NT), cov)(y, p, noise_var)
    narrow = GaussianEstimator(torch.zeros(NR * NT), cov)(y.to(torch.complex64), p.to(torch.complex64), noise_var)
    assert narrow.dtype is torch.complex64
    assert float((narrow - wide).abs().max()) < 1e-3 * float((wide - h).abs().mean())


def test_error_is_the_posterior_variance() -> None:
    cov = _covariance(NR * NT, 1)
    root, p, mean = torch.linalg.cholesky(cov), draw(NT, SLOTS, seed=3), draw(NR * NT, seed=6)
    h = (mean + draw(20000, NR * NT, seed=2) @ root.mT).reshape(-1, NR, NT)
    y = h @ p + draw(20000, NR, SLOTS, seed=4)
    error = (GaussianEstimator(mean, cov)(y, p, 1.0) - h).abs().square().sum((1, 2)).mean()
    a = _kronecker(p)
    posterior = cov - cov @ a.mH @ torch.linalg.solve(
        a @ cov @ a.mH + torch.eye(NR * SLOTS, dtype=torch.float64), a @ cov
    )
    assert float(error) == pytest.approx(float(posterior.diagonal().real.sum()), rel=0.01)


def test_gains_are_made_once(monkeypatch) -> None:
    made = []
    prepare = GaussianEstimator._prepare
    monkeypatch.setattr(
        GaussianEstimator, "_prepare", lambda self, *args: (made.append(args[1]), prepare(self, *args))[1]
    )
    estimator, p, y = (
        GaussianEstimator(torch.zeros(NR * NT), torch.eye(NR * NT, dtype=torch.float64)),
        draw(NT, SLOTS),
        draw(2, NR, SLOTS),
    )
    first = estimator(y, p, 0.5)
    estimator(y, p, 0.25)
    assert torch.equal(estimator(y, p.clone(), 0.5), first) and made == [0.5, 0.25]
    estimator(y, p * 2, 0.5)
    assert made == [0.5, 0.25, 0.5], "other pilots, another gain"
    for noise_var in (1.0, 2.0, 3.0, 0.5):
        estimator(y, p, noise_var)
    assert made[3:] == [1.0, 2.0, 3.0, 0.5] and len(estimator._filters) == gaussian_mixture._KEPT_FILTERS


# -------------------------------------------------------------------------------------------------- moments


def test_sample_moments_by_hand(monkeypatch) -> None:
    monkeypatch.setattr(gaussian_mixture, "_BLOCK", 7)  # several blocks
    h = draw(40, 2, 3, seed=1) + 2
    mean, cov, shrinkage = sample_moments(h)
    x = h.flatten(1)
    torch.testing.assert_close(mean, x.mean(0))
    want = torch.zeros(6, 6, dtype=torch.complex128)
    for row in x - x.mean(0):
        want += torch.outer(row, row.conj()) / 40
    assert shrinkage == 0
    torch.testing.assert_close(cov, want, rtol=1e-12, atol=1e-13)
    half = sample_moments(h, 0.5).cov
    scale = float(want.diagonal().real.mean())
    torch.testing.assert_close(
        half, 0.5 * want + 0.5 * scale * torch.eye(6, dtype=torch.float64), rtol=1e-12, atol=1e-13
    )


def test_shrinkage_is_the_best_one() -> None:
    """Ledoit-Wolf's estimate lies near the oracle's shrinkage, and the error near the smallest there is."""
    size, count = 64, 40
    cov = _covariance(size, 1) @ torch.diag(torch.linspace(0.05, 2, size).to(torch.complex128)).square()
    cov = cov @ cov.mH
    h = (draw(count, size, seed=2) @ torch.linalg.cholesky(cov).mT).reshape(count, 4, 16)
    got = sample_moments(h)
    assert 0 < got.shrinkage < 1

    def error(rho: float | None) -> float:
        return float((sample_moments(h, rho).cov - cov).abs().square().sum())

    grid = torch.linspace(0, 1, 101).tolist()
    assert error(got.shrinkage) < 1.05 * min(map(error, grid)) < 0.95 * error(0.0)


def test_pooled_moments_are_those_of_the_pool() -> None:
    parts = [draw(30, 2, 3, seed=1) + 1, 2j * draw(60, 2, 3, seed=2)]
    pooled = pooled_moments([sample_moments(part) for part in parts], [30, 60])
    want = sample_moments(torch.cat(parts))
    torch.testing.assert_close(pooled.mean, want.mean)
    torch.testing.assert_close(pooled.cov, want.cov)


# ------------------------------------------------------------------------------------------------ bad input


def test_bad_moments() -> None:
    for bad in (draw(1, 2, 3), draw(4, 6), draw(4, 2, 3).real):
        with pytest.raises(ValueError, match="at least two complex channels"):
            sample_moments(bad)
    with pytest.raises(ValueError, match=r"on \[0, 1\]"):
        sample_moments(draw(4, 2, 3), 1.5)
    with pytest.raises(ValueError, match="disagree"):
        GaussianEstimator(torch.zeros(6), torch.eye(5, dtype=torch.float64))
    with pytest.raises(ValueError, match="must be finite"):
        GaussianEstimator(torch.full((6,), math.nan), torch.eye(6, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least one component"):
        GaussianMixtureEstimator([], [])
    with pytest.raises(ValueError, match="2 finite numbers"):
        GaussianMixtureEstimator([torch.zeros(6)] * 2, [torch.eye(6, dtype=torch.float64)] * 2, torch.zeros(3))


def test_bad_signals() -> None:
    estimator, y, p = (
        GaussianEstimator(torch.zeros(NR * NT), torch.eye(NR * NT, dtype=torch.float64)),
        draw(2, NR, SLOTS),
        draw(NT, SLOTS),
    )
    for noise_var in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="noise_var must be positive"):
            estimator(y, p, noise_var)
    with pytest.raises(ValueError, match="do not make the 64 entries"):
        estimator(y[:, :3], p, 1.0)
    with pytest.raises(ValueError, match=r"takes the pilots \[Nt,Np\] of all channels"):
        estimator(y, p.expand(2, NT, SLOTS), 1.0)
    with pytest.raises(TypeError, match="one complex dtype"):
        estimator(y, p.to(torch.complex64), 1.0)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        GaussianEstimator(torch.zeros(NR * NT), -torch.eye(NR * NT, dtype=torch.float64))(y, p, 0.01)
    with pytest.raises(ValueError, match="pilots are not finite"):
        estimator(y, p * math.nan, 1.0)
