"""The estimator's chains and evidence as a graph replays them, on the Triton kernels but without a capture."""

import pytest
import torch
from white_experts import POWERS, SMALL, Still, received

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

import semcom_fast as sf
from semcom_fast.receivers import graph as cuda_graph

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter computes discarded lanes
    pytest.mark.skipif(torch.cuda.is_available(), reason="python_tests/cuda captures on the device itself"),
]


def test_replayed_runs_have_the_bits_of_plain_ones(triton_selected, monkeypatch):
    """Also with other seeds than the one that was recorded: the draws come from the kernels, by cells on the device."""
    monkeypatch.setattr(cuda_graph, "why_not_chain", lambda state: None)
    config = {"iterations": 2, "tolerance": 0.0} | SMALL
    experts, recorded = [Still(v) for v in POWERS], []
    replayed = sf.VBMoE(experts, sf.VBMoEConfig(graph=True, **config))
    replayed.replays = cuda_graph.Replays(
        recorder=lambda update: recorded.append(update) or update, first=lambda update: None
    )
    plain = sf.VBMoE(experts, sf.VBMoEConfig(**config))
    y, p, noise_var, _ = received(2, snr_db=3)
    with triton_selected("cpu"):
        for seed in (0, 2**63 + 5):
            got, want = (v.run(y, p, noise_var, seed=seed, first_item=7) for v in (replayed, plain))
            assert torch.equal(got.h, want.h) and torch.equal(got.responsibilities, want.responsibilities)
    assert recorded
