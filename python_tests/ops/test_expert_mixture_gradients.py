"""Derivatives of the expert-mixture ops in complex128: right in what they are linear or smooth in, an error elsewhere."""

import forward_modes
import pytest
import torch
from sf_testing import within
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError
from vb_calls import LEVELS, gradient_cases
from vb_cases import elbo_state, state

import semcom_fast as sf

CASES = gradient_cases()
CHECK = {"atol": 1e-7, "rtol": 1e-6}
cases = pytest.mark.parametrize("name", CASES)


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with sf.use_backend(request.param):
        yield request.param


def _leaves(tensors):
    return [t.detach().clone().requires_grad_(True) for t in tensors]


def _loss(fn, *args):
    outs = fn(*args)
    return sum((o.abs() ** 2).sum() for o in (outs if isinstance(outs, tuple) else (outs,)))


@cases
def test_gradcheck(name, backend):
    """First derivatives against finite differences, all differentiable operands at once."""
    fn, args = CASES[name]
    assert gradcheck(fn, _leaves(args), **CHECK)


@cases
def test_gradgradcheck(name):
    """Second derivatives: right, or a clear error; never silently missing."""
    fn, args = CASES[name]
    leaves = _leaves(args)
    grads = torch.autograd.grad(_loss(fn, *leaves), leaves, create_graph=True)
    assert all(g.requires_grad for g in grads)
    try:
        assert gradgradcheck(fn, _leaves(args), **CHECK)
    except (RuntimeError, NotImplementedError) as err:
        if isinstance(err, GradcheckError):
            raise
        assert any(k in str(err) for k in ("once_differentiable", "twice", "second", "higher")), err


@cases
def test_one_operand_at_a_time(name):
    """Gradients when a single operand needs one equal those of all together."""
    fn, args = CASES[name]
    full = _leaves(args)
    want = torch.autograd.grad(_loss(fn, *full), full)
    for i, value in enumerate(want):
        mixed = [t.detach().clone().requires_grad_(i == j) for j, t in enumerate(args)]
        (got,) = torch.autograd.grad(_loss(fn, *mixed), [mixed[i]])
        within(got, value, 1e-12 * (1 + value.abs().max()), "one operand")


@cases
def test_transforms(name):
    """torch.func.grad equals autograd; vmap equals a loop, and forward mode the slope."""
    fn, args = CASES[name]
    leaves = _leaves(args)
    want = torch.autograd.grad(_loss(fn, *leaves), leaves)
    got = torch.func.grad(lambda *a: _loss(fn, *a), argnums=tuple(range(len(args))))(*args)
    for a, b in zip(got, want, strict=True):
        within(a, b, 1e-12 * (1 + b.abs().max()), "func.grad")
    stacked = [torch.stack([a, 1.3 * a]) for a in args]
    mapped = torch.func.vmap(lambda *a: _loss(fn, *a))(*stacked)
    loop = torch.stack([_loss(fn, *[t[i] for t in stacked]) for i in range(2)])
    within(mapped, loop, 1e-11 * loop.abs().max(), "vmap")
    forward_modes.check(lambda *a: _loss(fn, *a), args)


@pytest.mark.parametrize("which", ["u", "s", *LEVELS])
def test_step_has_no_derivative_elsewhere(which):
    """Pilots and levels of pilot_posterior_step: a clear error, not a silent zero."""
    c = state()
    svd, levels = c.svd._asdict(), {k: torch.tensor(v, dtype=torch.float64) for k, v in LEVELS.items()}
    place = svd if which in svd else levels
    place[which] = place[which].clone().requires_grad_()
    with pytest.raises((NotImplementedError, RuntimeError), match=r"pilot_posterior_step.*derivative|derivative"):
        out = sf.pilot_posterior_step(c.h, c.eps, c.w, c.yv, sf.PilotSVD(**svd), **levels)
        torch.autograd.grad(out.abs().sum(), place[which])


@pytest.mark.parametrize("which", ["u", "s", "noise_var", "alpha_bar", "w"])
def test_evidence_has_no_derivative_elsewhere(which):
    """Pilots, schedule and noise level of elbo_reduce, and the schedule of renoise: a clear error."""
    c = elbo_state()
    svd = c.svd._asdict()
    rest = {"noise_var": torch.tensor(0.3, dtype=torch.float64), "alpha_bar": c.table.clone(), "w": c.weights.clone()}
    place = svd if which in svd else rest
    place[which] = place[which].clone().requires_grad_()
    error = pytest.raises((NotImplementedError, RuntimeError), match=r"derivative|differentiated")
    with error:
        out = sf.elbo_reduce(c.eps, c.h, c.steps, yv=c.yv, svd=sf.PilotSVD(**svd), tau=30, noise=c.noise, **rest)
        torch.autograd.grad(out[0].sum() + out[1].sum(), place[which])
    if which == "alpha_bar":
        with pytest.raises((NotImplementedError, RuntimeError), match=r"derivative|differentiated"):
            torch.autograd.grad(sf.renoise(c.h, c.steps, rest[which], noise=c.noise).abs().sum(), rest[which])


def test_gradient_of_priors(backend):
    """dirichlet_responsibilities in gamma0 and gamma: digamma's derivative, or a clear error."""
    L, D = -torch.rand(2, 3, dtype=torch.float64), -torch.rand(2, 3, dtype=torch.float64)
    params = [(torch.rand(2, 3, dtype=torch.float64) + 0.5).requires_grad_() for _ in range(2)]
    assert gradcheck(lambda a, b: sf.dirichlet_responsibilities(L, D, a, gamma=b), params, **CHECK)
