"""Compiled and bfloat16 networks in the PVD loop: they run, compile once, and change results by no more than is derived."""

import warnings

import pytest
import torch
from sf_testing import draw, within
from torch import nn
from torch._dynamo.utils import counters

import semcom_fast as sf
from semcom_fast.data import load_digits
from semcom_fast.links import channel_nmse, draw_channel, noise_var_from_snr_db, transmit
from semcom_fast.receivers import GaussianChannelPrior, PVDConfig, call_change, change_bound, half_precision
from semcom_fast.systems.blind_mimosc.channel_prior import ChannelDenoiser
from semcom_fast.systems.blind_mimosc.codec import RandomLinearEncoder
from semcom_fast.systems.blind_mimosc.networks import load_denoiser, load_encoder

ROUND = 2.0**-9  # unit roundoff of bfloat16
STEEP = {"J": 4, "Jin": 2, "sigma_max": 1.0, "sigma_min": 0.1}  # few levels, stable at zeta = 0.1
NR = 4
# scalar code: asking the C++ compiler which vectors the processor has takes longer than these networks
QUICK = {"cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}


def _rms(t):
    return float(t.abs().square().mean().sqrt())


def _case(images=3, users=1, snr_db=10.0, nr=NR):
    """Encoder, denoiser, received signal, noise variance, sources, channels: shipped networks on held-out digits."""
    encoder, denoiser = load_encoder(users=users), load_denoiser()
    d = load_digits().test[: images * users].view(images, users, 64)
    noise_var = noise_var_from_snr_db(snr_db, users=users)
    h = draw_channel(images, users, 8, nr, 1, seed=0)
    return encoder, denoiser, transmit(h, encoder(d), noise_var, 0), noise_var, d, h


def _channel_denoiser(nr=NR):
    """Random weights: compiling and rounding do not ask what a network has learned."""
    model = ChannelDenoiser(nr, 1, width=8, blocks=1, taps=3)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(0.2 * draw(*p.shape, seed=i, dtype=torch.float32))
    return model.requires_grad_(False).eval()


def _compiled(network, **options):
    torch._dynamo.reset()
    counters.clear()
    return torch.compile(network, **{"backend": "aot_eager", "fullgraph": True} | options)


class Rounded:
    """A network whose results carry relative noise of one unit roundoff, forward and through it backward."""

    def __init__(self, network, seed, size=2.0**-24):
        self.network, self.size, self.generator = network, size, torch.Generator().manual_seed(seed)

    def __call__(self, *args):
        out = self.network(*args)
        first, *rest = out if isinstance(out, tuple) else (out,)
        first = first * (1 + self.size * torch.randn(first.shape, generator=self.generator))
        return (first, *rest) if rest else first


def _run(encoder, prior, denoiser, config, y, noise_var):
    return sf.PVD(encoder, prior, denoiser, config).run(y, noise_var, seed=3)


@pytest.mark.parametrize(
    ("which", "users", "options"),
    [
        ("denoiser", 1, {}),
        ("denoiser", 1, {"dynamic": True}),
        ("encoder", 1, {}),
        ("encoder", 2, {"dynamic": False}),  # another last layer
        ("prior", 1, {}),  # complex in and out
        ("lists", 2, {}),
        ("half", 1, {}),
    ],
)
def test_compiled_networks(which, users, options):
    """Compiled without a graph break, once for all levels, and the run changes by roundings alone.

    Graphs: one per network, and one more of an encoder for the probe, which needs no gradient. The bound is twice what
    one unit roundoff of noise on every output does to the eager run, the largest of three draws.
    """
    encoder, denoiser, y, noise_var, _, _ = _case(users=users)
    prior, config = _channel_denoiser(), PVDConfig(users=users, **STEEP)
    networks = {"encoder": encoder, "prior": prior, "denoiser": denoiser}
    if which == "half":
        networks["denoiser"] = half_precision(denoiser)
    eager = _run(*networks.values(), config, y, noise_var)
    noisy = [
        _run(*(Rounded(network, 10 * s + i) for i, network in enumerate(networks.values())), config, y, noise_var)
        for s in range(3)
    ]
    graphs = 2 if which == "encoder" else 1
    if which == "lists":
        networks["denoiser"] = [_compiled(denoiser), torch.compile(load_denoiser(), backend="aot_eager")]
        graphs = 2
    else:
        name = "denoiser" if which == "half" else which
        networks[name] = _compiled(networks[name], **options)
    with torch.inference_mode():  # the caller's mode does not matter
        got = _run(*networks.values(), config, y, noise_var)
    for name in ("h", "d"):
        want = getattr(eager, name)
        floor = max(float((getattr(other, name) - want).abs().max()) for other in noisy)
        assert floor > 0
        within(getattr(got, name), want, 2 * floor, f"compiled {which} {name}")
    assert counters["stats"]["unique_graphs"] <= graphs, counters["stats"]
    assert not counters["graph_break"], counters["graph_break"]


def test_recompilation_is_seen():
    """The count of graphs notices a network that reads its level: one graph per level."""
    encoder, denoiser, y, noise_var, _, _ = _case()

    def reads(x, sigma):
        return denoiser(x, sigma * 0 + float(sigma))

    network = _compiled(reads, fullgraph=False)
    _run(encoder, GaussianChannelPrior(), network, PVDConfig(**STEEP), y, noise_var)
    assert counters["graph_break"] and counters["stats"]["unique_graphs"] > 1


class SmallDenoiser(nn.Module):
    """EDM form around one gated function per entry: two C++ kernels for inductor, one forward and one backward."""

    def __init__(self):
        super().__init__()
        self.register_buffer("gain", draw(64, dtype=torch.float32))

    def forward(self, x, sigma):
        total = sigma.square() + 1
        residual = torch.tanh(self.gain * x * total.rsqrt())
        return x / total + sigma * total.rsqrt() * residual, (sigma.square() / total).expand(x.shape[:2])


def test_inductor():
    """Compiled by inductor, forward and backward: the change of a run is within what the change of its calls allows.

    Bound: that of `change_bound` from the measured calls, and twice the loop's own roundings, measured as above.
    """
    encoder, _, y, noise_var, d, _ = _case()
    denoiser, config = SmallDenoiser(), PVDConfig(**STEEP)
    compiled = torch.compile(denoiser, fullgraph=True, options=QUICK)
    change = call_change(denoiser, compiled, d, config.schedule()[:-1])
    assert 0 < float(change.forward.max()) < 100 * 2.0**-24
    eager = _run(encoder, GaussianChannelPrior(), denoiser, config, y, noise_var).d
    own = _run(Rounded(encoder, 1), GaussianChannelPrior(), Rounded(denoiser, 2), config, y, noise_var).d
    got = _run(encoder, GaussianChannelPrior(), compiled, config, y, noise_var).d
    bound = change_bound(config.schedule(), *change, steps=config.Jin) + 2 * _rms(own - eager)
    within(torch.tensor(_rms(got - eager)), torch.tensor(0.0), bound, "inductor d")


def _score_in_bf16(denoiser):
    def network(x, sigma):
        mean, var = denoiser(x, sigma)
        return x + sigma**2 * ((mean - x) / sigma**2).bfloat16().float(), var

    return network


def test_one_call_in_bf16():
    """F in bfloat16 changes the mean by a few roundings times c_out at every level; a bfloat16 score does not.

    Bound: 8 roundings in a row of up to 20 layers (they add like noise), and that of F's input, which is s/sigma of the
    noise that F has to see in it.
    """
    _, denoiser, _, _, d, _ = _case(images=24)
    prior, channels = _channel_denoiser(), draw(6, 1, 4, NR, 1, dtype=torch.complex64)
    sigmas = torch.tensor(PVDConfig().schedule()[:-1:4], dtype=torch.float64)
    digit_var = float(load_digits().train.var(0, correction=0).mean())
    for network, clean, var, label in ((denoiser, d, digit_var, "digits"), (prior, channels, 1.0, "channels")):
        bound = ROUND * (8 + var**0.5 / sigmas)
        change = call_change(network, half_precision(network), clean, sigmas, var=var)
        within(change.forward, torch.zeros_like(bound), bound, f"bf16 call {label}")
        within(change.pullback, torch.zeros_like(bound), 8 * ROUND, f"bf16 pullback {label}")
        assert float(change.forward.min()) > 0.01 * ROUND
    unsafe = call_change(denoiser, _score_in_bf16(denoiser), d, sigmas, var=digit_var).forward
    assert float((unsafe / (ROUND * (8 + digit_var**0.5 / sigmas)))[-1]) > 5


def test_bound_of_a_run_is_attained():
    """A linear-Gaussian loop through `pvd_update`, likelihoods from none to overwhelming, changes that always point the
    same way: within the bound in every direction, and 60 % of it in the worst."""
    config, var, eps = PVDConfig(Jin=60), 0.7, 1e-3
    sigmas = config.schedule()
    curvature = torch.logspace(-3, 4, 50, dtype=torch.float64).repeat(2)  # of the log likelihood, per direction
    sign = torch.ones(100, dtype=torch.float64)
    sign[50:] = -1
    truth = draw(100, seed=1, dtype=torch.float64)

    def final(size):
        mean = anchor = draw(100, seed=2, dtype=torch.float64) * sigmas[-1]
        for j in reversed(range(config.J)):
            w = var / (var + sigmas[j] ** 2)
            c_out = sigmas[j] * w**0.5
            likelihood = curvature / (
                1 + curvature * var * sigmas[j] ** 2 / (var + sigmas[j] ** 2)
            )  # as (42) lowers it
            likelihood = likelihood.clamp(
                max=8 / ((sigmas[j + 1] ** 2 - sigmas[j] ** 2) * w**2)
            )  # where steps are stable
            for _ in range(config.Jin):
                denoised = w * mean + size * c_out * sign
                score = w * likelihood * (truth - denoised)
                mean = sf.pvd_update(
                    mean,
                    anchor,
                    mean,
                    denoised,
                    score,
                    sigma=sigmas[j],
                    sigma_above=sigmas[j + 1],
                    zeta=0.1,
                    next_var=0,
                )[0]
            anchor = mean
        return mean

    change = (final(eps) - final(0.0)).abs()
    bound = change_bound(sigmas, eps, var=var, steps=config.Jin)
    within(change, torch.zeros_like(change), bound, "change of a linear-Gaussian run")
    assert float(change.max()) > 0.6 * bound


def test_a_run_in_bf16():
    """Denoiser and encoder in bfloat16 change held-out digits by less than the bounds, which coarser networks break.

    Bounds of the source, rms per entry: `change_bound` from the measured calls; and for an encoder whose codeword is
    off by a relative e the error of the run times e sqrt(Nr P/noise_var), what noise of that size along H X does.
    """
    encoder, denoiser, y, noise_var, d, h = _case(snr_db=20.0)
    var, config = float(load_digits().train.var(0, correction=0).mean()), PVDConfig(J=15, Jin=12, sigma_max=5.0)
    levels = config.schedule()

    def run(encoder, denoiser):
        return _run(encoder, GaussianChannelPrior(), denoiser, config, y, noise_var)

    eager = run(encoder, denoiser)
    assert float(channel_nmse(h, eager.h).max()) < 0.01, "a run that failed tells nothing"

    def change(*networks):
        return _rms(run(*networks).d - eager.d)

    calls = call_change(denoiser, half_precision(denoiser), d, levels[:-1], var=var)
    of_denoiser = change_bound(levels, *calls, var=var, steps=config.Jin)
    x, rounded = encoder(d), half_precision(encoder)(d)
    off = _rms(rounded - x) / _rms(x)
    assert rounded.dtype is torch.complex64 and ROUND / 10 < off < 4 * ROUND
    energy = rounded.abs().square().sum((2, 3, 4)) / 64
    within(energy, torch.ones_like(energy), 1e-5, "power of a bf16 codeword")
    of_encoder = _rms(eager.d - d) * off * (NR / noise_var) ** 0.5
    for label, bound, *networks in (
        ("denoiser", of_denoiser, encoder, half_precision(denoiser)),
        ("encoder", of_encoder, half_precision(encoder), denoiser),
    ):
        within(torch.tensor(change(*networks)), torch.tensor(0.0), bound, f"run with a bf16 {label}")

    def coarse_encoder(d):  # a codeword of three significant bits
        x = torch.view_as_real(encoder(d))
        step = torch.exp2(x.detach().abs().clamp_min(1e-3).log2().floor() - 2)
        return sf.power_normalise(torch.view_as_complex(x + ((x / step).round() * step - x).detach()))[0]

    def biased_denoiser(x, sigma):  # F off by half its unit scale, always the same way
        mean, var_d = denoiser(x, sigma)
        return mean + 0.5 * sigma * (var / (var + sigma**2)).sqrt(), var_d

    assert change(coarse_encoder, denoiser) > 2 * of_encoder
    assert change(encoder, biased_denoiser) > 2 * of_denoiser


def test_what_half_precision_refuses():
    """Means and codewords that come out rounded, dtypes that are not half; float64 networks pass untouched."""
    with pytest.raises(TypeError, match=r"must be torch\.bfloat16"):
        half_precision(load_denoiser(), torch.float32)
    layer = nn.Linear(64, 64).requires_grad_(False)
    encoder, _, y, noise_var, d, _ = _case()
    bare = half_precision(lambda x, sigma: (layer(x), sigma.square().expand(x.shape[:2])))
    with pytest.raises(TypeError, match=r"c_skip\*x \+ c_out\*F"):
        _run(encoder, GaussianChannelPrior(), bare, PVDConfig(**STEEP), y, noise_var)
    with pytest.raises(TypeError, match="power_normalise"):
        half_precision(layer)(d)
    x = draw(2, 1, 64, dtype=torch.float64)
    wide = load_denoiser().double()
    want = wide(x, torch.tensor(0.5, dtype=torch.float64))[0]
    within(half_precision(wide)(x, torch.tensor(0.5, dtype=torch.float64))[0], want, 1e-14, "float64 under autocast")


@pytest.mark.parametrize("name", ["denoiser", "encoder of two users", "channel denoiser", "random encoder"])
def test_callers_modes_leave_no_trace(name):
    """A first call under inference mode and autocast: what frozen networks keep from it serves exact runs with gradients."""
    make, args = {
        "denoiser": (load_denoiser, (draw(2, 1, 64, dtype=torch.float32), torch.tensor(0.3))),
        "encoder of two users": (lambda: load_encoder(users=2), (draw(2, 2, 64, dtype=torch.float32),)),
        "channel denoiser": (_channel_denoiser, (draw(2, 1, 3, NR, 1, dtype=torch.complex64), torch.tensor(0.3))),
        "random encoder": (lambda: RandomLinearEncoder(8, 1, 8), (draw(2, 1, 64, dtype=torch.float32),)),
    }[name]

    def call(network):
        leaf = args[0].clone().requires_grad_(True)
        out = network(leaf, *args[1:])
        out = out[0] if isinstance(out, tuple) else out
        return out.detach(), torch.autograd.grad(out, leaf, torch.ones_like(out))[0]

    want, network = call(make()), make()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        network(*args)
    with torch.inference_mode():
        network(*args)
    got = call(network)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


class _LosesGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return torch.zeros_like(g)


def test_a_lost_gradient_is_not_silent():
    """A network may be differentiable and pass nothing back; a known codeword depends on nothing and is meant so."""
    encoder, denoiser, y, noise_var, d, _ = _case()
    config = PVDConfig(**STEEP)
    by_itself = lambda x, sigma: denoiser(x, sigma)  # noqa: E731
    by_itself.vjp = lambda cotangent, sigma: cotangent
    for source in (denoiser, by_itself):
        with pytest.warns(UserWarning, match="gradient through encoder and denoiser_d is exactly zero"):
            _run(lambda s: encoder(_LosesGradient.apply(s)), GaussianChannelPrior(), source, config, y, noise_var)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for network in (encoder, lambda s: encoder(d).detach()):
            _run(network, GaussianChannelPrior(), denoiser, config, y, noise_var)
