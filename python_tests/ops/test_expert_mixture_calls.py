"""The expert-mixture ops as functions: wrong operands, views, arrays, empty and split batches, threads."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sf_testing import draw, same_bits, unit, within
from vb_calls import LEVELS, calls, outputs
from vb_cases import call, elbo_state, state, views

import semcom_fast as sf

NAN, INF = float("nan"), float("inf")
NAMES = tuple(calls())
OPERANDS = [(name, operand) for name, (_, args) in calls().items() for operand in args if operand != "v"]
names = pytest.mark.parametrize("name", NAMES)
operands = pytest.mark.parametrize("name, operand", OPERANDS)


def _op(name):
    return name.split()[0]


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with sf.use_backend(request.param):
        yield request.param


@operands
def test_wrong_kind(name, operand):
    """Integers, lists and None are TypeErrors that name op and argument."""
    fn, args = calls()[name]
    optional = ("noise", "gamma")
    for wrong in (torch.ones(args[operand].shape, dtype=torch.int64), [1.0, 2.0], None):
        if wrong is None and operand in optional:
            continue
        with pytest.raises(TypeError, match=rf"^{_op(name)}: .*\b{operand}\b"):
            fn(**(args | {operand: wrong}))


@operands
def test_mixed_precision_and_devices(name, operand):
    """One operand of another precision or on another device is named; nothing is cast silently."""
    if name == "pilot_svd":
        return
    fn, args = calls(torch.complex64)[name]
    wide = args[operand].to(torch.complex128 if args[operand].is_complex() else torch.float64)
    with pytest.raises(TypeError, match=rf"^{_op(name)}: .*(complex|float)(64|32|128)"):
        fn(**(args | {operand: wide}))
    with pytest.raises((ValueError, TypeError), match=rf"^{_op(name)}: .*\b(meta|cpu)\b"):
        fn(**(args | {operand: args[operand].to("meta")}))


STEPS = [p for p in OPERANDS if p[0].startswith("pilot_posterior_step")]


@pytest.mark.parametrize("name, operand", STEPS)
def test_wrong_shapes_are_shown(name, operand):
    """Every axis of every operand in turn: the operand's own shape is in the message."""
    fn, args = calls()[name]
    t = args[operand]
    for axis in range(t.ndim):
        wrong = torch.zeros([n + (i == axis) for i, n in enumerate(t.shape)], dtype=t.dtype)
        with pytest.raises(ValueError, match=r"^pilot_posterior_step: ") as caught:
            fn(**(args | {operand: wrong}))
        assert str(tuple(wrong.shape)) in str(caught.value)


@pytest.mark.parametrize("name, operand", STEPS)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_non_finite_operands_are_named(name, operand, bad, backend):
    """NaN or Inf in one channel names it, in factors shared by all the first channel."""
    fn, args = calls()[name]
    broken = args[operand].clone()
    shared = name == "pilot_posterior_step" and operand in ("u", "s")
    broken[0 if shared else 1].view(-1)[0] = bad
    if operand == "s" and abs(bad) == INF:
        return  # an infinite singular value is a gain of 0 or NaN, as its sums fall
    with pytest.raises(ValueError, match=rf"^pilot_posterior_step: .*\b{0 if shared else 1}\b"):
        fn(**(args | {operand: broken}))


BAD_LEVELS = [
    ("noise_var", (0.0, -1.0, NAN, INF)),
    ("alpha_bar", (0.0, 1.0, -0.1, 1.1, NAN)),
    ("beta", (-0.1, 1.0, 1.5, NAN)),
    ("lam", (NAN, INF)),
]


@pytest.mark.parametrize("which, values", BAD_LEVELS)
def test_levels(which, values, backend):
    """Numbers outside their range are named; a bad entry of a tensor names the channel, but for what stays finite."""
    c = state()
    for value in values:
        with pytest.raises(ValueError, match=r"^pilot_posterior_step: "):
            call(c, **(LEVELS | {which: value}))
        if not (which == "beta" and value < 0):
            tensor = torch.tensor([LEVELS[which], value, LEVELS[which]], dtype=torch.float64)
            with pytest.raises(ValueError, match=r"^pilot_posterior_step: .*\b1\b"):
                call(c, **(LEVELS | {which: tensor}))
    for shape in ((2,), (4,), (3, 4), (1, 3)):
        with pytest.raises(ValueError, match=rf"^pilot_posterior_step: {which}.*must align from the left"):
            call(c, **(LEVELS | {which: torch.full(shape, 0.3)}))
    for wrong in (None, "0.5", [0.5], torch.tensor(0.5 + 0j)):
        with pytest.raises(TypeError, match=rf"^pilot_posterior_step: {which}"):
            call(c, **(LEVELS | {which: wrong}))


def test_residual_and_experts():
    """lik is one of two; there is at least one expert; svd is a decomposition."""
    c = state()
    for wrong in ("x1", "", None, True):
        with pytest.raises(ValueError, match=r"^pilot_posterior_step: lik"):
            call(c, **LEVELS, lik=wrong)
    for wrong in (c.p, None, (c.svd.u,)):
        with pytest.raises(TypeError, match=r"^pilot_posterior_step: svd"):
            sf.pilot_posterior_step(c.h, c.eps, c.w, c.yv, wrong, **LEVELS)
    with pytest.raises(ValueError, match=r"^pilot_posterior_step: "):
        sf.pilot_posterior_step(c.h, c.eps[:, :0], c.w[:, :0], c.yv, c.svd, **LEVELS)


@operands
def test_views(name, operand, backend):
    """Strided, transposed, misaligned, negated and conjugated operands give the bits of plain copies.

    The reference leaves its products to torch, whose order of summation may follow the strides: rounding only.
    """
    fn, args = calls(torch.complex64)[name]
    want = outputs(fn(**args))
    for view in views(args[operand]):
        assert torch.equal(view, args[operand])
        for a, b in zip(outputs(fn(**(args | {operand: view}))), want, strict=True):
            if backend == "cpu":
                same_bits(a, b, f"{name} {operand}")
            else:
                within(a, b, 64 * unit(a) * b.abs().max(), f"views {backend}")


def _drawing(dtype, first, a, b):
    """Rows a:b of the two ops that draw."""
    c = elbo_state(23, 2, 2, dtype=dtype)
    key = {"seed": 7, "first_item": first + a}
    noisy = sf.renoise(c.h[a:b], c.steps, c.table, **key)
    return noisy, *sf.elbo_reduce(
        c.eps[a:b], c.h[a:b], c.steps, c.table, c.weights, c.yv[a:b], c.svd, noise_var=0.3, tau=40, **key
    )


CUTS = ((0, 1, 23), (0, 7, 8, 23), (0, 16, 23))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("shared", [True, False], ids=["shared pilots", "pilots per channel"])
@pytest.mark.parametrize("lik", ["dmps", "x0"])
def test_split_steps(lik, shared, dtype):
    """A batch cut anywhere gives the same bits, with levels per channel; dispatch never looks at the batch."""
    for nr, nt, np_, experts in ((4, 6, 5, 3), (3, 17, 9, 1), (16, 64, 38, 4)):
        c = state(23, nr, nt, np_, experts, dtype=dtype, shared=shared)
        n = torch.linspace(0.1, 3, 23, dtype=torch.float64)

        def run(a, b, c=c, n=n):
            svd = c.svd if shared else type(c.svd)(*(t[a:b] for t in c.svd))
            part = type(c)(h=c.h[a:b], eps=c.eps[a:b], w=c.w[a:b], yv=c.yv[a:b], svd=svd)
            return call(part, **(LEVELS | {"noise_var": n[a:b]}), lik=lik)

        whole = run(0, 23)
        for cuts in CUTS:
            same_bits(torch.cat([run(a, b) for a, b in pairwise(cuts)]), whole, f"{cuts}")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_split_draws(dtype):
    """renoise and elbo_reduce with first_item: the same bits however the batch is cut."""
    whole = _drawing(dtype, 5, 0, 23)
    for cuts in CUTS:
        parts = [_drawing(dtype, 5, a, b) for a, b in pairwise(cuts)]
        for k, want in enumerate(whole):
            same_bits(torch.cat([p[k] for p in parts]), want, f"{cuts}")
    assert not torch.equal(_drawing(dtype, 6, 0, 23)[0], whole[0])


def test_threads():
    """One and two threads give the same bits."""
    c = state(64, 16, 64, 38, 4, dtype=torch.complex64)
    e = elbo_state(48, 3, 4, 16, 64, 38, dtype=torch.complex64)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        noisy = sf.renoise(e.h, e.steps, e.table, seed=3)
        terms = sf.elbo_reduce(e.eps, e.h, e.steps, e.table, e.weights, e.yv, e.svd, noise_var=0.3, tau=30, seed=3)
        results.append((call(c, **LEVELS), call(c, **LEVELS, lik="x0"), noisy, *terms))
    for a, b in zip(*results, strict=True):
        same_bits(a, b, "threads")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("shared", [True, False], ids=["shared pilots", "pilots per channel"])
def test_empty(shared, dtype, backend):
    """Empty batches and channels without receive antennas come back empty, gradients included."""
    c = state(2, dtype=dtype, shared=shared)
    svd = c.svd if shared else type(c.svd)(*(t[:0] for t in c.svd))
    leaves = [t[:0].clone().requires_grad_() for t in (c.h, c.eps, c.w, c.yv)]
    out = sf.pilot_posterior_step(*leaves, svd, **LEVELS)
    assert out.shape == (0, 4, 6) and out.dtype is dtype
    grads = torch.autograd.grad(out.abs().sum(), leaves)
    assert [g.shape for g in grads] == [t.shape for t in leaves]
    none = sf.pilot_posterior_step(c.h[:, :0], c.eps[:, :, :0], c.w, c.yv[:, :0], c.svd, **LEVELS)
    assert none.shape == (2, 0, 6)


CHANGES = {
    "plain": lambda a: a,
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "reversed": lambda a: a[::-1].copy()[::-1],
    "fortran": np.asfortranarray,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
}
ARRAYS = {
    "renoise": lambda h, noise: sf.renoise(h, [30, 40, 50], [0.5, 0.4, 0.3], noise=noise),
    "dirichlet_responsibilities": calls()["dirichlet_responsibilities"][0],
    "dirichlet_responsibilities gamma": calls()["dirichlet_responsibilities gamma"][0],
    "pilot_posterior_step": calls()["pilot_posterior_step"][0],
    "pilot_posterior_step x0": calls()["pilot_posterior_step x0"][0],
    "elbo_reduce": lambda eps, h, yv, noise, u, s, v: sf.elbo_reduce(
        eps, h, [30, 40, 50], [0.5, 0.4, 0.3], [1, 2, 3], yv, sf.PilotSVD(u, s, v), noise_var=0.3, tau=40, noise=noise
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ARRAYS)
def test_numpy_in_numpy_out(name, change):
    """Arrays give arrays with the same bits, also inside the decomposition; mixing kinds is refused."""
    fn, args = ARRAYS[name], calls(torch.complex64)[name][1]
    arrays = {k: CHANGES[change](v.numpy()) for k, v in args.items()}
    want, got = fn(**args), fn(**arrays)
    assert isinstance(got, tuple) == isinstance(want, tuple)
    for a, b in zip(outputs(got), outputs(want), strict=True):
        assert type(a) is np.ndarray
        same_bits(torch.from_numpy(a), b, name)
    for operand in args:
        if operand != "v":
            with pytest.raises(TypeError, match=r"torch|numpy|NumPy|tensor"):
                fn(**(args | {operand: arrays[operand]}))


@names
def test_operands_are_left_alone(name, backend):
    """No op writes to its operands, nor returns one of them."""
    fn, args = calls(torch.complex64)[name]
    before = {k: v.clone() for k, v in args.items()}
    out = outputs(fn(**args))
    for k, v in args.items():
        same_bits(v, before[k], f"{name} {k}")
        assert all(o.data_ptr() != v.data_ptr() for o in out)
    c = state(dtype=torch.complex64)
    still = call(c, **(LEVELS | {"beta": 0.0}))
    assert still.data_ptr() != c.h.data_ptr()


def test_broadcast_operands(backend):
    """One prediction or one observation for a whole batch, as views of stride 0 or of leading size 1."""
    c = state(4)
    want = sf.pilot_posterior_step(c.h, c.eps[:1].repeat(4, 1, 1, 1), c.w, c.yv[:1].repeat(4, 1, 1), c.svd, **LEVELS)
    for eps, yv in (
        (c.eps[:1].expand(4, -1, -1, -1), c.yv[:1].expand(4, -1, -1)),
        (c.eps[:1], c.yv[:1]),
        (c.eps[0], c.yv[0]),
    ):
        same_bits(sf.pilot_posterior_step(c.h, eps, c.w, yv, c.svd, **LEVELS), want, "broadcast")
    one = sf.pilot_posterior_step(c.h[0], c.eps, c.w[0], c.yv, c.svd, **LEVELS)
    same_bits(one, sf.pilot_posterior_step(c.h[:1].repeat(4, 1, 1), c.eps, c.w[:1].repeat(4, 1), c.yv, c.svd, **LEVELS))
    assert one.shape == draw(4, 4, 6).shape
