"""VBMoE with banks of experts, and with stand-ins for CUDA graphs."""

import pytest
import torch
from white_experts import POWERS, SMALL, Bank, Still, T, experts, received, same

import semcom_fast as sf
from semcom_fast.receivers import graph as cuda_graph


@pytest.mark.parametrize("each", [False, True])
def test_bank_equals_list(each):
    y, p, noise_var, _ = received(6, snr_db=3)
    config = sf.VBMoEConfig(**SMALL)
    bank = Bank(experts(), each)
    got, want = sf.VBMoE(bank, config).run(y, p, noise_var), sf.VBMoE(experts(), config).run(y, p, noise_var)
    assert same(got, want)
    assert bank.used.count("each") == (T if each else 0) and "all" in bank.used


def test_bank_of_the_wrong_shape():
    y, p, noise_var, _ = received()
    bank = Bank(experts(), False)
    bank.__class__ = type("Short", (Bank,), {"__call__": lambda self, h, t: Bank.__call__(self, h, t)[:, :2]})
    with pytest.raises(ValueError, match=r"the expert bank must return eps \(5, 3, 2, 6\) at diffusion step 10"):
        sf.VBMoE(bank, sf.VBMoEConfig(init="uniform", **SMALL)).run(y, p, noise_var)


@pytest.fixture
def stand_ins(monkeypatch):
    """A receiver whose graphs are its own functions, called again; counts recordings."""
    monkeypatch.setattr(cuda_graph, "why_not_chain", lambda state: None)
    recorded = []

    def make(config, made=None):
        v = sf.VBMoE(made or [Still(v) for v in POWERS], config)
        v.replays = cuda_graph.Replays(
            recorder=lambda update: recorded.append(update) or update, first=lambda update: None
        )
        return v

    return make, recorded


@pytest.mark.parametrize("preset", ["recommended", "paper"])
@pytest.mark.parametrize("snr_db", [3.0, -6.0])
def test_replayed_runs_equal_plain_ones(preset, snr_db, stand_ins):
    make, recorded = stand_ins
    v = make(sf.VBMoEConfig.preset(preset, graph=True, **SMALL))
    plain = sf.VBMoE(experts(), sf.VBMoEConfig.preset(preset, **SMALL))
    for seed in (0, 0, 0, 5):  # as it is, recorded, replayed, replayed on other data
        y, p, noise_var, _ = received(6, snr_db=snr_db, seed=seed)
        got, want = v.run(y, p, noise_var, seed=seed), plain.run(y, p, noise_var, seed=seed)
        assert torch.equal(got.iterations, want.iterations) and torch.equal(got.calls, want.calls)
        assert torch.equal(got.h, want.h) and torch.equal(got.responsibilities, want.responsibilities)
    assert recorded


def test_a_chain_is_recorded_at_its_second_use(stand_ins):
    make, recorded = stand_ins
    y, p, noise_var, _ = received()
    v = make(sf.VBMoEConfig(graph=True, **SMALL), [Still(1.0)])
    counts = []
    for _ in range(4):
        v.run(y, p, noise_var)
        counts.append(len(recorded))
    assert counts == [0, 1, 1, 1]
    v.run(y[:2], p, noise_var)
    v.run(y[:2], p, noise_var)
    assert len(recorded) == 2  # another batch is another graph


def test_other_experts_are_recorded_again(stand_ins):
    """A graph holds addresses and branches of the experts it went through."""
    make, recorded = stand_ins
    y, p, noise_var, _ = received()
    expert = Still(1.0)
    v = make(sf.VBMoEConfig(graph=True, **SMALL), [expert])
    counts = []
    for change in (None, None, "moved", None, "half", None):
        if change == "moved":
            expert.gain = expert.gain.copy() * 0.5
        if change == "half":
            expert.name = "other"
        want = sf.VBMoE([expert], sf.VBMoEConfig(**SMALL)).run(y, p, noise_var)
        assert torch.equal(v.run(y, p, noise_var).h, want.h)
        counts.append(len(recorded))
    assert counts == [0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("why", ["a function", "autocast"])
def test_graphs_of_one_run_alone(why, stand_ins):
    """Functions may read anything, and autocast frees its casts of weights: nothing is kept for the next run."""
    make, _ = stand_ins
    y, p, noise_var, _ = received()
    still = [Still(v) for v in POWERS]
    v = make(
        sf.VBMoEConfig(graph=True, **SMALL),
        [lambda h, t, e=e: e(h, t) for e in still] if why == "a function" else still,
    )
    with torch.autocast("cpu", enabled=why == "autocast"):
        for _ in range(3):
            assert same(v.run(y, p, noise_var), sf.VBMoE(still, sf.VBMoEConfig(**SMALL)).run(y, p, noise_var))
    assert not v.replays.kept


def test_kept_graphs_are_limited():
    made = []
    replays = cuda_graph.Replays(
        limit=2, recorder=lambda update: made.append(update) or update, first=lambda update: None
    )
    x = torch.ones(3)
    for key in ("a", "a", "b", "b", "c", "c", "b"):
        assert torch.equal(replays(key, lambda t: (2 * t,), [x])[0], 2 * x)
    assert len(made) == 3 and len(replays.kept) == 2
    replays("a", lambda t: (2 * t,), [x])
    assert len(made) == 3  # "a" had gone: this is its first use again


def test_graph_without_a_gpu_says_so():
    y, p, noise_var, _ = received()
    with pytest.warns(UserWarning, match="VBMoE: no CUDA graph, because the channels are on cpu"):
        got = sf.VBMoE(experts(), sf.VBMoEConfig(graph=True, **SMALL)).run(y, p, noise_var)
    assert same(got, sf.VBMoE(experts(), sf.VBMoEConfig(**SMALL)).run(y, p, noise_var))
