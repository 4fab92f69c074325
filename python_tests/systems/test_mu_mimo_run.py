"""Evaluation, report and latency of the MU-MIMO downlink, and its errors on the command line."""

import csv
import math

import pytest
import torch
from sf_testing import same_bits

from semcom_fast import cli, weights
from semcom_fast.data import load_channels, tapped_channels
from semcom_fast.data.digits import Digits
from semcom_fast.data.images import ImageSet
from semcom_fast.systems.mu_mimo import MuMimoSystem, SystemConfig, available_variants, load_system
from semcom_fast.systems.mu_mimo import evaluate as evaluation
from semcom_fast.systems.mu_mimo.evaluate import Protocol, measure, send
from semcom_fast.systems.mu_mimo.latency import CLOSED_FORM, NETWORK, PRECODER, SUM
from semcom_fast.systems.mu_mimo.latency import main as latency
from semcom_fast.systems.mu_mimo.latency import measure as time_stages
from semcom_fast.systems.mu_mimo.networks import weights_name
from semcom_fast.systems.mu_mimo.train import half

pytest.importorskip("skimage")  # the bundled photographs


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home without fetched photographs, generated channels or cached crops."""
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def untrained(tmp_path):
    """A folder with untrained weights of two variants."""
    for variant in ("full", "rzf"):
        torch.manual_seed(0)
        card = {"labels": "digits"}
        weights.save(weights_name(variant), tmp_path / "own", half(MuMimoSystem(SystemConfig(variant))), card)
    return tmp_path / "own"


def _system(variant="rzf") -> MuMimoSystem:
    torch.manual_seed(0)
    return MuMimoSystem(SystemConfig(variant)).requires_grad_(False).eval()


def _noise(count, seed=0) -> torch.Tensor:
    return torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_sending_does_not_depend_on_the_batch_size(monkeypatch):
    images, cir = _noise(24), tapped_channels(5, seed=0)
    whole = send(_system(), images, cir, 3.0, seed=2)
    assert whole.images.shape == (24, 3, 32, 32) and whole.scores.shape == (24, 10)
    monkeypatch.setattr(evaluation, "GRIDS_AT_ONCE", 4)
    parts = send(_system(), images, cir, 3.0, seed=2)
    torch.testing.assert_close(parts.images, whole.images, rtol=0, atol=1e-5)
    assert not torch.equal(send(_system(), images, cir, 3.0, seed=3).images, whole.images)


def test_measured_figures_are_those_of_the_definition():
    system, cir, photos = _system(), tapped_channels(5, seed=0), ImageSet(_noise(10))
    known = Digits().load("test", 6)
    protocol = Protocol(photos, {"digits": known}, {"tapped": cir}, seeds=(0, 1))
    row = measure("rzf", "tapped", 3.0, {"digits": system, "birds": system}, protocol)
    truth, values = photos.images[:8].float() / 255, []
    for seed in (0, 1):
        error = (send(system, photos.images[:8], cir, 3.0, seed).images - truth).square().mean((1, 2, 3))
        values.append(float((-10 * error.log10()).mean()))
    assert row.psnr_db == pytest.approx(sum(values) / 2, abs=1e-4)
    assert row.psnr_se == pytest.approx(abs(values[0] - values[1]) / 2, abs=1e-4)
    guesses = [send(system, known.images[:4], cir, 3.0, s).scores.argmax(-1) for s in (0, 1)]
    hits = [float((guess == known.labels[:4]).double().mean()) for guess in guesses]
    assert row.accuracy == {"digits": (pytest.approx(sum(hits) / 2), pytest.approx(abs(hits[0] - hits[1]) / 2))}
    once = Protocol(photos, {}, {"tapped": cir}, seeds=(0,))
    assert math.isnan(measure("rzf", "tapped", 3.0, {"digits": system}, once).psnr_se)


def test_run_needs_nothing_but_the_package(home, untrained, capsys):
    out = home / "deep" / "picture.png"
    command = ["run", "mu-mimo", "--weights", str(untrained), "--images", "8", "--digits", "8", "--snr", "-7", "7"]
    assert cli.main([*command, "--scenarios", "umi", "rma", "--seeds", "2", "--out", str(out), "--quiet"]) == 0
    text = capsys.readouterr().out
    for part in ("PSNR", "SSIM", "accuracy", "full      umi", "zf        rma", "-7 dB", "standard error", "CIFAR-10",
                 "backend cpu", "handwritten digits", "digits"):  # fmt: skip
        assert part in text, part
    assert out.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert [(r["variant"], r["scenario"], r["snr_db"]) for r in rows[:4]] == [
        ("full", "umi", "-7"), ("full", "umi", "7"), ("full", "rma", "-7"), ("full", "rma", "7"),
    ]  # fmt: skip
    assert len(rows) == 12 and rows[0]["images"] == "8" and float(rows[0]["psnr_db"]) > 3
    assert not (home / "data" / "photos").exists()


def test_the_same_seed_gives_the_same_figures(home, untrained, capsys):
    def figures(*more):
        out = home / "p.png"
        command = ["run", "mu-mimo", "--weights", str(untrained), "--images", "4", "--digits", "4", "--snr", "0"]
        command += ["--scenarios", "umi", "--variants", "rzf", "--quiet", "--out", str(out), *more]
        assert cli.main(command) == 0
        return next(csv.DictReader(out.with_suffix(".csv").open()))["psnr_db"]

    assert figures() == figures()
    assert figures() != figures("--csi-error-var", "0.5")
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "3"], "a grid carries 4 images: --images must be at least 4, got 3"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--variants", "best"], "unknown variant 'best': choose from full"),
        (["--scenarios", "indoor"], "unknown scenario 'indoor'"),
        (["--subcarriers", "64"], "no weights for 64 subcarriers: train them with semcom-fast train mu-mimo"),
        (["--weights", "/nowhere", "--variants", "full"], "no weights 'mu_mimo_full_nf32' with a card in /nowhere"),
        (["--channels", "other"], "invalid choice"),
        (["--threads", "0"], "--threads must be at least 1"),
    ],
)
def test_errors_are_one_line_and_exit_two(options, message, untrained, home, capsys):
    try:
        code = cli.main(["run", "mu-mimo", "--weights", str(untrained), "--out", str(home / "p.png"), *options])
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1


def test_generated_channels_and_fetched_photographs_name_their_commands(home, untrained, capsys):
    command = ["run", "mu-mimo", "--weights", str(untrained), "--out", str(home / "p.png"), "--quiet"]
    assert cli.main([*command, "--channels", "eval"]) == 2
    assert "semcom_fast.data.tr38901" in capsys.readouterr().err
    assert cli.main([*command, "--photos", "fetched"]) == 2
    assert "get_photos.sh" in capsys.readouterr().err


def test_latency_gives_the_precoder_in_parts_and_as_a_whole(capsys):
    times = {stage.name: stage.milliseconds for stage in time_stages(SystemConfig(), repeats=1)}
    assert {CLOSED_FORM, NETWORK, SUM, PRECODER, "encoder", "channel", "decoder", "slot"} == set(times)
    assert times["slot"] == pytest.approx(sum(times[n] for n in ("encoder", PRECODER, "channel", "decoder")))
    plain = {stage.name: stage.milliseconds for stage in time_stages(SystemConfig("rzf"), repeats=1, static=False)}
    assert set(plain) == {"encoder", CLOSED_FORM, "channel", "decoder", "slot"}
    assert plain["slot"] == pytest.approx(sum(plain.values()) - plain["slot"])
    assert latency(["--subcarriers", "32", "--repeats", "1"]) == 0
    assert "ms per grid" in capsys.readouterr().out


def test_shipped_weights_have_cards_that_tell_their_origin():
    assert available_variants() == ["full", "no-pilot", "rzf", "zf", "djscc"]
    for variant in ("full", "no-pilot", "rzf", "djscc"):
        system, card = load_system(variant)
        assert card["name"] == weights_name(variant) and card["parameters"] == sum(
            p.numel() for p in system.parameters()
        )
        assert "CIFAR-10" in card["data"] and card["seconds"] > 0 and card["training"]["images_seen"] > 100_000
        licensed = [line for line in card["sources"] if "CC" in line or "GPL" in line]
        assert len(licensed) == len(card["sources"]) > 10
        assert card["training"]["steps_done"] == card["training"]["steps"]


def test_shipped_weights_recover_photographs_they_never_saw(home):
    from semcom_fast.data.photos import PhotoCrops

    images = PhotoCrops(size=32, photos="bundled").load("test", 64).images
    truth, cir = images.float() / 255, load_channels("umi", "shipped")

    def reached(variant, snr_db):
        error = (send(load_system(variant)[0], images, cir, snr_db, 0).images - truth).square().mean((1, 2, 3))
        return float((-10 * error.log10()).mean())

    low, high = reached("full", -7.0), reached("full", 7.0)
    assert low < reached("full", 0.0) < high
    assert high > reached("rzf", 7.0) > reached("zf", 7.0)
    assert high > reached("djscc", 7.0) + 1.0
    assert reached("zf", -7.0) < reached("rzf", -7.0)


def test_zf_runs_on_the_weights_of_rzf(untrained):
    zf, rzf = load_system("zf", folder=untrained)[0], load_system("rzf", folder=untrained)[0]
    same_bits(zf.encoder.dense.weight, rzf.encoder.dense.weight)
    assert zf.precoder.alpha() == 0.0 and rzf.precoder.alpha() == 1.0
