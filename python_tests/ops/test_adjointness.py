"""Algebra that needs no reference: adjoint identities, the explicit block-diagonal matrix, and equivariances."""

import pytest
import torch
from sf_testing import draw, within

import semcom_fast as sf

SIZES = [(1, 1, 1, 1, 1), (1, 3, 4, 2, 8), (2, 3, 4, 2, 8), (3, 2, 1, 1, 5), (2, 4, 5, 3, 25), (1, 1, 16, 8, 24)]
sizes = pytest.mark.parametrize("u, k, nr, nt, t", SIZES)


def _inner(a, b):
    return (a.conj() * b).sum()


def _operands(u, k, nr, nt, t):
    return draw(k, nr, t, seed=1), draw(u, k, nr, nt, seed=2), draw(u, k, nt, t, seed=3)


@sizes
def test_three_forms_of_one_inner_product(u, k, nr, nt, t):
    """<R, H X> = <R X^H, H> = <H^H R, X>; R X^H comes from likelihood_score with Y = R + H X."""
    r, h, x = _operands(u, k, nr, nt, t)
    hx = sf.blockdiag_apply(h, x)
    scores = sf.likelihood_score(r + hx, h, x)
    want = _inner(r, hx)
    size = r.abs().norm() * hx.abs().norm()
    for name, value in (
        ("<R X^H, H>", _inner(scores.score_h, h)),
        ("<H^H R, X>", _inner(scores.score_x, x)),
        ("<adjoint(H, R), X>", _inner(sf.blockdiag_adjoint(h, r), x)),
    ):
        within(value, want, 1e-13 * size, f"adjointness {name}")


@sizes
def test_explicit_block_diagonal_matrix(u, k, nr, nt, t):
    """The compound NrK x NtK matrix, built here once, gives the same signal, adjoint and score."""
    y, h, x = _operands(u, k, nr, nt, t)
    big = [torch.block_diag(*h[i]) for i in range(u)]
    tall = [x[i].reshape(k * nt, t) for i in range(u)]
    signal = sum(a @ b for a, b in zip(big, tall, strict=True))
    residual = y.reshape(k * nr, t) - signal
    out = sf.likelihood_score(y, h, x)
    within(sf.blockdiag_apply(h, x).reshape(k * nr, t), signal, 1e-13 * signal.abs().max(), "explicit H X")
    adjoint = sf.blockdiag_adjoint(h, y)
    for i in range(u):
        want = (big[i].mH @ y.reshape(k * nr, t)).reshape(k, nt, t)
        within(adjoint[i], want, 1e-13 * want.abs().max(), "explicit H^H Y")
        want = (big[i].mH @ residual).reshape(k, nt, t)
        within(out.score_x[i], want, 1e-13 * want.abs().max(), "explicit H^H R")
        outer = residual @ tall[i].mH  # only its diagonal blocks are channels
        for j in range(k):
            want = outer[j * nr : (j + 1) * nr, j * nt : (j + 1) * nt]
            within(out.score_h[i, j], want, 1e-13 * outer.abs().max(), "explicit R X^H")
    within(out.energy, residual.abs().square().sum(), 1e-13 * residual.abs().square().sum(), "explicit |R|^2")


def _unitary(*lead, n, seed):
    return torch.linalg.qr(draw(*lead, n, n, seed=seed)).Q


@sizes
def test_unitary_mixing_per_block(u, k, nr, nt, t):
    """(H U, U^H X) leaves R and its energy, maps score_h to score_h U, and leaves the calibrated variance."""
    y, h, x = _operands(u, k, nr, nt, t)
    dx, q = draw(u, k, nt, t, seed=4), _unitary(u, k, n=nt, seed=5)
    a = sf.likelihood_score(y, h, x, probe=dx)
    b = sf.likelihood_score(y, h @ q, q.mH @ x, probe=q.mH @ dx)
    scale = a.score_h.abs().max()
    within(b.score_h, a.score_h @ q, 1e-13 * nt * scale, "unitary score_h")
    within(b.score_x, q.mH @ a.score_x, 1e-13 * nt * a.score_x.abs().max(), "unitary score_x")
    for name in ("energy", "probe_x", "probe_y"):
        within(getattr(b, name), getattr(a, name), 1e-13 * getattr(a, name), f"unitary {name}")
    size = {"x_energy": float(k * nt * t), "nr": nr, "count": nr * k * t}
    var = torch.full((1, u), 0.3, dtype=torch.float64)
    s = [sf.pvd_calibrate(0.1, var, o.probe_x[None], o.probe_y[None], **size) for o in (a, b)]
    within(s[1], s[0], 1e-13 * s[0], "unitary calibration")


@pytest.mark.parametrize("perm", [(1, 0, 2), (2, 0, 1)])
def test_user_permutation(perm):
    """Users may be listed in any order: per-user outputs follow, shared ones stay."""
    y, h, x = _operands(3, 2, 4, 2, 7)
    dx, order = draw(3, 2, 2, 7, seed=4), list(perm)
    a = sf.likelihood_score(y, h, x, probe=dx)
    b = sf.likelihood_score(y, h[order], x[order], probe=dx[order])
    for name in ("score_h", "score_x", "probe_x"):
        want = getattr(a, name)[order]
        within(getattr(b, name), want, 1e-13 * want.abs().max(), f"user order {name}")
    for name in ("energy", "probe_y"):
        within(getattr(b, name), getattr(a, name), 1e-13 * getattr(a, name), f"user order {name}")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_users_equal_stacked_antennas(dtype):
    """U users with Nt antennas are one user with U*Nt antennas: H side by side, X stacked."""
    y, h, x = (t.to(dtype) for t in _operands(3, 2, 4, 2, 9))
    wide_h = h.permute(1, 2, 0, 3).reshape(1, 2, 4, 6)
    tall_x = x.permute(1, 0, 2, 3).reshape(1, 2, 6, 9)
    many, one = sf.likelihood_score(y, h, x), sf.likelihood_score(y, wide_h, tall_x)
    split_h = one.score_h.reshape(2, 4, 3, 2).permute(2, 0, 1, 3)
    split_x = one.score_x.reshape(2, 3, 2, 9).permute(1, 0, 2, 3)
    assert torch.equal(split_h, many.score_h) and torch.equal(split_x, many.score_x)
    assert torch.equal(one.energy, many.energy)


def test_linearity_in_each_argument():
    """blockdiag_apply is bilinear (complex), the adjoint antilinear in h."""
    y, h, x = _operands(2, 3, 4, 2, 8)
    c = 0.3 - 1.7j
    for got, want in (
        (sf.blockdiag_apply(c * h, x), c * sf.blockdiag_apply(h, x)),
        (sf.blockdiag_apply(h, c * x), c * sf.blockdiag_apply(h, x)),
        (sf.blockdiag_adjoint(c * h, y), c.conjugate() * sf.blockdiag_adjoint(h, y)),
        (sf.blockdiag_adjoint(h, c * y), c * sf.blockdiag_adjoint(h, y)),
    ):
        within(got, want, 1e-13 * want.abs().max(), "linearity")
