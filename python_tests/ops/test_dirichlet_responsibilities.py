"""dirichlet_responsibilities: softmax with digamma terms against NumPy, the simplex, sharing and errors."""

import numpy as np
import pytest
import torch
import vb_math as vb
from sf_testing import draw, same_bits, unit, within

import semcom_fast as sf

DTYPES = (torch.float32, torch.float64)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with sf.use_backend(request.param):
        yield request.param


def _evidence(b, e, dtype, scale=5.0, seed=0):
    return (-scale * draw(b, e, seed=seed + i, dtype=dtype).abs() for i in range(2))


def _np(v):
    return v.double().numpy() if isinstance(v, torch.Tensor) else v


def _check(L, D, gamma0, label, **kwargs):
    """Formed in float64: roundoffs of float64 times the logits' size, then one rounding of the result."""
    named = {k: _np(v) for k, v in kwargs.items()}
    rho, after = vb.responsibilities(_np(L), _np(D), _np(gamma0), **named)
    got = sf.dirichlet_responsibilities(L, D, gamma0, **kwargs)
    now = np.broadcast_to(_np(kwargs.get("gamma", gamma0)), L.shape)
    psi = np.abs(vb.digamma(now)) + np.abs(vb.digamma(now.sum(-1, keepdims=True)))
    logits = np.abs(_np(L)) + abs(kwargs.get("eta", 1.0)) * np.abs(_np(D)) + psi
    growth = 16 * 2.0**-53 * (1 + logits.max(-1, keepdims=True)) + unit(L)
    bound = torch.from_numpy(rho * growth) + torch.finfo(L.dtype).tiny  # below it single precision underflows
    within(got[0], torch.from_numpy(rho), bound, f"rho {label}")
    slack = bound.sum(0) if kwargs.get("shared") else bound
    within(got[1], torch.from_numpy(after), slack + 2 * unit(L) * torch.from_numpy(after), f"gamma {label}")
    assert got[0].dtype is got[1].dtype is L.dtype
    return got


@dtypes
@pytest.mark.parametrize("e", [1, 2, 3, 4, 7, 16, 33])
@pytest.mark.parametrize("b", [1, 3, 17])
def test_against_numpy(b, e, dtype, backend):
    """Evidence of ordinary and of large size (10^4 nats), with each kind of prior and eta."""
    for scale in (1.0, 1e4):
        L, D = _evidence(b, e, dtype, scale)
        each = draw(b, e, seed=9, dtype=dtype).abs() + 0.01
        for gamma0 in (1.0, 0.05, each[0], each):
            _check(L, D, gamma0, backend)
            _check(L, D, gamma0, f"with gamma {backend}", gamma=each + 0.3, eta=0.5)
        _check(L, D, each[0], f"shared {backend}", shared=True, eta=2.0)


@dtypes
@pytest.mark.parametrize("shared", [False, True])
def test_simplex_and_gamma(shared, dtype, backend):
    """rho >= 0 sums to 1, gamma - gamma0 is rho, or its sum over the channels; e roundings."""
    L, D = _evidence(50, 5, dtype, 3.0)
    rho, gamma = sf.dirichlet_responsibilities(L, D, 0.5, shared=shared)
    assert (rho >= 0).all() and gamma.shape == ((5,) if shared else (50, 5))
    within(rho.double().sum(-1), torch.ones(50).double(), 5 * unit(dtype), f"simplex {backend}")
    total = rho.double().sum(0) if shared else rho.double()
    within(gamma.double() - 0.5, total, 2 * unit(dtype) * gamma.double(), f"gamma {backend}")


@dtypes
def test_permutation_shift_and_order(dtype, backend):
    """Permuted experts permute; a constant per channel changes nothing; more evidence is more responsibility."""
    L, D = _evidence(9, 6, dtype)
    rho, gamma = sf.dirichlet_responsibilities(L, D, 1.0)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = sf.dirichlet_responsibilities(L[:, order], D[:, order], 1.0)
    within(moved[0], rho[:, order], 4 * unit(dtype) * rho[:, order], f"permuted {backend}")
    within(moved[1], gamma[:, order], 4 * unit(dtype) * gamma[:, order], f"permuted {backend}")
    shifted = sf.dirichlet_responsibilities(L + 64, D - 32, 1.0)[0]
    within(shifted, rho, 400 * unit(dtype) * rho.max() + 1e-300, f"shifted {backend}")
    assert torch.equal(rho.argsort(-1), (L.double() + D.double()).argsort(-1))


@dtypes
def test_extreme_evidence(dtype, backend):
    """Differences beyond the exponent's range are one-hot without NaN; equal evidence is uniform."""
    L = torch.tensor([[-1e30, -1e4, -2e4], [0.0, 0.0, 0.0], [1e30, -1e30, 0.0]], dtype=dtype)
    rho, gamma = sf.dirichlet_responsibilities(L, torch.zeros_like(L), 1.0)
    assert torch.equal(rho[0], torch.tensor([0, 1, 0], dtype=dtype))
    within(rho[1], torch.full((3,), 1 / 3, dtype=dtype), 2 * unit(dtype), f"uniform {backend}")
    assert torch.equal(gamma[2], torch.tensor([2, 1, 1], dtype=dtype))


@dtypes
def test_one_hot_history_is_one_nat(dtype, backend):
    """gamma = (2,1,..): the favoured expert gains psi(2) - psi(1) = 1 nat, no more."""
    zero = torch.zeros(1, 4, dtype=dtype)
    rho, _ = sf.dirichlet_responsibilities(zero, zero, 1.0, gamma=torch.tensor([2, 1, 1, 1], dtype=dtype))
    within((rho[0, 0] / rho[0, 1]).log(), torch.ones((), dtype=dtype), 8 * unit(dtype), f"one nat {backend}")


@dtypes
def test_tiny_and_huge_parameters(dtype, backend):
    """gamma0 from 1e-3 to 1e6: digamma's poles and tail."""
    L, D = _evidence(4, 3, dtype, 1.0)
    for value in (1e-3, 0.1, 6.0, 1e3, 1e6):
        _check(L, D, value, f"gamma0 {backend}")
        _check(L, D, torch.tensor([value, 1.0, 2.5], dtype=dtype), f"spread gamma0 {backend}")


@dtypes
def test_empty_and_views(dtype, backend):
    """No channels; negated and strided evidence; expanded priors."""
    L, D = _evidence(6, 4, dtype)
    want = sf.dirichlet_responsibilities(L, D, 1.0)
    for a, b in ((L.t().contiguous().t(), D), (L, torch._neg_view(-D)), (L.flip(0).flip(0), D)):
        for x, y in zip(sf.dirichlet_responsibilities(a, b, 1.0), want, strict=True):
            same_bits(x, y, "views")
    for gamma0 in (torch.ones(4, dtype=dtype), torch.ones(6, 4, dtype=dtype), torch.ones(1, dtype=dtype).expand(4)):
        for x, y in zip(sf.dirichlet_responsibilities(L, D, gamma0), want, strict=True):
            same_bits(x, y, "priors")
    assert [t.shape for t in sf.dirichlet_responsibilities(L[:0], D[:0], 1.0)] == [(0, 4), (0, 4)]
    rho, gamma = sf.dirichlet_responsibilities(L[:0], D[:0], 0.5, shared=True)
    assert rho.shape == (0, 4) and torch.equal(gamma, torch.full((4,), 0.5, dtype=dtype))


@dtypes
def test_split_batch_and_threads(dtype, backend):
    """Rows do not see each other, nor the number of threads."""
    L, D = _evidence(4000, 4, dtype)
    whole = sf.dirichlet_responsibilities(L, D, 1.0)
    for a, b in ((0, 1), (1, 1000), (1000, 4000)):
        for x, y in zip(sf.dirichlet_responsibilities(L[a:b], D[a:b], 1.0), whole, strict=True):
            same_bits(x, y[a:b], "split")
    torch.set_num_threads(2)
    for x, y in zip(sf.dirichlet_responsibilities(L, D, 1.0), whole, strict=True):
        same_bits(x, y, "threads")


ONE = torch.ones(3, 4, dtype=torch.float64)
BAD = ONE.clone().index_fill(0, torch.tensor(1), float("nan"))
ERRORS = [
    ((ONE, ONE[:2], 1.0), {}, ValueError, "need"),
    ((ONE, ONE[:, :3], 1.0), {}, ValueError, "need"),
    ((ONE[0], ONE[0], 1.0), {}, ValueError, "need"),
    ((ONE, ONE, torch.ones(3, dtype=torch.float64)), {}, ValueError, "gamma0"),
    ((ONE, ONE, 0.0), {}, ValueError, "gamma0"),
    ((ONE, ONE, -1.0), {}, ValueError, "gamma0"),
    ((ONE, ONE, float("nan")), {}, ValueError, "gamma0"),
    ((ONE, ONE, ONE[0] * torch.tensor([1, 0, 1, 1])), {}, ValueError, "gamma0"),
    ((ONE, ONE, 1.0), {"gamma": -ONE}, ValueError, "gamma"),
    ((ONE, ONE, 1.0), {"gamma": ONE[:2]}, ValueError, "gamma"),
    ((ONE, ONE, ONE.clone()), {"shared": True}, ValueError, "gamma0"),
    ((ONE, ONE.float(), 1.0), {}, TypeError, "cast silently"),
    ((ONE, ONE, 1.0), {"gamma": ONE.float()}, TypeError, "gamma"),
    ((ONE + 0j, ONE + 0j, 1.0), {}, TypeError, r"\bL\b"),
    ((ONE, None, 1.0), {}, TypeError, r"\bD\b"),
    ((ONE, ONE, "1"), {}, TypeError, "gamma0"),
    ((BAD, ONE, 1.0), {}, ValueError, "row 1"),
    ((ONE, BAD, 1.0), {}, ValueError, "row 1"),
]


@pytest.mark.parametrize("args, kwargs, kind, message", ERRORS)
def test_errors(args, kwargs, kind, message, backend):
    """What does not fit is refused by name; NaN names its row."""
    with pytest.raises(kind, match=rf"^dirichlet_responsibilities.*{message}"):
        sf.dirichlet_responsibilities(*args, **kwargs)
