"""The public ops routed to the Triton kernels agree with the plain torch definitions, forward and backward."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

import semcom_fast as sf
from semcom_fast import _backend

CLOSE = {
    "rtol": 2e-5,
    "atol": 2e-5,
}  # tens of float32 roundings; each kernel's own bound is tested apart


@pytest.fixture
def both(monkeypatch, device):
    """Run a function on the Triton kernels and on the reference, with inputs on the test device."""

    def run(function):
        with monkeypatch.context() as patch:
            patch.setattr(_backend, "select", lambda op, homes, device: "triton" if "triton" in homes else "reference")
            got = function(device)
        with sf.use_backend("reference"):
            return got, function(device)

    return run


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
