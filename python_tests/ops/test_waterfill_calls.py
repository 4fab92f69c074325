"""The water-filling ops as functions: errors, views, arrays, empty and split batches, threads."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sf_testing import draw, same_bits
from waterfill_calls import calls, levels_between, outputs

import semcom_fast as sf

NAN, INF = float("nan"), float("inf")
NAMES = tuple(calls())
OPERANDS = [(name, operand) for name, (_, args) in calls().items() for operand in args]
STATES = [
    p for p in OPERANDS if p[0] in ("waterfill_inject", "waterfill_step", "waterfill_step 2M", "waterfill_step_authors")
]
# nothing waits in a second-order step; the own base steps from f
UNREAD = (("waterfill_step 2M", "f"), ("waterfill_step 2M", "noise"), ("waterfill_step_authors", "g"))
names = pytest.mark.parametrize("name", NAMES)


def _op(name):
    return name.split()[0]


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with sf.use_backend(request.param):
        yield request.param


def _level_kwargs(op, value, which):
    if op == "waterfill_inject":
        return {"beta_bar": value}
    return {"beta_t": 0.7, "beta_s": 0.5} | {which: value}


def _bare(name):
    """The public function and its tensors, without levels."""
    op = _op(name)
    return getattr(sf, op), dict(calls()[name][1])


@pytest.mark.parametrize("name, operand", OPERANDS)
def test_wrong_kind(name, operand):
    """Integers, lists and None are TypeErrors that name op and argument."""
    fn, args = calls()[name]
    for wrong in (args[operand].real.to(torch.int64), [1.0, 2.0]):
        with pytest.raises(TypeError, match=rf"^{_op(name)}: .*\b{operand} (is|must be) "):
            fn(**(args | {operand: wrong}))
    if operand not in ("noise", "x0_uncond", "x0_prev"):
        with pytest.raises(TypeError, match=rf"^{_op(name)}: .*\b{operand} "):
            fn(**(args | {operand: None}))


@pytest.mark.parametrize("name, operand", OPERANDS)
def test_mixed_precision_and_devices(name, operand):
    """One operand of another precision or on another device is named; nothing is cast silently."""
    fn, args = calls(torch.float32)[name]
    wide = args[operand].to(torch.complex128 if args[operand].is_complex() else torch.float64)
    with pytest.raises(TypeError, match=rf"^{_op(name)}: .*(complex|float)(64|32|128)"):
        fn(**(args | {operand: wide}))
    with pytest.raises(ValueError, match=rf"^{_op(name)}: .*on (meta|cpu) but .* on (meta|cpu)"):
        fn(**(args | {operand: args[operand].to("meta")}))


@pytest.mark.parametrize("name, operand", STATES)
def test_wrong_shapes_are_shown(name, operand):
    """Every operand's own shape is in the message."""
    fn, args = calls()[name]
    for shape in ((3, 8), (2, 10), (10,), (3, 3), (3, 11), (1, 10), (1, 3, 10), ()):
        if operand == "d" and shape == (3, 10):
            continue
        wrong = torch.zeros(shape, dtype=torch.float64)
        with pytest.raises(ValueError, match=rf"^{_op(name)}: need ") as caught:
            fn(**(args | {operand: wrong}))
        assert f"{operand} {shape}" in str(caught.value)


def test_odd_latents():
    """N odd: levels per symbol cannot be, levels per real can."""
    f, noise = draw(2, 7, dtype=torch.float64), draw(2, 7, seed=1, dtype=torch.float64)
    for bad in ((2, 3), (2, 4)):
        with pytest.raises(ValueError, match=r"^waterfill_inject: need"):
            sf.waterfill_inject(f, torch.zeros(bad).double(), 0.5, noise=noise)


@pytest.mark.parametrize("which", ["beta_t", "beta_s"])
@pytest.mark.parametrize("op", ["waterfill_inject", "waterfill_step", "waterfill_step_authors"])
def test_levels(op, which, backend):
    """Levels are variances in [0, 1], numbers or tensors over the leading dims."""
    fn, args = _bare(op)
    for value in (-0.1, 1.1, NAN, INF):
        with pytest.raises(ValueError, match=rf"^{op}: "):
            fn(**args, **_level_kwargs(op, value, which))
        with pytest.raises(ValueError, match=rf"^{op}: .*\b1\b"):
            tensor = torch.tensor([0.5, value, 0.5], dtype=torch.float64)
            fn(**args, **_level_kwargs(op, tensor, which))
    for shape in ((2,), (4,), (3, 10), (1, 3)):
        with pytest.raises(ValueError, match=rf"^{op}: beta.*must align from the left"):
            fn(**args, **_level_kwargs(op, torch.full(shape, 0.5), which))
    for wrong in (None, "0.5", [0.5], torch.tensor(0.5 + 0j)):
        with pytest.raises(TypeError, match=rf"^{op}: beta"):
            fn(**args, **_level_kwargs(op, wrong, which))
    with pytest.raises(ValueError, match=rf"^{op}: beta.* on meta"):
        fn(**args, **_level_kwargs(op, torch.full((3,), 0.5, device="meta"), which))


@pytest.mark.parametrize("name, operand", [p for p in OPERANDS if not p[0].startswith("waterfill_equalise")])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_non_finite_operands_are_named(name, operand, bad, backend):
    """NaN or Inf that reaches the result names its item; operands that a variant never reads do no harm."""
    fn, args = calls()[name]
    broken = args[operand].clone()
    broken[1] = bad
    if (name, operand) in UNREAD:
        for a, b in zip(outputs(fn(**(args | {operand: broken}))), outputs(fn(**args)), strict=True):
            same_bits(a, b, name)
        return
    with pytest.raises(ValueError, match=rf"^{_op(name)}: .*\b1\b"):
        fn(**(args | {operand: broken}))


@pytest.mark.parametrize("value", [-0.01, 1.01])
@pytest.mark.parametrize("op", ["waterfill_inject", "waterfill_step", "waterfill_step_authors"])
def test_d_is_a_variance(op, value, backend):
    """d outside [0, 1] names its item."""
    fn, args = calls()[op]
    d = args["d"].clone()
    d[2, 1] = value
    with pytest.raises(ValueError, match=rf"^{op}: .*\b2\b"):
        fn(**(args | {"d": d}))


def test_guidance_and_ratio_need_their_predictions(backend):
    """guidance with x0_uncond, ratio with x0_prev: both or neither; 2M is refused where elements wait."""
    fn, args = _bare("waterfill_step")
    other, levels = args["x0"] + 1, {"beta_t": 0.7, "beta_s": 0.5}
    for extra in ({"guidance": 2.0}, {"x0_uncond": other}, {"ratio": 1.0}, {"x0_prev": other}):
        with pytest.raises((ValueError, TypeError), match=r"^waterfill_step: .*(guidance|ratio)"):
            fn(**args, **levels, **extra)
    with pytest.raises(ValueError, match=r"^waterfill_step: .*item \d.*wait"):
        fn(**args, **levels, x0_prev=other, ratio=1.0)
    noisy = args | {"d": torch.full_like(args["d"], 0.8)}
    for ratio in (0.0, NAN):
        with pytest.raises(ValueError, match=r"^waterfill_step: ratio"):
            fn(**noisy, **levels, x0_prev=other, ratio=ratio)
    for guidance in (NAN, torch.ones(4)):
        with pytest.raises(ValueError, match=r"^waterfill_step: (guidance|.*item)"):
            fn(**args, **levels, x0_uncond=other, guidance=guidance)


def test_second_order_with_an_infinite_ratio_is_first_order(backend):
    """ratio = inf: the plain step, as at the start of a run."""
    fn, args = _bare("waterfill_step 2M")
    args = {k: args[k] for k in ("g", "x0", "f", "d", "noise")}
    want = fn(**args, beta_t=0.6, beta_s=0.5)
    same_bits(fn(**args, beta_t=0.6, beta_s=0.5, x0_prev=args["x0"] + 1, ratio=INF), want, "ratio = inf")


@pytest.mark.parametrize("op", ["waterfill_inject", "waterfill_step", "waterfill_step_authors"])
def test_a_draw_needs_noise_or_seed(op, backend):
    """Neither noise nor seed is a ValueError, unless the level to reach is the number 0 and nothing can be missing."""
    fn, args = _bare(op)
    del args["noise"]
    for level in (0.5, torch.tensor(0.0), torch.zeros(3)):
        with pytest.raises(ValueError, match=rf"^{op}.*pass noise= or seed="):
            fn(**args, **_level_kwargs(op, level, "beta_s"))
    for zero in (0, 0.0):
        assert outputs(fn(**args, **_level_kwargs(op, zero, "beta_s")))[0].isfinite().all()
    with pytest.raises(ValueError, match="first_item"):
        fn(**args, **_level_kwargs(op, 0.5, "beta_s"), seed=1, first_item=-1)


def _views(t):
    """The same values with other strides, offsets and lazy bits."""
    yield torch.stack([t, t * 3], -1)[..., 0]
    yield t.mT.contiguous().mT
    yield torch.cat([t.new_zeros(1), t.reshape(-1)])[1:].view(t.shape)
    yield torch._neg_view(-t)
    yield t.flip(0).flip(0)
    yield torch.cat([t, t], 0)[: len(t)]
    if t.is_complex():
        yield t.conj().resolve_conj().conj()
        yield torch._neg_view(-t.conj().resolve_conj()).conj()
    else:
        yield torch.complex(torch.zeros_like(t), -t).conj().imag


@pytest.mark.parametrize("name, operand", OPERANDS)
def test_views(name, operand, backend):
    """Strided, transposed, misaligned, negated and conjugated operands give the bits of plain copies."""
    fn, args = calls(torch.float32)[name]
    want = outputs(fn(**args))
    for view in _views(args[operand]):
        assert torch.equal(view, args[operand])
        for a, b in zip(outputs(fn(**(args | {operand: view}))), want, strict=True):
            same_bits(a, b, f"{name} {operand}")


@pytest.mark.parametrize("name", ["waterfill_inject", "waterfill_step", "waterfill_step_authors"])
def test_expanded_levels(name, backend):
    """A level per image as an expanded view (stride 0), and a batch expanded from one row."""
    fn, args = calls(torch.float32)[name]
    one = args["d"][:, :1]
    for n in (5, 10):
        wide = one.expand(3, n)
        assert wide.stride(-1) == 0
        for a, b in zip(outputs(fn(**(args | {"d": wide}))), outputs(fn(**(args | {"d": wide.clone()}))), strict=True):
            same_bits(a, b, "d of one level per image")
    row = args["d"][:1].expand(3, 5)
    for a, b in zip(outputs(fn(**(args | {"d": row}))), outputs(fn(**(args | {"d": row.clone()}))), strict=True):
        same_bits(a, b, "d shared by the batch")


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_split_batch(name, dtype, backend):
    """A batch cut anywhere, with first_item, gives the same bits; dispatch never looks at the batch.

    The reference equaliser is exempt: torch's own vectorised complex loops differ by an ulp in the tail of an array.
    """
    if name.startswith("waterfill_equalise") and backend == "reference":
        return
    fn, args = calls(dtype, batch=23, n=34)[name]
    drawn = "noise" in args
    if drawn:
        args = {k: v for k, v in args.items() if k != "noise"}

    def run(a, b):
        extra = {"seed": 7, "step": 2, "first_item": 5 + a} if drawn else {}
        return outputs(fn(**{k: v[a:b] for k, v in args.items()}, **extra))

    whole = run(0, 23)
    for cuts in ((0, 1, 23), (0, 7, 8, 23), (0, 16, 23)):
        parts = [run(a, b) for a, b in pairwise(cuts)]
        for k, want in enumerate(whole):
            same_bits(torch.cat([p[k] for p in parts]), want, f"{name} {cuts}")


@names
def test_threads(name):
    """One and two threads give the same bits."""
    fn, args = calls(torch.float32, batch=64, n=4096)[name]
    if "noise" in args:
        args = {k: v for k, v in args.items() if k != "noise"} | {"seed": 3}
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(outputs(fn(**args)))
    for a, b in zip(*results, strict=True):
        same_bits(a, b, name)


@names
def test_rows_inside_an_item(name, backend):
    """[B,S,N] with draws: an item's reals are numbered row after row, as philox_normal does."""
    fn, args = calls(torch.float32, batch=6, n=12)[name]
    if "noise" not in args:
        return
    args = {k: v.reshape(2, 3, -1) for k, v in args.items() if k != "noise"}
    noise = sf.philox_normal((2, 3, 12), seed=4, step=1, stream=6, first_item=8)
    want = outputs(fn(**args, noise=noise))
    for a, b in zip(outputs(fn(**args, seed=4, step=1, first_item=8)), want, strict=True):
        same_bits(a, b, name)


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_empty(name, dtype, backend):
    """Empty batches and empty rows come back empty with the right shape and dtype, and with gradients."""
    fn, args = calls(dtype)[name]
    full = outputs(fn(**args))
    for lead in ((0,), (0, 2), (2, 0)):
        leaves = {k: v.new_zeros(*lead, v.shape[-1]).requires_grad_() for k, v in args.items()}
        out = outputs(fn(**leaves))
        assert [o.shape for o in out] == [(*lead, o.shape[-1]) for o in full] and out[0].dtype is full[0].dtype
        grads = torch.autograd.grad(sum(o.sum() for o in out), list(leaves.values()), allow_unused=True)
        assert all(g is None or g.shape == v.shape for g, v in zip(grads, leaves.values(), strict=True))
    if name != "waterfill_equalise slow":
        out = outputs(fn(**{k: v[:, :0] for k, v in args.items()}))
        assert all(o.shape == (3, 0) for o in out)


CHANGES = {
    "plain": lambda a: a,
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "reversed": lambda a: a[::-1].copy()[::-1],
    "fortran": np.asfortranarray,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("change", CHANGES)
@names
def test_numpy_in_numpy_out(name, change):
    """Arrays give arrays with the same bits; mixing kinds is refused."""
    fn, args = calls(torch.float32)[name]
    arrays = {k: CHANGES[change](v.numpy()) for k, v in args.items()}
    want, got = fn(**args), fn(**arrays)
    assert isinstance(got, tuple) == isinstance(want, tuple)
    for a, b in zip(got if isinstance(got, tuple) else (got,), outputs(want), strict=True):
        assert type(a) is np.ndarray
        same_bits(torch.from_numpy(a), b, name)
    for operand in args:
        with pytest.raises(TypeError, match=r"torch|numpy|NumPy"):
            fn(**(args | {operand: arrays[operand]}))


def test_numpy_levels():
    """Levels [B] as arrays beside arrays, and NumPy scalars."""
    f, d, noise = (
        v.numpy()
        for v in (draw(3, 10, dtype=torch.float64), levels_between(3, 5), draw(3, 10, seed=1, dtype=torch.float64))
    )
    want = sf.waterfill_inject(*(torch.from_numpy(v) for v in (f, d)), 0.5, noise=torch.from_numpy(noise))
    for level in (np.float64(0.5), np.full(3, 0.5), np.array(0.5), np.float32(0.5)):
        same_bits(torch.from_numpy(sf.waterfill_inject(f, d, level, noise=noise)), want, "NumPy level")


def test_operands_are_left_alone(backend):
    """No op writes to its operands, nor returns one of them."""
    for name, (fn, args) in calls(torch.float32).items():
        before = {k: v.clone() for k, v in args.items()}
        out = outputs(fn(**args))
        for k, v in args.items():
            same_bits(
                torch.view_as_real(v) if v.is_complex() else v,
                torch.view_as_real(before[k]) if v.is_complex() else before[k],
                f"{name} {k}",
            )
            assert all(o.data_ptr() != v.data_ptr() for o in out)
    g = draw(3, 10, dtype=torch.float32)
    out = sf.waterfill_step(g, g, g, g[:, :5].abs().clamp(max=1), 0.0, 0.0, seed=1)
    assert out.data_ptr() != g.data_ptr()
