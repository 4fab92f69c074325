"""The entries of PVD's captured graphs against the plain launches: levels read at a counter, results in place."""

from itertools import pairwise

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

import semcom_fast as sf
from semcom_fast.receivers.graph_pvd import level_table
from semcom_fast.triton import pvd_calibrate, pvd_captured, pvd_channel_step, pvd_update
from semcom_fast.triton._launch import PvdLevels
from semcom_fast.triton._pvd_table import Prior, PvdTable, with_coefficients

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes discarded lanes
STEPS, SEED, ITEM = 3, 2**40 + 3, 6


def _table(device, users=1):
    """Three iterations, the second of which ends a level."""
    g = torch.Generator().manual_seed(0)
    table = 0.3 + torch.rand(STEPS + 1, 4, users, dtype=torch.float64, generator=g)
    table[:, 1] += 1
    table[:, 3] = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)[:, None]
    return PvdTable(with_coefficients(table).to(device), torch.zeros(2, dtype=torch.int64, device=device))


def _cells(device):
    return {name: torch.tensor(v, device=device) for name, v in (("seed", SEED), ("first_item", ITEM))}


def _normal(device, *shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _cell(t):
    """A level [B], [U], or [L,B] of a kernel."""
    return (t, 0, 0, 1) if t.ndim == 1 else (t, t.stride(0), t.stride(1), 0)


@pytest.mark.parametrize("size", [(1, 2, 1, 12), (2, 2, 2, 7)], ids=str)
def test_update(size, device):
    """Bit for bit the plain launch with the row's levels (divisors are powers of two), in place; the anchor follows where
    a level ends; the last launch of an iteration tells the next sigma and moves the counter."""
    samples, _, groups, _ = size
    table, users = _table(device, groups), torch.linspace(0.1, 0.3, groups, dtype=torch.float64, device=device)
    mean, anchor = (_normal(device, *size[1:], seed=s) for s in (1, 2))
    sample, denoised, score = (_normal(device, *size, seed=s) for s in (3, 4, 5))
    divisor = torch.tensor([[0.5, 2.0], [4.0, 0.25]][:samples], dtype=torch.float64, device=device)
    told = torch.zeros(groups, device=device)
    for k in range(STEPS):
        sigma, above, following, border = table.table[k, :4]
        levels = PvdLevels(*map(_cell, (sigma, above, users, divisor, following)))
        plain = (mean.clone(), anchor.clone(), sample.clone(), denoised, score)
        want = pvd_update.run(*plain, None, levels, SEED, k + 1, 2, ITEM)
        pvd_update.run_table(
            mean, anchor, sample, denoised, score, _cell(users), _cell(1 / divisor), table, stream=2, **_cells(device)
        )
        assert torch.equal(mean, want[0]) and torch.equal(sample, want[1]) and table.counter.tolist() == [k, 0]
        assert torch.equal(anchor, mean if border[0] else plain[1])
        pvd_update.run_table(
            *(t.clone() for t in (mean, anchor, sample, denoised, score)), _cell(users), _cell(1 / divisor), table,
            stream=2, level_out=told, **_cells(device),
        )  # fmt: skip
        assert table.counter.tolist() == [k + 1, 0] and torch.equal(told, table.table[k + 1, 0].float())


def test_white_update(device):
    """The prior in place of the denoised channel: w x, and the score through w; no seed draws nothing."""
    table, var = _table(device), torch.tensor([1.7], dtype=torch.float64, device=device)
    mean, anchor, sample, score = (_normal(device, 2, 1, 12, seed=s) for s in range(4))
    sigma, above = table.table[0, 0], table.table[0, 1]
    w = var / (var + sigma**2)
    one, half = (torch.full((1,), v, dtype=torch.float64, device=device) for v in (1.0, 0.5))
    levels = PvdLevels(*map(_cell, (sigma, above, half, one)), None)
    plain = (mean.clone(), anchor, sample[None].clone(), (w.float() * sample)[None], (w.float() * score)[None])
    want, _ = pvd_update.run(*plain, None, levels)
    pvd_update.run_table(
        mean, anchor, sample[None], None, score[None], _cell(half), _cell(one), table, prior=Prior.of(var, table.table),
        seed=None, stream=1,
    )  # fmt: skip
    # w is rounded before the score is scaled in the one, after it in the other
    torch.testing.assert_close(mean, want, rtol=1e-6, atol=1e-6)
    assert torch.equal(sample, mean)


def test_probe(device):
    """The draw of this iteration, its variance brought into [0, sigma^2]; NaN is not lost."""
    table = _table(device)
    table.counter[0] = 1
    point = _normal(device, 4, 2, 6)
    var = torch.tensor([[0.05, 99.0], [-1.0, 0.0], [0.02, torch.nan], [0.01, 0.03]], device=device)
    out = torch.empty_like(point)
    pvd_update.run_probe_table(point, (var, 0, 2, 1), out, table, stream=5, **_cells(device))
    spread = torch.minimum(var.clamp_min(0), table.table[1, 0].square().float()).sqrt()
    z = sf.philox_normal((4, 2, 6), seed=SEED, step=1, stream=5, first_item=ITEM, device=device)
    torch.testing.assert_close(out, point + spread[..., None] * z, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert bool(torch.isnan(out[2, 1]).all())


B, U, K, NR, NT, T = 2, 2, 1, 2, 1, 3


def _channel(device):
    """y, x, the probe's codeword; mean, anchor, sample."""
    state = (B, U, K, NR, NT, 2)
    shapes = [(B, K, NR, T, 2), (B, U, K, NT, T, 2), (B, U, K, NT, T, 2), state, state, state]
    tensors = [_normal(device, *shape, seed=s) for s, shape in enumerate(shapes)]
    return tensors[:3], tensors[3:]


def _calibration(device, lagged):
    noise_var = torch.tensor([0.3, 0.4], dtype=torch.float64, device=device)
    scratch = torch.empty(B * K, 2 + U, dtype=torch.float64, device=device)
    before = torch.tensor([0.7, 0.9], device=device)
    per_score = torch.zeros(2, B, dtype=torch.float64, device=device)
    energy = torch.zeros(B, device=device)
    return pvd_captured.Calibration(noise_var, 3.0, NR * K * T, energy, before, per_score, scratch, lagged)


def _check_calibration(found, before, probe_x, probe_y, var_h, energy):
    s = pvd_calibrate.run(found.noise_var, var_h, probe_x, probe_y, 3.0, NR, NR * K * T)
    used = before if found.lagged else s
    assert torch.equal(found.energy, energy)
    torch.testing.assert_close(found.score_var, s, rtol=2e-7, atol=0)  # var_h is not rounded in between
    torch.testing.assert_close(found.per_score[0], 1 / used.double(), rtol=2e-7, atol=0)
    assert torch.equal(found.per_score[1], 2 * found.per_score[0])


@pytest.mark.parametrize("per_user", [False, True])
def test_channel_step(per_user, device):
    """Bit for bit `pvd_channel_step` with the row's levels and the divisor of before, in place; then this divisor."""
    (y, x, probed), channel = _channel(device)
    table, found = _table(device, U if per_user else 1), _calibration(device, lagged=True)
    var = torch.tensor([1.2, 0.8], dtype=torch.float64, device=device)
    zeta = (torch.tensor(0.1, dtype=torch.float64, device=device), 0, 0, 0)
    table.counter[0] = k = 1
    before, score_x = found.score_var.clone(), torch.empty_like(x)
    sigma, above, following = ((t, 0, 0, table.stride) for t in table.table[k, :3])
    levels = pvd_channel_step.ChannelLevels(sigma, above, zeta, (before, 0, 1, 0), following, (var, 0, 0, 1))
    out = (torch.empty_like(channel[0]), torch.empty_like(channel[0]), torch.empty_like(x), *_sums(device))
    pvd_channel_step.run(y, x, probed - x, *channel, None, levels, SEED, k + 1, 1, ITEM, out=out)
    pvd_captured.run_step(
        (y, x, probed), tuple(channel), score_x, zeta, Prior.of(var, table.table), table, found, **_cells(device)
    )
    mean, anchor, sample = channel
    assert torch.equal(mean, out[0]) and torch.equal(sample, out[1]) and torch.equal(score_x, out[2])
    assert torch.equal(anchor, mean) and table.counter.tolist() == [k, 0]  # the level ends here
    s2 = table.table[k, 0].square()
    _check_calibration(found, before, out[4], out[5], (var * s2 / (var + s2)).float().expand(B, U), out[3])


def _sums(device):
    return [torch.empty(shape, device=device) for shape in ((B,), (B, U), (B,))]


@pytest.mark.parametrize("given", ["prior", "denoised", "moment"])
def test_score(given, device):
    """The scores of `likelihood_score` at the denoised channel, its energies, and this iteration's divisor."""
    (y, x, probed), (sample, *_) = _channel(device)
    table, found = _table(device), _calibration(device, lagged=False)
    score_h, score_x = torch.empty_like(sample), torch.empty_like(x)
    sigma2, v = table.table[0, 0].square(), torch.tensor(1.2, dtype=torch.float64, device=device)
    w, var_h = (v / (v + sigma2)).float(), (v * sigma2 / (v + sigma2)).float().expand(B, U)
    own = torch.tensor([[0.5, 99.0], [-1.0, 0.01]], device=device)
    denoiser = own if given == "denoised" else Prior.of(v.reshape(1), table.table)
    signals = (y, x, None if given == "moment" else probed)
    pvd_captured.run_score(signals, sample, score_h, score_x, denoiser, table, found)
    h0 = sample if given == "denoised" else w * sample
    wide = [torch.view_as_complex(t).to(torch.complex128) for t in (y, h0, x, probed)]
    want = sf.reference.likelihood_score(*wide[:3], 1.0, probe=wide[3] - wide[2])
    for got, exact in ((score_h, want.score_h), (score_x, want.score_x)):
        torch.testing.assert_close(torch.view_as_complex(got).to(exact), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.energy.double(), want.energy, rtol=1e-6, atol=0)
    if given == "moment":
        count = NR * K * T
        assert torch.equal(found.score_var, torch.maximum(found.noise_var, found.energy.double() / count).float())
        return
    var_h = torch.minimum(own.clamp_min(0), sigma2.float()) if given == "denoised" else var_h
    probe_x, probe_y = (t.float() for t in (want.probe_x, want.probe_y))
    _check_calibration(found, None, probe_x, probe_y, var_h, found.energy)


def test_level_table_holds_the_schedule():
    config = sf.PVDConfig(source_shape=(4,), J=3, Jin=2, sigma_max=8.0, sigma_min=1.0)
    table, s = level_table(config)[..., 0], config.schedule()
    assert table.shape == (7, 7) and table[:, 3].tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert table[:, 0].tolist() == [s[2], s[2], s[1], s[1], s[0], s[0], s[0]]
    assert table[:6, 1].tolist() == [s[3], s[3], s[2], s[2], s[1], s[1]]
    variances = [sf.reference.default_next_var(*pair) for pair in pairwise(s)]
    want = [variances[j] for j in (2, 1, 1, 0, 0)] + [0.0, 0.0]
    torch.testing.assert_close(table[:, 2], torch.tensor(want, dtype=torch.float64), rtol=1e-14, atol=0)
    still = level_table(sf.PVDConfig(source_shape=(4,), J=1, Jin=1, sample_noise=False, users=2, sigma_max=(3.0, 4.0)))
    assert still.shape == (2, 7, 2) and not still[:, 2].any() and still[0, 1].tolist() == [3.0, 4.0]


def test_wrong_arguments(device):
    (y, x, probed), (mean, anchor, sample) = _channel(device)
    table, found = _table(device), _calibration(device, lagged=False)
    prior = Prior.of(torch.ones(1, dtype=torch.float64, device=device), table.table)
    score = (torch.empty_like(sample), torch.empty_like(x))
    with pytest.raises(ValueError, match="table must be contiguous float64"):
        short = table._replace(table=table.table[:, :3])
        pvd_captured.run_score((y, x, probed), sample, *score, prior, short, found)
    with pytest.raises(TypeError, match=r"counter must be int64 \[2\]"):
        pvd_captured.run_score((y, x, probed), sample, *score, prior, table._replace(counter=table.counter[:1]), found)
    for name, match in (("energy", "energy must be contiguous"), ("per_score", "per_score must be contiguous")):
        with pytest.raises(ValueError, match=match):
            wrong = found._replace(**{name: getattr(found, name)[:1]})
            pvd_captured.run_score((y, x, probed), sample, *score, prior, table, wrong)
    with pytest.raises(ValueError, match="scratch must be contiguous"):
        pvd_captured.run_score((y, x, probed), sample, *score, prior, table, found._replace(scratch=found.scratch[:1]))
    with pytest.raises(ValueError, match="variance must be"):
        pvd_captured.run_score((y, x, probed), sample, *score, found.energy, table, found)
    state = [t.reshape(B, 1, -1) for t in (mean, anchor)]
    one = (found.noise_var, 0, 1, 0)
    with pytest.raises(ValueError, match="either denoised or prior"):
        many = sample.reshape(1, B, 1, -1)
        pvd_update.run_table(state[0], state[1], many, None, many, one, one, table, seed=None, stream=1)
    with pytest.raises(ValueError, match="score must be contiguous"):
        thin = sample.reshape(1, B, 1, -1)
        bad = thin.transpose(1, 3).contiguous().transpose(1, 3)
        pvd_update.run_table(state[0], state[1], thin, thin, bad, one, one, table, seed=None, stream=1)
