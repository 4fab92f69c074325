"""PVD against the oracle: the closed-form transfer with X known, the bound without the channel, the comparison's table."""

import csv
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sf_testing import draw, within

import semcom_fast as sf
from semcom_fast.baselines.lmmse import oracle_lmmse_channel
from semcom_fast.links import channel_nmse, draw_channel, noise_var_from_snr_db, transmit
from semcom_fast.systems.blind_mimosc import evaluate_oracle as eo
from semcom_fast.systems.blind_mimosc import known_codeword as kc
from semcom_fast.systems.blind_mimosc import oracle_sources as sources
from semcom_fast.systems.blind_mimosc.bound import linearised_bound
from semcom_fast.systems.blind_mimosc.codec import RandomLinearEncoder
from semcom_fast.systems.blind_mimosc.experiment import Link
from semcom_fast.systems.blind_mimosc.marginal_bound import marginal_bound

QUICK = (("J", 4), ("Jin", 3))


def _db(ratio) -> float:
    return 10 * math.log10(float(ratio))


class Known(NamedTuple):
    """PVD's estimate with X known, the transfer's prediction of its part in Y, LMMSE; the response; the true channel."""

    got: torch.Tensor
    predicted: torch.Tensor
    lmmse: torch.Tensor
    response: kc.Response
    modes: torch.Tensor
    h: torch.Tensor


def _known(nr, users, nt, blocks, snr_db, count=4, slots=24, **changes):
    config = sf.PVDConfig(users=users, nt=nt, source_shape=(1,), **changes)
    noise_var = noise_var_from_snr_db(snr_db, users=users, nt=nt)
    x = sf.power_normalise(draw(count, users, blocks, nt, slots, seed=5).to(torch.complex64))[0]
    h = draw_channel(count, users, blocks, nr, nt, seed=1)
    y = transmit(h, x, noise_var, 1)
    source = sources.known_source(x)
    got = sf.PVD(source.encoder, sf.GaussianChannelPrior(), source.denoiser, config).run(y, noise_var, seed=1).h
    modes = kc.codeword_modes(x)
    found = kc.response(modes, noise_var, config, slots)
    stacked = x.transpose(1, 2).flatten(2, 3)
    _, basis = torch.linalg.eigh(stacked.to(torch.complex128) @ stacked.mH.to(torch.complex128))
    matched = (y @ stacked.mH).to(basis.dtype) @ basis  # the least-squares estimate's modes times lam
    predicted = ((matched * (found.gain / modes).unsqueeze(2)) @ basis.mH).unflatten(-1, (users, nt)).movedim(-2, 1)
    return Known(got, predicted, oracle_lmmse_channel(y, x, noise_var), found, modes, h)


def _power(t):
    return float(t.abs().double().square().mean())


@pytest.mark.parametrize(
    "sizes, snr_db, changes, limit",
    [
        ((4, 4, 1, 4), 20.0, {}, 1e-7),
        ((64, 1, 8, 2), 0.0, {}, 1e-7),
        ((4, 4, 1, 4), 20.0, {"slots": 8}, 1e-7),  # streams with weak modes
        ((4, 4, 1, 4), 0.0, {"exact_covariance": True}, 1e-7),
        ((4, 4, 1, 4), 0.0, {"J": 20, "Jin": 10, "zeta_h": 0.2}, 1e-7),
        ((64, 1, 8, 2), 0.0, {"calibration": "moment"}, 1e-4),  # the residual's energy is random
    ],
)
def test_estimate_at_the_means_is_the_predicted_one(sizes, snr_db, changes, limit):
    """Without sampling noise the loop is the closed form's linear filter, entry by entry, but for what its start left."""
    found = _known(*sizes, snr_db, sample_noise=False, **changes)
    left = float(found.response.spread.mean())
    assert left < 1e-4
    share = max(_power(found.got - found.predicted) - 2 * left, 0.0) / _power(found.predicted)
    within(torch.tensor(share), torch.tensor(0.0), limit, f"linear filter {sizes} {snr_db} {changes}")
    if "exact_covariance" not in changes:
        assert _power(found.lmmse - found.predicted) > 20 * limit  # a filter of its own, not LMMSE


@pytest.mark.parametrize(
    "sizes, snr_db, changes",
    [
        ((4, 4, 1, 48), 20.0, {}),
        ((64, 1, 8, 2), 0.0, {"exact_covariance": True}),
        ((4, 4, 1, 48), 0.0, {"L": 2, "J": 15, "zeta_h": 0.05}),
        ((4, 4, 1, 48), 20.0, {"v0": 1.0}),
    ],
)
def test_spread_of_the_samples_is_the_predicted_one(sizes, snr_db, changes):
    """What the estimate holds beside the filtered signal: its power over at least 3072 entries, to 8 % (over 4 sigma)."""
    found = _known(*sizes, snr_db, **changes)
    ratio = _power(found.got - found.predicted) / float(found.response.spread.mean())
    within(torch.tensor(ratio), torch.tensor(1.0), 0.08, f"sampling noise {sizes} {changes}")


def test_gap_at_the_papers_settings():
    """0.2 dB at (4,4,1) and 20 dB, 0.4 dB at (64,1,8) and 0 dB, measured as predicted to what 64 blocks scatter by."""
    for sizes, snr_db, want in (((4, 4, 1, 32), 20.0, 0.21), ((64, 1, 8, 2), 0.0, 0.41)):
        found = _known(*sizes, snr_db)
        noise_var = noise_var_from_snr_db(snr_db, users=sizes[1], nt=sizes[2])
        lmmse = kc.lmmse_errors(found.modes, noise_var)
        predicted = _db(kc.mode_errors(found.modes, noise_var, found.response).mean() / lmmse.mean())
        gap = _db(channel_nmse(found.h, found.got).mean() / channel_nmse(found.h, found.lmmse).mean())
        within(torch.tensor(predicted), torch.tensor(want), 0.02, f"predicted gap {sizes}")
        within(torch.tensor(gap), torch.tensor(predicted), 0.15, f"measured gap {sizes}")


def test_exact_covariance_at_the_means_is_lmmse():
    """(4,4,1) and (64,1,8): within 1e-3 of LMMSE's error of LMMSE."""
    for sizes, snr_db in (((4, 4, 1, 4), 20.0), ((64, 1, 8, 1), 0.0)):
        found = _known(*sizes, snr_db, exact_covariance=True, sample_noise=False)
        share = _power(found.got - found.lmmse) / _power(found.lmmse - found.h)
        within(torch.tensor(share), torch.tensor(0.0), 1e-3, f"exact covariance {sizes}")


@pytest.mark.parametrize("exact", [False, True])
def test_continuous_limit(exact):
    """Fine levels iterated to their fixed point, at the means: c = 1 - (1 + mu/s)^(-lam/mu), mu = M or lam."""
    modes = torch.tensor([[[0.5, 2.0, 8.0, 24.0]]], dtype=torch.float64)
    config = sf.PVDConfig(users=4, J=300, Jin=8, zeta_h=0.9, sample_noise=False, exact_covariance=exact)
    for noise_var in (0.04, 4.0):
        gain, spread = kc.response(modes, noise_var, config, 24)
        want = kc.limit_gain(modes, noise_var, modes if exact else 4.0)
        within(gain, want, 6e-3, f"limit of the gain, exact={exact} noise_var={noise_var}")
        assert float(spread.max()) < 1e-3
    within(kc.limit_gain(modes, 4.0, modes), modes / (modes + 4.0), 1e-14, "the exact covariance's limit is LMMSE")
    best = kc.Response(modes / (modes + 4.0), torch.zeros(()))
    within(kc.mode_errors(modes, 4.0, best), kc.lmmse_errors(modes, 4.0), 1e-14, "LMMSE's error")


def test_response_needs_common_levels():
    with pytest.raises(ValueError, match="same for all users"):
        kc.response(torch.ones(1, 1, 2), 1.0, sf.PVDConfig(users=2, zeta_h=(0.1, 0.2)), 8)


def test_marginal_bound_is_the_linearised_bound():
    """Integrating the channel out changes nothing; users may have priors of their own."""
    users, nt, blocks, nr, n = 2, 2, 2, 5, 12
    encoder = RandomLinearEncoder(blocks, nt, 7, users=users, dim=n, dtype=torch.complex128)
    h, d = draw(users, blocks, nr, nt, seed=1), draw(users, n, seed=2, dtype=torch.float64) + 1
    a = draw(n, n, seed=3, dtype=torch.float64)
    precision = a @ a.mT + torch.eye(n, dtype=torch.float64)
    want = linearised_bound(encoder, h, d, 0.3, precision)
    nmse, source = marginal_bound(encoder, h, d, 0.3, [precision] * users)
    within(nmse, want.nmse, 1e-12, "channel NMSE")
    within(source, want.source_mse, 1e-12, "source error")
    looser = marginal_bound(encoder, h, d, 0.3, [precision, 0.01 * precision])[0]
    assert bool((looser > nmse).all())


def test_count_of_the_load():
    """Many receive antennas, 20 dB, a linear code without a prior: LMMSE's error times 1 + q/(1-q) M/Nr."""
    nr, nt, slots, n, noise_var = 32, 4, 12, 32, 0.04
    encoder = RandomLinearEncoder(1, nt, slots, dim=n, dtype=torch.complex128)
    gaps = []
    for seed in range(4):
        h, d = draw(1, 1, nr, nt, seed=seed), draw(1, n, seed=9 + seed, dtype=torch.float64)
        nmse, _ = marginal_bound(encoder, h, d, noise_var, [torch.eye(n, dtype=torch.float64) * 1e-3])
        lmmse = kc.lmmse_errors(kc.codeword_modes(encoder(d[None])), noise_var).sum() * nr / h.abs().square().sum()
        gaps.append(nmse.sum() / lmmse)
    load = n / (2 * nt * (slots - nt))
    within(sum(gaps) / 4 - 1, torch.tensor(load / (1 - load) * nt / nr), 0.02, "share that the source adds")


def test_mixture_precisions_and_labels():
    prior = sources.GaussianMixturePrior(
        torch.tensor([0.25, 0.75]),
        torch.tensor([[0.0, 1.0], [5.0, -1.0]]),
        torch.stack((torch.eye(2), torch.tensor([[2.0, 1.0], [1.0, 3.0]]))),
    )
    whole, parts = sources.mixture_precisions(prior)
    within(parts[1], torch.linalg.inv(torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)), 1e-12, "component")
    mean, spread = torch.tensor([3.75, -0.5]), torch.tensor([[1.75, 0.75], [0.75, 2.5]])
    away = torch.tensor([[0.0, 1.0], [5.0, -1.0]]) - mean
    total = spread + 0.25 * torch.outer(away[0], away[0]) + 0.75 * torch.outer(away[1], away[1])
    within(whole, torch.linalg.inv(total.double()), 1e-12, "mixture")
    assert sources.mixture_labels(prior, torch.tensor([[0.1, 0.9], [4.0, -1.0]])).tolist() == [0, 1]


def test_group_encoder():
    """One digit a user is RandomLinearEncoder's code; users differ; the power is met."""
    link, d = Link(1, 4, 1, 24, 2), draw(3, 2, 1, 64, seed=1, dtype=torch.float32)
    got = sources.GroupEncoder(link, 1)(d)
    within(got, RandomLinearEncoder(1, 1, 24, users=2)(d.flatten(2)), 1e-5, "group of one")
    double = sources.GroupEncoder(link, 1, torch.complex128)(d.double())
    within(got.to(double), double, 1e-5, "the bound's encoder")
    within(got.abs().square().flatten(2).sum(2), torch.full((3, 2), 24.0), 1e-4, "power")


@pytest.fixture
def _small(monkeypatch):
    monkeypatch.setattr(eo, "VARIANTS", {name: eo.VARIANTS[name] for name in ("paper", "exact")})
    monkeypatch.setattr(eo, "DIGIT_CELLS", {"4-4-1": ((1, 1),), "64-1-8": ()})
    few = eo.SETTINGS["4-4-1"]._replace(blocks=2)
    monkeypatch.setattr(eo, "SETTINGS", {"4-4-1": few})
    monkeypatch.setattr(eo, "PHOTO_BLOCKS", {"4-4-1": 1})


def _protocol(**changes):
    return eo.Protocol(
        **{
            "settings": ("4-4-1",),
            "sources": ("gaussian", "digits"),
            "snrs_db": (20.0,),
            "images": 8,
            "bounds": 2,
            "changes": QUICK,
        }
        | changes
    )


def test_rows_and_resumption(tmp_path, monkeypatch, _small):
    """Known and blind rows are complete; a second run finds what the first kept; other draws are other figures."""
    out, keep = tmp_path / "table.csv", tmp_path / "kept"
    eo.evaluate(_protocol(), out, keep=keep, progress=False)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    found = [(r["codeword"], r["K"], r["variant"], r["starts"]) for r in rows]
    known = [("known", "2", "paper", "1"), ("known", "2", "exact", "1")]
    known += [("known", k, "paper", "1") for k in ("24", "1")]
    assert found == known + [("blind", "1", v, s) for v in ("paper", "exact") for s in ("1", "4")]
    for row in rows:
        blind = row["codeword"] == "blind"
        assert (row["bound_db"] != "") is (row["load"] != "") is (row["cbr"] != "") is blind
        assert (row["predicted_gap_db"] != "") is not blind
        assert math.isfinite(float(row["gap_db"])) and float(row["gap_se"]) > 0
    assert rows[-1]["load"] == "1.600" and rows[-1]["cbr"] == "0.3750"
    monkeypatch.setattr(eo.Evaluation, "_measure", None)
    eo.evaluate(_protocol(), tmp_path / "again.csv", keep=keep, progress=False)
    assert (tmp_path / "again.csv").read_text() == out.read_text()
    for other in ({"seed": 1}, {"changes": (*QUICK, ("zeta_h", 0.2))}, {"images": 12}):
        with pytest.raises(TypeError):
            eo.evaluate(_protocol(**other), tmp_path / "other.csv", keep=keep, progress=False)


def test_chosen_starts_and_successes():
    """Four starts take the smallest residual; NMSE of successes leaves failures out, that of all does not."""
    evaluation = eo.Evaluation(_protocol())
    job = eo.Job("4-4-1", "gaussian", 1, 1, 20.0, "paper")
    row: dict[str, object] = {}
    nmse, oracle = np.array([0.1, 0.12, 4.0, 0.08]), np.array([0.05, 0.05, 0.04, 0.06])
    eo._compare(row, nmse, oracle, {"bound": np.array([0.05, 0.06, 0.05])})
    assert row["success_rate"] == "0.7500" and row["nmse_success_db"] == "-10.000"
    assert row["gap_db"] == f"{_db(4.3 / 0.2):.3f}" and row["gap_success_db"] == f"{_db(0.3 / 0.16):.3f}"
    assert row["gap_to_bound_db"] == f"{_db(0.22 / 0.11):.3f}" and row["label_bound_db"] == ""
    assert evaluation.config(job._replace(variant="zeta-0.05")).zeta_h == 0.05


def test_errors():
    with pytest.raises(ValueError, match="at least 8 images"):
        replace(eo.Protocol(), images=4)
