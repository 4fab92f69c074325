"""The entries of captured graphs: levels, guidance, ratios and noise read at a counter on the device, step after step."""

import pytest
import torch
import waterfill_bounds as wb

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

from semcom_fast.triton import waterfill_step, waterfill_step_authors

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes discarded lanes
STEPS = 4


def _tables(batch, device, dtype=torch.float64):
    """[T+1,B] levels that fall to 0, and guidance and ratio tables [T,B]."""
    start = torch.linspace(0.95, 0.5, batch, dtype=torch.float64)
    levels = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)[:, None] * start
    weights = 1 + torch.rand(STEPS, batch, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return tuple(t.to(device, dtype) for t in (levels, weights, 0.5 + weights))


@pytest.mark.parametrize("n", [64, 10, 1032])
@pytest.mark.parametrize("kind", ["per item", "shared", "transposed", "float32"])
def test_run_of_steps(n, kind, device):
    """T table steps equal T plain steps bit for bit; the level of the next network call is written every time."""
    c = wb.make(3, n, device=device)
    levels, weights, _ = _tables(3, device, torch.float32 if kind == "float32" else torch.float64)
    if kind == "shared":
        levels = levels[:, 0]
    if kind == "transposed":
        levels, weights = levels.T.contiguous().T, weights.T.contiguous().T
    counter = torch.zeros(2, dtype=torch.int64, device=device)
    told = torch.zeros(3, device=device)
    plain, g, first = c.g.clone(), c.g.clone(), torch.tensor(7, device=device)
    for k in range(STEPS):
        plain = waterfill_step.run(
            plain, c.x0, c.f, c.d, levels[k], levels[k + 1], c.uncond, weights[k], seed=5, step=k + 1, first_item=7
        )
        seed = torch.tensor(5, device=device)
        got = waterfill_step.run_table(
            g, c.x0, c.f, c.d, levels, counter, c.uncond, weights, seed=seed, first_item=first, level_out=told
        )
        assert got is g and torch.equal(g, plain) and counter.tolist() == [k + 1, 0]
        assert torch.equal(told, levels[k + 1].float().expand(3))
    for _ in range(2):  # past the end nothing changes
        waterfill_step.run_table(g, c.x0, c.f, c.d, levels, counter, c.uncond, weights, seed=seed, first_item=first)
        assert torch.equal(g, plain)


@pytest.mark.parametrize("n", [64, 1032])
def test_second_order_and_kept_prediction(n, device):
    c = wb.make(3, n, per="item", device=device)
    levels, weights, ratios = _tables(3, device)
    ratios[0] = torch.inf
    c.d = levels[0].float()[:, None]
    counter = torch.zeros(2, dtype=torch.int64, device=device)
    plain, g = c.g.clone(), c.g.clone()
    before, kept = torch.full_like(g, torch.nan), torch.full_like(g, torch.nan)
    for k in range(STEPS):
        x0 = c.x0 + k
        plain = waterfill_step.run(
            plain, x0, c.f, c.d, levels[k], levels[k + 1], c.uncond, weights[k], before, ratios[k], x0_out=before
        )
        waterfill_step.run_table(g, x0, c.f, c.d, levels, counter, c.uncond, weights, kept, ratios, seed=1, x0_out=kept)
        assert torch.equal(g, plain) and torch.equal(kept, before) and bool(torch.isfinite(g).all())


def test_noise_table_and_numbers(device):
    c = wb.make(3, 24, device=device)
    levels, _, _ = _tables(3, device)
    noise = torch.stack([c.noise + k for k in range(STEPS)])
    counter = torch.zeros(2, dtype=torch.int64, device=device)
    plain, g = c.g.clone(), c.g.clone()
    for k in range(STEPS):
        drawn = noise[min(k + 1, STEPS - 1)]  # the last level is 0: no element waits, no noise is read
        plain = waterfill_step.run(plain, c.x0, c.f, c.d, levels[k], levels[k + 1], c.uncond, 1.5, noise=drawn)
        waterfill_step.run_table(g, c.x0, c.f, c.d, levels, counter, c.uncond, 1.5, noise=noise)
        assert torch.equal(g, plain)


@pytest.mark.parametrize("n", [64, 10, 4104])
@pytest.mark.parametrize("option", [("amplitude", True, "own"), ("variance", False, "common")], ids=str)
def test_authors(n, option, device):
    c = wb.make(2, n, device=device)
    levels, _, _ = _tables(2, device)
    counter = torch.zeros(2, dtype=torch.int64, device=device)
    told = torch.zeros(2, device=device)
    want, f, g = (c.f, c.g), c.f.clone(), c.g.clone()
    for k in range(STEPS):
        want = waterfill_step_authors.run(*want, c.d, c.x0, levels[k], levels[k + 1], *option, seed=5, step=k + 1)
        waterfill_step_authors.run_table(f, g, c.d, c.x0, levels, counter, *option, seed=5, level_out=told)
        assert torch.equal(f, want[0]) and torch.equal(g, want[1]) and counter.tolist() == [k + 1, 0]
        assert torch.equal(told, levels[k + 1].float())
    waterfill_step_authors.run_table(f, g, c.d, c.x0 + 1, levels, counter, *option, seed=5)
    assert torch.equal(f, want[0]) and torch.equal(g, want[1])


def test_wrong_arguments(device):
    c = wb.make(2, 8, device=device)
    levels, weights, _ = _tables(2, device)
    counter = torch.zeros(2, dtype=torch.int64, device=device)
    state = (c.g, c.x0, c.f, c.d)
    with pytest.raises(TypeError, match=r"counter must be int64 \[2\]"):
        waterfill_step.run_table(*state, levels, counter[:1], seed=1)
    with pytest.raises(ValueError, match="levels must be"):
        waterfill_step.run_table(*state, levels[:, [0, 1, 1]], counter, seed=1)
    with pytest.raises(TypeError, match="levels must be float32 or float64"):
        waterfill_step.run_table(*state, levels.half(), counter, seed=1)
    with pytest.raises(ValueError, match="guidance must be"):
        waterfill_step.run_table(*state, levels, counter, c.uncond, weights[:2], seed=1)
    with pytest.raises(ValueError, match="noise must be contiguous"):
        waterfill_step.run_table(*state, levels, counter, noise=c.noise[None])
    with pytest.raises(ValueError, match="level_out must be"):
        waterfill_step.run_table(*state, levels, counter, seed=1, level_out=c.g)
    with pytest.raises(ValueError, match="g must be contiguous"):
        waterfill_step.run_table(c.g.T.contiguous().T, *state[1:], levels, counter, seed=1)
    with pytest.raises(ValueError, match="noise must be contiguous"):
        waterfill_step_authors.run_table(c.f, c.g, c.d, c.x0, levels, counter, noise=c.noise[None])
