"""`semcom-fast sweep blind-mimosc`: cells end to end, and a stopped sweep that goes on to the same table."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

import semcom_fast as sf
from semcom_fast import cli
from semcom_fast.systems.blind_mimosc import experiment, load_denoiser, load_encoder, sweep, sweep_photos
from semcom_fast.systems.blind_mimosc.sweep import DigitSetting, DigitSweep
from semcom_fast.systems.sweep import Cell

TINY = ("--images", "2", "--levels", "3", "--inner", "2", "--snr", "10", "--quiet")
CHANGING = ("seconds_per_image", "commit", "finished")


def _sweep(out, *line):
    return cli.main(["sweep", "pvd", "--out", str(out), *TINY, *line])


def _rows(out):
    """Without times and dates."""
    return [{k: v for k, v in row.items() if k not in CHANGING} for row in csv.DictReader(out.read_text().splitlines())]


def test_stopped_sweep_goes_on_to_the_table_of_one_that_was_not(tmp_path, capsys, monkeypatch):
    whole, out = tmp_path / "whole.csv", tmp_path / "stopped.csv"
    line = ("--seeds", "2", "--starts", "1", "2")
    assert _sweep(whole, *line) == 0
    assert "nmse_db" in capsys.readouterr().out

    measure, left = DigitSweep.measure, [None, None, None]

    def stop(self, cell):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return measure(self, cell)

    monkeypatch.setattr(DigitSweep, "measure", stop)
    assert _sweep(out, *line) == 130
    assert "3 of 4 cells finished" in capsys.readouterr().err
    left.append(None)  # one more may run
    assert _sweep(out, *line) == 0
    assert _rows(out) == _rows(whole)
    assert [(row["seed"], row["starts"]) for row in _rows(out)] == [("0", "1"), ("0", "2"), ("1", "1"), ("1", "2")]


def test_a_row_is_what_the_receiver_gives(tmp_path):
    """Every option reaches the receiver: the row of unusual settings is that of a direct call."""
    out = tmp_path / "table.csv"
    special = "nr=3,nt=2,blocks=4,users=2,encoder=plain,starts=2,samples=2,sigma_max=10,sigma_min=0.1,zeta=0.2"
    assert _sweep(out, "--seeds", "5:6", "--setting", f"{special},zeta_d=0.05,exact_covariance=true") == 0
    link = experiment.Link(blocks=4, nr=3, nt=2, slots=8, users=2)
    config = sf.PVDConfig(
        J=3, Jin=2, L=2, sigma_max=10.0, sigma_min=0.1, zeta_h=0.2, zeta_d=0.05, exact_covariance=True
    )
    digits = sweep.load_digits()
    encoder = load_encoder("plain", 4, 2, 8, users=2)
    outcome = experiment.send_and_receive(
        link, encoder, load_denoiser(), digits.test[:2], 10.0, seed=5, restarts=2, config=config
    )
    want = experiment.summarise(outcome, sweep.pixel_variance(digits.train))._asdict()
    (row,) = _rows(out)
    for name, value in want.items():
        assert name in CHANGING or row[name] == f"{value:.6g}", name
    assert row["zeta_d"] == "0.05" and row["failure"] == ""
    plain = experiment.send_and_receive(link, encoder, load_denoiser(), digits.test[:2], 10.0, seed=5, restarts=2)
    assert not torch.equal(plain.nmse, outcome.nmse)


def test_settings_are_those_of_the_receiver_by_default():
    setting = DigitSetting()
    assert setting.config() == sf.PVDConfig() and setting.link == experiment.Link()
    changed = {"calibration": "moment", "sample_noise": False, "lagged_noise": True}
    assert DigitSetting(**changed).config() == sf.PVDConfig(**changed)


def test_diverged_cells_are_rows(tmp_path):
    """A step size far past the stability limit."""
    out = tmp_path / "table.csv"
    system = DigitSweep()
    cell = Cell(0, 10.0, DigitSetting(images=2, levels=3, inner=2, zeta=1e10))
    measured = system.measure(cell)
    assert measured.failure == "2 of 2 images diverged in all restarts"
    assert measured.figures["success_rate"] == 0 and measured.figures["nmse_median_db"] == float("inf")
    assert measured.figures["oracle_db"] < -10
    with pytest.raises(sf.DivergedError):
        experiment.send_and_receive(
            cell.setting.link, system.encoder("penalised", cell.setting.link), system.denoiser, system.digits.test[:2],
            10.0, seed=0, config=cell.setting.config(),
        )  # fmt: skip
    assert _sweep(out, "--seeds", "1", "--zeta", "1e10") == 0
    assert _rows(out)[0]["failure"] == measured.failure
    assert _sweep(out, "--seeds", "1", "--zeta", "1e10") == 0
    assert len(_rows(out)) == 1


def test_fingerprint_follows_the_networks():
    system, other = DigitSweep(), DigitSweep()
    penalised, plain = DigitSetting(), DigitSetting(encoder="plain")
    assert (
        system.fingerprint(penalised)
        == system.fingerprint(DigitSetting(nr=2, zeta=0.2))
        == other.fingerprint(penalised)
    )
    assert system.fingerprint(penalised) != system.fingerprint(plain)
    with torch.no_grad():
        next(other.denoiser.parameters()).view(-1)[0] += 1e-3
    assert system.fingerprint(penalised) != other.fingerprint(penalised)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--images", "298"), "images must be 1 to 297"),
        (("--blocks", "4"), "64 symbols"),
        (("--encoder", "other"), "unknown encoder 'other'"),
        (("--starts", "0"), "starts must be at least 1"),
        (("--nr", "0"), "nr must be at least 1"),
        (("--sigma-min", "200"), "sigma_min < sigma_max"),
        (("--calibration", "moment", "--exact-covariance"), "needs calibration 'secant'"),
        (("--summary",), "No such file"),
    ],
)
def test_errors_are_one_line_before_anything_runs(tmp_path, capsys, line, message):
    out = tmp_path / "table.csv"
    assert _sweep(out, *line) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) == 1
    assert not out.exists()


def test_systems_without_a_sweep_say_so(capsys):
    assert cli.main(["sweep", "mu-mimo"]) == 2
    assert "mu-mimo has no command 'sweep'; there: " in capsys.readouterr().err


def test_photographs_with_receivers_as_settings(tmp_path, capsys, monkeypatch):
    """Two crops; pvd and pvd-starts come from the same runs, and a receiver without a channel estimate has no NMSE."""
    pytest.importorskip("skimage")
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path))
    line = ["--crops", "2", "--levels", "2", "--inner", "1", "--starts", "2", "--snr", "10", "--seeds", "1", "--quiet"]
    line += ["--receiver", "pvd", "pvd-starts", "djscc-csi", "oracle", "--out", str(tmp_path / "table.csv")]
    assert sweep_photos.main(line) == 0
    assert "djscc-csi" in capsys.readouterr().out
    one, several, csi, oracle = _rows(tmp_path / "table.csv")
    system = sweep_photos.PhotoSweep()
    setting = sweep_photos.PhotoSetting(crops=2, levels=2, inner=1, starts=2, receiver="djscc-csi")
    direct = system._reception(0, 10.0, setting)
    found = direct.receive("djscc-csi")
    assert csi["psnr_db"] == f"{found['psnr_db'].mean():.6g}" and csi["nmse_db"] == "nan" and csi["energy"] == "nan"
    assert one["energy"] == f"{np.median(direct.receive('pvd')['energy']):.6g}"
    assert float(several["energy"]) <= float(one["energy"])
    assert float(oracle["nmse_db"]) < -10 and oracle["success_rate"] == "1" and oracle["psnr_db"] == "nan"
    assert len({row["made_with"] for row in (one, several, oracle)}) == 1
    assert csi["made_with"] != one["made_with"]  # sent by the plain codec
    assert system.fingerprint(setting) == csi["made_with"] != system.fingerprint(replace(setting, crops=3))
    with pytest.raises(ValueError, match="unknown receiver 'bound'"):
        system.fingerprint(replace(setting, receiver="bound"))
