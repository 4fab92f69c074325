"""The classical link beside the semantic one: figures by their definitions, kept rows, and the run's table and curves."""

import csv
import sys

import numpy as np
import pytest
import torch

from semcom_fast import cli, weights
from semcom_fast.baselines.sscc import MODES, SSCC
from semcom_fast.data import tapped_channels
from semcom_fast.data.images import ImageSet
from semcom_fast.links import noise_var_from_snr_db, ssim
from semcom_fast.links.mu_mimo_ofdm import ResourceGrid
from semcom_fast.systems.mu_mimo import MuMimoSystem, SystemConfig
from semcom_fast.systems.mu_mimo import evaluate_classical as classical
from semcom_fast.systems.mu_mimo.evaluate import slots
from semcom_fast.systems.mu_mimo.evaluate_classical import ClassicalProtocol, Evaluation, best_modes, evaluate
from semcom_fast.systems.mu_mimo.networks import weights_name
from semcom_fast.systems.mu_mimo.train import half

pytest.importorskip("PIL.Image", reason="needs Pillow")


@pytest.fixture
def sionna():
    return pytest.importorskip("sionna.phy", reason="needs the extra sionna")


def _images(count, noisy=()) -> torch.Tensor:
    """Smooth colour images uint8 [N,3,32,32]; those of `noisy` fit into no slot."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 32)
    slopes = torch.rand(count, 3, 2, generator=generator)
    images = slopes[..., :1, None] * ramp + slopes[..., 1:, None] * ramp[:, None]
    images = (127 * images).to(torch.uint8)
    for i in noisy:
        images[i] = torch.randint(256, (3, 32, 32), generator=generator, dtype=torch.uint8)
    return images


def _protocol(count=8, noisy=(), **more) -> ClassicalProtocol:
    channels = {"umi": tapped_channels(5, seed=0)}
    return ClassicalProtocol(ImageSet(_images(count, noisy)), channels, ("jpeg",), seeds=(0, 1), **more)


def test_slots_hold_everything_once_in_order_over_the_channels_of_the_seed():
    cir, grid = tapped_channels(5, seed=0), ResourceGrid(32)
    parts = list(slots(grid, torch.arange(24), cir, 3.0, seed=2))
    assert torch.equal(torch.cat([part.flatten() for _, part, _, _ in parts]), torch.arange(24))
    (first, part, h, noise_var) = parts[0]
    assert first == 0 and part.shape == (6, 4) and h.shape == (6, 32, 1, 4, 4)
    torch.testing.assert_close(h[5], h[0])  # five channels, then again from the first
    assert torch.equal(noise_var, torch.full((6,), noise_var_from_snr_db(3.0, "mu_mimo")))


@pytest.mark.usefixtures("sionna")
def test_figures_are_those_of_the_definition():
    """PSNR, SSIM, BLER of every seed from the link itself; the codec's work is not repeated."""
    protocol = _protocol(8, noisy=[3], modes=MODES[:1], snrs_db=(2.0,))
    evaluation = Evaluation(protocol)
    ((job, figures),) = evaluation.run(progress=False)
    truth = protocol.photos.images.float() / 255
    link = SSCC(ResourceGrid(32), MODES[0])
    for i, seed in enumerate(protocol.seeds):
        _, _, h, noise_var = next(slots(link.grid, truth, protocol.channels["umi"], job.snr_db, seed))
        result = link.run(truth.unflatten(0, (2, 4)), h, noise_var, seed=seed)
        assert np.array_equal(figures["psnr"][i], result.psnr.flatten().double().numpy())
        assert np.array_equal(figures["block_error"][i], result.block_error.flatten().numpy())
        similar = ssim(truth, result.images.flatten(0, 1), low=0.0, high=1.0) * (result.psnr.flatten() > 0)
        assert np.allclose(figures["ssim"][i], similar.numpy())
    assert figures["over_budget"].tolist() == [i == 3 for i in range(8)]
    assert not figures["psnr"][:, 3].any() and figures["source_psnr"][3] == 0 and figures["source_psnr"][0] > 20
    (row,) = classical.rows_of(evaluation)
    means = figures["psnr"].mean(1)
    assert float(row["psnr_db"]) == pytest.approx(means.mean(), abs=1e-4)
    assert float(row["psnr_se"]) == pytest.approx(abs(means[0] - means[1]) / 2, abs=1e-4)
    assert float(row["over_budget"]) == 0.125 and row["images"] == 8 and row["seeds"] == 2
    assert float(row["bler"]) == pytest.approx(figures["block_error"].mean(), abs=1e-4)


@pytest.mark.usefixtures("sionna")
def test_a_stopped_evaluation_goes_on_and_other_settings_are_others(tmp_path, monkeypatch):
    protocol = _protocol(4, modes=MODES[:2], snrs_db=(20.0,))
    table = tmp_path / "rows.csv"
    evaluate(protocol, table, keep=tmp_path / "kept", progress=False)
    rows = list(csv.DictReader(table.open()))
    assert [(r["codec"], r["mode"], r["scenario"], r["snr_db"], r["csi_error_var"]) for r in rows] == [
        ("jpeg", "4QAM r=1/2", "umi", "20", "0"), ("jpeg", "4QAM r=2/3", "umi", "20", "0"),
    ]  # fmt: skip
    monkeypatch.setattr(Evaluation, "_measure", lambda *_: pytest.fail("measured again"))
    evaluate(protocol, table, keep=tmp_path / "kept", progress=False)
    assert list(csv.DictReader(table.open())) == rows
    first = Evaluation(protocol, tmp_path).jobs()[0]
    marks = {Evaluation(p)._mark(first) for p in (
        protocol, _protocol(8), _protocol(4, subcarriers=64), _protocol(4, iterations=5), _protocol(4, noisy=[1]),
    )}  # fmt: skip
    assert len(marks) == 5


@pytest.mark.usefixtures("sionna")
def test_the_best_mode_is_the_one_with_the_highest_psnr():
    """Over a clean channel the mode with the most bits; in deep noise every mode loses everything."""
    protocol = _protocol(4, snrs_db=(40.0,), csi_error_vars=(0.0,))
    evaluation = Evaluation(protocol)
    list(evaluation.run(progress=False))
    best = best_modes(evaluation)["jpeg", "umi", 40.0, 0.0]
    quality = {job.mode: figures["psnr"].mean() for job, figures in evaluation.found.items()}
    assert quality[best.mode] == max(quality.values()) and best.mode == str(MODES[3])


def test_what_cannot_be_sent_is_named():
    with pytest.raises(ValueError, match="unknown codec 'png': choose from jpeg"):
        ClassicalProtocol(ImageSet(_images(4)), {}, ("png",))
    with pytest.raises(ValueError, match="a grid carries 4 images, got 3"):
        ClassicalProtocol(ImageSet(_images(3)), {})


@pytest.fixture
def untrained(tmp_path, monkeypatch):
    """A folder with untrained weights of one variant, in a home without fetched photographs."""
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path / "data"))
    pytest.importorskip("skimage", reason="needs the bundled photographs")
    torch.manual_seed(0)
    weights.save(weights_name("rzf"), tmp_path / "own", half(MuMimoSystem(SystemConfig("rzf"))), {"labels": "digits"})
    return tmp_path


def _run(home, *more) -> int:
    command = ["run", "mu-mimo", "--weights", str(home / "own"), "--variants", "rzf", "--images", "4", "--digits", "4"]
    return cli.main(
        [*command, "--snr", "0", "30", "--scenarios", "umi", "--quiet", "--out", str(home / "p.png"), *more]
    )


@pytest.mark.usefixtures("sionna")
def test_run_shows_the_classical_link_beside_the_variants(untrained, capsys):
    assert _run(untrained, "--classical", "jpeg") == 0
    text = capsys.readouterr().out
    for part in ("LDPC", "BLER", "jpeg      umi", "16QAM r=2/3", "p_classical.csv"):
        assert part in text, part
    rows = list(csv.DictReader((untrained / "p_classical.csv").open()))
    assert len(rows) == 8 and {r["mode"] for r in rows} == {str(mode) for mode in MODES}
    assert (untrained / "p.png").read_bytes().startswith(b"\x89PNG")


def test_run_names_an_unknown_codec_and_a_missing_extra(untrained, capsys, monkeypatch):
    assert _run(untrained, "--classical", "png") == 2
    assert "unknown codec 'png': choose from jpeg, webp, bpg" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sionna.phy", None)
    assert _run(untrained, "--classical", "jpeg") == 2
    assert "sionna" in capsys.readouterr().err and not (untrained / "p.csv").exists()
