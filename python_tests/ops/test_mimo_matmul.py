"""mimo_matmul: products of many small matrices in every layout, against float64 and with every transform of torch."""

import itertools
import math
import mmap

import numpy as np
import pytest
import torch
from isa_levels import OTHERS, run_at
from sf_testing import DTYPES, dot_growth, draw, same_bits, unit, wide, within
from torch.autograd import forward_ad as fwd_ad
from torch.autograd import gradcheck, gradgradcheck

import semcom_fast as sf
from semcom_fast import reference
from semcom_fast.ops import _matmul_rule
from semcom_fast.ops._checks import tolerate_non_finite

FLAGS = list(itertools.product((False, True), repeat=2))
NAN, INF = float("nan"), float("inf")


def _pair(m, k, n, lead=(3,), flags=(False, False), dtype=torch.complex64, lead_b=None):
    a = draw(*lead, *((k, m) if flags[0] else (m, k)), seed=1, dtype=dtype)
    b = draw(*(lead if lead_b is None else lead_b), *((n, k) if flags[1] else (k, n)), seed=2, dtype=dtype)
    return a, b


def _call(a, b, flags=(False, False)):
    return sf.mimo_matmul(a, b, adjoint_a=flags[0], adjoint_b=flags[1])


def _check(a, b, flags, label):
    """Against the twin in float64; every entry is a dot product of K terms."""
    want = reference.mimo_matmul(*wide(a, b), adjoint_a=flags[0], adjoint_b=flags[1])
    sizes = (t.abs().double() for t in wide(a, b))
    left, right = (t.mT if f else t for t, f in zip(sizes, flags, strict=True))
    got = _call(a, b, flags)
    assert got.is_contiguous() and got.dtype is a.dtype
    within(got, want, dot_growth(left.shape[-1]) * unit(a) * (left @ right), label)


SIZES = [
    *itertools.product((1, 2, 3, 5, 8), (1, 4, 7), (1, 2, 3, 4, 5, 9)),
    *((n, n, n) for n in (6, 8, 9, 16, 17, 64)),
]
SIZES += [(64, 3, 24), (70, 9, 1), (16, 64, 1), (130, 2, 53), (4, 129, 3), (1, 200, 40)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("short", [0, _matmul_rule.CPU_SHORT])
def test_twin(flags, dtype, short, monkeypatch):
    """Every kernel, and torch's own product; 3 and 19 matrices leave a pack of the batch part empty."""
    monkeypatch.setattr(_matmul_rule, "CPU_SHORT", short)
    for size in SIZES:
        for batch in (3, 19) if math.prod(size) < 5000 else (2,):
            _check(*_pair(*size, (batch,), flags, dtype), flags, "mimo_matmul")


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("size", [(3, 4, 2), (4, 5, 9)])
def test_broadcast(size, flags):
    """Leading dimensions broadcast like torch.matmul's: none, ones, repeated (stride 0), interleaved, more than four."""
    leads = [((), (5,)), ((5,), ()), ((), ()), ((2, 1, 4), (3, 1)), ((2, 3), (1, 3)), ((1,), (40,)), ((40,), (1,))]
    leads += [((2, 1, 2, 1, 2, 1), (1, 3, 1, 2, 1, 2)), ((2, 1, 2, 1, 2, 1, 2), (1, 2, 1, 3, 1, 2, 1))]
    for lead_a, lead_b in leads:
        a, b = _pair(*size, lead_a, flags, lead_b=lead_b)
        assert _call(a, b, flags).shape[:-2] == torch.broadcast_shapes(lead_a, lead_b)
        _check(a, b, flags, "broadcast")
        _check(a.conj(), b.conj(), flags, "broadcast of conjugates")
    a, b = _pair(*size, (6,), flags)
    _check(a[:1].expand(6, -1, -1), b, flags, "expanded a")
    _check(a, b[:1].expand(4, 6, -1, -1), flags, "expanded b")


VIEWS = {
    "column stride": lambda t: torch.stack([t, t * 3], -1)[..., 0],
    "row stride": lambda t: torch.cat([t, t * 3], -1)[..., : t.shape[-1]],
    "transposed": lambda t: t.mT.contiguous().mT,
    "batch last": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "every second": lambda t: torch.stack([t, t * 3], 1)[:, 0],
    "off the line": lambda t: torch.cat([t.new_zeros(1), t.reshape(-1)])[1:].view(t.shape),
    "conjugate": lambda t: t.conj().resolve_conj().conj(),
    "adjoint": lambda t: t.mH.contiguous().mH,
    "negative": lambda t: torch._neg_view(-t),
    "conjugate of negative": lambda t: torch._neg_view(-t.conj().resolve_conj()).conj(),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("flags", FLAGS)
def test_views(view, flags):
    """Strided and lazily conjugated or negated operands give the values of plain copies."""
    for size in ((4, 3, 2), (5, 4, 9), (3, 2, 24), (17, 5, 3)):
        a, b = _pair(*size, (18,), flags)
        for left, right in ((VIEWS[view](a), b), (a, VIEWS[view](b)), (VIEWS[view](a), VIEWS[view](b))):
            assert torch.equal(left, a) and torch.equal(right, b)
            _check(left, right, flags, f"view {view}")


SCALED = [(1, n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 24)]  # a number times a row, and a column times a number


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("flags", FLAGS)
def test_number_times_row(flags, dtype):
    """K = 1 beside a single row or column: full and broken packs, and views with the bits of plain copies."""
    for m, n in SCALED + [size[::-1] for size in SCALED[1:]]:
        a, b = _pair(m, 1, n, (299,), flags, dtype)
        assert _matmul_rule.ours(m, 1, n, 299, False)
        _check(a, b, flags, "number times row")
        want = _call(a, b, flags)
        whole = torch.cat([_call(a[i:j], b[i:j], flags) for i, j in ((0, 185), (185, 299))])
        same_bits(whole, want, "split")
        for name, view in VIEWS.items():
            same_bits(_call(view(a), b, flags), want, name)
            same_bits(_call(view(a), view(b), flags), want, name)
        same_bits(_call(a[:1], b, flags), _call(a[:1].expand(299, -1, -1).contiguous(), b, flags), "shared a")
        same_bits(_call(a, b[:1], flags), _call(a, b[:1].expand(299, -1, -1).contiguous(), flags), "shared b")
        pair = a[:12].view(3, 4, *a.shape[1:]), b[:12].view(3, 4, *b.shape[1:])
        grid = [t.repeat(1, 20, 1, 1) for t in pair]
        same_bits(_call(*(t.mT.contiguous().mT for t in grid), flags), _call(*grid, flags), "two leads")
        lead = _call(grid[0][:, None], grid[1][None], flags)
        same_bits(lead[1, 2], _call(grid[0][1:2].expand(3, -1, -1, -1), grid[1], flags)[2], "outer leads")


@pytest.mark.parametrize("size", SCALED)
def test_number_times_row_non_finite(size):
    """The lowest spoilt item, wherever it lies in a pack and whichever operand it comes from."""
    m, n = size
    for at in (0, 1, 7, 8, 100, 296, 298):
        for side in (0, 1):
            pair = _pair(m, 1, n, (299,))
            pair[side][at, -1, -1] = complex(NAN, 0)
            pair[1 - side][298] = INF
            for a, b in (pair, (pair[1].mT, pair[0].mT)):
                with pytest.raises(ValueError, match=rf"^mimo_matmul: batch item {at} is not finite"):
                    _call(a, b)


@pytest.mark.parametrize("size", [(4, 4, 1), (4, 4, 24)])
def test_adjoint_views_are_the_flags(size):
    """a.mH is read like adjoint_a=True on a, bit for bit, and without a copy of its own."""
    a, b = _pair(*size, (300,))
    tall, wide_b = a.mH.resolve_conj().contiguous(), b.mH.resolve_conj().contiguous()
    want = _call(tall, wide_b, (True, True))
    same_bits(_call(tall.mH, wide_b.mH), want)
    same_bits(_call(tall.mH.mH, wide_b, (True, True)), want)
    assert tall.mH.is_conj()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty(dtype):
    """Empty batches, rows and columns give empty results; an empty sum is zero."""
    for m, k, n, lead in ((2, 3, 4, (0,)), (0, 3, 4, (2,)), (2, 3, 0, (2,)), (2, 3, 4, (3, 0, 2)), (2, 0, 4, (3,))):
        for flags in FLAGS:
            a, b = _pair(m, k, n, lead, flags, dtype)
            got = _call(a, b, flags)
            assert got.shape == (*lead, m, n) and got.dtype is dtype
            assert torch.equal(got, torch.zeros_like(got))
    a, b = (t.requires_grad_(True) for t in _pair(2, 0, 3, (4,), dtype=dtype))
    assert torch.autograd.grad(_call(a, b).abs().sum(), (a, b))[0].shape == a.shape


CUTS = (0, 133, 250, 2100)  # no part is short enough for torch's product
SPLITS = {
    (4, 4, 1): CUTS,
    (3, 5, 2): CUTS,
    (4, 4, 8): CUTS,
    (16, 16, 24): (0, 33, 50, 70),
    (70, 9, 30): (0, 33, 50, 70),
}
SPLITS |= dict.fromkeys([(1, 1, 1), (1, 1, 3), (5, 1, 1)], (0, 183, 2000, 70001))


@pytest.mark.parametrize("size", SPLITS)
def test_split_batch_same_bits(size):
    """Within the kernels a product's bits depend on its operands alone: not on the batch, its place or the threads."""
    cuts = SPLITS[size]
    a, b = _pair(*size, cuts[-1:])
    want = _call(a, b)
    whole = torch.cat([_call(a[i:j], b[i:j]) for i, j in itertools.pairwise(cuts)])
    same_bits(whole, want)
    torch.set_num_threads(2)
    same_bits(_call(a, b), want, "two threads")


def test_large_offsets_are_counted_in_64_bits():
    """Items more than 2^31 entries apart, in memory that is only reserved: one page of each is touched."""
    step = 2**31 + 7
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    store = torch.frombuffer(mmap.mmap(-1, 8 * (step + 12), flags=flags), dtype=torch.complex64)
    a = store.as_strided((2, 3, 4), (step, 4, 1))
    a.copy_(draw(2, 3, 4, dtype=torch.complex64))
    _check(a, draw(2, 4, 2, seed=5, dtype=torch.complex64), (False, False), "64-bit offsets")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("size, batch", [((4, 4, 2), 37), ((4, 4, 24), 37), ((2, 2, 2), 7), ((3, 130, 3), 7)])
def test_non_finite(size, batch, value, backend):
    """The lowest batch item is named, whoever computed it; a loop that checks by itself gets the values."""
    for flags in FLAGS:
        a, b = _pair(*size, (batch,), flags)
        b[5, -1, -1] = b[6, 0, 0] = complex(0, value)
        with sf.use_backend(backend):
            with pytest.raises(ValueError, match=r"^mimo_matmul: batch item 5 is not finite"):
                _call(a, b, flags)
            with tolerate_non_finite():
                bad = ~torch.isfinite(torch.view_as_real(_call(a, b, flags))).flatten(1).all(1)
        assert bad.nonzero().flatten().tolist() == [5, 6]
    a, b = _pair(*size, (2, 3))
    a[1, 1] *= 1e38
    with pytest.raises(ValueError, match="batch item 4 is not finite"):
        _call(a, b * 1e10)


def test_errors():
    """Shapes of both operands, dtypes and devices are in the message."""
    a, b = _pair(3, 4, 2)
    for left, right, flags in ((a, b[:, :3], (False, False)), (a, b, (True, False)), (a, b, (False, True))):
        with pytest.raises(ValueError, match=r"^mimo_matmul: need .*a \(3, 3, 4\), b \(3, \d, 2\)"):
            _call(left, right, flags)
    with pytest.raises(ValueError, match="leading dimensions that broadcast"):
        _call(a, b[:2])
    with pytest.raises(ValueError, match=r"a \(4,\)"):
        _call(a[0, 0], b)
    with pytest.raises(TypeError, match="mimo_matmul: b is float32 but must be complex64 or complex128"):
        _call(a, b.real)
    with pytest.raises(TypeError, match="nothing is cast silently"):
        _call(a, b.to(torch.complex128))
    with pytest.raises(ValueError, match="b is on meta but a is on cpu"):
        _call(a, b.to("meta"))
    with pytest.raises(TypeError, match="mimo_matmul: a must be a tensor, got list"):
        _call([1.0], b)


def test_arrays():
    """NumPy in, NumPy out, negative strides included."""
    a, b = (t.numpy() for t in _pair(3, 4, 2))
    got = sf.mimo_matmul(a, b)
    assert isinstance(got, np.ndarray)
    assert np.allclose(got, a @ b, atol=1e-5)
    assert np.allclose(sf.mimo_matmul(a[:, ::-1], b), a[:, ::-1] @ b, atol=1e-5)


GRADS = {
    "kernel": (_pair(2, 3, 2, (17,), dtype=torch.complex128), (False, False)),
    "adjoint a": (_pair(2, 3, 2, (2,), (True, False), torch.complex128), (True, False)),
    "adjoint b": (_pair(2, 3, 2, (2,), (False, True), torch.complex128), (False, True)),
    "both": (_pair(2, 3, 2, (2,), (True, True), torch.complex128), (True, True)),
    "columns": (_pair(2, 2, 5, (2,), dtype=torch.complex128), (False, False)),
    "shared a": (_pair(2, 3, 2, (), (True, False), torch.complex128, (3,)), (True, False)),
    "two leads": (_pair(2, 1, 3, (2, 1), (False, True), torch.complex128, (2,)), (False, True)),
}
CHECK = {"atol": 1e-6, "rtol": 1e-5, "fast_mode": True}


@pytest.mark.parametrize("name", GRADS)
def test_derivatives(name):
    """First and second derivatives, forward mode, and torch.func's, for every pair of flags."""
    (a, b), flags = GRADS[name]
    fn = lambda p, q: _call(p, q, flags)  # noqa: E731
    leaves = [t.detach().clone().requires_grad_(True) for t in (a, b)]
    assert gradcheck(fn, leaves, check_forward_ad=True, **CHECK)
    assert gradgradcheck(fn, leaves, **CHECK)
    tangents = [draw(*t.shape, seed=7 + i) for i, t in enumerate((a, b))]
    with fwd_ad.dual_level():
        one = fwd_ad.unpack_dual(fn(fwd_ad.make_dual(a, tangents[0]), b)).tangent
    within(one, _call(tangents[0], b, flags), 1e-14 * (1 + one.abs().max()), "tangent of a")
    _, both = torch.func.jvp(fn, (a, b), tuple(tangents))
    within(both, one + _call(a, tangents[1], flags), 1e-14 * (1 + both.abs().max()), "func.jvp")
    loss = lambda p, q: fn(p, q).abs().square().sum()  # noqa: E731
    want = torch.autograd.grad(loss(*leaves), leaves)
    for got, exact in zip(torch.func.grad(loss, (0, 1))(a, b), want, strict=True):
        within(got, exact, 1e-13 * (1 + exact.abs().max()), "func.grad")
    (only,) = torch.autograd.grad(loss(leaves[0], b), leaves[0])
    within(only, want[0], 1e-13 * (1 + want[0].abs().max()), "grad of a alone")


def test_gradient_of_complex64():
    """Gradients in single precision are products too: their bounds are those of dot products."""
    a, b = (t.requires_grad_(True) for t in _pair(4, 3, 6, (33,)))
    g = draw(33, 4, 6, seed=9, dtype=torch.complex64)
    got = torch.autograd.grad(_call(a, b), (a, b), g)
    exact = torch.autograd.grad(reference.mimo_matmul(*(w := wide(a, b))), w, *wide(g))
    sizes = g.abs() @ b.detach().abs().mT, a.detach().abs().mT @ g.abs()
    for p, q, size, n in zip(got, exact, sizes, (6, 4), strict=True):
        within(p, q, dot_growth(n) * unit(torch.complex64) * size.double(), "gradient complex64")


@pytest.mark.parametrize("dims", [(0, 0), (0, None), (None, 0), (-1, 1)])
def test_vmap(dims):
    """vmap over either or both operands equals a loop; ranks of the operands may differ."""
    for lead_a, lead_b in (((), (5,)), ((5,), ()), ((2, 1), (3,)), ((), ())):
        a, b = _pair(2, 3, 4, lead_a, (True, False), torch.complex128, lead_b)
        stacks = [t if d is None else torch.stack([t, 2 * t, t - 1], d) for t, d in zip((a, b), dims, strict=True)]
        fn = lambda p, q: _call(p, q, (True, False))  # noqa: E731
        got = torch.func.vmap(fn, in_dims=dims)(*stacks)
        rows = [[t if d is None else t.select(d, i) for t, d in zip(stacks, dims, strict=True)] for i in range(3)]
        want = torch.stack([fn(*row) for row in rows])
        within(got, want, 1e-14 * (1 + want.abs().max()), "vmap")


def test_rule():
    """Small matrices in large batches are always the package's own; who computed is a matter of bits alone."""
    ours = _matmul_rule.ours
    for m, k, n in itertools.product((1, 2, 5, 8), repeat=3):
        assert ours(m, k, n, 4096, False)
        assert ours(m, k, n, 4096, True)
    assert not ours(4, 129, 4, 10**6, False)
    assert not ours(64, 64, 1, 15, False)
    assert ours(64, 64, 1, 16, False)
    assert not ours(4, 4, 4, 16, False)
    assert ours(4, 4, 4, 16, False, plain=False)
    assert ours(4, 4, 4, 17, False)
    assert not ours(64, 64, 64, 1, False) and not ours(64, 64, 24, 1, False)
    assert ours(64, 8, 24, 1, False) and ours(16, 64, 24, 1, False) and not ours(8, 16, 16, 1, False)
    assert ours(64, 64, 64, 1, False, plain=False)


CODE = """
import test_mimo_matmul as t
t._matmul_rule.CPU_SHORT = 0  # the kernels, not torch's product
for dtype in t.DTYPES:
    for flags in t.FLAGS:
        for size in ((1, 1, 1), (2, 3, 1), (4, 4, 2), (5, 7, 3), (8, 8, 8), (3, 4, 5), (17, 9, 13), (64, 2, 24), (2, 64, 1)):
            t._check(*t._pair(*size, (37,), flags, dtype), flags, "levels")
            t._check(*t._pair(*size, (3, 1), flags, dtype, (7,)), flags, "levels")
for flags in t.FLAGS:
    t.test_views("column stride", flags)
for dtype in t.DTYPES:
    t.test_number_times_row((False, True), dtype)
t.test_number_times_row_non_finite((1, 3))
t.test_split_batch_same_bits((4, 4, 1))
t.test_split_batch_same_bits((4, 4, 8))
"""


@pytest.mark.parametrize("level", OTHERS)
def test_other_instruction_sets(level):
    """The same bounds and the same bits of a split batch at the levels that the tests above do not run."""
    run_at(level, CODE)
