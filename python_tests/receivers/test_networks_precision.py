"""Water-filling and the expert mixture with networks whose outputs are off: the result stays within the stated bound."""

import math

import pytest
import torch
from sf_testing import within
from torch import nn

import semcom_fast as sf
from semcom_fast.receivers import vb_change_bound, waterfill_change_bound

LATENT = (4, 6, 6)


def rms(t: torch.Tensor) -> float:
    return float(t.abs().double().square().mean().sqrt())


class Rotated(nn.Module):
    """sqrt(1 - level) g Q Q^T with a random rotation Q of the channels: the exact prediction of a white source, by two
    matrix products, which autocast rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.linalg.qr(torch.randn(LATENT[0], LATENT[0]))[0], requires_grad=False)

    def forward(self, g, level):
        turned = g.permute(0, 2, 3, 1) @ self.q
        return (turned @ self.q.T).permute(0, 3, 1, 2).to(g.dtype) * (1 - level).sqrt().reshape(-1, 1, 1, 1)


def _latent(fading: bool):
    n = math.prod(LATENT)
    d = sf.philox_normal((2, n // 2), seed=1).abs().clamp(0.05, 0.9) * 0.7 if fading else torch.tensor([0.6, 0.3])
    f = sf.philox_normal((2, *LATENT), seed=2)
    return f, d, d.amax(1) if fading else d


def _bounds(config, start, change, fading):
    levels = config.tables(start.double().numpy(), falling=fading).levels
    return [waterfill_change_bound(levels[:, b], change) for b in range(len(start))]


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_waterfill_bound_is_reached(steps):
    """A white source's prediction, off by the same in every call: on one level per image the bound is what comes out."""
    f, d, start = _latent(False)
    config, off = sf.WaterfillConfig(steps=steps), 1e-3

    def run(change: float) -> torch.Tensor:
        predict = lambda g, level: (1 - level).sqrt().reshape(-1, 1, 1, 1) * g + change  # noqa: E731
        return sf.WaterfillDDIM(predict, config).run(f.double(), d.double())

    moved = run(off) - run(0.0)
    for got, bound in zip(moved, _bounds(config, start, off, False), strict=True):
        assert rms(got) == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("fading", [False, True])
def test_waterfill_with_a_bfloat16_network(fading):
    """The change of single calls is measured on the run's own inputs; the run's result stays within the bound of it."""
    torch.manual_seed(0)
    network, config = Rotated(), sf.WaterfillConfig(steps=20)
    f, d, start = _latent(fading)
    changes = []

    def half(g, level):
        with torch.autocast("cpu", torch.bfloat16):
            out = network(g, level)
        changes.append(rms(out - network(g, level)))
        return out

    moved = rms(sf.WaterfillDDIM(half, config).run(f, d) - sf.WaterfillDDIM(network, config).run(f, d))
    assert 1e-4 < max(changes) < 2**-6  # it was rounded
    bound = max(_bounds(config, start, torch.tensor(changes), fading))
    within(torch.tensor(moved), torch.tensor(0.0), bound, f"bfloat16 predictor, fading {fading}")
    assert moved > 0.02 * bound


def test_waterfill_bound_grows_with_the_logarithm_of_steps():
    levels = {k: sf.WaterfillConfig(steps=k).tables(torch.tensor([0.8]).numpy()).levels[:, 0] for k in (10, 100, 1000)}
    found = {k: waterfill_change_bound(v, 1.0) for k, v in levels.items()}
    assert 1 < found[10] < found[100] < found[1000] < 8
    assert found[1000] - found[100] == pytest.approx(found[100] - found[10], rel=0.2)
    assert waterfill_change_bound(levels[10], 1.0, gain=2.0) > 1.5 * found[10]
    assert waterfill_change_bound([0.5, 0.0], 0.25) == 0.25 and waterfill_change_bound([0.0, 0.0], 1.0) == 0.0


def _channels(correlation: float):
    """A Gaussian channel with an exponential correlation over the transmit antennas, its pilots, what was received."""
    nr, nt, slots = 4, 8, 6
    k = torch.arange(nt, dtype=torch.float64)
    cov = (correlation ** (k[:, None] - k).abs()).to(torch.complex128)
    values, vectors = torch.linalg.eigh(cov)
    normal = lambda shape, seed: sf.philox_normal(shape, seed=seed, dtype=torch.complex128)  # noqa: E731
    h = normal((16, nr, nt), 1) * values.sqrt() @ vectors.mH
    pilots = torch.exp(
        2j * math.pi * torch.rand((nt, slots), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    noise_var = nt * 10 ** (-1.0)
    y = h @ pilots + noise_var**0.5 * normal((16, nr, slots), 2)
    return values, vectors, pilots, noise_var, y


@pytest.mark.parametrize("correlation", [0.0, 0.7])
@pytest.mark.parametrize("lik", ["x0", "dmps"])
@pytest.mark.parametrize("kind", ["same", "bfloat16"])
def test_estimator_within_its_bound(correlation, lik, kind):
    """One expert, exact for a Gaussian channel, white or correlated along directions that the pilots do not share; its eps
    is off by the same in every call and entry, or rounded to bfloat16."""
    values, vectors, pilots, noise_var, y = _channels(correlation)
    config = sf.VBMoEConfig(steps=30, lik=lik, iterations=1)
    tables = config.tables()
    changes = {}

    def exact(h, t):
        bar = float(tables.alpha_bar[t])
        return ((h @ vectors) * ((1 - bar) ** 0.5 / (bar * values + 1 - bar))) @ vectors.mH

    def other(h, t):
        eps = exact(h, t)
        moved = eps + 1e-3 if kind == "same" else torch.view_as_complex(torch.view_as_real(eps).bfloat16().double())
        changes[t] = rms(moved - eps)
        return moved

    before, after = (sf.VBMoE(net, config).run(y, pilots, noise_var).h for net in (exact, other))
    moved = rms(after - before)
    snr = float(torch.linalg.matrix_norm(pilots, 2)) ** 2 / noise_var
    change = torch.tensor([changes[t] for t in range(1, 31)])
    bound = vb_change_bound(
        tables, change, largest=float(values[-1]), pilot_snr=snr, lam=config.likelihood_scale(10.0), x0=lik == "x0"
    )
    within(torch.tensor(moved), torch.tensor(0.0), bound, f"eps off, {kind}, correlation {correlation}, {lik}")
    assert moved > 0.01 * bound


def test_estimator_bound_is_reached_without_a_likelihood():
    """lam = 0 and a white channel: every direction has the same factor, so a constant change adds up to the bound."""
    _, _, pilots, noise_var, y = _channels(0.0)
    config = sf.VBMoEConfig(steps=30, lam=0.0, iterations=1)
    bars = config.tables().alpha_bar

    def run(change: float) -> torch.Tensor:
        return sf.VBMoE(lambda h, t: (1 - bars[t]) ** 0.5 * h + change, config).run(y, pilots, noise_var).h

    assert rms(run(1e-3) - run(0.0)) == pytest.approx(_white_bound(config), rel=1e-6)


def _white_bound(config) -> float:
    """The recursion by hand for v = 1 alone: k = 1, so the state's factor is sqrt(1 - beta)."""
    tables, total = config.tables(), 0.0
    for t in range(config.steps, 0, -1):
        beta, bar = float(tables.beta[t]), float(tables.alpha_bar[t])
        total = (1 - beta) ** 0.5 * total + beta / ((1 - beta) * (1 - bar)) ** 0.5 * 1e-3
    assert total <= vb_change_bound(tables, 1e-3, lam=0.0) * (1 + 1e-9)
    return total


class Table(nn.Module):
    """The exact expert of a white channel, its coefficients in a tensor, on real planes, as networks have it."""

    def __init__(self, bars) -> None:
        super().__init__()
        self.register_buffer("roots", torch.tensor((1 - bars) ** 0.5, dtype=torch.float32))
        self.q = nn.Parameter(torch.linalg.qr(torch.randn(8, 8))[0], requires_grad=False)

    def forward(self, planes, level):
        return planes @ self.q @ self.q.T * self.roots[level].reshape(-1, 1, 1, 1)


def test_compiled_networks_stay_within_the_bounds():
    """Graphs of one network each, whole, for all levels: what they change is float32 rounding, and the loops add no more."""
    torch.manual_seed(0)
    network, config = Rotated(), sf.WaterfillConfig(steps=8)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    f, d, start = _latent(True)
    levels = start[:, None] * torch.linspace(1, 0.1, 8)
    change = max(rms(compiled(f, v) - network(f, v)) for v in levels.T) + 2**-24
    moved = rms(sf.WaterfillDDIM(compiled, config).run(f, d) - sf.WaterfillDDIM(network, config).run(f, d))
    within(torch.tensor(moved), torch.tensor(0.0), max(_bounds(config, start, change, True)), "compiled predictor")

    _, _, pilots, noise_var, y = _channels(0.0)
    chain = sf.VBMoEConfig(steps=30, lik="x0", iterations=1)
    table = Table(chain.tables().alpha_bar)
    graph = torch.compile(table, fullgraph=True, backend="eager")

    def expert(net):
        def eps(h, t):
            out = net(torch.stack((h.real, h.imag), 1), torch.full((len(h),), t))
            return torch.complex(out[:, 0], out[:, 1])

        return eps

    ends = [
        sf.VBMoE(expert(n), chain).run(y.to(torch.complex64), pilots.to(torch.complex64), noise_var).h
        for n in (table, graph)
    ]
    snr = float(torch.linalg.matrix_norm(pilots, 2)) ** 2 / noise_var
    bound = vb_change_bound(chain.tables(), 2**-22, pilot_snr=snr, lam=chain.likelihood_scale(10.0))
    within(torch.tensor(rms(ends[1] - ends[0])), torch.tensor(0.0), bound, "compiled expert")
