"""The expert mixture on a device: the public ops on the Triton kernels against double precision; skipped without one."""

import math

import pytest
import torch
import vb_cases as cases
import vb_math as vb
from sf_testing import DTYPES, dot_growth, draw, same_bits, unit, within

import semcom_fast as sf
from semcom_fast import reference
from semcom_fast._native import triton_version

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.skipif(triton_version() is None, reason="triton is not installed"),
]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
LEVELS = {"noise_var": 0.3, "alpha_bar": 0.42, "beta": 0.05, "lam": 1.3}
# B, Nr, Nt, Np, E: the paper's, one entry, odd rows, several row and column tiles, many channels
SIZES = [(3, 16, 64, 38, 4), (2, 1, 1, 1, 1), (3, 3, 7, 5, 2), (2, 20, 12, 17, 3), (2, 5, 70, 20, 2), (2, 16, 200, 64, 2),
         (3000, 4, 8, 6, 2)]  # fmt: skip


@pytest.fixture(autouse=True)
def _triton_backend():
    """Forced, so that no other backend can answer in its place."""
    with sf.use_backend("triton"):
        yield


def _on_device(c):
    """The same case with its tensors on the device; the decomposition is made on the host by the default backend."""
    moved = {k: v.cuda() for k, v in vars(c).items() if isinstance(v, torch.Tensor)}
    return type(c)(**(vars(c) | moved | {"svd": type(c.svd)(*(t.cuda() for t in c.svd))}))


def _state(*args, **kwargs):
    with sf.use_backend("reference"):
        return cases.state(*args, **kwargs)


def _elbo_state(*args, **kwargs):
    with sf.use_backend("reference"):
        return cases.elbo_state(*args, **kwargs)


@dtypes
@pytest.mark.parametrize("lik", ["dmps", "x0"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_posterior_step(size, lik, dtype):
    for shared in (True, False):
        c = _state(*size, dtype=dtype, shared=shared)
        got = cases.call(_on_device(c), **LEVELS, lik=lik)
        within(got.cpu(), *cases.expected(c, **LEVELS, lik=lik), f"gpu step {str(dtype)[6:]}")


@dtypes
@pytest.mark.parametrize("size", [(3, 4, 16, 64, 38), (1, 2, 3, 4, 4), (4, 1, 3, 7, 5), (2, 2, 20, 70, 75)], ids=str)
def test_renoise_and_evidence(size, dtype):
    c = _elbo_state(5, *size, dtype=dtype)
    d = _on_device(c)
    var = torch.linspace(0.3, 2, 5, dtype=torch.float64)
    drawn = {"seed": -7, "first_item": 5}
    like = drawn | {"stream": 8, "dtype": torch.complex128}
    noise = torch.stack([reference.philox_normal(tuple(c.h.shape), step=t, **like) for t in c.steps], 1)
    want = reference.renoise(c.h.to(torch.complex128), c.steps, c.table, noise=noise)
    bound = 8 * unit(dtype) * (c.h[:, None].abs() + noise.abs()) + cases.NORMAL[dtype]
    within(sf.renoise(d.h, c.steps, d.table, **drawn).cpu(), want, bound, f"gpu renoise {str(dtype)[6:]}")
    at = len(c.steps) // 2
    operands = (d.eps, d.h, c.steps, d.table, d.weights, d.yv, d.svd)
    L, D = sf.elbo_reduce(*operands, noise_var=var.cuda(), tau=c.steps[at], **drawn)
    want_l, want_d, bound_l, bound_d = cases.elbo_expected(c, var, at, noise, cases.NORMAL[dtype])
    within(L.cpu(), want_l, bound_l, f"gpu L {str(dtype)[6:]}")
    within(D.cpu(), want_d, bound_d, f"gpu D {str(dtype)[6:]}")
    rho, gamma = sf.dirichlet_responsibilities(L, D, 0.7, eta=0.01)
    want_rho, want_gamma = vb.responsibilities(L.cpu().double().numpy(), D.cpu().double().numpy(), 0.7, eta=0.01)
    within(rho.cpu(), torch.from_numpy(want_rho), 4 * unit(dtype) + 1e-11, f"gpu rho {str(dtype)[6:]}")
    within(gamma.cpu(), torch.from_numpy(want_gamma), 4 * unit(dtype) * 2 + 1e-11, f"gpu gamma {str(dtype)[6:]}")


@dtypes
@pytest.mark.parametrize("size", [(3, 460, 16, 64), (5, 7, 3, 5), (2, 40, 20, 70)], ids=str)
def test_rays(size, dtype):
    from semcom_fast.triton import cdl_channels

    batch, rays, nr, nt = size
    gains = draw(batch, rays, dtype=dtype) / rays**0.5
    rx, tx = (draw(batch, rays, seed=i, dtype=dtype.to_real()) for i in (1, 2))
    got = cdl_channels.run(gains.cuda(), rx.cuda(), tx.cuda(), nr, nt)
    growth = (dot_growth(rays) + 8 + 2 * math.pi * (nr + nt)) * (2 if dtype is torch.complex128 else 1)
    bound = growth * unit(dtype) * gains.abs().sum(1)[:, None, None]
    wide = [t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (gains, rx, tx)]
    within(got.cpu(), reference.cdl_channels(*wide, nr, nt), bound, f"gpu cdl {str(dtype)[6:]}")


def test_splits_and_stacking_orders():
    """A split batch gives the same bits, and so do experts stacked in another order."""
    c = _on_device(_elbo_state(5, 3, 4, 16, 64, 38, dtype=torch.complex64))
    var, drawn = torch.linspace(0.3, 2, 5, device="cuda"), {"seed": 4}
    rest = (c.steps, c.table, c.weights)
    want = sf.elbo_reduce(c.eps, c.h, *rest, c.yv, c.svd, noise_var=var, tau=40, **drawn)
    other = c.eps.permute(2, 1, 0, 3, 4).contiguous().permute(2, 1, 0, 3, 4)
    same = sf.elbo_reduce(other, c.h, *rest, c.yv, c.svd, noise_var=var, tau=40, **drawn)
    part = sf.elbo_reduce(c.eps[2:], c.h[2:], *rest, c.yv[2:], c.svd, noise_var=var[2:], tau=40, seed=4, first_item=2)
    for i in range(2):
        same_bits(same[i], want[i])
        same_bits(part[i], want[i][2:])
    h, eps, yv = c.h, c.eps[:, 0], c.yv
    whole = sf.pilot_posterior_step(h, eps, c.w[:, :1].expand(5, 4), yv, c.svd, **LEVELS)
    piece = sf.pilot_posterior_step(h[2:], eps[2:], c.w[2:, :1].expand(3, 4), yv[2:], c.svd, **LEVELS)
    same_bits(piece, whole[2:])


@pytest.mark.parametrize("size", [(3, 16, 64, 38, 4), (2, 5, 70, 20, 2), (70, 4, 8, 6, 2)], ids=str)
def test_captured_chain_of_public_steps(size):
    """An unrolled chain with levels in device tensors is one graph; it replays with other levels and another start."""
    c = _on_device(_state(*size, dtype=torch.complex64))
    beta, bar = (torch.from_numpy(t[[90, 60, 20]]).cuda() for t in vb.schedule(100))
    var = torch.full((size[0],), 0.3, dtype=torch.float64, device="cuda")
    start = c.h.clone()

    def chain():
        h = start
        for k in range(3):
            levels = {"noise_var": var, "alpha_bar": bar[k], "beta": beta[k], "lam": var}
            h = sf.pilot_posterior_step(h, c.eps, c.w, c.yv, c.svd, **levels, lik="x0")
        return h

    chain()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = chain()
    for _ in range(3):
        graph.replay()
        same_bits(got, chain())
        start.mul_(0.5)
        var.add_(0.2)
        bar.mul_(0.9)


@pytest.mark.parametrize("size", [(3, 16, 64, 38, 4), (2, 5, 70, 20, 2), (3000, 4, 8, 6, 2)], ids=str)
def test_captured_table_step(size):
    """One captured step walks down its tables; the counter survives every launch shape."""
    from semcom_fast.triton import pilot_posterior_step

    c = _on_device(_state(*size, dtype=torch.complex64))
    beta, bar = (torch.from_numpy(t[[90, 60, 20]]).cuda() for t in vb.schedule(100))
    var = torch.linspace(0.3, 2, size[0], dtype=torch.float64, device="cuda")
    counter, h = torch.zeros(2, dtype=torch.int64, device="cuda"), c.h.clone()
    pilots = (c.yv, c.svd.u, c.svd.s)

    def update():
        pilot_posterior_step.run_table(h, c.eps, c.w, *pilots, var, bar, beta, counter, 1.5, True)

    update()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    for _ in range(2):
        h.copy_(c.h), counter.zero_()
        want = c.h
        for k in range(3):
            graph.replay()
            levels = {"noise_var": var, "alpha_bar": bar[k], "beta": beta[k], "lam": 1.5}
            want = sf.pilot_posterior_step(want, c.eps, c.w, c.yv, c.svd, **levels, lik="x0")
            same_bits(h, want)
            assert counter.tolist() == [k + 1, 0]
        graph.replay()
        same_bits(h, want)
        bar.mul_(0.9)


def test_captured_evidence():
    """renoise, elbo_reduce and the responsibilities in one graph, drawn from a seed on the device."""
    from semcom_fast.triton import dirichlet_responsibilities, elbo_reduce, renoise

    c = _on_device(_elbo_state(3, 3, 4, 16, 64, 38, dtype=torch.complex64))
    steps, seed = torch.tensor(c.steps, device="cuda"), torch.tensor(4, device="cuda")
    bar, w, one = c.table[c.steps], c.weights[c.steps], torch.ones(3, 4, device="cuda")

    def evidence():
        noisy = renoise.run(c.h, steps, bar, seed)
        eps = c.eps + noisy[:, :, None]
        found = elbo_reduce.run(eps, c.h, steps, bar, w, c.yv, c.svd.u, c.svd.s, 0.3, 1, seed)
        return *found, *dirichlet_responsibilities.run(*found, one, one, 0.5)

    evidence()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = evidence()
    for _ in range(3):
        graph.replay()
        for a, b in zip(got, evidence(), strict=True):
            same_bits(a, b)
        seed.add_(1)
        c.h.mul_(1.1)
