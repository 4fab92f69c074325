"""Training of the MU-MIMO downlink: stops and resumes to the last bit, and every variant meets the same data."""

import json
import signal

import pytest
import torch
from sf_testing import same_bits

from semcom_fast import cli, weights
from semcom_fast.data import ImpulseResponses, tapped_channels
from semcom_fast.data.digits import Digits
from semcom_fast.data.images import ImageSet
from semcom_fast.systems.fitting import Stopped, TimedFit, TimeUp
from semcom_fast.systems.mu_mimo import MuMimoSystem, SystemConfig, heads, load_system, train
from semcom_fast.systems.mu_mimo.batches import UNLABELLED, BatchSource, ChannelSource, channel_source
from semcom_fast.systems.mu_mimo.decoder import Classifier
from semcom_fast.systems.mu_mimo.fitting import LinkFitSettings, link_loss
from semcom_fast.systems.mu_mimo.heads import train_head
from semcom_fast.systems.mu_mimo.networks import available_heads, load_head


def _photos(count=40) -> ImageSet:
    """Stand-ins for photographs: smooth noise, no labels."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")
    return ImageSet((255 * smooth).to(torch.uint8))


def _source(**changes) -> BatchSource:
    sets = [tapped_channels(6, seed=s) for s in (0, 1)]
    settings = {"main": _photos(), "digits": Digits().load("train"), "channels": ChannelSource(sets, 32), **changes}
    return BatchSource(**settings)


def _fit(path, variant="full", steps=6, **changes) -> TimedFit:
    torch.manual_seed(0)
    settings = LinkFitSettings(steps, rate=1e-3, average=0.9, batch=1, variant=variant)
    return TimedFit(MuMimoSystem(SystemConfig(variant)), link_loss(_source(), settings), settings, path, **changes)


def _same_state(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for (name, one), (_, other) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        if one.is_floating_point():
            same_bits(one, other, name)


@pytest.mark.parametrize("variant", ["full", "djscc"])
def test_interrupted_and_resumed_is_unbroken(tmp_path, variant):
    whole = _fit(tmp_path / "whole", variant)
    averaged = whole.run("whole", progress=False)
    broken = _fit(tmp_path / "part", variant)
    inner, calls = broken.loss, iter(range(100))

    def loss(model, generator):
        if next(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return inner(model, generator)

    broken.loss = loss
    with pytest.raises(Stopped, match="stopped at step 3 of 6"):
        broken.run("part", progress=False)
    again = _fit(tmp_path / "part", variant)
    assert again.resume() and again.step == 3
    _same_state(again.run("part", progress=False), averaged)
    _same_state(again.model, whole.model)


def test_time_limit_saves_and_goes_on(tmp_path):
    fit = _fit(tmp_path / "c", minutes=1e-9)
    with pytest.raises(TimeUp):
        fit.run("limited", progress=False)
    again = _fit(tmp_path / "c")
    assert again.resume() and again.step == 1


def test_divergence_is_an_error_that_names_the_checkpoint(tmp_path):
    fit = _fit(tmp_path / "c")
    fit.loss = lambda model, generator: model.precoder.rho * float("nan")
    with pytest.raises(ValueError, match="training diverged: the loss of step 1 is nan"):
        fit.run("nan", progress=False)


def test_a_checkpoint_of_another_variant_is_refused(tmp_path):
    _fit(tmp_path / "c", steps=1).run("full", progress=False)
    with pytest.raises(ValueError, match="was made with settings"):
        _fit(tmp_path / "c", "no-pilot", steps=1).resume()


def test_averages_cover_running_statistics(tmp_path):
    fit = _fit(tmp_path / "c")
    averaged = fit.run("full", progress=False)
    mean = averaged.encoder.stem[1].running_mean
    assert mean.any() and not torch.equal(mean, fit.model.encoder.stem[1].running_mean)


def test_rate_goes_from_rate_to_floor():
    settings = LinkFitSettings(100, rate=1e-3)
    assert settings.rate_at(0) == pytest.approx(1e-3)
    assert settings.rate_at(50) == pytest.approx((1e-3 + 1e-5) / 2)
    assert settings.rate_at(100) == pytest.approx(1e-5)


def test_batches_depend_on_the_generator_alone():
    draws = [_source().draw(5, torch.Generator().manual_seed(3)) for _ in range(2)]
    for a, b in zip(*draws, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert not torch.equal(draws[0].images, _source().draw(5, torch.Generator().manual_seed(4)).images)


def test_batches_mix_labelled_digits_into_photographs():
    batch = _source().draw(500, torch.Generator().manual_seed(0))
    labelled = batch.labels != UNLABELLED
    share = float(labelled.double().mean())
    assert abs(share - 0.125) < 4 * (0.125 * 0.875 / 2000) ** 0.5
    grey = (batch.images[:, :, 0] == batch.images[:, :, 1]).flatten(2).all(-1)
    assert torch.equal(grey, labelled), "digits are grey, the stand-ins are not"
    assert int(batch.labels[labelled].min()) >= 0 and int(batch.labels[labelled].max()) == 9
    snr = -10 * batch.noise_var.log10()
    assert -7 <= float(snr.min()) < -6.9 and 6.9 < float(snr.max()) <= 7


def test_channels_come_from_the_stored_sets():
    a, b = tapped_channels(3, seed=1), tapped_channels(3, seed=2)
    source, generator = ChannelSource([a, b], 32), torch.Generator().manual_seed(0)
    from semcom_fast.data import subcarrier_frequencies

    known = [cir.to_ofdm(subcarrier_frequencies(32, 15e3)) for cir in (a, b)]
    seen = set()
    for _ in range(20):
        h = source.draw(2, generator)
        assert h.shape == (2, 32, 1, 4, 4)
        origin = [s for s in (0, 1) if all(any(torch.equal(x, k) for k in known[s]) for x in h)]
        assert len(origin) == 1, "a batch holds topologies of one scenario"
        seen.add(origin[0])
    assert seen == {0, 1}
    assert isinstance(a, ImpulseResponses)


def test_cross_entropy_counts_labelled_images_only():
    settings = LinkFitSettings(1, rate=1e-3, batch=4)
    torch.manual_seed(0)
    system = MuMimoSystem(SystemConfig())

    def value(weight, **changes):
        loss = link_loss(_source(**changes), LinkFitSettings(1, rate=1e-3, batch=4, cross_entropy=weight))
        with torch.no_grad():
            return float(loss(system, torch.Generator().manual_seed(0)))

    assert value(settings.cross_entropy, digits=None) == value(0.0, digits=None)
    # an untrained head is near the uniform guess, ln 10
    assert value(0.01) - value(0.0) == pytest.approx(0.01 * 2.3026, rel=0.2)


def test_command_trains_resumes_and_writes_usable_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "HELD_OUT", 8)
    command = ["train", "mu-mimo", "--images", "digits", "--scenario", "tapped", "--batch", "1", "--quiet"]
    for variant in ("full", "rzf"):
        assert cli.main([*command, "--variant", variant, "--steps", "2", "--out", str(tmp_path)]) == 0
    assert "images_per_second" in capsys.readouterr().out
    assert weights.available(tmp_path) == ["mu_mimo_full_nf32", "mu_mimo_rzf_nf32"]
    card = json.loads((tmp_path / "mu_mimo_full_nf32.json").read_text())
    assert card["training"]["steps_done"] == 2 and card["training"]["images_seen"] == 8
    assert card["labels"] == "digits" and "CIFAR-10" in card["data"] and "tapped 7 dB" in card["metrics"]
    system, _ = load_system("zf", folder=tmp_path)
    assert system.config.variant == "zf" and not any(p.requires_grad for p in system.parameters())
    assert cli.main([*command, "--steps", "3", "--out", str(tmp_path), "--resume"]) == 2
    assert "was made with settings" in capsys.readouterr().err


def test_head_learns_alone(tmp_path, capsys):
    """A folder of two classes: a head of two outputs appears, the system's own file stays as it was."""
    image = pytest.importorskip("PIL.Image")
    for name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(60):
            image.new("RGB", (32, 32), tuple(max(0, c - i) for c in colour)).save(tmp_path / "set" / name / f"{i}.png")
    torch.manual_seed(0)
    system = MuMimoSystem(SystemConfig("rzf"))
    weights.save("mu_mimo_rzf_nf32", tmp_path, train.half(system), {"name": "mu_mimo_rzf_nf32", "labels": "digits"})
    before = (tmp_path / "mu_mimo_rzf_nf32.safetensors").read_bytes()
    shared = {
        "variant": "rzf",
        "scenario": "tapped",
        "batch": 2,
        "out": tmp_path,
        "weights": tmp_path,
        "progress": False,
    }
    settings = train.TrainSettings(**shared, images=("folder", str(tmp_path / "set")), steps=3, bf16=False)
    card = train_head(settings)
    assert (tmp_path / "mu_mimo_rzf_nf32.safetensors").read_bytes() == before
    assert card["classes"] == 2 and card["labels"] == "folder" and card["training"]["steps_done"] == 3
    assert 0 <= card["metrics"]["tapped 7 dB"]["accuracy"] <= 1
    assert available_heads("rzf", 32, tmp_path) == ["folder"] and "folder" in capsys.readouterr().out

    plain, _ = load_system("rzf", folder=tmp_path)
    headed = load_head(plain, "folder", folder=tmp_path)
    same_bits(headed.encoder.dense.weight, plain.encoder.dense.weight)
    assert headed.decoder.classifier[-1].out_features == 2 and plain.decoder.classifier[-1].out_features == 10
    torch.manual_seed(0)
    fresh = Classifier(plain.decoder.classifier.inputs, 2)
    assert all(
        not torch.equal(a, b) for a, b in zip(fresh.parameters(), headed.decoder.classifier.parameters(), strict=True)
    )


def test_head_needs_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(heads, "batch_source", lambda settings: _source())
    with pytest.raises(ValueError, match="a head needs labelled images, and photos have no labels"):
        train_head(train.TrainSettings(scenario="tapped", out=tmp_path))


def test_time_limit_of_the_command_leaves_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "HELD_OUT", 4)
    command = ["train", "mu-mimo", "--images", "digits", "--scenario", "tapped", "--batch", "1", "--quiet"]
    command += ["--steps", "50", "--out", str(tmp_path), "--variant", "djscc", "--minutes", "0.0001"]
    assert cli.main(command) == 0
    assert "time limit reached at step 1 of 50; --resume goes on" in capsys.readouterr().out
    assert weights.available(tmp_path) == ["mu_mimo_djscc_nf32"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variant", "zf"], "invalid choice: 'zf'"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--minutes", "0"], "minutes must be positive"),
        (["--snr", "7", "-7"], "the SNR range must not be empty"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--images", "faces"], "unknown images 'faces': choose one of photos, digits, stamps, cifar10, folder"),
        (["--images", "cifar10"], "--images cifar10 takes one folder"),
        (["--images", "digits", "here"], "--images digits takes no folder"),
        (["--images", "digits", "--scenario", "indoor"], "unknown scenario 'indoor': choose one of umi, uma, rma, all"),
        (["--images", "digits", "--scenario", "tapped", "--subcarriers", "24"], "8x8 cells"),
    ],
)
def test_errors_are_one_line_and_exit_two(options, message, capsys):
    try:
        code = cli.main(["train", "mu-mimo", *options])
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1


def test_missing_photographs_and_channels_name_their_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path))
    assert cli.main(["train", "mu-mimo", "--scenario", "tapped"]) == 2
    assert "tools/get_photos.sh" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"python -m semcom_fast.data.tr38901"):
        channel_source("umi", 32)
