"""rzf_precode and rzf_matrix: shapes, kinds, broadcasting, views, arrays, empty batches and traced calls."""

import numpy as np
import pytest
import torch
from rzf_cases import precode_bound, textbook
from sf_testing import DTYPES, draw, same_bits, wide, within

import semcom_fast as sf

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
backends = pytest.mark.parametrize("backend", ["cpu", "reference"])


def _pair(dtype=torch.complex64):
    return draw(3, 5, 4, 6, seed=1, dtype=dtype), draw(3, 5, 4, seed=2, dtype=dtype)


@pytest.mark.parametrize("name", ["h", "s"])
def test_kinds(name):
    """Real, integer, mixed precision, lists and None are TypeErrors that name op and argument."""
    args = dict(zip("hs", _pair(), strict=True))
    for wrong, message in (
        (args[name].real.clone(), f"rzf_precode: {name} is float32 but must be complex64 or complex128"),
        (args[name].real.long(), f"rzf_precode: {name} is int64 but must be"),
        ([1.0], f"rzf_precode: {name} must be a tensor, got list"),
        (args[name].to(torch.complex128), "rzf_precode: .*nothing is cast silently"),
    ):
        with pytest.raises(TypeError, match=message):
            sf.rzf_precode(**(args | {name: wrong}), alpha=0.1)
    with pytest.raises(ValueError, match=r"^rzf_precode: .* on (meta|cpu) but .* on (meta|cpu)"):
        sf.rzf_precode(**(args | {name: args[name].to("meta")}), alpha=0.1)
    with pytest.raises(TypeError, match=r"^rzf_matrix: h is float32"):
        sf.rzf_matrix(args["h"].real.clone(), 0.1)


SHAPES = [
    ((3, 5, 4, 6), (3, 5, 5)),
    ((3, 5, 4, 6), (3, 5, 6)),
    ((3, 5, 4, 6), (3, 5, 5, 4)),
    ((3, 5, 4, 6), (2, 5, 4)),
    ((3, 5, 4, 6), (3, 4, 4, 2)),
    ((4, 6), (6,)),
    ((4, 6), ()),
    ((4,), (4,)),
    ((), (4,)),
    ((3, 0, 6), (3, 0)),
    ((3, 4, 0), (3, 4)),
]


@pytest.mark.parametrize("h, s", SHAPES)
def test_shapes_are_shown(h, s):
    """What does not fit is a ValueError that shows the pattern and the shapes that were given."""
    with pytest.raises(ValueError, match=r"^rzf_precode: need h \[...,K,M\] and s") as caught:
        sf.rzf_precode(draw(*h), draw(*s), 0.1)
    assert f"h {h}" in str(caught.value)
    if len(h) < 2 or 0 in h:
        with pytest.raises(ValueError, match=r"^rzf_matrix: need h \[...,K,M\]"):
            sf.rzf_matrix(draw(*h), 0.1)


@pytest.mark.parametrize("shape", [(2,), (5,), (3, 4), (1, 2), (3, 5, 1), (3, 5, 4)])
def test_alpha_that_does_not_fit(shape):
    """alpha aligns from the left with the leading dims of the call; a misfit shows both."""
    h, s = _pair()
    with pytest.raises(ValueError, match=r"^rzf_precode: alpha .*\(3, 5\)") as caught:
        sf.rzf_precode(h, s, torch.ones(shape))
    assert str(shape) in str(caught.value)
    static, many = draw(20, 5, 1, 4, 6), draw(20, 5, 14, 4)
    with pytest.raises(ValueError, match=r"\(20, 5, 14\)"):
        sf.rzf_precode(static, many, torch.ones(7))


def test_kind_of_alpha():
    """Numbers, NumPy numbers, 0-d and integer tensors mean their value; complex, lists and strings are refused."""
    h, s = _pair(torch.complex128)
    want = sf.rzf_precode(h, s, 2.0)
    for alpha in (2, np.float64(2.0), np.int32(2), torch.tensor(2.0), torch.tensor(2), torch.tensor([2.0]),
                  torch.full((3,), 2.0), torch.full((3, 5), 2)):  # fmt: skip
        same_bits(sf.rzf_precode(h, s, alpha), want, f"{alpha!r}")
    for alpha in (2 + 0j, [2.0], "2", None, torch.tensor(2 + 0j)):
        with pytest.raises(TypeError, match=r"^rzf_precode: alpha"):
            sf.rzf_precode(h, s, alpha)
    with pytest.raises(ValueError, match=r"^rzf_precode: alpha is on meta"):
        sf.rzf_precode(h, s, torch.ones(3, device="meta"))


@pytest.mark.parametrize("number", [1e39, 1e300])
def test_alpha_beyond_the_precision(number):
    """A regulariser that float32 cannot hold is refused by name, not turned into Inf; complex128 takes it."""
    h, s = _pair()
    for alpha in (number, torch.tensor(number, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"^rzf_precode: alpha must be finite"):
            sf.rzf_precode(h, s, alpha)
        assert bool(torch.isfinite(sf.rzf_precode(*wide(h, s), alpha).abs()).all())
    # below the smallest float32 it is zero forcing
    same_bits(sf.rzf_precode(h, s, 1e-50), sf.rzf_precode(h, s, 0.0))


def test_other_choices():
    """form, power and power_dims outside their range name themselves."""
    h, s = _pair()
    for form in ("k", "U", 1):
        with pytest.raises(ValueError, match="form must be 'K', 'M' or None"):
            sf.rzf_precode(h, s, 0.1, form=form)
    for power in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^rzf_precode: power must be positive and finite"):
            sf.rzf_precode(h, s, 0.1, power=power)
    for dims in (-1, 3, 9):
        with pytest.raises(ValueError, match=rf"^rzf_precode: power_dims={dims} does not fit .*\(3, 5\)"):
            sf.rzf_precode(h, s, 0.1, power=1.0, power_dims=dims)


@dtypes
def test_vector_or_columns(dtype):
    """s is a vector exactly when it has one dim less than h, even where the sizes would allow the other reading."""
    h = draw(4, 4, 4, seed=3, dtype=dtype)
    s = draw(4, 4, seed=4, dtype=dtype)
    x = sf.rzf_precode(h, s, 0.2)
    assert x.shape == (4, 4)
    same_bits(x, sf.rzf_precode(h, s.unsqueeze(-1), 0.2).squeeze(-1))
    assert sf.rzf_precode(h[0], s, 0.2).shape == (4, 4)  # one channel, four streams
    same_bits(sf.rzf_precode(h[0], s, 0.2)[:, 1].contiguous(), sf.rzf_precode(h[0], s[:, 1], 0.2))


BROADCAST = [
    ((), (7,)),
    ((1,), (7,)),
    ((7,), (1,)),
    ((2, 1, 3), (5, 1)),
    ((2, 5, 1), (2, 1, 3)),
    ((3,), (2, 3)),
    ((2, 3), (3,)),
    ((1, 3), (2, 1)),
    ((1, 1), (1, 1)),
]


@dtypes
@pytest.mark.parametrize("own_h, own_s", BROADCAST)
def test_leading_dims_broadcast(own_h, own_s, dtype):
    """Leading dims of h and s broadcast like torch's, for columns and (with equal rank) for vectors; alpha from the left."""
    lead = torch.broadcast_shapes(own_h, own_s)
    h, s = draw(*own_h, 3, 4, seed=5, dtype=dtype), draw(*own_s, 3, 2, seed=6, dtype=dtype)
    levels = [
        0.3,
        *(torch.rand(lead[:n], generator=torch.Generator().manual_seed(n)) + 0.2 for n in range(len(lead) + 1)),
    ]
    if len(lead) > 1:
        levels.append(torch.rand(1, lead[1], generator=torch.Generator().manual_seed(9)) + 0.2)
    full_h, full_s = h.expand(*lead, 3, 4).contiguous(), s.expand(*lead, 3, 2).contiguous()
    if len(own_s) < len(own_h) or len(own_h) < len(
        own_s
    ):  # the rank of s says what it is: give h or s its missing dims
        h, s = (
            h.reshape(*(1,) * (len(lead) - len(own_h)), *h.shape),
            s.reshape(*(1,) * (len(lead) - len(own_s)), *s.shape),
        )
    for alpha in levels:
        want = textbook(full_h, full_s, alpha)
        bound = precode_bound(full_h, full_s, alpha, dtype, "K")
        x, info = sf.rzf_precode(h, s, alpha, return_info=True)
        within(x, want, bound, "broadcast columns")
        assert info.shape == lead and not info.any()
        within(sf.rzf_precode(h, s[..., 0], alpha), want[..., 0], bound[..., 0], "broadcast vectors")


@pytest.mark.parametrize("shape", [(20,), (20, 1, 1), (20, 5, 1), (1, 5), (20, 5), (20, 5, 14), (1, 1, 14), (1,), ()])
@pytest.mark.parametrize("items", [20, 2])
def test_alpha_beside_a_static_channel(items, shape):
    """Every alignment of alpha works whether or not the time axis is folded into right-hand sides."""
    shape = tuple(items if n == 20 else n for n in shape)
    h, s = draw(items, 5, 1, 4, 4, seed=7), draw(items, 5, 14, 4, seed=8)
    alpha = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    full = h.expand(items, 5, 14, 4, 4)
    bound = precode_bound(full, s[..., None], alpha, torch.complex128, "K")[..., 0]
    want = textbook(full, s[..., None], alpha)[..., 0]
    within(sf.rzf_precode(h, s, alpha), want, bound, "alpha beside a static channel")
    within(sf.rzf_precode(full, s, alpha), want, bound, "alpha beside a static channel")


@backends
@pytest.mark.parametrize("lead", [(0,), (0, 3), (3, 0), (2, 0, 4)])
@pytest.mark.parametrize("power", [None, 1.0])
def test_empty_batches(lead, power, backend):
    """Empty leading dims, and no right-hand sides at all, give empty results, with any alpha."""
    with sf.use_backend(backend):
        for alpha in (0.0, 0.3, torch.ones(lead), torch.ones(lead[:1]), torch.ones(())):
            x, info = sf.rzf_precode(draw(*lead, 4, 6), draw(*lead, 4), alpha, power=power, return_info=True)
            assert x.shape == (*lead, 6) and info.shape == lead and info.dtype is torch.int32
            assert sf.rzf_matrix(draw(*lead, 4, 6), alpha).shape == (*lead, 6, 4)
        x, info = sf.rzf_precode(draw(3, 4, 6), draw(3, 4, 0), 0.1, power=power, return_info=True)
        assert x.shape == (3, 6, 0) and info.shape == (3,)
        assert sf.rzf_precode(draw(5, 1, 4, 6), draw(5, 0, 4), 0.1, power=power).shape == (5, 0, 6)


VIEWS = {
    "strided": lambda t: torch.stack([t, 3 * t], -1)[..., 0],
    "transposed": lambda t: t.mT.contiguous().mT,
    "permuted": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "offset": lambda t: torch.cat([t.new_zeros(1), t.reshape(-1)])[1:].view(t.shape),
    "conj": lambda t: t.conj().resolve_conj().conj(),
    "adjoint": lambda t: t.mH.contiguous().mH,
    "neg": lambda t: torch._neg_view(-t),
    "conj of neg": lambda t: torch._neg_view(-t.conj().resolve_conj()).conj(),
}


@dtypes
@pytest.mark.parametrize("view", VIEWS)
def test_views(view, dtype):
    """Strided, misaligned, lazily conjugated and negated operands and levels give the bits of plain copies."""
    h, s = _pair(dtype)
    alpha, f = torch.rand(3, 5, generator=torch.Generator().manual_seed(2)).to(dtype.to_real()) + 0.1, VIEWS[view]
    for power in (None, 1.0):
        want = sf.rzf_precode(h, s, alpha, power=power)
        same_bits(sf.rzf_precode(f(h), f(s), alpha, power=power), want, view)
        if view in ("strided", "transposed", "permuted", "neg"):
            same_bits(sf.rzf_precode(h, s, f(alpha), power=power), want, f"alpha {view}")
    same_bits(sf.rzf_matrix(f(h), alpha), sf.rzf_matrix(h, alpha), view)
    g, results = draw(3, 5, 6, seed=9, dtype=dtype), []
    for view_of in (f, lambda t: t):
        leaves = [h.clone().requires_grad_(True), s.clone().requires_grad_(True)]
        results.append(torch.autograd.grad(sf.rzf_precode(*map(view_of, leaves), alpha), leaves, view_of(g)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert f(h).shape == h.shape and torch.equal(f(h), h)


@dtypes
def test_uplink_channel_by_adjoint_view(dtype):
    """An uplink channel [M,K] serves the downlink as h.mH, a conjugated view."""
    up, s = draw(9, 6, 4, seed=10, dtype=dtype), draw(9, 4, seed=11, dtype=dtype)
    assert up.mH.is_conj()
    same_bits(sf.rzf_precode(up.mH, s, 0.1), sf.rzf_precode(up.mH.resolve_conj().contiguous(), s, 0.1))


@dtypes
def test_arrays(dtype):
    """NumPy in, NumPy out, with the numbers of tensors, in any memory order; mixed kinds are a TypeError."""
    h, s = _pair(dtype)
    alpha = torch.rand(3, generator=torch.Generator().manual_seed(3)) + 0.1
    x = sf.rzf_precode(h, s, alpha, power=1.0)
    orders = (
        lambda a: a,
        np.asfortranarray,
        lambda a: a[::-1].copy()[::-1],
        lambda a: a.astype(a.dtype.newbyteorder(">")),
    )
    for order in orders:
        got, codes = sf.rzf_precode(*(order(t.numpy()) for t in (h, s, alpha)), power=1.0, return_info=True)
        assert type(got) is np.ndarray and type(codes) is np.ndarray and codes.dtype == np.int32
        same_bits(torch.from_numpy(got), x)
        assert not codes.any() and codes.shape == (3, 5)
    same_bits(torch.from_numpy(sf.rzf_matrix(h.numpy(), 0.2)), sf.rzf_matrix(h, 0.2))
    for args in ((h.numpy(), s), (h, s.numpy()), (h.numpy(), s.numpy(), alpha)):
        with pytest.raises(TypeError, match="mixed"):
            sf.rzf_precode(*args, *([0.1] if len(args) == 2 else []))


def test_compile_static_channel_and_number():
    """A stride-0 channel and a Python number inside a compiled function."""
    torch._dynamo.reset()

    def fn(h, s, alpha):
        return sf.rzf_precode(h.unsqueeze(-3).expand(-1, 7, -1, -1), s, alpha)

    h, s = draw(20, 3, 4, seed=1), draw(20, 7, 3, seed=2)
    got = torch.compile(fn, fullgraph=True, backend="aot_eager")(h, s, 0.4)
    within(got, fn(h, s, 0.4), 1e-14, "rzf compile static")
    torch._dynamo.reset()


def test_meta_tensors():
    """Shapes and dtypes without data."""
    h, s = (t.to("meta") for t in _pair())
    x, info = sf.rzf_precode(h, s, 0.1, power=1.0, return_info=True)
    assert x.is_meta and x.shape == (3, 5, 6) and info.shape == (3, 5) and info.dtype is torch.int32
    assert sf.rzf_matrix(h, 0.1).shape == (3, 5, 6, 4)
