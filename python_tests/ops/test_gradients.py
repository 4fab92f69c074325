"""Derivatives of every op in complex128: gradcheck, gradgradcheck, forward mode against finite differences, torch.func."""

import forward_modes
import pytest
import torch
from sf_testing import draw, within
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError
from torch.utils.flop_counter import FlopCounterMode
from waterfill_calls import gradient_cases

import semcom_fast as sf

LEVELS = {"sigma": 0.5, "sigma_above": 0.7, "zeta": 0.3, "score_var": 0.9}
CHECK = {"atol": 1e-7, "rtol": 1e-6}


def _real(*shape, seed=0):
    return draw(*shape, seed=seed, dtype=torch.float64)


def _positive(*shape, seed=0):
    return _real(*shape, seed=seed).abs() + 0.5


Y, H, X, DX = (
    draw(2, 2, 3, 3, seed=1),
    draw(2, 2, 2, 3, 2, seed=2),
    draw(2, 2, 2, 2, 3, seed=3),
    draw(2, 2, 2, 2, 3, seed=4),
)
ONE_H, ONE_X, ONE_Y = H[:1], X[:1], Y[:1]
STATE = [draw(2, 2, 3, seed=s) for s in range(6)]
REALS = [_real(2, 2, 3, seed=s) for s in range(6)]
MANY = [STATE[0], STATE[1], *(draw(2, 2, 2, 3, seed=s) for s in range(2, 6))]


def _update(*ops, noise=True, **levels):
    keys = {k: LEVELS[k] for k in LEVELS if k not in levels}
    draws = {"noise": ops[5]} if noise else {"seed": 3, "step": 4}
    return sf.pvd_update(*ops[:5], **keys, **levels, **draws)


def _update_levels(sigma, above, zeta, score_var, next_var, *ops):
    return sf.pvd_update(
        *ops[:5], sigma=sigma, sigma_above=above, zeta=zeta, score_var=score_var, next_var=next_var, noise=ops[5]
    )


LEVEL_TENSORS = {
    "0-d": [torch.tensor(v, dtype=torch.float64) for v in (0.5, 0.8, 0.3, 0.9, 0.2)],
    "[B]": [_positive(2, seed=i) + (2.0 if i == 1 else 0) for i in range(5)],
    "[B,U]": [_positive(2, 2, seed=i) + (2.0 if i == 1 else 0) for i in range(5)],
}

CASES = {
    "blockdiag_apply": (sf.blockdiag_apply, [H, X]),
    "blockdiag_apply shared h": (sf.blockdiag_apply, [ONE_H, X]),
    "blockdiag_apply shared x": (sf.blockdiag_apply, [H, X[0]]),
    "blockdiag_apply two leads": (sf.blockdiag_apply, [H[:, None], X[None, :1]]),
    "blockdiag_adjoint": (sf.blockdiag_adjoint, [H, Y]),
    "blockdiag_adjoint shared h": (sf.blockdiag_adjoint, [ONE_H, Y]),
    "blockdiag_adjoint shared y": (sf.blockdiag_adjoint, [H, Y[0]]),
    "likelihood_score": (lambda y, h, x: sf.likelihood_score(y, h, x)[:3], [Y, H, X]),
    "likelihood_score number": (lambda y, h, x: sf.likelihood_score(y, h, x, 0.7)[:3], [Y, H, X]),
    "likelihood_score probe": (lambda y, h, x, p: tuple(sf.likelihood_score(y, h, x, probe=p)), [Y, H, X, DX]),
    "likelihood_score level [B]": (lambda y, h, x, n: sf.likelihood_score(y, h, x, n)[:3], [Y, H, X, _positive(2)]),
    "likelihood_score level 0-d": (lambda y, h, x, n: sf.likelihood_score(y, h, x, n)[:3], [Y, H, X, _positive()]),
    "likelihood_score all": (
        lambda y, h, x, n, p: tuple(sf.likelihood_score(y, h, x, n, probe=p)),
        [Y, H, X, _positive(2), DX],
    ),
    "likelihood_score shared": (lambda y, h, x, p: tuple(sf.likelihood_score(y, h, x, probe=p)), [Y, ONE_H, ONE_X, DX]),
    "likelihood_score shared y": (
        lambda y, h, x, p: tuple(sf.likelihood_score(y, h, x, probe=p)),
        [ONE_Y, H, X, DX[0]],
    ),
    "power_normalise": (sf.power_normalise, [X]),
    "power_normalise real": (lambda z: sf.power_normalise(z, power=0.4, dims=2), [REALS[0]]),
    "pvd_update": (_update, STATE),
    "pvd_update real": (_update, REALS),
    "pvd_update seed": (lambda *ops: _update(*ops, None, noise=False), STATE[:5]),
    "pvd_update no draw": (lambda *ops: sf.pvd_update(*ops, **LEVELS, next_var=0), STATE[:5]),
    "pvd_update L": (_update, MANY),
    "pvd_update level tensors": (lambda *ops: _update(*ops, zeta=torch.tensor([0.2, 0.4]).double()), STATE),
    **{f"pvd_update levels {k}": (_update_levels, [*v, *STATE]) for k, v in LEVEL_TENSORS.items()},
    "pvd_update levels L": (_update_levels, [*LEVEL_TENSORS["[B]"], *MANY]),
    "pvd_update score_var [L,B]": (lambda v, *ops: _update(*ops, score_var=v), [_positive(2, 2), *MANY]),
    "pvd_calibrate": (
        lambda n, v, p, q: sf.pvd_calibrate(n, v, p, q, x_energy=3.0, nr=3, count=12),
        [_positive(2), _positive(2, 2), _positive(2, 2), _positive(2)],
    ),
    **gradient_cases(),
}
cases = pytest.mark.parametrize("name", CASES)


def _leaves(tensors):
    return [t.detach().clone().requires_grad_(True) for t in tensors]


@cases
def test_gradcheck(name):
    """First derivatives against finite differences, all operands at once."""
    fn, args = CASES[name]
    assert gradcheck(fn, _leaves(args), **CHECK)


@cases
def test_gradgradcheck(name):
    """Second derivatives: right, or a clear error; never silently missing."""
    fn, args = CASES[name]
    try:
        assert gradgradcheck(fn, _leaves(args), **CHECK)
    except (RuntimeError, NotImplementedError) as err:
        if isinstance(err, GradcheckError):
            raise
        assert any(k in str(err) for k in ("once_differentiable", "twice", "second", "higher")), err


@cases
def test_first_gradients_know_their_graph(name):
    """gradgradcheck skips gradients without a graph, so check that none of a quadratic loss's gradients lacks one."""
    fn, args = CASES[name]
    leaves = _leaves(args)
    grads = torch.autograd.grad(_loss(fn)(*leaves), leaves, create_graph=True)
    assert all(g.requires_grad for g in grads), [g.requires_grad for g in grads]


@cases
def test_one_operand_at_a_time(name):
    """Gradients when a single operand needs one: the others' branches are skipped without harm."""
    fn, args = CASES[name]
    full = _leaves(args)
    outs = fn(*full)
    outs = outs if isinstance(outs, tuple) else (outs,)
    cotangents = [draw(*o.shape, seed=30 + i, dtype=o.dtype) for i, o in enumerate(outs)]
    want = torch.autograd.grad(outs, full, cotangents)
    for i in range(len(args)):
        mixed = [t.detach().clone().requires_grad_(i == j) for j, t in enumerate(args)]
        outs = fn(*mixed)
        outs = outs if isinstance(outs, tuple) else (outs,)
        pairs = [(o, g) for o, g in zip(outs, cotangents, strict=True) if o.requires_grad]
        (got,) = torch.autograd.grad([o for o, _ in pairs], mixed[i], [g for _, g in pairs])
        within(got, want[i], 1e-12 * (1 + want[i].abs().max()), "one operand at a time")


@cases
def test_one_output_at_a_time(name):
    """Backward through one output alone: the other outputs' cotangents are missing, not garbage."""
    fn, args = CASES[name]
    leaves = _leaves(args)
    outs = fn(*leaves)
    outs = outs if isinstance(outs, tuple) else (outs,)
    cotangents = [draw(*o.shape, seed=30 + i, dtype=o.dtype) for i, o in enumerate(outs)]
    want = torch.autograd.grad(outs, leaves, cotangents, retain_graph=True)
    total = [torch.zeros_like(t) for t in leaves]
    for o, g in zip(outs, cotangents, strict=True):
        for i, part in enumerate(torch.autograd.grad(o, leaves, g, retain_graph=True, allow_unused=True)):
            if part is not None:
                total[i] = total[i] + part
    for a, b in zip(total, want, strict=True):
        within(a, b, 1e-12 * (1 + b.abs().max()), "one output at a time")


@cases
def test_forward_modes(name):
    """torch.autograd.forward_ad and torch.func.jvp give the slope of finite differences."""
    forward_modes.check(*CASES[name])


def _loss(fn):
    def total(*args):
        outs = fn(*args)
        outs = outs if isinstance(outs, tuple) else (outs,)
        return sum((o.abs() ** 2).sum() if o.is_complex() else (o * o).sum() for o in outs if o is not None)

    return total


@cases
def test_func_grad(name):
    """torch.func.grad equals autograd."""
    fn, args = CASES[name]
    got = torch.func.grad(_loss(fn), argnums=tuple(range(len(args))))(*args)
    leaves = _leaves(args)
    want = torch.autograd.grad(_loss(fn)(*leaves), leaves)
    for a, b in zip(got, want, strict=True):
        within(a, b, 1e-12 * (1 + b.abs().max()), "func.grad")


@pytest.mark.parametrize(
    "name",
    [
        "blockdiag_apply",
        "likelihood_score all",
        "power_normalise real",
        "pvd_update real",
        "pvd_calibrate",
        "waterfill_equalise",
        "waterfill_step guided",
        "waterfill_step_authors",
    ],
)
def test_func_jacrev(name):
    """torch.func.jacrev (vmap over the backward pass) equals the Jacobian of autograd for a real view of the operand."""
    fn, args = CASES[name]
    at = next((i for i, a in enumerate(args) if not a.is_complex()), 0)

    def outer(v):
        first = args[at]
        moved = torch.view_as_complex(v) if first.is_complex() else v
        outs = fn(*[moved if i == at else a for i, a in enumerate(args)])
        outs = outs if isinstance(outs, tuple) else (outs,)
        return torch.cat([(torch.view_as_real(o) if o.is_complex() else o).reshape(-1) for o in outs])

    v = torch.view_as_real(args[at]).clone() if args[at].is_complex() else args[at].clone()
    want = torch.autograd.functional.jacobian(outer, v)
    within(torch.func.jacrev(outer)(v), want, 1e-11 * (1 + want.abs().max()), "func.jacrev")


@cases
def test_func_vmap(name):
    """torch.func.vmap over a new leading axis of every operand equals a loop, forward and under grad."""
    fn, args = CASES[name]
    stacked = [torch.stack([a, 1.3 * a]) for a in args]
    got = torch.func.vmap(fn)(*stacked)
    want = [fn(*[s[i] for s in stacked]) for i in range(2)]
    got = got if isinstance(got, tuple) else (got,)
    want = [w if isinstance(w, tuple) else (w,) for w in want]
    for k, g in enumerate(got):
        w = torch.stack([w[k] for w in want])
        within(g, w, 1e-12 * (1 + w.abs().max()), "func.vmap")
    got = torch.func.vmap(torch.func.grad(_loss(fn)))(*stacked)
    want = torch.stack([torch.func.grad(_loss(fn))(*[s[i] for s in stacked]) for i in range(2)])
    within(got, want, 1e-11 * (1 + want.abs().max()), "vmap of grad")


@pytest.mark.parametrize(
    "name",
    [
        "blockdiag_apply",
        "likelihood_score all",
        "power_normalise",
        "pvd_update",
        "pvd_calibrate",
        "waterfill_equalise",
        "waterfill_inject seed",
        "waterfill_step",
        "waterfill_step_authors",
    ],
)
def test_func_vmap_partial(name):
    """vmap over one operand, the last axis and an inner axis, the others shared."""
    fn, args = CASES[name]
    for axis in (0, -1):
        stacked = torch.stack([args[0], 0.7 * args[0]], axis)
        dims = (axis if axis == 0 else args[0].ndim, *[None] * (len(args) - 1))
        got = torch.func.vmap(fn, in_dims=dims)(stacked, *args[1:])
        got = got if isinstance(got, tuple) else (got,)
        want = [fn(a, *args[1:]) for a in (args[0], 0.7 * args[0])]
        want = [w if isinstance(w, tuple) else (w,) for w in want]
        for k, g in enumerate(got):
            w = torch.stack([v[k] for v in want])
            within(g, w, 1e-12 * (1 + w.abs().max()), "func.vmap partial")


@pytest.mark.parametrize("backend", ["reference"])
@cases
def test_reference_backend_has_the_same_gradients(name, backend):
    """Forced to the reference backend, an op keeps its gradients."""
    fn, args = CASES[name]
    grads = []
    for choice in ("cpu", backend):
        leaves = _leaves(args)
        with sf.use_backend(choice):
            grads.append(torch.autograd.grad(_loss(fn)(*leaves), leaves))
    for a, b in zip(*grads, strict=True):
        within(b, a, 1e-12 * (1 + a.abs().max()), "reference gradients")


def test_gradients_do_not_alias_saved_tensors():
    """A second backward through a kept graph gives the same numbers; inputs are not modified."""
    leaves = _leaves([Y, H, X])
    loss = _loss(lambda *a: sf.likelihood_score(*a)[:3])(*leaves)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a.detach(), b) for a, b in zip(leaves, (Y, H, X), strict=True))


def test_in_place_change_is_caught():
    """Changing an operand in place before backward raises torch's version error instead of giving wrong gradients."""
    h, x = _leaves([H, X])
    moved = h * 1
    y = sf.blockdiag_apply(moved, x)
    with torch.no_grad():
        moved.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.abs().sum().backward()


@pytest.mark.parametrize("name", ["power_normalise", "pvd_calibrate", "waterfill_step", "likelihood_score"])
def test_forward_over_forward_is_refused(name):
    """Torch loses the outer tangents inside a Function's jvp: an error, not wrong numbers."""
    fn, args = CASES[name]
    along = tuple(torch.ones_like(a) for a in args)

    def slope(*given):
        return torch.func.jvp(_loss(fn), given, along)[1]

    with pytest.raises(NotImplementedError, match="no forward mode over forward mode"):
        torch.func.jvp(slope, tuple(args), along)
    grads = torch.func.grad(slope, argnums=0)(*args)  # reverse over forward
    want = torch.func.jvp(torch.func.grad(_loss(fn), argnums=0), tuple(args), along)[1]  # forward over reverse
    within(grads, want, 1e-9 * (1 + want.abs().max()), "both orders")


def test_forward_mode_where_it_would_be_lost():
    z = draw(3, 2, 2)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(z, z)
        with FlopCounterMode(display=False), pytest.raises(NotImplementedError, match="no forward mode under"):
            sf.power_normalise(dual)


def test_vmap_over_nothing():
    y, h = draw(0, 2, 3), draw(0, 2, 3, 2)
    got = torch.func.vmap(lambda y, h: tuple(sf.lmmse_equalise(y, h, 0.1)))(y, h)
    assert [t.shape for t in got] == [(0, 2, 2), (0, 2, 2)]
