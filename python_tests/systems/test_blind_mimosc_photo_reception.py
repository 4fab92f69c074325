"""Photographs received by PVD and its baselines, their evaluation and report."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from photo_toys import photo_images, photo_networks

from semcom_fast import cli
from semcom_fast.data.photos import PhotoCrops
from semcom_fast.links import psnr
from semcom_fast.receivers import PVD, GaussianChannelPrior, PVDConfig
from semcom_fast.systems import evaluation
from semcom_fast.systems.blind_mimosc import evaluate_photos, report_photos
from semcom_fast.systems.blind_mimosc.photo_codec import PhotoCodecConfig
from semcom_fast.systems.blind_mimosc.photo_images import as_source
from semcom_fast.systems.blind_mimosc.photo_reception import RECEIVERS, Estimate, KnownChannel, Reception, cbr


@pytest.fixture(scope="module")
def networks():
    return photo_networks()


QUICK = PVDConfig(nt=2, source_shape=(1, 32, 32), J=4, Jin=3)


def _reception(networks, count=2, snr_db=20.0, **changes):
    return Reception(networks, as_source(photo_images(count, seed=5)), snr_db, config=QUICK, **changes)


def test_several_starts_are_those_of_the_receiver_itself(networks):
    reception = _reception(networks, starts=3)
    found = reception.receive("pvd-starts")
    own = PVD(networks.codec.encoder, GaussianChannelPrior(), networks.denoiser, QUICK)
    result = own.run(reception.y, reception.noise_var, restarts=3, seed=0)
    torch.testing.assert_close(
        torch.from_numpy(found["energy"]) * reception.noise_var * reception.y[0].numel(), result.energy.double(),
        rtol=1e-4, atol=0,
    )  # fmt: skip
    want = psnr(reception.d[:, 0], result.d[:, 0])
    np.testing.assert_allclose(found["psnr_db"], want.numpy(), rtol=1e-3)
    first = reception.receive("pvd")
    assert first["nmse_starts"].shape == (2, 3)
    np.testing.assert_array_equal(first["nmse"], first["nmse_starts"][:, 0])
    assert (found["energy"] <= first["energy"]).all()


def test_every_receiver_reports_what_it_can(networks):
    reception = _reception(networks)
    for name in RECEIVERS:
        found = reception.receive(name)
        assert ("nmse" in found) == ("-csi" not in name), name
        assert ("recovered" in found) == (name not in ("oracle", "bound", "bound-random")), name
        assert all(np.isfinite(values).all() and len(values) == 2 for values in found.values()), name
    assert reception.receive("oracle")["nmse"].mean() < reception.receive("lmmse-2m")["nmse"].mean()
    assert reception.receive("lmmse-2m")["nmse"].mean() < reception.receive("lmmse-m")["nmse"].mean()
    bound = reception.receive("bound")
    assert (bound["psnr_db"] <= bound["psnr_known_db"]).all()
    np.testing.assert_array_equal(reception.receive("dps-m")["nmse"], reception.receive("lmmse-m")["nmse"])
    np.testing.assert_array_equal(reception.receive("lmmse-m-equal")["nmse"], reception.receive("lmmse-m")["nmse"])
    # Langevin dynamics at a low temperature near the mode of a Gaussian posterior: its mean
    far = reception.receive("langevin-m")["nmse"] / reception.receive("lmmse-m")["nmse"]
    assert far.min() > 0.8 and far.max() < 1.2


def test_the_error_of_a_pilot_estimate_is_known(networks):
    reception = _reception(networks, count=16, snr_db=10.0)
    found = reception._lmmse(2)
    error = (found.h - reception.h).abs().square().sum((1, 4)).mean(2)  # [N,K], over receive antennas
    # 16*8*8*2 complex errors, the large ones fewer: a tenth is three standard errors
    assert float(error.mean() / found.error.mean()) == pytest.approx(1, abs=0.1)
    assert np.corrcoef(error.flatten(), found.error.flatten())[0, 1] > 0.5  # block by block


def test_baselines_are_sent_the_plain_codec(networks):
    reception = _reception(networks)
    assert reception._with(None) is reception
    short = reception._with(224)
    assert short.networks.codec is networks.plain(224) and short.y.shape == (2, 8, 8, 14)
    assert torch.equal(short.h, reception.h) and short.noise_var == reception.noise_var
    assert reception.receive("pvd-csi")["psnr_db"].shape == (2,)
    got = reception.receive("djscc-csi")["psnr_db"]
    own = Reception(replace(networks, codec=networks.plain(256)), reception.d[:, 0], 20.0, config=QUICK)
    want = psnr(own.d[:, 0], own._decode(Estimate(own.h, 0.0))[:, 0])
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-5)


def test_pvd_with_the_channel_known_explains_the_signal_through_it(networks):
    reception, residuals = _reception(networks), []
    config = replace(QUICK, J=10, Jin=8, sigma_max=10.0)
    for h in (reception.h, reception.h.flip(0)):
        receiver = PVD(networks.codec.encoder, KnownChannel(h), networks.denoiser, config)
        residuals.append(reception._residual(h, receiver.run(reception.y, reception.noise_var).d).mean())
    assert residuals[0] < 0.5 * residuals[1]  # another crop's channel explains little


def test_perfect_csi_without_noise_is_the_decoder_alone(networks):
    reception = _reception(networks, snr_db=120.0)
    found = reception._decode(Estimate(reception.h, 0.0))
    want = networks.codec.decoder(reception.x, 1e-30)
    level = networks.codec.decoder(reception.x, 1e-12)
    # the equalised symbols are the codeword to single precision; the noise input is its logarithm
    assert (found - level).norm() < 0.1 * (want - level).norm() + 1e-3 * level.norm()


def test_cbr_counts_pilots(networks):
    names = ("pvd", "lmmse-m", "lmmse-2m", "lmmse-m-equal", "lmmse-2m-equal", "dps-m-equal", "djscc-csi")
    rates = {name: cbr(name, networks.codec) for name in names}
    assert rates == {
        "pvd": 0.25,
        "lmmse-m-equal": 0.25,
        "lmmse-2m-equal": 0.25,
        "dps-m-equal": 0.25,
        "lmmse-m": pytest.approx(2 / 7),
        "lmmse-2m": pytest.approx(1 / 3),
        "djscc-csi": 0.25,
    }


# ---- evaluation and report


def _protocol(**changes):
    settings = {"receivers": ("pvd", "lmmse-m-equal", "oracle", "bound"), "snrs_db": (10.0,), "config": QUICK} | changes
    return evaluate_photos.PhotoProtocol(photo_images(3), torch.tensor([0, 0, 1]), **settings)


def test_an_evaluation_goes_on_where_it_was(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_photos, "load_networks", lambda variant, folder, bf16: networks)
    first = _protocol(receivers=("pvd", "lmmse-m-equal"))
    evaluate_photos.evaluate(("penalised",), first, tmp_path / "a.csv", keep=tmp_path / "kept", progress=False)
    asked = []
    receive = Reception.receive
    monkeypatch.setattr(Reception, "receive", lambda self, name: (asked.append(name), receive(self, name))[1])
    now = evaluation.where() | {"commit": "later"}
    monkeypatch.setattr(evaluation, "where", lambda: now)
    evaluate_photos.evaluate(("penalised",), _protocol(), tmp_path / "b.csv", keep=tmp_path / "kept", progress=False)
    assert asked == ["oracle", "bound"]
    before, after = ((tmp_path / name).read_text().splitlines() for name in ("a.csv", "b.csv"))
    assert len(before) == 3 and len(after) == 5 and after[:3] == before
    assert all(row.endswith(",later") for row in after[3:]) and not any(row.endswith(",later") for row in before)
    other = evaluate_photos.PhotoEvaluation(networks, _protocol(seed=1), tmp_path / "kept")
    assert not any(other.folder.glob("*.npz"))  # another seed is another evaluation


def test_the_rows_are_means_over_all_crops():
    nmse = np.array([0.01, 0.02, 3.0])
    figures = {"nmse": nmse, "nmse_starts": np.array([[0.01, 2.0], [0.02, 0.03], [3.0, 3.0]]),
               "psnr_db": np.array([20.0, 22.0, 6.0]), "energy": np.array([0.8, 0.9, 5.0])}  # fmt: skip
    codec = SimpleNamespace(config=PhotoCodecConfig())
    protocol = _protocol()
    row = evaluate_photos.row_of(evaluate_photos.Job("pvd", 10.0), figures, protocol, codec)
    assert float(row["success_rate"]) == 0.5 and float(row["psnr_db"]) == 16.0
    assert float(row["nmse_db"]) == pytest.approx(10 * np.log10(1.01), abs=1e-3)
    assert float(row["nmse_median_db"]) == pytest.approx(10 * np.log10(0.02), abs=1e-3)
    spread = (protocol.images.double() / 255).var(0, correction=0).mean()
    assert float(row["mse_over_var"]) == pytest.approx(float((0.01 + 10**-2.2 + 10**-0.6) / 3 / spread), abs=1e-5)
    assert float(row["energy_of_successes"]) == 0.85 and float(row["energy_of_failures"]) == 5.0
    error = 10 / np.log(10) * nmse.std(ddof=1) / 3**0.5 / nmse.mean()
    assert float(row["nmse_db_se"]) == pytest.approx(error, abs=1e-3)
    with pytest.raises(ValueError, match="unknown receiver 'magic'"):
        _protocol(receivers=("magic",))


def test_report_prints_and_draws(networks, tmp_path, monkeypatch, capsys):
    pytest.importorskip("skimage")
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path))
    monkeypatch.setattr(evaluate_photos, "load_networks", lambda variant, folder, bf16: networks)
    whole = report_photos.PhotoProtocol
    monkeypatch.setattr(report_photos, "PhotoProtocol", lambda *given, **named: whole(*given, **named, config=QUICK))
    out = tmp_path / "deep" / "photos.png"
    names = (
        "pvd",
        "pvd-starts",
        "bound",
        "oracle",
        "lmmse-m",
        "dps-m",
        "djscc-csi",
    )  # a bound of a code takes a second
    argv = ["run", "blind-mimosc", "--images", "photos", "--photos", "bundled", "--crops", "2", "--snr", "10", "20"]
    assert cli.main([*argv, "--receivers", *names, "--out", str(out), "--quiet"]) == 0
    text = capsys.readouterr().out
    for part in ("PVD, 4 starts", "linearised bound", "0.286", "standard error", "channel known", "CBR 0.25"):
        assert part in text, part
    assert out.read_bytes().startswith(b"\x89PNG") and len(
        out.with_suffix(".csv").read_text().splitlines()
    ) == 1 + 2 * len(names)
    photos = PhotoCrops(size=32, photos="bundled")
    protocol = whole(photo_images(6), photos.origins("test", 6))
    shown = report_photos.figure_crops(protocol, photos)
    names = {photos.photographs("test")[place].name for place in protocol.origins[shown]}
    assert names <= {"astronaut", "coffee", "chelsea", "rocket"} and len(shown)
