"""The public ops routed to the Triton kernels agree with the plain torch definitions, forward and backward."""

import pytest
import torch
import vb_cases as cases

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

import semcom_fast as sf
from semcom_fast.ops._register import OPS

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes discarded lanes

CLOSE = {
    "rtol": 2e-5,
    "atol": 2e-5,
}  # tens of float32 roundings; each kernel's own bound is tested apart


@pytest.fixture
def both(triton_selected, device):
    """Run a function on the Triton kernels and on the reference, with inputs on the test device."""

    def run(function):
        with triton_selected():
            got = function(device)
        with sf.use_backend("reference"):
            return got, function(device)

    return run


def test_other_kernels_are_not_asked(triton_selected, monkeypatch, device):
    for op in OPS.values():
        monkeypatch.setattr(op, "kernels", {name: k if name == "triton" else None for name, k in op.kernels.items()})
    with triton_selected():
        sf.power_normalise(sf.philox_normal((2, 3, 4), seed=1, dtype=torch.complex64, device=device))


def _same(pair):
    got, want = pair
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape
        torch.testing.assert_close(g, w, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128], ids=str)
def test_philox_normal(dtype, both):
    draw = {"seed": 5, "step": 2, "stream": 3, "first_item": 4, "dtype": dtype}
    _same(both(lambda device: (sf.philox_normal((3, 2, 5), device=device, **draw),)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128], ids=str)
def test_power_normalise(dtype, both):
    def step(device):
        gen = torch.Generator().manual_seed(0)
        z, g = (torch.randn(2, 3, 4, 2, 5, dtype=dtype, generator=gen).to(device) for _ in range(2))
        z.requires_grad_()
        x, norm = sf.power_normalise(z, power=2.0)
        (grad,) = torch.autograd.grad(x, z, g)
        return x.detach(), norm.detach(), grad

    _same(both(step))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("samples", [None, 3])
def test_pvd_update(dtype, samples, both):
    def step(device):
        gen = torch.Generator().manual_seed(0)
        shape = (2, 3, 4, 5)
        many = shape if samples is None else (samples, *shape)
        mean, anchor = (torch.randn(shape, dtype=dtype, generator=gen).to(device) for _ in range(2))
        sample, denoised, score = (torch.randn(many, dtype=dtype, generator=gen).to(device) for _ in range(3))
        sigma = 0.5 + torch.rand(2, 3, generator=gen)
        var = 0.5 + torch.rand(2 if samples is None else (samples, 2), generator=gen)
        denoised.requires_grad_()
        new = sf.pvd_update(
            mean, anchor, sample, denoised, score, sigma=sigma.to(device), sigma_above=2.0, zeta=0.1,
            score_var=var.to(device), seed=3, step=1, stream=1, first_item=7,
        )  # fmt: skip
        (grad,) = torch.autograd.grad((new[0].abs() ** 2).sum() + (new[1].abs() ** 2).sum(), denoised)
        return *(t.detach() for t in new), grad

    _same(both(step))


def test_pvd_calibrate(both):
    def step(device):
        gen = torch.Generator().manual_seed(0)
        var, probe = (torch.rand(4, 2, generator=gen).to(device) for _ in range(2))
        return (sf.pvd_calibrate(0.1, var, probe, probe[:, 0], x_energy=24.0, nr=4, count=96),)

    _same(both(step))


def _latents(device, *shape):
    gen = torch.Generator().manual_seed(0)
    f, g, x0, other = (torch.randn(*shape, generator=gen).to(device) for _ in range(4))
    d = torch.rand(*shape[:-1], shape[-1] // 2, generator=gen).to(device)
    return f, g, x0.requires_grad_(), other, d


@pytest.mark.parametrize("channel", ["fast", "slow"])
def test_waterfill_equalise(channel, both):
    def step(device):
        gen = torch.Generator().manual_seed(0)
        y, h = (torch.randn(2, 3, 5, dtype=torch.complex64, generator=gen).to(device) for _ in range(2))
        return sf.waterfill_equalise(y, h if channel == "fast" else h[..., :1], torch.tensor([0.1, 2.0], device=device))

    _same(both(step))


@pytest.mark.parametrize("shape", [(3, 24), (2, 3, 10)], ids=str)
def test_waterfill_inject_and_step(shape, both):
    def step(device):
        f, g, x0, other, d = _latents(device, *shape)
        low = torch.linspace(0.5, 0.2, shape[0], device=device)
        drawn = {"seed": 3, "step": 1, "first_item": 7}
        start = sf.waterfill_inject(f, d, low, **drawn)
        new = sf.waterfill_step(g, x0, f, d, 0.8, low, x0_uncond=other, guidance=2.5, **drawn)
        (grad,) = torch.autograd.grad(new.square().sum(), x0)
        return start, new.detach(), grad

    _same(both(step))


@pytest.mark.parametrize("base", ["own", "common"])
@pytest.mark.parametrize("renorm", [True, False])
def test_waterfill_step_authors(base, renorm, both):
    def step(device):
        f, g, x0, _, d = _latents(device, 3, 24)
        low = torch.linspace(0.5, 0.2, 3, device=device)
        new = sf.waterfill_step_authors(f, g, d, x0, 0.8, low, base=base, renorm=renorm, seed=3, step=1)
        (grad,) = torch.autograd.grad(new[1].square().sum() if not renorm else new[0].square().sum(), x0)
        return *(t.detach() for t in new), grad

    _same(both(step))


def _mixture(device, dtype=torch.complex64):
    c = cases.elbo_state(2, 2, 3, 3, 6, 5, dtype=dtype)
    moved = {k: getattr(c, k).to(device) for k in ("h", "eps", "yv", "table", "weights")}
    return c.steps, type(c.svd)(*(t.to(device) for t in c.svd)), moved


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_expert_mixture(dtype, both):
    """One step, one evidence pass and its responsibilities as the loop calls them; levels per channel, host steps."""

    def step(device):
        steps, svd, c = _mixture(device, dtype)
        var = torch.tensor([0.3, 2.0], dtype=torch.float64, device=device)
        h = c["h"].requires_grad_()
        weights = torch.softmax(torch.arange(6, device=device, dtype=dtype.to_real()).reshape(2, 3), 1)
        levels = {"noise_var": var, "alpha_bar": 0.4, "beta": 0.05, "lam": var}
        new = sf.pilot_posterior_step(h, c["eps"][:, 0], weights, c["yv"], svd, **levels, lik="x0")
        (grad,) = torch.autograd.grad((new.abs() ** 2).sum(), h)
        new = new.detach()
        noisy = sf.renoise(new, steps, c["table"], seed=3, first_item=7)
        evidence = sf.elbo_reduce(
            c["eps"], new, steps, c["table"], c["weights"], c["yv"], svd, noise_var=var, tau=steps[1], seed=3,
            first_item=7,
        )  # fmt: skip
        rho, gamma = sf.dirichlet_responsibilities(*(0.01 * t for t in evidence), 1.0, eta=0.5)
        return new, grad, noisy, *evidence, rho, gamma, sf.dirichlet_responsibilities(*evidence, 0.5, shared=True)[1]

    _same(both(step))


def test_cdl_channels(both):
    draw = {"nr": 3, "nt": 5, "seed": 1, "first_item": 2}
    _same(both(lambda device: (sf.cdl_channels("CDL-C", 2, **draw, device=device),)))


@pytest.mark.parametrize("op", ["waterfill_inject", "waterfill_step", "waterfill_step_authors", "elbo_reduce"])
def test_lazily_negated_levels(op, both):
    """`z.conj().imag` is a view whose sign torch applies when it is read: a kernel that gets its address must ask first."""

    def run(device):
        gen = torch.Generator().manual_seed(1)
        f, x0, d = (torch.rand(3, 8, generator=gen).to(device) for _ in range(3))
        rows = torch.complex(f[:, 0], -(0.2 + 0.5 * x0[:, 0])).conj().imag  # [3] in (0.2, 0.7)
        assert rows.is_neg()
        if op == "waterfill_inject":
            return (sf.waterfill_inject(f, d, rows, seed=3),)
        if op == "waterfill_step":
            return (sf.waterfill_step(f, x0, f, d, rows, 0.1, x0_uncond=d, guidance=rows, seed=3),)
        if op == "waterfill_step_authors":
            return sf.waterfill_step_authors(f, f, d, x0, rows, 0.1, seed=3)
        h = torch.complex(f, x0)[:, :6].reshape(3, 2, 3)
        svd = sf.pilot_svd(torch.complex(d, f)[:, :6].reshape(3, 3, 2)[0])
        eps = h[:, None, None].expand(3, 2, 2, 2, 3).contiguous()
        return sf.elbo_reduce(
            eps,
            h,
            [1, 2],
            [0.9, 0.5],
            [1.0, 1.0],
            svd.project(h[..., :2].contiguous()),
            svd,
            noise_var=rows,
            tau=1,
            seed=3,
        )

    _same(both(run))
