"""The loops' benchmarks: what they count is there, the other programs are the same algorithm, no run waits inside."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import semcom_fast as sf
from benchmarks import counts, loops, pvd_loop, timing, vb_loop, waterfill_loop
from semcom_fast.receivers import PVD, GaussianChannelPrior

SIDES = ("loop", "network", "plain", "user")


@pytest.fixture(scope="module")
def cases():
    """One small case of every loop; PVD on fewer steps than the shortest benchmark has."""
    with torch.random.fork_rng():
        p = pvd_loop.problem("small", quick=True)
        short = replace(p, config=replace(p.config, J=2, Jin=3), y=p.y[:3])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pvd_loop, "problem", lambda size, quick: short)
            found = {"pvd_loop": pvd_loop.case("small", True)}
        found["waterfill_loop"] = waterfill_loop.case("small", 2, 4)
        size = vb_loop.Size(16, 3, 3, 2)
        networks, problem = vb_loop.make_networks(16, 3), vb_loop.Problem.make(2, 10.0)
        found["vb_loop"] = vb_loop.case("quick", size, networks, problem, "all iterations", torch.float32)
        yield found


@pytest.fixture(scope="module")
def counted(cases):
    return {n: {side: counts.count(c.sides[side], c.networks) for side in SIDES} for n, c in cases.items()}


class Planted(nn.Module):
    """A network that reads a value, copies to the host and makes a tensor of host data, as often as it is asked to."""

    def __init__(self, reads: int) -> None:
        super().__init__()
        self.reads = reads

    def forward(self, x):
        for _ in range(self.reads):
            x[0].item()
            x.cpu()
            torch.tensor([1.0])
        return 2 * x + 1


def _planted(reads: int, calls: int = 3) -> counts.Counted:
    network, x = Planted(reads), torch.ones(4)

    def run() -> None:
        bool(x.any())  # before the first call: of the run, not of its inside
        for _ in range(calls):
            network(x)

    return counts.count(run, [network])


@pytest.mark.parametrize("reads", [0, 1, 2])
def test_planted_waits_and_copies_are_counted(reads):
    found = _planted(reads)
    assert (found.inside.syncs, found.inside.copies) == (3 * 2 * reads, 3 * reads)
    assert (found.run.syncs, found.run.copies) == (3 * 2 * reads + 1, 3 * reads)
    assert found.inside.launches == 3 * 2  # a product and a sum; taking x[0] and the reads are none
    assert found.run.launches == 3 * 2 + 1


@pytest.mark.parametrize(
    "wait", [torch.Tensor.tolist, torch.Tensor.numpy, torch.nonzero, lambda t: t[t > 0], lambda t: t.to("cpu"), float]
)
def test_every_kind_of_wait_is_counted(wait):
    t = torch.ones(1)
    assert counts.count(lambda: wait(t), []).run.syncs == 1


def test_ops_called_past_the_dispatcher_are_launches():
    y, h, x = (torch.randn(2, *s, dtype=torch.complex64) for s in ((3, 2, 4), (1, 3, 2, 1), (1, 3, 1, 4)))
    assert counts.count(lambda: sf.likelihood_score(y, h, x), []).run == counts.Counts(launches=1)


def test_runtime_events_are_sorted_and_bounded():
    names = ["cudaLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch", "cudaStreamSynchronize"]
    names += ["Memcpy HtoD (Pageable -> Device)", "cudaMemcpyAsync", "aten::add"]
    events = [(name, float(i)) for i, name in enumerate(names)]
    assert counts.tally(events) == counts.Counts(launches=3, syncs=1, copies=1)
    assert counts.tally(events, 1.0, 3.0) == counts.Counts(launches=2, syncs=1, copies=0)


def test_peak_memory_of_a_run():
    size = 64 << 20
    assert 0.98 * size <= counts.peak_bytes(lambda: torch.ones(size // 4).sum()) < 2 * size
    assert counts.peak_bytes(lambda: torch.ones(8).sum()) < size // 8


@pytest.mark.parametrize("name", loops.LOOPS)
def test_other_programs_are_the_same_algorithm(cases, name):
    found = cases[name].agree()
    assert set(found) == {"plain", "user"} and all(0 <= error < 1e-3 for error in found.values())


def test_another_algorithm_is_refused(cases):
    with pytest.raises(RuntimeError, match="plain and the loop differ by 5"):
        loops.difference("plain", torch.tensor([1.0, 1.5]), torch.tensor([1.0, 1.0]), 1e-3)


@pytest.mark.parametrize("name", loops.LOOPS)
def test_network_side_makes_the_loops_own_calls(cases, counted, name):
    """As many calls of every network, with the same work in them: what is left of the loop's launches is small."""
    calls = {side: [] for side in ("loop", "network")}
    for side, seen in calls.items():
        hooks = [
            n.register_forward_pre_hook(lambda m, a, seen=seen: seen.append((id(m), a[0].shape)))
            for n in cases[name].networks
        ]
        cases[name].sides[side]()
        for hook in hooks:
            hook.remove()
    assert calls["loop"] and sorted(calls["loop"]) == sorted(calls["network"])
    own = counted[name]["loop"].inside.launches - counted[name]["network"].inside.launches
    assert 0 < own / cases[name].steps < 25


@pytest.mark.parametrize("name", ["pvd_loop", "waterfill_loop"])
def test_nothing_waits_inside_a_run(cases, counted, name):
    """Exceptions: PVD looks at its first iteration's codeword and gradient (on a CPU only, three reads), and a network may
    read what it likes (the digits' denoiser reads sigma on a CPU)."""
    loop, network = counted[name]["loop"].inside, counted[name]["network"].inside
    assert loop.syncs - network.syncs == (3 if name == "pvd_loop" else 0)
    assert loop.copies == 0
    assert counted[name]["loop"].run.syncs - loop.syncs <= 6  # arguments at the start, the result at the end


def test_the_estimator_waits_per_iteration_not_per_step():
    """VB-MoE looks at a chain's end, at the evidence and at the responsibilities, once each per outer iteration; ten times
    the diffusion steps make no difference."""
    found = {}
    for steps in (10, 20):
        networks, p = vb_loop.make_networks(16, steps), vb_loop.Problem.make(1, 10.0)
        case = vb_loop.case("quick", vb_loop.Size(16, steps, 2, 1), networks[:2], p, "all iterations", torch.float32)
        found[steps] = counts.count(case.sides["loop"], case.networks)
    assert found[10].inside.syncs == found[20].inside.syncs < 10
    assert found[10].inside.copies == found[20].inside.copies


@pytest.mark.parametrize("init", ["uniform", "per_expert"])
def test_an_outer_iteration_waits_three_times(init):
    """At the chain's end, for the evidence's check, and once for both decisions: who goes on, and with which experts."""
    p, networks, waits = vb_loop.Problem.make(2, 10.0), vb_loop.make_networks(16, 4)[:2], []
    experts = [vb_loop.CNNExpert(n, torch.float32) for n in networks]
    for iterations in (2, 3, 4):
        estimator = sf.VBMoE(
            experts, sf.VBMoEConfig(steps=4, iterations=iterations, tolerance=0.0, prune=0.0, init=init)
        )
        waits.append(counts.count(lambda e=estimator: e.run(p.y, p.svd, p.noise_var), networks).run.syncs)
    assert waits[2] - waits[1] == waits[1] - waits[0] == 3


def test_published_style_waits_at_every_step(cases, counted):
    for name, case in cases.items():
        assert counted[name]["user"].inside.syncs >= 2 * (case.steps - 1), name
        assert counted[name]["plain"].inside.syncs == counted[name]["network"].inside.syncs, name


def test_pvd_waits_for_nothing_with_other_options():
    """Neither samples, calibration, per-user levels nor a correlated prior read a value at a step."""
    p = pvd_loop.problem("small", quick=True)
    y, prior = p.y[:2], GaussianChannelPrior
    for receiver in (
        {"L": 2},
        {"calibration": "moment"},
        {"lagged_noise": True},
        {"prior": prior(cov_rx=torch.eye(4, dtype=torch.complex64) + 0.1)},
    ):
        law = receiver.pop("prior", prior())
        runs = []
        for jin in (1, 2):
            config = replace(p.config, J=2, Jin=jin, **receiver)
            runs.append(
                counts.count(lambda law=law, c=config: PVD(p.encoder, law, p.denoiser, c).run(y, 0.1), [p.denoiser])
            )
        more = runs[1].run.syncs - runs[0].run.syncs
        assert more == 2, receiver  # of the denoiser, in the two further steps


def test_a_row_has_everything(cases, capsys, monkeypatch):
    row = loops.measure(cases["waterfill_loop"], rounds=2)
    loops.show(row)
    assert row["own_us_per_step"] == pytest.approx(row["loop_us_per_step"] - row["network_us_per_step"])
    assert row["overhead_low"] <= row["overhead"] <= row["overhead_high"]
    assert row["user_syncs_per_step"] > 0 == row["own_syncs_per_step"] and row["counted_by"] == "dispatcher"
    assert row["ratio_to_plain_low"] <= row["ratio_to_plain"] <= row["ratio_to_plain_high"]
    assert "waits a step: loop 0.00" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no loop named 'nothing'"):
        loops.run(["nothing"])
    assert timing.device == "cpu"
