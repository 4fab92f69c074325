"""lmmse_channel: the textbook estimator, the normal equations, closed forms, limits, singular pilots, gradients."""

import forward_modes
import numpy as np
import pytest
import torch
from rzf_cases import columns
from sf_testing import DTYPES, dot_growth, draw, same_bits, unit, wide, within
from torch.autograd import gradcheck, gradgradcheck

import semcom_fast as sf
from semcom_fast import reference
from semcom_fast.links import draw_channel

NAN, INF = float("nan"), float("inf")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
backends = pytest.mark.parametrize("backend", ["cpu", "reference"])
SIZES = [
    (1, 1, 1),
    (4, 2, 2),
    (4, 2, 8),
    (4, 8, 2),
    (3, 4, 4),
    (1, 4, 3),
    (16, 4, 8),
    (5, 17, 20),
    (2, 20, 5),
    (64, 4, 4),
]
sizes = pytest.mark.parametrize("nr, nt, t", SIZES)


def _covariance(*lead, nt, seed=0, floor=0.3):
    root = draw(*lead, nt, nt, seed=seed) / nt**0.5
    return root @ root.mH + floor * torch.eye(nt, dtype=root.dtype)


def textbook(y, pilots, noise_var, cov=None):
    """y (P^H R P + v I)^-1 P^H R in double precision, R the conjugate of cov.

    With R = L L^H and the singular values L^H P = U sigma V^H it is y V sigma/(sigma^2 + v) U^H L^H: no Gram matrix.
    """
    y, p = wide(y, pilots)
    root = torch.eye(p.shape[-2], dtype=p.dtype) if cov is None else torch.linalg.cholesky(wide(cov)[0].conj())
    left, sigma, right = torch.linalg.svd(root.mH @ p, full_matrices=False)
    sigma = sigma.unsqueeze(-2)
    lead = torch.broadcast_shapes(y.shape[:-2], sigma.shape[:-2])
    return (y @ right.mH * (sigma / (sigma.square() + columns(noise_var, lead)))) @ left.mH @ root.mH


def bound(y, pilots, noise_var, dtype, cov=None):
    """[...,1,1]: with Q = L^H P and A the smaller of Q^H Q + v I and Q Q^H + v I, dA at most u * growth * trace.

    The operands that the precoder's factor sees are themselves rounded products when a covariance is given, which adds
    its condition number; float32 arithmetic throughout, although a small noise_var is solved in float64.
    """
    y, p = wide(y, pilots)
    nt, t = p.shape[-2:]
    c = torch.eye(nt, dtype=p.dtype) if cov is None else wide(cov)[0].conj()
    lead = torch.broadcast_shapes(y.shape[:-2], p.shape[:-2], c.shape[:-2])
    root = torch.linalg.cholesky(c)
    sigma = torch.linalg.svdvals(root.mH @ p)[..., None]
    v = columns(noise_var, lead)
    n = min(nt, t)
    inverse = 1 / (sigma[..., -1:, :].square() + v)
    trace = sigma.square().sum(-2, keepdim=True) + n * v
    growth = dot_growth(max(nt, t)) + dot_growth(3 * n + 1) + (0 if cov is None else 6 * dot_growth(nt))
    norms = [torch.linalg.matrix_norm(m)[..., None, None] for m in (y, root)]
    spread = 1.0 if cov is None else torch.linalg.cond(root)[..., None, None]
    top = sigma[..., :1, :] * norms[0] * norms[1]
    return 2 * unit(dtype) * growth * (trace * inverse + 1) * spread * inverse * top


@backends
@dtypes
@pytest.mark.parametrize("with_cov", [False, True])
@sizes
def test_textbook(nr, nt, t, with_cov, dtype, backend):
    """Every size, with and without covariance, noise as a number and per item."""
    y, p = draw(9, nr, t, seed=1, dtype=dtype), draw(9, nt, t, seed=2, dtype=dtype)
    cov = _covariance(9, nt=nt, seed=3).to(dtype) if with_cov else None
    for level in (0.3, torch.logspace(-4, 3, 9, dtype=torch.float64).to(dtype.to_real())):
        with sf.use_backend(backend):
            h_hat = sf.lmmse_channel(y, p, level, cov)
        assert h_hat.dtype is dtype and h_hat.shape == (9, nr, nt)
        want = textbook(y, p, level, cov)
        within(h_hat, want, bound(y, p, level, dtype, cov), f"lmmse_channel {str(dtype)[6:]}")


@pytest.mark.parametrize("with_cov", [False, True])
def test_literal_formula(with_cov):
    """The formula of the docstring, written with torch.linalg, and the one in semcom_fast.reference."""
    y, p, cov = draw(4, 3, 5, seed=1), draw(4, 2, 5, seed=2), _covariance(nt=2, seed=3) if with_cov else None
    c = torch.eye(2, dtype=y.dtype) if cov is None else cov.conj()
    want = y @ torch.linalg.solve(p.mH @ c @ p + 0.3 * torch.eye(5, dtype=y.dtype), p.mH @ c)
    within(sf.lmmse_channel(y, p, 0.3, cov), want, 1e-12 * want.abs().max(), "literal formula")
    within(
        reference.lmmse_channel(y, p, 0.3, cov), textbook(y, p, 0.3, cov), bound(y, p, 0.3, y.dtype, cov), "reference"
    )


@pytest.mark.parametrize("nt, t", [(2, 6), (4, 4), (6, 3)])
def test_normal_equations(nt, t):
    """The filter F, read off y = I, satisfies E[y^H y] F = E[y^H h]: (P^H R P + v I) F = P^H R, R = E[h^H h]."""
    p, cov = draw(nt, t, seed=4), _covariance(nt=nt, seed=5)
    f = sf.lmmse_channel(torch.eye(t, dtype=p.dtype), p, 0.2, cov.conj())
    residual = (p.mH @ cov @ p + 0.2 * torch.eye(t, dtype=p.dtype)) @ f
    within(residual, p.mH @ cov, 1e-12, "normal equations")


def test_orthogonal_pilots():
    """P P^H = c I: h_hat = y P^H/(c + v); a unit pilot matrix: h_hat = y/(1 + v)."""
    y, q = draw(5, 3, 8, seed=6), torch.linalg.qr(draw(8, 4, seed=7)).Q.mH * 1.5
    within(sf.lmmse_channel(y, q, 0.3), y @ q.mH / (2.25 + 0.3), 1e-13, "orthogonal pilots")
    eye = torch.eye(4, dtype=y.dtype)
    within(sf.lmmse_channel(y[..., :4], eye, 0.3), y[..., :4] / 1.3, 1e-14, "unit pilots")
    cov = torch.diag(torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)).to(y.dtype)
    gain = cov.diagonal().real / (cov.diagonal().real + 0.3)
    within(sf.lmmse_channel(y[..., :4], eye, 0.3, cov), y[..., :4] * gain, 1e-13, "unit pilots, diagonal covariance")


@pytest.mark.parametrize("with_cov", [False, True])
def test_limits(with_cov):
    """No noise and Nt <= T: the channel itself. Much noise: v h_hat -> y P^H R. Nt > T without noise: y is reproduced."""
    cov = _covariance(nt=3, seed=8) if with_cov else None
    c = torch.eye(3, dtype=torch.complex128) if cov is None else cov.conj()
    h, p = draw(6, 4, 3, seed=9), draw(6, 3, 5, seed=10)
    within(sf.lmmse_channel(h @ p, p, 0.0, cov), h, bound(h @ p, p, 0.0, h.dtype, cov), "no noise")
    y = draw(6, 4, 5, seed=11)
    within(1e9 * sf.lmmse_channel(y, p, 1e9, cov), y @ p.mH @ c, 1e-6, "much noise")
    short = p[..., :2]
    got = sf.lmmse_channel(y[..., :2], short, 0.0, cov)
    limit = bound(y[..., :2], short, 0.0, y.dtype, cov) * torch.linalg.matrix_norm(short)[..., None, None]
    within(got @ short, y[..., :2], limit, "fewer slots than antennas")


def test_scaled_covariance_is_scaled_noise():
    """C = c I and v equal C = I and v/c."""
    y, p = draw(6, 4, 5, seed=12), draw(6, 3, 5, seed=13)
    eye = torch.eye(3, dtype=y.dtype)
    within(sf.lmmse_channel(y, p, 0.6, 3 * eye), sf.lmmse_channel(y, p, 0.2), 1e-12, "scaled covariance")
    same_bits(sf.lmmse_channel(y, p, 0.2, eye), sf.lmmse_channel(y, p, 0.2))


def test_unitary_mixing():
    """Receive antennas mixed by U: h_hat -> U h_hat. Transmit antennas by Q, P -> Q P, R -> Q R Q^H: h_hat -> h_hat Q^H."""
    y, p, cov = draw(6, 4, 5, seed=14), draw(6, 3, 5, seed=15), _covariance(nt=3, seed=16)
    u, q = (torch.linalg.qr(draw(n, n, seed=n)).Q for n in (4, 3))
    want = sf.lmmse_channel(y, p, 0.3, cov)
    within(sf.lmmse_channel(u @ y, p, 0.3, cov), u @ want, 1e-12, "receive mixing")
    turned = q.conj() @ cov @ q.mT
    within(sf.lmmse_channel(y, q @ p, 0.3, (turned + turned.mH) / 2), want @ q.mH, 1e-12, "transmit mixing")


def test_mean_square_error():
    """Over channels that `draw_channel` makes with the same covariance, |h_hat - h|^2 is the trace of the posterior
    covariance, within five standard errors."""
    n, cov = 100_000, _covariance(nt=3, seed=17)
    p = draw(3, 4, seed=18)
    h = draw_channel(n, 1, 1, 1, 3, seed=19, cov_tx=cov, dtype=torch.complex128)[:, 0, 0]
    y = h @ p + 0.4**0.5 * draw(n, 1, 4, seed=20)
    square = (sf.lmmse_channel(y, p, 0.4, cov) - h).abs().square().sum((-2, -1))
    r = cov.conj()
    posterior = r - r @ p @ torch.linalg.solve(p.mH @ r @ p + 0.4 * torch.eye(4, dtype=p.dtype), p.mH @ r)
    within(square.mean(), posterior.diagonal().real.sum(), float(5 * square.std() / n**0.5), "posterior variance")


@dtypes
def test_broadcasting_views_and_arrays(dtype):
    """Pilots and covariance shared by the batch, levels from the left; views and NumPy; empty batches; one item."""
    y, p = draw(3, 4, 6, 5, seed=21, dtype=dtype), draw(3, 5, seed=22, dtype=dtype)
    level, cov = torch.tensor([0.1, 0.5, 2.0]), _covariance(4, nt=3, seed=23).to(dtype)
    full_p, full_cov = p.expand(3, 4, 3, 5).contiguous(), cov.expand(3, 4, 3, 3).contiguous()
    each = level[:, None].repeat(1, 4)
    for c, full in ((None, None), (cov, full_cov)):
        got = sf.lmmse_channel(y, p, level, c)
        want = sf.lmmse_channel(y, full_p, each, full)
        # products with a shared matrix are rounded in another order than batched ones
        within(got, want, 2 * bound(y, full_p, each, dtype, full), "shared pilots")
        views = sf.lmmse_channel(y.mH.contiguous().mH, p.conj().resolve_conj().conj(), level, c)
        within(views, got, 2 * bound(y, full_p, each, dtype, full), "views")
        arrays = sf.lmmse_channel(*(None if a is None else a.numpy() for a in (y, p, level, c)))
        assert type(arrays) is np.ndarray
        same_bits(torch.from_numpy(arrays), got)
    for lead in ((0,), (2, 0)):
        for c in (None, cov[0]):
            assert sf.lmmse_channel(draw(*lead, 6, 5, dtype=dtype), p, 0.1, c).shape == (*lead, 6, 3)
    single = sf.lmmse_channel(y[1, 2], p, 0.5)
    within(single, sf.lmmse_channel(y, p, level)[1, 2], 2 * bound(y[1, 2], p, 0.5, dtype), "one item")


@dtypes
@pytest.mark.parametrize("with_cov", [False, True])
@pytest.mark.parametrize(
    "nr, nt, t", [*SIZES, (8, 1, 2), (7, 2, 4), (6, 8, 8), (5, 3, 7), (2, 40, 48), (3, 140, 150), (2, 150, 140)]
)
def test_pilots_without_batch(nr, nt, t, with_cov, dtype):
    """Pilots that all items share become one filter: the textbook's estimates, and the same bits however many items."""
    p, cov = draw(nt, t, seed=50, dtype=dtype), _covariance(nt=nt, seed=3).to(dtype) if with_cov else None
    y = draw(1500 // nr if nt < 100 else 20, nr, t, seed=51, dtype=dtype)
    for level in (0.3, torch.tensor(1e-4)):
        whole, exact = sf.lmmse_channel(y, p, level, cov), torch.as_tensor(level, dtype=dtype.to_real())
        want, most = textbook(y, p, exact, cov), bound(y, p, exact, dtype, cov)
        within(whole, want, most, f"shared pilots {str(dtype)[6:]}")
        for first, last in ((0, 1), (1, 8), (8, len(y))):
            same_bits(sf.lmmse_channel(y[first:last], p, level, cov), whole[first:last], "cut")
        same_bits(sf.lmmse_channel(y[3], p, level, cov), whole[3], "an item without batch")
    y[11, 0, t - 1] = complex(0, INF)
    with pytest.raises(ValueError, match=r"^lmmse_channel: .*index \(11,.*not finite"):
        sf.lmmse_channel(y, p, 0.3, cov)


@dtypes
def test_split_batch_and_threads(dtype):
    """The same bits however the batch is cut and however many threads there are."""
    y, p = draw(501, 4, 6, seed=24, dtype=dtype), draw(501, 3, 6, seed=25, dtype=dtype)
    whole = sf.lmmse_channel(y, p, 0.3)
    torch.set_num_threads(2)
    same_bits(sf.lmmse_channel(y, p, 0.3), whole)
    for first, last in ((0, 1), (1, 8), (8, 25), (499, 501)):
        same_bits(sf.lmmse_channel(y[first:last], p[first:last], 0.3), whole[first:last])


@dtypes
@pytest.mark.parametrize("nr, nt, t", [(1, 16, 9), (4, 3, 6), (2, 8, 1), (3, 2, 3)])
def test_split_batch_with_covariances(nr, nt, t, dtype):
    """Also the products with the covariance's root keep their bits."""
    y, p = draw(40, nr, t, seed=31, dtype=dtype), draw(40, nt, t, seed=32, dtype=dtype)
    each = _covariance(40, nt=nt, seed=33).to(dtype)
    for cov in (each, each[0]):
        whole = sf.lmmse_channel(y, p, 0.3, cov)
        for first, last in ((0, 1), (1, 8), (8, 40)):
            part = cov[first:last] if cov.ndim == 3 else cov
            same_bits(sf.lmmse_channel(y[first:last], p[first:last], 0.3, part), whole[first:last])


@backends
def test_singular_pilots(backend):
    """Dependent pilots without noise, or NaN in them: named by this op, with count and index; fine with noise."""
    y, p = draw(2, 3, 4, 5, seed=26), draw(2, 3, 3, 5, seed=27)
    p[1, 0, 2] = 2 * p[1, 0, 1]
    with sf.use_backend(backend):
        with pytest.raises(sf.SingularChannelError, match=r"^lmmse_channel: 1 of 6 .*\(1, 0\)") as caught:
            sf.lmmse_channel(y, p, 0.0)
        assert caught.value.count == 1 and caught.value.index == (1, 0)
        assert "on_singular" not in str(caught.value), "this op has no such argument"
        within(sf.lmmse_channel(y, p, 0.1), textbook(y, p, 0.1), 1e-11, "dependent pilots with noise")
        p[1, 0, 2, 2] = NAN
        with pytest.raises(sf.SingularChannelError, match=r"^lmmse_channel: 1 of 6 .*\(1, 0\)"):
            sf.lmmse_channel(y, p, 0.1)
        y[0, 2, 1, 1] = INF
        with pytest.raises(ValueError, match=r"^lmmse_channel: .*\(0, 2\).*not finite"):
            sf.lmmse_channel(y, draw(2, 3, 3, 5, seed=27), 0.1)


def test_covariance_that_is_not_positive_definite():
    """The index of the first bad covariance is named."""
    y, p = draw(3, 4, 5, seed=28), draw(3, 5, seed=29)
    cov = _covariance(3, nt=3, seed=30)
    for bad in (-torch.eye(3), torch.zeros(3, 3), NAN * torch.eye(3)):
        cov[1] = bad.to(cov.dtype)
        with pytest.raises(ValueError, match=r"^lmmse_channel: cov at index \(1,\) is not positive definite"):
            sf.lmmse_channel(y, p, 0.1, cov)
    for i, j, value in ((0, 2, NAN), (0, 2, 5.0), (1, 1, 1 + 0.2j)):  # the factor reads the lower triangle alone
        cov = _covariance(3, nt=3, seed=30)
        cov[2, i, j] = value
        with pytest.raises(
            ValueError, match=r"^lmmse_channel: cov at index \(2,\) is not (Hermitian|positive definite)"
        ):
            sf.lmmse_channel(y, p, 0.1, cov)


def test_arguments():
    """Kinds, shapes and levels are refused with the op's name and the argument's."""
    y, p, cov = draw(3, 4, 5), draw(3, 2, 5), _covariance(nt=2)
    for wrong in (
        (y.real.clone(), p),
        (y, p.real.clone()),
        (y, p.to(torch.complex64)),
        (None, p),
        (y, [1.0]),
        (y, p, cov.real),
    ):
        with pytest.raises(TypeError, match=r"^lmmse_channel: "):
            sf.lmmse_channel(*wrong[:2], 0.1, *wrong[2:])
    for wrong in ((y, draw(3, 2, 4)), (draw(5), p), (y, draw(5)), (y, p, draw(3, 3)), (y, p, draw(2, 3)), (y, draw(2, 2, 5)),
                  (y, draw(3, 0, 5)), (draw(3, 4, 0), draw(3, 2, 0)), (y, p, draw(2)), (y, p, draw(2, 2, 2))):  # fmt: skip
        with pytest.raises(ValueError, match=r"^lmmse_channel: need y"):
            sf.lmmse_channel(*wrong[:2], 0.1, *wrong[2:])
    for level in (-0.1, NAN, INF, torch.tensor([0.1, -0.1, 0.1])):
        with pytest.raises(ValueError, match=r"^lmmse_channel: noise_var must be"):
            sf.lmmse_channel(y, p, level)
    with pytest.raises(ValueError, match=r"^lmmse_channel: noise_var \(2,\) .*\(3,\)"):
        sf.lmmse_channel(y, p, torch.ones(2))
    with pytest.raises(TypeError, match=r"^lmmse_channel: noise_var"):
        sf.lmmse_channel(y, p, "low")
    with pytest.raises(ValueError, match=r"^lmmse_channel: pilots is on meta"):
        sf.lmmse_channel(y, p.to("meta"), 0.1)


def _leaves(*tensors):
    return [t.clone().requires_grad_(True) for t in tensors]


@pytest.mark.parametrize("nt, t", [(2, 4), (2, 2), (3, 2)])
@pytest.mark.parametrize("level", [(), (2,)])
def test_gradients(nt, t, level):
    """gradcheck in y, pilots, noise_var and the root of the covariance; pilots shared by the batch; second derivatives."""
    y, p = draw(2, 2, t, seed=31), draw(2, nt, t, seed=32)
    v = draw(*level, seed=33, dtype=torch.float64).abs() + 0.2
    assert gradcheck(sf.lmmse_channel, _leaves(y, p, v), atol=1e-6)
    assert gradcheck(sf.lmmse_channel, _leaves(y, p[0], v), atol=1e-6)
    root = draw(nt, nt, seed=34)

    def with_cov(y, p, v, r):
        return sf.lmmse_channel(y, p, v, r @ r.mH + torch.eye(nt, dtype=r.dtype))

    assert gradcheck(with_cov, _leaves(y, p, v, root), atol=1e-6)
    if nt == t and not level:
        assert gradgradcheck(sf.lmmse_channel, _leaves(y[:1, :1], p[:1], v), atol=1e-6)


def test_transforms_and_meta():
    """Forward mode is the slope, vmap a loop over rows; meta tensors give shapes. (Compiled in test_tracing.py.)"""
    y, p = draw(3, 4, 5, seed=35), draw(3, 2, 5, seed=36)
    forward_modes.check(lambda y, p: sf.lmmse_channel(y, p, 0.1), (y, p))
    for i, row in enumerate(torch.func.vmap(lambda y, p: sf.lmmse_channel(y, p, 0.1))(y, p)):
        same_bits(row, sf.lmmse_channel(y[i], p[i], 0.1), "vmap")
    assert sf.lmmse_channel(y.to("meta"), p.to("meta"), 0.1).shape == (3, 4, 2)


@dtypes
@pytest.mark.parametrize("nr, nt, t", [(2, 2, 3), (4, 8, 1), (3, 4, 8)])
def test_split_of_a_broadcast_covariance(nr, nt, t, dtype):
    """The layout that broadcasting gives the root does not choose another kernel."""
    y, p = draw(2, 3, nr, t, seed=41, dtype=dtype), draw(2, 3, nt, t, seed=42, dtype=dtype)
    cov = _covariance(2, 1, nt=nt, seed=43).to(dtype)
    whole = sf.lmmse_channel(y, p, 0.3, cov)
    for i in range(2):
        same_bits(sf.lmmse_channel(y[i : i + 1], p[i : i + 1], 0.3, cov[i : i + 1]), whole[i : i + 1])


def test_pilots_that_are_not_finite_beside_a_covariance():
    """Named by this op, as without one."""
    y, p = draw(2, 3, 4, 5, seed=44), draw(2, 3, 3, 5, seed=45)
    p[1, 0, 2, 2] = NAN
    with pytest.raises(sf.SingularChannelError, match=r"^lmmse_channel: 1 of 6 .*\(1, 0\)"):
        sf.lmmse_channel(y, p, 0.1, _covariance(nt=3, seed=46))
