"""Receiver, evaluation and commands of SGD-JSCC, with tiny untrained networks."""

import copy
import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from semcom_fast import cli, weights
from semcom_fast.baselines.wiener import WienerDenoiser
from semcom_fast.links.perceptual import frechet_distance
from semcom_fast.receivers.schedules import ScaledLinearSchedule
from semcom_fast.receivers.waterfill_config import WaterfillConfig
from semcom_fast.systems.sgd_jscc import evaluate as evaluation
from semcom_fast.systems.sgd_jscc.autoencoder import Autoencoder, AutoencoderConfig
from semcom_fast.systems.sgd_jscc.control import ControlBranch
from semcom_fast.systems.sgd_jscc.dit import DiT, DiTConfig
from semcom_fast.systems.sgd_jscc.edge_codec import EdgeCodec, EdgeCodecConfig
from semcom_fast.systems.sgd_jscc.evaluate import Evaluation, Job, Protocol, gains, mean_of, receivers, rows_of
from semcom_fast.systems.sgd_jscc.link import (
    CHANNELS,
    LinkConfig,
)
from semcom_fast.systems.sgd_jscc.receiver import (
    ReceiverConfig,
    SgdJscc,
    authors_guidance,
    load_system,
    prior_denoiser,
    snr_db_of_level,
)
from semcom_fast.systems.sgd_jscc.report import RunSettings, run_report
from semcom_fast.systems.sgd_jscc.snr_estimator import SnrEstimator, SnrEstimatorConfig

pytest.importorskip("skimage")  # edge maps and the bundled photographs


@pytest.fixture(scope="module")
def system() -> SgdJscc:
    """All networks at toy size: latent 4x4x4 of 64x64 images; the control branch does something."""
    torch.manual_seed(0)
    autoencoder = Autoencoder(
        AutoencoderConfig(8, (1, 1), blocks=1, latent=4, image=64, groups=4, patch=8, moments=False)
    )
    sizes = {"head": 8, "window": 4, "mlp": 1, "channels": 4, "kept": 2, "condition": 4}
    edges = EdgeCodec(EdgeCodecConfig(64, (8, 8, 8, 8), (1, 1, 1, 1), **sizes))
    dit = DiT(DiTConfig.small(channels=4, side=4, width=16, heads=2, rank=20, side_block=False))
    control = ControlBranch.of(dit)
    for module in (dit.final, *control.exits, control.entry):
        for value in module.parameters():
            torch.nn.init.normal_(value, std=0.1)
    snr = SnrEstimator(SnrEstimatorConfig(latent=4, widths=(8, 8), snr_stride=1))
    parts = [part.requires_grad_(False).eval() for part in (autoencoder, edges, snr, dit, control)]
    return SgdJscc(*parts, wiener=prior_denoiser(dit))


def _images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(4))


def _config(**changes) -> ReceiverConfig:
    return ReceiverConfig(**{"waterfill": WaterfillConfig(steps=3), **changes})


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_switch_runs_and_matters(system: SgdJscc, channel: str) -> None:
    link, images, captions = LinkConfig(channel), _images(), ["a cat", "a cup", "a dog", "a sea"]

    def got(**changes) -> torch.Tensor:
        result = system.send_and_receive(images, 0.0, link, _config(**changes), captions=captions, seed=1)
        assert result.images.shape == images.shape and bool(torch.isfinite(result.images).all())
        assert (result.edges is None) == (
            changes.get("denoiser", "diffusion") != "diffusion" or not changes.get("edges", True)
        )
        return result.f

    full = got()
    others = {
        "no diffusion": got(denoiser="none"),
        "no edges": got(edges=False),
        "estimated": got(snr="estimated"),
        "captions": got(text=True),
        "weaker control": got(control_scale=0.5),
        "authors": got(control_scale="authors"),
        "guided": got(waterfill=WaterfillConfig(steps=3, guidance=2.0)),
        "preset": got(waterfill=WaterfillConfig.preset("authors_per_sample", steps=4)),
    }
    for name, latent in others.items():
        assert float((latent - full).abs().max()) > 1e-4, name
    assert torch.equal(got(), full)
    assert torch.allclose(got(control_scale=0.0), others["no edges"], atol=1e-5)
    assert torch.allclose(got(bf16=True), full, atol=0.2)


def test_without_edges_the_control_branch_is_not_needed(system: SgdJscc) -> None:
    alone = SgdJscc(system.autoencoder, system.edge_codec, dit=system.dit)
    result = alone.send_and_receive(_images(), 0.0, LinkConfig(), _config(edges=False))
    assert result.level.shape == (4,) and torch.allclose(result.level, torch.full((4,), 0.5))
    for config in (_config(), _config(edges=False, snr="estimated"), _config(denoiser="wiener")):
        with pytest.raises(ValueError, match="which this SgdJscc was made without"):
            alone.send_and_receive(_images(), 0.0, LinkConfig(), config)
    with pytest.raises(ValueError, match="2 captions for 4 images"):
        alone.send_and_receive(_images(), 0.0, LinkConfig(), _config(edges=False, text=True), captions=["a", "b"])


def test_no_noise_needs_no_denoiser(system: SgdJscc) -> None:
    sent = system.transmit(_images())
    for channel in CHANNELS:
        result = system.send_and_receive(_images(), 90.0, LinkConfig(channel), _config(edges=False))
        assert torch.allclose(result.f, sent.f, atol=0.05), channel


def test_batches_do_not_matter(system: SgdJscc) -> None:
    images, link = _images(), LinkConfig("fast")
    whole = system.send_and_receive(images, -5.0, link, _config(), seed=3).images
    part = system.send_and_receive(images[2:], -5.0, link, _config(), seed=3, first_item=2).images
    assert torch.allclose(whole[2:], part, atol=1e-4)


def test_discrete_steps_start_at_a_level_of_the_image_sampler(system: SgdJscc) -> None:
    images, link, discrete = _images(), LinkConfig("slow"), _config(step_style="discrete")
    seen = []
    alone = SgdJscc(system.autoencoder, system.edge_codec, dit=copy.deepcopy(system.dit))
    assert alone.dit is not None
    before = alone.dit.level_vector
    alone.dit.level_vector = lambda level: (seen.append(level.clone()), before(level))[1]  # type: ignore[method-assign]
    alone.send_and_receive(images, 0.0, link, replace(discrete, edges=False))
    levels = torch.from_numpy(ScaledLinearSchedule().levels()).float()
    assert float((levels - seen[0][0]).abs().min()) < 1e-7 and len(set(seen[0].tolist())) == 1
    with pytest.raises(ValueError, match="not for fast fading"):
        system.send_and_receive(images, 0.0, LinkConfig("fast"), discrete)


def test_snr_of_level_and_authors_table() -> None:
    snr = torch.tensor([-15.0, -10.0, -5.0, 0.0, 20.0], dtype=torch.float64)
    assert torch.allclose(snr_db_of_level(1 / (1 + 10 ** (snr / 10))), snr)
    assert bool(torch.isfinite(snr_db_of_level(torch.tensor([0.0, 1.0]))).all())
    scale, threshold = authors_guidance(snr)
    assert scale.tolist() == [0.05, 0.10, 0.15, 0.20, 0.20] and threshold.tolist() == [0.35, 0.25, 0.25, 0.0, 0.0]


def test_prior_denoiser_is_the_networks_own_estimate(system: SgdJscc) -> None:
    dit = copy.deepcopy(system.dit)
    assert dit is not None and dit.prior is not None
    torch.manual_seed(0)
    dit.prior.fit(torch.randn(300, 4, 4, 4) @ torch.randn(4, 4) + 0.5)
    g, level = torch.randn(3, 4, 4, 4), torch.tensor([0.2, 0.5, 0.9])
    gap = (prior_denoiser(dit).denoise(g, level) - dit.prior.estimate(g, level)).abs().max()
    assert float(gap) < 4 * 2**-11 * float(g.abs().max()), "its directions are stored as float16, orthogonal up to that"


# ------------------------------------------------------------------------------------------------ evaluation


def _protocol(**changes) -> Protocol:
    images = (255 * _images(5)).to(torch.uint8)
    chosen = {name: config for name, config in receivers(2).items() if name in ("codec", "guided", "wiener")}
    return Protocol(images, ["a cat"] * 5, torch.tensor([0, 0, 1, 2, 1]), chosen, ("awgn", "fast"), (-5.0,), **changes)


def test_mean_and_its_errors_by_hand() -> None:
    values, origins = np.array([1.0, 2.0, 3.0, 6.0]), np.array([0, 0, 1, 1])
    got = mean_of(values, origins)
    assert got.mean == 3 and got.se == pytest.approx(math.sqrt(14 / 3) / 2)
    assert got.se_photos == pytest.approx(1.5)  # photographs' means 1.5 and 4.5, deviation 2.1213, over sqrt 2
    assert math.isnan(mean_of(values[:1], origins[:1]).se)


def test_gains_are_paired() -> None:
    origins = np.array([0, 1, 1])
    figures = {name: np.array([1.0, 2.0, 3.0]) for name in evaluation.PER_CROP}
    better = {name: value + np.array([0.1, 0.2, 0.3]) for name, value in figures.items()}
    found = {
        Job("codec", "awgn", 0.0): figures,
        Job("guided", "awgn", 0.0): better,
        Job("guided", "fast", 0.0): figures,
    }
    rows = {(str(row["what"]), str(row["channel"])): row for row in gains(found, origins)}
    assert set(rows) == {("guided diffusion over codec alone", "awgn"), ("fast fading over AWGN, guided", "fast")}
    row = rows["guided diffusion over codec alone", "awgn"]
    assert row["ssim"] == "0.2000" and row["ssim_se"] == f"{0.1 / math.sqrt(3):.4f}"  # not the spread of the values
    assert rows["fast fading over AWGN, guided", "fast"]["psnr_db"] == "-0.2000"


def test_a_stopped_evaluation_goes_on(system: SgdJscc, tmp_path, monkeypatch) -> None:
    first = Evaluation(system, _protocol(), tmp_path)
    made = {job: figures for job, figures in first.run(progress=False)}
    assert len(made) == 6 and all(len(figures["ssim"]) == 5 for figures in made.values())
    second = Evaluation(system, _protocol(), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "_measure", lambda *_: pytest.fail("measured again"))
        for job, figures in second.run(progress=False):
            assert all(np.array_equal(figures[name], made[job][name]) for name in figures)
    other = Evaluation(system, _protocol(seed=1), tmp_path)
    job = next(iter(made))
    assert not np.array_equal(other.figures(job)["psnr_db"], made[job]["psnr_db"])
    changed = replace(_protocol(), receivers={"guided": receivers(4)["guided"]})
    assert not Evaluation(system, changed, tmp_path).path(Job("guided", "awgn", -5.0)).exists()  # type: ignore[union-attr]


def test_batches_of_an_evaluation_do_not_matter(system: SgdJscc, monkeypatch) -> None:
    job = Job("guided", "fast", -5.0)
    whole = Evaluation(system, _protocol()).figures(job)
    monkeypatch.setattr(evaluation, "BATCH", 2)
    parts = Evaluation(system, _protocol()).figures(job)
    assert np.allclose(whole["psnr_db"], parts["psnr_db"], atol=1e-3)


def test_figures_of_the_users_networks(system: SgdJscc) -> None:
    job = Job("codec", "awgn", -5.0)
    protocol = _protocol(
        extras={"brighter": lambda images, recovered, captions: (recovered - images).mean((1, 2, 3)) + len(captions)},
        features={"fid": lambda images: images.mean((2, 3))},
    )
    run = Evaluation(system, protocol)
    figures, recovered = run.figures(job), run.recovered(job)
    assert np.allclose(figures["brighter"], (recovered - run.images).mean((1, 2, 3)).numpy() + 5, atol=1e-5)
    means = [x.mean((2, 3)) for x in (run.images, recovered)]
    assert figures["fid"].shape == (1,) and figures["fid"][0] == pytest.approx(frechet_distance(*means), rel=1e-5)
    (row, *_) = rows_of({job: figures}, protocol, "none", {job: {"commit": "none"}})
    assert "brighter_se" in row and "fid" in row and "fid_se" not in row


def test_report_writes_tables_and_picture(system: SgdJscc, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path / "data"))
    chosen = ("codec", "wiener", "diffusion", "guided", "guided-estimated")
    settings = RunSettings.demo(
        out=tmp_path / "deep" / "picture.png", images=6, snrs_db=(-5.0, 5.0), receivers=chosen, steps=1, progress=False
    )
    run_report(settings, system)
    text = capsys.readouterr().out
    for part in ("6 held-out 64x64 crops of 6 photographs", "guided-estimated", "SSIM of the same crops",
                 "edge guidance", "fast fading over AWGN, guided", "LPIPS not computed", "FID not computed",
                 "backend cpu"):  # fmt: skip
        assert part in text, part
    assert settings.out.read_bytes().startswith(b"\x89PNG")
    with settings.out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * len(chosen)
    assert {row["steps"] for row in rows if row["receiver"] == "guided"} == {"1"}
    assert all(float(row["ssim_se"]) > 0 and row["crops"] == "6" for row in rows)
    with (settings.out.parent / "picture_gains.csv").open() as file:
        assert {row["what"] for row in csv.DictReader(file)} >= {
            "guided diffusion over Wiener",
            "estimated over known SNR",
        }
    assert not (tmp_path / "data" / "sgd_jscc").exists()  # the demonstration keeps nothing


# ------------------------------------------------------------------------------------------------ command line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["demo", "sgd-jscc", "--images", "1"], "--images must be at least 2"),
        (["demo", "sgd-jscc", "--threads", "0"], "--threads must be at least 1"),
        (["run", "sgd-jscc", "--channels", "rician"], "invalid choice: 'rician'"),
        (["run", "sgd-jscc", "--weights", "/nowhere"], "no weights"),
        (["train", "sgd-jscc", "--part", "everything"], "invalid choice: 'everything'"),
        (["train", "sgd-jscc", "--part", "snr", "--weights", "/nowhere", "--steps", "1"], ""),
        (["train", "sgd-jscc", "--part", "dit", "--images", "folder", "x"], "--images is for the other parts"),
        (["train", "sgd-jscc", "--part", "control", "--steps", "0"], "steps must be at least 1"),
    ],
)
def test_errors_are_one_line(argv, message: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path))
    try:
        code = cli.main(argv)
    except SystemExit as stop:
        code = stop.code
    text = capsys.readouterr().err
    assert code == 2 and message in text and len(text.strip().splitlines()) == 1


def test_unknown_receiver_is_named(system: SgdJscc, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="unknown receiver 'oracle'"):
        run_report(RunSettings.demo(images=6, receivers=("oracle",)), system)


SHIPPED = ("sgd_jscc_autoencoder", "sgd_jscc_snr", "sgd_jscc_edges", "sgd_jscc_dit", "sgd_jscc_control")
MISSING = [name for name in SHIPPED if name not in weights.available()]


@pytest.mark.skipif(bool(MISSING), reason=f"weights not there yet: {', '.join(MISSING)}")
def test_shipped_system_gains_by_diffusion(tmp_path, monkeypatch) -> None:
    """Held-out crops at 0 dB: diffusion beats the codec alone by more than two standard errors in SSIM."""
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path))
    from semcom_fast.data.photos import PhotoCrops

    protocol = evaluation.protocol_of(
        PhotoCrops(size=64, photos="bundled"), 24, ("codec", "guided"), 5, channels=("awgn",), snrs_db=(0.0,)
    )
    run = Evaluation(load_system(wiener=WienerDenoiser(torch.eye(2))), protocol)
    found = {job: figures for job, figures in run.run(progress=False)}
    (row,) = gains(found, protocol.origins.numpy())
    assert float(str(row["ssim"])) > 2 * float(str(row["ssim_se"])), row
