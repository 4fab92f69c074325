"""The loop's captured update, run with the table kernels but without a capture, against the plain loop."""

import contextlib

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

import semcom_fast as sf
from semcom_fast.receivers import graph as cuda_graph

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes discarded lanes
CASES = {
    "paper": ("paper", {}, True),
    "paper, guided": ("paper", {"guidance": 2.0, "cfg_schedule": "pcs_1.0"}, True),
    "own base": ("paper", {"update_base": "own"}, True),
    "authors, fast fading": ("authors_per_sample", {"solver": "ddim", "latent_shift": 0.0}, True),
    "authors, slow fading": ("authors_per_sample", {"latent_shift": 0.0}, False),
}


def _predictor(guided):
    """The posterior mean of white noise, and half of it without guidance."""

    def predict(g, level):
        x0 = (1 - level.reshape(-1, *(1,) * (g.ndim - 1))).sqrt() * g
        return (x0, 0.5 * x0) if guided else x0

    return predict


class _Uncaptured(cuda_graph.StepGraph):
    def __init__(self, run, fading):
        super().__init__(run, fading, recorder=lambda update: update, first=lambda update: update())


@pytest.mark.parametrize("noise", ["philox", "given"])
@pytest.mark.parametrize("case", CASES)
def test_captured_update_equals_the_loop(case, noise, device, monkeypatch, triton_selected):
    preset, overrides, fast = CASES[case]
    config = sf.WaterfillConfig.preset(preset, steps=6, **overrides)
    gen = torch.Generator().manual_seed(0)
    f = torch.randn(3, 2, 4, 4, generator=gen).to(device)
    d = (torch.rand(3, 16, generator=gen) if fast else torch.tensor([0.9, 0.5, 0.2])).to(device)
    given = None if noise == "philox" or not fast else torch.randn(8, 3, 32, generator=gen).to(device)
    loop = sf.WaterfillDDIM(_predictor("guided" in case or "authors" in case), config)
    want = loop.run(f, d, seed=4, noise=given, first_item=9)
    monkeypatch.setattr(cuda_graph, "StepGraph", _Uncaptured)
    monkeypatch.setattr(cuda_graph, "why_not", lambda *_: None)
    with triton_selected("cpu") if device.type == "cpu" else contextlib.nullcontext():
        got = loop.run(f, d, seed=4, noise=given, first_item=9, graph=True)
    # 6 steps of a contraction, each within 2e-6 relative of a state of size 4; normals differ by 2e-6.
    error = float((got - want).abs().max())
    print(f"{case}, {noise}: largest difference {error:.2e}")
    assert error <= 6 * 2e-6 * 4
