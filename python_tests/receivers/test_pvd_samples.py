"""Several samples of every state (L > 1): their draws, their average, and what a run reports of them."""

import pytest
import torch
from pvd_toys import GaussianSource, KnownCodeword, RollEncoder, link, pvd_by_hand
from sf_testing import draw, same_bits, within

import semcom_fast as sf

J, JIN, BATCH = 4, 3, 3
RUN = J * JIN * 20  # roundings, of the largest mean, in a run: about 20 operations a step
NOISE = torch.tensor([0.05, 0.2, 0.8], dtype=torch.float64)


def _case(users=1, nt=1, dtype=torch.complex128, **config):
    encoder = RollEncoder(users, 2, nt, 6, dtype.to_real())
    c = sf.PVDConfig(
        users=users, nt=nt, source_shape=(encoder.n,), J=J, Jin=JIN, sigma_max=5.0, sigma_min=0.1, **config
    )
    _, y = link(BATCH, users, 2, 3, encoder(draw(BATCH, users, encoder.n, seed=5, dtype=dtype.to_real())), 0.05)
    return sf.PVD(encoder, sf.GaussianChannelPrior(1.2), GaussianSource(1.3, 0.2), c), y


COMBINED = [
    {"L": 2},
    {"L": 3, "calibration": "moment"},
    {"L": 2, "users": 2, "nt": 2, "exact_covariance": True},
    {"L": 2, "users": 2, "zeta_h": (0.12, 0.05), "zeta_d": (0.07, 0.1), "lagged_noise": True},
    {"L": 2, "calibration": "moment", "lagged_noise": True, "sample_noise": False},
]
combined = pytest.mark.parametrize("config", COMBINED, ids=lambda c: " ".join(f"{k}={v}" for k, v in c.items()))


@combined
def test_against_the_algorithm_by_hand(config):
    """With restarts, a noise variance per image and images counted from 4: means, energies and variances agree."""
    pvd, y = _case(**config)
    seen = []
    got = pvd.run(y, NOISE, restarts=2, seed=9, first_item=4, on_level=seen.append)
    many, noise = y.repeat_interleave(2, 0), NOISE.repeat_interleave(2)
    prior_h, prior_d = sf.GaussianChannelPrior(1.2), GaussianSource(1.3, 0.2)
    h, d, var = pvd_by_hand(many, noise, pvd.encode, prior_h, prior_d, pvd.config, seed=9, first_item=8)
    bound = RUN * 2.0**-53
    within(seen[-1].h, h, bound * h.abs().max(), "samples by hand h")
    within(seen[-1].d, d, bound * d.abs().max(), "samples by hand d")
    within(seen[-1].score_var[-2 * BATCH :], var[-1], bound * var[-1], "samples by hand score_var")
    energy = (many - torch.matmul(h, pvd.encode(d)).sum(1)).abs().square().sum((1, 2, 3))
    within(got.energy_all.flatten(), energy, 10 * bound * energy, "samples by hand energy")


@combined
@pytest.mark.parametrize("restarts", [1, 2])
def test_split_batch(config, restarts):
    """A batch cut anywhere: the same bits of every mean and of what on_level sees, sample by sample."""
    pvd, y = _case(**(config | {"dtype": torch.complex64}))
    noise = NOISE.float()

    def run(rows, first):
        seen = []
        pvd.run(y[rows], noise[rows], restarts=restarts, seed=7, first_item=first, on_level=seen.append)
        return seen

    whole, left, right = run(slice(None), 2), run(slice(1), 2), run(slice(1, None), 3)
    unit = RUN * 2.0**-24  # exact_covariance solves with BLAS and LAPACK, which promise no bits
    for w, *parts in zip(whole, left, right, strict=True):
        for name in ("h", "d", "energy", "score_var"):
            want = getattr(w, name)
            cut = [getattr(p, name) for p in parts]
            if name in ("energy", "score_var"):
                want = want.unflatten(0, (pvd.config.L, -1)).mT
                cut = [p.unflatten(0, (pvd.config.L, -1)).mT for p in cut]
            if pvd.config.exact_covariance:
                within(torch.cat(cut), want, unit * want.abs().max(), f"split batch, samples, {name}")
            else:
                same_bits(torch.cat(cut), want, name)


def test_energy_of_every_sample():
    """After one iteration: |Y - sum_u H0 f(D0)|^2 and the moment's variance of each sample, sample by sample."""
    pvd, y = _case(users=2)
    c = sf.PVDConfig(**(vars(pvd.config) | {"J": 1, "Jin": 1, "L": 3, "calibration": "moment"}))
    prior_h, prior_d = sf.GaussianChannelPrior(1.2), GaussianSource(1.3, 0.2)
    seen = []
    sf.PVD(pvd.encode, prior_h, prior_d, c).run(y, 1e-3, seed=6, on_level=seen.append)
    low, high = c.sigma_min, c.sigma_max
    sigma, spread = torch.tensor(low, dtype=torch.float64), low * (1 - low**2 / high**2) ** 0.5
    shapes = {1: (BATCH, 2, 2, 3, 1), 2: (BATCH, 2, *c.source_shape)}
    want = []
    for i in range(3):
        h, d = (low * sf.philox_normal(shapes[s], seed=6, step=1, stream=s + 2, dtype=kind)
                + spread * sf.philox_normal(shapes[s], seed=6, step=0, stream=s + 16 * i, dtype=kind)
                for s, kind in ((1, y.dtype), (2, y.real.dtype)))  # fmt: skip
        h0, x = prior_h(h, sigma)[0], pvd.encode(prior_d(d, sigma)[0])
        want.append((y - torch.matmul(h0, x).sum(1)).abs().square().sum((1, 2, 3)))
    got = seen[0].energy.unflatten(0, (3, BATCH))
    within(got, torch.stack(want), 1e-13 * got, "energy of every sample")
    within(seen[0].score_var, seen[0].energy / y[0].numel(), 1e-15 * seen[0].score_var, "moment of every sample")


@pytest.mark.parametrize("samples", [1, 2, 8])
def test_the_average_lowers_the_variance(samples):
    """One step from a given start scatters around the step of the mean by zeta^2 gain^2 lambda/L.

    Codeword of unit modulus and Nt = 1 (X X^H = T): everything is linear, and an error e of the sample moves the mean
    by -zeta gain e, gain = 1 + rho (1 - w) + D w^2 T/s for the channel, 1 + rho (1 - w) for the source; the sample has
    the variance lambda around the mean.
    """
    b, k, nr, t, n, low, high, noise_var = 64, 4, 4, 8, 64, 0.5, 0.9, 0.1
    phase = draw(b, 1, k, 1, t, seed=1)
    x = phase / phase.abs()
    _, y = link(b, 1, k, nr, x, noise_var)
    runs = []
    for sample_noise in (True, False):
        c = sf.PVDConfig(source_shape=(n,), J=1, Jin=1, L=samples, sigma_max=high, sigma_min=low,
                         sample_noise=sample_noise)  # fmt: skip
        pvd = sf.PVD(KnownCodeword(x), sf.GaussianChannelPrior(), GaussianSource(), c)
        runs.append(pvd.run(y, noise_var, seed=8))
    delta, w = high**2 - low**2, 1 / (1 + low**2)
    rho, spread = delta / low**2, low**2 * delta / high**2
    gain = {"d": 1 + rho * (1 - w), "h": 1 + rho * (1 - w) + delta * w**2 * t / (noise_var + w * low**2)}
    for name, freedom in (("h", 2 * b * k * nr), ("d", b * n)):
        scatter = (getattr(runs[0], name) - getattr(runs[1], name)).abs().square().mean()
        want = torch.tensor((0.1 * gain[name]) ** 2 * spread / samples, dtype=torch.float64)
        within(scatter, want, 4 * (2 / freedom) ** 0.5 * want, f"scatter of the average of {samples}, {name}")
