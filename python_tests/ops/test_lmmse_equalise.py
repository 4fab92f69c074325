"""lmmse_equalise: the textbook at every SNR, its meaning as a linear filter, limits, singular channels, gradients."""

import forward_modes
import numpy as np
import pytest
import torch
from equalise_cases import bounds, textbook
from rzf_cases import singular
from sf_testing import DTYPES, draw, same_bits, unit, wide, within
from torch.autograd import gradcheck, gradgradcheck

import semcom_fast as sf

NAN, INF = float("nan"), float("inf")
SIZES = [(1, 1), (2, 1), (4, 4), (5, 3), (3, 5), (1, 4), (8, 8), (16, 4), (4, 16), (16, 16), (33, 20), (20, 33)]
sizes = pytest.mark.parametrize("nr, nt", SIZES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
backends = pytest.mark.parametrize("backend", ["cpu", "reference"])


@backends
@dtypes
@sizes
def test_textbook(nr, nt, dtype, backend):
    """Every size, SNR from 80 to -80 dB, as a number and per item."""
    y, h = draw(19, nr, seed=1, dtype=dtype), draw(19, nr, nt, seed=2, dtype=dtype)
    for noise_var in (1e-3, 1.0, torch.logspace(-8, 8, 19, dtype=torch.float64).to(dtype.to_real())):
        with sf.use_backend(backend):
            s_hat, noise_eff = sf.lmmse_equalise(y, h, noise_var)
        level = torch.as_tensor(noise_var, dtype=dtype.to_real())
        want, limit = textbook(y, h, level), bounds(y, h, level, dtype, backend == "reference")
        assert s_hat.dtype is dtype and noise_eff.dtype is dtype.to_real() and s_hat.shape == (19, nt)
        within(s_hat, want[0], limit[0], f"s_hat {backend} {str(dtype)[6:]}")
        within(noise_eff, want[1], limit[1], f"noise_eff {backend} {str(dtype)[6:]}")


@pytest.mark.parametrize("nr, nt", [(4, 4), (5, 3), (3, 5)])
def test_literal_formula(nr, nt):
    """diag(G h)^-1 G y and 1/diag(G h) - 1 with G = (h^H h + v I)^-1 h^H, written with torch.linalg."""
    y, h, v = draw(9, nr, seed=3), draw(9, nr, nt, seed=4), 0.3
    g = torch.linalg.solve(h.mH @ h + v * torch.eye(nt, dtype=h.dtype), h.mH)
    gain = (g @ h).diagonal(dim1=-2, dim2=-1).real
    s_hat, noise_eff = sf.lmmse_equalise(y, h, v)
    within(s_hat, (g @ y.unsqueeze(-1)).squeeze(-1) / gain, 1e-12 * s_hat.abs().max(), "literal s_hat")
    within(noise_eff, 1 / gain - 1, 1e-12 * noise_eff.max(), "literal noise_eff")


@pytest.mark.parametrize("nr, nt", [(4, 4), (5, 3), (3, 5), (1, 2)])
@pytest.mark.parametrize("noise_var", [1e-3, 0.5, 50.0])
def test_noise_after_unbiasing(nr, nt, noise_var):
    """The filter W, read off unit vectors: W h has a unit diagonal, and noise_eff is interference plus v |w_i|^2."""
    h = draw(7, nr, nt, seed=5)
    unit_y = torch.eye(nr, dtype=h.dtype).unsqueeze(1).expand(nr, 7, nr)
    s_hat, noise_eff = sf.lmmse_equalise(unit_y, h, noise_var)
    w = s_hat.permute(1, 2, 0)
    through = w @ h
    diagonal = through.diagonal(dim1=-2, dim2=-1)
    within(diagonal, torch.ones_like(diagonal), 1e-10, "unbiased")
    leaked = through - torch.diag_embed(diagonal)
    power = leaked.abs().square().sum(-1) + noise_var * w.abs().square().sum(-1)
    within(noise_eff, power.expand(nr, 7, nt), 1e-10 * power.max(), "noise_eff is the remaining variance")


@dtypes
def test_single_stream_and_orthogonal_streams(dtype):
    """Maximum-ratio combining: s_hat_i = h_i^H y/|h_i|^2 and noise_eff = v/|h_i|^2 where columns are orthogonal."""
    h = torch.linalg.qr(draw(6, 5, 3, seed=6)).Q * torch.tensor([0.5, 1.0, 2.0])
    y, v = draw(6, 5, seed=7), 0.4
    s_hat, noise_eff = sf.lmmse_equalise(y.to(dtype), h.to(dtype), v)
    energy = h.abs().square().sum(-2)
    matched = (h.mH @ y.unsqueeze(-1)).squeeze(-1) / energy
    # rounding h to the dtype leaves the columns orthogonal within a unit: relative changes of a few of them
    within(s_hat, matched, 30 * unit(dtype) * y.norm(dim=-1, keepdim=True), "orthogonal columns")
    within(noise_eff, v / energy, 30 * unit(dtype) * (1 + v / energy), "orthogonal columns")
    scalar = sf.lmmse_equalise(y[:, :1].to(dtype), h[:, :1, :1].to(dtype), v)
    within(scalar[0][:, 0], y[:, 0] / h[:, 0, 0], 4 * unit(dtype) * scalar[0][:, 0].abs(), "scalar channel")
    within(scalar[1][:, 0], v / h[:, 0, 0].abs().square(), 8 * unit(dtype) * scalar[1][:, 0], "scalar channel")


@pytest.mark.parametrize("nr, nt", [(4, 4), (6, 3)])
def test_limits(nr, nt):
    """v = 0 is zero forcing with noise_eff 0; v -> 0: noise_eff -> v (h^H h)^-1_ii; v -> infinity: the matched filter."""
    y, h = draw(9, nr, seed=8), draw(9, nr, nt, seed=9)
    s_hat, noise_eff = sf.lmmse_equalise(y, h, 0.0)
    within(
        s_hat,
        torch.linalg.lstsq(h, y.unsqueeze(-1)).solution.squeeze(-1),
        bounds(y, h, 0.0, y.dtype)[0],
        "zero forcing",
    )
    assert not noise_eff.any()
    inverse = torch.linalg.inv(h.mH @ h)
    diagonal = inverse.diagonal(dim1=-2, dim2=-1).real
    small = sf.lmmse_equalise(y, h, 1e-9)[1]
    within(small, 1e-9 * diagonal, 1e-7 * 1e-9 * diagonal * inverse.norm(dim=(-2, -1)).unsqueeze(-1), "high SNR")
    s_hat, noise_eff = sf.lmmse_equalise(y, h, 1e9)
    energy = h.abs().square().sum(-2)
    matched = (h.mH @ y.unsqueeze(-1)).squeeze(-1) / energy
    within(s_hat, matched, 1e-6 * y.norm(dim=-1, keepdim=True), "low SNR")
    within(noise_eff, 1e9 / energy, 1e-6 * 1e9 / energy, "low SNR")


def test_more_streams_than_antennas_without_noise():
    """Nr < Nt at v = 0: the limit of small noise; interference remains."""
    y, h = draw(9, 3, seed=10), draw(9, 3, 5, seed=11)
    for got, want in zip(sf.lmmse_equalise(y, h, 0.0), textbook(y, h, 1e-14), strict=True):
        within(got, want, 1e-9 * want.abs().max(), "wide channel without noise")


def test_statistics():
    """Unit-power symbols through the channel: the mean of |s_hat - s|^2 is noise_eff, within five standard errors."""
    h = draw(1, 4, 3, seed=12)
    s, n = draw(200_000, 3, seed=13), draw(200_000, 4, seed=14)
    y = (h @ s.unsqueeze(-1)).squeeze(-1) + 0.3**0.5 * n
    s_hat, noise_eff = sf.lmmse_equalise(y, h, 0.3)
    square = (s_hat - s).abs().square()
    within(square.mean(0), noise_eff[0], 5 * square.std(0) / 200_000**0.5, "mean square error")


@backends
@dtypes
@pytest.mark.parametrize(
    "kind", ["equal rows", "proportional rows", "linear combination", "zero row", "all zero", "nan", "inf"]
)
def test_singular_channels(kind, dtype, backend):
    """Dependent columns without noise, or NaN and Inf: an error with count and index, or zeros and infinite noise."""
    y, good = draw(4, 5, 4, seed=15, dtype=dtype), draw(4, 5, 4, 4, seed=16, dtype=dtype)
    h = good.clone()
    for at in ((1, 2), (3, 0)):
        h[at] = singular(kind, good[at].mT.unsqueeze(0))[0].mT
    with sf.use_backend(backend):
        want = sf.lmmse_equalise(y, good, 0.0)
        with pytest.raises(sf.SingularChannelError, match=r"^lmmse_equalise: 2 of 20 .*\(1, 2\)") as caught:
            sf.lmmse_equalise(y, h, 0.0)
        assert caught.value.count == 2 and caught.value.index == (1, 2)
        leaves = [y.clone().requires_grad_(True), h.clone().requires_grad_(True)]
        s_hat, noise_eff = sf.lmmse_equalise(*leaves, 0.0, on_singular="flag")
        grads = torch.autograd.grad(s_hat.abs().square().sum(), leaves)
    rest = torch.ones(4, 5, dtype=torch.bool)
    rest[1, 2] = rest[3, 0] = False
    assert not s_hat.detach()[~rest].any() and bool((noise_eff[~rest] == INF).all())
    same_bits(s_hat.detach()[rest], want[0][rest])
    same_bits(noise_eff.detach()[rest], want[1][rest])
    for g in grads:
        assert bool(torch.isfinite(torch.view_as_real(g)).all()) and not g[~rest].any()


@backends
@dtypes
@pytest.mark.parametrize("nr, nt", [(4, 3), (3, 3), (2, 4)])
def test_silent_stream(nr, nt, dtype, backend):
    """A column of zeros with noise: its symbol is unknown (0, infinite noise), the others are as without that column."""
    y, h = draw(9, nr, seed=17, dtype=dtype), draw(9, nr, nt, seed=18, dtype=dtype)
    h[4, :, 1] = 0
    others = [i for i in range(nt) if i != 1]
    with sf.use_backend(backend):
        s_hat, noise_eff = sf.lmmse_equalise(y, h, 0.3)
    assert s_hat[4, 1] == 0 and noise_eff[4, 1] == INF
    level = torch.tensor(0.3, dtype=dtype.to_real())
    want, limit = textbook(y[4], h[4][:, others], level), bounds(y[4], h[4][:, others], level, dtype)
    within(s_hat[4, others], want[0], 2 * limit[0], "silent stream")
    within(noise_eff[4, others], want[1], 2 * limit[1], "silent stream")


@backends
@pytest.mark.parametrize("bad", [complex(NAN, 0), complex(0, -INF)], ids=str)
def test_received_signal_that_is_not_finite(bad, backend):
    """NaN or Inf in y is named by its index; with "flag" the item is lost alone."""
    y, h = draw(3, 4, 5, seed=19), draw(3, 4, 5, 3, seed=20)
    with sf.use_backend(backend):
        want = sf.lmmse_equalise(y, h, 0.3)
        y[2, 1, 0] = bad
        with pytest.raises(ValueError, match=r"^lmmse_equalise: .*\(2, 1\).*not finite"):
            sf.lmmse_equalise(y, h, 0.3)
        s_hat, noise_eff = sf.lmmse_equalise(y, h, 0.3, on_singular="flag")
    rest = torch.ones(3, 4, dtype=torch.bool)
    rest[2, 1] = False
    assert not s_hat[2, 1].any() and bool((noise_eff[2, 1] == INF).all())
    same_bits(s_hat[rest], want[0][rest])
    same_bits(noise_eff[rest], want[1][rest])


def test_arguments():
    """Kinds, shapes, levels and choices are refused with the op's name."""
    y, h = draw(3, 4), draw(3, 4, 2)
    for wrong in ((y.real.clone(), h), (y, h.real.clone()), (y.to(torch.complex64), h), (None, h), (y, [1.0])):
        with pytest.raises(TypeError, match=r"^lmmse_equalise: "):
            sf.lmmse_equalise(*wrong, 0.1)
    for wrong in (
        (draw(3, 5), h),
        (draw(2, 4), h),
        (draw(), h),
        (y, draw(4)),
        (draw(3, 0), draw(3, 0, 2)),
        (y, draw(3, 4, 0)),
    ):
        with pytest.raises(ValueError, match=r"^lmmse_equalise: need y"):
            sf.lmmse_equalise(*wrong, 0.1)
    for level in (-0.1, NAN, INF, torch.tensor([0.1, -0.1, 0.1])):
        with pytest.raises(ValueError, match=r"^lmmse_equalise: noise_var must be"):
            sf.lmmse_equalise(y, h, level)
    with pytest.raises(ValueError, match=r"^lmmse_equalise: noise_var \(2,\) .*\(3,\)"):
        sf.lmmse_equalise(y, h, torch.ones(2))
    with pytest.raises(ValueError, match=r"^lmmse_equalise: on_singular"):
        sf.lmmse_equalise(y, h, 0.1, on_singular="pinv")
    with pytest.raises(ValueError, match=r"^lmmse_equalise: h is on meta"):
        sf.lmmse_equalise(y, h.to("meta"), 0.1)


@dtypes
def test_broadcasting_views_and_arrays(dtype):
    """Leading dims broadcast, levels align from the left; views and NumPy give the same bits; empty batches are empty."""
    y, h = draw(3, 1, 5, seed=21, dtype=dtype), draw(4, 5, 2, seed=22, dtype=dtype)
    level = torch.tensor([0.1, 0.5, 2.0])
    got = sf.lmmse_equalise(y, h, level)
    want = sf.lmmse_equalise(
        y.expand(3, 4, 5).contiguous(), h.expand(3, 4, 5, 2).contiguous(), level[:, None].repeat(1, 4)
    )
    arrays = sf.lmmse_equalise(y.numpy(), h.numpy(), level.numpy())
    views = sf.lmmse_equalise(
        y.conj().resolve_conj().conj(), h.mH.contiguous().mH, torch.stack([level, level], -1)[:, 0]
    )
    for a, b, c, d in zip(got, want, arrays, views, strict=True):
        same_bits(a, b)
        assert type(c) is np.ndarray
        same_bits(torch.from_numpy(c), b)
        same_bits(d, b)
    for lead in ((0,), (2, 0)):
        s_hat, noise_eff = sf.lmmse_equalise(
            draw(*lead, 5, dtype=dtype), draw(*lead, 5, 2, dtype=dtype), torch.ones(lead)
        )
        assert s_hat.shape == noise_eff.shape == (*lead, 2)
    assert [t.shape for t in sf.lmmse_equalise(y[0, 0], h[0], 0.3)] == [(2,), (2,)]


@dtypes
@pytest.mark.parametrize("nr, nt", [(4, 4), (5, 3), (2, 7)])
def test_split_batch_and_threads(nr, nt, dtype):
    """The same bits however the batch is cut and however many threads there are."""
    y, h = draw(3001, nr, seed=23, dtype=dtype), draw(3001, nr, nt, seed=24, dtype=dtype)
    v = torch.logspace(-9, 2, 3001).to(dtype.to_real())
    whole = sf.lmmse_equalise(y, h, v)
    torch.set_num_threads(2)
    for a, b in zip(sf.lmmse_equalise(y, h, v), whole, strict=True):
        same_bits(a, b)
    for first, last in ((0, 1), (1, 8), (8, 25), (2999, 3001)):
        for a, b in zip(sf.lmmse_equalise(y[first:last], h[first:last], v[first:last]), whole, strict=True):
            same_bits(a, b[first:last])


CHECK = {"atol": 1e-6, "rtol": 1e-5}


def _leaves(*tensors):
    return [t.clone().requires_grad_(True) for t in tensors]


@pytest.mark.parametrize("nr, nt, level", [(1, 1, ()), (4, 4, (2,)), (3, 2, (2, 2)), (2, 3, (1,)), (3, 3, ())])
def test_gradients(nr, nt, level):
    """gradcheck of both outputs in y, h and noise_var; the same on the reference backend."""
    y, h = draw(2, 2, nr, seed=25), draw(2, 2, nr, nt, seed=26)
    v = draw(*level, seed=27, dtype=torch.float64).abs() + 0.2
    assert gradcheck(sf.lmmse_equalise, _leaves(y, h, v), **CHECK)
    grads = []
    for backend in ("cpu", "reference"):
        leaves = _leaves(y, h, v)
        with sf.use_backend(backend):
            s_hat, noise_eff = sf.lmmse_equalise(*leaves)
        grads.append(torch.autograd.grad(s_hat.abs().square().sum() + noise_eff.sum(), leaves))
    for a, b in zip(*grads, strict=True):
        within(a, b, 1e-11 * (1 + b.abs().max()), "lmmse_equalise reference gradients")


@pytest.mark.parametrize("nr, nt", [(2, 2), (1, 2)])
def test_second_derivatives(nr, nt):
    """gradgradcheck of both outputs."""
    args = draw(1, nr, seed=25), draw(1, nr, nt, seed=26), torch.tensor(0.5, dtype=torch.float64)
    assert gradgradcheck(sf.lmmse_equalise, _leaves(*args), **CHECK)


def test_transforms_and_meta():
    """Forward mode is the slope, vmap a loop over rows; meta tensors give shapes. (Compiled in test_tracing.py.)"""
    y, h = draw(3, 4, seed=28), draw(3, 4, 2, seed=29)
    forward_modes.check(lambda y, h: tuple(sf.lmmse_equalise(y, h, 0.1)), (y, h))
    for i, row in enumerate(torch.func.vmap(lambda y, h: sf.lmmse_equalise(y, h, 0.1)[0])(y, h)):
        same_bits(row, sf.lmmse_equalise(y[i], h[i], 0.1)[0], "vmap")
    out = sf.lmmse_equalise(y.to("meta"), h.to("meta"), 0.1)
    assert all(t.is_meta and t.shape == (3, 2) for t in out) and out[1].dtype is torch.float64


@backends
@dtypes
@pytest.mark.parametrize("noise_var", [0.0, 1e-18, 1e-14, 1e-9])
@pytest.mark.parametrize("nr, nt", [(2, 3), (3, 4), (9, 12)])
def test_orthogonal_column_beside_more_streams(nr, nt, noise_var, dtype, backend):
    """A symbol that no other one disturbs is left with noise_var/|h|^2, which 1 - diag(G H) has no digits for; no symbol
    has less."""
    h = draw(50, nr, nt, seed=40, dtype=torch.complex128)
    first = torch.linalg.qr(h)[0][..., :1]
    h = torch.cat((first, h[..., 1:] - first @ (first.mH @ h[..., 1:])), -1).to(dtype)
    y = draw(50, nr, seed=41, dtype=dtype)
    with sf.use_backend(backend):
        noise = sf.lmmse_equalise(y, h, noise_var, on_singular="flag")[1].double()
    norm = torch.view_as_real(wide(h)[0]).square().sum((-3, -1))
    assert bool((noise >= noise_var / norm * (1 - 1e-6)).all())
