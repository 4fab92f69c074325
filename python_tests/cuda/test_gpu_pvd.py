"""PVD's inner iteration as a CUDA graph on a device, against the plain loop; skipped without one."""

import pytest
import torch
from pvd_toys import GaussianSource, LinearEncoder, link
from sf_testing import draw

import semcom_fast as sf
from semcom_fast._native import triton_version
from semcom_fast.receivers import graph_pvd

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.skipif(triton_version() is None, reason="triton is not installed"),
]
K, NR, NT, T, N, J, JIN = 3, 4, 1, 6, 10, 5, 4
CASES = {
    "default": {},
    "lagged": {"lagged_noise": True},
    "moment": {"calibration": "moment"},
    "no sample noise": {"sample_noise": False},
    "L=3": {"L": 3},
    "users": {"users": 2},
    "users, lagged": {"users": 2, "lagged_noise": True},
    "users, levels": {"users": 2, "zeta_h": (0.1, 0.05)},
    "double": {"dtype": torch.complex128},
}


def _receiver(users=1, dtype=torch.complex64, prior=None, batch=3, normalise=True, **config):
    encoder = LinearEncoder(users, N, K, NT, T, dtype, normalise)
    encoder.matrix = encoder.matrix.cuda()
    levels = {"sigma_max": 8.0, "sigma_min": 0.1, "J": J, "Jin": JIN} | config
    made = sf.PVDConfig(users=users, nt=NT, source_shape=(N,), **levels)
    receiver = sf.PVD(encoder, prior or sf.GaussianChannelPrior(), GaussianSource(0.6, 0.1), made)
    x = encoder(draw(batch, users, N, seed=5, dtype=dtype.to_real()).cuda())
    return receiver, link(batch, users, K, NR, x.cpu(), 0.05)[1].cuda()


def _same(got, want, dtype=torch.complex64, steps=J * JIN):
    """Levels are formed in another precision and sums in another order: a few roundings of a state of size 32 a step."""
    bound = steps * 32 * 16 * torch.finfo(dtype.to_real()).eps
    for name in ("h", "d", "energy"):
        g, w = getattr(got, name), getattr(want, name)
        error = float((g - w).abs().max())
        print(f"{name}: largest difference {error:.2e}, bound {bound:.2e}")
        assert error <= bound * (K * NR * T if name == "energy" else 1)


@pytest.mark.parametrize("case", CASES)
def test_replayed_run_equals_the_loop(case):
    config = CASES[case]
    receiver, y = _receiver(**config)
    want = receiver.run(y, 0.05, seed=4, first_item=9, restarts=2)
    for _ in range(2):  # captured, then replayed from the kept graph
        got = receiver.run(y, 0.05, seed=4, first_item=9, restarts=2, graph=True)
        _same(got, want, config.get("dtype", torch.complex64))
    assert len(receiver.graphs.kept) == 1


@pytest.mark.parametrize("prior", ["kronecker", "list"])
def test_other_priors(prior):
    place = torch.arange(float(NR))
    correlated = sf.GaussianChannelPrior(cov_rx=0.6 ** (place[:, None] - place).abs())
    users = 1 if prior == "kronecker" else 2
    receiver, y = _receiver(users, prior=correlated if users == 1 else [sf.GaussianChannelPrior(1.7), correlated])
    _same(receiver.run(y, 0.05, graph=True), receiver.run(y, 0.05))


def test_kept_graph_on_another_stream_with_other_draws():
    receiver, y = _receiver()
    receiver.run(y, 0.05, graph=True)
    side = torch.cuda.Stream()
    for seed, first, noise_var in ((3, 5, 0.1), (-2, 0, 0.02)):
        want = receiver.run(y * seed, noise_var, seed=seed, first_item=first)
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            got = receiver.run(y * seed, noise_var, seed=seed, first_item=first, graph=True)
        torch.cuda.synchronize()
        _same(got, want)
    assert len(receiver.graphs.kept) == 1


def test_no_wait_inside_the_loop(monkeypatch):
    """From the first iteration to the last one the host neither waits for the device nor copies to it."""
    receiver, y = _receiver()
    receiver.run(y, 0.05, graph=True)
    loop = graph_pvd.PVDStepGraph.loop

    def strict(self, *args):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return loop(self, *args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(graph_pvd.PVDStepGraph, "loop", strict)
    receiver.run(y, 0.05, seed=2, graph=True)


@pytest.mark.parametrize(("lagged", "nodes"), [(False, 5), (True, 4)])
def test_own_launches_of_a_replay(lagged, nodes):
    receiver, y = _receiver(
        lagged_noise=lagged, normalise=False
    )  # the normaliser is the network's, and a kernel of ours
    receiver.run(y, 0.05, graph=True)
    (graph,) = receiver.graphs.kept.values()
    assert graph.replay is not None
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        graph.replay()
        torch.cuda.synchronize()
    events = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    own = [e for e in events if e.name in ("kernel", "finish_kernel")]
    print(f"{len(own)} of {len(events)} nodes are ours: " + ", ".join(f"{e.name} {e.device_time:.1f} us" for e in own))
    assert len(own) == nodes
    copies = [e.name for e in events if "HtoD" in e.name or "DtoH" in e.name]
    assert not copies


def test_levels_are_copies():
    receiver, y = _receiver()
    want, got = [], []
    receiver.run(y, 0.05, on_level=want.append)
    receiver.run(y, 0.05, on_level=got.append, graph=True)
    assert [level.level for level in got] == list(range(J - 1, -1, -1))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.h, w.h, rtol=1e-3, atol=1e-3)
    assert not torch.equal(got[0].h, got[-1].h)


@pytest.mark.parametrize("size", [(192, 4, 1, 24, 4), (24, 64, 1, 24, 8), (12, 128, 1, 24, 16)], ids=str)
def test_paper_sizes(size):
    """(K, Nr, Nt, T, U) of the published settings."""
    k, nr, nt, t, users = size
    encoder = LinearEncoder(users, 32, k, nt, t, torch.complex64)
    encoder.matrix = encoder.matrix.cuda()
    config = sf.PVDConfig(users=users, nt=nt, source_shape=(32,), J=2, Jin=2, sigma_max=2.0, sigma_min=0.2)
    receiver = sf.PVD(encoder, sf.GaussianChannelPrior(), GaussianSource(), config)
    x = encoder(draw(1, users, 32, seed=5, dtype=torch.float32).cuda())
    y = link(1, users, k, nr, x.cpu(), 0.5)[1].cuda()
    want, got = receiver.run(y, 0.5), receiver.run(y, 0.5, graph=True)
    torch.testing.assert_close(got.h, want.h, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(got.d, want.d, rtol=1e-3, atol=1e-3)
