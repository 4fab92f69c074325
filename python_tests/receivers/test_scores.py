"""The chain from likelihood to the variables of the loop, and the effective noise variance, against first principles."""

import pytest
import torch
from sf_testing import draw, within

import semcom_fast as sf

K, NR, NT, T, N = 2, 3, 2, 4, 5


def _problem(users):
    y = draw(1, K, NR, T, seed=1)
    h, d = draw(1, users, K, NR, NT, seed=2), draw(1, users, N, seed=3, dtype=torch.float64)
    matrix = draw(users, K * NT * T, N, seed=4)
    return y, h, d, matrix


def _encode(d, matrix):
    """tanh of a complex linear map, part by part, then the power constraint."""
    z = torch.einsum("umn,bun->bum", matrix, d.to(matrix.dtype))
    z = torch.complex(z.real.tanh(), (z.imag + 0.3).tanh()).unflatten(-1, (K, NT, T))
    return sf.power_normalise(z)[0]


def _denoise_d(d, sigma):
    """A denoiser with a dense, nonsymmetric Jacobian."""
    skew = torch.eye(N, dtype=torch.float64) + 0.3 * draw(N, N, seed=7, dtype=torch.float64)
    return (d @ skew.T).tanh() / (1 + sigma**2)


def _log_likelihood(y, h, d, matrix, s, sigma):
    h0 = sf.GaussianChannelPrior(0.8)(h, sigma)[0]
    residual = y - torch.matmul(h0, _encode(_denoise_d(d, sigma), matrix)).sum(1)
    return -residual.abs().square().sum() / s


@pytest.mark.parametrize("users", [1, 2])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_scores_against_central_differences(users, backend):
    """d ln p = 2 Re<g_H, dH> + <g_D, dD>: Wirtinger score of H through its prior, ordinary gradient of D through
    encoder and denoiser from the cotangent 2 score_x. A factor of two in either shows."""
    y, h, d, matrix = _problem(users)
    s, sigma, step = 0.7, torch.tensor(0.6, dtype=torch.float64), 1e-6
    prior = sf.GaussianChannelPrior(0.8)
    with sf.use_backend(backend):
        leaf = d.clone().requires_grad_(True)
        x = _encode(_denoise_d(leaf, sigma), matrix)
        out = sf.likelihood_score(y, prior(h, sigma)[0], x.detach(), s)
        g_h = prior.vjp(out.score_h, sigma)
        (g_d,) = torch.autograd.grad(x, leaf, 2 * out.score_x)
        for seed in range(4):
            dh, dd = draw(*h.shape, seed=10 + seed), draw(*d.shape, seed=20 + seed, dtype=torch.float64)
            for name, move_h, move_d, want in (
                ("H", dh, 0 * dd, 2 * (g_h.conj() * dh).sum().real),
                ("D", 0 * dh, dd, (g_d * dd).sum()),
            ):
                up, down = (_log_likelihood(y, h + e * move_h, d + e * move_d, matrix, s, sigma) for e in (step, -step))
                # central differences: truncation O(step^2) and cancellation unit/step, both near 1e-10 of ln p
                within((up - down) / (2 * step), want, 2e-8 * abs(float(up)), f"central differences {name}")


def test_wirtinger_is_half_of_torch_gradient():
    """score = d ln p/d conj; torch's .grad of the same real function is exactly twice as large."""
    y, h, d, matrix = _problem(2)
    h.requires_grad_(True)
    x = _encode(d, matrix).requires_grad_(True)
    log_p = -(y - torch.matmul(h, x).sum(1)).abs().square().sum() / 0.7
    grads = torch.autograd.grad(log_p, (h, x))
    out = sf.likelihood_score(y, h.detach(), x.detach(), 0.7)
    within(2 * out.score_h, grads[0], 1e-13 * grads[0].abs().max(), "torch gradient is twice the score")
    within(2 * out.score_x, grads[1], 1e-13 * grads[1].abs().max(), "torch gradient is twice the score")


def _linear_case(users):
    h0 = draw(1, users, K, NR, NT, seed=2)
    jacobian = draw(users, K * NT * T, N, seed=4) / N**0.5
    d0 = draw(1, users, N, seed=3, dtype=torch.float64)
    x = torch.einsum("umn,bun->bum", jacobian, d0.to(jacobian.dtype)).unflatten(-1, (K, NT, T))
    var_h = torch.tensor([[0.3, 0.05]], dtype=torch.float64)[:, :users]
    var_d = torch.tensor([[0.2, 0.6]], dtype=torch.float64)[:, :users]
    return h0, jacobian, x, var_h, var_d


def _closed_form(h0, jacobian, x, var_h, var_d):
    """E|dN|^2/(Nr K T) for dN = dH X + H0 J dD + dH J dD; the cross terms vanish. One real direction is one column."""
    total = 0.0
    for u in range(h0.shape[1]):
        columns = jacobian[u].unflatten(0, (K, NT, T)).movedim(-1, 0)
        j2 = columns.abs().square().sum()
        hj2 = torch.matmul(h0[0, u], columns).abs().square().sum()
        energy = x[0, u].abs().square().sum()
        total += NR * var_h[0, u] * (energy + var_d[0, u] * j2) + var_d[0, u] * hj2
    return total / (NR * K * T)


@pytest.mark.parametrize("users", [1, 2])
def test_calibration_of_a_linear_encoder_is_exact(users):
    """The secant probe of a linear encoder is its Jacobian: summing the probe energies of all unit directions through
    likelihood_score and pvd_calibrate gives the closed form of (42) to rounding."""
    h0, jacobian, x, var_h, var_d = _linear_case(users)
    noise_var, energy = 0.25, [float(x[0, u].abs().square().sum()) for u in range(users)]
    y = torch.matmul(h0, x).sum(1)
    probe_x, probe_y = torch.zeros(1, users, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for u in range(users):
        for i in range(N):
            dx = torch.zeros_like(x)
            dx[0, u] = var_d[0, u].sqrt() * jacobian[u, :, i].unflatten(0, (K, NT, T))
            out = sf.likelihood_score(y, h0, x, probe=dx)
            probe_x, probe_y = probe_x + out.probe_x, probe_y + out.probe_y
    probe_x = probe_x + torch.tensor([energy], dtype=torch.float64)  # codewords of unequal energy: all of it in probe_x
    got = sf.pvd_calibrate(noise_var, var_h, probe_x, probe_y, x_energy=0.0, nr=NR, count=NR * K * T)
    want = noise_var + _closed_form(h0, jacobian, x, var_h, var_d)
    within(got[0], want, 1e-13 * want, f"calibration closed form U={users}")


@pytest.mark.parametrize("users", [1, 2])
def test_calibration_against_monte_carlo(users):
    """The closed form is the energy of what H and D's uncertainty adds to the residual, over 20,000 draws.

    The relative spread of one draw's energy is below 1, so five standard errors are 5/sqrt(20000).
    """
    h0, jacobian, x, var_h, var_d = _linear_case(users)
    draws = 20_000
    dh = draw(draws, users, K, NR, NT, seed=40) * var_h[0].sqrt().reshape(1, users, 1, 1, 1)
    dd = draw(draws, users, N, seed=41, dtype=torch.float64) * var_d[0].sqrt().reshape(1, users, 1)
    dx = torch.einsum("umn,bun->bum", jacobian, dd.to(jacobian.dtype)).unflatten(-1, (K, NT, T))
    y = torch.matmul(h0, x).sum(1)
    energy = sf.likelihood_score(y, h0 + dh, x + dx).energy / (NR * K * T)
    assert float(energy.std() / energy.mean()) < 1
    want = _closed_form(h0, jacobian, x, var_h, var_d)
    within(energy.mean(), want, 5 * want / draws**0.5, f"calibration Monte Carlo U={users}")
    # and the random secant probe, averaged, is unbiased for the same number
    z = draw(draws, users, N, seed=42, dtype=torch.float64) * var_d[0].sqrt().reshape(1, users, 1)
    probe = torch.einsum("umn,bun->bum", jacobian, z.to(jacobian.dtype)).unflatten(-1, (K, NT, T))
    out = sf.likelihood_score(y, h0, x, probe=probe)
    own = torch.tensor([float(x[0, u].abs().square().sum()) for u in range(users)], dtype=torch.float64)
    s = sf.pvd_calibrate(
        1e-12, var_h.expand(draws, -1), out.probe_x + own, out.probe_y, x_energy=0.0, nr=NR, count=NR * K * T
    )
    within(s.mean(), want, 5 * want / draws**0.5, f"secant probe average U={users}")
