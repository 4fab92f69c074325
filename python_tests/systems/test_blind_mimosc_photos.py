"""Photographs over the blind link: codec, denoiser, training, every receiver, and the report."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sf_testing import draw, same_bits

from semcom_fast import cli, weights
from semcom_fast.data.images import ImageSet
from semcom_fast.data.photos import PhotoCrops
from semcom_fast.links import psnr
from semcom_fast.receivers import PVD, GaussianChannelPrior, PVDConfig
from semcom_fast.systems.blind_mimosc import evaluate_photos, report_photos
from semcom_fast.systems.blind_mimosc import photo_losses as losses
from semcom_fast.systems.blind_mimosc import train_photos as training
from semcom_fast.systems.blind_mimosc.networks import (
    PHOTO_CODEC,
    PHOTO_DENOISER,
    load_photo_codec,
    load_photo_denoiser,
)
from semcom_fast.systems.blind_mimosc.photo_codec import PhotoCodec, PhotoCodecConfig
from semcom_fast.systems.blind_mimosc.photo_denoiser import PhotoDenoiser, UNetConfig, cosine_basis
from semcom_fast.systems.blind_mimosc.photo_images import GreyCrops, as_source, crop_covariance, grey
from semcom_fast.systems.blind_mimosc.photo_reception import RECEIVERS, Estimate, Networks, Reception, cbr
from semcom_fast.systems.blind_mimosc.photo_settings import PhotoTrainSettings
from semcom_fast.systems.fitting import TimedFit

REAL = torch.float64
CODEC = PhotoCodecConfig(width=8, encoder_blocks=1, decoder_width=8, decoder_blocks=1)
UNET = UNetConfig(widths=(4, 4, 8), embedding=8, features=4)


def _shaken(module, std=0.1):
    """Every weight counts, those that start at zero too."""
    torch.manual_seed(7)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return module


def _images(count, seed=0):
    """Smooth random uint8 crops [count,1,32,32]."""
    rough = torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(rough, size=32, mode="bicubic")
    return (127 + 60 * smooth).clamp(0, 255).to(torch.uint8)


def _crops(count=24, seed=0):
    return GreyCrops(_images(count, seed), ("one", "two"))


def _source(count=24):
    return SimpleNamespace(
        load=lambda split, n=None: ImageSet(_images(n or count).expand(-1, 3, -1, -1), sources=("one", "two"))
    )


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    denoiser = PhotoDenoiser(UNET)
    denoiser.set_statistics(as_source(_images(200)))
    covariance = crop_covariance(_images(2000))
    covariance.diagonal().add_(1e-3)
    plain = {slots * 16: PhotoCodec(replace(CODEC, slots=slots)) for slots in (16, 14, 12)}
    parts = [part.requires_grad_(False).eval() for part in (PhotoCodec(CODEC), denoiser, *plain.values())]
    return Networks(*parts[:2], torch.linalg.inv(covariance), plain.__getitem__)


# ---- networks


@pytest.mark.parametrize(("slots", "users"), [(16, 1), (16, 3), (14, 1)])  # 14: seven real symbols per position
def test_codewords_have_their_power_and_order(slots, users):
    m = 16 * slots
    codec = PhotoCodec(replace(CODEC, slots=slots), users).double()
    torch.nn.init.zeros_(codec.encoder.constant)
    torch.nn.init.zeros_(codec.encoder.outer.bias)  # its weights are zero: only the linear path is left
    kept = {}
    codec.encoder.linear.register_forward_hook(lambda module, given, out: kept.update(sent=out))
    codec.decoder.linear.register_forward_pre_hook(lambda module, given: kept.update(received=given[0]))
    d = draw(3, users, 1, 32, 32, dtype=REAL)
    x = codec.encoder(d)
    assert x.shape == (3, users, 8, 2, slots)
    # float32 masks have a modulus of 1 to 1e-7
    torch.testing.assert_close(
        x.abs().square().sum((2, 3, 4)), torch.full((3, users), m, dtype=REAL), rtol=1e-6, atol=0
    )
    levels = torch.tensor([0.1, 0.2, 0.3], dtype=REAL)
    recovered = codec.decoder(x, levels)
    assert recovered.shape == d.shape
    sent, received = kept["sent"], kept["received"]
    scale = (received[:, :-1] * sent).sum((1, 2, 3)) / sent.square().sum((1, 2, 3))
    back = received[:, :-1] / scale.view(-1, 1, 1, 1)  # each symbol is back where it was made
    torch.testing.assert_close(back, sent, rtol=0, atol=1e-6 * float(sent.detach().abs().max()))
    torch.testing.assert_close(received[:, -1].flatten(1)[:, 0].exp(), levels.repeat_interleave(users))
    assert codec.encoder.order.sort().values.equal(torch.arange(2 * m))


def test_encoders_of_users_are_distinct_and_rows_stay_rows():
    alone, several = PhotoCodec(CODEC), PhotoCodec(CODEC, users=3)
    several.load_state_dict(alone.state_dict())
    d = draw(2, 1, 1, 32, 32, dtype=torch.float32)
    with torch.no_grad():
        x, reflected = several.encoder(d.expand(-1, 3, -1, -1, -1)), several.encoder(-d.expand(-1, 3, -1, -1, -1))
        same_bits(x[:, :1], alone.encoder(d))
    flat = x.flatten(2)
    for u in (1, 2):
        overlap = (flat[:, 0] * flat[:, u].conj()).sum(-1).abs() / 256
        assert overlap.max() < 5 / 256**0.5  # as of unrelated codewords
    # what the penalty against odd encoders looks at is the same set of numbers for every user
    rows = losses.correlation(x.flatten(0, -2), reflected.flatten(0, -2)).view(2, 3, 16).sort(2).values
    torch.testing.assert_close(rows, rows[:, :1].expand(-1, 3, -1), rtol=1e-4, atol=1e-5)


def test_a_codec_is_laid_out_for_any_link(tmp_path):
    trained = replace(CODEC, blocks=_settings(symbols=384, slots=24).codec().blocks, slots=24)
    weights.save(
        "blind_mimosc_photo_codec_384", tmp_path, PhotoCodec(trained).state_dict(), {"config": asdict(trained)}
    )
    d = as_source(_images(2)).unsqueeze(1).expand(-1, 2, -1, -1, -1)
    rows = load_photo_codec(folder=tmp_path, symbols=384).encoder(d[:, :1]).view(2, 16, 24)
    for layout in ((16, 1, 24), (1, 16, 24)):
        x = load_photo_codec(folder=tmp_path, symbols=384, layout=layout, users=2).encoder(d)
        assert x.shape == (2, 2, *layout)
        same_bits(x[:, 0].reshape(2, 16, 24), rows)
    with pytest.raises(ValueError, match="384 symbols"):
        load_photo_codec(folder=tmp_path, symbols=384, layout=(8, 2, 16))
    with pytest.raises(FileNotFoundError, match="photo_codec_plain_224"):
        load_photo_codec("plain", tmp_path, symbols=224)
    with pytest.raises(ValueError, match="multiple of 2 slots"):
        _settings(symbols=100, slots=16)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="share"):
        PhotoCodecConfig(side=32, blocks=3, slots=5)
    with pytest.raises(ValueError, match="multiple of 8"):
        UNetConfig(side=30)
    with pytest.raises(ValueError, match=r"\[B,1,1,32,32\]"):
        PhotoCodec(CODEC).encoder(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"\[B,2,8,2,16\]"):
        PhotoCodec(CODEC, users=2).decoder(torch.zeros(1, 1, 8, 2, 16, dtype=torch.complex64), 0.1)
    with pytest.raises(ValueError, match="at least one user"):
        PhotoCodec(CODEC, users=0)
    with pytest.raises(ValueError, match=r"\[...,1,32,32\]"):
        PhotoDenoiser(UNET)(torch.zeros(2, 1, 16, 32), 0.1)


@pytest.mark.parametrize("sigma", [0.01, 0.3, 20.0])
def test_an_untrained_denoiser_is_the_wiener_filter(sigma):
    net = PhotoDenoiser(UNetConfig(side=8, widths=(4, 4, 4))).double()
    net.basis.copy_(cosine_basis(8))
    net.mean.fill_(0.2)
    net.spectrum.copy_(draw(8, 8, seed=1, dtype=REAL).square() + 0.01)
    basis = torch.kron(cosine_basis(8), cosine_basis(8))
    torch.testing.assert_close(basis @ basis.T, torch.eye(64, dtype=REAL))
    covariance = basis.T @ torch.diag(net.spectrum.flatten()) @ basis
    gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(64, dtype=REAL))
    x = draw(5, 2, 1, 8, 8, seed=2, dtype=REAL)
    mean, var = net(x, torch.tensor(sigma, dtype=REAL))
    want = 0.2 + (x.flatten(2) - 0.2) @ gain.T
    torch.testing.assert_close(mean.flatten(2), want, rtol=1e-9, atol=1e-9)
    error = (gain.trace() * sigma**2 / 64).sqrt()
    torch.testing.assert_close(net._wiener(x[:, 0], torch.tensor([sigma], dtype=REAL))[2].flatten()[0], error)
    assert var.shape == (5, 2) and bool((var > 0).all()) and float(var.max()) <= sigma**2 * (1 + 1e-12)


def test_denoiser_is_right_where_its_residual_is_the_target():
    net = _shaken(PhotoDenoiser(UNetConfig(side=8, widths=(4, 4, 4)))).double()
    d, sigma = draw(4, 1, 8, 8, seed=3, dtype=REAL), torch.tensor([0.4], dtype=REAL)
    x = d + 0.4 * draw(4, 1, 8, 8, seed=4, dtype=REAL)
    residual, target, _ = net.residual(x, d, sigma)
    mean = net(x.unsqueeze(1), 0.4)[0][:, 0]
    c_out = net._wiener(x, sigma)[2]
    torch.testing.assert_close(mean + c_out * (target - residual), d, rtol=1e-9, atol=1e-9)
    assert residual.std() > 1e-3
    each = net.residual(x, d, sigma.expand(4))  # one level per item is the form that training uses
    torch.testing.assert_close(each[0], residual)


def test_denoiser_gradient_and_its_variance_has_none():
    net = _shaken(PhotoDenoiser(UNetConfig(side=8, widths=(4, 4, 4)))).double().requires_grad_(False)
    x = draw(1, 1, 1, 8, 8, seed=5, dtype=REAL).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: net(t, torch.tensor(0.5, dtype=REAL))[0], x)
    assert not net(x, 0.5)[1].requires_grad


def test_statistics_are_those_of_the_crops():
    net, images = PhotoDenoiser(UNET), as_source(_images(50))
    net.set_statistics(images)
    torch.testing.assert_close(net.spectrum.mean(), (images - images.mean()).square().mean(), rtol=1e-4, atol=0)
    assert net.spectrum[0, 0] > 100 * net.spectrum[20:, 20:].max()  # the crops are smooth


def test_bfloat16_moves_the_denoiser_by_little():
    net = _shaken(PhotoDenoiser(UNET), std=0.05).requires_grad_(False)
    net.set_statistics(as_source(_images(50)))
    for sigma in (0.05, 1.0, 50.0):
        x = as_source(_images(8)).unsqueeze(1) + sigma * draw(8, 1, 1, 32, 32, seed=6, dtype=torch.float32)
        net.bf16 = False
        full, _ = net(x, sigma)
        net.bf16 = True
        half, _ = net(x, sigma)
        residual = (full - net.mean - net._wiener(x[:, 0], torch.tensor([sigma]))[0].unsqueeze(1)).norm()
        # bfloat16 has 8 bits: a layer rounds by 2^-9 of its size, some twenty layers by a few hundredths of F
        assert 0 < (half - full).norm() < 0.05 * residual, sigma


# ---- images


def test_grey_is_luminance():
    images = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
    for channel in range(3):
        images[channel, channel] = 255
    assert grey(images)[:, 0, 0, 0].tolist() == [76, 150, 29]


def test_crop_covariance():
    images = _images(300)
    want = np.cov(as_source(images).flatten(1).numpy(), rowvar=False, bias=True)
    torch.testing.assert_close(crop_covariance(images), torch.from_numpy(want), rtol=1e-4, atol=1e-5)


# ---- training


def test_oddness_looks_at_every_antenna_of_every_block():
    x = draw(2, 1, 4, 2, 8, dtype=torch.complex64)
    assert losses.oddness(x, -x) == pytest.approx(1.0, abs=1e-5) and losses.oddness(x, x) == 0
    other = x.clone()
    other[:, :, 1, 0] *= -1  # the codeword as a whole still correlates
    assert losses.oddness(x, other) == pytest.approx(1 / 8, abs=1e-5)


def _settings(**changes):
    return PhotoTrainSettings(**({"steps": 6, "batch": 4, "bf16": False, "progress": False} | changes))


@pytest.mark.parametrize("part", ["codec", "denoiser"])
def test_a_resumed_training_ends_on_the_same_bits(tmp_path, part):
    marked = _settings(part=part).fit("")
    loss = (losses.codec_loss if part == "codec" else losses.denoiser_loss)(_crops(), marked)

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
        loss(_crops(), _settings(part=part).fit(""))(_shaken(model), torch.Generator().manual_seed(0)).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("part", ["codec", "denoiser"])
def test_training_lowers_the_loss(tmp_path, part):
    crops = _crops(200)
    torch.manual_seed(0)
    model = PhotoCodec(CODEC) if part == "codec" else PhotoDenoiser(UNET)
    if part == "denoiser":
        # told that pixels are white, its filter averages nothing: smoothing is left to the network, and quickly found
        model.mean.fill_(float(as_source(crops.images).mean()))
        model.spectrum.fill_(float(as_source(crops.images).var()))
    marked = replace(_settings(part=part, steps=60, batch=8, rate=1e-2).fit(""), warm_up=10)
    measure = (losses.codec_loss if part == "codec" else losses.denoiser_loss)(crops, marked)

    def loss(network):
        return float(np.mean([measure(network, torch.Generator().manual_seed(99 + n)).item() for n in range(4)]))

    before = loss(model)
    averaged = TimedFit(model, measure, marked, tmp_path / part).run("", progress=False)
    # 0.1 is what the denoiser gains here; a twentieth is more than what other initial weights make of it
    assert loss(averaged) < before - 0.05


def test_the_head_learns_the_size_of_the_error():
    torch.manual_seed(0)
    model, crops = PhotoDenoiser(UNET), _crops(200)
    model.set_statistics(as_source(crops.images) * 3)  # a wrong spectrum: the filter's own error is not c_out^2
    loss = losses.denoiser_loss(crops, _settings(part="denoiser", batch=16).fit(""))
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
    card = training.train_photos(_settings(steps=1, batch=2, out=tmp_path, **changes), _source())
    assert card["sources"] == ["one", "two"] and card["metrics"]["test photographs"]["crops"] == 8
    assert card["name"] == "blind_mimosc_photo_codec_plain_192"
    codec = load_photo_codec("plain", tmp_path, symbols=192)
    assert codec.config.slots == 12
    assert card["parameters"] == sum(parameter.numel() for parameter in codec.parameters())
    again = losses.codec_metrics(codec, GreyCrops(grey(_source().load("test", 8).images), ()))
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


QUICK = PVDConfig(nt=2, source_shape=(1, 32, 32), J=4, Jin=3)


def _reception(networks, count=2, snr_db=20.0, **changes):
    return Reception(networks, as_source(_images(count, seed=5)), snr_db, config=QUICK, **changes)


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
        assert ("nmse" in found) == (not name.endswith("-csi")), name
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
    got = reception.receive("djscc-csi")["psnr_db"]
    own = Reception(replace(networks, codec=networks.plain(256)), reception.d[:, 0], 20.0, config=QUICK)
    want = psnr(own.d[:, 0], own._decode(Estimate(own.h, 0.0))[:, 0])
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-5)


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
    return evaluate_photos.PhotoProtocol(_images(3), torch.tensor([0, 0, 1]), **settings)


def test_an_evaluation_goes_on_where_it_was(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_photos, "load_networks", lambda variant, folder, bf16: networks)
    first = _protocol(receivers=("pvd", "lmmse-m-equal"))
    evaluate_photos.evaluate(("penalised",), first, tmp_path / "a.csv", keep=tmp_path / "kept", progress=False)
    asked = []
    receive = Reception.receive
    monkeypatch.setattr(Reception, "receive", lambda self, name: (asked.append(name), receive(self, name))[1])
    evaluate_photos.evaluate(("penalised",), _protocol(), tmp_path / "b.csv", keep=tmp_path / "kept", progress=False)
    assert asked == ["oracle", "bound"]
    before, after = ((tmp_path / name).read_text().splitlines() for name in ("a.csv", "b.csv"))
    assert len(before) == 3 and len(after) == 5 and after[:3] == before
    other = evaluate_photos.PhotoEvaluation(networks, _protocol(seed=1), tmp_path / "kept")
    assert not any(other.folder.glob("*.npz"))  # another seed is another evaluation


def test_the_rows_are_means_over_all_crops():
    nmse = np.array([0.01, 0.02, 3.0])
    figures = {"nmse": nmse, "nmse_starts": np.array([[0.01, 2.0], [0.02, 0.03], [3.0, 3.0]]),
               "psnr_db": np.array([20.0, 22.0, 6.0]), "energy": np.array([0.8, 0.9, 5.0])}  # fmt: skip
    codec = SimpleNamespace(config=PhotoCodecConfig())
    row = evaluate_photos.row_of(evaluate_photos.Job("pvd", 10.0), figures, _protocol(), codec)
    assert float(row["success_rate"]) == 0.5 and float(row["psnr_db"]) == 16.0
    assert float(row["nmse_db"]) == pytest.approx(10 * np.log10(1.01), abs=1e-3)
    assert float(row["nmse_median_db"]) == pytest.approx(10 * np.log10(0.02), abs=1e-3)
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
    protocol = whole(_images(6), photos.origins("test", 6))
    shown = report_photos.figure_crops(protocol, photos)
    names = {photos.photographs("test")[place].name for place in protocol.origins[shown]}
    assert names <= {"astronaut", "coffee", "chelsea", "rocket"} and len(shown)


# ---- shipped weights


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
