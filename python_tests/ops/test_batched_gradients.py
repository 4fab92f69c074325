"""Many cotangents at once: `autograd.grad(is_grads_batched=True)`, and what torch builds on it."""

import pytest
import torch
import vb_calls
import waterfill_calls
from op_samples import public_calls
from sf_testing import draw, within

import semcom_fast as sf
from semcom_fast.ops import _register

A = draw(3, 4, 5, seed=1)
NAMED = [
    *("blockdiag_apply", "blockdiag_adjoint", "likelihood_score", "pvd_update", "pvd_calibrate", "pvd_channel_step"),
    *("rzf_precode", "rzf_matrix", "lmmse_equalise", "lmmse_channel", "cir_to_ofdm"),
]


def _by_keyword(name):
    fn, given = public_calls("cpu")[name]
    return lambda *args: fn(**dict(zip(given, args, strict=True))), list(given.values())


CALLS = {
    **{name: _by_keyword(name) for name in NAMED},
    **waterfill_calls.gradient_cases(),
    **vb_calls.gradient_cases(),
    "mimo_matmul": (sf.mimo_matmul, [A, draw(3, 5, 2, seed=2)]),
    "mimo_matmul adjoint": (lambda a, b: sf.mimo_matmul(a, b, adjoint_a=True), [A, draw(4, 3, seed=2)]),
    "power_normalise": (lambda z: sf.power_normalise(z, dims=2), [A]),
    "rzf_precode power": (lambda h, s: sf.rzf_precode(h, s, 0.1, power=1.0), [A, draw(3, 4, seed=2)]),
}


def _outputs(fn, args):
    leaves = [t.detach().clone().requires_grad_() for t in args]
    outs = fn(*leaves)
    outs = outs if isinstance(outs, tuple) else (outs,)
    return leaves, [o for o in outs if isinstance(o, torch.Tensor) and o.requires_grad]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_batched_gradients(name, create_graph):
    """A stack of cotangents gives what one after the other gives."""
    leaves, outs = _outputs(*CALLS[name])
    stacks = [draw(3, *o.shape, seed=40 + i, dtype=o.dtype) for i, o in enumerate(outs)]
    options = {"retain_graph": True, "allow_unused": True, "create_graph": create_graph}
    got = torch.autograd.grad(outs, leaves, stacks, is_grads_batched=True, **options)
    for i in range(3):
        want = torch.autograd.grad(outs, leaves, [s[i] for s in stacks], **options)
        for a, b in zip(got, want, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                within(a[i], b, 1e-13 * (1 + b.abs().max()), name)


def test_vectorised_hessian():
    """torch.autograd.functional with vectorize=True, twice through an op."""
    h, s = draw(2, 3, 4, seed=3), draw(2, 3, seed=4)

    def loss(v):
        return sf.rzf_precode(torch.view_as_complex(v), s, 0.1, power=1.0)[0, 0].real

    v = torch.view_as_real(h)
    want = torch.autograd.functional.hessian(loss, v)
    within(torch.autograd.functional.hessian(loss, v, vectorize=True), want, 1e-12 * want.abs().max(), "Hessian")


def test_the_route_ends_with_the_pass(monkeypatch):
    """An error inside a batched backward pass leaves later calls where they were."""
    x = A.clone().requires_grad_()
    out = sf.mimo_matmul(x, A.mH)

    def broken(*_):
        assert _register._BATCHED
        raise ArithmeticError

    monkeypatch.setattr(_register.OPS["mimo_matmul"], "_backward", broken)
    with pytest.raises(ArithmeticError):
        torch.autograd.grad(out, x, draw(2, *out.shape), is_grads_batched=True)
    assert not _register._BATCHED
