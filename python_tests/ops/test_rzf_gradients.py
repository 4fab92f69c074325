"""Derivatives of rzf_precode and rzf_matrix: gradcheck of every size and form, adjointness, accumulation."""

import forward_modes
import pytest
import torch
from rzf_cases import inner_unit, vjp_bounds
from sf_testing import DTYPES, draw, same_bits, wide, within
from torch.autograd import gradcheck, gradgradcheck

import semcom_fast as sf

CHECK = {"atol": 1e-7, "rtol": 1e-6}
K_SIZES = [(1, 3), (2, 2), (3, 5), (4, 2), (4, 4), (6, 4), (8, 8)]
M_SIZES = [(2, 2), (3, 5), (4, 2), (4, 4), (6, 4)]
SIZES = [(k, m, "K") for k, m in K_SIZES] + [(k, m, "M") for k, m in M_SIZES]
sizes = pytest.mark.parametrize("k, m, form", SIZES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _levels(*shape, seed=0):
    return draw(*shape, seed=seed, dtype=torch.float64).abs() + 0.3


def _leaves(*tensors):
    return [t.detach().clone().requires_grad_(True) for t in tensors]


def _operands(k, m, t=None, lead=(2,)):
    return draw(*lead, k, m, seed=1), draw(*lead, k, *([t] if t else []), seed=2)


@sizes
@pytest.mark.parametrize("t", [None, 3])
def test_per_matrix_alpha(k, m, form, t):
    """h, s and one alpha per matrix."""
    h, s = _operands(k, m, t)
    assert gradcheck(lambda *a: sf.rzf_precode(*a, form=form), _leaves(h, s, _levels(2)), **CHECK)


@pytest.mark.parametrize("k, m, form", [(3, 5, "K"), (4, 4, "K"), (4, 2, "M"), (4, 4, "M"), (4, 2, None)])
@pytest.mark.parametrize("t", [5, 14])
def test_streams(k, m, form, t):
    """More right-hand sides of one factor."""
    h, s = _operands(k, m, t, lead=(1,))
    assert gradcheck(lambda *a: sf.rzf_precode(*a, form=form), _leaves(h, s, _levels(1)), **CHECK)


ALPHAS = {
    "number": None,
    "0-d": (),
    "[1]": (1,),
    "[B]": (2,),
    "[1,F]": (1, 3),
    "[B,1]": (2, 1),
    "[B,F]": (2, 3),
}


@pytest.mark.parametrize("form", ["K", "M"])
@pytest.mark.parametrize("power", [None, 0.7])
@pytest.mark.parametrize("shape", ALPHAS)
def test_shapes_of_alpha(shape, power, form):
    """Levels shared by everything, by a batch item, by a subcarrier, or by nothing; with and without power."""
    h, s = _operands(3, 2, lead=(2, 3))
    if ALPHAS[shape] is None:
        assert gradcheck(lambda *a: sf.rzf_precode(*a, 0.6, power=power, form=form), _leaves(h, s), **CHECK)
    else:
        args = _leaves(h, s, _levels(*ALPHAS[shape]))
        assert gradcheck(lambda *a: sf.rzf_precode(*a, power=power, form=form), args, **CHECK)


@pytest.mark.parametrize("power", [None, 1.0])
def test_alpha_through_the_noise_variance(power):
    """One learnable factor times a noise variance per batch item."""
    h, s = _operands(4, 4, lead=(3, 2))
    noise = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    assert gradcheck(lambda h, s, a: sf.rzf_precode(h, s, a * noise, power=power), _leaves(h, s, _levels()), **CHECK)


@sizes
@pytest.mark.parametrize("dims", [0, 1, 2])
def test_power(k, m, form, dims):
    """The total-power scale over each choice of leading dims."""
    h, s = _operands(k, m, lead=(1, 2) if k * m > 24 else (2, 2))
    fn = lambda *a: sf.rzf_precode(*a, power=0.5, power_dims=dims, form=form)  # noqa: E731
    assert gradcheck(fn, _leaves(h, s, _levels(len(h))), **CHECK)


@pytest.mark.parametrize("power", [None, 1.0])
@pytest.mark.parametrize("k, m", [(3, 4), (4, 2)])
def test_power_with_streams(k, m, power):
    """Streams belong to the group that is scaled."""
    h, s = _operands(k, m, 3)
    assert gradcheck(lambda *a: sf.rzf_precode(*a, power=power), _leaves(h, s, _levels(2)), **CHECK)


@pytest.mark.parametrize("power", [None, 1.0])
@pytest.mark.parametrize("view", ["size 1", "stride 0"])
@pytest.mark.parametrize("lead", [(2, 2), (16,)])
def test_static_channel(lead, view, power):
    """A channel constant in time, whether or not it is folded into right-hand sides of one factor."""
    h, s = draw(*lead, 1, 2, 3, seed=1), draw(*lead, 3, 2, seed=2)

    def fn(h, s, a):
        return sf.rzf_precode(h.expand(*lead, 3, 2, 3) if view == "stride 0" else h, s, a, power=power)

    assert gradcheck(fn, _leaves(h, s, _levels(lead[0])), fast_mode=len(lead) == 1, **CHECK)
    fixed = h.expand(*lead, 3, 2, 3) if view == "stride 0" else h  # only symbols and alpha need gradients
    assert gradcheck(lambda s, a: sf.rzf_precode(fixed, s, a, power=power), _leaves(s, _levels(lead[0])), **CHECK)


@pytest.mark.parametrize(
    "shapes", [((2, 2), (3, 2, 2)), ((1, 2, 2), (3, 2, 2)), ((3, 2, 2), (1, 2, 3)), ((3, 1, 2, 2), (1, 2, 2))]
)
def test_broadcasting(shapes):
    """Gradients of operands that are shared by the batch are summed over it."""
    h, s = draw(*shapes[0], seed=1), draw(*shapes[1], seed=2)
    if h.ndim == 2:
        h = h.unsqueeze(0)
    assert gradcheck(lambda *a: sf.rzf_precode(*a), _leaves(h, s, _levels(1)), **CHECK)


@sizes
def test_matrix(k, m, form):
    """rzf_matrix in h and alpha."""
    h, _ = _operands(k, m, lead=(2,) if k * m < 30 else (1,))
    assert gradcheck(lambda *a: sf.rzf_matrix(*a, form=form), _leaves(h, _levels(len(h))), **CHECK)


@pytest.mark.parametrize("k, m", [(2, 2), (3, 5)])
@pytest.mark.parametrize("power", [None, 1.0])
def test_zero_forcing(k, m, power):
    """alpha = 0: gradients in h and s through the pivoted factor."""
    h, s = _operands(k, m, lead=(2,))
    assert gradcheck(lambda *a: sf.rzf_precode(*a, 0.0, power=power), _leaves(h, s), **CHECK)


TWICE = {
    "vector": (lambda *a: sf.rzf_precode(*a), [draw(2, 2, 2, seed=1), draw(2, 2, seed=2), _levels(2)]),
    "streams": (lambda *a: sf.rzf_precode(*a), [draw(1, 2, 3, seed=1), draw(1, 2, 2, seed=2), _levels()]),
    "M-form": (lambda *a: sf.rzf_precode(*a, form="M"), [draw(1, 2, 3, seed=1), draw(1, 2, seed=2), _levels(1)]),
    "power": (lambda *a: sf.rzf_precode(*a, power=0.7), [draw(1, 2, 2, 2, seed=1), draw(1, 2, 2, seed=2), _levels(1)]),
    "shared h": (lambda *a: sf.rzf_precode(*a), [draw(1, 2, 2, seed=1), draw(3, 2, seed=2), _levels(3)]),
    "matrix": (sf.rzf_matrix, [draw(2, 2, 2, seed=1), _levels(2)]),
}


@pytest.mark.parametrize("name", TWICE)
def test_second_derivatives(name):
    """gradgradcheck, and no first gradient is without a graph."""
    fn, args = TWICE[name]
    assert gradgradcheck(fn, _leaves(*args), **CHECK)
    leaves = _leaves(*args)
    grads = torch.autograd.grad(fn(*leaves).abs().square().sum(), leaves, create_graph=True)
    assert all(g.requires_grad for g in grads)


@pytest.mark.parametrize("name", TWICE)
def test_transforms(name):
    """Forward mode is the slope, vmap a loop over rows, torch.func.grad autograd."""
    fn, args = TWICE[name]
    forward_modes.check(fn, args)
    stacked = [torch.stack([a, 1.5 * a]) for a in args]
    for i, row in enumerate(torch.func.vmap(fn)(*stacked)):
        same_bits(row, fn(*(t[i] for t in stacked)), "vmap")

    def loss(*a):
        return fn(*a).abs().square().sum()

    leaves = _leaves(*args)
    want = torch.autograd.grad(loss(*leaves), leaves)
    for a, b in zip(torch.func.grad(loss, tuple(range(len(args))))(*args), want, strict=True):
        within(a, b, 1e-12 * (1 + b.abs().max()), "rzf func.grad")


@sizes
@dtypes
def test_adjoint_in_the_symbols(k, m, form, dtype):
    """<g, F s> = <F^H g, s>: the gradient of s is the adjoint precoder."""
    h, s = draw(40, k, m, seed=1, dtype=dtype), draw(40, k, 3, seed=2, dtype=dtype)
    g, alpha = draw(40, m, 3, seed=3, dtype=dtype), torch.linspace(1e-4, 3, 40).to(dtype.to_real())
    leaf = s.clone().requires_grad_(True)
    x = sf.rzf_precode(h, leaf, alpha, form=form)
    (ds,) = torch.autograd.grad(x, leaf, g)
    left, right = ((wide(a)[0].conj() * wide(b)[0]).sum((-2, -1)) for a, b in ((g, x.detach()), (ds, s)))
    bounds = vjp_bounds(h, s, g, alpha, dtype, form)
    back = (bounds["ds"] * wide(s)[0].norm(dim=-2, keepdim=True)).sum((-2, -1))
    # forward and backward hold the same factor: their errors are of one size
    within(left, right, 2 * back, f"adjoint in s {str(dtype)[6:]}")


ACCURACY = [(1, 1), (2, 2), (3, 5), (4, 2), (4, 4), (6, 4), (8, 8), (5, 16), (16, 16), (17, 20), (20, 5)]


@dtypes
@pytest.mark.parametrize("form", ["K", "M"])
@pytest.mark.parametrize("k, m", ACCURACY)
def test_gradients_against_autograd(k, m, form, dtype):
    """Kernel gradients of h, s, alpha against autograd of the definition in double precision, every arithmetic."""
    batch, t = 19, 3
    h, s, g = (
        draw(batch, k, m, seed=1, dtype=dtype),
        draw(batch, k, t, seed=2, dtype=dtype),
        draw(batch, m, t, seed=3, dtype=dtype),
    )
    # spans the switch to float64 inside for complex64
    alpha = torch.logspace(-5, 1, batch, dtype=torch.float64).to(dtype.to_real())
    leaves = _leaves(h, s, alpha)
    got = torch.autograd.grad(sf.rzf_precode(*leaves, form=form), leaves, g)
    exact = [t.detach().requires_grad_(True) for t in wide(*leaves)]
    hh, ss, aa = exact
    n = k if form == "K" else m
    v = hh if form == "K" else hh.mH
    a = v @ v.mH + aa[:, None, None] * torch.eye(n, dtype=torch.complex128)
    x = hh.mH @ torch.linalg.solve(a, ss) if form == "K" else torch.linalg.solve(a, hh.mH @ ss)
    want = torch.autograd.grad(x, exact, wide(g)[0])
    bounds = vjp_bounds(h, s, g, alpha, dtype, form)
    # the double-precision autograd it is compared with runs the same steps: its share is in `bounds`
    for name, a, b in zip(("dh", "ds", "da"), got, want, strict=True):
        within(a, b, bounds[name], f"rzf {name} {form}-form {str(dtype)[6:]}")
    assert (
        dtype is torch.complex128
        or inner_unit(*wide(h), wide(alpha)[0][:, None, None], dtype, form).unique().numel() == 2
    )


@dtypes
@pytest.mark.parametrize("power", [None, 1.0])
def test_one_operand_at_a_time(power, dtype):
    """Gradients when a single operand needs one are the same bits."""
    h, s = draw(2, 20, 4, 4, seed=1, dtype=dtype), draw(2, 20, 4, seed=2, dtype=dtype)
    args, g = (h, s, _levels(2).to(dtype.to_real())), draw(2, 20, 4, seed=3, dtype=dtype)
    leaves = _leaves(*args)
    want = torch.autograd.grad(sf.rzf_precode(*leaves, power=power), leaves, g)
    for i in range(3):
        mixed = [t.clone().requires_grad_(i == j) for j, t in enumerate(args)]
        (got,) = torch.autograd.grad(sf.rzf_precode(*mixed, power=power), mixed[i], g)
        assert torch.equal(got, want[i])


@pytest.mark.parametrize("dims", [0, 1, 2])
def test_power_scale_has_no_radial_gradient(dims):
    """x does not depend on the length of s: Re<s, ds> = 0 per group; and Re<h, dh> + 2 alpha da = 0 for f(c h, s, c^2 a)."""
    h, s = _operands(4, 5, lead=(3, 6))
    leaves = _leaves(h, s, _levels(3, 6))
    x = sf.rzf_precode(*leaves, power=1.0, power_dims=dims)
    dh, ds, da = torch.autograd.grad(x, leaves, draw(3, 6, 5, seed=3))
    axes = tuple(range(2 - dims, 3))
    radial = (s.conj() * ds).real.sum(axes)
    within(radial, torch.zeros_like(radial), 1e-13 * (s.abs() * ds.abs()).sum(axes), "Re<s, ds> = 0")
    turn = (h.conj() * dh).real.sum((-2, -1)) + 2 * leaves[2].detach() * da
    turn = turn.sum(tuple(range(2 - dims, 2))) if dims else turn
    size = (h.abs() * dh.abs()).sum()
    within(turn, torch.zeros_like(turn), 1e-13 * size, "Euler's identity with power")


@dtypes
@pytest.mark.parametrize("form", ["K", "M"])
def test_homogeneity(form, dtype):
    """f(c h, s, c^2 alpha) = f/c, differentiated: Re<h, dh> + 2 alpha da = -Re<x, g>, matrix by matrix."""
    h, s, g = (
        draw(30, 4, 4, seed=1, dtype=dtype),
        draw(30, 4, 2, seed=2, dtype=dtype),
        draw(30, 4, 2, seed=3, dtype=dtype),
    )
    alpha = torch.linspace(0.01, 3, 30).to(dtype.to_real())
    leaves = _leaves(h, s, alpha)
    x = sf.rzf_precode(*leaves, form=form)
    dh, _, da = wide(*torch.autograd.grad(x, leaves, g))
    hw, gw, xw = wide(h, g, x.detach())
    bounds = vjp_bounds(h, s, g, alpha, dtype, form)
    left = (hw.conj() * dh).real.sum((-2, -1)) + 2 * alpha.double() * da
    limit = bounds["dh"][:, 0, 0] * 16**0.5 * hw.norm(dim=(-2, -1)) + 2 * alpha.double() * bounds["da"]
    limit = limit + (bounds["ds"][:, 0] * gw.norm(dim=-2)).sum(-1)
    within(left, -(xw.conj() * gw).real.sum((-2, -1)), 2 * limit, "homogeneity of gradients")


def _same_sign(n, t=1):
    """Cotangents g = x make every term of alpha's gradient -|.|^2: sums cannot cancel, so rounding errors show."""
    h, s = draw(n, 4, 4, seed=1, dtype=torch.complex64), draw(n, 4, 1, seed=2, dtype=torch.complex64)
    return h, s.expand(n, 4, t).contiguous()


@pytest.mark.parametrize("shape", [(1,), ()])
def test_alpha_is_accumulated_over_channels_in_float64(shape):
    """100,000 channels share one alpha: its gradient is the sum of the single ones, rounded once."""
    h, s = _same_sign(100_000)
    single, shared = torch.full((100_000,), 0.5).requires_grad_(True), torch.full(shape, 0.5).requires_grad_(True)
    parts, total = (
        (lambda x, a=a: torch.autograd.grad(x, a, x.detach())[0])(sf.rzf_precode(h, s, a)) for a in (single, shared)
    )
    want = parts.double().sum()
    # every single gradient was rounded to float32 before this sum, the total once
    within(total.double().squeeze(), want, 2 * 2.0**-24 * parts.double().abs().sum(), "alpha over channels")


@pytest.mark.parametrize("t", [14, 1000, 30_000])
def test_alpha_is_accumulated_over_streams_in_float64(t):
    """T equal streams with equal cotangents give T times the gradient of one."""
    h, one = _same_sign(20)
    grads, g = [], sf.rzf_precode(h, one, 0.5)
    for streams in (1, t):
        s, cotangent = (z.expand(20, 4, streams).contiguous() for z in (one, g))
        alpha = torch.full((20,), 0.5).requires_grad_(True)
        grads.append(torch.autograd.grad(sf.rzf_precode(h, s, alpha), alpha, cotangent)[0].double())
    # both were rounded to float32 at the end
    within(grads[1], t * grads[0], 2 * 2.0**-24 * t * grads[0].abs(), "alpha over streams")


def test_alpha_keeps_its_precision():
    """A float64 alpha beside complex64 channels gets a float64 gradient; a float32 one beside complex128 too."""
    for dtype, level in ((torch.complex64, torch.float64), (torch.complex128, torch.float32)):
        h, s = draw(3, 4, 4, seed=1, dtype=dtype), draw(3, 4, seed=2, dtype=dtype)
        alpha = torch.full((3,), 0.5, dtype=level).requires_grad_(True)
        x = sf.rzf_precode(h, s, alpha)
        assert x.dtype is dtype
        (grad,) = torch.autograd.grad(x.abs().square().sum(), alpha)
        assert grad.dtype is level
        exact = torch.full((3,), 0.5, dtype=torch.float64).requires_grad_(True)
        (want,) = torch.autograd.grad(sf.rzf_precode(*wide(h, s), exact).abs().square().sum(), exact)
        within(grad, want, 300 * 2.0**-24 * want.abs().max(), "dtype of alpha")


def test_shared_h_is_summed_accurately():
    """One channel for 50,000 symbol vectors: the sum of its gradients errs by a few units of the summed sizes."""
    h, s = draw(1, 3, 4, seed=1, dtype=torch.complex64), draw(50_000, 3, seed=2, dtype=torch.complex64)
    leaf, exact = h.clone().requires_grad_(True), wide(h)[0].requires_grad_(True)
    x = sf.rzf_precode(leaf, s, 0.5)
    (got,) = torch.autograd.grad(x, leaf, x.detach())
    y = sf.rzf_precode(exact, wide(s)[0], 0.5)
    (want,) = torch.autograd.grad(y, exact, y.detach())
    size = vjp_bounds(h, s.unsqueeze(-1), x.detach().unsqueeze(-1), 0.5, torch.complex64, "K")["dh"].sum()
    within(got, want, size, "shared h")


@pytest.mark.parametrize("alpha_shape", [(0,), (1,), ()])
@pytest.mark.parametrize("power", [None, 1.0])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_empty_batch(backend, power, alpha_shape):
    """Gradients of an empty batch are empty, or zero for what is shared."""
    leaves = _leaves(draw(0, 4, 3), draw(0, 4), torch.ones(alpha_shape))
    with sf.use_backend(backend):
        x = sf.rzf_precode(leaves[0], leaves[1], leaves[2], power=power)
        grads = torch.autograd.grad(x.abs().sum(), leaves)
    assert [g.shape for g in grads] == [t.shape for t in leaves] and not any(g.any() for g in grads)


def test_views_and_kept_graphs():
    """Conjugated cotangents, a second backward through a kept graph, and the version check of an in-place change."""
    h, s, alpha = _leaves(draw(3, 4, 4, seed=1), draw(3, 4, seed=2), _levels(3))
    x = sf.rzf_precode(h.mH, s.conj(), alpha)
    g = draw(3, 4, seed=3)
    first = torch.autograd.grad(x, (h, s, alpha), g.conj(), retain_graph=True)
    second = torch.autograd.grad(x, (h, s, alpha), g.conj().resolve_conj())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    moved = h * 1
    x = sf.rzf_precode(moved, s, alpha)
    with torch.no_grad():
        moved.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.abs().sum().backward()
