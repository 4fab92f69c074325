"""waterfill_inject and waterfill_step: every branch against NumPy in double precision, masks, levels and edge cases."""

import numpy as np
import pytest
import torch
import waterfill_cases as cases
from sf_testing import draw, same_bits, shadow_memory, unit, within

import semcom_fast as sf

DTYPES = (torch.float32, torch.float64)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SHAPES = [(2,), (8,), (1, 2), (3, 2), (3, 16), (2, 34), (2, 3, 10), (1, 2050), (2, 2, 2, 66), (5, 130)]
PER_STEP = 2e-6  # what a float32 step may err, relative to its terms; most tests below use a tighter count of roundings


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with sf.use_backend(request.param):
        yield request.param


def _state(shape, dtype, per_real=False, seed=0):
    """g, x0, f, d, noise: d uniform, so that every level splits the elements."""
    g, x0, f, noise = (draw(*shape, seed=seed + i, dtype=dtype) for i in range(4))
    half = shape[-1] if per_real else shape[-1] // 2
    d = torch.rand(*shape[:-1], half, generator=torch.Generator().manual_seed(seed + 9), dtype=torch.float64)
    return g, x0, f, d.to(dtype), noise


def _np(*tensors):
    return [t.double().numpy() for t in tensors]


def _terms(level, f, d, noise):
    """|sqrt(r) f| + |sqrt(1-r) noise| of an injection."""
    return cases.inject(np.abs(f), d, level, np.abs(noise))


def _check_step(args, beta_t, beta_s, label, growth=8, **extra):
    """Against NumPy within `growth` roundings of |A g| + |B x0| (active) or |sqrt(r) f| + |sqrt(1-r) noise| (waiting)."""
    g, x0, f, d, noise = args
    dtype = g.dtype
    t, s = cases.rounded(beta_t, dtype), cases.rounded(beta_s, dtype)
    gn, xn, fn, dn, nn = _np(*args)
    want, active = cases.step(gn, xn, fn, dn, t, s, nn)
    a, b = cases.ddim(cases.column(t, g.ndim), cases.column(s, g.ndim))
    size = np.where(active, np.abs(a * gn) + np.abs(b * xn), _terms(s, fn, dn, nn))
    shadow_memory(g.numel() * g.element_size())
    got = sf.waterfill_step(g, x0, f, d, beta_t, beta_s, noise=noise, **extra)
    assert got.dtype is dtype and got.is_contiguous()
    within(got, torch.from_numpy(want), growth * unit(dtype) * torch.from_numpy(size), f"{label} {str(dtype)[6:]}")
    assert growth * unit(torch.float32) < PER_STEP
    return got, torch.from_numpy(active)


@dtypes
@pytest.mark.parametrize("per_real", [False, True], ids=["d per symbol", "d per real"])
@pytest.mark.parametrize("shape", SHAPES)
def test_step(shape, per_real, dtype, backend):
    """Active and waiting elements together, for sizes around the vector width and d of both lengths."""
    _check_step(_state(shape, dtype, per_real), 0.6, 0.45, f"step {backend}")


@dtypes
@pytest.mark.parametrize("per_real", [False, True], ids=["d per symbol", "d per real"])
@pytest.mark.parametrize("shape", SHAPES)
def test_inject(shape, per_real, dtype, backend):
    """(23): levels above 0.4 copy their element, the others are brought to 0.4."""
    _, _, f, d, noise = _state(shape, dtype, per_real)
    level = cases.rounded(0.4, dtype)
    want = cases.inject(*_np(f, d), level, *_np(noise))
    got = sf.waterfill_inject(f, d, 0.4, noise=noise)
    size = torch.from_numpy(_terms(level, *_np(f, d, noise)))
    within(got, torch.from_numpy(want), 6 * unit(dtype) * size, f"inject {backend} {str(dtype)[6:]}")
    copied = torch.from_numpy(np.broadcast_to(cases.per_real(d.double().numpy(), shape[-1]) >= level, shape).copy())
    same_bits(got[copied], f[copied], "elements that miss nothing")


LEVELS = [(1.0, 1.0), (1.0, 0.5), (0.9, 0.9 - 1e-7), (0.5, 1e-6), (1e-3, 1e-3), (0.3, 0.0), (1e-6, 0.0), (1.0, 0.0)]


@dtypes
@pytest.mark.parametrize("beta_t, beta_s", LEVELS)
def test_level_pairs(beta_t, beta_s, dtype, backend):
    """Both ends, close pairs and equal ones; beta_s = 0 returns x0 itself wherever d >= 0, that is everywhere."""
    args = _state((3, 34), dtype)
    got, active = _check_step(args, beta_t, beta_s, f"step pairs {backend}")
    if beta_s == 0:
        assert active.all()
        same_bits(got, args[1], "the last step")


@dtypes
def test_level_up(dtype, backend):
    """beta_s above beta_t (a grid that runs upward at high SNR) is the same formula."""
    _check_step(_state((3, 34), dtype), 0.2, 0.25, f"step up {backend}")


@dtypes
@pytest.mark.parametrize("kind", ["0-d", "[1]", "[B]", "float32 [B]", "[B,1]", "[B,U]"])
@pytest.mark.parametrize("which", ["beta_t", "beta_s", "both"])
def test_level_tensors(which, kind, dtype, backend):
    """Levels as tensors, alone beside a number and together: formed in float64, rounded once to the state's dtype."""
    base = {"0-d": (), "[1]": (1,), "[B]": (3,), "float32 [B]": (3,), "[B,1]": (3, 1), "[B,U]": (3, 2)}[kind]
    t = torch.linspace(0.51, 0.9, int(np.prod(base)), dtype=torch.float64).reshape(base)
    s = 0.9 * t
    if kind == "float32 [B]":
        t, s = t.float(), s.float()
    _check_step(
        _state((3, 2, 10), dtype),
        t if which != "beta_s" else 0.7,
        s if which != "beta_t" else 0.4,
        f"step tensors {backend}",
    )


@dtypes
def test_zero_level_returns_the_state(dtype, backend):
    """beta_t = 0 is the end of a run: g comes back bit for bit, per item when the level is [B]."""
    args = _state((3, 16), dtype)
    for zero in (0.0, 0, torch.tensor(0.0), torch.zeros(3)):
        for last in (0.0, 0.5):
            same_bits(sf.waterfill_step(*args[:4], zero, last, noise=args[4]), args[0], "beta_t = 0")
    t, s = torch.tensor([0.5, 0.0, 0.7]), torch.tensor([0.2, 0.0, 0.0])
    got, _ = _check_step(args, t, s, f"step with an item at its end {backend}")
    same_bits(got[1], args[0][1], "beta_t[1] = 0")


@dtypes
def test_identity_step(dtype, backend):
    """beta_s = beta_t moves no active element at all."""
    args = _state((3, 16), dtype)
    got, active = _check_step(args, 0.5, 0.5, f"step identity {backend}")
    same_bits(got[active], args[0][active], "A = 1, B = 0")


def _ulp(value, dtype, to):
    return torch.nextafter(torch.tensor(value, dtype=dtype), torch.tensor(to, dtype=dtype))


@dtypes
@pytest.mark.parametrize("level", [0.3, 0.1, 0.7, 1e-3, 1 / 3])
def test_one_ulp_around_the_level(level, dtype, backend):
    """d one ulp above, at and below the rounded level: copied, copied, and injected with the exact missing variance."""
    beta = torch.tensor(level, dtype=torch.float64).to(dtype)
    own = torch.stack([_ulp(float(beta), dtype, 2.0), beta, _ulp(float(beta), dtype, -1.0)])
    d = own.repeat(2, 1)
    f, noise, g, x0 = (draw(2, 6, seed=i, dtype=dtype) for i in range(4))
    got = sf.waterfill_inject(f, d, level, noise=noise)
    copied = torch.tensor([True, True, False] * 2).expand(2, 6)
    same_bits(got[copied], f[copied], "b = beta and b > beta by one ulp")
    want = cases.inject(*_np(f, d), float(beta), *_np(noise))
    size = _terms(float(beta), *_np(f, d, noise))
    within(got, torch.from_numpy(want), 6 * unit(dtype) * torch.from_numpy(size), f"one ulp {backend}")
    gain = ((beta.double() - own[2].double()) / (1 - own[2].double())).sqrt()  # the square root of one ulp is not small
    assert float(gain) > 0.5 * unit(dtype) ** 0.5 * float(beta) ** 0.5
    moved = sf.waterfill_step(g, x0, f, d, 0.9, level, noise=noise)
    same_bits(moved[~copied], got[~copied], "waiting elements of the step")
    assert not torch.equal(moved[copied], f[copied])


@dtypes
@pytest.mark.parametrize("d", [0.0, 1.0, 1 - 1e-12, 1 - 2.0**-24, 0.4, 1e-30], ids=str)
def test_extreme_d(d, dtype, backend):
    """All elements noise-free, almost pure noise (1 - 1e-12 is 1 in float32), or equal: finite and as defined."""
    args = list(_state((2, 16), dtype))
    args[3] = torch.full((2, 8), d, dtype=torch.float64).to(dtype)
    for t, s in ((0.9, 0.5), (1.0, 1.0), (0.4, 0.4), (0.4, 0.0)):
        _check_step(args, t, s, f"extreme d {backend}")
        level = cases.rounded(s, dtype)
        got = sf.waterfill_inject(args[2], args[3], s, noise=args[4])
        want = cases.inject(*_np(args[2], args[3]), level, *_np(args[4]))
        size = torch.from_numpy(_terms(level, *_np(args[2], args[3], args[4])))
        within(got, torch.from_numpy(want), 6 * unit(dtype) * size, f"extreme d inject {backend}")


@dtypes
def test_one_noise_free_element(dtype, backend):
    """A single d = 0 among others; its injection is sqrt(1-beta) f + sqrt(beta) n, and the last step still replaces it."""
    args = list(_state((2, 16), dtype))
    args[3] = args[3].clone()
    args[3][0, 3] = 0
    _check_step(args, 0.6, 0.5, f"one d = 0 {backend}")
    f, noise = args[2].double(), args[4].double()
    got = sf.waterfill_inject(args[2], args[3], 0.25, noise=args[4])[0, [3, 11]]
    want = 0.75**0.5 * f[0, [3, 11]] + 0.5 * noise[0, [3, 11]]
    within(got, want, 4 * unit(dtype) * (f[0, [3, 11]].abs() + noise[0, [3, 11]].abs()), "injection into d = 0")


@dtypes
def test_injected_variance(dtype, backend):
    """r(1-b) = 1-beta and r b + (1-r) = beta: gains measured with unit inputs, for b from 0 to beta."""
    d = torch.linspace(0, 0.8, 33, dtype=torch.float64).to(dtype)[None]
    one, zero = torch.ones(1, 66, dtype=dtype), torch.zeros(1, 66, dtype=dtype)
    level = cases.rounded(0.8, dtype)
    keep = sf.waterfill_inject(one, d, 0.8, noise=zero).double()[0, :33] ** 2
    add = sf.waterfill_inject(zero, d, 0.8, noise=one).double()[0, :33] ** 2
    b = d[0].double().clamp(max=float(level))
    within(keep * (1 - b), torch.full_like(b, 1 - float(level)), 12 * unit(dtype), f"r(1-b) {backend}")
    within(keep * b + add, torch.full_like(b, float(level)), 12 * unit(dtype), f"r b + 1 - r {backend}")


@dtypes
@pytest.mark.parametrize("guidance", [4.0, 1.0, 0.0, -0.5, "[B]", "0-d"], ids=str)
def test_guidance(guidance, dtype, backend):
    """x0 <- w x0 + (1-w) x0_uncond, for numbers, 0-d and per-image weights."""
    g, x0, f, d, noise = _state((3, 16), dtype)
    uncond = draw(3, 16, seed=20, dtype=dtype)
    w = {"[B]": torch.tensor([4.0, 1.0, 0.3], dtype=torch.float64), "0-d": torch.tensor(2.5, dtype=torch.float64)}.get(
        guidance, guidance
    )
    wn = cases.column(torch.as_tensor(w, dtype=torch.float64).numpy())
    t, s = cases.rounded(0.6, dtype), cases.rounded(0.45, dtype)
    gn, xn, un, fn, dn, nn = _np(g, x0, uncond, f, d, noise)
    want, active = cases.step(gn, wn * xn + (1 - wn) * un, fn, dn, t, s, nn)
    a, b = cases.ddim(t, s)
    size = np.where(active, abs(a * gn) + abs(b) * (abs(wn * xn) + (abs(wn) + 1) * abs(un)), _terms(s, fn, dn, nn))
    got = sf.waterfill_step(g, x0, f, d, 0.6, 0.45, x0_uncond=uncond, guidance=w, noise=noise)
    within(got, torch.from_numpy(want), 10 * unit(dtype) * torch.from_numpy(size), f"guidance {backend}")


@dtypes
@pytest.mark.parametrize("ratio", [1.0, 0.4, -1.7, "[B]"], ids=str)
@pytest.mark.parametrize("guided", [False, True])
def test_second_order(guided, ratio, dtype, backend):
    """2M: D = (1 + 1/2r) x0 - x0_prev/2r, where nothing waits; with guidance applied first."""
    g, x0, f, _, _ = _state((3, 16), dtype)
    prev, uncond = draw(3, 16, seed=21, dtype=dtype), draw(3, 16, seed=22, dtype=dtype)
    d = torch.full((3, 8), 0.8, dtype=dtype)
    r = torch.tensor([1.0, 0.25, -2.0], dtype=torch.float64) if ratio == "[B]" else ratio
    rn = cases.column(torch.as_tensor(r, dtype=torch.float64).numpy())
    t, s = cases.rounded(0.6, dtype), cases.rounded(0.45, dtype)
    gn, xn, pn, un = _np(g, x0, prev, uncond)
    x, size = (2 * xn - un, 2 * abs(xn) + abs(un)) if guided else (xn, abs(xn))
    a, b = cases.ddim(t, s)
    want = a * gn + b * ((1 + 0.5 / rn) * x - 0.5 / rn * pn)
    size = abs(a * gn) + abs(b) * ((1 + abs(0.5 / rn)) * size + abs(0.5 / rn * pn))
    extra = {"x0_uncond": uncond, "guidance": 2.0} if guided else {}
    got = sf.waterfill_step(g, x0, f, d, 0.6, 0.45, x0_prev=prev, ratio=r, seed=1, **extra)
    within(got, torch.from_numpy(want), 12 * unit(dtype) * torch.from_numpy(size), f"2M {backend}")


@pytest.mark.parametrize("kind", ["x0", "guided", "2M"])
def test_bfloat16_predictions(kind, backend):
    """bfloat16 x0 beside a float32 state is the step on the same values in float32, bit for bit."""
    g, x0, f, d, noise = _state((3, 34), torch.float32)
    extra = {
        "x0": {},
        "guided": {"x0_uncond": draw(3, 34, seed=20, dtype=torch.float32).bfloat16(), "guidance": 3.0},
        "2M": {"x0_prev": draw(3, 34, seed=21, dtype=torch.float32).bfloat16(), "ratio": 0.7},
    }[kind]
    d = torch.full_like(d, 0.9) if kind == "2M" else d
    low = x0.bfloat16()
    got = sf.waterfill_step(g, low, f, d, 0.6, 0.45, noise=noise, **extra)
    wide = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in extra.items()}
    same_bits(got, sf.waterfill_step(g, low.float(), f, d, 0.6, 0.45, noise=noise, **wide), "bfloat16")
    assert got.dtype is torch.float32


@dtypes
def test_philox_is_stream_six(dtype, backend):
    """seed= draws philox_normal of (seed, step, stream 6, first_item); 64-bit seeds and tensors too."""
    g, x0, f, d, _ = _state((3, 2, 34), dtype)
    for seed in (5, 2**63 + 11):
        key = {"seed": seed, "step": 7, "first_item": 40}
        noise = sf.philox_normal((3, 2, 34), **key, stream=6, dtype=dtype)
        want = sf.waterfill_step(g, x0, f, d, 0.6, 0.45, noise=noise)
        same_bits(sf.waterfill_step(g, x0, f, d, 0.6, 0.45, **key), want, "step draws stream 6")
        same_bits(
            sf.waterfill_inject(f, d, 0.45, **key),
            sf.waterfill_inject(f, d, 0.45, noise=noise),
            "inject draws stream 6",
        )
        bits = torch.tensor(seed - 2**64 if seed >= 2**63 else seed)
        got = sf.waterfill_step(g, x0, f, d, 0.6, 0.45, seed=bits, step=torch.tensor(7), first_item=40)
        same_bits(got, want, "seed and step as tensors")
    assert not torch.equal(want, sf.waterfill_step(g, x0, f, d, 0.6, 0.45, seed=seed, step=8, first_item=40))


@dtypes
def test_one_row_is_one_item(dtype, backend):
    """A state [N] is one item: the same bits as [1, N], draws included."""
    g, x0, f, d, _ = _state((34,), dtype)
    for args in ((f, d),):
        got = sf.waterfill_inject(*args, 0.5, seed=3, first_item=4)
        same_bits(got, sf.waterfill_inject(*[a[None] for a in args], 0.5, seed=3, first_item=4)[0], "inject [N]")
    got = sf.waterfill_step(g, x0, f, d, 0.7, 0.5, seed=3, first_item=4)
    rows = [t[None] for t in (g, x0, f, d)]
    same_bits(got, sf.waterfill_step(*rows, 0.7, 0.5, seed=3, first_item=4)[0], "step [N]")


@dtypes
def test_step_is_inject_where_waiting(dtype, backend):
    """Waiting elements are exactly what waterfill_inject makes of f~ at beta_s: the old g never enters."""
    g, x0, f, d, noise = _state((3, 34), dtype)
    got = sf.waterfill_step(g, x0, f, d, 0.6, 0.45, noise=noise)
    waiting = (d < cases.rounded(0.45, dtype).item()).repeat(1, 2)
    same_bits(got[waiting], sf.waterfill_inject(f, d, 0.45, noise=noise)[waiting], "waiting")
    other = sf.waterfill_step(g + 1, 2 * x0, f, d, 0.6, 0.45, noise=noise)
    same_bits(got[waiting], other[waiting], "independent of g and x0")
    active = ~waiting
    third = sf.waterfill_step(g, x0, f + 1, d, 0.6, 0.45, noise=noise + 1)
    same_bits(got[active], third[active], "active elements never see f or noise")


@dtypes
@pytest.mark.parametrize("n", [2, 6, 16, 18, 32, 34, 50, 66])
def test_layout_of_d_changes_no_bit(n, dtype, backend):
    """d per symbol, per real, and one level per image as an expanded view: the same bits wherever an element lies."""
    g, x0, f, d, noise = _state((3, n), dtype)
    wide = d.repeat(1, 2)
    for fn in (
        lambda own: sf.waterfill_step(g, x0, f, own, 0.6, 0.45, noise=noise),
        lambda own: sf.waterfill_inject(f, own, 0.45, noise=noise),
        lambda own: sf.waterfill_step(g, x0, f, own, 0.6, 0.45, seed=3),
        lambda own: sf.waterfill_step_authors(f, g, own, x0, 0.6, 0.45, noise=noise, renorm=False)[1],
    ):
        same_bits(fn(wide), fn(d), "d per real and per symbol")
        one = d[:, :1]
        want = fn(one.repeat(1, n))
        for own in (one.expand(3, n), one.expand(3, n // 2), one.repeat(1, n // 2)):
            same_bits(fn(own), want, "one level per image")


def test_backends_share_masks():
    """The same float32 d against the same float32 level: masks of both backends agree on levels made to tie."""
    g, x0, f, d, noise = _state((4, 512), torch.float32)
    for k, level in enumerate(torch.rand(20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)):
        d[:, 13 * k : 13 * k + 5] = level.float()
        masks = []
        for backend in ("cpu", "reference"):
            with sf.use_backend(backend):
                out = sf.waterfill_step(g, torch.full_like(x0, 1e4), f, d, 1.0, float(level), noise=noise)
            masks.append(out.abs() > 100)
        assert torch.equal(*masks)
        assert torch.equal(masks[0], (d >= level.float()).repeat(1, 2))
