"""pilot_svd: P = U diag(s) V^H in double precision, rounded once, for any pilots but none at all."""

import numpy as np
import pytest
import torch
from sf_testing import dot_growth, draw, same_bits, unit, within
from vb_cases import DTYPES, FACTORS, numpy, pilots, views

import semcom_fast as sf

NAN, INF = float("nan"), float("inf")
SIZES = [(1, 1), (1, 4), (4, 1), (4, 4), (2, 5), (5, 2), (16, 9), (33, 20), (33, 40), (64, 38), (64, 64)]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _check(p, label):
    """Orthonormal factors, ordered values, and P back: one rounding per factor and LAPACK's own error."""
    svd = sf.pilot_svd(p)
    r, e = min(p.shape[-2:]), unit(p)
    assert [t.shape for t in svd] == [(*p.shape[:-1], r), (*p.shape[:-2], r), (*p.shape[:-2], p.shape[-1], r)]
    assert svd.u.dtype is svd.v.dtype is p.dtype and svd.s.dtype is p.dtype.to_real()
    (wide,), (u, s, v) = numpy(p), numpy(*svd)
    want = np.linalg.svd(wide, compute_uv=False)
    largest = want.max(-1, initial=0, keepdims=True)
    slack = FACTORS * 2.0**-53 * r
    within(svd.s, torch.from_numpy(want), torch.from_numpy(e * want + slack * largest), f"{label} values")
    assert (s[..., :-1] >= s[..., 1:]).all() and (s >= 0).all()
    eye = torch.eye(r, dtype=torch.complex128).expand(*p.shape[:-2], r, r)
    for name, f in (("U", u), ("V", v)):
        bound = torch.from_numpy(2.5 * e * np.abs(f).swapaxes(-1, -2) @ np.abs(f) + slack)
        within(torch.from_numpy(f.conj().swapaxes(-1, -2) @ f), eye, bound, f"{label} {name}^H {name}")
    back = (u * s[..., None, :]) @ v.conj().swapaxes(-1, -2)
    bound = 4 * e * (np.abs(u) * s[..., None, :]) @ np.abs(v).swapaxes(-1, -2) + slack * largest[..., None]
    within(torch.from_numpy(back), torch.from_numpy(wide), torch.from_numpy(bound), f"{label} product")
    return svd


@dtypes
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("nt, np_", SIZES)
def test_factors(nt, np_, batch, dtype):
    """QPSK pilots, shared and per channel, more pilots than antennas included."""
    _check(pilots(nt, np_, *batch, dtype=dtype), "svd")


@dtypes
def test_gaussian_and_scaled_pilots(dtype):
    """Pilots need not have unit modulus; large and tiny ones keep their relative precision."""
    p = draw(4, 6, 5, dtype=dtype)
    for scale in (1.0, 1e6, 1e-6):
        _check(p * scale, "scaled")


@dtypes
@pytest.mark.parametrize("nt, np_", [(4, 4), (4, 7), (6, 3)])
def test_zero_rows(nt, np_, dtype):
    """Silent antennas are allowed: their directions have s = 0 where the pilots cannot reach rank r, and never NaN."""
    p = pilots(nt, np_, dtype=dtype)
    p[1:3] = 0
    svd = _check(p, "zero rows")
    rank = min(nt - 2, np_)
    assert (svd.s[:rank] > 0.1).all()
    assert (svd.s[rank:] <= FACTORS * 2.0**-53 * float(svd.s[0])).all()
    p[:] = 0
    p[0, 0] = 1
    assert torch.equal(_check(p, "one pilot").s[:1], torch.ones(1, dtype=dtype.to_real()))


@dtypes
@pytest.mark.parametrize("lead", [(), (2,)], ids=str)
def test_project(lead, dtype):
    """Y V, for shared and batched factors and received pilots of any leading dims."""
    svd = sf.pilot_svd(pilots(6, 5, *lead, dtype=dtype))
    for y in (draw(2, 3, 5, dtype=dtype), draw(4, 2, 3, 5, dtype=dtype)):
        want = np.matmul(*numpy(y, svd.v))
        bound = dot_growth(5) * unit(dtype) * np.matmul(*map(np.abs, numpy(y, svd.v)))
        got = svd.project(y)
        assert got.dtype is dtype
        within(got, torch.from_numpy(want), 2 * torch.from_numpy(bound), "project")
    for wrong in (draw(2, 3, 6, dtype=dtype), draw(5, dtype=dtype)):
        with pytest.raises(ValueError, match=r"project"):
            svd.project(wrong)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_non_finite_pilots(bad):
    """NaN and Inf are refused, with the batch index where there is one."""
    p = pilots(4, 3, 3)
    p[1, 2, 0] = bad
    with pytest.raises(ValueError, match=r"^pilot_svd: .*\b1\b"):
        sf.pilot_svd(p)
    with pytest.raises(ValueError, match=r"^pilot_svd: "):
        sf.pilot_svd(p[1])


def test_zero_pilots():
    """Pilots of zeros tell nothing: refused, with the batch index."""
    p = pilots(4, 3, 3)
    p[2] = 0
    with pytest.raises(ValueError, match=r"^pilot_svd: .*\b2\b.*zero"):
        sf.pilot_svd(p)
    with pytest.raises(ValueError, match=r"^pilot_svd: .*zero"):
        sf.pilot_svd(p[2])


@pytest.mark.parametrize("wrong", [[1.0], None, torch.ones(3, 2), torch.ones(3, 2, dtype=torch.int64)], ids=type)
def test_wrong_kind(wrong):
    """Lists, None and real pilots are TypeErrors naming the op."""
    with pytest.raises(TypeError, match=r"^pilot_svd: .*pilots"):
        sf.pilot_svd(wrong)


@pytest.mark.parametrize("shape", [(), (3,), (3, 0), (0, 3)])
def test_wrong_shapes(shape):
    """Pilots are matrices with entries."""
    with pytest.raises(ValueError, match=r"^pilot_svd: "):
        sf.pilot_svd(torch.ones(shape, dtype=torch.complex128))


@dtypes
def test_views_and_empty_batches(dtype):
    """Strides and lazy bits do not matter; an empty batch has empty factors."""
    p = pilots(4, 6, 3, dtype=dtype)
    want = sf.pilot_svd(p)
    for view in views(p):
        for a, b in zip(sf.pilot_svd(view), want, strict=True):
            same_bits(a, b, "views")
    empty = sf.pilot_svd(p[:0])
    assert [t.shape for t in empty] == [(0, 4, 4), (0, 4), (0, 6, 4)]
    assert empty.project(draw(0, 2, 6, dtype=dtype)).shape == (0, 2, 4)


@dtypes
def test_split_batch(dtype):
    """Every channel's factors are its own."""
    p = pilots(5, 4, 7, dtype=dtype)
    whole = sf.pilot_svd(p)
    for k in range(7):
        for a, b in zip(sf.pilot_svd(p[k]), whole, strict=True):
            same_bits(a, b[k], "split")


def test_numpy():
    """Arrays give arrays, in the same named tuple."""
    p = pilots(4, 3, 2, dtype=torch.complex64)
    want, got = sf.pilot_svd(p), sf.pilot_svd(p.numpy())
    assert type(got) is type(want)
    for a, b in zip(got, want, strict=True):
        assert type(a) is np.ndarray
        same_bits(torch.from_numpy(a), b, "numpy")


def test_gradient_is_right_or_refused():
    """The factors are not unique, so their derivative is refused or torch's; never silently zero."""
    p = pilots(4, 3, 2).requires_grad_()
    try:
        svd = sf.pilot_svd(p)
        (got,) = torch.autograd.grad(svd.s.square().sum(), p)
    except (RuntimeError, NotImplementedError) as err:
        assert any(word in str(err) for word in ("gradient", "grad", "derivative")), err
        return
    within(got, 2 * p.detach(), 1e-12, "d sum s^2 = 2 P")
