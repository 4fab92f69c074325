"""The paper's antenna settings from the command line: sizes, channels, figures, timing of random networks."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from sf_testing import draw, within

from semcom_fast import cli, weights
from semcom_fast.links import channel_nmse, draw_channel, transmit
from semcom_fast.receivers import PVD, GaussianChannelPrior, PVDConfig
from semcom_fast.systems.blind_mimosc import paper_nets, presets, run_preset
from semcom_fast.systems.blind_mimosc.channel_laws import ChannelLaw
from semcom_fast.systems.blind_mimosc.evaluate_channels import covariance_lmmse
from semcom_fast.systems.blind_mimosc.paper_timing import time_steps
from semcom_fast.systems.blind_mimosc.photo_codec import PhotoCodec, PhotoCodecConfig
from semcom_fast.systems.blind_mimosc.photo_denoiser import PhotoDenoiser, UNetConfig
from semcom_fast.systems.blind_mimosc.presets import PRESETS, PresetSettings, kronecker_covariances, kronecker_lmmse
from semcom_fast.systems.blind_mimosc.run_preset import RANDOM_REMARK

QUICK = {"J": 3, "Jin": 2, "sigma_max": 3.0}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Untrained networks under the names of the shipped ones."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    codec = PhotoCodecConfig(blocks=8, nt=2, slots=24, width=8, encoder_blocks=1, decoder_width=8, decoder_blocks=1)
    unet = UNetConfig(widths=(4, 4, 8), embedding=8, features=4)
    for name, network, config in (("blind_mimosc_photo_codec_384", PhotoCodec(codec), codec),
                                  ("blind_mimosc_photo_denoiser", PhotoDenoiser(unet), unet)):  # fmt: skip
        weights.save(name, folder, network.state_dict(), {"config": asdict(config)})
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def _own_cache(cache, monkeypatch):
    pytest.importorskip("skimage")
    monkeypatch.setenv("SEMCOM_DATA", str(cache))


def _settings(small, preset, **changes):
    return PresetSettings(**({"preset": preset, "crops": 2, "weights": small, "photos": "bundled", "progress": False,
                              "schedule": QUICK} | changes))  # fmt: skip


SIZES = {"paper-441": (16, 4, 4, 1), "paper-64x8": (2, 64, 1, 8), "paper-cdl": (1, 128, 1, 16)}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_the_papers_sizes(preset, small):
    """K, Nr, U, Nt with T = 24 and the shipped codec's 384 symbols; another crop for every user; E|n|^2 of the SNR."""
    k, nr, users, nt = SIZES[preset]
    sent = presets.prepare(_settings(small, preset))
    assert sent.h.shape == (2, users, k, nr, nt) and sent.x.shape == (2, users, k, nt, 24)
    assert sent.y.shape == (2, k, nr, 24) and sent.d.shape == (2, users, 1, 32, 32)
    assert len(torch.unique(sent.d.flatten(0, 1).flatten(1), dim=0)) == 2 * users
    snr = {"paper-441": 20.0, "paper-64x8": 0.0, "paper-cdl": 0.0}[preset]
    assert sent.noise_var == pytest.approx(users * nt * 10 ** (-snr / 10))
    assert presets.prepare(_settings(small, preset, snr_db=7.0)).noise_var == pytest.approx(users * nt * 10**-0.7)


def test_figures_of_a_preset(small, capsys):
    """What is printed is what the receiver gives, also when it runs in parts; the oracle is below it."""
    found = run_preset.run_preset(_settings(small, "paper-64x8", starts=2, limit=3))
    text = capsys.readouterr().out
    parts = ("paper-64x8: (Nr,U,Nt) = (64,1,8), T = 24, 0 dB", "K = 2 blocks", "CBR 0.3750", "0.0234, K = 24")
    figures = ("oracle LMMSE", "PSNR", "SSIM", "DJSCC, channel known", "peak memory", "2 part(s)", "2 start(s)")
    for part in (*parts, "Rayleigh, exact", *figures):
        assert part in text, part
    assert found.parts == 2
    sent = presets.prepare(_settings(small, "paper-64x8"))
    whole = sent.receiver.run(sent.y, sent.noise_var, restarts=2, seed=0)
    torch.testing.assert_close(found.nmse, channel_nmse(sent.h, whole.h), rtol=1e-3, atol=0)
    assert bool((found.oracle < found.nmse).all())
    assert (
        -5.6 < 10 * math.log10(float(found.oracle.mean())) < -4.8
    )  # Nr = 64, Nt = 8, T = 24, 0 dB: -5.19 for Gaussian X


def test_decoding_with_the_channel_known(small):
    """Without noise the equalised symbols of every user are its codeword, and the decoder gives what it gives on that."""
    sent = presets.prepare(_settings(small, "paper-441", snr_db=120.0))
    kept = {}
    sent = sent._replace(decode=lambda x, noise: kept.update(x=x, noise=noise) or torch.zeros_like(sent.d))
    presets.decoded(sent)
    torch.testing.assert_close(kept["x"], sent.x, atol=2e-3, rtol=1e-3)
    assert kept["noise"].shape == (2,) and 0 < float(kept["noise"].max()) < 1e-8


def test_success_is_judged_by_what_can_be_reached():
    """-6 dB; where the oracle reaches only -5 dB: -2.5 dB."""
    assert presets.success_level(torch.tensor([1e-3])) == pytest.approx(10**-0.6)
    assert presets.success_level(torch.tensor([10**-0.5])) == pytest.approx(10**-0.25)


def test_diverged_transmissions_are_counted(small, capsys):
    """Far too large steps: nothing fails, the transmissions count as lost."""
    found = run_preset.run_preset(
        _settings(small, "paper-64x8", schedule=QUICK | {"zeta_h": 1e9, "zeta_d": 1e9, "J": 9})
    )
    assert found.diverged == 2 and "diverged             2 of 2" in capsys.readouterr().out
    torch.testing.assert_close(found.nmse, torch.ones(2))


def test_kronecker_covariances_are_those_of_the_law():
    """Exponentially correlated channels: R_ij = 0.7^|i-j| at both ends, to the error of 2,000 draws."""
    law = ChannelLaw(nr=6, nt=3, correlation=0.7)
    for found, want in zip(kronecker_covariances(law, 2000), law.covariances(), strict=True):
        within(found, want.to(found.dtype), 5 / 2000**0.5 * torch.ones(want.shape), "Kronecker covariances of draws")
    assert float(found.diagonal().real.mean()) == pytest.approx(1.0, rel=1e-12)


def test_kronecker_lmmse_is_the_full_one():
    """Against the estimate with the covariance of vec h written out."""
    law = ChannelLaw(nr=5, nt=2, correlation=0.6)
    rx, tx = (c.to(torch.complex128) for c in law.covariances())
    rx = rx * torch.exp(1j * (torch.arange(5)[:, None] - torch.arange(5)).double())  # Hermitian, not real
    tx = tx * torch.exp(0.7j * (torch.arange(2)[:, None] - torch.arange(2)).double())
    x = draw(3, 1, 2, 2, 7, seed=1, dtype=torch.complex128)
    y = transmit(draw_channel(3, 1, 2, 5, 2, seed=2, cov_rx=rx, cov_tx=tx, dtype=torch.complex128), x, 0.3, 4)
    want = covariance_lmmse(y, x, 0.3, torch.kron(rx, tx))
    within(kronecker_lmmse(y, x, 0.3, rx, tx), want, 1e-11 * torch.ones(want.shape), "LMMSE with Kronecker covariance")


@pytest.mark.parametrize(("orientation", "gain_db"), [("random", (0.1, 1.0)), ("fixed", (2.0, 3.5))])
def test_the_cdl_preset_states_its_prior(small, capsys, orientation, gain_db):
    """What the covariances tell LMMSE: little where the arrays turn, 2.6 dB where they always point the same way."""
    settings = _settings(small, "paper-cdl", orientation=orientation, schedule=QUICK | {"J": 2}, crops=6)
    found = run_preset.run_preset(settings)
    text = capsys.readouterr().out
    assert f"Kronecker covariances of 1000 drawn channels, {orientation} orientation (not learned)" in text
    assert "the receiver's prior" in text and found.oracle_prior is not None
    gain = 10 * math.log10(float(found.oracle.mean() / found.oracle_prior.mean()))
    assert gain_db[0] < gain < gain_db[1]


# ---- full-size networks


def test_random_networks_are_only_timed(capsys):
    """The first line says so; no figure of reception is printed, and none is computed."""
    argv = [
        "run",
        "pvd",
        "--preset",
        "paper-64x8",
        "--nets",
        "random",
        "--size",
        "small",
        "--steps",
        "1",
        "--crops",
        "1",
    ]
    assert cli.main([*argv, "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == RANDOM_REMARK and "RANDOM WEIGHTS" in lines[0]
    rest = "\n".join(lines[1:])
    assert not any(word in rest for word in ("NMSE", "PSNR", "SSIM", "oracle", "success"))
    for part in (
        "extrapolated to 600 inner steps",
        "network share",
        "peak memory",
        "denoiser 0.32 M",
        "seconds per step",
    ):
        assert part in rest, part


def test_time_of_a_step_is_that_of_its_networks_and_the_loop():
    """A denoiser of known duration: a step takes that and little more, the networks alone take it too."""
    import time

    calls = []

    class Slow:
        def __call__(self, x, sigma):
            calls.append(len(x))
            time.sleep(0.05)
            return 0.5 * x, x.new_full(x.shape[:2], 0.1)

    encoder = PhotoCodec(PhotoCodecConfig(blocks=4, nt=1, slots=24, width=8, encoder_blocks=1)).encoder
    encoder.requires_grad_(False)
    config = PVDConfig(source_shape=(1, 32, 32))
    found = time_steps(
        PVD(encoder, GaussianChannelPrior(), Slow(), config),
        encoder,
        Slow(),
        draw(3, 4, 2, 24, seed=1, dtype=torch.complex64),
        0.1,
        2,
    )
    assert calls == [3] * 7  # 2 timed steps and one to warm up, in the loop and alone; one is recorded
    assert found.steps == 2 and found.batch == 3 and min(found.network, found.step) >= 0.05
    assert found.run_seconds(600) == pytest.approx(200 * found.step)
    with pytest.raises(ValueError, match="at least 1 inner step"):
        time_steps(
            PVD(encoder, GaussianChannelPrior(), Slow(), config),
            encoder,
            Slow(),
            draw(1, 4, 2, 24, dtype=torch.complex64),
            0.1,
            0,
        )


def test_a_folder_of_networks_is_used(tmp_path, capsys):
    """`--nets DIR`: RGB crops of the networks' size, K of their symbols, and what is missing is named."""
    nets = paper_nets.random_networks("small", 8, 24, 1)
    swin, score = paper_nets.SIZES["small"]
    torch.save(nets.encoder.state_dict(), tmp_path / "encoder.pth")
    torch.save(nets.denoiser.network.score.state_dict(), tmp_path / "denoiser.pth")
    (tmp_path / "encoder.json").write_text(json.dumps(asdict(swin)))
    (tmp_path / "denoiser.json").write_text(json.dumps(asdict(score)))
    found = run_preset.run_preset(_settings(None, "paper-64x8", nets=str(tmp_path), crops=1, schedule=QUICK | {"J": 1}))
    text = capsys.readouterr().out
    assert found.result.d.shape == (1, 1, 3, 32, 32)
    assert "CBR 0.1250" in text and f"weights              {tmp_path}" in text and "NMSE" in text
    (tmp_path / "denoiser.pth").unlink()
    argv = ["run", "pvd", "--preset", "paper-64x8", "--nets", str(tmp_path), "--photos", "bundled", "--crops", "1"]
    assert cli.main([*argv, "--quiet"]) == 2
    assert "no checkpoint of the denoiser" in capsys.readouterr().err


# ---- command line


def test_preset_from_the_command_line(small, capsys, monkeypatch):
    """All options arrive."""
    seen = []
    monkeypatch.setattr(run_preset, "run_preset", seen.append)
    argv = ["run", "pvd", "--preset", "paper-441", "--snr", "10", "--crops", "3", "--starts", "2", "--seed", "5",
            "--weights", str(small), "--limit", "7", "--memory", "1.5", "--encoder", "plain", "--quiet"]  # fmt: skip
    assert cli.main(argv) == 0
    (got,) = seen
    want = PresetSettings(preset="paper-441", snr_db=10.0, crops=3, starts=2, seed=5, weights=small, limit=7, memory=1.5,
                          encoder="plain", progress=False)  # fmt: skip
    assert got == want and got.bytes == 1_500_000_000


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "paper-442"], "no preset named 'paper-442'; there: paper-441: (Nr,U,Nt) = (4,4,1)"),
        (["--preset", "paper-441", "--snr", "1", "2"], "one value with --preset"),
        (["--preset", "paper-441", "--crops", "0"], "crops must be at least 1"),
        (["--preset", "paper-441", "--orientation", "up"], "invalid choice: 'up'"),
        (["--preset", "paper-441", "--memory", "0"], "memory must be positive"),
        (["--preset", "paper-441", "--nets", "nowhere"], "no folder nowhere"),
        (["--preset", "paper-441", "--device", "cuda"], "sees no GPU"),
        (["--nets", "random"], "--nets needs --preset"),
    ],
)
def test_errors_are_one_line(argv, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    try:
        assert cli.main(["run", "pvd", *argv]) == 2
    except SystemExit as stop:  # of the parser itself
        assert stop.code == 2
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) == 1


def test_pvd_is_a_name_of_its_system(capsys):
    assert cli.main(["run", "pdv"]) == 2
    assert "pvd for blind-mimosc" in capsys.readouterr().err
