"""What the command line offers and what it refuses: options that would do nothing, sizes of zero, unknown environments."""

import importlib
import os
import subprocess
import sys

import pytest

from semcom_fast import cli
from semcom_fast.systems.blind_mimosc import commands, evaluate_photos, report_photos, run_preset
from semcom_fast.systems.blind_mimosc.experiment import Link
from semcom_fast.systems.blind_mimosc.photo_reception import RECEIVERS
from semcom_fast.systems.mu_mimo import commands as mu_mimo_commands


def _refused(argv, capsys):
    """The one line with which a command line is refused."""
    assert cli.main(argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.fixture
def idle(monkeypatch):
    """No command does anything: one that is not refused fails its test at once."""

    def ran(args):
        raise AssertionError("it ran")

    for name in cli.SYSTEMS.values():
        offered = importlib.import_module(name).COMMANDS
        for verb, (add, _) in offered.items():
            monkeypatch.setitem(offered, verb, (add, ran))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--device", "cuda", "--images", "1"], "--device needs --preset"),
        (["--device", "cpu"], "--device needs --preset"),  # its default, given
        (["--out", "x.png"], "--out needs --images photos"),
        (["--receivers", "foo"], "--receivers needs --images photos"),
        (["--steps", "1"], "--steps needs --preset"),
        (["--bf16"], "--bf16 needs --images photos"),
        (["--crops", "3"], "--crops needs --images photos or --preset"),
        (["--photos", "all"], "--photos needs --images photos or --preset"),
        (["--images", "photos", "--nr", "8"], "--nr is for digits"),
        (["--images", "photos", "--starts", "4"], "--starts is for digits and --preset"),
        (["--images", "photos", "--limit", "4"], "--limit needs --preset"),
        (["--preset", "paper-441", "--users", "9"], "--users is for digits"),
        (["--preset", "paper-441", "--images", "5"], "--images is not for --preset"),
        (["--preset", "paper-441", "--receivers", "pvd"], "--receivers needs --images photos"),
        (["--preset", "paper-441", "--steps", "3"], "--steps needs --nets random"),
        (["--preset", "paper-441", "--orientation", "fixed"], "--orientation needs CDL channels"),
        (["--preset", "paper-441", "--nets", "random", "--starts", "3"], "--starts is not for --nets random"),
        (["--preset", "paper-441", "--nets", "random", "--weights", "x"], "--weights is for the small networks"),
    ],
)
def test_a_run_refuses_options_that_would_do_nothing(argv, message, capsys, idle):
    assert message in _refused(["run", "pvd", *argv], capsys)


def test_a_device_is_one_of_two_kinds(capsys):
    line = _refused(["run", "pvd", "--preset", "paper-441", "--device", "tpu"], capsys)
    assert "--device must be cpu or cuda" in line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pvd", "--minutes", "2"], "--minutes needs --part channel|codec|codec-plain|denoiser"),
        (["pvd", "--seed", "0"], "--seed needs --part channel|"),
        (["pvd", "--nr", "8"], "--nr needs --part channel"),
        (["pvd", "--part", "codec", "--cdl", "C"], "--cdl needs --part channel"),
        (["pvd", "--part", "channel", "--batch", "8"], "--batch needs --part codec|codec-plain|denoiser"),
        (["pvd", "--part", "denoiser", "--symbols", "256"], "--symbols needs --part codec|codec-plain"),
        (["mu-mimo", "--weights", "x"], "--weights needs --head"),
        (["dm-vb", "--scarce-samples", "9"], "--scarce-samples needs --scarce"),
        (["dm-vb", "--profile", "CDL-D", "--scarce", "CDL-D", "--samples", "9"], "--samples is for other profiles"),
        (["sgd-jscc", "--weights", "x"], "--weights needs --part snr|dit|control"),
    ],
)
def test_training_refuses_options_that_would_do_nothing(argv, message, capsys, idle):
    assert message in _refused(["train", *argv], capsys)


@pytest.mark.parametrize("verb", ["demo", "run"])
def test_dm_vb_refuses_the_snr_of_a_sweep_that_is_not_there(verb, capsys, idle):
    assert "--density-snr needs --densities" in _refused([verb, "dm-vb", "--density-snr", "3"], capsys)


def test_options_of_the_group_in_use_arrive(capsys, monkeypatch, tmp_path):
    """Every option of a group is taken where its group is in use: none is refused in all kinds of runs."""
    seen = []
    monkeypatch.setattr(run_preset, "run_preset", seen.append)
    monkeypatch.setattr(commands, "run_photos", seen.append)
    nets = ["--nets", "random", "--size", "small", "--steps", "2", "--limit", "3", "--memory", "1", "--device", "cpu"]
    assert cli.main(["run", "pvd", "--preset", "paper-cdl", *nets, "--orientation", "fixed", "--crops", "2"]) == 0
    assert cli.main(["run", "pvd", "--preset", "paper-441", "--photos", "bundled", "--starts", "2"]) == 0
    photos = ["--crops", "3", "--photos", "fetched", "--receivers", "pvd", "--bf16", "--out", str(tmp_path / "p.png")]
    assert cli.main(["run", "pvd", "--images", "photos", *photos]) == 0
    random, small, sent = seen
    assert (random.nets, random.size, random.steps, random.orientation, random.crops) == (
        "random", "small", 2, "fixed", 2,
    )  # fmt: skip
    assert (small.photos, small.starts) == ("bundled", 2)
    assert (sent.crops, sent.photos, sent.receivers, sent.bf16) == (3, "fetched", ("pvd",), True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["blocks", "nr", "nt", "slots", "users"])
@pytest.mark.parametrize("size", [0, -1])
def test_a_link_has_sizes(name, size, capsys):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {size}"):
        Link(**{name: size})
    assert f"{name} must be at least 1, got {size}" in _refused(["run", "pvd", f"--{name}", str(size)], capsys)


@pytest.mark.parametrize(("name", "value"), [("SEMCOM_FAST_ISA", "foo"), ("SEMCOM_FAST_BACKEND", "foo")])
@pytest.mark.parametrize("argv", [["info"], ["run", "pvd", "--images", "2"]])
def test_an_environment_that_names_nothing_is_one_line(name, value, argv):
    if name == "SEMCOM_FAST_ISA" and cli._native.core is None:
        pytest.skip("the extension, which knows its levels, is not built")
    command = [sys.executable, "-m", "semcom_fast", *argv]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, name: value}, timeout=120)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("semcom-fast: ") and f"{name}={value} is unknown" in line


def test_the_package_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "semcom_fast", "--version"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout.startswith("semcom-fast ")


def test_help_lists_the_systems_that_have_a_command(capsys):
    """And those are the ones whose modules have it."""
    for name, module in cli.SYSTEMS.items():
        offered = [verb for verb in cli.VERBS if name in cli.VERBS[verb].systems]
        assert sorted(importlib.import_module(module).COMMANDS) == sorted(offered), name
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "resumed [blind-mimosc] bench" in text and "options of its own: semcom-fast run pvd --help" in text
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "options of its own" in text and "semcom-fast run dm-vb --help" in text


def test_resuming_nothing_is_said(tmp_path, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(commands, "train_all", lambda out, **named: calls.append(named["resume"]))
    assert cli.main(["train", "pvd", "--resume", "--out", str(tmp_path)]) == 0
    assert f"no checkpoint in {tmp_path} to go on from" in capsys.readouterr().err
    (tmp_path / "digits_denoiser.checkpoint").touch()
    assert cli.main(["train", "pvd", "--resume", "--out", str(tmp_path)]) == 0
    assert cli.main(["train", "pvd", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().err == "" and calls == [True, True, False]


@pytest.mark.parametrize(("scenario", "which"), [("all", ""), ("uma", " --scenario uma")])
def test_channels_that_were_not_generated_name_one_command_and_the_way_around(
    scenario, which, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path))
    line = _refused(["train", "mu-mimo", "--scenario", scenario], capsys)
    assert f"python -m semcom_fast.data.tr38901 --split train{which} once" in line and "--scenario tapped" in line
    monkeypatch.setattr(mu_mimo_commands, "train", lambda settings: None)
    assert cli.main(["train", "mu-mimo", "--scenario", "tapped"]) == 0
    monkeypatch.setattr(mu_mimo_commands, "set_path", lambda name, split: tmp_path)  # something is there
    assert cli.main(["train", "mu-mimo", "--scenario", scenario]) == 0


# ---- photographs inside Python packages, without those that training uses


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    pytest.importorskip("skimage")
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path))
    return ["run", "pvd", "--images", "photos", "--photos", "bundled", "--crops", "2", "--snr", "10", "--quiet",
            "--out", str(tmp_path / "p.png")]  # fmt: skip


def test_bundled_photographs_need_nothing_fetched(bundled, tmp_path, capsys):
    assert cli.main([*bundled, "--receivers", "lmmse-m", "djscc-csi"]) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 3
    line = _refused([*bundled, "--receivers", "lmmse-m", "bound-random"], capsys)
    assert "bound-random needs the training photographs" in line
    assert "tools/get_photos.sh" in line and "leave it out of --receivers" in line


@pytest.mark.parametrize(("photos", "there"), [("bundled", False), ("bundled", True), ("all", False)])
def test_by_default_only_what_cannot_be_had_is_left_out(photos, there, bundled, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(commands, "run_photos", seen.append)
    if there:
        monkeypatch.setattr(commands, "training_crops_missing", lambda: None)
    assert cli.main([*bundled, "--photos", photos]) == 0
    left_out = set(RECEIVERS) - set(seen[0].receivers)
    err = capsys.readouterr().err
    if photos == "bundled" and not there:
        assert left_out == set(evaluate_photos.NEED_TRAINING_CROPS) and "left out: bound and bound-random" in err
    else:
        assert not left_out and not err


def test_missing_test_photographs_name_the_option(bundled, capsys):
    line = _refused([*bundled, "--photos", "all"], capsys)
    assert "--photos bundled" in line and 'photos="bundled" in Python' in line


def test_the_bounds_are_the_receivers_that_use_the_training_crops(monkeypatch):
    """Every other receiver leaves the precision of the training crops alone."""
    from photo_toys import photo_images, photo_networks

    from semcom_fast.receivers import PVDConfig
    from semcom_fast.systems.blind_mimosc.photo_images import as_source
    from semcom_fast.systems.blind_mimosc.photo_reception import Reception

    networks = photo_networks()
    object.__setattr__(networks, "prior", None)
    quick = PVDConfig(nt=2, source_shape=(1, 32, 32), J=2, Jin=1)
    reception = Reception(networks, as_source(photo_images(1, seed=5)), 20.0, config=quick, starts=1, dps_steps=2)
    failing = []
    for name in RECEIVERS:
        try:
            reception.receive(name)
        except (TypeError, AttributeError):
            failing.append(name)
    assert tuple(failing) == evaluate_photos.NEED_TRAINING_CROPS
    assert report_photos.PhotoRunSettings().receivers == tuple(RECEIVERS)
