"""waterfill_step_authors: the variants of the authors' published code, against NumPy in double precision."""

import itertools

import numpy as np
import pytest
import torch
import waterfill_cases as cases
from sf_testing import draw, same_bits, shadow_memory, unit, within

import semcom_fast as sf

DTYPES = (torch.float32, torch.float64)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
VARIANTS = list(itertools.product(("amplitude", "variance"), (True, False), ("own", "common")))
variants = pytest.mark.parametrize("topup, renorm, base", VARIANTS)


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with sf.use_backend(request.param):
        yield request.param


def _state(shape, dtype, per_real=False):
    """f, g, d, x0, noise with d uniform in [0.02, 1]."""
    f, g, x0, noise = (draw(*shape, seed=i, dtype=dtype) for i in range(4))
    half = shape[-1] if per_real else shape[-1] // 2
    d = torch.rand(*shape[:-1], half, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return f, g, (0.02 + 0.98 * d).to(dtype), x0, noise


def _bounds(args, t, s, topup, renorm, base):
    """Sizes of the terms behind f and g, entry by entry.

    The amplitude sqrt(beta) - sqrt(r b) cancels, so its error is measured against sqrt(beta). A renormalised g also
    carries the relative error of its own root mean square, at most the largest relative error of its square's sum.
    """
    f, g, d, x0, noise = (a.double().numpy() for a in args)
    t, s = cases.column(t, f.ndim), cases.column(s, f.ndim)
    own = np.minimum(cases.per_real(d, f.shape[-1]), t)
    start, origin = (own, f) if base == "own" else (np.broadcast_to(t, own.shape), g)
    a, _ = cases.ddim(start, np.broadcast_to(s, start.shape))
    # B = sqrt(1-beta_s) - A sqrt(1-b) cancels where b is near beta_s: its error is that of its two terms
    terms = np.sqrt(1 - s) + a * np.sqrt(1 - start)
    size_f = np.where((own >= s) & (own > 0), np.abs(a * origin) + terms * np.abs(x0), np.abs(f))
    size_g = size_f + np.sqrt(s) * np.abs(noise)
    if renorm:
        _, raw = cases.step_authors(f, g, d, x0, t, s, noise, topup=topup, renorm=False, base=base)
        axes = tuple(range(1, f.ndim))
        rms = np.sqrt((raw**2).mean(axes, keepdims=True))
        size_g = size_g / rms + np.abs(raw) / rms * np.sqrt((size_g**2).mean(axes, keepdims=True)) / rms
    return torch.from_numpy(size_f), torch.from_numpy(size_g)


def _check(args, beta_t, beta_s, label, *, topup="amplitude", renorm=True, base="own"):
    dtype = args[0].dtype
    t, s = cases.rounded(beta_t, dtype), cases.rounded(beta_s, dtype)
    options = {"topup": topup, "renorm": renorm, "base": base}
    values = [a.double().numpy() for a in args]
    want = cases.step_authors(*values[:4], t, s, values[4], **options)
    shadow_memory(args[0].numel() * args[0].element_size())
    got = sf.waterfill_step_authors(*args[:4], beta_t, beta_s, noise=args[4], **options)
    name = f"{label} {str(dtype)[6:]}"
    for kind, a, b, size in zip("fg", got, want, _bounds(args, t, s, **options), strict=True):
        within(a, torch.from_numpy(b), 10 * unit(dtype) * size, f"{name} {kind}")
    return got


@dtypes
@variants
@pytest.mark.parametrize("shape", [(1, 2), (3, 34), (2, 3, 10), (1, 2050)])
def test_variants(shape, topup, renorm, base, dtype, backend):
    """All eight variants, masked update and top-up together."""
    _check(_state(shape, dtype), 0.6, 0.45, f"authors {backend}", topup=topup, renorm=renorm, base=base)


@dtypes
@variants
def test_level_per_real_and_per_image(topup, renorm, base, dtype, backend):
    """d per real, levels [B]."""
    t = torch.tensor([0.9, 0.5, 0.3], dtype=torch.float64)
    options = {"topup": topup, "renorm": renorm, "base": base}
    _check(_state((3, 34), dtype, per_real=True), t, 0.8 * t, f"authors levels {backend}", **options)


@dtypes
@pytest.mark.parametrize("beta_t, beta_s", [(1.0, 1.0), (0.5, 0.5), (1.0, 0.9), (0.5, 1e-6), (1 - 1e-6, 0.7)])
def test_level_pairs(beta_t, beta_s, dtype, backend):
    """The first call (equal levels: only the top-up acts) and the ends of the authors' grid."""
    args = _state((3, 34), dtype)
    f, _ = _check(args, beta_t, beta_s, f"authors pairs {backend}")
    if beta_t == beta_s:
        within(f, args[0], 4 * unit(dtype) * (args[0].abs() + args[3].abs()).double(), "equal levels leave f")


@dtypes
@pytest.mark.parametrize("base", ["own", "common"])
@pytest.mark.parametrize("how_many", ["one", "all"])
def test_noise_free_elements(how_many, base, dtype, backend):
    """d = 0 is never active while beta_s > 0 (the published division by sqrt(b) gives NaN there): f keeps its bits."""
    args = list(_state((2, 16), dtype))
    args[2] = args[2].clone()
    at = (slice(None), slice(None)) if how_many == "all" else (0, 3)
    args[2][at] = 0
    for renorm, beta_s in ((True, 0.45), (False, 0.01)):
        f, _ = _check(args, 0.6, beta_s, f"authors d = 0 {backend}", base=base, renorm=renorm)
        still = (args[2] == 0).repeat(1, 2)
        same_bits(f[still], args[0][still], "noise-free elements")


@dtypes
@pytest.mark.parametrize("base", ["own", "common"])
def test_last_level_zero(base, dtype, backend):
    """At beta_s = 0 every element becomes x0, the noise-free ones too, and g = f needs no top-up."""
    args = list(_state((2, 16), dtype))
    args[2] = args[2].clone()
    args[2][0, 3] = 0
    f, g = sf.waterfill_step_authors(*args[:4], 0.3, 0.0, noise=args[4], renorm=False, base=base)
    same_bits(f, args[3], "f at level 0")
    same_bits(g, args[3], "g at level 0")


@dtypes
def test_unit_rms(dtype, backend):
    """renorm=True: g has unit root mean square over all dims but the first; f is not touched by it."""
    args = _state((3, 4, 34), dtype)
    f, g = sf.waterfill_step_authors(*args[:4], 0.6, 0.45, noise=args[4])
    power = (g.double() ** 2).mean((1, 2))
    within(power, torch.ones(3).double(), 8 * unit(dtype), f"unit RMS {backend}")
    plain_f, plain_g = sf.waterfill_step_authors(*args[:4], 0.6, 0.45, noise=args[4], renorm=False)
    same_bits(f, plain_f, "f with and without renorm")
    factor = g.double() / plain_g.double()
    within(factor, factor[:, :1, :1].expand(factor.shape), 4 * unit(dtype) * factor, "one factor per image")


@dtypes
def test_rms_of_a_large_image(dtype, backend):
    """The squares of a long row are summed without losing digits: 2^17 reals far from zero mean."""
    n = 2**17
    f = 1 + 1e-3 * draw(1, n, seed=1, dtype=dtype)
    d = torch.full((1, n // 2), 0.5, dtype=dtype)
    _, g = sf.waterfill_step_authors(f, f, d, f, 0.5, 0.5, noise=torch.zeros_like(f))
    within((g.double() ** 2).mean(-1), torch.ones(1).double(), 8 * unit(dtype), f"RMS of 2^17 reals {backend}")


@dtypes
def test_variance_topup_without_renorm_is_water_filling(dtype, backend):
    """topup="variance", renorm=False, base="common" is waterfill_step, step after step."""
    f0, _, d, _, _ = _state((3, 34), dtype)
    levels = [0.9, 0.6, 0.3, 0.1]
    noise = [draw(3, 34, seed=30 + k, dtype=dtype) for k in range(len(levels))]
    g = state_g = sf.waterfill_inject(f0, d, levels[0], noise=noise[0])
    state_f = f0
    for k, (t, s) in enumerate(itertools.pairwise(levels)):
        x0 = 0.5 * torch.tanh(g)
        g = sf.waterfill_step(g, x0, f0, d, t, s, noise=noise[k + 1])
        state_f, state_g = sf.waterfill_step_authors(
            state_f, state_g, d, x0, t, s, topup="variance", renorm=False, base="common", noise=noise[k + 1]
        )
        size = 2 * (1 + f0.abs() + noise[k + 1].abs()).double()
        within(state_g, g, 8 * (k + 1) * unit(dtype) * size, f"water-filling by the authors' step {backend}")


def test_amplitude_topup_injects_too_little(backend):
    """Effective noise after the amplitude top-up: r b + (sqrt(beta) - sqrt(r b))^2 < beta, half of it at worst."""
    beta, b = 0.5, torch.linspace(0, 0.5, 501, dtype=torch.float64)
    d, zero, one = b[None], torch.zeros(1, 1002).double(), torch.ones(1, 1002).double()
    _, add = sf.waterfill_step_authors(zero, zero, d, zero, beta, beta, noise=one, renorm=False)
    carried = b * (1 - beta) / (1 - b)
    level = carried + add[0, :501] ** 2
    within(level, carried + (beta**0.5 - carried.sqrt()) ** 2, 1e-14, "amplitude top-up")
    inner = level[1:-1]
    assert bool((inner < beta).all()) and abs(float(inner.min()) - 0.5 * beta) < 1e-4
    _, right = sf.waterfill_step_authors(zero, zero, d, zero, beta, beta, noise=one, renorm=False, topup="variance")
    within(carried + right[0, :501] ** 2, torch.full_like(b, beta), 1e-14, "variance top-up")


@dtypes
@variants
def test_philox_is_stream_six(topup, renorm, base, dtype, backend):
    """seed= draws philox_normal of stream 6."""
    args = _state((3, 34), dtype)
    key = {"seed": 2**63 + 5, "step": 7, "first_item": 40}
    options = {"topup": topup, "renorm": renorm, "base": base}
    noise = sf.philox_normal((3, 34), **key, stream=6, dtype=dtype)
    want = sf.waterfill_step_authors(*args[:4], 0.6, 0.45, noise=noise, **options)
    got = sf.waterfill_step_authors(*args[:4], 0.6, 0.45, **key, **options)
    same_bits(got[0], want[0], "f")
    same_bits(got[1], want[1], "g")


@pytest.mark.parametrize("name, value", [("topup", "power"), ("base", "mine"), ("topup", None), ("base", 1)])
def test_options(name, value):
    """Unknown variants are refused with their name and the choices."""
    args = _state((2, 16), torch.float64)
    with pytest.raises((ValueError, TypeError), match=rf"^waterfill_step_authors: {name}"):
        sf.waterfill_step_authors(*args[:4], 0.6, 0.45, noise=args[4], **{name: value})
