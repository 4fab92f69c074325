"""Impulse responses: frequency responses with known answers, normalisation, storage, and the built-in generator."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from sf_testing import within

from semcom_fast.data import ImpulseResponses, channels, load_channels, subcarrier_frequencies, tapped_channels

SHIPPED = Path(channels.__file__).parent


def some(count=6, *, symbols=0, pathloss=False, seed=0):
    """Random impulse responses of 3 users, 2 antennas, 5 paths."""
    rng = torch.Generator().manual_seed(seed)
    shape = (count, 3, 2, 5) + ((symbols,) if symbols else ())
    gains = torch.randn(shape, dtype=torch.complex64, generator=rng)
    if pathloss:
        gains = gains * torch.tensor([1e-3, 1e-4, 1e-2]).reshape(1, 3, *(1,) * (len(shape) - 2))
    return ImpulseResponses(
        gains, torch.rand(count, 3, 5, generator=rng) * 2e-6, "tapped", pathloss=pathloss, seed=seed
    )


def direct(cir, frequencies):
    """h(f) = sum_p a_p exp(-j 2 pi f tau_p) term by term in double precision, [N,Nf,Nt,K,M]."""
    gains = cir.gains.to(torch.complex128)
    gains = gains.unsqueeze(-1) if cir.static else gains
    total = 0
    for p in range(gains.shape[3]):
        turns = -2j * torch.pi * frequencies.double()[:, None] * cir.delays.double()[:, None, :, p]  # [N,Nf,K]
        total = total + gains[:, None, :, :, p] * turns.exp()[..., None, None]  # [N,Nf,K,M,Nt]
    return total.movedim(-1, 2)


def test_frequencies_are_centred():
    assert subcarrier_frequencies(4, 15e3).tolist() == [-30e3, -15e3, 0, 15e3]
    assert subcarrier_frequencies(5, 10.0).tolist() == [-20, -10, 0, 10, 20]


@pytest.mark.parametrize("symbols", [0, 7])
def test_response_is_the_sum_over_paths(symbols):
    cir, f = some(symbols=symbols), subcarrier_frequencies(32, 15e3)
    h = cir.to_ofdm(f, normalise=False)
    assert h.shape == (6, 32, max(symbols, 1), 3, 2) and h.dtype is torch.complex64
    # a phase of at most 2 pi * 240 kHz * 2 us = 3 rad in float32, and a sum of five paths
    within(h, direct(cir, f), 2e-6 * float(direct(cir, f).abs().max()), f"to_ofdm, {symbols} symbols")


@pytest.mark.parametrize("symbols", [0, 7])
def test_every_user_has_unit_power(symbols):
    h = some(symbols=symbols, pathloss=True).to_ofdm(subcarrier_frequencies(32, 15e3))
    power = h.abs().double().square().mean((1, 2, 4))
    within(power, torch.ones_like(power), 5e-7, f"unit power, {symbols} symbols")


def test_pathloss_keeps_the_imbalance_of_users():
    cir, f = some(pathloss=True), subcarrier_frequencies(32, 15e3)
    raw = direct(cir, f).abs().double().square().mean((1, 2, 4))
    power = cir.to_ofdm(f, pathloss=True).abs().double().square().mean((1, 2, 4))
    within(power.mean(1), torch.ones(6), 5e-7, "mean over users")
    within(power / power[:, :1], raw / raw[:, :1], 1e-6 * float((raw / raw[:, :1]).max()), "imbalance")
    with pytest.raises(ValueError, match="without path loss"):
        some().to_ofdm(f, pathloss=True)


def test_a_channel_of_no_gain_stays_zero():
    cir = some()
    cir.gains[2, 1] = 0
    h = cir.to_ofdm(subcarrier_frequencies(8, 15e3))
    assert torch.equal(h[2, :, :, 1], torch.zeros_like(h[2, :, :, 1])) and bool(h.isfinite().all())


def test_choosing_topologies():
    cir = some()
    assert len(cir) == 6 and cir.users == 3 and cir.antennas == 2 and cir.static
    assert torch.equal(cir[-1].gains, cir.gains[5:]) and len(cir[2:5]) == 3
    assert torch.equal(cir[torch.tensor([4, 0])].delays, cir.delays[[4, 0]])
    assert [len(one) for one in cir] == [1] * 6
    with pytest.raises(IndexError, match="topology 6 of 6"):
        cir[6]


def test_stored_exactly_or_in_half_precision(tmp_path):
    cir, f = some(symbols=2, pathloss=True), subcarrier_frequencies(32, 15e3)
    cir.save(tmp_path / "deep" / "set.npz")
    back = ImpulseResponses.load(tmp_path / "deep" / "set.npz")
    assert torch.equal(back.gains, cir.gains) and (back.delays - cir.delays).abs().max() <= 2e-6 * 2**-22
    assert (back.scenario, back.pathloss, back.seed, back.symbol_rate) == ("tapped", True, 0, None)
    cir.save(tmp_path / "half.npz", half=True)
    back = ImpulseResponses.load(tmp_path / "half.npz")
    largest = torch.view_as_real(cir.gains).abs().amax((2, 3, 4, 5)).reshape(6, 3, 1, 1, 1)
    # half an ulp of 11 bits in each of the two planes, relative to the user's largest
    assert float(((back.gains - cir.gains).abs() / largest).max()) <= 2**0.5 * 2**-11
    assert float((back.delays - cir.delays).abs().max()) <= 2e-6 * 2**-11
    assert (back.to_ofdm(f) - cir.to_ofdm(f)).abs().max() > 0
    with pytest.raises(ValueError, match=r"\.npz"):
        cir.save(tmp_path / "set.pt")
    late = ImpulseResponses(cir.gains, cir.delays + 1e-4, "tapped")
    with pytest.raises(ValueError, match="microseconds"):
        late.save(tmp_path / "late.npz", half=True)


def test_wrong_shapes_are_refused():
    cir = some()
    with pytest.raises(ValueError, match="delays must be"):
        ImpulseResponses(cir.gains, cir.delays[..., :4], "tapped")
    with pytest.raises(ValueError, match="gains must be complex"):
        ImpulseResponses(cir.gains.real, cir.delays, "tapped")


def test_tapped_channels_have_the_statistics_they_claim():
    spread, rho, count = 300e-9, 0.6, 20000
    cir = tapped_channels(count, 2, 3, seed=3, delay_spread=spread, paths=4, correlation=rho)
    f = torch.tensor([0.0, 100e3, 400e3])
    h = cir.to_ofdm(f, normalise=False)[:, :, 0].to(torch.complex128)  # [N,F,K,M]
    # means over N independent topologies; entries have variance 1, so 5 standard errors are 5/sqrt(N)
    bound = 5 / count**0.5
    in_frequency = (h[:, 1:] * h[:, :1].conj()).mean(0)[..., 0]  # [2,K]
    within(
        in_frequency, (1 / (1 + 2j * torch.pi * f[1:] * spread))[:, None].expand(2, 2), bound, "frequency correlation"
    )
    in_space = torch.einsum("nkm,nkl->ml", h[:, 0], h[:, 0].conj()) / (2 * count)
    lag = torch.arange(3)
    within(in_space, (rho ** (lag[:, None] - lag).abs()).to(in_space), bound, "antenna correlation")
    between_users = (h[:, 0, 0] * h[:, 0, 1].conj()).mean(0)
    within(between_users, torch.zeros_like(between_users), bound, "users are independent")


def test_tapped_channels_split_like_one_batch():
    whole = tapped_channels(8, seed=5, correlation=0.3, gain_spread_db=6)
    parts = [tapped_channels(4, seed=5, correlation=0.3, gain_spread_db=6, first_item=i) for i in (0, 4)]
    # the words of the draws are the same; vector arithmetic on them may round differently at a batch's end
    within(torch.cat([p.gains for p in parts]), whole.gains, 1e-6 * whole.gains.abs().max(), "split gains")
    within(torch.cat([p.delays for p in parts]), whole.delays, 1e-6 * whole.delays.max(), "split delays")
    assert not torch.equal(whole.gains, tapped_channels(8, seed=6, correlation=0.3, gain_spread_db=6).gains)
    power = (
        tapped_channels(4000, seed=1, gain_spread_db=6, paths=64, delay_spread=1e-6).gains.abs().square().sum((2, 3))
        / 4
    )
    level = 10 * power.log10()  # a gamma variable of shape 256 adds 0.27 dB of its own
    assert abs(float(level.std()) - 6) < 0.15 and whole.pathloss
    with pytest.raises(ValueError, match="correlation"):
        tapped_channels(1, seed=0, correlation=1.0)


def test_shipped_sets_are_what_their_card_says():
    card = json.loads((SHIPPED / "cir.json").read_text())
    assert set(card["files"]) == {f"cir_{s}.npz" for s in channels.SCENARIOS}
    assert sum(facts["bytes"] for facts in card["files"].values()) <= 300_000
    for scenario in channels.SCENARIOS:
        facts, path = card["files"][f"cir_{scenario}.npz"], SHIPPED / f"cir_{scenario}.npz"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == facts["sha256"]
        cir = load_channels(scenario, "shipped")
        assert (len(cir), cir.users, cir.antennas, cir.gains.shape[3]) == (64, 4, 4, facts["paths"])
        assert cir.scenario == scenario and cir.seed == card["seed"] and not cir.pathloss
        h = cir.to_ofdm(subcarrier_frequencies(128, 15e3))
        condition = float(torch.linalg.cond(h[:, :, 0]).median())
        assert abs(condition - facts["median_condition_number"]) < 0.01 * condition


def test_a_missing_set_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"semcom_fast\.data\.tr38901 --scenario uma --split eval"):
        load_channels("uma", "eval")
    with pytest.raises(ValueError, match="scenario must be"):
        load_channels("indoor")
