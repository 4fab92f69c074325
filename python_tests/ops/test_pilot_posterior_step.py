"""pilot_posterior_step: mixture, likelihood score and update against NumPy, over sizes, pilots, levels and layouts."""

import numpy as np
import pytest
import torch
import vb_math as vb
from sf_testing import draw, same_bits, shadow_memory, unit, within
from vb_cases import DTYPES, call, expected, numpy, pilots, state

import semcom_fast as sf

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
liks = pytest.mark.parametrize("lik", ["dmps", "x0"])
LEVELS = {"noise_var": 0.3, "alpha_bar": 0.42, "beta": 0.05, "lam": 1.3}
SIZES = [(nr, nt) for nr in (1, 2, 3, 5, 16) for nt in (1, 4, 33, 64)]
EXPERTS = (1, 2, 4, 7)


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with sf.use_backend(request.param):
        yield request.param


def _check(c, label, **levels):
    want, bound = expected(c, **levels)
    shadow_memory(c.h.numel() * c.h.element_size())
    got = call(c, **levels)
    assert got.dtype is c.h.dtype and got.is_contiguous()
    within(got, want, bound, f"{label} {str(c.h.dtype)[6:]}")
    return got


@dtypes
@pytest.mark.parametrize("nr, nt", SIZES)
def test_sizes(nr, nt, dtype, backend):
    """Odd and even sizes, fewer and more pilots than antennas, every number of experts, both residuals, both pilots."""
    odd = 2 * (nt // 3) + 1
    for i, np_ in enumerate(dict.fromkeys((1, odd, nt, nt + 3))):
        experts = EXPERTS[(i + nr) % 4]
        for lik, shared in (("dmps", True), ("x0", False), ("x0", True)):
            c = state(2, nr, nt, np_, experts, dtype=dtype, shared=shared, seed=i)
            _check(c, f"step {backend}", **LEVELS, lik=lik)


@dtypes
@liks
@pytest.mark.parametrize("shared", [True, False], ids=["shared pilots", "pilots per channel"])
@pytest.mark.parametrize("experts", EXPERTS)
def test_experts(experts, shared, lik, dtype, backend):
    """1 to 7 experts at the paper's antennas, one row of the weights one-hot."""
    _check(state(3, 16, 64, 38, experts, dtype=dtype, shared=shared), f"experts {backend}", **LEVELS, lik=lik)


@liks
def test_golden(lik, backend):
    """One step of an independent program, from the pilots themselves, in double and in single precision."""
    g = vb.golden()
    at = {"noise_var": float(g["noise_var"]), "alpha_bar": float(g["alpha_bar"][40]), "beta": float(g["beta"][40])}
    raw = [torch.from_numpy(g[k]) for k in ("h_t", "eps", "weights", "y", "pilots")]
    want = torch.from_numpy(g[f"next_{lik}"])
    for dtype, limit in ((torch.complex128, 1e-13), (torch.complex64, 64 * 2.0**-24)):
        h, eps, w, y, p = (t.to(dtype if t.is_complex() else dtype.to_real()) for t in raw)
        svd = sf.pilot_svd(p)
        got = sf.pilot_posterior_step(h, eps, w, svd.project(y), svd, **at, lam=float(g["lam"]), lik=lik)
        within(got, want, limit * float(want.abs().max()), f"golden {backend} {str(dtype)[6:]}")


@liks
@pytest.mark.parametrize("np_", [3, 8, 12])
@pytest.mark.parametrize("noise_var", [1e-3, 1.0, 1e3])
def test_every_step_of_the_schedule(noise_var, np_, lik, backend):
    """T = 100 .. 1, all levels as [B] at once, against the direct inverse from the pilots: 1e-10 of the size."""
    beta, bar = vb.schedule(100)
    c = state(100, 3, 8, np_, 2)
    got = call(c, noise_var=noise_var, alpha_bar=torch.from_numpy(bar[1:]), beta=torch.from_numpy(beta[1:]), lik=lik)
    want = vb.posterior_step(*numpy(c.h, c.eps, c.w, c.y, c.p), noise_var, bar[1:], beta[1:], lik=lik)
    within(got, torch.from_numpy(want), 1e-10 * np.abs(want).max(), f"direct inverse {backend}")


@pytest.mark.parametrize("np_", [1, 5, 9])
def test_likelihood_score_forms(np_, backend):
    """Direct inverse == Kronecker matrix == SVD == the op's own increment == finite differences of log p(Y | H_t)."""
    c = state(1, 3, 5, np_, 1)
    c.eps = torch.zeros_like(c.eps)
    h, y, p = numpy(c.h[0], c.y[0], c.p)
    n, ab, b, lam = 0.3, 0.4, 0.07, 1.7
    direct = vb.score_direct(y, h / np.sqrt(ab), p, n, ab)
    size = np.abs(direct).max()
    for name, other in (("Kronecker", vb.score_kronecker), ("SVD", vb.score_svd)):
        got = torch.from_numpy(other(y, h / np.sqrt(ab), p, n, ab))
        within(got, torch.from_numpy(direct), 1e-10 * size, f"score: direct and {name}")
    moved = call(c, n, ab, b, lam)[0].numpy() * np.sqrt(1 - b)
    within(
        torch.from_numpy((moved - h) / (lam * b)), torch.from_numpy(direct), 1e-10 * size, f"score of the op {backend}"
    )
    slope, tiny = np.zeros_like(direct), 1e-5
    for at in np.ndindex(h.shape):
        for unit_ in (1, 1j):
            step = np.zeros_like(h)
            step[at] = tiny * unit_
            up, down = (vb.log_likelihood(y, h + s, p, n, ab) for s in (step, -step))
            slope[at] += unit_ * (up - down) / (4 * tiny)  # d/d conj(H) = (d/dRe + j d/dIm)/2
    within(torch.from_numpy(slope), torch.from_numpy(direct), 1e-8 * (1 + size), "score: finite differences")


@dtypes
def test_zero_expert_has_one_residual(dtype, backend):
    """With eps = 0 the two residuals are the same one."""
    c = state(dtype=dtype)
    c.eps = torch.zeros_like(c.eps)
    same_bits(call(c, **LEVELS, lik="x0"), call(c, **LEVELS, lik="dmps"), "eps = 0")


@dtypes
@liks
def test_weights(lik, dtype, backend):
    """One-hot weights are that expert alone; scaling all predictions is scaling the weights."""
    c = state(experts=4, dtype=dtype)
    c.w = torch.eye(4, dtype=dtype.to_real())[[2, 0, 3]]
    got, all_ = _check(c, f"one-hot {backend}", **LEVELS, lik=lik), c.eps
    c.eps, c.w = torch.stack([all_[0, 2], all_[1, 0], all_[2, 3]])[:, None], torch.ones(3, 1, dtype=dtype.to_real())
    same_bits(call(c, **LEVELS, lik=lik), got, "one expert")
    want = call(c, **LEVELS, lik=lik)
    c.eps, c.w = c.eps * 4, c.w / 4
    same_bits(call(c, **LEVELS, lik=lik), want, "powers of two commute")


@dtypes
@pytest.mark.parametrize("kind", ["0-d", "[B]", "float32 [B]", "[1]"])
@pytest.mark.parametrize("which", [*LEVELS, "all"])
def test_level_tensors(which, kind, dtype, backend):
    """Levels as tensors, alone beside numbers and together, formed in float64 and rounded once."""
    c = state(3, 2, 4, 5, dtype=dtype)
    factor = {"0-d": torch.tensor(1.1), "[1]": torch.tensor([1.1])}.get(kind, torch.tensor([0.7, 1.0, 1.3])).double()
    levels = {k: v * factor if which in (k, "all") else v for k, v in LEVELS.items()}
    if kind == "float32 [B]":
        levels = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in levels.items()}
    _check(c, f"level tensors {backend}", **levels, lik="x0")


@dtypes
@liks
@pytest.mark.parametrize("lead", [(), (2, 3), (1,), (2, 1, 2)], ids=str)
def test_leading_dims(lead, lik, dtype, backend):
    """No batch, one, several; the factors shared or with the same leading dims."""
    count = int(np.prod(lead))
    for shared in (True, False):
        c = state(count, 3, 5, 4, 2, dtype=dtype, shared=shared)
        want = call(c, **LEVELS, lik=lik).reshape(*lead, 3, 5)
        for name in ("h", "eps", "w", "yv"):
            t = getattr(c, name)
            setattr(c, name, t.reshape(*lead, *t.shape[1:]))
        if not shared:
            c.svd = type(c.svd)(*(t.reshape(*lead, *t.shape[1:]) for t in c.svd))
        _check(c, f"leading dims {backend}", **LEVELS, lik=lik)
        if backend == "cpu":
            same_bits(call(c, **LEVELS, lik=lik), want, "leading dims")


@dtypes
@liks
def test_shared_pilots_are_expanded_pilots(lik, dtype, backend):
    """One set of factors, the same repeated, and expanded views of it: one result to rounding."""
    c = state(4, 3, 9, 6, dtype=dtype)
    want, bound = expected(c, **LEVELS, lik=lik)
    shared = c.svd
    for many in (
        [t.expand(4, *t.shape) for t in shared],
        [t.repeat(4, *[1] * t.ndim) for t in shared],
        [t[None] for t in shared],
    ):
        c.svd = type(shared)(*many)
        within(call(c, **LEVELS, lik=lik), want, bound, f"expanded factors {backend}")


@dtypes
@liks
@pytest.mark.parametrize("nt, np_", [(6, 4), (6, 6), (6, 9)])
def test_silent_antennas(nt, np_, lik, dtype, backend):
    """Zero pilot rows: there the step is the prior's alone, whatever the receiver got."""
    c = state(3, 4, nt, np_, dtype=dtype)
    p = c.p.clone()
    p[[1, 4]] = 0
    c.p, c.svd = p, sf.pilot_svd(p)
    c.yv = c.svd.project(c.y)
    for n in (LEVELS["noise_var"], 1e-6):
        got = _check(c, f"silent antennas {backend}", **(LEVELS | {"noise_var": n}), lik=lik)
        args = numpy(c.h, c.eps, c.w)
        a, b = LEVELS["alpha_bar"], LEVELS["beta"]
        prior = (args[0] - b / np.sqrt(1 - a) * vb.mix(args[1], args[2])) / np.sqrt(1 - b)
        # U's entries of silent antennas are zero to LAPACK's rounding, times the likelihood's gain
        slack = 20 * unit(c.h) * (np.abs(prior).max() + np.abs(got.numpy()).max()) + 1e-9
        within(got[..., [1, 4]], torch.from_numpy(prior[..., [1, 4]]), slack, f"silent antennas alone {backend}")


@liks
def test_the_basis_does_not_matter(lik, backend):
    """(Y W, P W) with a unitary W is the same observation."""
    c = state(3, 4, 6, 5)
    want = call(c, **LEVELS, lik=lik)
    w = torch.linalg.qr(draw(5, 5, seed=40))[0]
    c.svd = sf.pilot_svd(c.p @ w)
    c.yv = c.svd.project(c.y @ w)
    within(call(c, **LEVELS, lik=lik), want, 1e-13 * (1 + want.abs().max()), f"unitary pilots {backend}")


@dtypes
def test_large_and_small_values(dtype, backend):
    """Very strong and very weak pilots, and noise from 1e-6 to 1e6: finite and within the bound."""
    for scale in (1e-6, 1.0, 1e6):
        for n in (1e-6, 1e6):
            c = state(2, 3, 5, 4, dtype=dtype)
            c.p = pilots(5, 4, dtype=dtype) * scale
            c.svd = sf.pilot_svd(c.p)
            c.yv = c.svd.project(c.y)
            _check(c, f"scales {backend}", **(LEVELS | {"noise_var": n}), lik="x0")


@dtypes
def test_no_step(dtype, backend):
    """beta = 0 returns h itself, lam = 0 the prior's step."""
    c = state(dtype=dtype)
    same_bits(call(c, **(LEVELS | {"beta": 0.0})), c.h, "beta = 0")
    got = _check(c, f"lam = 0 {backend}", **(LEVELS | {"lam": 0.0}), lik="x0")
    c.yv = c.yv + 5
    same_bits(call(c, **(LEVELS | {"lam": 0.0}), lik="x0"), got, "lam = 0")
