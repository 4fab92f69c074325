"""Evaluation, report and commands of DM-VB, with closed-form experts on small training sets."""

import csv

import numpy as np
import pytest
import torch
from dm_vb_toys import CONFIG, small_sets, toy_estimators, toy_networks, toy_protocol

from semcom_fast import cli
from semcom_fast.receivers.vb_moe_config import VBMoEConfig
from semcom_fast.systems.dm_vb import evaluate as evaluation_module
from semcom_fast.systems.dm_vb.estimators import Estimators, Setting
from semcom_fast.systems.dm_vb.evaluate import (
    Evaluation,
    Job,
    evaluate,
    gain_db,
    gains,
    mean_db,
    rows_of,
)
from semcom_fast.systems.dm_vb.report import RunSettings, run_report
from semcom_fast.systems.dm_vb.tables import gains_path, read_table

pytest.importorskip("tqdm")
pytest.importorskip("safetensors")
__all__ = ["small_sets"]


# --------------------------------------------------------------------------------------------------- evaluation


def test_a_stopped_evaluation_goes_on(tmp_path, monkeypatch) -> None:
    out, kept = tmp_path / "t.csv", tmp_path / "kept"
    first = Evaluation(toy_estimators(), toy_protocol(), kept)
    measure, seen = Evaluation._measure, []

    def stops(self, job):
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(job)
        return measure(self, job)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "_measure", stops)
        with pytest.raises(KeyboardInterrupt):
            evaluate(first, out, progress=False)
    assert len(read_table(out)) == 5 and not list(tmp_path.rglob("*.part"))
    second = Evaluation(toy_estimators(), toy_protocol(), kept)
    made = []
    monkeypatch.setattr(Evaluation, "_measure", lambda self, job: (made.append(job), measure(self, job))[1])
    evaluate(second, out, progress=False)
    assert len(made) == len(second.jobs()) - 5 == 3 * 2 * 4 - 5 and not set(made) & set(seen)
    rows = read_table(out)
    assert len(rows) == 24 and all(float(row["nmse_se"]) > 0 for row in rows)
    third = Evaluation(toy_estimators(), toy_protocol(), kept)
    evaluate(third, out, progress=False)
    assert len(made) == 19
    for job in second.found:
        assert all(np.array_equal(third.found[job][name], values) for name, values in second.found[job].items())


def test_other_weights_noise_or_options_are_measured_anew(tmp_path) -> None:
    job = Job("dm-vb", "CDL-A", 0.0, 0.6)
    one = Evaluation(toy_estimators(), toy_protocol(), tmp_path)
    one.figures(job)
    assert one.path(job).exists()  # type: ignore[union-attr]
    others = [
        Evaluation(toy_estimators(mark="other weights"), toy_protocol(), tmp_path),
        Evaluation(toy_estimators(), toy_protocol(seed=1), tmp_path),
        Evaluation(toy_estimators(), toy_protocol(channels=4), tmp_path),
        Evaluation(toy_estimators(Setting(scarce="CDL-A")), toy_protocol(setting=Setting(scarce="CDL-A")), tmp_path),
        Evaluation(
            Estimators(networks=toy_networks(), config=VBMoEConfig(steps=10, eta=0.5)), toy_protocol(), tmp_path
        ),
        Evaluation(Estimators(networks=toy_networks(), config=CONFIG, bf16=True), toy_protocol(), tmp_path),
    ]
    assert not any(other.path(job).exists() for other in others)  # type: ignore[union-attr]
    assert not np.array_equal(others[1].figures(job)["nmse"], one.found[job]["nmse"])
    rls = Job("rls", "CDL-A", 0.0, 0.6)
    one.figures(rls)
    assert others[0].path(rls).exists(), "RLS has no weights"  # type: ignore[union-attr]


def test_all_estimators_meet_the_same_channels(monkeypatch) -> None:
    run, given = Evaluation(toy_estimators(), toy_protocol()), []
    monkeypatch.setattr(
        Estimators, "estimate", lambda self, name, y, pilots, noise_var, **kw: given.append((y, pilots, noise_var, kw))
    )
    for name in ("dm-vb", "rls"):
        run.estimate(Job(name, "CDL-A", 10.0, 0.6))
    run.estimate(Job("rls", "CDL-C", 10.0, 0.6))
    run.estimate(Job("rls", "CDL-A", 10.0, 0.6), 2)
    assert torch.equal(given[0][0], given[1][0]) and torch.equal(given[0][1], given[2][1])
    assert given[0][2] == pytest.approx(6.4) and given[0][3] == given[1][3] != given[2][3]
    torch.testing.assert_close(given[3][0], given[0][0][:2])
    assert given[0][0].shape == (3, 16, 38)


def test_missing_weights_are_named(tmp_path) -> None:
    protocol = toy_protocol(setting=Setting("rotated"), densities=())
    made = Estimators(protocol.setting, weights=tmp_path)
    with pytest.raises(FileNotFoundError, match="dm_vb_rotated_cdl_a"):
        Evaluation(made, protocol, strict=True)
    run = Evaluation(made, protocol)
    assert run.names == ["lmmse", "rls"] and "dm_vb_rotated_single" in run.missing["single-dm"]
    out = tmp_path / "t.csv"
    evaluate(run, out, progress=False)
    rows = read_table(out)
    assert [row["estimator"] for row in rows if row["note"].startswith("missing: no weights")] == ["dm-vb", "single-dm"]
    assert len(rows) == 2 + 2 * 2 * 2
    evaluate(Evaluation(toy_estimators(protocol.setting), protocol), out, progress=False)
    rows = read_table(out)
    assert len(rows) == 4 * 2 * 2 and not any(row["note"] for row in rows)


def test_rows_and_gains_hold_what_was_found(tmp_path) -> None:
    run = Evaluation(toy_estimators(), toy_protocol(snrs_db=(20.0,), densities=()))
    for _ in run.run(progress=False):
        pass
    rows = {(row["estimator"], row["profile"]): row for row in rows_of(run)}
    job = Job("dm-vb", "CDL-C", 20.0, 0.6)
    row = rows["dm-vb", "CDL-C"]
    assert row["nmse_db"] == f"{mean_db(run.found[job]['nmse']).db:.3f}" and row["selection"] == "1.0000"
    assert rows["dm-vb", "CDL-A"]["selection"] == "0.0000" and rows["rls", "CDL-A"]["selection"] == ""
    assert row["networks"] == "float32" and rows["rls", "CDL-A"]["networks"] == ""
    paired = {(row["over"], row["profile"]): row for row in gains(run) if row["estimator"] == "dm-vb"}
    assert set(paired) == {(over, profile) for over in ("rls", "lmmse", "single-dm") for profile in ("CDL-A", "CDL-C")}
    want = gain_db(run.found[job]["nmse"], run.found[job._replace(estimator="rls")]["nmse"])
    assert paired["rls", "CDL-C"]["gain_db"] == f"{want.db:.3f}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 1}, "at least 2 channels"),
        ({"profiles": ("CDL-E",)}, "unknown profile 'CDL-E'"),
        ({"snrs_db": (), "densities": ()}, "at least one estimator"),
        ({"densities": (1.5,)}, "pilot density must lie on"),
        ({"estimators": ()}, "at least one estimator"),
    ],
)
def test_protocols_that_mean_nothing(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy_protocol(**changes)


# --------------------------------------------------------------------------------------------- report, commands


def test_report_writes_tables_and_picture(tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    settings = RunSettings(protocol=toy_protocol(), out=tmp_path / "deep" / "picture.png", keep=False, progress=False)
    run_report(settings, toy_estimators())
    text = capsys.readouterr().out
    for part in ("3 held-out channels of each profile, fixed set, balanced", "pilot density 0.6:", "by pilot density:",
                 "ms/channel", "own expert chosen, dm-vb: ",
                 "0.50 at 20 dB, density 0.6", "dm-vb against rls:", "backend cpu"):  # fmt: skip
        assert part in text, part
    assert settings.out.read_bytes().startswith(b"\x89PNG")
    rows = read_table(settings.out.with_suffix(".csv"))
    assert len(rows) == 24 and {row["density"] for row in rows} == {"0.6", "0.25"}
    assert {row["over"] for row in read_table(gains_path(settings.out.with_suffix(".csv")))} == {
        "rls",
        "lmmse",
        "single-dm",
    }


def test_demonstration_starts_its_tables_anew(tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "p.png"
    for snr in (5.0, 10.0):
        few = toy_protocol(estimators=("rls",), profiles=("CDL-A",), snrs_db=(snr,), densities=())
        run_report(RunSettings(protocol=few, out=out, keep=snr == 5.0, progress=False), toy_estimators())
    assert [row["snr_db"] for row in read_table(out.with_suffix(".csv"))] == ["10"]


def test_report_without_networks_names_them(tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    protocol = toy_protocol(setting=Setting("rotated"), snrs_db=(10.0,), densities=(), profiles=("CDL-A",))
    settings = RunSettings(protocol=protocol, out=tmp_path / "p.png", keep=False, progress=False, strict=False)
    run_report(settings, Estimators(protocol.setting, weights=tmp_path))
    text = capsys.readouterr().out
    assert "dm-vb missing: no weights 'dm_vb_rotated_cdl_a'" in text and "rotated set" in text
    assert (tmp_path / "p.png").exists() and (tmp_path / "p.csv").exists()


def test_command_runs(tmp_path, capsys) -> None:
    out = tmp_path / "x.png"
    argv = ["run", "dm-vb", "--estimators", "rls", "lasso", "--profiles", "CDL-A", "--channels", "2", "--snr", "10",
            "--out", str(out), "--quiet", "--threads", "1"]  # fmt: skip
    assert cli.main(argv) == 0
    assert "rls" in capsys.readouterr().out and out.exists()
    with out.with_suffix(".csv").open() as file:
        assert [row["estimator"] for row in csv.DictReader(file)] == ["rls", "lasso"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["demo", "dm-vb", "--channels", "1"], "at least 2 channels"),
        (["demo", "dm-vb", "--threads", "0"], "--threads must be at least 1"),
        (["run", "dm-vb", "--set", "moving"], "invalid choice: 'moving'"),
        (["run", "dm-vb", "--profiles", "CDL-F"], "invalid choice: 'CDL-F'"),
        (["run", "dm-vb", "--estimators", "oracle"], "unknown estimator 'oracle'"),
        (["run", "dm-vb", "--density", "2"], "pilot density"),
        (["run", "dm-vb", "--snr"], "at least one estimator, one profile, and one SNR"),
        (["run", "dm-vb", "--weights", "/nowhere"], "no weights 'dm_vb_fixed_cdl_a'"),
        (["run", "dm-vb", "--set", "rotated", "--estimators", "gm-exact"], "rotated set does not have"),
    ],
)
def test_errors_are_one_line(argv, message: str, capsys) -> None:
    try:
        code = cli.main(argv)
    except SystemExit as stop:
        code = stop.code
    text = capsys.readouterr().err
    assert code == 2 and message in text and len(text.strip().splitlines()) == 1


def test_evaluation_command(tmp_path, capsys) -> None:
    argv = ["--estimators", "rls", "--profiles", "CDL-A", "--snr", "0", "--densities", "--channels", "2",
            "--out", str(tmp_path / "t.csv")]  # fmt: skip
    assert evaluation_module.main(argv) == 0
    assert "fixed,horizontal,balanced,rls,CDL-A,0,0.6,38" in capsys.readouterr().out
