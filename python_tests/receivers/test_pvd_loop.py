"""sf.PVD against the algorithm written out by hand, and what a run reports while it goes."""

import pytest
import torch
from pvd_toys import GaussianSource, LinearEncoder, RollEncoder, link, pvd_by_hand
from sf_testing import draw, within

import semcom_fast as sf

RUN = 20 * 20  # roundings, of the largest mean, in a run: 20 steps of about 20 operations each
SMALL = {"J": 5, "Jin": 4, "sigma_max": 5.0, "sigma_min": 0.1, "zeta_h": 0.12, "zeta_d": 0.07}


def _case(users=1, nt=1, dtype=torch.complex128, k=2, nr=3, t=6, batch=3, **config):
    encoder = RollEncoder(users, k, nt, t, torch.float64 if dtype is torch.complex128 else torch.float32)
    c = sf.PVDConfig(users=users, nt=nt, source_shape=(encoder.n,), **(SMALL | config))
    d = draw(batch, users, encoder.n, seed=5, dtype=dtype.to_real())
    _, y = link(batch, users, k, nr, encoder(d), 0.05)
    return encoder, c, y


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"users": 2},
        {"nt": 2},
        {"users": 2, "nt": 2, "L": 2},
        {"L": 3},
        {"calibration": "moment"},
        {"Jin": 1},
        {"calibration": "moment", "L": 2},
        {"sample_noise": False},
        {"sample_noise": False, "L": 2},
        {"J": 1, "sigma_max": 0.3},
        {"v0": 1.0},
        {"v0": 0.2, "users": 2, "L": 2},
    ],
    ids=lambda c: " ".join(f"{k}={v}" for k, v in c.items()) or "default",
)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_against_the_algorithm_by_hand(config, backend):
    """Signs, factors of two, streams, steps, anchors and averages: every mean of every level agrees to rounding."""
    encoder, c, y = _case(**config)
    prior_h, prior_d = sf.GaussianChannelPrior(), GaussianSource(1.3, 0.2)
    want_h, want_d, want_var = pvd_by_hand(y, 0.05, encoder, prior_h, prior_d, c, seed=9, first_item=4)
    seen = []
    with sf.use_backend(backend):
        got = sf.PVD(encoder, prior_h, prior_d, c).run(y, 0.05, seed=9, first_item=4, on_level=seen.append)
    bound = RUN * 2.0**-53
    within(got.h, want_h, bound * want_h.abs().max(), "loop by hand h")
    within(got.d, want_d, bound * want_d.abs().max(), "loop by hand d")
    var = seen[-1].score_var[-len(y) :]
    within(var, want_var[-1], bound * want_var[-1], "loop by hand score_var")
    residual = y - torch.matmul(want_h, encoder(want_d)).sum(1)
    within(got.energy, residual.abs().square().sum((1, 2, 3)), 10 * bound * got.energy, "loop by hand energy")


def test_a_wrong_factor_shows():
    """The comparison by hand notices a channel score that is off by a factor of 1 + 1e-10."""
    encoder, c, y = _case()
    args = (GaussianSource(1.3, 0.2), c)
    want = pvd_by_hand(y, 0.05, encoder, sf.GaussianChannelPrior(), *args, seed=9)[0]
    got = pvd_by_hand(y, 0.05 * (1 + 1e-10), encoder, sf.GaussianChannelPrior(), *args, seed=9)[0]
    assert float((got - want).abs().max()) > RUN * 2.0**-53 * float(want.abs().max())


def test_noise_variance_per_image():
    """noise_var [B] gives every image the run it has alone with its own number, restarts included."""
    encoder, c, y = _case(L=2)
    pvd = sf.PVD(encoder, sf.GaussianChannelPrior(), GaussianSource(), c)
    levels = torch.tensor([0.05, 0.2, 0.8], dtype=torch.float64)
    got = pvd.run(y, levels, seed=1, restarts=2)
    for b in range(3):
        want = pvd.run(y[b : b + 1], float(levels[b]), seed=1, restarts=2, first_item=b)
        assert torch.equal(got.h[b], want.h[0]) and torch.equal(got.energy_all[b], want.energy_all[0])
    for same in (torch.tensor(0.05), torch.tensor([0.05], dtype=torch.float64)):
        close = pvd.run(y, same, seed=1).h
        within(close, pvd.run(y, 0.05, seed=1).h, 1e-6 * close.abs().max(), "0-d and [1] noise_var")


def test_on_level_callback():
    """One call per level, from the top down, with the means; the last call holds the result."""
    encoder, c, y = _case(users=2)
    seen = []
    out = sf.PVD(encoder, sf.GaussianChannelPrior(), GaussianSource(), c).run(y, 0.05, seed=3, on_level=seen.append)
    assert [v.level for v in seen] == list(range(c.J - 1, -1, -1))
    assert [v.sigma for v in seen] == c.schedule()[c.J - 1 :: -1]
    assert torch.equal(seen[-1].h, out.h) and torch.equal(seen[-1].d, out.d)
    for v in seen:
        assert v.h.shape == (3, 2, 2, 3, 1) and v.d.shape == (3, 2, c.source_shape[0])
        assert v.energy.shape == v.score_var.shape == (3,) and bool((v.score_var >= 0.05).all())
    assert not torch.equal(seen[0].h, seen[1].h)


def test_progress_bar(capsys):
    """progress=True draws a bar on stderr over all J*Jin iterations and changes nothing else; off by default."""
    encoder, c, y = _case()
    pvd = sf.PVD(encoder, sf.GaussianChannelPrior(), GaussianSource(), c)
    quiet = pvd.run(y, 0.05, seed=1)
    assert capsys.readouterr().err == ""
    shown = pvd.run(y, 0.05, seed=1, progress=True)
    assert "20/20" in capsys.readouterr().err
    assert torch.equal(quiet.h, shown.h)


@pytest.mark.parametrize("grad", [True, False])
def test_runs_inside_any_grad_mode(grad):
    """The caller's grad mode does not matter, results carry no graph, and network weights receive no gradient."""
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    encoder, c, y = _case()
    pvd = sf.PVD(lambda d: encoder(d * weight), sf.GaussianChannelPrior(), GaussianSource(), c)
    with torch.set_grad_enabled(grad):
        out = pvd.run(y, 0.05, seed=1)
        assert torch.is_grad_enabled() is grad
    assert not out.h.requires_grad and not out.d.requires_grad and weight.grad is None


def test_runs_in_inference_mode():
    """torch.inference_mode around the call does not matter, nor do inference tensors as input."""
    encoder, c, y = _case()
    pvd = sf.PVD(encoder, sf.GaussianChannelPrior(), GaussianSource(), c)
    want = pvd.run(y, 0.05, seed=1)
    with torch.inference_mode():
        inside = pvd.run(y, 0.05, seed=1)
        other = y * 1
    assert torch.equal(inside.h, want.h) and torch.equal(pvd.run(other, 0.05, seed=1).h, want.h)


def test_user_lists_equal_one_callable():
    """A list of U callables is called per user with [B, ...] and gives the run of the joint callables."""
    users, n, k, t = 2, 16, 2, 6
    joint = LinearEncoder(users, n, k, 1, t, torch.complex128)

    def one(u):
        m = joint.matrix[u]
        return lambda d: sf.power_normalise((d.to(m.dtype) @ m.mT).unflatten(-1, (k, 1, t)))[0]

    def denoise(model):
        def call(x, sigma):
            mean, var = model(x.unsqueeze(1), sigma)
            return mean[:, 0], var[:, 0]

        return call

    c = sf.PVDConfig(users=users, source_shape=(n,), **SMALL)
    d = draw(3, users, n, dtype=torch.float64)
    _, y = link(3, users, k, 4, joint(d), 0.05)
    channel, source = sf.GaussianChannelPrior(), GaussianSource(1.1)
    want = sf.PVD(joint, channel, source, c).run(y, 0.05, seed=2)
    got = sf.PVD([one(0), one(1)], [denoise(channel)] * 2, [denoise(source)] * 2, c).run(y, 0.05, seed=2)
    within(got.h, want.h, 1e-11 * want.h.abs().max(), "lists of users")
    within(got.d, want.d, 1e-11 * want.d.abs().max(), "lists of users")


def test_denoisers_with_and_without_vjp():
    """A denoiser's own vjp and automatic differentiation give the same run; var may be [B] or [B,U]."""
    encoder, c, y = _case()

    class Plain:
        def __call__(self, x, sigma):
            mean, var = sf.GaussianChannelPrior()(x, sigma)
            return mean * 1.0, var[:, 0]

    want = sf.PVD(encoder, sf.GaussianChannelPrior(), GaussianSource(), c).run(y, 0.05, seed=2)
    got = sf.PVD(encoder, Plain(), GaussianSource(), c).run(y, 0.05, seed=2)
    within(got.h, want.h, 1e-11 * want.h.abs().max(), "vjp or autograd")


def test_nonsymmetric_denoiser_uses_its_vjp():
    """A denoiser with a nonsymmetric Jacobian is pulled back by the transpose, not the Jacobian itself."""
    encoder, c, y = _case()
    mix = torch.eye(encoder.n, dtype=torch.float64) + 0.2 * draw(
        encoder.n, encoder.n, seed=8, dtype=torch.float64
    ).triu(1)

    def skewed(x, sigma):
        mean, var = GaussianSource()(x @ mix.T, sigma)
        return mean, var

    want = pvd_by_hand(y, 0.05, encoder, sf.GaussianChannelPrior(), skewed, c, seed=9)
    got = sf.PVD(encoder, sf.GaussianChannelPrior(), skewed, c).run(y, 0.05, seed=9)
    within(got.d, want[1], 1e-11 * want[1].abs().max(), "nonsymmetric denoiser")


def test_variance_of_a_denoiser_is_clamped():
    """Posterior variances outside [0, sigma^2] count as the nearest end: wild ones give the run of the clamped ones."""
    encoder, c, y = _case()

    def with_var(value):
        return lambda x, sigma: (GaussianSource()(x, sigma)[0], value(sigma).expand(x.shape[:2]))

    def run(value):
        return sf.PVD(encoder, sf.GaussianChannelPrior(), with_var(value), c).run(y, 0.05, seed=2).h

    assert torch.equal(run(lambda s: 50 * s**2), run(lambda s: s**2))
    assert torch.equal(run(lambda s: -(s**2)), run(lambda s: 0 * s))
    assert not torch.equal(run(lambda s: s**2), run(lambda s: 0 * s))
