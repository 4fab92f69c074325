"""Codec and denoiser of photographs, and the crops they work on."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from photo_toys import CODEC, REAL, UNET, photo_images, photo_settings, photo_shaken
from sf_testing import draw, same_bits

from semcom_fast import weights
from semcom_fast.systems.blind_mimosc import photo_losses as losses
from semcom_fast.systems.blind_mimosc.networks import (
    load_photo_codec,
)
from semcom_fast.systems.blind_mimosc.photo_codec import PhotoCodec, PhotoCodecConfig
from semcom_fast.systems.blind_mimosc.photo_denoiser import PhotoDenoiser, UNetConfig, cosine_basis
from semcom_fast.systems.blind_mimosc.photo_images import as_source, crop_covariance, grey


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
    trained = replace(CODEC, blocks=photo_settings(symbols=384, slots=24).codec().blocks, slots=24)
    weights.save(
        "blind_mimosc_photo_codec_384", tmp_path, PhotoCodec(trained).state_dict(), {"config": asdict(trained)}
    )
    d = as_source(photo_images(2)).unsqueeze(1).expand(-1, 2, -1, -1, -1)
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
        photo_settings(symbols=100, slots=16)


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
    net = photo_shaken(PhotoDenoiser(UNetConfig(side=8, widths=(4, 4, 4)))).double()
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
    net = photo_shaken(PhotoDenoiser(UNetConfig(side=8, widths=(4, 4, 4)))).double().requires_grad_(False)
    x = draw(1, 1, 1, 8, 8, seed=5, dtype=REAL).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: net(t, torch.tensor(0.5, dtype=REAL))[0], x)
    assert not net(x, 0.5)[1].requires_grad


def test_statistics_are_those_of_the_crops():
    net, images = PhotoDenoiser(UNET), as_source(photo_images(50))
    net.set_statistics(images)
    torch.testing.assert_close(net.spectrum.mean(), (images - images.mean()).square().mean(), rtol=1e-4, atol=0)
    assert net.spectrum[0, 0] > 100 * net.spectrum[20:, 20:].max()  # the crops are smooth


def test_bfloat16_moves_the_denoiser_by_little():
    net = photo_shaken(PhotoDenoiser(UNET), std=0.05).requires_grad_(False)
    net.set_statistics(as_source(photo_images(50)))
    for sigma in (0.05, 1.0, 50.0):
        x = as_source(photo_images(8)).unsqueeze(1) + sigma * draw(8, 1, 1, 32, 32, seed=6, dtype=torch.float32)
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
    images = photo_images(300)
    want = np.cov(as_source(images).flatten(1).numpy(), rowvar=False, bias=True)
    torch.testing.assert_close(crop_covariance(images), torch.from_numpy(want), rtol=1e-4, atol=1e-5)


# ---- training


def test_oddness_looks_at_every_antenna_of_every_block():
    x = draw(2, 1, 4, 2, 8, dtype=torch.complex64)
    assert losses.oddness(x, -x) == pytest.approx(1.0, abs=1e-5) and losses.oddness(x, x) == 0
    other = x.clone()
    other[:, :, 1, 0] *= -1  # the codeword as a whole still correlates
    assert losses.oddness(x, other) == pytest.approx(1 / 8, abs=1e-5)
