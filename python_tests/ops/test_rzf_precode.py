"""rzf_precode and rzf_matrix forward: every size, closed forms, invariances, power, static channels."""

import math

import pytest
import torch
from rzf_cases import columns, conditioned, precode_bound, smaller_form, textbook
from sf_testing import DTYPES, draw, same_bits, shadow_memory, unit, wide, within

import semcom_fast as sf
from semcom_fast import reference

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
forms = pytest.mark.parametrize("form", ["K", "M"])
backends = pytest.mark.parametrize("backend", ["cpu", "reference"])
BATCH = 19  # more than one pack of lanes, and not a multiple of any
GENERIC = [(17, 17), (17, 20), (20, 17), (20, 5), (5, 20), (1, 33), (33, 1), (24, 24), (3, 64)]


def _check_size(k, m, dtype):
    h, s = draw(BATCH, k, m, seed=100 * k + m, dtype=dtype), draw(BATCH, k, 14, seed=m, dtype=dtype)
    levels = {"number": 0.7, "per matrix": torch.linspace(1e-4, 2, BATCH, dtype=torch.float64).to(dtype.to_real())}
    for alpha in levels.values():
        want = textbook(h, s, alpha)
        for form in ("K", "M", None):
            used = form or smaller_form(k, m)
            bound = precode_bound(h, s, alpha, dtype, used)
            label = f"rzf {used}-form {str(dtype)[6:]}"
            for t in (1, 3, 14):
                shadow_memory(BATCH * m * t * 16)
                got = sf.rzf_precode(h, s[..., :t], alpha, form=form)
                within(got, want[..., :t], bound[..., :t], label)
                assert got.dtype is dtype and got.is_contiguous()
            within(sf.rzf_precode(h, s[..., 0], alpha, form=form), want[..., 0], bound[..., 0], f"{label} vector")


@dtypes
@pytest.mark.parametrize("k", range(1, 17))
def test_sizes(k, dtype):
    """Every M of 1..16; both forms and the automatic one; vector, 1, 3 and 14 right-hand sides; number and per matrix."""
    for m in range(1, 17):
        _check_size(k, m, dtype)


@dtypes
@pytest.mark.parametrize("k, m", GENERIC)
def test_other_sizes(k, m, dtype):
    """Sizes beyond the compiled ones take the generic path."""
    _check_size(k, m, dtype)


@backends
@dtypes
@pytest.mark.parametrize("k, m", [(1, 1), (1, 4), (3, 5), (4, 4), (6, 4), (16, 16), (5, 1)])
def test_matrix(k, m, dtype, backend):
    """rzf_matrix is the precoder of unit symbols; V s equals rzf_precode."""
    h, s = draw(5, k, m, seed=1, dtype=dtype), draw(5, k, 3, seed=2, dtype=dtype)
    eye = torch.eye(k, dtype=dtype).expand(5, k, k)
    for form in ("K", "M"):
        with sf.use_backend(backend):
            v = sf.rzf_matrix(h, 0.4, form=form)
            x = sf.rzf_precode(h, s, 0.4, form=form)
        assert v.shape == (5, m, k) and v.dtype is dtype
        within(v, textbook(h, eye, 0.4), precode_bound(h, eye, 0.4, dtype, form), f"rzf_matrix {backend}")
        size = torch.linalg.matrix_norm(v)[..., None, None] * torch.linalg.vector_norm(s, dim=-2, keepdim=True)
        matmul = unit(dtype) * 3 * k * size.double()
        columns_bound = precode_bound(h, eye, 0.4, dtype, form).norm(dim=-1, keepdim=True) * s.abs().norm(
            dim=-2, keepdim=True
        )
        within(v @ s, x, matmul + columns_bound + precode_bound(h, s, 0.4, dtype, form), "V s = x")


@dtypes
def test_reference_twin(dtype):
    """The reference in semcom_fast.reference agrees with the textbook formula to rounding."""
    h, s = draw(7, 3, 5, seed=1, dtype=dtype), draw(7, 3, seed=2, dtype=dtype)
    x, info = reference.rzf_precode(h, s, 0.2)
    want = textbook(h, s.unsqueeze(-1), 0.2)
    bound = precode_bound(*wide(h), *wide(s.unsqueeze(-1)), 0.2, torch.complex128, "K") + unit(dtype) * want.abs()
    within(x, want.squeeze(-1), bound.squeeze(-1), "reference twin")
    assert not info.any()


@dtypes
@pytest.mark.parametrize("k, m", [(1, 1), (2, 2), (4, 4), (8, 8), (16, 16), (17, 17), (3, 5), (4, 16), (1, 7)])
def test_zero_forcing(k, m, dtype):
    """alpha = 0, K <= M: h x = s."""
    h, s = draw(64, k, m, seed=3, dtype=dtype), draw(64, k, 3, seed=4, dtype=dtype)
    x = sf.rzf_precode(h, s, 0.0)
    size = torch.linalg.matrix_norm(wide(h)[0])[..., None, None]
    within(wide(h)[0] @ wide(x)[0], s, size * precode_bound(h, s, 0.0, dtype, "K"), f"H x = s {str(dtype)[6:]}")


@pytest.mark.parametrize("form", ["K", "M", None])
@dtypes
def test_large_regulariser(dtype, form):
    """alpha -> infinity: alpha x -> h^H s, with the next term of the series as bound."""
    h, s = draw(9, 4, 6, seed=5, dtype=dtype), draw(9, 4, 3, seed=6, dtype=dtype)
    (hw, sw) = wide(h, s)
    for alpha in (1e4, 1e8, 1e12):
        x = sf.rzf_precode(h, s, alpha, form=form)
        norm = torch.linalg.matrix_norm(hw)[..., None, None]
        series = norm**3 / alpha * sw.norm(dim=-2, keepdim=True)
        rounding = alpha * precode_bound(h, s, alpha, dtype, form or "K")
        # the regulariser itself is rounded to the dtype
        within(alpha * wide(x)[0], hw.mH @ sw, series + rounding + unit(dtype) * norm * sw.norm(dim=-2, keepdim=True),
               "alpha x -> h^H s")  # fmt: skip


@forms
@dtypes
@pytest.mark.parametrize("k, m", [(1, 3), (3, 4), (4, 4), (8, 16)])
def test_orthogonal_rows(k, m, dtype, form):
    """h h^H = c I: x = h^H s/(c + alpha)."""
    h = 1.5 * torch.linalg.qr(draw(6, m, k, seed=7)).Q.mH
    s = draw(6, k, 2, seed=8)
    for alpha in (0.01, 0.5, 30.0, *([0.0] if form == "K" or k == m else [])):
        got = sf.rzf_precode(h.to(dtype), s.to(dtype), alpha, form=form)
        want = h.mH @ s / (2.25 + alpha)
        # operands were rounded to the dtype: relative 3 u (h twice, s once), amplified at most as by the solve
        moved = precode_bound(h, s, alpha, dtype, form) + 4 * unit(dtype) * want.norm(dim=-2, keepdim=True) * (k + 1)
        within(got, want, moved, "orthogonal rows")


@dtypes
@pytest.mark.parametrize("alpha", [0.05, 1.0, 20.0])
def test_residual_identities(alpha, dtype):
    """With u = (h h^H + alpha I)^-1 s: s - h x = alpha u and Re(s^H u) = |x|^2 + alpha |u|^2."""
    h, s = draw(50, 4, 5, seed=9, dtype=dtype), draw(50, 4, 1, seed=10, dtype=dtype)
    hw, sw = wide(h, s)
    x = wide(sf.rzf_precode(h, s, alpha))[0]
    err = precode_bound(h, s, alpha, dtype, "K")
    size = torch.linalg.matrix_norm(hw)[..., None, None]
    u = torch.linalg.solve(hw @ hw.mH + alpha * torch.eye(4, dtype=hw.dtype), sw)
    within(sw - hw @ x, alpha * u, size * err, "s - H x = alpha u")
    left = (sw.conj() * u).real.sum(-2, keepdim=True)
    right = x.abs().square().sum(-2, keepdim=True) + alpha * u.abs().square().sum(-2, keepdim=True)
    within(right, left, 2 * x.norm(dim=-2, keepdim=True) * 3 * err + 1e-14 * left, "Re s^H u = |x|^2 + alpha |u|^2")


@dtypes
@pytest.mark.parametrize("alpha", [1e-3, 0.2, 5.0])
def test_norm_is_bounded(alpha, dtype):
    """|x| <= |s|/(2 sqrt(alpha)) for any channel, and equality for a channel with all singular values sqrt(alpha)."""
    h, s = draw(4000, 4, 4, seed=11, dtype=dtype), draw(4000, 4, seed=12, dtype=dtype)
    h = h * torch.logspace(-2, 2, 4000).reshape(-1, 1, 1)
    level = torch.tensor(alpha, dtype=dtype.to_real())
    cap = wide(s)[0].norm(dim=-1) / (2 * math.sqrt(level))
    ratio = wide(sf.rzf_precode(h, s, level))[0].norm(dim=-1) / cap
    # with alpha >= 1e-3 mean diagonal in float32, or in float64: cond(A) <= 1e3 K, error growth of order 100
    assert 0.5 < float(ratio.max()) <= 1 + 1e3 * 4 * 100 * unit(dtype)
    tight = math.sqrt(alpha) * torch.linalg.qr(draw(9, 4, 4, seed=13)).Q
    got = wide(sf.rzf_precode(tight.to(dtype), s[:9], level))[0].norm(dim=-1)
    within(got, cap[:9], 40 * unit(dtype) * cap[:9], "|x| = |s|/(2 sqrt(alpha))")


def _invariance(dtype, form, alpha):
    h, s = draw(11, 4, 6, seed=14, dtype=dtype), draw(11, 4, 3, seed=15, dtype=dtype)
    x = sf.rzf_precode(h, s, alpha, form=form)
    return h, s, x, 2 * precode_bound(h, s, alpha, dtype, form)


@dtypes
@pytest.mark.parametrize("form, alpha", [("K", 0.0), ("K", 0.3), ("M", 0.3)])
def test_invariances(form, alpha, dtype):
    """Users permuted or rotated in phase: x unchanged. Antennas mixed by a unitary Q: x -> Q^H x."""
    h, s, x, bound = _invariance(dtype, form, alpha)
    order = [2, 0, 3, 1]
    within(sf.rzf_precode(h[:, order], s[:, order], alpha, form=form), x, bound, "users permuted")
    phase = torch.polar(torch.ones(11, 4, 1, dtype=torch.float64), draw(11, 4, 1, seed=16, dtype=torch.float64))
    q = torch.linalg.qr(draw(11, 6, 6, seed=17)).Q
    hw, sw = wide(h, s)
    turned, rotated = (phase * hw).to(dtype), (hw @ q).to(dtype)
    # rounding the turned operands: a relative unit of h and s each, amplified like the error of the Gram matrix
    moved = (1.5 if dtype is torch.complex64 else 2) * bound
    if dtype is torch.complex64 and alpha < 1e-3:  # solved in float64, but the turned operands are rounded to float32
        size = torch.linalg.matrix_norm(hw)[..., None, None]
        inverse = torch.linalg.matrix_norm(torch.linalg.pinv(hw), 2)[..., None, None]
        moved = unit(dtype) * 4 * size * inverse**2 * sw.norm(dim=-2, keepdim=True) + bound
    within(sf.rzf_precode(turned, (phase * sw).to(dtype), alpha, form=form), x, moved, "users turned in phase")
    within(wide(sf.rzf_precode(rotated, s, alpha, form=form))[0], q.mH @ wide(x)[0], moved, "antennas mixed")


@dtypes
@pytest.mark.parametrize("form, alpha", [("K", 0.0), ("K", 0.3), ("M", 0.3), ("M", 1e-5)])
def test_scaling(form, alpha, dtype):
    """f(c h, s, c^2 alpha) = f(h, s, alpha)/c: for a power of two bit for bit, since every product scales exactly."""
    h, s, x, _ = _invariance(dtype, form, alpha)
    for c in (2.0, 0.25, 2.0**20, 2.0**-20):
        same_bits(sf.rzf_precode(c * h, s, c * c * alpha, form=form) * c, x, f"scaled by {c}")
    hw, sw = wide(h, s)
    got = sf.rzf_precode(3.7 * hw, sw, 3.7**2 * alpha, form=form) * 3.7
    want = sf.rzf_precode(hw, sw, alpha, form=form)
    within(got, want, 4 * precode_bound(h, s, alpha, torch.complex128, form), "scaled by 3.7")


@pytest.mark.parametrize("exponent", [-75, -73, -70, -66, -63, 50, 66, 100])
@pytest.mark.parametrize("form", ["K", "M"])
def test_zero_forcing_at_any_scale(form, exponent):
    """complex64 zero forcing where |h|^2 under- or overflows float32: still the scaled solution, bit for bit."""
    h, s = draw(33, 4, 4, seed=18, dtype=torch.complex64), draw(33, 4, seed=19, dtype=torch.complex64)
    c = 2.0**exponent
    got, info = sf.rzf_precode(h * c, s, 0.0, form=form, on_singular="flag", return_info=True)
    assert not info.any(), info
    same_bits(got * c, sf.rzf_precode(h, s, 0.0, form=form), f"2^{exponent}")


@forms
@pytest.mark.parametrize("k, m", [(2, 2), (4, 4), (3, 5), (6, 4)])
def test_forms_agree(k, m, form):
    """K-form = M-form, and both equal the other way of writing it, (h^H h + alpha I)^-1 h^H s."""
    h, s = draw(8, k, m, seed=20), draw(8, k, 3, seed=21)
    want = torch.linalg.solve(h.mH @ h + 0.1 * torch.eye(m, dtype=h.dtype), h.mH @ s)
    bound = precode_bound(h, s, 0.1, torch.complex128, form) + precode_bound(h, s, 0.1, torch.complex128, "M")
    within(sf.rzf_precode(h, s, 0.1, form=form), want, bound, "K-form = M-form")


def test_least_squares():
    """form="M" with alpha = 0 and M < K: the least-squares x of h x = s."""
    h, s = draw(8, 6, 3, seed=22), draw(8, 6, 2, seed=23)
    bound = precode_bound(h, s, 0.0, torch.complex128, "M")
    within(sf.rzf_precode(h, s, 0.0, form="M"), torch.linalg.lstsq(h, s).solution, 2 * bound, "least squares")


def _normalised_columns(h, alpha):
    v = textbook(h, torch.eye(h.shape[-2], dtype=h.dtype), alpha)
    return v / v.norm(dim=-2, keepdim=True)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_columns_of_unit_norm(alpha):
    """V with its columns scaled to unit norm is the usual per-stream normalised RZF matrix."""
    h = draw(5, 4, 6, seed=24)
    v = sf.rzf_matrix(h, alpha)
    eye = torch.eye(4, dtype=h.dtype)
    bound = 2 * precode_bound(h, eye, alpha, torch.complex128, "K") / v.norm(dim=-2, keepdim=True)
    within(v / v.norm(dim=-2, keepdim=True), _normalised_columns(h, alpha), bound, "unit columns")


@backends
@dtypes
@pytest.mark.parametrize("power", [1.0, 0.25])
@pytest.mark.parametrize("dims", [None, 0, 1, 2, 3])
def test_power(dims, power, dtype, backend):
    """The mean of |x|^2 over each group is the power; the direction is that of the unscaled x."""
    h, s = draw(3, 5, 7, 4, 6, seed=25, dtype=dtype), draw(3, 5, 7, 4, seed=26, dtype=dtype)
    lead = 2 if dims is None else dims
    axes = tuple(range(3 - lead, 4))
    with sf.use_backend(backend):
        x = sf.rzf_precode(h, s, 0.3, power=power, power_dims=dims)
        plain = sf.rzf_precode(h, s, 0.3)
    mean = wide(x)[0].abs().square().mean(axes)
    # scale and products each rounded once: |x|^2 moves by 2 (u + u) at most, sums are in float64
    within(mean, torch.full_like(mean, power), (4 * unit(dtype) + 200 * 2.0**-53) * power, f"power {str(dtype)[6:]}")
    factor = (power / wide(plain)[0].abs().square().mean(axes, keepdim=True)).sqrt()
    within(x, factor * wide(plain)[0], (4 * unit(dtype) + 200 * 2.0**-53) * x.abs(), "power: direction")


def test_power_of_a_large_group():
    """The energy of 100,000 entries in float32 is summed in float64: the mean power is 1 within 2e-7."""
    h, s = draw(1, 25_000, 4, 4, seed=27, dtype=torch.complex64), draw(1, 25_000, 4, seed=28, dtype=torch.complex64)
    x = sf.rzf_precode(h, s, 1.0, power=1.0)
    within(wide(x)[0].abs().square().mean(), torch.tensor(1.0).double(), 2e-7, "power of a large group")


@dtypes
def test_power_is_scale_invariant(dtype):
    """Symbols of any amplitude give the same x; bit for bit for a power of two, also far below and above 1."""
    h, s = draw(2, 6, 4, 4, seed=29, dtype=dtype), draw(2, 6, 4, seed=30, dtype=dtype)
    x = sf.rzf_precode(h, s, 0.3, power=1.0)
    for c in (8.0, 2.0**-30, 2.0**40):
        same_bits(sf.rzf_precode(h, c * s, 0.3, power=1.0), x, f"symbols times {c}")
    within(sf.rzf_precode(h, 0.3 * s, 0.3, power=1.0), x, 2 * precode_bound(h, s[..., None], 0.3, dtype, "K")[..., 0]
           + 8 * unit(dtype) * x.abs(), "scale invariance")  # fmt: skip


@pytest.mark.parametrize("streams", [None, 3])
def test_power_without_leading_dims(streams):
    """One channel: the group is x itself; with streams, all of them."""
    h, s = draw(4, 6), draw(4, 3) if streams else draw(4)
    x = sf.rzf_precode(h, s, 0.3, power=2.0)
    within(x.abs().square().mean(), torch.tensor(2.0).double(), 1e-14, "power of one channel")


STATIC = [((3, 8), (3, 8)), ((2, 5), (2, 5)), ((40,), (40,)), ((2, 16), (1, 16)), ((4, 6), (1, 6)), ((20, 2), (20, 1))]


@dtypes
@pytest.mark.parametrize("power", [None, 1.0])
@pytest.mark.parametrize("lead, own", STATIC)
def test_static_channel(lead, own, power, dtype):
    """A channel constant in time, by size 1 or by stride 0, equals the materialised one; so does T as columns."""
    k, m, t = 4, 4 if own[-1] == 1 else 5, 14
    h, s = draw(*own, 1, k, m, seed=31, dtype=dtype), draw(*lead, t, k, seed=32, dtype=dtype)
    alpha = torch.rand(lead[0], generator=torch.Generator().manual_seed(0)).to(dtype.to_real()) + 0.1
    full = h.expand(*lead, t, k, m).contiguous()
    want = sf.rzf_precode(full, s, alpha, power=power)
    per = columns(alpha, torch.Size((*lead, t))).to(torch.float64)
    bound = precode_bound(full, s[..., None], per[..., 0, 0], dtype, "K")[..., 0]
    if power:
        plain = wide(sf.rzf_precode(full, s, alpha))[0]
        factor = want.abs().norm() / plain.norm()
        bound = factor * bound * (1 + 2 * math.sqrt(plain.numel())) + 8 * unit(dtype) * want.abs()
    for channel in (h, h.expand(*lead, t, k, m)):
        within(sf.rzf_precode(channel, s, alpha, power=power), want, bound, "static channel")
    if power is None:
        rows = sf.rzf_precode(h.squeeze(-3), s.mT, alpha).mT
        within(rows, want, bound, "time as columns")


@dtypes
@pytest.mark.parametrize("m", [4, 6])
def test_streams_equal_single_solves(m, dtype):
    """T right-hand sides are T single solves, bit for bit: nothing mixes the columns, and 4x4 vectors, which have a
    kernel of their own, come out as columns do."""
    h, s = draw(21, 4, m, seed=33, dtype=dtype), draw(21, 4, 14, seed=34, dtype=dtype)
    for alpha in (0.0, 1e-4, 0.5):
        for form in ("K", "M") if alpha else ("K",):
            whole = sf.rzf_precode(h, s, alpha, form=form)
            for t in range(14):
                same_bits(sf.rzf_precode(h, s[..., t], alpha, form=form), whole[..., t].contiguous(), f"stream {t}")


@pytest.mark.parametrize("cond", [1e1, 1e3])
def test_conditioned_channels_are_what_they_claim(cond):
    """The test channels have the condition number that their bounds are stated for."""
    values = torch.linalg.svdvals(conditioned(4, 4, 4, cond))
    within(values[:, 0] / values[:, -1], torch.full((4,), cond).double(), 1e-9 * cond, "condition number")
