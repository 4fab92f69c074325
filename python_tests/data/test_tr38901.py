"""TR 38.901 channels drawn through Sionna."""

import json
import math
import sys

import pytest
import torch
from sf_testing import within

import semcom_fast as sf
from semcom_fast.data import ImpulseResponses, load_channels, subcarrier_frequencies
from semcom_fast.data.tr38901 import CARRIER, SYMBOL_RATE, draw_tr38901, main

FREQUENCIES = subcarrier_frequencies(64, 15e3)
FARTHEST = {"umi": 200 / 3**0.5, "uma": 500 / 3**0.5, "rma": 5000 / 3**0.5}  # m, a cell's corner


def test_without_sionna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sionna.phy.channel.tr38901", None)
    with pytest.raises(sf.MissingExtra, match=r"semcom-fast\[sionna\]"):
        draw_tr38901("umi", 1, seed=0)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="scenario must be one of"):
        draw_tr38901("indoor", 1, seed=0)
    with pytest.raises(ValueError, match="symbols > 1"):
        draw_tr38901("umi", 1, seed=0, speed_kmh=3)
    with pytest.raises(ValueError, match="count >= 1"):
        draw_tr38901("umi", 0, seed=0)


@pytest.fixture
def sionna():
    return pytest.importorskip("sionna.phy", reason="needs the extra sionna")


@pytest.mark.parametrize(("scenario", "paths"), [("umi", 23), ("uma", 24), ("rma", 15)])
def test_draws_repeat_and_extend(sionna, scenario, paths):
    cir = draw_tr38901(scenario, 70, seed=5)
    assert cir.gains.shape == (70, 4, 4, paths) and cir.gains.dtype is torch.complex64
    assert float(cir.delays.min()) >= 0 and 1e-8 < float(cir.delays.max()) < 1e-3
    shorter = draw_tr38901(scenario, 3, seed=5)
    assert torch.equal(shorter.gains, cir.gains[:3]) and torch.equal(shorter.delays, cir.delays[:3])
    assert not torch.equal(draw_tr38901(scenario, 3, seed=6).gains, shorter.gains)


@pytest.mark.parametrize("scenario", ["umi", "rma"])
def test_responses_are_sionnas(sionna, scenario):
    """The same drop through Sionna's own functions, written out as in its multi-user OFDM tutorial."""
    from sionna.phy.channel import cir_to_ofdm_channel, gen_single_sector_topology
    from sionna.phy.channel import subcarrier_frequencies as theirs
    from sionna.phy.channel.tr38901 import PanelArray, RMa, UMi

    panel = {"num_rows_per_panel": 1, "carrier_frequency": CARRIER}
    arrays = {
        "bs_array": PanelArray(num_cols_per_panel=2, polarization="dual", polarization_type="cross",
                               antenna_pattern="38.901", **panel),
        "ut_array": PanelArray(num_cols_per_panel=1, polarization="single", polarization_type="V",
                               antenna_pattern="omni", **panel),
    }  # fmt: skip
    off = {"direction": "downlink", "enable_pathloss": False, "enable_shadow_fading": False}
    rural = scenario == "rma"
    model = (RMa if rural else UMi)(
        carrier_frequency=CARRIER, **arrays, **off, **({} if rural else {"o2i_model": "low"})
    )
    sionna.config.seed = 11
    model.set_topology(*gen_single_sector_topology(64, 4, scenario))
    a, tau = model(num_time_samples=1, sampling_frequency=SYMBOL_RATE)
    want = cir_to_ofdm_channel(theirs(64, 15e3), a, tau, normalize=True)[:, :, 0, 0, :, 0].permute(0, 3, 1, 2)
    got = draw_tr38901(scenario, 64, seed=11).to_ofdm(FREQUENCIES)[:, :, 0]
    # float32 phases of delays up to some microseconds: 2 pi * 480 kHz * 10 us * 2^-24 = 2e-6 on gains of up to about 4
    within(got, want, 1e-5, f"{scenario} against sionna")


def test_moving_users_change_the_channel_within_the_slot(sionna):
    def change(speed):
        h = draw_tr38901("umi", 64, seed=5, speed_kmh=speed, symbols=14).to_ofdm(FREQUENCIES)
        assert h.shape == (64, 64, 14, 4, 4)
        power = h.abs().double().square().mean((1, 2, 4))
        within(power, torch.ones_like(power), 1e-6, f"unit power at {speed} km/h")
        return float((h[:, :, -1] - h[:, :, 0]).abs().square().mean() / h.abs().square().mean())

    assert change(0.0) < 1e-10
    # |dh|^2 grows with the square of the speed while the phase drift is small: 13 symbols at 3 km/h turn by 0.04 rad
    slow, fast = change(3.0), change(30.0)
    assert 3e-4 < slow < 3e-3 and 30 < fast / slow < 110


def test_pathloss_spreads_the_users(sionna):
    cir = draw_tr38901("uma", 64, seed=5, pathloss=True)
    power = cir.gains.abs().square().sum((2, 3))
    assert cir.pathloss and float(power.max()) < 1e-4 and float(power.max() / power.min()) > 1e3
    h = cir.to_ofdm(FREQUENCIES, pathloss=True)
    within(h.abs().double().square().mean((1, 2, 3, 4)), torch.ones(64), 1e-6, "mean over users")


@pytest.mark.parametrize("scenario", ["umi", "uma", "rma"])
def test_shipped_sets_can_be_made_again(sionna, scenario):
    shipped = load_channels(scenario, "shipped")
    drawn = draw_tr38901(scenario, len(shipped), seed=shipped.seed)
    largest = torch.view_as_real(drawn.gains).abs().amax((2, 3, 4))[..., None, None]
    # Sionna turns the direct ray by 2 pi d / wavelength in float32: four roundings on the way, and a processor's own
    phase = 2 * math.pi * FARTHEST[scenario] * CARRIER / 299792458 * 4 * 2**-24
    within(shipped.gains / largest, drawn.gains / largest, 2**0.5 * 2**-11 + 1e-5 + phase, f"{scenario} gains")
    longest = float(drawn.delays.max())
    within(shipped.delays, drawn.delays, longest * (2**-11 + 1e-6), f"{scenario} delays")


def test_command_line_writes_a_set(sionna, tmp_path, capsys):
    path = tmp_path / "set.npz"
    main(["--scenario", "rma", "--count", "3", "--seed", "9", "--speed", "30", "--symbols", "2", "--out", str(path)])
    printed = capsys.readouterr()
    assert json.loads(printed.out)["topologies"] == 3 and "3 of 3 topologies" in printed.err
    cir = ImpulseResponses.load(path)
    assert torch.equal(cir.gains, draw_tr38901("rma", 3, seed=9, speed_kmh=30, symbols=2).gains)
    assert cir.symbol_rate == SYMBOL_RATE
    for wrong in (["--count", "3"], ["--out", str(path)]):
        with pytest.raises(SystemExit):
            main(wrong)
        assert "--out" in capsys.readouterr().err
