"""PVD's captured iteration, run with the table kernels but without a capture, against the plain loop."""

import pytest
import torch
from pvd_toys import GaussianSource, RollEncoder, link
from sf_testing import draw

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

import semcom_fast as sf
from semcom_fast.receivers import graph_pvd, pvd_batches, run_in_batches

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes discarded lanes
K, NR, T, J, JIN = 1, 2, 2, 2, 2
STEPS = J * JIN


class Counted:
    """The Triton kernels, each call written down by name."""

    def __init__(self):
        self.calls = []
        for name, kernel in graph_pvd.triton_kernels()._asdict().items():
            setattr(self, name, lambda *args, _name=name, _kernel=kernel, **kw: self._call(_name, _kernel, args, kw))

    def _call(self, name, kernel, args, kw):
        self.calls.append(name)
        return kernel(*args, **kw)


class Shrinking(torch.nn.Module):
    """A channel network with weights: not linear, and its variance is not clamped."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7), requires_grad=False)

    def forward(self, x, sigma):
        w = self.weight / (self.weight + sigma * sigma)
        return w * x * (1 + 0.1 * x.real), (2 * w * sigma * sigma).expand(x.shape[:2])


def _two_priors():
    return [sf.GaussianChannelPrior(1.0), sf.GaussianChannelPrior(1.7)]


CASES = {
    "default": ({}, ["probe", "score", "update", "update"]),
    "lagged": ({"lagged_noise": True}, ["probe", "step", "update"]),
    "moment, no sample noise": ({"calibration": "moment", "sample_noise": False}, ["score", "update", "update"]),
    "variance of the prior": ({"v0": 1.3}, ["probe", "score", "update", "update"]),
    "L=2": ({"L": 2}, ["probe", "probe", "score", "update", "update"]),
    "learned channel, lagged": ({"lagged_noise": True, "prior": Shrinking}, ["probe", "score", "update", "update"]),
    "correlated channel": (
        {"prior": lambda: sf.GaussianChannelPrior(1.3, cov_rx=torch.eye(NR))},
        ["probe", "score", "update", "update"],
    ),
    "users": (
        {"users": 2, "sigma_max": (3.0, 5.0), "zeta_h": (0.1, 0.05), "prior": _two_priors},
        ["probe", "score", "update", "update"],
    ),
}  # fmt: skip


def _receiver(device, users=1, prior=sf.GaussianChannelPrior, source=None, **config):
    encoder = RollEncoder(users, K, 1, T, torch.float32)
    encoder.scale, encoder.offset = encoder.scale.to(device), encoder.offset.to(device)
    levels = {"sigma_max": 3.0, "sigma_min": 0.2} | config
    made = sf.PVDConfig(users=users, source_shape=(encoder.n,), J=J, Jin=JIN, **levels)
    source = source or ([_one, _one] if made.sigma_per_user else GaussianSource(0.6, 0.1))
    return sf.PVD(encoder, prior(), source, made)


def _one(x, sigma):
    """One user's source."""
    w = 0.6 / (0.6 + sigma**2)
    return 0.1 + w * (x - 0.1), (w * sigma**2).expand(len(x))


def _received(device, users=1, batch=2):
    encoder = RollEncoder(users, K, 1, T, torch.float32)
    x = encoder(draw(batch, users, encoder.n, seed=5, dtype=torch.float32))
    return link(batch, users, K, NR, x, 0.05)[1].to(device)


@pytest.fixture
def captured(monkeypatch):
    """Lets receivers run their captured iteration as it is; what it called, and how often it was recorded."""
    monkeypatch.setattr(graph_pvd, "why_not", lambda y, config: graph_pvd.why_not_sizes(y, config))
    kernels, recorded = Counted(), []

    def make(run):
        return graph_pvd.PVDStepGraph(
            run, kernels, recorder=lambda update: recorded.append(update) or update, first=lambda update: update()
        )

    def stand_in(receiver):
        receiver.graphs = graph_pvd.PVDGraphs(make=make)
        return receiver

    return stand_in, kernels.calls, recorded


def _same(got, want):
    """Plain and captured kernels round alike but for levels formed in another precision and the normals of another
    back end: 2e-6 of a state of size 8 a step."""
    for name in ("h", "d", "energy"):
        g, w = getattr(got, name), getattr(want, name)
        error = float((g - w).abs().max())
        print(f"{name}: largest difference {error:.2e}, largest entry {float(w.abs().max()):.2f}")
        assert error <= STEPS * 2e-6 * 8
    assert torch.equal(got.chosen, want.chosen)


@pytest.mark.parametrize("case", CASES)
def test_captured_iterations_equal_the_loop(case, device, captured):
    stand_in, calls, recorded = captured
    config, nodes = CASES[case]
    receiver, y = _receiver(device, **config), _received(device, config.get("users", 1), 1)
    want = receiver.run(y, 0.05, seed=4, first_item=9)
    got = stand_in(receiver).run(y, 0.05, seed=4, first_item=9, graph=True)
    _same(got, want)
    # the first iteration is the plain loop's; score and step are two launches each: at most 5 of ours for one sample
    assert calls == nodes * (STEPS - 1) and len(recorded) == 1
    own = sum({"step": 2, "score": 2}.get(name, 1) for name in nodes)
    assert own <= 5 + receiver.config.L - 1


def test_kept_graph_follows_another_run(device, captured):
    """Another seed, first item, noise level and signal through the same buffers; other weights are another graph."""
    stand_in, _, recorded = captured
    receiver = stand_in(_receiver(device, prior=Shrinking))
    plain = _receiver(device, prior=Shrinking)
    for net in (receiver, plain):
        net.denoiser_d.callables[0].mu = 0.2
    y = _received(device, batch=1)
    for i, (seed, first, noise_var) in enumerate([(1, 0, 0.05), (-7, 3, 0.2)]):
        got = receiver.run(y + i, noise_var, seed=seed, first_item=first, graph=True)
        _same(got, plain.run(y + i, noise_var, seed=seed, first_item=first))
    assert len(recorded) == 1 and len(receiver.graphs.kept) == 1
    for net in (receiver, plain):
        net.denoiser_h.callables[0].weight.data = torch.tensor(0.4, device=device)  # at another address
    _same(receiver.run(y, 0.05, graph=True), plain.run(y, 0.05))
    assert len(recorded) == 2 and len(receiver.graphs.kept) == 2


def test_functions_are_captured_anew(device, captured):
    """A function may hide what it reads, so that its graph does not outlive the run."""
    stand_in, _, recorded = captured
    receiver = stand_in(_receiver(device, calibration="moment", source=lambda x, sigma: GaussianSource()(x, sigma)))
    y = _received(device, batch=1)
    for _ in range(2):
        receiver.run(y, 0.05, graph=True)
    assert len(recorded) == 2 and not receiver.graphs.kept


@pytest.mark.parametrize("jin", [1, 2])
def test_levels_are_seen_at_their_borders(jin, device, captured):
    """Callbacks get copies; per-image noise levels and restarts as in the plain loop."""
    stand_in, *_ = captured
    receiver = _receiver(device)
    receiver.config = sf.PVDConfig(source_shape=(4,), J=2, Jin=jin, sigma_max=3.0, sigma_min=0.2)
    y, noise_var = _received(device), torch.tensor([0.05, 0.1], device=device)
    want, got, starts = [], [], 3 - jin
    plain = receiver.run(y, noise_var, restarts=starts, on_level=want.append)
    _same(stand_in(receiver).run(y, noise_var, restarts=starts, on_level=got.append, graph=True), plain)
    assert [level.level for level in got] == [1, 0]
    for g, w in zip(got, want, strict=True):
        assert g.sigma == w.sigma
        for name in ("h", "d", "energy", "score_var"):
            torch.testing.assert_close(getattr(g, name), getattr(w, name), rtol=1e-5, atol=1e-4)
    assert not torch.equal(got[0].h, got[1].h)


def test_parts_of_a_batch_share_a_graph(device, captured):
    """run_in_batches hands graph= on, one recording for all equal parts; and leaves room for what a graph holds."""
    stand_in, _, recorded = captured
    receiver, y = stand_in(_receiver(device)), _received(device)
    got = run_in_batches(receiver, y, 0.05, limit=1, seed=4, first_item=2, graph=True)
    assert len(recorded) == len(receiver.graphs.kept) == 1
    _same(got, _receiver(device).run(y, 0.05, seed=4, first_item=2))
    room = 2 * pvd_batches.bytes_per_start(receiver, y, 0.05)
    assert [pvd_batches.part_size(receiver, y, 0.05, 3, room, graph=graph) for graph in (False, True)] == [2, 1]


def test_a_single_iteration_needs_no_graph(device, captured):
    stand_in, calls, recorded = captured
    receiver = stand_in(_receiver(device))
    receiver.config = sf.PVDConfig(source_shape=(4,), J=1, Jin=1)
    receiver.run(_received(device), 0.05, graph=True)
    assert not calls and not recorded


def test_what_cannot_be_captured_says_why(device):
    y = _received(device)
    exact = _receiver(device, exact_covariance=True)
    with pytest.warns(UserWarning, match="PVD: no CUDA graph, because .*(is on cpu|exact_covariance=True)"):
        got = exact.run(y, 0.05, graph=True)
    assert torch.equal(got.h, exact.run(y, 0.05).h)
    reason = graph_pvd.why_not_sizes(y, exact.config)
    assert reason is not None and "exact_covariance" in reason
    large = torch.empty(1, 1, 256, 24, dtype=torch.complex64)
    assert "Nr=256" in str(graph_pvd.why_not_sizes(large, _receiver(device).config))
