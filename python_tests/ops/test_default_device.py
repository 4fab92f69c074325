"""Ops follow the device of their operands, whatever device torch makes new tensors on (`torch.set_default_device`)."""

import pytest
import torch
from op_samples import packet_samples, public_calls
from pvd_toys import GaussianSource, RollEncoder, link
from sf_testing import draw
from torch import Tensor
from white_experts import SMALL, experts, received

import semcom_fast as sf
from semcom_fast.links import draw_channel
from semcom_fast.ops._register import OPS

SAMPLES, CALLS = packet_samples(torch.complex64), public_calls("cpu")


def _pvd():
    encoder = RollEncoder(2, 2, 1, 6, torch.float64)
    config = sf.PVDConfig(users=2, nt=1, source_shape=(encoder.n,), J=2, Jin=2, sigma_max=5.0, sigma_min=0.1)
    _, y = link(3, 2, 2, 3, encoder(draw(3, 2, encoder.n, seed=5, dtype=torch.float64)), 0.05)
    return lambda: tuple(
        sf.PVD(encoder, sf.GaussianChannelPrior(), GaussianSource(1.3, 0.2), config).run(y, 0.05, seed=9)[:2]
    )


def _waterfill():
    f, d = draw(3, 8, seed=1, dtype=torch.float32), torch.tensor([0.9, 0.5, 0.2])
    loop = sf.WaterfillDDIM(lambda g, level: g / 2, sf.WaterfillConfig.preset("paper", steps=4))
    return lambda: loop.run(f, d, seed=4)


def _experts():
    y, p, noise_var, _ = received()
    return lambda: tuple(sf.VBMoE(experts(), sf.VBMoEConfig(**SMALL)).run(y, p, noise_var)[:3])


OTHERS = {
    "philox_normal": lambda: sf.philox_normal((3, 5), seed=2, dtype=torch.complex64),
    "cdl_channels": lambda: sf.cdl_channels("A", 3, nr=2, nt=4, seed=1),
    "draw_channel": lambda: draw_channel(2, 1, 3, 2, 2, seed=1, cov_tx=torch.eye(2, device="cpu")),
    "PVD": _pvd(),
    "WaterfillDDIM": _waterfill(),
    "VBMoE": _experts(),
}


def _same(call) -> None:
    want = call()
    with torch.device("meta"):
        got = call()
    for g, w in zip(*(v if isinstance(v, tuple) else (v,) for v in (got, want)), strict=True):
        assert not isinstance(w, Tensor) or (g.is_cpu and g.dtype is w.dtype and torch.equal(g, w))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", SAMPLES)
def test_kernels(name, backend):
    for args in SAMPLES[name]:
        _same(lambda args=args: OPS[name].kernels[backend](*args))


@pytest.mark.parametrize("name", CALLS)
def test_public_calls(name):
    function, given = CALLS[name]
    _same(lambda: function(**given))


@pytest.mark.parametrize("name", OTHERS)
def test_draws_and_loops(name):
    _same(OTHERS[name])
