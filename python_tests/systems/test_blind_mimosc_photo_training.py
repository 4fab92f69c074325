"""Training of the networks for photographs, its command line, and the shipped weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from photo_toys import CODEC, UNET, photo_crops, photo_settings, photo_shaken, photo_source
from sf_testing import same_bits

from semcom_fast import cli, weights
from semcom_fast.data.photos import PhotoCrops
from semcom_fast.systems.blind_mimosc import photo_losses as losses
from semcom_fast.systems.blind_mimosc import train_photos as training
from semcom_fast.systems.blind_mimosc.networks import (
    PHOTO_CODEC,
    PHOTO_DENOISER,
    load_photo_codec,
    load_photo_denoiser,
)
from semcom_fast.systems.blind_mimosc.photo_codec import PhotoCodec
from semcom_fast.systems.blind_mimosc.photo_denoiser import PhotoDenoiser
from semcom_fast.systems.blind_mimosc.photo_images import GreyCrops, as_source, grey
from semcom_fast.systems.fitting import TimedFit


@pytest.mark.parametrize("part", ["codec", "denoiser"])
def test_a_resumed_training_ends_on_the_same_bits(tmp_path, part):
    marked = photo_settings(part=part).fit("")
    loss = (losses.codec_loss if part == "codec" else losses.denoiser_loss)(photo_crops(), marked)

    def fit(name):
        torch.manual_seed(0)
        model = PhotoCodec(CODEC) if part == "codec" else PhotoDenoiser(UNET)
        return TimedFit(model, loss, marked, tmp_path / name)

    whole = fit("whole")
    whole.run("", progress=False)
    first = fit("parts")
    for _ in range(3):
        first._one_step()
    first.save()
    second = fit("parts")
    assert second.resume()
    second.run("", progress=False)
    for a, b in zip(whole.averaged.state_dict().values(), second.averaged.state_dict().values(), strict=True):
        same_bits(a, b)


def test_every_parameter_gets_a_gradient():
    for part, model, loss in (
        ("codec", PhotoCodec(CODEC), losses.codec_loss),
        ("denoiser", PhotoDenoiser(UNET), losses.denoiser_loss),
    ):
        loss(photo_crops(), photo_settings(part=part).fit(""))(
            photo_shaken(model), torch.Generator().manual_seed(0)
        ).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("part", ["codec", "denoiser"])
def test_training_lowers_the_loss(tmp_path, part):
    crops = photo_crops(200)
    torch.manual_seed(0)
    model = PhotoCodec(CODEC) if part == "codec" else PhotoDenoiser(UNET)
    if part == "denoiser":
        # told that pixels are white, its filter averages nothing: smoothing is left to the network, and quickly found
        model.mean.fill_(float(as_source(crops.images).mean()))
        model.spectrum.fill_(float(as_source(crops.images).var()))
    marked = replace(photo_settings(part=part, steps=60, batch=8, rate=1e-2).fit(""), warm_up=10)
    measure = (losses.codec_loss if part == "codec" else losses.denoiser_loss)(crops, marked)

    def loss(network):
        return float(np.mean([measure(network, torch.Generator().manual_seed(99 + n)).item() for n in range(4)]))

    before = loss(model)
    averaged = TimedFit(model, measure, marked, tmp_path / part).run("", progress=False)
    # 0.1 is what the denoiser gains here; a twentieth is more than what other initial weights make of it
    assert loss(averaged) < before - 0.05


def test_the_head_learns_the_size_of_the_error():
    torch.manual_seed(0)
    model, crops = PhotoDenoiser(UNET), photo_crops(200)
    model.set_statistics(as_source(crops.images) * 3)  # a wrong spectrum: the filter's own error is not c_out^2
    loss = losses.denoiser_loss(crops, photo_settings(part="denoiser", batch=16).fit(""))
    optimiser = torch.optim.Adam(model.net.error.parameters(), lr=6e-3)
    for step in range(120):
        optimiser.zero_grad()
        loss(model, torch.Generator().manual_seed(step)).backward()
        optimiser.step()
    found = losses.denoiser_metrics(model.requires_grad_(False), crops)
    for sigma in ("sigma=0.2", "sigma=0.5", "sigma=1"):
        assert 0.6 < found[sigma]["head_over_mse"] < 1.6, found


def test_training_stores_weights_with_a_card(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "HELD_OUT", 8)
    changes = {"part": "codec-plain", "symbols": 192, "slots": 12}
    card = training.train_photos(photo_settings(steps=1, batch=2, out=tmp_path, **changes), photo_source())
    assert card["sources"] == ["one", "two"] and card["metrics"]["test photographs"]["crops"] == 8
    assert card["name"] == "blind_mimosc_photo_codec_plain_192"
    codec = load_photo_codec("plain", tmp_path, symbols=192)
    assert codec.config.slots == 12
    assert card["parameters"] == sum(parameter.numel() for parameter in codec.parameters())
    again = losses.codec_metrics(codec, GreyCrops(grey(photo_source().load("test", 8).images), ()))
    assert again["psnr_awgn_20_db"] == card["metrics"]["test photographs"]["psnr_awgn_20_db"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "blind-mimosc", "--part", "codec", "--steps", "0"], "steps must be at least 1"),
        (["train", "blind-mimosc", "--part", "denoiser", "--minutes", "-1"], "minutes must be positive"),
        (["train", "blind-mimosc", "--part", "codec", "--symbols", "100"], "multiple of 2 slots"),
        (["run", "blind-mimosc", "--images", "photos", "--crops", "1"], "at least 2 crops"),
        (["run", "blind-mimosc", "--images", "pictures"], "invalid _images value"),
        (["run", "blind-mimosc", "--snr", "10", "20"], "one value for digits"),
    ],
)
def test_command_line_errors(argv, message, capsys):
    try:
        assert cli.main(argv) == 2
    except SystemExit as stop:
        assert stop.code == 2
    assert message in capsys.readouterr().err


def test_training_without_photographs_names_the_script(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path))
    assert cli.main(["train", "blind-mimosc", "--part", "codec", "--quiet"]) == 2
    assert "tools/get_photos.sh" in capsys.readouterr().err


# ---- receivers


def _shipped():
    if not {PHOTO_CODEC, PHOTO_DENOISER} <= set(weights.available()):
        pytest.skip("no weights for photographs are shipped")


@pytest.mark.parametrize("name", [PHOTO_CODEC, PHOTO_DENOISER])
def test_cards_of_the_shipped_weights(name):
    _shipped()
    tensors, card = weights.load(name)
    assert len(card["sources"]) == 18 and "CC-BY" in " ".join(card["sources"])
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert all(path.stat().st_size < 2 * 2**20 for path in weights.SHIPPED.glob("blind_mimosc_photo_*"))


def test_shipped_denoiser_beats_its_wiener_filter_on_new_photographs(tmp_path):
    _shipped()
    pytest.importorskip("skimage")
    d = as_source(grey(PhotoCrops(size=32, photos="bundled", cache=tmp_path).load("test", 64).images)).unsqueeze(1)
    net = load_photo_denoiser()
    for sigma in (0.05, 0.1, 0.3, 1.0):
        x = d + sigma * torch.randn(d.shape, generator=torch.Generator().manual_seed(0))
        mean, var = net(x, sigma)
        error = (mean - d).square().mean()
        linear = net.mean + net._wiener(x[:, 0], torch.tensor([sigma]))[0].unsqueeze(1)
        assert error < 0.95 * (linear - d).square().mean(), sigma
        assert 0.5 < float(var.mean() / error) < 2.0, sigma
