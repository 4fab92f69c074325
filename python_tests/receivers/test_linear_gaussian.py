"""Linear-Gaussian cases with known answers: fixed points, signs and the step-size limit, from loops written with the ops."""

import pytest
import torch
from sf_testing import draw, within

import semcom_fast as sf

V, NOISE_VAR = 1.0, 0.05


def _case(users, nt, k=3, nr=4, t=8, seed=1):
    """Users stacked as antennas: y [1,K,Nr,T], x [1,1,K,M,T]; entries of unit power."""
    m = users * nt
    x = draw(1, 1, k, m, t, seed=seed)
    h = draw(1, 1, k, nr, m, seed=seed + 1) * V**0.5
    return torch.matmul(h, x).sum(1) + NOISE_VAR**0.5 * draw(1, k, nr, t, seed=seed + 2), h, x


def _lmmse(y, x):
    gram = x @ x.mH + NOISE_VAR / V * torch.eye(x.shape[-2], dtype=torch.float64)
    return torch.linalg.solve(gram.mT, (y.unsqueeze(1) @ x.mH).mT).mT


def _exact_score(y, mean, x, w, v):
    """d ln p(Y|H_j)/dH_j* with the exact covariance sn2 I + v X^H X, as G_H (sn2 I + v X X^H)^-1 through the prior."""
    load = NOISE_VAR * torch.eye(x.shape[-2], dtype=torch.float64) + v * x @ x.mH
    raw = sf.likelihood_score(y, w * mean, x).score_h
    return w * torch.linalg.solve(load.mT, raw.mT).mT


def _iterate(y, x, anchor, sigma, above, zeta, steps, start=None):
    """Inner iterations of one level at the mean, with exact scores; anchor None leaves the level above out."""
    w, v = V / (V + sigma**2), V * sigma**2 / (V + sigma**2)
    mean = torch.zeros_like(x[..., :1] @ y.unsqueeze(1)[..., :1].mH).mH if start is None else start
    for _ in range(steps):
        score = _exact_score(y, mean, x, w, v)
        mean, _ = sf.pvd_update(mean, mean if anchor is None else anchor, mean, w * mean, score,
                                sigma=sigma, sigma_above=above, zeta=zeta, next_var=0)  # fmt: skip
    return mean


def _precision(x, w, v, extra):
    """Precision of H_j given Y beside a white part `extra`, per block [1,1,K,M,M]."""
    load = NOISE_VAR * torch.eye(x.shape[-2], dtype=torch.float64) + v * x @ x.mH
    gram = x @ x.mH @ torch.linalg.inv(load)  # X C^-1 X^H with C the T x T covariance
    return extra * torch.eye(x.shape[-2], dtype=torch.float64) + w**2 * gram


@pytest.mark.parametrize("users, nt", [(1, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0, 30.0])
def test_fixed_point_of_a_level(users, nt, sigma):
    """With exact covariance the level's mean is that of p(H_j | H_{j+1}, Y), in closed form, to 1e-10."""
    y, _, x = _case(users, nt)
    above = 1.36 * sigma
    anchor = draw(*x.shape[:3], 4, x.shape[-2], seed=9) * above
    w, v, delta = V / (V + sigma**2), V * sigma**2 / (V + sigma**2), above**2 - sigma**2
    load = NOISE_VAR * torch.eye(x.shape[-2], dtype=torch.float64) + v * x @ x.mH
    precision = _precision(x, w, v, 1 / (V + sigma**2) + 1 / delta)
    right = anchor / delta + w * (y.unsqueeze(1) @ x.mH) @ torch.linalg.inv(load)
    want = torch.linalg.solve(precision.mT, right.mT).mT
    limit = delta * float(torch.linalg.eigvals(precision).real.max())  # one step multiplies the error by 1 - zeta*limit
    got = _iterate(y, x, anchor, sigma, above, 1 / limit, 400)
    within(got, want, 1e-10 * want.abs().max(), "level fixed point")


@pytest.mark.parametrize("users, nt", [(1, 1), (2, 2)])
@pytest.mark.parametrize("sigma", [0.1, 1.0, 5.0])
def test_without_anchor_plus_reaches_lmmse_and_minus_diverges(users, nt, sigma):
    """E[H_j|Y] = E[H|Y] whatever the level: plus converges to LMMSE to rounding; the printed minus runs away from it."""
    y, _, x = _case(users, nt)
    want, above = _lmmse(y, x), 1.36 * sigma
    w, v = V / (V + sigma**2), V * sigma**2 / (V + sigma**2)
    values = torch.linalg.eigvals(_precision(x, w, v, 1 / (V + sigma**2))).real
    limit = (above**2 - sigma**2) * float(values.max())
    steps = int(40 * float(values.max() / values.min()))  # exp(-40) of the start is left
    got = _iterate(y, x, None, sigma, above, 1 / limit, steps)
    within(got, want, 1e-12 * want.abs().max(), "LMMSE with plus")
    start = want + 1e-6 * draw(*want.shape, seed=8)
    away = _iterate(y, x, None, sigma, above, -1 / limit, steps, start=start)
    assert float((away - want).abs().max()) > 1e6 * float((start - want).abs().max())
    back = _iterate(y, x, None, sigma, above, 1 / limit, steps, start=start)
    within(back, want, 1e-12 * want.abs().max(), "LMMSE from nearby")


def _source_case(users=2, k=2, nr=3, nt=1, t=6, n=5):
    h, matrix = draw(1, users, k, nr, nt, seed=1), draw(users, k * nt * t, n, seed=2)
    mu = draw(users, n, seed=3, dtype=torch.float64)
    a = draw(users, n, n, seed=4, dtype=torch.float64)
    cov = a @ a.mT / n + 0.1 * torch.eye(n, dtype=torch.float64)
    d = mu + torch.einsum("uij,uj->ui", torch.linalg.cholesky(cov), draw(users, n, seed=5, dtype=torch.float64))

    def encode(v):
        return torch.einsum("umn,bun->bum", matrix, v.to(matrix.dtype)).unflatten(-1, (k, nt, t))

    clean = torch.matmul(h, encode(d[None])).sum(1)
    return clean + NOISE_VAR**0.5 * draw(*clean.shape, seed=6), h, encode, mu, cov


def _map_of_source(y, h, encode, mu, cov):
    """mu + (C^-1 + 2 Re(M^H M)/sn2)^-1 2 Re(M^H (y - M mu))/sn2 over all users together, M = H A."""
    users, n = mu.shape
    basis = torch.eye(users * n, dtype=torch.float64).reshape(-1, users, n)
    m = torch.stack([torch.matmul(h, encode(e[None])).sum(1).flatten() for e in basis], 1)
    precision = torch.linalg.inv(torch.block_diag(*cov)) + 2 * (m.mH @ m).real / NOISE_VAR
    residual = y.flatten() - m @ mu.flatten().to(m.dtype)
    return (mu.flatten() + torch.linalg.solve(precision, 2 * (m.mH @ residual).real / NOISE_VAR)).reshape(
        users, n
    ), precision


def _source_loop(y, h, encode, mu, wiener, sigma, zeta, factor, steps):
    """The source half of one level at the mean with the channel known; the cotangent is `factor` times score_x."""
    mean = torch.zeros_like(mu)[None]
    for _ in range(steps):
        leaf = mean.clone().requires_grad_(True)
        d0 = mu + torch.einsum("uij,buj->bui", wiener, leaf - mu)
        x = encode(d0)
        (score,) = torch.autograd.grad(x, leaf, factor * sf.likelihood_score(y, h, x.detach(), NOISE_VAR).score_x)
        mean, _ = sf.pvd_update(
            mean, mean, mean, d0.detach(), score, sigma=sigma, sigma_above=1.36 * sigma, zeta=zeta, next_var=0
        )
    return mean[0]


@pytest.mark.parametrize("sigma, tolerance", [(0.5, 1e-11), (1e-5, 1e-6)])
def test_source_with_known_channel(sigma, tolerance):
    """Dual case: the source's fixed point is the closed form, and its exact posterior mean as sigma vanishes.

    With W = C (C + s^2)^-1 and B = 2 Re(M^H M)/sn2 the level's fixed point solves
    ((C + s^2)^-1 + W B W)(m - mu) = W 2 Re(M^H (y - M mu))/sn2. A cotangent off by two moves it.
    """
    y, h, encode, mu, cov = _source_case()
    posterior, precision = _map_of_source(y, h, encode, mu, cov)
    big = torch.block_diag(*cov)
    gram = precision - torch.linalg.inv(big)
    noisy = torch.linalg.inv(big + sigma**2 * torch.eye(len(big), dtype=torch.float64))
    wiener = big @ noisy
    pull = wiener @ precision @ (posterior - mu).flatten()
    level = noisy + wiener @ gram @ wiener
    want = mu + torch.linalg.solve(level, pull).reshape(mu.shape)
    values = torch.linalg.eigvalsh(level)
    zeta, steps = 1 / (0.8496 * sigma**2 * float(values.max())), int(30 * float(values.max() / values.min()))
    blocks = torch.stack([cov[u] @ torch.linalg.inv(cov[u] + sigma**2 * torch.eye(len(cov[u]), dtype=torch.float64))
                          for u in range(len(cov))])  # fmt: skip
    got = _source_loop(y, h, encode, mu, blocks, sigma, zeta, 2.0, steps)
    within(got, want, tolerance, f"source fixed point sigma={sigma}")
    if sigma < 1e-3:
        within(got, posterior, tolerance, "source posterior mean")
    for factor in (1.0, 4.0):
        wrong = _source_loop(y, h, encode, mu, blocks, sigma, zeta / 2, factor, 2 * steps)
        assert float((wrong - want).abs().max()) > 1e-4, "a factor-2 slip must move the fixed point"


@pytest.mark.parametrize("variable", ["h", "d"])
@pytest.mark.parametrize("sigma", [0.05, 0.7])
def test_step_size_limit(variable, sigma):
    """One level is stable iff zeta (1 + D/(v+s^2) + D w^2 lmax/s) < 2: 0.98 of the limit contracts, 1.02 grows."""
    above, s = 1.36 * sigma, 0.3
    w, delta = V / (V + sigma**2), above**2 - sigma**2
    if variable == "h":
        y, _, x = _case(1, 2)
        top = float(torch.linalg.eigvalsh(x @ x.mH).max())
        shape, dtype = (1, 1, 3, 4, 2), torch.complex128

        def score(mean):
            return w * sf.likelihood_score(y, w * mean, x).score_h
    else:
        y, h, encode, mu, cov = _source_case()
        top = float(
            torch.linalg.eigvalsh(
                _map_of_source(y, h, encode, mu, cov)[1] - torch.linalg.inv(torch.block_diag(*cov))
            ).max()
        )
        top *= NOISE_VAR  # lambda_max(2 Re J^H H^H H J)
        shape, dtype = (1, *mu.shape), torch.float64

        def score(mean):
            leaf = mean.clone().requires_grad_(True)
            x = encode(w * leaf)
            return torch.autograd.grad(x, leaf, 2 * sf.likelihood_score(y, h, x.detach()).score_x)[0]

    limit = 2 / (1 + delta / (V + sigma**2) + delta * w**2 * top / s)
    anchor = draw(*shape, seed=7, dtype=dtype)
    for share, stable in ((0.98, True), (1.02, False)):
        mean, moves = torch.zeros(shape, dtype=dtype), []
        for _ in range(300):
            new, _ = sf.pvd_update(mean, anchor, mean, w * mean, score(mean), sigma=sigma, sigma_above=above,
                                   zeta=share * limit, score_var=s, next_var=0)  # fmt: skip
            moves.append(float((new - mean).norm()))
            mean = new
        # the slowest direction changes by |1 - 2 share| = 0.96 or 1.04 a step once the others have died out
        rate = (moves[-1] / moves[-101]) ** 0.01
        assert (rate < 1) is stable, (share, rate)
        if not stable:
            assert abs(rate - 1.04) < 1e-3, rate
