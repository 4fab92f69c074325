"""The water-filling receiver against closed forms: Gaussian priors, the true source, a mixture, the Wiener bound."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import waterfill_cases as cases
from sf_testing import draw, same_bits, within

import semcom_fast as sf

T = 50
BACKENDS = ("cpu", "reference")


@pytest.fixture(params=BACKENDS)
def backend(request):
    with sf.use_backend(request.param):
        yield request.param


def _real(*shape, seed=0):
    return draw(*shape, seed=seed, dtype=torch.float64)


def _levels(b, n, seed=5, low=0.02, high=0.98):
    u = torch.rand(b, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return low + (high - low) * u


def _column(level, like):
    return level.reshape(-1, *(1,) * (like.ndim - 1)).to(like.dtype)


def _gaussian(v):
    """x0 of f0 ~ N(0, v) element by element."""

    def predict(g, level):
        b = _column(level, g)
        return (1 - b).sqrt() * v / ((1 - b) * v + b) * g

    return predict


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 400])
def test_unit_gaussian_slow(steps, backend):
    """N(0,1): every step multiplies by cos(theta_t - theta_s), sin^2 theta = beta."""
    f, start = _real(3, 24, seed=1), torch.tensor([0.05, 0.5, 0.97], dtype=torch.float64)
    theta = np.arcsin(np.sqrt(cases.span_levels(start.numpy(), steps)))
    want = f * torch.from_numpy(np.cos(np.diff(theta, axis=0)).prod(0))[:, None]
    got = sf.WaterfillDDIM(_gaussian(1.0), sf.WaterfillConfig(steps=steps)).run(f, start)
    within(got, want, 1e-13 * (1 + f.abs()), "N(0,1), Algorithm 2")


@pytest.mark.parametrize("v", [0.01, 0.3, 4.0])
def test_gaussian_of_any_variance(v, backend):
    """N(0,v): the factor of a step is (s_t s_s + c_t c_s v)/(c_t^2 v + s_t^2)."""
    f, start = _real(2, 24, seed=1), torch.tensor([0.2, 0.9], dtype=torch.float64)
    level = cases.span_levels(start.numpy(), T)
    s, c = np.sqrt(level), np.sqrt(1 - level)
    factor = (s[:-1] * s[1:] + c[:-1] * c[1:] * v) / (c[:-1] ** 2 * v + s[:-1] ** 2)
    got = sf.WaterfillDDIM(_gaussian(v), sf.WaterfillConfig(steps=T)).run(f, start)
    within(got, f * torch.from_numpy(factor.prod(0))[:, None], 1e-13 * (1 + f.abs()), "N(0,v), Algorithm 2")


def test_unit_gaussian_fast(backend):
    """Algorithm 3: an element joins at the first step with d >= beta_{k+1}, from its injection at beta_k."""
    b, n = 3, 24
    f, d, noise = _real(b, 2 * n, seed=1), _levels(b, n), _real(T, b, 2 * n, seed=2)
    table = cases.span_levels(d.max(1).values.numpy(), T)
    theta = np.arcsin(np.sqrt(table))
    cosines = np.cos(np.diff(theta, axis=0))  # [T, B]
    own = cases.per_real(d.numpy(), 2 * n)
    want = np.empty_like(own)
    for i in range(b):
        for j in range(2 * n):
            k = int(np.argmax(own[i, j] >= table[1:, i]))
            missing = max(table[k, i] - own[i, j], 0.0)
            r = 1 - missing / (1 - own[i, j])
            g = math.sqrt(r) * f[i, j].item() + math.sqrt(1 - r) * noise[k, i, j].item()
            want[i, j] = g * cosines[k:, i].prod()
    got = sf.WaterfillDDIM(_gaussian(1.0), sf.WaterfillConfig(steps=T)).run(f, d, noise=noise)
    within(got, torch.from_numpy(want), 1e-13 * (1 + f.abs() + noise.abs().amax(0)), "N(0,1), Algorithm 3")


@pytest.mark.parametrize("start", [0.9, 0.1])
def test_true_source(start, backend):
    """With the true f0 as prediction Algorithm 2 stays on f_s = sqrt(1-beta_s) f0 + sqrt(beta_s) n at every step."""
    f0, n = _real(2, 3, 8, seed=1), _real(2, 3, 8, seed=2)
    seen = []
    f = math.sqrt(1 - start) * f0 + math.sqrt(start) * n
    loop = sf.WaterfillDDIM(lambda g, level: f0, sf.WaterfillConfig(steps=T))
    got = loop.run(f, torch.full((2,), start, dtype=torch.float64), on_step=seen.append)
    assert [s.step for s in seen] == list(range(1, T + 1))
    for s, level in zip(seen[:-1], cases.span_levels(start, T)[1:-1, 0], strict=True):
        within(s.beta_bar, torch.full((2,), float(level), dtype=torch.float64), 1e-15, "levels of the run")
        within(s.g, math.sqrt(1 - level) * f0 + math.sqrt(level) * n, 2e-14, "true source, every step")
    within(got, f0, 1e-14, "true source, the end")


def test_true_source_under_unequal_levels(backend):
    """Var[g | f0] = beta_t for every element in every step of Algorithm 3: the residual has the level's variance."""
    b, n = 4, 20_000
    f0, d = _real(b, n, seed=1), _levels(b, n // 2, low=0.05, high=0.95)
    own = d.repeat(1, 2)
    f = (1 - own).sqrt() * f0 + own.sqrt() * _real(b, n, seed=2)
    seen = []
    sf.WaterfillDDIM(lambda g, level: f0, sf.WaterfillConfig(steps=6)).run(f, d, noise="philox", on_step=seen.append)
    for s in seen[:-1]:
        residual = s.g - (1 - s.beta_bar)[:, None].sqrt() * f0
        # the variance of n squares of variance 2 beta^2: five standard errors
        limit = 5 * math.sqrt(2 / n) * s.beta_bar
        within((residual**2).mean(1), s.beta_bar, limit, "Var[g | f0]")
        within((residual * f0).mean(1), torch.zeros(b).double(), 5 * (s.beta_bar / n).sqrt(), "residual against f0")


def test_mixture():
    """A two-component mixture: T = 1 is its posterior mean, and many steps sample instead: MSE rises, as tabulated."""
    table = {-15: (0.956, 1.610), 0: (0.477, 0.560), 10: (0.078, 0.081)}
    n = 200_000
    signs = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(3)) * 2 - 1
    f0 = (0.9 * signs + 0.43 * _real(n, seed=1))[None]

    def predict(g, level):
        return torch.from_numpy(cases.mixture_mean(g.numpy(), level.numpy()))

    for snr, wanted in table.items():
        level = 1 / (1 + 10 ** (snr / 10))
        f = math.sqrt(1 - level) * f0 + math.sqrt(level) * _real(1, n, seed=2)
        for steps, want in zip((1, T), wanted, strict=True):
            got = sf.WaterfillDDIM(predict, sf.WaterfillConfig(steps=steps)).run(f, level)
            error = (got - f0) ** 2
            # four standard errors on each side (the table gives no count of its own; as many as here) and its rounding
            limit = 4 * math.sqrt(2) * float(error.std()) / math.sqrt(n) + 5e-4
            within(error.mean(), torch.tensor(want, dtype=torch.float64), limit, f"mixture T={steps} at {snr} dB")
            if steps == 1:
                same = torch.from_numpy(cases.mixture_mean(f.numpy(), np.array([level])))
                within(got, same, 1e-15 * 4, "one step is the posterior mean")


def test_mixture_mean_by_quadrature():
    """The closed form of the mixture's posterior mean that the tests use, by numerical integration."""
    x = np.linspace(-6, 6, 20_001)
    prior = sum(np.exp(-((x - m) ** 2) / (2 * 0.43**2)) for m in (0.9, -0.9))
    for level in (0.02, 0.5, 0.97):
        for g in (-1.3, 0.1, 0.8):
            weight = prior * np.exp(-((g - math.sqrt(1 - level) * x) ** 2) / (2 * level))
            want = (weight * x).sum() / weight.sum()
            assert cases.mixture_mean(np.array([[g]]), np.array([level])).item() == pytest.approx(want, abs=1e-10)


def test_wiener_is_a_lower_bound(backend):
    """AR(1) rows under unequal d: the Wiener solve is the optimum; water-filling loses to it and beats the raw f~."""
    b, n = 64, 48
    cov = cases.ar1(n)
    root = torch.from_numpy(np.linalg.cholesky(cov))
    for snr in (-5, 5):
        f0 = _real(b, n, seed=1) @ root.T
        gain = _real(2, b, n // 2, seed=4).square().sum(0) / 2
        sigma2 = 10 ** (-snr / 10)
        d = sigma2 / (gain + sigma2)
        own = d.repeat(1, 2)
        f = (1 - own).sqrt() * f0 + own.sqrt() * _real(b, n, seed=2)
        s = (1 - own).sqrt()
        system = s[:, :, None] * torch.from_numpy(cov) * s[:, None, :] + torch.diag_embed(own)
        best = torch.from_numpy(cov) @ (s * torch.linalg.solve(system, f)).unsqueeze(-1)
        predict = cases.GaussianRows(cov).torch()
        got = sf.WaterfillDDIM(predict, sf.WaterfillConfig(steps=20)).run(f, d, seed=3)
        raw, wiener, ours = (((v - f0) ** 2).mean(1) for v in (f, best.squeeze(-1), got))
        gap = ours - wiener  # paired: the same rows, so the difference has far less spread than either
        assert float(gap.mean()) > 4 * float(gap.std()) / math.sqrt(b), "below the optimum"
        assert float(ours.mean()) < 0.8 * float(raw.mean())


def _elementwise(g, level):
    """A predictor whose bits do not depend on the batch or the position of an element."""
    b = _column(level, g)
    return (1 - b) * g / (1 + b * g * g)


def _plain_ddim(f, start, steps):
    """Algorithm 2 as a loop of steps in which every element is active (d = 1)."""
    table = torch.from_numpy(sf.WaterfillConfig(steps=steps).tables(start.double().numpy()).levels).to(f.dtype)
    g, d = f, torch.ones(len(f), f.shape[1] // 2, dtype=f.dtype)
    for t, s in pairwise(table):
        g = sf.waterfill_step(g, _elementwise(g, t), f, d, t, s, noise=torch.zeros_like(f))
    return g


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("noise", ["philox", "torch", "tensor"])
def test_equal_levels_are_algorithm_2(noise, dtype, backend):
    """Equal d per image: Algorithm 3 is Algorithm 2 bit for bit, whatever the noise and the form of d."""
    b, n, steps = 3, 16, 20
    start = torch.tensor([0.05, 0.5, 0.97], dtype=torch.float64).to(dtype)
    f = _real(b, n, seed=1).to(dtype)
    given = _real(steps, b, n, seed=2).to(dtype) if noise == "tensor" else noise
    loop = sf.WaterfillDDIM(_elementwise, sf.WaterfillConfig(steps=steps))
    want = loop.run(f, start)
    for d in (start[:, None].repeat(1, n // 2), start[:, None].repeat(1, n), start[:, None]):
        same_bits(loop.run(f, d, noise=given), want, f"equal d {tuple(d.shape)}")
    same_bits(want, _plain_ddim(f, start, steps), "Algorithm 2 in a loop of steps")


def _algorithm_3(f, d, table, noise):
    """Lines 1-13 with a state f and its levels b, from the public step (all active) and injection."""
    ones = torch.ones_like(d)
    b = d.clone()
    for k, (t, s) in enumerate(pairwise(table)):
        g = sf.waterfill_inject(f, b, t, noise=noise[k])
        moved = sf.waterfill_step(g, _elementwise(g, t), f, ones, t, s, noise=noise[k])
        active = b >= _column(s, b)
        f, b = torch.where(active, moved, f), torch.where(active, _column(s, b), b)
        assert bool((b <= _column(s, b).clamp(min=0)).all() if k == len(noise) - 1 else True)
        assert torch.equal(b, torch.minimum(d, _column(s, b))), "b = min(d, beta)"
        waiting = d < _column(s, b)
        yield f, waiting


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("per_real", [False, True], ids=["d per symbol", "d per real"])
@pytest.mark.parametrize("steps", [1, 2, 20, 50])
def test_one_array_is_algorithm_3(steps, per_real, dtype, backend):
    """The state compression: one array g equals Algorithm 3 with f and b, bit for bit; waiting elements still hold f~."""
    b, n = 3, 32
    f, noise = _real(b, n, seed=1).to(dtype), _real(steps, b, n, seed=2).to(dtype)
    d = _levels(b, n if per_real else n // 2).to(dtype)
    d[1, 3], d[2, 5:9] = 0.0, d[2].max()
    own = d if per_real else d.repeat(1, 2)
    config = sf.WaterfillConfig(steps=steps)
    table = torch.from_numpy(config.tables(own.double().amax(1).numpy()).levels).to(dtype)
    state = f
    for state, waiting in _algorithm_3(f, own, table, noise):
        same_bits(state[waiting], f[waiting], "waiting elements")
    got = sf.WaterfillDDIM(_elementwise, config).run(f, d, noise=noise)
    same_bits(got, state, "one array against Algorithm 3")


def test_independent_algorithm_3(backend):
    """The same against the NumPy version of Algorithm 3, with a predictor that couples the elements."""
    b, n, steps = 4, 32, 25
    rows = cases.GaussianRows(cases.ar1(n, 0.8))
    f, d, noise = _real(b, n, seed=1), _levels(b, n // 2), _real(steps, b, n, seed=2)
    want = cases.algorithm3(f.numpy(), d.numpy(), cases.span_levels(d.amax(1).numpy(), steps), noise.numpy(), rows)
    got = sf.WaterfillDDIM(rows.torch(), sf.WaterfillConfig(steps=steps)).run(f, d, noise=noise)
    within(got, torch.from_numpy(want), 1e-12, "Algorithm 3 in NumPy")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_edges(dtype, backend):
    """d = 0 for one element and for all, d = 1 - 1e-12, and one sounding value for all: finite runs."""
    f = _real(2, 16, seed=1).to(dtype)
    base = _levels(2, 8).to(dtype)
    loop = sf.WaterfillDDIM(_elementwise, sf.WaterfillConfig(steps=10))
    one = base.clone()
    one[0, 2] = 0
    near = base.clone()
    near[1, 1] = 1 - 1e-12
    for d in (one, near, torch.full_like(base, 1 - 1e-12), torch.full_like(base, 1e-12)):
        assert loop.run(f, d, seed=1).isfinite().all()
    for nothing in (torch.zeros_like(base), torch.zeros(2, dtype=dtype), 0.0):
        same_bits(loop.run(f, nothing, seed=1), f, "no noise at all: the identity")


def test_one_step_is_the_posterior_mean(backend):
    """T = 1: the output is the prediction at beta_0 itself."""
    f, start = _real(2, 16, seed=1), torch.tensor([0.3, 0.8], dtype=torch.float64)
    got = sf.WaterfillDDIM(_elementwise, sf.WaterfillConfig(steps=1)).run(f, start)
    same_bits(got, _elementwise(f, start), "T = 1")


def test_silent_channel_is_pure_noise(backend):
    """|h| = 0 on one symbol: d = 1, the run starts at beta_0 = 1 and stays finite."""
    y, h = draw(2, 8, seed=1), draw(2, 8, seed=2)
    h[0, 3] = 0
    f, d = sf.waterfill_equalise(y, h, 0.2)
    levels = []
    got = sf.WaterfillDDIM(
        lambda g, level: (levels.append(level.clone()), _elementwise(g, level))[1], sf.WaterfillConfig(steps=5)
    ).run(f, d, seed=1)
    assert got.isfinite().all() and float(levels[0][0]) == 1.0 and float(levels[0][1]) < 1
