"""Schedules, priors and networks that differ between the users of sf.PVD."""

import pytest
import torch
from pvd_toys import GaussianSource, RollEncoder, link, pvd_by_hand
from sf_testing import draw, same_bits, within

import semcom_fast as sf
from semcom_fast.receivers import unchecked
from semcom_fast.receivers.users import ParallelDenoiser
from semcom_fast.systems.blind_mimosc.channel_prior import ChannelDenoiser

J, JIN = 4, 3
RUN = J * JIN * 20  # roundings, of the largest mean, in a run: about 20 operations a step
LEVELS = {"sigma_max": (5.0, 8.0), "sigma_min": (0.1, 0.2), "zeta_h": (0.12, 0.05), "zeta_d": (0.07, 0.1)}
DOUBLE = torch.float64


def _config(encoder, **config):
    users, _, nt, _ = encoder.shape
    return sf.PVDConfig(users=users, nt=nt, source_shape=(encoder.n,), J=J, Jin=JIN, **(LEVELS | config))


def _case(nt=1, batch=3, dtype=torch.complex128, **config):
    encoder = RollEncoder(2, 2, nt, 6, dtype.to_real())
    _, y = link(batch, 2, 2, 3, encoder(draw(batch, 2, encoder.n, seed=5, dtype=dtype.to_real())), 0.05)
    return encoder, _config(encoder, **config), y


class OneSource(GaussianSource):
    """A user's own source denoiser: x [B,n] -> var [B]."""

    def __call__(self, x, sigma):
        mean, var = super().__call__(x, sigma)
        return mean, var[:, 0]


class JointSource(GaussianSource):
    """One callable that takes the levels of all users."""

    per_user_sigma = True

    def __call__(self, x, sigma):
        level = sigma[:, None]
        w = self.v / (self.v + level**2)
        return self.mu + w * (x - self.mu), (w * level**2)[:, 0].expand(x.shape[:2])


def _sources():
    return [OneSource(1.3, 0.2), OneSource(0.6, -0.1)]


def _priors():
    """White with variance 1.7, and correlated at the receiver."""
    place = torch.arange(3.0, dtype=DOUBLE)
    return [sf.GaussianChannelPrior(1.7), sf.GaussianChannelPrior(cov_rx=0.7 ** (place[:, None] - place).abs())]


def _network():
    """A small channel network with weights that are not those it starts with, in double precision."""
    torch.manual_seed(3)
    net = ChannelDenoiser(3, 1, width=4, blocks=1, taps=3, features=2).double().eval()
    for p in net.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return net.requires_grad_(False)


def _compare(c, y, encoder, denoiser_h, denoiser_d, label):
    want_h, want_d, want_var = pvd_by_hand(y, 0.05, encoder, denoiser_h, denoiser_d, c, seed=9, first_item=4)
    seen = []
    got = sf.PVD(encoder, denoiser_h, denoiser_d, c).run(y, 0.05, seed=9, first_item=4, on_level=seen.append)
    for name, g, w in (
        ("h", got.h, want_h),
        ("d", got.d, want_d),
        ("var", seen[-1].score_var[-len(y) :], want_var[-1]),
    ):
        within(g, w, RUN * 2.0**-53 * w.abs().max(), f"{label} {name}")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"nt": 2, "L": 2},
        {"sigma_max": 5.0, "sigma_min": 0.1},
        {"sigma_min": 0.1, "zeta_h": 0.1},
        {"exact_covariance": True, "nt": 2},
        {"calibration": "moment", "sample_noise": False},
        {"lagged_noise": True, "L": 2},
    ],
    ids=lambda c: " ".join(f"{k}={v}" for k, v in c.items()) or "default",
)
def test_against_the_algorithm_by_hand(config):
    """Levels, step sizes and priors of each user: every mean agrees to rounding with the algorithm written out."""
    encoder, c, y = _case(**config)
    _compare(c, y, encoder, _priors(), _sources(), "users by hand")


def test_against_the_algorithm_by_hand_on_the_reference_backend():
    """So do the plain torch definitions, with several samples and antennas."""
    encoder, c, y = _case(nt=2, L=2)
    with sf.use_backend("reference"):
        _compare(c, y, encoder, _priors(), _sources(), "users by hand, reference")


def test_one_callable_with_all_levels():
    """A callable that takes sigma [U] serves all users: the closed-form channel prior, and a source that says so."""
    encoder, c, y = _case()
    _compare(c, y, encoder, sf.GaussianChannelPrior(1.2), JointSource(1.3, 0.2), "levels of all users")


def test_learned_network_beside_closed_form():
    """A list may mix a network, which automatic differentiation pulls back, with a prior that has its own vjp."""
    encoder, c, y = _case()
    _compare(c, y, encoder, [_network(), _priors()[1]], _sources(), "mixed priors")


def test_levels_reach_their_user():
    """The comparison by hand notices schedules that changed users, and one user's level that is off by 1e-10."""
    encoder, c, y = _case()
    whole = pvd_by_hand(y, 0.05, encoder, _priors(), _sources(), c, seed=9)[0]
    for changed in ({"sigma_min": (0.2, 0.1)}, {"sigma_min": (0.1, 0.2 * (1 + 1e-10))}, {"zeta_h": (0.05, 0.12)}):
        other = pvd_by_hand(y, 0.05, encoder, _priors(), _sources(), _config(encoder, **changed), seed=9)[0]
        assert float((other - whole).abs().max()) > RUN * 2.0**-53 * float(whole.abs().max()), changed


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_equal_levels_are_the_number(dtype):
    """Equal tuples give the scalar's bits, and so does the update with equal levels in a tensor over the users."""
    encoder, _, y = _case(dtype=dtype)
    one = {name: values[0] for name, values in LEVELS.items()}
    runs = []
    for levels in (one, {name: (value, value) for name, value in one.items()}, {n: [v] * 2 for n, v in one.items()}):
        c = _config(encoder, **levels)
        runs.append(sf.PVD(encoder, sf.GaussianChannelPrior(), GaussianSource(1.3), c).run(y, 0.05, seed=2))
        assert not c.sigma_per_user and c.schedule() == _config(encoder, **one).schedule()
    for other in runs[1:]:
        for name in ("h", "d", "energy"):
            same_bits(getattr(other, name), getattr(runs[0], name), name)
    state = [draw(4, 2, 5, seed=i).to(dtype) for i in range(5)]
    numbers = {"sigma": 0.3, "sigma_above": 0.7, "zeta": 0.1, "next_var": 0.05}
    over_users = {name: torch.full((1, 2), value, dtype=DOUBLE) for name, value in numbers.items()}
    var = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=dtype.to_real())
    for a, b in zip(*(sf.pvd_update(*state, score_var=var, seed=1, **v) for v in (numbers, over_users)), strict=True):
        same_bits(b, a, "levels over the users")


def test_what_a_run_reports():
    """schedule() and PVDLevel.sigma hold one number per user where levels differ; J and Jin are everybody's."""
    encoder, c, y = _case()
    table = c.schedule()
    assert c.sigma_per_user and len(table) == J + 1
    for u in range(2):
        alone = sf.PVDConfig(J=J, sigma_max=LEVELS["sigma_max"][u], sigma_min=LEVELS["sigma_min"][u])
        assert [row[u] for row in table] == alone.schedule()
    seen = []
    sf.PVD(encoder, _priors(), _sources(), c).run(y, 0.05, on_level=seen.append)
    assert [v.sigma for v in seen] == table[J - 1 :: -1]
    assert isinstance(_config(encoder, sigma_max=3.0, sigma_min=0.1).schedule()[0], float)


@pytest.mark.parametrize("config", [{}, {"L": 2}, {"exact_covariance": True}], ids=str)
def test_split_batch(config):
    """A batch cut anywhere gives the same bits (with exact_covariance, LAPACK's and BLAS's rounding), restarts too."""
    encoder, c, y = _case(batch=4, dtype=torch.complex64, **config)
    priors = [sf.GaussianChannelPrior(1.7), sf.GaussianChannelPrior(0.8)]
    pvd = sf.PVD(encoder, priors, _sources(), c)
    noise = torch.tensor([0.05, 0.1, 0.2, 0.4])
    whole = pvd.run(y, noise, seed=7, restarts=2, first_item=3)
    parts = [pvd.run(y[:1], noise[:1], seed=7, restarts=2, first_item=3),
             pvd.run(y[1:], noise[1:], seed=7, restarts=2, first_item=4)]  # fmt: skip
    for name in ("h", "d", "energy_all"):
        got, want = torch.cat([getattr(p, name) for p in parts]), getattr(whole, name)
        if c.exact_covariance:
            within(got, want, RUN * 2.0**-24 * want.abs().max(), f"split batch, users, exact covariance {name}")
        else:
            same_bits(got, want, name)


@pytest.mark.parametrize("kind", ["white", "kronecker", "full"])
def test_prior_with_a_level_per_user(kind):
    """sigma [U] gives each user the mean, variance and vjp of its own 0-d sigma, as does x without the user axis."""
    a = draw(6, 6, seed=1)
    full = a @ a.mH
    options = {"white": {}, "kronecker": {"cov_rx": full[:3, :3], "cov_tx": full[3:5, 3:5]}, "full": {"cov": full}}
    prior, x = sf.GaussianChannelPrior(0.8, **options[kind]), draw(3, 2, 4, 3, 2, seed=2)
    sigma = torch.tensor([0.3, 2.0], dtype=DOUBLE)
    mean, var = prior(x, sigma)
    pulled = prior.vjp(x, sigma)
    assert var.shape == (3, 2)
    for u in range(2):
        want, want_var = prior(x[:, u], sigma[u])
        assert want_var.shape == (3,)
        bound = 64 * 2.0**-53 * x.abs().max() * (1 + full.abs().max())  # products of length 6, three of them
        within(mean[:, u], want, bound, f"level per user, {kind}")
        within(pulled[:, u], want, bound, f"level per user, vjp, {kind}")
        within(var[:, u], want_var, 1e-13 * want_var, f"level per user, variance, {kind}")


class Closed:
    """A denoiser whose call cannot be differentiated, with a vjp of its own that counts its calls."""

    def __init__(self, inner):
        self.inner, self.calls = inner, 0

    def __call__(self, x, sigma):
        mean, var = self.inner(x.detach(), sigma)
        return mean.detach(), var

    def vjp(self, g, sigma):
        self.calls += 1
        return g * (self.inner.v / (self.inner.v + sigma**2))


@pytest.mark.parametrize("alone", [True, False], ids=["one callable", "in a list"])
def test_a_source_denoiser_with_its_own_vjp(alone):
    """The vjp of a source denoiser carries what the encoder pulls back; no gradient is lost in silence."""
    encoder, c, y = _case()
    if alone:
        c = _config(encoder, sigma_max=5.0, sigma_min=0.1)
        plain, own = GaussianSource(1.3, 0.2), Closed(GaussianSource(1.3, 0.2))
        counted = own
    else:
        plain = _sources()
        counted = Closed(_sources()[1])
        own = [_sources()[0], counted]
    want = sf.PVD(encoder, _priors(), plain, c).run(y, 0.05, seed=2)
    got = sf.PVD(encoder, _priors(), own, c).run(y, 0.05, seed=2)
    assert counted.calls == J * JIN
    within(got.d, want.d, RUN * 2.0**-53 * want.d.abs().max(), "source denoiser with its own vjp")


def test_variance_is_clamped_at_the_users_own_level():
    """A variance beyond sigma_u^2 counts as sigma_u^2, whatever the other users' levels are."""
    x, sigma = draw(3, 2, 5, dtype=DOUBLE), torch.tensor([0.5, 2.0], dtype=DOUBLE)

    def wild(x, sigma):
        return x, torch.tensor([-1.0, 1.0, 1e3], dtype=DOUBLE)

    _, var = ParallelDenoiser([wild, wild], 2, "d", sigma_per_user=True)(x, sigma)
    assert var.T.tolist() == [[0.0, 0.25, 0.25], [0.0, 1.0, 4.0]]


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (
            {"sigma_max": (1.0, 2.0, 3.0)},
            ValueError,
            r"sigma_max must be a number or a tuple of users=2 numbers, got 3",
        ),
        ({"zeta_h": ()}, ValueError, "zeta_h .* got 0"),
        ({"sigma_min": (0.1, 6.0), "sigma_max": (5.0, 5.5)}, ValueError, r"6.0 and 5.5 for user 1"),
        ({"sigma_min": (0.0, 0.1)}, ValueError, r"got 0.0 and 100.0 for user 0"),
        ({"sigma_max": (5.0, float("inf"))}, ValueError, "for user 1"),
        ({"zeta_d": (0.1, float("nan"))}, ValueError, "zeta_d must be finite, got nan for user 1"),
        ({"zeta_h": ("a", "b")}, TypeError, "zeta_h must be a number or a tuple"),
        ({"sigma_max": "5"}, TypeError, "sigma_max must be a number or a tuple"),
        ({"zeta_h": ((0.1, 0.1), 0.1)}, TypeError, "zeta_h must be a number or a tuple"),
        ({"lagged_noise": True, "exact_covariance": True}, ValueError, "not lagged_noise"),
    ],
)
def test_refused_configurations(wrong, error, message):
    """Tuples of the wrong length, levels out of order and things that are not numbers; the user is named."""
    with pytest.raises(error, match=message):
        sf.PVDConfig(users=2, **wrong)


@pytest.mark.parametrize("which", ["denoiser_h", "denoiser_d"])
def test_refused_denoisers(which):
    """One callable that does not know of levels per user, and a list whose callables return another shape."""
    encoder, c, y = _case()
    parts = {"denoiser_h": _priors(), "denoiser_d": _sources()}
    with pytest.raises(ValueError, match=rf"{which} is one callable: give a list of users=2"):
        sf.PVD(encoder, **(parts | {which: GaussianSource()}), config=c)
    good = parts[which][1]
    shapes = {"mean": lambda x, s: (good(x, s)[0][:, :1], good(x, s)[1]),
              r"var \[B\] = \(3,\), got \(3, 1\)": lambda x, s: (x, good(x, s)[1][:, None])}  # fmt: skip
    for message, broken in shapes.items():
        with pytest.raises(ValueError, match=rf"{which}\[1\].*{message}"):
            sf.PVD(encoder, **(parts | {which: [parts[which][0], broken]}), config=c).run(y, 0.05)


class Anonymous:
    """A closed-form prior that the loop does not know for one."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, x, sigma):
        return self.inner(x, sigma)

    def vjp(self, g, sigma):
        return self.inner.vjp(g, sigma)


@pytest.mark.parametrize(
    "config",
    [{"sigma_max": 5.0, "sigma_min": 0.1, "calibration": "moment"}, {}, {"nt": 2, "sample_noise": False}],
    ids=["one level", "levels per user", "no noise"],
)
@pytest.mark.parametrize(
    "backend, dtype", [("cpu", torch.complex64), ("cpu", torch.complex128), ("reference", torch.complex128)], ids=str
)
def test_white_channels_in_one_op(config, dtype, backend, monkeypatch):
    """Lagged noise and i.i.d. priors: the fused op gives the run of the separate ops to rounding, and is what runs."""
    encoder, c, y = _case(dtype=dtype, lagged_noise=True, **config)
    priors = [sf.GaussianChannelPrior(1.7), sf.GaussianChannelPrior(0.4)]
    fused = unchecked.pvd_channel_step
    calls = []
    monkeypatch.setattr(unchecked, "pvd_channel_step", lambda *args: calls.append(0) or fused(*args))
    with sf.use_backend(backend):
        want = sf.PVD(encoder, [Anonymous(p) for p in priors], _sources(), c).run(y, 0.05, seed=3)
        assert not calls
        got = sf.PVD(encoder, priors, _sources(), c).run(y, 0.05, seed=3)
    assert len(calls) == J * JIN - 1
    unit = RUN * (2.0**-24 if dtype is torch.complex64 else 2.0**-53)
    for name in ("h", "d"):
        w = getattr(want, name)
        within(getattr(got, name), w, unit * w.abs().max(), f"white channels in one op {str(dtype)[6:]} {name}")
    if backend == "cpu":
        same_bits(sf.PVD(encoder, priors, _sources(), c).run(y[1:], 0.05, seed=3, first_item=1).h, got.h[1:])
