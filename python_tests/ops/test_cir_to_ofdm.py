"""cir_to_ofdm: the sum of phasors, exact cases, the FFT, places of the frequency axis, shared delays, gradients."""

import math

import forward_modes
import numpy as np
import pytest
import torch
from sf_testing import DTYPES, dot_growth, draw, same_bits, shadow_memory, unit, wide, within
from torch.autograd import gradcheck, gradgradcheck

import semcom_fast as sf
from semcom_fast import reference

NAN, INF = float("nan"), float("inf")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
backends = pytest.mark.parametrize("backend", ["cpu", "reference"])
SPACING = 15e3


def _grid(f, spacing=SPACING):
    return (torch.arange(f, dtype=torch.float64) - f // 2) * spacing


def _delays(*shape, seed=0, dtype=torch.complex128):
    return (draw(*shape, seed=seed, dtype=torch.float64).abs() * 3e-6).to(dtype.to_real())


def definition(gains, delays, frequencies):
    """sum_p gains_p exp(-j 2 pi f tau_p), in double precision, frequencies last."""
    angle = -2 * math.pi * torch.remainder(wide(delays)[0].unsqueeze(-1) * wide(frequencies)[0], 1.0)
    return (wide(gains)[0].unsqueeze(-1) * torch.polar(torch.ones_like(angle), angle)).sum(-2)


def bound(gains, delays, frequencies, dtype):
    """Phases: the product f tau rounds once in double, 2 pi |f tau| 2^-53; the angle has a grid of 2^-24 turns, 2 pi units
    of float32, and sine and cosine err by 2 units each; then a sum of P products."""
    turns = (wide(delays)[0].unsqueeze(-1) * wide(frequencies)[0]).abs()
    phase = (2 * math.pi + 4) * unit(dtype) + 4 * math.pi * (turns + 1) * 2.0**-53
    size = gains.abs().double().unsqueeze(-1)
    return (size * (phase + dot_growth(gains.shape[-1]) * unit(dtype))).sum(-2)


@backends
@dtypes
@pytest.mark.parametrize("p", [1, 2, 3, 23, 24])
@pytest.mark.parametrize("f", [1, 7, 32, 64, 67, 128, 131])
def test_definition(f, p, dtype, backend):
    """Counts of subcarriers and paths that fill packs and tiles, and ones that do not."""
    gains, delays = draw(3, 2, p, seed=1, dtype=dtype), _delays(3, 2, p, seed=2, dtype=dtype)
    grid = _grid(f)
    shadow_memory(6 * f * 16)
    with sf.use_backend(backend):
        h = sf.cir_to_ofdm(gains, delays, grid)
    assert h.dtype is dtype and h.shape == (3, 2, f) and h.is_contiguous()
    within(h, definition(gains, delays, grid), bound(gains, delays, grid, dtype), f"cir_to_ofdm {str(dtype)[6:]}")


@dtypes
def test_reference_twin(dtype):
    """semcom_fast.reference holds the same definition, with its own place of the frequency axis."""
    gains, delays, grid = draw(2, 3, 5, seed=3, dtype=dtype), _delays(2, 1, 5, seed=4, dtype=dtype), _grid(9)
    want, limit = definition(gains, delays, grid), bound(gains, delays, grid, dtype)
    within(
        reference.cir_to_ofdm(gains, delays, grid, frequency_dim=1),
        want.movedim(-1, 1),
        limit.movedim(-1, 1),
        "reference",
    )


SHARED = {
    "[B,K,M,P] with [B,K,1,P]": ((3, 4, 5, 6), (3, 4, 1, 6)),
    "one delay profile": ((3, 4, 6), (6,)),
    "delays per item": ((3, 4, 6), (3, 1, 6)),
    "delays per antenna": ((3, 4, 6), (1, 4, 6)),
    "gains broadcast": ((1, 4, 6), (3, 1, 6)),
    "gains shared": ((6,), (3, 4, 6)),
    "own delays": ((3, 4, 6), (3, 4, 6)),
    "no leading dims": ((6,), (6,)),
    "outer and inner": ((2, 3, 4, 6), (1, 3, 1, 6)),
}


@backends
@dtypes
@pytest.mark.parametrize("case", SHARED)
def test_shared_delays_and_axes(case, dtype, backend):
    """Leading dims broadcast; the frequency axis goes where it is asked to, counted in the result; always contiguous."""
    gains, delays = draw(*SHARED[case][0], seed=5, dtype=dtype), _delays(*SHARED[case][1], seed=6, dtype=dtype)
    grid = _grid(19)
    want, limit = definition(gains, delays, grid), bound(gains, delays, grid, dtype)
    for dim in range(-want.ndim, want.ndim):
        with sf.use_backend(backend):
            h = sf.cir_to_ofdm(gains, delays, grid, frequency_dim=dim)
        moved = want.movedim(-1, dim)
        assert h.is_contiguous()
        within(h, moved, limit.expand(want.shape).movedim(-1, dim), "frequency axis")
    lead = torch.broadcast_shapes(gains.shape[:-1], delays.shape[:-1])
    full = delays.expand(*lead, delays.shape[-1])
    within(sf.cir_to_ofdm(gains, full, grid), want, limit, "stride-0 delays")
    same_bits(
        sf.cir_to_ofdm(gains, full.contiguous(), grid), sf.cir_to_ofdm(gains, delays, grid), "materialised delays"
    )


@dtypes
def test_exact_phases(dtype):
    """Whole turns give the sum of the gains, half turns alternate its sign, to the rounding of the phasors."""
    gains = draw(4, 5, seed=7, dtype=dtype)
    total = wide(gains)[0].sum(-1, keepdim=True)
    limit = gains.abs().double().sum(-1, keepdim=True) * (4 + dot_growth(5)) * unit(dtype)
    k = torch.arange(-8, 9, dtype=torch.float64)
    for delay, sign in ((0.0, 1.0), (2.0**-10, 1.0), (-(2.0**-10), 1.0), (2.0**-11, -1.0)):
        h = sf.cir_to_ofdm(gains, torch.full((5,), delay, dtype=dtype.to_real()), 1024 * k)
        within(h, total * sign ** k.abs(), limit.expand(4, 17), f"delay {delay}")
    quarter = sf.cir_to_ofdm(gains, torch.full((5,), 2.0**-12, dtype=dtype.to_real()), torch.tensor([1024.0]).double())
    within(quarter, -1j * total, limit, "a quarter turn")


@dtypes
@pytest.mark.parametrize("n", [8, 64, 60])
def test_fft(n, dtype):
    """Taps on the sampling grid: the discrete Fourier transform."""
    gains = draw(3, n, seed=8, dtype=dtype)
    delays = torch.arange(n, dtype=torch.float64) / 64  # exact in both precisions
    grid = torch.arange(64, dtype=torch.float64)
    want = torch.fft.fft(wide(gains)[0], 64)
    within(sf.cir_to_ofdm(gains, delays.to(dtype.to_real()), grid), want, bound(gains, delays, grid, dtype), "FFT")


def test_delay_is_a_phase_ramp():
    """Delaying every path by d multiplies h by exp(-j 2 pi f d); gains enter linearly."""
    gains, delays, grid, d = draw(3, 6, seed=9), _delays(3, 6, seed=10), _grid(33), 0.7e-6
    h = sf.cir_to_ofdm(gains, delays, grid)
    limit = 2 * bound(gains, delays + d, grid, h.dtype)
    ramp = torch.polar(torch.ones_like(grid), -2 * math.pi * grid * d)
    within(sf.cir_to_ofdm(gains, delays + d, grid), h * ramp, limit, "delay")
    c = 0.3 - 1.7j
    within(sf.cir_to_ofdm(c * gains, delays, grid), c * h, 2 * limit, "linearity")


@dtypes
def test_carrier_frequencies(dtype):
    """Many turns (2.6 GHz, a millisecond): the phase is reduced in double precision, so only its own rounding remains."""
    gains, delays = draw(4, 5, seed=11, dtype=dtype), (_delays(4, 5, seed=12) * 300).to(dtype.to_real())
    grid = 2.6e9 + _grid(40)
    within(
        sf.cir_to_ofdm(gains, delays, grid),
        definition(gains, delays, grid),
        bound(gains, delays, grid, dtype),
        "2.6 GHz",
    )


def test_phase_has_no_bias():
    """complex64 phases err to both sides: their mean error over many paths is far below their grid of 2^-24 turns."""
    delays, one = _delays(20_000, 1, seed=13, dtype=torch.complex64), torch.ones(20_000, 1, dtype=torch.complex64)
    grid = torch.tensor([-3.1e6, 2.7e6, 4.9e6]).double()
    error = wide(sf.cir_to_ofdm(one, delays, grid))[0] * definition(one, delays, grid).conj()
    angle = torch.angle(error)
    # unbiased rounding to the grid: standard deviation 2 pi 2^-24/sqrt(12) over 60,000 draws; ten times its mean's
    within(
        angle.mean(),
        torch.tensor(0.0).double(),
        10 * 2 * math.pi * 2.0**-24 / math.sqrt(12 * 60_000),
        "mean phase error",
    )


@backends
@dtypes
@pytest.mark.parametrize("operand", ["gains", "delays", "frequencies"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_not_finite(bad, operand, dtype, backend):
    """NaN or Inf names the flat index of the impulse response; the first one, also where delays are shared."""
    args = {"gains": draw(2, 3, 4, 5, seed=14, dtype=dtype), "delays": _delays(2, 1, 4, 5, seed=15, dtype=dtype)}
    args["frequencies"] = _grid(8).clone()
    args[operand][{"gains": (1, 2, 3, 0), "delays": (1, 0, 3, 0), "frequencies": 5}[operand]] = bad
    at = {"gains": 12 + 2 * 4 + 3, "delays": 12 + 3, "frequencies": 0}[operand]
    for dim in (-1, 1):
        with (
            sf.use_backend(backend),
            pytest.raises(ValueError, match=rf"^cir_to_ofdm: impulse response {at} is not finite"),
        ):
            sf.cir_to_ofdm(**args, frequency_dim=dim)


@backends
@dtypes
def test_empty(dtype, backend):
    """No items, no frequencies: empty. No paths: zeros. Gradients of all of them exist."""
    with sf.use_backend(backend):
        for lead, p, f in (((0,), 3, 8), ((2, 0), 3, 8), ((2,), 3, 0), ((2, 3), 0, 8), ((), 0, 4)):
            leaves = [
                draw(*lead, p, dtype=dtype).requires_grad_(True),
                _delays(*lead, p, dtype=dtype).requires_grad_(True),
            ]
            h = sf.cir_to_ofdm(*leaves, _grid(f), frequency_dim=0)
            assert h.shape == (f, *lead) and not h.any()
            grads = torch.autograd.grad(h.abs().sum(), leaves)
            assert [g.shape for g in grads] == [t.shape for t in leaves]


@dtypes
def test_views_and_arrays(dtype):
    """Strided, conjugated and negated gains, strided delays and frequencies; NumPy arrays; float32 and float64 grids."""
    gains, delays, grid = draw(3, 4, 6, seed=16, dtype=dtype), _delays(3, 1, 6, seed=17, dtype=dtype), _grid(21)
    want = sf.cir_to_ofdm(gains, delays, grid, frequency_dim=1)
    strided, neg = (
        (lambda t: torch.stack([t, 2 * t], -1)[..., 0]),
        (lambda t: torch.neg(t).neg() if t.is_complex() else t),
    )
    views = (
        (gains.conj().resolve_conj().conj(), delays, grid),
        (torch._neg_view(-gains), torch._neg_view(-delays), torch._neg_view(-grid)),
        (strided(gains), strided(delays), strided(grid)),
        (gains.movedim(0, 1).contiguous().movedim(0, 1), delays.movedim(-1, 0).contiguous().movedim(0, -1), neg(grid)),
        (gains.flip(1).flip(1), delays, torch.cat([grid[:1], grid])[1:]),
    )
    for view in views:
        same_bits(sf.cir_to_ofdm(*view, frequency_dim=1), want)
    arrays = sf.cir_to_ofdm(gains.numpy(), delays.numpy(), grid.numpy(), frequency_dim=1)
    assert type(arrays) is np.ndarray
    same_bits(torch.from_numpy(arrays), want)
    same_bits(sf.cir_to_ofdm(gains, delays, grid.float(), frequency_dim=1), want)  # 15 kHz steps are exact in float32
    with pytest.raises(TypeError, match="mixed"):
        sf.cir_to_ofdm(gains.numpy(), delays, grid)


def test_arguments():
    """Kinds, shapes and the axis are refused with the op's name and the argument's."""
    gains, delays, grid = draw(3, 4), _delays(3, 4), _grid(8)
    wide_grid, none = grid.to(torch.complex128), None
    for wrong in (
        (gains.real.clone(), delays, grid),
        (gains, delays.float(), grid),
        (gains, gains, grid),
        (gains, [1.0], grid),
        (gains, delays, wide_grid),
        (gains, delays, [1.0]),
        (none, delays, grid),
    ):
        with pytest.raises(TypeError, match=r"^cir_to_ofdm: "):
            sf.cir_to_ofdm(*wrong)
    for wrong in ((draw(3, 5), delays), (gains, _delays(2, 4)), (draw(), delays), (gains, _delays())):
        with pytest.raises(ValueError, match=r"^cir_to_ofdm: need gains"):
            sf.cir_to_ofdm(*wrong, grid)
    with pytest.raises((TypeError, ValueError), match=r"^cir_to_ofdm: frequencies"):
        sf.cir_to_ofdm(gains, delays, _grid(8).reshape(2, 4))
    for dim in (2, -3):
        with pytest.raises(ValueError, match=f"^cir_to_ofdm: frequency_dim={dim} does not fit"):
            sf.cir_to_ofdm(gains, delays, grid, frequency_dim=dim)
    for i in (1, 2):
        mixed = [t.to("meta") if i == j else t for j, t in enumerate((gains, delays, grid))]
        with pytest.raises(ValueError, match=r"^cir_to_ofdm: .*meta"):
            sf.cir_to_ofdm(*mixed)


@dtypes
def test_split_batch_and_threads(dtype):
    """The same bits however batch and grid are cut and however many threads there are."""
    gains, delays, grid = (
        draw(200, 4, 4, 23, seed=18, dtype=dtype),
        _delays(200, 4, 1, 23, seed=19, dtype=dtype),
        _grid(64),
    )
    whole = sf.cir_to_ofdm(gains, delays, grid, frequency_dim=1)
    torch.set_num_threads(2)
    same_bits(sf.cir_to_ofdm(gains, delays, grid, frequency_dim=1), whole)
    for a, b in ((0, 1), (1, 8), (8, 25), (198, 200)):
        same_bits(sf.cir_to_ofdm(gains[a:b], delays[a:b], grid, frequency_dim=1), whole[a:b])
    same_bits(sf.cir_to_ofdm(gains[:3], delays[:3], grid[5:40], frequency_dim=1), whole[:3, 5:40].contiguous())


def _leaves(*tensors):
    return [t.clone().requires_grad_(True) for t in tensors]


@pytest.mark.parametrize("case", SHARED)
@pytest.mark.parametrize("dim", [-1, 0])
def test_gradients(case, dim):
    """gradcheck in gains, delays (unit seconds) and frequencies, every sharing; the reference backend's are the same."""
    shapes = [(*(min(n, 2) for n in s[:-1]), 3) for s in SHARED[case]]
    gains, delays = draw(*shapes[0], seed=20), draw(*shapes[1], seed=21, dtype=torch.float64)
    grid = torch.tensor([-0.7, 0.2, 0.4], dtype=torch.float64)

    def fn(*args):
        return sf.cir_to_ofdm(*args, frequency_dim=dim)

    assert gradcheck(fn, _leaves(gains, delays, grid), atol=1e-6)
    assert gradcheck(fn, [gains, *_leaves(delays), grid], atol=1e-6)
    assert gradcheck(fn, [*_leaves(gains), delays, grid], atol=1e-6)
    grads, g = [], None
    for backend in ("cpu", "reference"):
        leaves = _leaves(gains, delays, grid)
        with sf.use_backend(backend):
            h = fn(*leaves)
        g = draw(*h.shape, seed=22) if g is None else g
        grads.append(torch.autograd.grad(h, leaves, g))
    for a, b in zip(*grads, strict=True):
        within(a, b, 1e-12 * (1 + b.abs().max()), "cir_to_ofdm reference gradients")


def test_second_derivatives_and_transforms():
    """gradgradcheck; forward mode is the slope, vmap a loop over rows; meta tensors. (Compiled in test_tracing.py.)"""
    args = draw(2, 2, seed=23), draw(2, 2, seed=24, dtype=torch.float64), torch.tensor([-0.7, 0.4], dtype=torch.float64)
    assert gradgradcheck(sf.cir_to_ofdm, _leaves(*args), atol=1e-6)
    forward_modes.check(sf.cir_to_ofdm, args)
    for i, row in enumerate(torch.func.vmap(lambda g, d: sf.cir_to_ofdm(g, d, args[2]))(*args[:2])):
        same_bits(row, sf.cir_to_ofdm(args[0][i], args[1][i], args[2]), "vmap")
    given = draw(5, 3, 4, seed=25), _delays(5, 1, 4, seed=26), _grid(7)
    assert sf.cir_to_ofdm(*(t.to("meta") for t in given), frequency_dim=1).shape == (5, 7, 3)
