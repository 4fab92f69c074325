"""Closed-form denoisers: Gaussian channels (scalar, Kronecker) and the Gaussian mixture, against first principles."""

import pytest
import torch
from sf_testing import draw, within

import semcom_fast as sf
from semcom_fast.systems.blind_mimosc.mixture import GaussianMixturePrior

SIGMAS = (0.01, 0.5, 3.0, 100.0)


def _cov(n, seed, rank=None):
    a = draw(n, rank or n, seed=seed)
    return a @ a.mH / (rank or n)


def _sigma(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("v", [0.3, 1.0, 4.0])
def test_rayleigh(v, sigma):
    """mean w x with w = v/(v+s^2), variance v s^2/(v+s^2); the score (mean-x)/s^2 is -x/(v+s^2), its trace -dim/(v+s^2)."""
    x, prior = draw(2, 3, 4, 5, 2), sf.GaussianChannelPrior(v)
    mean, var = prior(x, _sigma(sigma))
    within(mean, x * v / (v + sigma**2), 1e-14 * x.abs(), "Rayleigh mean")
    assert var.shape == (2, 3)
    within(var, torch.full((2, 3), v * sigma**2 / (v + sigma**2), dtype=torch.float64), 1e-14 * v, "Rayleigh variance")
    score = (mean - x) / sigma**2
    want = -x / (v + sigma**2)
    within(score, want, 1e-15 / sigma**2 * x.abs() + 1e-13 * want.abs(), "Rayleigh score")
    # tr d score/dx per entry = (var - s^2)/s^4, the identity behind the variance head
    want = torch.full((2, 3), -1 / (v + sigma**2), dtype=torch.float64)
    within((var - sigma**2) / sigma**4, want, 1e-14 / sigma**2 + 1e-13 / (v + sigma**2), "Rayleigh trace")


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("sides", ["rx", "tx", "both", "rank one"])
def test_kronecker_is_the_dense_wiener_filter(sides, sigma):
    """E[h|x] = C (C + s^2 I)^-1 x with the dense C = E[vec h vec h^H] = cov_rx (x) cov_tx, and its mean variance."""
    nr, nt, v = 3, 2, 0.7
    rx = _cov(nr, 1, 1 if sides == "rank one" else None) if sides != "tx" else None
    tx = _cov(nt, 2) if sides != "rx" else None
    prior = sf.GaussianChannelPrior(v, cov_rx=rx, cov_tx=tx)
    eye = [torch.eye(n, dtype=torch.complex128) for n in (nr, nt)]
    dense = v * torch.kron(eye[0] if rx is None else rx, eye[1] if tx is None else tx)  # row-major vec: index i*nt + j
    x = draw(2, 2, 3, nr, nt)
    noisy = dense + sigma**2 * torch.eye(nr * nt, dtype=torch.float64)
    wiener = torch.linalg.solve(noisy, dense).mH
    want = (x.reshape(2, 2, 3, -1) @ wiener.mT).reshape(x.shape)
    mean, var = prior(x, _sigma(sigma))
    within(mean, want, 1e-11 * x.abs().max(), f"Kronecker mean {sides}")
    posterior = (dense - wiener @ dense).diagonal().real.mean()
    within(var, posterior.expand(2, 2), 1e-11 * v * 10, f"Kronecker variance {sides}")


def test_kronecker_convention():
    """Channels drawn as h = A g B^T have E[h_ij h_kl*] = R_rx[i,k] R_tx[j,l]: the prior's model, not its transpose."""
    nr, nt, sigma = 2, 3, 1.0
    rx, tx = _cov(nr, 1), _cov(nt, 2)
    a, b = torch.linalg.cholesky(rx), torch.linalg.cholesky(tx)
    h = a @ draw(400_000, 1, 1, nr, nt) @ b.mT
    flat = h.reshape(len(h), -1)
    sample_cov = flat.T @ flat.conj() / len(h)
    within(
        sample_cov,
        torch.kron(rx, tx),
        5 * torch.kron(rx, tx).abs().max() / len(h) ** 0.5,
        "Kronecker sample covariance",
    )
    noisy = h + sigma * draw(*h.shape, seed=9)

    def mse(prior):
        mean, var = prior(noisy, _sigma(sigma))
        return float((mean - h).abs().square().mean()), float(var[0, 0])

    best, reported = mse(sf.GaussianChannelPrior(cov_rx=rx, cov_tx=tx))
    assert abs(best / reported - 1) < 0.01
    for wrong in (sf.GaussianChannelPrior(cov_rx=rx.mT, cov_tx=tx), sf.GaussianChannelPrior(cov_rx=rx, cov_tx=tx.conj()),
                  sf.GaussianChannelPrior()):  # fmt: skip
        assert mse(wrong)[0] > 1.02 * best


@pytest.mark.parametrize("kind", ["scalar", "kronecker"])
def test_vjp(kind):
    """vjp is the map's own transpose: self-adjoint, linear, and equal to automatic differentiation."""
    prior = (
        sf.GaussianChannelPrior(0.8)
        if kind == "scalar"
        else sf.GaussianChannelPrior(0.8, cov_rx=_cov(3, 1), cov_tx=_cov(2, 2))
    )
    sigma = _sigma(0.6)
    x, g = draw(2, 1, 4, 3, 2, seed=1).requires_grad_(True), draw(2, 1, 4, 3, 2, seed=2)
    mean, _ = prior(x, sigma)
    (want,) = torch.autograd.grad(mean, x, g)
    within(prior.vjp(g, sigma), want, 1e-13, f"prior vjp {kind}")
    left, right = (g.conj() * mean.detach()).sum(), (prior.vjp(g, sigma).conj() * x.detach()).sum()
    within(left, right, 1e-12, f"prior self-adjoint {kind}")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_prior_keeps_dtype(dtype):
    """Results have x's dtype; one prior object serves both precisions and several sizes."""
    prior = sf.GaussianChannelPrior(cov_rx=_cov(3, 1).to(torch.complex64))
    for k in (1, 4):
        x = draw(2, 2, k, 3, 2, dtype=dtype)
        mean, var = prior(x, _sigma(0.5, dtype.to_real()))
        assert mean.dtype is dtype and var.dtype is dtype.to_real() and var.shape == (2, 2)


@pytest.mark.parametrize("name", ["cov_rx", "cov_tx"])
@pytest.mark.parametrize(
    "matrix, message",
    [
        (torch.eye(3)[:2], "square"),
        (torch.ones(3), "square"),
        (torch.tensor([[1.0, 0.5], [0.2, 1.0]]), "not Hermitian"),
        (torch.tensor([[1.0, 0.5j], [0.5j, 1.0]]), "not Hermitian"),
        (torch.diag(torch.tensor([1.0, -0.1])), "negative eigenvalue"),
        (torch.full((2, 2), float("nan")), "cov_"),
    ],
)
def test_bad_covariances(name, matrix, message):
    """A covariance must be square, Hermitian, non-negative and finite; the argument is named."""
    with pytest.raises(ValueError, match=f"{name}.*{message}" if message != "cov_" else name):
        sf.GaussianChannelPrior(**{name: matrix})


def test_bad_variance_and_size():
    """var must be positive and finite; a covariance of another size shows both sizes."""
    for var in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="var must be positive"):
            sf.GaussianChannelPrior(var)
    with pytest.raises(ValueError, match=r"cov_tx is 3x3.*\(1, 1, 1, 4, 2\)"):
        sf.GaussianChannelPrior(cov_tx=torch.eye(3))(draw(1, 1, 1, 4, 2), _sigma(1.0))


def _mixture(n=4, components=3):
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    covs = torch.stack([_cov(n, 10 + k).real + 0.05 * torch.eye(n, dtype=torch.float64) for k in range(components)])
    means = 2 * draw(components, n, seed=20, dtype=torch.float64)
    return weights, means, covs


def _log_density(x, sigma, weights, means, covs):
    total = covs + sigma**2 * torch.eye(covs.shape[-1], dtype=torch.float64)
    parts = [w.log() + torch.distributions.MultivariateNormal(m, c).log_prob(x)
             for w, m, c in zip(weights, means, total, strict=True)]  # fmt: skip
    return torch.stack(parts).logsumexp(0)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_mixture_score_and_trace(sigma):
    """Tweedie: mean = x + s^2 grad ln p(x), var = s^2 + s^4 laplacian/n, from differentiating the mixture's density."""
    parts = _mixture()
    x = draw(6, 4, seed=30, dtype=torch.float64) * 2
    mean, var = GaussianMixturePrior(*parts)(x, _sigma(sigma))
    score = torch.func.vmap(torch.func.grad(lambda v: _log_density(v, sigma, *parts)))(x)
    hessian = torch.stack(
        [torch.autograd.functional.hessian(lambda v: _log_density(v, sigma, *parts), row) for row in x]
    )
    within(mean, x + sigma**2 * score, 1e-12 * (1 + x.abs().max()), "mixture score")
    trace = hessian.diagonal(dim1=-2, dim2=-1).sum(-1)
    within(var, sigma**2 + sigma**4 * trace / 4, 1e-11 * (1 + sigma**2), "mixture trace")
    # the denoiser's own Jacobian is I + s^2 Hessian: the Hessian-vector product a loop uses through its vjp
    leaf, g = x.clone().requires_grad_(True), draw(6, 4, seed=31, dtype=torch.float64)
    (pulled,) = torch.autograd.grad(GaussianMixturePrior(*parts)(leaf, _sigma(sigma))[0], leaf, g)
    want = g + sigma**2 * torch.einsum("bij,bj->bi", hessian, g)
    within(pulled, want, 1e-10 * (1 + want.abs().max()), "mixture Hessian-vector product")


def test_mixture_closed_form_score():
    """S = sum r_k a_k with a_k = (C_k + s^2 I)^-1 (mu_k - x), and its trace sum r_k (|a_k|^2 - tr A_k) - |S|^2."""
    weights, means, covs = _mixture()
    sigma, x = 0.8, draw(5, 4, seed=30, dtype=torch.float64)
    inverse = torch.linalg.inv(covs + sigma**2 * torch.eye(4, dtype=torch.float64))
    a = torch.einsum("kij,bkj->bki", inverse, means - x[:, None])
    log_r = torch.stack(
        [_log_density(x, sigma, weights[k : k + 1], means[k : k + 1], covs[k : k + 1]) for k in range(3)], 1
    )
    r = log_r.softmax(1)
    score = (r[..., None] * a).sum(1)
    trace = (r * (a.square().sum(-1) - inverse.diagonal(dim1=-2, dim2=-1).sum(-1))).sum(1) - score.square().sum(-1)
    mean, var = GaussianMixturePrior(weights, means, covs)(x, _sigma(sigma))
    within((mean - x) / sigma**2, score, 1e-12, "mixture closed form")
    within((var - sigma**2) / sigma**4 * 4, trace, 1e-11, "mixture closed form trace")


@pytest.mark.parametrize("sigma", SIGMAS)
def test_full_covariance(sigma):
    """cov= takes any covariance of the row-major vec h: the dense Wiener filter; a Kronecker product is one of them."""
    nr, nt, v = 3, 2, 0.7
    x, cov = draw(2, 2, 3, nr, nt), _cov(nr * nt, 5)
    mean, var = sf.GaussianChannelPrior(v, cov=cov)(x, _sigma(sigma))
    noisy = v * cov + sigma**2 * torch.eye(nr * nt, dtype=torch.float64)
    wiener = torch.linalg.solve(noisy, v * cov).mH
    want = (x.reshape(2, 2, 3, -1) @ wiener.mT).reshape(x.shape)
    within(mean, want, 1e-11 * x.abs().max(), "full covariance mean")
    posterior = (v * cov - wiener @ cov * v).diagonal().real.mean()
    within(var, posterior.expand(2, 2), 1e-11 * v * 10, "full covariance variance")
    rx, tx = _cov(nr, 1), _cov(nt, 2)
    one, other = sf.GaussianChannelPrior(cov=torch.kron(rx, tx)), sf.GaussianChannelPrior(cov_rx=rx, cov_tx=tx)
    for got, expected in zip(one(x, _sigma(sigma)), other(x, _sigma(sigma)), strict=True):
        within(got, expected, 1e-11 * x.abs().max(), "full covariance of a Kronecker product")


def test_full_covariance_vjp_and_errors():
    prior, sigma = sf.GaussianChannelPrior(0.8, cov=_cov(6, 1)), _sigma(0.6)
    x, g = draw(2, 1, 4, 3, 2, seed=1).requires_grad_(True), draw(2, 1, 4, 3, 2, seed=2)
    (want,) = torch.autograd.grad(prior(x, sigma)[0], x, g)
    within(prior.vjp(g, sigma), want, 1e-13, "prior vjp full covariance")
    with pytest.raises(ValueError, match=r"cov is 6x6.*\(1, 1, 1, 4, 2\)"):
        prior(draw(1, 1, 1, 4, 2), sigma)
    with pytest.raises(ValueError, match="not both"):
        sf.GaussianChannelPrior(cov=_cov(6, 1), cov_rx=_cov(3, 1))
    with pytest.raises(ValueError, match="cov is not Hermitian"):
        sf.GaussianChannelPrior(cov=torch.tensor([[1.0, 0.5], [0.2, 1.0]]))
