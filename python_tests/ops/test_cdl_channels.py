"""cdl_channels: the sum of rays against its definition, Sionna, exact cases, layouts, derivatives and refusals."""

import math

import pytest
import torch
from cdl_sionna import sionna_channels
from isa_levels import BUILT, run_at
from sf_testing import DTYPES, dot_growth, draw, same_bits, shadow_memory, unit, wide, within
from torch.autograd import gradcheck, gradgradcheck

import semcom_fast as sf
from semcom_fast import reference
from semcom_fast.data.cdl import cdl_rays
from semcom_fast.ops import _cdl_rays
from semcom_fast.ops.cdl_channels import _op as ray_sum

NAN, INF = float("nan"), float("inf")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
backends = pytest.mark.parametrize("backend", ["cpu", "reference"])
SIZES = [(16, 64), (64, 16), (1, 1), (1, 5), (3, 2), (4, 4), (5, 33), (17, 64), (64, 64), (2, 130), (4, 64), (64, 3)]


def operands(b, r, dtype, seed=0):
    """Gains and progressions of up to 1.5 cycles per element."""
    real = dtype.to_real()
    turns = [torch.rand(b, r, dtype=real, generator=torch.Generator().manual_seed(seed + k)) * 3 - 1.5 for k in (1, 2)]
    return draw(b, r, seed=seed, dtype=dtype), *turns


def bound(gains, nr, nt, dtype):
    """A steering phase is exp of an angle that rounds once in double, made by log2(n) products of rounded factors (three
    roundings each, the factors' own included); then the gain, and a sum of R products of the other side's phase."""
    steps = 3 * (math.log2(max(nr, 1)) + math.log2(max(nt, 1)) + 2)
    angle = 2 * math.pi * 1.5 * (nr + nt) * 2.0**-53
    return gains.abs().double().sum(-1)[:, None, None] * ((steps + dot_growth(gains.shape[-1])) * unit(dtype) + angle)


@backends
@dtypes
@pytest.mark.parametrize("r", [1, 15, 64, 65, 130])
@pytest.mark.parametrize("nr, nt", SIZES)
def test_definition(nr, nt, r, dtype, backend):
    """Sizes that fill packs, tiles and blocks of rays, and ones that do not; either array along the lanes."""
    gains, rx, tx = operands(2, r, dtype, seed=r)
    i, j = torch.arange(nr).double() - (nr - 1) / 2, torch.arange(nt).double() - (nt - 1) / 2
    turns = rx.double()[:, :, None, None] * i[:, None] + tx.double()[:, :, None, None] * j
    want = (wide(gains)[0][:, :, None, None] * torch.polar(torch.ones_like(turns), 2 * math.pi * turns)).sum(1)
    shadow_memory(2 * nr * nt * 16)
    with sf.use_backend(backend):
        h = ray_sum(gains, rx, tx, nr, nt)
    assert h.dtype is dtype and h.shape == (2, nr, nt) and h.is_contiguous()
    within(h, want, bound(gains, nr, nt, dtype), f"cdl_channels {backend} {str(dtype)[6:]}")


@pytest.mark.parametrize("array", ["horizontal", "vertical"])
@pytest.mark.parametrize("profile", "ABCDE")
@pytest.mark.parametrize("turned", [False, True])
def test_equals_sionna(profile, array, turned):
    """Given Sionna's rays and phases: 1e-5 relative in complex64, 1e-12 in complex128; per-channel yaw at both ends."""
    g = torch.Generator().manual_seed(3)
    yaw = [torch.rand(6, dtype=torch.float64, generator=g) * 2 * a - a for a in (math.pi / 3, math.pi)]
    tx_yaw, rx_yaw = yaw if turned else (0.0, 0.0)
    want, rays = sionna_channels(profile, 6, array, (tx_yaw, rx_yaw))
    for dtype, limit in ((torch.complex64, 1e-5), (torch.complex128, 1e-12)):
        h = sf.cdl_channels(profile, 6, nr=16, nt=64, array=array, rays=rays, tx_yaw=tx_yaw, rx_yaw=rx_yaw, dtype=dtype)
        error = float(torch.linalg.norm(wide(h)[0] - want[:, 0]) / torch.linalg.norm(want))
        within(torch.tensor(error), torch.tensor(0.0), limit, f"Sionna {str(dtype)[6:]}")


def test_equals_sionna_elsewhere():
    """Another carrier and delay spread, 4 x 9 antennas, and five subcarriers at once."""
    grid = torch.tensor([-60e6, -1e6, 0.0, 15e3, 73e6], dtype=torch.float64)
    kwargs = {"carrier": 3.5e9, "delay_spread": 300e-9, "nr": 4, "nt": 9}
    want, rays = sionna_channels("D", 3, "horizontal", (0.0, math.pi), frequencies=grid, **kwargs)
    h = sf.cdl_channels(
        "D", 3, nr=4, nt=9, carrier_frequency=3.5e9, frequency=grid, rx_yaw=math.pi, rays=rays, dtype=torch.complex128
    )
    assert h.shape == (3, 5, 4, 9)
    assert float(torch.linalg.norm(h - want) / torch.linalg.norm(want)) < 1e-12


def test_one_ray_is_a_plane_wave():
    """Broadside is constant, endfire of half a wavelength alternates, spacing counts wavelengths of the carrier."""
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    level = torch.full((1, 1), math.pi / 2)
    rays = sf.CDLRays(one, zero, zero, aod=zero, zod=level, aoa=zero, zoa=level)
    h = sf.cdl_channels("A", 1, nr=3, nt=4, rays=rays, dtype=torch.complex128)
    within(h, torch.ones(1, 3, 4, dtype=torch.complex128), 1e-7, "broadside")
    rays = rays._replace(aod=level)
    h = sf.cdl_channels("A", 1, nr=1, nt=3, rays=rays, dtype=torch.complex128)
    within(h, torch.tensor([[[-1, 1, -1]]], dtype=torch.complex128), 1e-6, "endfire")
    metre = 299792458.0 / 40e9  # one wavelength apart: endfire is broadside again
    h = sf.cdl_channels("A", 1, nr=1, nt=3, rays=rays, spacing=metre, dtype=torch.complex128)
    within(h, torch.ones(1, 1, 3, dtype=torch.complex128), 1e-6, "a wavelength apart")
    h = sf.cdl_channels("A", 1, nr=1, nt=3, rays=rays, spacing=metre, carrier_frequency=20e9, dtype=torch.complex128)
    within(h, torch.tensor([[[-1, 1, -1]]], dtype=torch.complex128), 1e-6, "half the carrier")
    late = rays._replace(delay=torch.full((1, 1), 1e-6, dtype=torch.float64))
    h = sf.cdl_channels(
        "A", 1, nr=1, nt=1, rays=late, frequency=torch.tensor([0.0, 250e3, 500e3]), dtype=torch.complex128
    )
    within(h.flatten(), torch.tensor([1, -1j, -1]), 1e-9, "delay")


@backends
@dtypes
def test_layouts(dtype, backend):
    """Strides, lazy conjugates and negations are honoured; a split batch gives the same bits; empty ones are empty."""
    gains, rx, tx = operands(6, 70, dtype)
    with sf.use_backend(backend):
        want = ray_sum(gains, rx, tx, 5, 9)
        same_bits(
            ray_sum(gains.conj().resolve_conj().conj(), torch._neg_view(-rx), tx.T.contiguous().T, 5, 9), want, "views"
        )
        wide_rx = rx.repeat_interleave(2, 1)[:, ::2]
        same_bits(ray_sum(gains, wide_rx, tx, 5, 9), want, "strided")
        if backend == "cpu":
            same_bits(
                torch.cat([ray_sum(gains[k], rx[k], tx[k], 5, 9) for k in (slice(1), slice(1, 6))]), want, "split"
            )
            torch.set_num_threads(2)
            same_bits(ray_sum(gains, rx, tx, 5, 9), want, "threads")
        assert ray_sum(gains[:0], rx[:0], tx[:0], 5, 9).shape == (0, 5, 9)
        assert not ray_sum(gains[:, :0], rx[:, :0], tx[:, :0], 5, 9).any()


@backends
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("value", [NAN, INF])
def test_not_finite(which, value, backend):
    """A ray that is not finite is reported with its channel; the lowest one counts."""
    args = operands(5, 30, torch.complex64)
    args[which][3, 29], args[which][4, 0] = value, value
    with sf.use_backend(backend), pytest.raises(ValueError, match="cdl_channels: channel 3 is not finite"):
        ray_sum(*args, 4, 6)


def test_derivatives():
    """Reverse and forward mode in gains, rx and tx, and the second derivative; vmap is a loop."""
    args = [a.requires_grad_() for a in operands(2, 3, torch.complex128)]
    assert gradcheck(lambda *a: ray_sum(*a, 2, 3), args, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(lambda *a: ray_sum(*a, 2, 3), args)
    gains, rx, tx = (torch.stack([a, 2 * a]) for a in operands(4, 3, torch.complex128))
    got = torch.func.vmap(lambda *a: ray_sum(*a, 3, 5), in_dims=(0, 0, None))(gains, rx, tx[0])
    same_bits(got, torch.stack([ray_sum(gains[k], rx[k], tx[0], 3, 5) for k in range(2)]))


def test_differentiable_in_yaw_and_rays():
    """From the public function: gradients of yaws, phases and angles against finite differences."""
    rays = cdl_rays("D", 2, seed=3, los_phase="random")

    def channel(tx_yaw, phase, zoa):
        moved = rays._replace(phase=phase, zoa=zoa)
        return sf.cdl_channels("D", 2, nr=2, nt=2, tx_yaw=tx_yaw, rays=moved, dtype=torch.complex128)[:, 0]

    yaw = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    assert gradcheck(channel, (yaw, rays.phase.clone().requires_grad_(), rays.zoa.clone().requires_grad_()))
    drawn = torch.autograd.grad(sf.cdl_channels("A", 2, nr=2, nt=2, tx_yaw=yaw, seed=1).abs().sum(), yaw)[0]
    assert drawn.abs().min() > 0


@dtypes
def test_traces(dtype):
    """opcheck with and without gradients; torch.compile takes the op as it is."""
    for grad in (False, True):
        args = [a.requires_grad_(grad) for a in operands(2, 5, dtype)]
        torch.library.opcheck(torch.ops.semcom_fast.cdl_channels.default, (*args, 3, 4))
    torch._dynamo.reset()
    compiled = torch.compile(lambda g, r, t: ray_sum(g * 2, r, t, 3, 4) + 1, fullgraph=True, backend="aot_eager")
    gains, rx, tx = operands(2, 5, dtype)
    torch.testing.assert_close(compiled(gains, rx, tx), ray_sum(gains * 2, rx, tx, 3, 4) + 1)


def test_a_draw_traces():
    """torch.compile takes a whole draw as one graph, meta tensors give shapes, and tables made in inference mode serve
    gradients later."""
    torch._dynamo.reset()
    yaw = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    kwargs = {"nr": 4, "nt": 5, "seed": 1, "los_phase": "random"}
    compiled = torch.compile(lambda y: sf.cdl_channels("E", 3, rx_yaw=y, **kwargs), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(yaw), sf.cdl_channels("E", 3, rx_yaw=yaw, **kwargs), rtol=1e-6, atol=1e-6)
    on_meta = {"device": "meta", "rx_yaw": yaw.to("meta"), "frequency": torch.zeros(2, device="meta")}
    assert sf.cdl_channels("D", 3, **on_meta, **kwargs).shape == (3, 2, 4, 5)
    _cdl_rays._ends.cache_clear()
    with torch.inference_mode():
        sf.cdl_channels("C", 3, **kwargs)
    for name, t in (("tx_yaw", yaw), ("rx_yaw", yaw), ("frequency", yaw * 1e7)):
        t = t.clone().requires_grad_()
        sf.cdl_channels("C", 3, **kwargs, **{name: t}).real.sum().backward()
        assert t.grad.abs().min() > 0, name


BAD = {
    "profile": ({"profile": "F"}, ValueError, "unknown profile 'F'; choose one of A, B, C, D, E"),
    "profile kind": ({"profile": 3}, ValueError, "unknown profile 3"),
    "batch": ({"batch": -1}, ValueError, "batch must be at least 0, got -1"),
    "batch kind": ({"batch": 1.5}, TypeError, "batch must be an integer"),
    "nr": ({"nr": 0}, ValueError, "nr must be at least 1"),
    "nt": ({"nt": 0}, ValueError, "nt must be at least 1"),
    "delay spread NaN": ({"delay_spread": NAN}, ValueError, "delay_spread must be finite and >= 0, got nan"),
    "delay spread": ({"delay_spread": -1e-9}, ValueError, "delay_spread must be finite"),
    "delay spread inf": ({"delay_spread": INF}, ValueError, "delay_spread must be finite"),
    "carrier": ({"carrier_frequency": 0}, ValueError, "carrier_frequency must be finite and > 0"),
    "spacing": ({"spacing": NAN}, ValueError, "spacing must be finite and > 0"),
    "array": ({"array": "circular"}, ValueError, "array must be one of horizontal, vertical, got 'circular'"),
    "los phase": ({"los_phase": "none"}, ValueError, "los_phase must be one of fixed, random"),
    "frequency NaN": ({"frequency": NAN}, ValueError, "frequency is not finite"),
    "frequency": ({"frequency": torch.zeros(2, 2)}, ValueError, "frequency must be a real number or a tensor"),
    "yaw length": ({"tx_yaw": torch.zeros(3)}, ValueError, r"tx_yaw must be a number or a tensor \[2\], got \(3,\)"),
    "yaw shape": ({"rx_yaw": torch.zeros(2, 3)}, ValueError, r"rx_yaw must be a real number or a tensor \[2\]"),
    "yaw NaN": ({"rx_yaw": torch.tensor([0.0, NAN])}, ValueError, "rx_yaw is not finite"),
    "no seed": ({"seed": None}, ValueError, "a draw needs a seed"),
    "first item": ({"first_item": -1}, ValueError, "first_item must not be negative"),
    "dtype": ({"dtype": torch.float32}, TypeError, "dtype must be complex64 or complex128"),
    "rays kind": ({"rays": 3}, TypeError, "rays must be a CDLRays"),
    "rays complex": ({"rays": sf.CDLRays(*[torch.zeros(2, 1) * 1j] * 7)}, TypeError, "rays.amplitude must be a float"),
    "rays batch": ({"rays": sf.CDLRays(*[torch.zeros(3, 1)] * 7)}, ValueError, r"rays must be \[2,R\]"),
    "rays shapes": ({"rays": sf.CDLRays(*[torch.zeros(2, k + 2) for k in range(7)])}, ValueError, "rays must be"),
    "rays NaN": ({"rays": sf.CDLRays(*[torch.full((2, 1), NAN)] * 7)}, ValueError, "channel 0 is not finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals(case):
    """Every message names the op and what is wrong."""
    changed, kind, message = BAD[case]
    kwargs = {"profile": "A", "batch": 2, "nr": 2, "nt": 3, "seed": 1} | changed
    with pytest.raises(kind, match=f"cdl_channels: .*{message}"):
        sf.cdl_channels(kwargs.pop("profile"), kwargs.pop("batch"), **kwargs)


ISA = """
import sys, torch, semcom_fast as sf
out = [sf.cdl_channels(p, 3, nr=nr, nt=nt, seed=5, los_phase="random", dtype=d)
       for p in "AD" for nr, nt in ((16, 64), (3, 5), (64, 6)) for d in (torch.complex64, torch.complex128)]
torch.save(out, sys.argv[1])
"""


@pytest.mark.parametrize("level", BUILT)
def test_every_isa(level, tmp_path):
    """All compiled instruction-set levels draw the same rays and agree with the definition."""
    run_at(level, ISA, tmp_path / "out.pt")
    got = torch.load(tmp_path / "out.pt")
    with sf.use_backend("reference"):
        cases = ((p, nr, nt, d) for p in "AD" for nr, nt in ((16, 64), (3, 5), (64, 6)) for d in DTYPES)
        for (profile, nr, nt, dtype), h in zip(cases, got, strict=True):
            want = sf.cdl_channels(profile, 3, nr=nr, nt=nt, seed=5, los_phase="random", dtype=torch.complex128)
            error = float(torch.linalg.norm(wide(h)[0] - want) / torch.linalg.norm(want))
            limit = 1e-5 if dtype is torch.complex64 else 1e-12
            within(torch.tensor(error), torch.tensor(0.0), limit, f"cdl ISA {level} {str(dtype)[6:]}")


def test_reference_is_the_twin():
    """semcom_fast.reference holds the sum itself."""
    gains, rx, tx = operands(2, 7, torch.complex128)
    with sf.use_backend("reference"):
        same_bits(ray_sum(gains, rx, tx, 3, 4), reference.cdl_channels(gains, rx, tx, 3, 4))
