"""The three loops on a device: the CPU's results from the same seeds, captured runs, and no wait inside a run.

Each body also runs with the CPU in the device's place, where it shows its own mistakes.
"""

import math

import pytest
import torch
from gpu_places import Place, counted_waits
from pvd_toys import GaussianSource, RollEncoder, link
from sf_testing import draw, same_bits, within

import semcom_fast as sf
from semcom_fast._native import cuda_usable, triton_version

READY = cuda_usable() and triton_version() is not None
GPU = [pytest.mark.gpu, pytest.mark.skipif(not READY, reason="needs a CUDA device, the CUDA kernels and triton")]
places = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=GPU)])
on_gpu = pytest.mark.parametrize("device", [pytest.param("cuda:0", marks=GPU)])
# A run of some hundred roundings per step, and normals of both sides within 1e-15 in double precision
BOUND = 1e-10


# ---- PVD ----
def _pvd(device: str, users: int = 2, j: int = 3, jin: int = 3, calibration: str = "secant", samples: int = 1):
    """A function that runs the receiver on `device`, with everything it needs there."""
    encoder = RollEncoder(users, 2, 1, 6, torch.float64)
    config = sf.PVDConfig(users=users, nt=1, source_shape=(encoder.n,), J=j, Jin=jin, L=samples, sigma_max=5.0,
                          sigma_min=0.1, calibration=calibration)  # fmt: skip
    d = draw(3, users, encoder.n, seed=5, dtype=torch.float64)
    _, y = link(3, users, 2, 3, encoder(d), 0.05)
    encoder.scale, encoder.offset, y = encoder.scale.to(device), encoder.offset.to(device), y.to(device)
    receiver = sf.PVD(encoder, sf.GaussianChannelPrior(), GaussianSource(1.3, 0.2), config)
    return lambda **options: receiver.run(y, 0.05, seed=9, first_item=4, **options)


@places
@pytest.mark.parametrize("options", [{}, {"calibration": "moment"}, {"samples": 2}, {"users": 1}], ids=str)
def test_pvd_as_on_the_cpu(device, options):
    want, got = _pvd("cpu", **options)(restarts=2), _pvd(device, **options)(restarts=2)
    assert got.h.device.type == torch.device(device).type and torch.equal(got.chosen.cpu(), want.chosen)
    for name in ("h", "d", "energy", "energy_all"):
        w = getattr(want, name)
        within(getattr(got, name).cpu(), w, BOUND * w.abs().max(), f"{device} PVD {name}")


# ---- water-filling ----
def _predict(g, level):
    b = level.reshape(-1, *(1,) * (g.ndim - 1)).to(g.dtype)
    return (1 - b) * g / (1 + b * g * g), 0.5 * g


def _waterfill(device: str, preset: str = "paper", fading: bool = True, dtype=torch.float64, **config):
    f = draw(5, 4, 2, 4, seed=1, dtype=torch.float64).to(device, dtype)
    u = torch.rand(5, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    d = (0.05 + 0.9 * u).to(device, dtype)
    if not fading:  # "authors_scalar" refuses images of unequal start levels
        d = (d[:1, 0].expand(5) if preset == "authors_scalar" else d[:, 0]).contiguous()
    elif preset != "paper":
        config["solver"] = "ddim"  # second order needs one level per image
    loop = sf.WaterfillDDIM(_predict, sf.WaterfillConfig.preset(preset, **({"steps": 8} | config)))
    return lambda **options: loop.run(f, d, seed=-3, **options)


RUNS = [("paper", True), ("paper", False), ("authors_scalar", False), ("authors_per_sample", True),
        ("authors_per_sample", False)]  # fmt: skip
runs = pytest.mark.parametrize("preset, fading", RUNS, ids=str)


@places
@runs
def test_waterfill_as_on_the_cpu(device, preset, fading):
    want, got = _waterfill("cpu", preset, fading)(), _waterfill(device, preset, fading)()
    within(got.cpu(), want, BOUND * want.abs().max(), f"{device} WaterfillDDIM {preset}")


@on_gpu
@runs
def test_waterfill_captured(device, preset, fading, recwarn):
    """A captured run has the bits of the plain one, also at its second call with another seed on the same object."""
    run = _waterfill(device, preset, fading, torch.float32)
    for _ in range(2):
        same_bits(run(graph=True), run(), f"{preset}: captured")
    assert not [w for w in recwarn if "no CUDA graph" in str(w.message)]


# ---- the mixture of experts ----
class _Expert:
    def __init__(self, power, bar):
        self.gain = [math.sqrt(1 - a) / (a * power + 1 - a) for a in bar]

    def __call__(self, h, t):
        return self.gain[t] * h


def _experts(steps: int) -> list:
    bar = sf.VBMoEConfig(steps=steps).tables().alpha_bar.tolist()
    return [_Expert(v, bar) for v in (0.3, 1.0, 2.5)]


def _vb(device: str, steps: int = 10, dtype=torch.complex128, **config):
    h = draw(5, 2, 6, dtype=dtype) * torch.tensor([0.5, 1.0, 1.5, 0.5, 1.0])[:, None, None]
    p = draw(6, 4, seed=1, dtype=dtype)
    y = (h @ p + 0.5 * draw(5, 2, 4, seed=2, dtype=dtype)).to(device)
    options = {"steps": steps, "tolerance": 0.0, "iterations": 3} | config
    loop, p = sf.VBMoE(_experts(steps), sf.VBMoEConfig(**options)), p.to(device)
    return lambda seed=0: loop.run(y, p, 0.25, seed=seed)


@places
@pytest.mark.parametrize("options", [{}, {"lik": "x0", "init": "uniform"}, {"start": "zero", "shared": True}], ids=str)
def test_experts_as_on_the_cpu(device, options):
    want, got = _vb("cpu", **options)(), _vb(device, **options)()
    for name in ("h", "responsibilities"):
        w = getattr(want, name)
        within(getattr(got, name).cpu(), w, BOUND * w.abs().max(), f"{device} VBMoE {name}")


@on_gpu
def test_experts_captured(device, recwarn):
    """Recorded at the second use, replayed from then on: the bits of a plain run."""
    plain, captured = _vb(device, dtype=torch.complex64), _vb(device, dtype=torch.complex64, graph=True)
    for seed in (0, 0, 0, 5):
        want, got = plain(seed), captured(seed)
        for name in ("h", "responsibilities"):
            same_bits(getattr(got, name), getattr(want, name), f"VBMoE {name}: captured")
    assert not [w for w in recwarn if "no CUDA graph" in str(w.message)]


# ---- waits ----
SHORT_AND_LONG = {
    "PVD": lambda device, k: _pvd(device, j=1 + k, jin=2 * k),
    "WaterfillDDIM": lambda device, k: _waterfill(device, steps=3 * k),
    "WaterfillDDIM, authors": lambda device, k: _waterfill(device, "authors_per_sample", steps=3 * k),
    "WaterfillDDIM, captured": lambda device, k: (lambda run: lambda: run(graph=device != "cpu"))(
        _waterfill(device, steps=3 * k)
    ),
    "VBMoE": lambda device, k: _vb(device, steps=10 * k),
    "VBMoE, captured": lambda device, k: _vb(device, steps=10 * k, graph=device != "cpu"),
}


@places
@pytest.mark.parametrize("name", SHORT_AND_LONG)
def test_no_wait_per_step(name, device):
    """The host waits as often in a run three times as long: at its start and its end, never inside."""
    found = []
    for k in (1, 3):
        run = SHORT_AND_LONG[name](device, k)
        run(), run()  # compiles, records
        with counted_waits(Place(device, "")) as waits:
            run()
        found.append(waits)
    short, long = found
    assert len(long) <= len(short), f"{name}: {len(short)} waits, {len(long)} in a longer run: {sorted(set(long))}"


@on_gpu
@pytest.mark.parametrize("name", ["PVD", "WaterfillDDIM", "VBMoE"])
def test_on_a_side_stream(name, device):
    """A whole run on another stream, behind a long wait there, gives the same bits."""
    run = SHORT_AND_LONG[name](device, 1)
    want = run()
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        got = run()
    side.synchronize()
    for a, b in zip(*((v,) if isinstance(v, torch.Tensor) else v for v in (got, want)), strict=True):
        if a.is_floating_point() or a.is_complex():
            same_bits(a, b, f"{name} on a side stream")


@on_gpu
@pytest.mark.parametrize("name", ["PVD", "WaterfillDDIM", "VBMoE"])
def test_on_the_second_device(name, device):
    """Runs where its tensors are, whatever the current device."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    want, got = (SHORT_AND_LONG[name](d, 1)() for d in (device, "cuda:1"))
    for a, b in zip(*((v,) if isinstance(v, torch.Tensor) else v for v in (got, want)), strict=True):
        assert str(a.device) == "cuda:1"
        if a.is_floating_point() or a.is_complex():
            same_bits(a.cpu(), b.cpu(), f"{name} on cuda:1")
