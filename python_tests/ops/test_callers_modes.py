"""What a caller's mode - fake tensors, export, inference - leaves behind: nothing that a later caller could meet."""

import subprocess
import sys
import warnings

import pytest
import torch
from sf_testing import draw, same_bits, within
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import semcom_fast as sf
from semcom_fast.systems.blind_mimosc.mixture import GaussianMixturePrior
from semcom_fast.systems.dm_vb.gaussian_experts import GaussianExpert

DRAW, SIZES = "C", {"batch": 2, "nr": 4, "nt": 4, "seed": 1, "spacing": 0.00391}  # a spacing that no other test has


def _drawn(**more):
    return sf.cdl_channels(DRAW, **SIZES, **more)


class _Channels(torch.nn.Module):
    def forward(self, x):
        return x + _drawn().abs().sum()


def _in_fake_mode(fn):
    with FakeTensorMode():
        return fn(torch.ones(2))


TRACES = {
    "export": lambda fn: torch.export.export(_Channels(), (torch.ones(2),)),
    "make_fx": lambda fn: make_fx(fn, tracing_mode="fake")(torch.ones(2)),
    "fake mode": _in_fake_mode,
    "compile": lambda fn: torch.compile(fn, backend="aot_eager", fullgraph=True)(torch.ones(2)),
}


@pytest.mark.parametrize("trace", TRACES)
def test_channels_after_a_trace(trace, tmp_path):
    """A trace that comes first leaves cdl_channels as it was, its tables included; and it warns of nothing."""
    yaw = torch.tensor(0.3, requires_grad=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lru_cache.*")
        TRACES[trace](lambda x: _Channels()(x))
    plain, turned = _drawn(), _drawn(rx_yaw=yaw)
    assert type(plain) is type(turned) is torch.Tensor
    turned.abs().sum().backward()
    fresh = f"import sys, torch, semcom_fast as sf; torch.save(sf.cdl_channels({DRAW!r}, **{SIZES!r}), sys.argv[1])"
    subprocess.run([sys.executable, "-c", fresh, tmp_path / "h.pt"], check=True, timeout=120)
    same_bits(plain, torch.load(tmp_path / "h.pt"))
    within(turned.detach(), _drawn(rx_yaw=0.3), 1e-5, "turned")


def _mixture():
    means = draw(2, 4, seed=1, dtype=torch.float64)
    prior = GaussianMixturePrior(torch.tensor([0.4, 0.6]).double(), means, torch.eye(4).double().expand(2, 4, 4) * 0.3)
    return lambda x, sigma: prior(x.real.flatten(-2)[..., :4], sigma)


def _expert():
    expert = GaussianExpert(draw(8, seed=2), torch.eye(8, dtype=torch.complex128) * 0.4, [1.0, 0.9])
    return lambda x, sigma: (expert(x[:, 0, 0], 1), sigma)


PRIORS = {
    "white": lambda: sf.GaussianChannelPrior(0.7),
    "receive covariance": lambda: sf.GaussianChannelPrior(cov_rx=torch.eye(4) * 0.5),
    "full covariance": lambda: sf.GaussianChannelPrior(cov=torch.eye(8) * 0.5),
    "mixture": _mixture,
    "expert": _expert,
}


@pytest.mark.parametrize("first", ["inference", "fake"])
@pytest.mark.parametrize("name", PRIORS)
def test_priors_after_a_mode(name, first):
    """A prior that was used in inference mode, or with fake tensors, first: the same results and gradients."""
    x, sigma = draw(2, 1, 3, 4, 2, seed=5), torch.tensor(0.5, dtype=torch.float64)
    want = PRIORS[name]()(x, sigma)
    prior = PRIORS[name]()
    if first == "inference":
        with torch.inference_mode():
            prior(x, sigma)
    else:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            prior(mode.from_tensor(x), mode.from_tensor(sigma))
    leaf = x.clone().requires_grad_()
    got = prior(leaf, sigma)
    for a, b in zip(got, want, strict=True):
        assert type(a) is torch.Tensor
        same_bits(a.detach(), b.detach())
    got[0].abs().sum().backward()
    assert leaf.grad is not None and bool(leaf.grad.abs().sum() > 0)


@pytest.mark.parametrize("name", ["white", "receive covariance", "full covariance"])
def test_results_belong_to_the_caller(name):
    """A denoiser's results may be changed in place: the next call does not know of it."""
    prior, x, sigma = PRIORS[name](), draw(2, 1, 3, 4, 2, seed=6), torch.tensor(0.5, dtype=torch.float64)
    mean, var = (t.clone() for t in prior(x, sigma))
    got_mean, got_var = prior(x, sigma)
    got_mean.mul_(2)
    if name == "white":  # the others' variances are an expanded number, which torch refuses to change
        got_var.mul_(2)
    again = prior(x, sigma)
    same_bits(again[0], mean), same_bits(again[1], var)


def _update(h, sigma, zeta, next_var):
    return sf.pvd_update(h, h, h, h, h, sigma=sigma, sigma_above=9.0, zeta=zeta, next_var=next_var, seed=3, step=2)[1]


def _stacked(h, sigma, zeta, next_var):
    many = h.expand(2, *h.shape)
    args = (h, h, many, many, many)
    return sf.pvd_update(*args, sigma=sigma, sigma_above=9.0, zeta=zeta, next_var=next_var, seed=3, first_item=5)[1]


Y, X = draw(3, 1, 2, 4, seed=7), draw(3, 1, 1, 5, 4, seed=8)


def _channel_step(h, sigma, zeta, next_var):
    levels = {"sigma_above": 9.0, "score_var": 0.5, "var": 1.0}
    h = h.unsqueeze(1).unsqueeze(1)
    return sf.pvd_channel_step(Y, X, h, h, h, sigma=sigma, zeta=zeta, next_var=next_var, seed=3, **levels)[1]


@pytest.mark.parametrize("fn", [_update, _stacked, _channel_step])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_gradients_of_levels_with_a_seed(fn, dynamic):
    """Levels that want a gradient beside noise that is drawn from a seed: compiled as in eager mode."""
    h = draw(3, 2, 5, seed=9)
    levels = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.6, 0.1, 0.3)]
    want = torch.autograd.grad(fn(h, *levels).abs().sum(), levels)
    with sf.use_backend("reference"):
        twin = torch.autograd.grad(fn(h, *levels).abs().sum(), levels)
    compiled = torch.compile(fn, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    got = torch.autograd.grad(compiled(h, *levels).abs().sum(), levels)
    for a, b, c in zip(got, want, twin, strict=True):
        within(a, b, 1e-12 * b.abs(), "compiled")
        within(b, c, 1e-12 * c.abs(), "reference")
