"""elbo_reduce: L and D against NumPy, their draws, the Gaussian closed form, and the bound they are terms of."""

import numpy as np
import pytest
import torch
import vb_gauss as gauss
import vb_math as vb
from sf_testing import draw, same_bits, within
from vb_cases import DTYPES, NORMAL, elbo_expected, elbo_state, numpy

import semcom_fast as sf
from semcom_fast import reference

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with sf.use_backend(request.param):
        yield request.param


def _reduce(c, noise_var=0.3, at=0, **draws):
    draws = draws or {"noise": c.noise}
    return sf.elbo_reduce(
        c.eps, c.h, c.steps, c.table, c.weights, c.yv, c.svd, noise_var=noise_var, tau=c.steps[at], **draws
    )


def _check(c, label, noise_var=0.3, at=0, drawn=None, off=0.0, **draws):
    L, D, bound_l, bound_d = elbo_expected(c, noise_var, at, drawn, off)
    got = _reduce(c, noise_var, at, **draws)
    for name, a, b, bound in (("L", got[0], L, bound_l), ("D", got[1], D, bound_d)):
        assert a.dtype is c.h.dtype.to_real()
        within(a, b, bound, f"elbo {name} {label} {str(c.h.dtype)[6:]}")
    return got


SIZES = [(1, 1, 1), (2, 4, 3), (3, 33, 20), (5, 4, 7), (16, 64, 38), (1, 64, 64), (2, 3, 3)]  # nr, nt, np


@dtypes
@pytest.mark.parametrize("shared", [True, False], ids=["shared pilots", "pilots per channel"])
@pytest.mark.parametrize("nr, nt, np_", SIZES)
def test_against_numpy(nr, nt, np_, shared, dtype, backend):
    """Sizes, numbers of steps and experts, tau at any place, more pilots than antennas."""
    for steps, experts, at in ((1, 1, 0), (3, 2, 1), (2, 4, 0), (3, 7, 2)):
        c = elbo_state(2, steps, experts, nr, nt, np_, dtype=dtype, shared=shared, seed=experts)
        _check(c, backend, at=at)


@dtypes
def test_draws(dtype, backend):
    """seed= draws what renoise drew: stream 8, Philox step t, item first_item + b."""
    c = elbo_state(3, 3, 2, 4, 9, 5, dtype=dtype)
    for seed, first in ((5, 0), (2**63 + 11, 40)):
        key = {"seed": seed, "stream": 8, "first_item": first}
        shape = tuple(c.h.shape)
        normals = [reference.philox_normal(shape, step=t, dtype=torch.complex128, **key) for t in c.steps]
        noise = torch.stack(normals, 1)
        _check(c, f"drawn {backend}", at=1, drawn=noise, off=NORMAL[dtype], seed=seed, first_item=first)
        c.noise = torch.stack([sf.philox_normal(shape, step=t, dtype=dtype, **key) for t in c.steps], 1)
        bits = torch.tensor(seed - 2**64 * (seed >= 2**63))
        for a, b in zip(_reduce(c, seed=bits, first_item=first), _reduce(c), strict=True):
            within(a, b, 4 * 2.0 ** (-23 if dtype is torch.complex64 else -52) * b.abs(), f"drawn is given {backend}")


@dtypes
@pytest.mark.parametrize("kind", ["0-d", "[B]", "float32 [B]", "[1]"])
def test_noise_variance(kind, dtype, backend):
    """A number, a tensor, one per channel; L does not see it and D is inverse to it."""
    c = elbo_state(3, 2, 2, dtype=dtype)
    n = {"0-d": torch.tensor(0.7), "[1]": torch.tensor([0.7])}.get(kind, torch.tensor([0.7, 1e-3, 40.0])).double()
    n = n.float() if kind == "float32 [B]" else n
    L, _ = _check(c, f"noise_var {backend}", noise_var=n)
    same_bits(L, _reduce(c)[0], "L")


@dtypes
def test_tables_and_steps(dtype, backend):
    """Tables of all steps or entries of these; lists and tensors; permuted steps permute nothing but the sum's order."""
    c = elbo_state(2, 3, 2, dtype=dtype)
    want = _reduce(c, at=1)
    for steps in (c.steps, torch.tensor(c.steps)):
        for bar in (c.table, c.table[c.steps], c.table[c.steps].tolist()):
            for w in (c.weights, c.weights[c.steps], c.weights[c.steps].tolist()):
                got = sf.elbo_reduce(c.eps, c.h, steps, bar, w, c.yv, c.svd, noise_var=0.3, tau=40, noise=c.noise)
                for a, b in zip(got, want, strict=True):
                    same_bits(a, b, "tables")
    order = [2, 0, 1]
    c.eps, c.noise, c.steps = c.eps[:, order], c.noise[:, order], [c.steps[i] for i in order]
    for a, b in zip(_reduce(c, at=2), want, strict=True):
        within(a, b, 4 * 2.0 ** (-23 if dtype is torch.complex64 else -52) * b.abs(), f"order of steps {backend}")


def test_perfect_experts_have_perfect_evidence(backend):
    """eps_e = eps gives L = 0 and D = the misfit of h itself; without noise in Y and h the truth, D = 0."""
    c = elbo_state(2, 3, 2)
    c.eps = c.noise[:, :, None].repeat(1, 1, 2, 1, 1)
    c.yv = (c.h @ c.svd.u) * c.svd.s
    L, D = _reduce(c)
    assert torch.equal(L, torch.zeros(2, 2, dtype=torch.float64))
    within(D, torch.zeros_like(D), 1e-26, "D of the truth")


@pytest.mark.parametrize("np_", [3, 6, 9])
def test_data_term_is_the_full_misfit(np_, backend):
    """-|Y - H~ P|^2/noise_var with Y itself differs by the same constant for every expert, zero where Np <= Nt."""
    c = elbo_state(3, 2, 4, 4, 6, np_)
    args = numpy(c.eps, c.h)
    _, full = vb.elbo(*args, c.alpha_bar[c.steps], [1, 1], c.noise.numpy(), c.y.numpy(), c.p.numpy(), 0.3, 0)
    outside = vb.outside_rows(c.y.numpy(), c.p.numpy()) / 0.3
    assert (outside < 1e-20).all() == (np_ <= 6)
    D = _reduce(c)[1]
    within(
        D - torch.from_numpy(outside)[:, None],
        torch.from_numpy(full),
        1e-12 * np.abs(full).max(),
        f"Y itself {backend}",
    )


@pytest.mark.parametrize("np_", [3, 8])
def test_silent_antennas(np_, backend):
    """Zero pilot rows: what the experts say about those antennas does not enter D."""
    c = elbo_state(2, 2, 3, 4, 6, np_)
    p = c.p.clone()
    p[[0, 4]] = 0
    c.svd = sf.pilot_svd(p)
    c.yv = c.svd.project(c.y)
    D = _check(c, f"silent antennas {backend}")[1]
    c.eps[..., [0, 4]] += 3
    within(_reduce(c)[1], D, 1e-12 * D.abs().max(), f"silent antennas in D {backend}")


@dtypes
def test_empty(dtype, backend):
    """No channels: empty results."""
    c = elbo_state(2, 2, 3, dtype=dtype)
    for name in ("eps", "h", "yv", "noise"):
        setattr(c, name, getattr(c, name)[:0])
    assert [t.shape for t in _reduce(c)] == [(0, 3), (0, 3)]


def test_weights_are_signal_to_noise_ratios():
    """w_t == SNR_{t-1}/SNR_t - 1 for t >= 2, SNR_t = ab_t/(1-ab_t); the minimum near t = 50."""
    for steps, last in ((100, 0.1), (1000, 0.01), (10, 0.7)):
        beta, bar = vb.schedule(steps, last=last)
        snr = bar[1:] / (1 - bar[1:])
        ratio = snr[:-1] / snr[1:] - 1
        within(torch.from_numpy(vb.elbo_weights(beta, bar)[2:]), torch.from_numpy(ratio), 1e-9, "w_t")
    beta, bar = vb.schedule(100)
    assert int(vb.elbo_weights(beta, bar)[1:].argmin()) + 1 == 50


def _expected_terms(law, bar, w, steps):
    """E of w_t |eps - eps_k(H_t)|^2 over H ~ the law and eps: sum_i ab lam_i/(ab lam_i + 1 - ab) per step."""
    lam = law.eigen[0]
    return np.array([w[t] * (bar[t] * lam / (bar[t] * lam + 1 - bar[t])).sum() for t in steps])


def test_monte_carlo_of_the_bound_is_the_closed_form(backend):
    """Mean of -L over channels of the law itself: per-eigenvalue closed form, at the default steps, 5 standard errors."""
    law = gauss.scenario(1, 2, 6)[2]
    beta, bar = vb.schedule(100)
    w, steps, n = vb.elbo_weights(beta, bar), list(range(30, 101, 10)), 4000
    h = torch.from_numpy(law.draw(n, 2, np.random.default_rng(3)))
    noisy = sf.renoise(h, steps, list(bar), seed=4)
    eps = torch.stack([torch.from_numpy(law.eps(noisy[:, i].numpy(), bar[t])) for i, t in enumerate(steps)], 1)
    svd, yv, tables = sf.pilot_svd(draw(6, 4)), torch.zeros(n, 2, 4, dtype=h.dtype), (list(bar), list(w))

    def evidence(eps, steps):
        L, _ = sf.elbo_reduce(eps, h, steps, *tables, yv, svd, noise_var=1.0, tau=steps[0], seed=4)
        return -L[:, 0]

    each = torch.stack([evidence(eps[:, i : i + 1, None], [t]) for i, t in enumerate(steps)], 1)
    want = _expected_terms(law, bar, w, steps)
    error = (each.mean(0).numpy() - want) / (each.std(0).numpy() / n**0.5)
    assert (np.abs(error) < 5).all(), error
    total = evidence(eps[:, :, None], steps)
    within(total, each.sum(1), 1e-12 * each.sum(1).max(), f"sum over steps {backend}")


def _bound(law, steps, last):
    """Mean over the law of the full bound: terms t >= 2, reconstruction at t = 1 with variance beta_1, KL of H_T.

    Closed form for experts that are exact: every term is an expectation over eigen-directions.
    """
    beta, bar = vb.schedule(steps, last=last)
    w, lam = vb.elbo_weights(beta, bar), law.eigen[0]
    n, second = len(lam), lam.sum() + np.vdot(law.mean, law.mean).real
    later = _expected_terms(law, bar, w, range(2, steps + 1)).sum()
    first = n * np.log(np.pi * beta[1]) + _expected_terms(law, bar, w, [1]).sum()
    end = bar[-1] * second + n * (-bar[-1] - np.log(1 - bar[-1]))
    return -(later + first + end)


def test_the_full_bound_lies_below_the_evidence():
    """Mean ELBO <= mean log p = -entropy, and the gap shrinks as T grows: 100, 1000, 10000 steps."""
    for law in gauss.scenario(0, 2, 6)[1:3]:
        lam = law.eigen[0]
        evidence = -(len(lam) * np.log(np.pi * np.e) + np.log(lam).sum())
        gaps = [evidence - _bound(law, t, last) for t, last in ((100, 0.1), (1000, 0.01), (10000, 0.001))]
        assert gaps[0] > gaps[1] > gaps[2] > 0, gaps


ERRORS = [
    ({"tau": 35}, ValueError, "tau"),
    ({"noise_var": 0.0}, ValueError, "noise_var"),
    ({"noise_var": -1.0}, ValueError, "noise_var"),
    ({"noise_var": float("nan")}, ValueError, "noise_var"),
    ({"noise_var": torch.tensor([1.0, -1.0])}, ValueError, r"noise_var.*\b1\b"),
    ({"noise_var": torch.ones(3)}, ValueError, "noise_var"),
    ({"noise": None}, ValueError, "seed"),
    ({"noise": None, "seed": 1, "first_item": -1}, ValueError, "first_item"),
    ({"steps": [30, 40]}, ValueError, "need"),
    ({"steps": [30, 40, 101]}, ValueError, "alpha_bar"),
    ({"alpha_bar": [0.5, 0.5, 0.0]}, ValueError, "alpha_bar"),
    ({"w": [1.0, 1.0]}, ValueError, r"\bw\b"),
    ({"svd": None}, TypeError, "svd"),
]


@pytest.mark.parametrize("change, kind, message", ERRORS, ids=str)
def test_errors(change, kind, message, backend):
    """Arguments that do not fit are refused by name."""
    c = elbo_state(2, 3, 2)
    args = {"eps": c.eps, "h": c.h, "steps": c.steps, "alpha_bar": c.table, "w": c.weights, "yv": c.yv, "svd": c.svd,
            "noise_var": 0.3, "tau": 30, "noise": c.noise}  # fmt: skip
    sf.elbo_reduce(**args)
    with pytest.raises(kind, match=rf"^elbo_reduce.*{message}"):
        sf.elbo_reduce(**(args | change))


@pytest.mark.parametrize("name", ["eps", "h", "yv", "noise"])
def test_wrong_shapes_are_shown(name, backend):
    """Each operand in turn with a wrong entry of its shape."""
    c = elbo_state(2, 3, 2)
    t = getattr(c, name)
    for axis in range(t.ndim):
        if name == "eps" and axis == 2:  # the number of experts is eps' own
            continue
        wrong = torch.zeros([n + (i == axis) for i, n in enumerate(t.shape)], dtype=t.dtype)
        changed = type(c)(**(vars(c) | {name: wrong}))
        with pytest.raises(ValueError, match=r"^elbo_reduce: need ") as caught:
            _reduce(changed)
        assert str(tuple(wrong.shape)) in str(caught.value)


@pytest.mark.parametrize("name", ["eps", "h", "yv", "noise"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_operands_are_named(name, bad, backend):
    """NaN or Inf names its channel."""
    c = elbo_state(3, 3, 2)
    broken = getattr(c, name).clone()
    broken[1].view(-1)[0] = bad
    setattr(c, name, broken)
    with pytest.raises(ValueError, match=r"^elbo_reduce: .*\b1\b"):
        _reduce(c)


def test_a_bad_expert_is_named(backend):
    """One expert of one channel: both are in the message."""
    c = elbo_state(3, 2, 4)
    c.eps[2, 1, 3, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^elbo_reduce: channel 2, expert 3"):
        _reduce(c)
