"""Blind reception of held-out digits end to end: success rates, gaps to the oracle, and a receiver without training."""

import csv
from dataclasses import replace

import pytest
import torch

import semcom_fast as sf
from semcom_fast.baselines import oracle_lmmse_channel
from semcom_fast.data import load_digits
from semcom_fast.links import channel_nmse, draw_channel, noise_var_from_snr_db, to_db, transmit
from semcom_fast.systems.blind_mimosc import (
    GaussianMixturePrior,
    Link,
    RandomLinearEncoder,
    evaluate,
    load_denoiser,
    load_encoder,
    overhead,
    send_and_receive,
    summarise,
)
from semcom_fast.systems.blind_mimosc.experiment import Outcome, join
from semcom_fast.systems.blind_mimosc.measures import pixel_variance
from semcom_fast.systems.evaluation import running_backend


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def _receive(digits, variant, snr_db, *, users=1, starts=1, images=48):
    encoder = load_encoder(variant, users=users)
    outcome = send_and_receive(
        Link(users=users), encoder, load_denoiser(), digits.test[:images], snr_db, seed=0, restarts=starts
    )
    return summarise(outcome, pixel_variance(digits.train))


@pytest.mark.parametrize("snr_db", [10.0, 20.0])
def test_penalised_encoder_from_one_start(digits, snr_db):
    """All 297 digits over four channel draws give 100 % and gaps of 0.8 and 1.0 dB; 48 digits stand for them here."""
    summary = _receive(digits, "penalised", snr_db)
    assert summary.success_rate >= 0.95
    assert 0 < summary.median_gap_db < 1.8
    assert summary.nmse_db < summary.pilots_twice_db < summary.pilots_db
    assert summary.mse_over_var < 0.03


def test_plain_encoder_from_four_starts(digits):
    one, four = (_receive(digits, "plain", 20.0, starts=starts) for starts in (1, 4))
    assert four.success_rate >= 0.85
    assert four.success_rate >= one.success_rate


def test_two_users_with_distinct_encoders(digits):
    summary = _receive(digits, "penalised", 20.0, users=2)
    assert summary.success_rate >= 0.9
    assert summary.nmse_db < summary.pilots_twice_db


def test_identical_encoders_leave_users_exchangeable(digits):
    """With one code for both users nothing tells them apart: the rate must fall well below that of distinct ones."""
    shared = load_encoder("penalised")

    def same_for_both(d):
        return torch.cat((shared(d[:, :1]), shared(d[:, 1:])), 1)

    outcome = send_and_receive(Link(users=2), same_for_both, load_denoiser(), digits.test[:48], 20.0, seed=0)
    assert summarise(outcome, 1.0).success_rate < 0.75


@pytest.fixture(scope="module")
def mixture(digits):
    return GaussianMixturePrior.fit(digits.train, components=20, reg=5e-3)


def test_reception_without_any_training(digits, mixture):
    """A random linear encoder, and a 20-component Gaussian mixture as prior: every digit of 16 is recovered."""
    encoder = RandomLinearEncoder(8, 1, 8, seed=1)
    d = digits.test[:16].unsqueeze(1)
    noise_var = noise_var_from_snr_db(20.0)
    h = draw_channel(16, 1, 8, 4, 1, seed=0)
    x = encoder(d)
    y = transmit(h, x, noise_var, seed=0)
    result = sf.PVD(encoder, sf.GaussianChannelPrior(), mixture).run(y, noise_var, seed=0)
    nmse = channel_nmse(h, result.h)
    oracle = float(to_db(channel_nmse(h, oracle_lmmse_channel(y, x, noise_var)).mean()))
    assert float(nmse.max()) < 10**-0.6
    assert oracle < -27 and oracle < float(to_db(nmse.mean())) < -26  # -26.8 on each of three channel draws
    assert float((result.d - d).square().mean()) / pixel_variance(digits.train) < 0.05


def test_reception_does_not_depend_on_the_batch(digits):
    """Image 5 alone, by its item number, gets the channel, noise and draws it had in the batch."""
    encoder, denoiser = load_encoder(), load_denoiser()
    receiver = sf.PVD(encoder, sf.GaussianChannelPrior(), denoiser, sf.PVDConfig(J=10, Jin=5))
    d = digits.test[:6].unsqueeze(1)
    h = draw_channel(6, 1, 8, 4, 1, seed=3)
    y = transmit(h, encoder(d), 0.1, seed=3)
    whole = receiver.run(y, 0.1, seed=3, restarts=2)
    alone_h = draw_channel(1, 1, 8, 4, 1, seed=3, first_item=5)
    alone = receiver.run(
        transmit(alone_h, encoder(d[5:]), 0.1, seed=3, first_item=5), 0.1, seed=3, restarts=2, first_item=5
    )
    # networks' matrix products round differently at another batch size; 50 steps let that grow a little
    torch.testing.assert_close(alone.h[0], whole.h[5], rtol=2e-3, atol=2e-3)


def test_summary_of_a_known_outcome():
    nmse = torch.tensor([0.01, 0.03, 4.0])
    sent = torch.zeros(3, 1, 64)
    outcome = Outcome(nmse, torch.full((3,), 0.005), nmse, nmse, sent, sent + 0.2, seconds=6.0)
    summary = summarise(outcome, pixel_variance=0.4)
    assert summary.success_rate == pytest.approx(2 / 3)
    assert summary.nmse_db == pytest.approx(float(to_db(0.02)), abs=1e-4)
    assert summary.nmse_median_db == pytest.approx(float(to_db(0.03)), abs=1e-4)
    assert summary.median_gap_db == pytest.approx(float(to_db(0.03 / 0.005)), abs=1e-4)
    assert summary.mse_over_var == pytest.approx(0.1) and summary.psnr_db == pytest.approx(20, abs=1e-3)
    assert summary.seconds_per_image == pytest.approx(2.0)
    assert join([outcome, outcome]).nmse.shape == (6,) and join([outcome, outcome]).seconds == 12


def test_cbr_counts_pilots():
    link = Link()
    assert link.cbr() == 1.0 and link.cbr(1) == pytest.approx(8 / 7) and link.cbr(2) == pytest.approx(8 / 6)
    with pytest.raises(ValueError, match="no room"):
        link.cbr(8)


def test_overhead_is_measured_on_equal_terms(digits):
    """The network pass makes exactly the calls of the loop: counted, not assumed."""
    calls = {"encoder": 0, "denoiser": 0}
    encoder, denoiser = load_encoder(), load_denoiser()

    def counted_encoder(d):
        calls["encoder"] += 1
        return encoder(d)

    def counted_denoiser(x, sigma):
        calls["denoiser"] += 1
        return denoiser(x, sigma)

    config, link = sf.PVDConfig(Jin=2), Link()
    y = transmit(
        draw_channel(5, 1, link.blocks, link.nr, link.nt, seed=0), encoder(digits.test[:5].unsqueeze(1)), 0.05, 0
    )
    alone = overhead.network_pass(counted_encoder, counted_denoiser, config, y, 0.05)
    looped = dict(calls)  # it records a run
    alone()
    assert {name: calls[name] - looped[name] for name in calls} == looped == {"denoiser": 60, "encoder": 121}
    before = dict(calls)
    short = overhead.network_pass(counted_encoder, counted_denoiser, replace(config, J=1, Jin=1), y, 0.05, end=False)
    recorded = dict(calls)
    short()
    assert {name: recorded[name] - before[name] for name in calls} == {"denoiser": 1, "encoder": 3}
    assert {name: calls[name] - recorded[name] for name in calls} == {"denoiser": 1, "encoder": 2}
    cost = overhead.measure(encoder, denoiser, digits.test[:5], config=config, rounds=1)
    assert cost.overhead == pytest.approx((cost.loop_us - cost.network_us) / cost.network_us)


def test_evaluation_writes_each_row_when_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "CASES", evaluate.CASES[:1])
    out = tmp_path / "rows.csv"
    assert evaluate.main(["--out", str(out), "--images", "4", "--channel-seeds", "1", "--snr", "20"]) == 0
    with out.open() as file:
        (row,) = csv.DictReader(file)
    assert row["encoder"] == "penalised" and row["snr_db"] == "20" and row["images"] == "4"
    assert float(row["nmse_db"]) < -20 and row["backend"] == running_backend()

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "evaluate_case", stop)
    assert evaluate.main(["--out", str(out), "--snr", "20"]) == 130
    assert "the rows finished so far" in capsys.readouterr().err
