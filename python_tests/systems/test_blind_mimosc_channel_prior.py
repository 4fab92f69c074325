"""The learned channel prior: its laws, its network in closed-form corners, its training, the weights that ship."""

import json
import math

import pytest
import torch
from sf_testing import draw, same_bits, within

import semcom_fast as sf
from semcom_fast import cli, weights
from semcom_fast.data.cdl import uniform_yaw
from semcom_fast.systems.blind_mimosc import channel_prior, train_channel
from semcom_fast.systems.blind_mimosc.channel_laws import SECTOR, ChannelLaw
from semcom_fast.systems.blind_mimosc.channel_prior import (
    AntennaConv,
    ChannelDenoiser,
    load_channel_denoiser,
    weights_name,
)

SMALL = ChannelLaw(nr=4, nt=1)


def _random(head="variance", nr=4, nt=2, **sizes):
    """A network with random weights, ready for use."""
    torch.manual_seed(0)
    model = ChannelDenoiser(nr, nt, width=8, blocks=2, taps=3, head=head, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model.requires_grad_(False).eval()


def test_kronecker_law():
    """R_ij = 0.7^|i-j| at both ends; a split draw is the draw."""
    law, n = ChannelLaw(nr=3, nt=2), 100_000
    h = law.draw(n, 1, 1, seed=3)
    flat = h.reshape(n, -1)
    index = torch.arange(3)
    want = torch.kron(0.7 ** (index[:, None] - index).abs(), 0.7 ** (index[:2, None] - index[:2]).abs())
    within(flat.mT @ flat.conj() / n, want, 5 * n**-0.5, "covariance of the Kronecker law")
    within(torch.kron(*law.covariances()), want, 1e-7, "its stated covariance")
    same_bits(law.draw(2, 2, 3, seed=1, first_item=4), law.draw(6, 2, 3, seed=1)[4:])


def test_cdl_law():
    """Transposed downlink channels of unit power, one pair of yaws per user; a split draw is the draw."""
    law = ChannelLaw(nr=4, nt=2, cdl="C")
    h = law.draw(3, 2, 5, seed=1)
    same_bits(law.draw(1, 2, 5, seed=1, first_item=2), h[2:])
    station, user = (
        uniform_yaw(6, width, seed=1, end=end).repeat_interleave(5) for width, end in ((SECTOR, "tx"), (math.pi, "rx"))
    )
    down = sf.cdl_channels("C", 30, nr=2, nt=4, los_phase="random", tx_yaw=station, rx_yaw=user, seed=1)
    same_bits(down.mT.contiguous(), h.reshape(30, 4, 2))
    power = float(law.draw(4000, 1, 1, seed=2).abs().square().mean())
    assert abs(power - 1) < 0.05


@pytest.mark.parametrize(
    "sizes, message",
    [({"correlation": 1.0}, "correlation"), ({"cdl": "F"}, "cdl must be one of"), ({"nr": 0}, "nr and nt")],
)
def test_bad_laws(sizes, message):
    with pytest.raises(ValueError, match=message):
        ChannelLaw(**sizes)
    with pytest.raises(ValueError, match="no Kronecker"):
        ChannelLaw(cdl="C").covariances()


@pytest.mark.parametrize("head", ["variance", "trace"])
@pytest.mark.parametrize("sigma", [0.01, 0.7, 100.0])
def test_untrained_is_rayleigh(head, sigma):
    """F = 0 and a silent head are the exact denoiser of Rayleigh fading, mean and variance."""
    model = ChannelDenoiser(4, 2, head=head).requires_grad_(False).eval()
    x = draw(2, 1, 3, 4, 2, dtype=torch.complex64) * (1 + sigma**2) ** 0.5
    mean, var = model(x, torch.tensor(sigma))
    want, spread = sf.GaussianChannelPrior()(x, torch.tensor(sigma))
    within(mean, want, 1e-6 * x.abs().max(), "untrained mean")
    within(var, spread, 1e-6 + (2e-7 * sigma**2 if head == "trace" else 0), f"untrained variance, {head} head")


def test_dense_and_sliding_convolution_agree(monkeypatch):
    """The Toeplitz product is the zero-padded convolution; the kept matrix follows the weights."""
    x = draw(5, 6, 3, dtype=torch.float32)
    conv = AntennaConv(6, 3, 4, 5)
    dense = conv(x)
    want = torch.nn.functional.conv1d(x.mT, conv.weight.permute(2, 1, 0), conv.bias, padding=2).mT
    within(dense, want, 1e-5, "Toeplitz convolution")
    conv.requires_grad_(False).eval()
    same_bits(conv(x), dense.detach())
    conv.load_state_dict({name: 2 * value for name, value in conv.state_dict().items()})
    within(conv(x), 2 * dense.detach(), 1e-5, "Toeplitz convolution with other weights")
    monkeypatch.setattr(channel_prior, "_DENSE_UP_TO", 0)
    within(conv(x), 2 * dense.detach(), 1e-5, "sliding convolution")
    with pytest.raises(ValueError, match="taps must be odd"):
        AntennaConv(6, 3, 4, 4)


def test_network_as_a_denoiser():
    """Blocks and users one by one, var on (0, sigma^2) as the mean over blocks, any precision, other arrays refused."""
    model, sigma = _random(), torch.tensor(0.8)
    x = draw(2, 3, 4, 4, 2, dtype=torch.complex64)
    mean, var = model(x, sigma)
    assert mean.shape == x.shape and var.shape == (2, 3)
    alone = [model(x[1:, 2:, k : k + 1], sigma) for k in range(4)]
    within(torch.cat([m for m, _ in alone], 2), mean[1:, 2:], 1e-5, "blocks one by one")
    within(torch.stack([v for _, v in alone]).mean(0), var[1:, 2:], 1e-6, "mean variance over blocks")
    for level in (0.01, 100.0):
        _, var = model(x, torch.tensor(level))
        assert (var > 0).all() and (var < level**2).all()
    wide, spread = _random().double()(x.to(torch.complex128), sigma.double())
    assert wide.dtype is torch.complex128 and spread.dtype is torch.float64
    within(mean, wide, 1e-4, "float32 network")
    with pytest.raises(ValueError, match=r"made for \[B,U,K,4,2\], got x \(1, 1, 1, 2, 4\)"):
        model(draw(1, 1, 1, 2, 4, dtype=torch.complex64), sigma)
    with pytest.raises(ValueError, match="head must be one of"):
        ChannelDenoiser(head="score")


@pytest.mark.parametrize("head", ["variance", "trace"])
def test_training_finds_the_posterior(head):
    """Two hundred steps on correlated channels: mean and variance near the exact ones, whichever the second output."""
    law = ChannelLaw(nr=3, nt=1, correlation=0.9)
    settings = train_channel.ChannelTrainSettings(law=law, head=head, batch=128)
    torch.manual_seed(0)
    model = ChannelDenoiser(3, 1, width=8, blocks=1, taps=5, head=head)
    optimiser, loss = torch.optim.Adam(model.parameters(), 1e-2), train_channel.channel_loss(settings)
    for step in range(200):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / 200)
        optimiser.zero_grad()
        loss(model, torch.Generator().manual_seed(step)).backward()
        optimiser.step()
    h = law.draw(20_000, 1, 1, seed=5)
    levels = (0.3, 1.0)
    found = train_channel.denoising_figures(model.requires_grad_(False).eval(), h, levels)
    exact = train_channel.denoising_figures(law.gaussian_prior(), h, levels)
    rayleigh = train_channel.denoising_figures(sf.GaussianChannelPrior(), h, levels)
    for sigma in levels:
        assert found[sigma][0] < exact[sigma][0] * 1.1 < rayleigh[sigma][0]
        assert abs(found[sigma][1] / exact[sigma][1] - 1) < 0.1


def _train(tmp_path, **changes):
    settings = {"law": SMALL, "steps": 6, "batch": 8, "out": tmp_path, "progress": False} | changes
    return train_channel.train_channel(train_channel.ChannelTrainSettings(**settings))


@pytest.fixture
def _few_held_out(monkeypatch):
    monkeypatch.setattr(train_channel, "HELD_OUT", 64)
    monkeypatch.setattr("semcom_fast.systems.blind_mimosc.channel_laws._COVARIANCE_DRAWS", 500)


@pytest.mark.usefixtures("_few_held_out")
def test_stopped_training_goes_on(tmp_path):
    """A time limit stops it with weights written; resumed, it gives what an unbroken training gives."""
    _train(tmp_path / "whole")
    _train(tmp_path / "parts", minutes=1e-9)
    name = weights_name(SMALL)
    assert weights.load(name, tmp_path / "parts")[1]["training"]["steps_done"] == 1
    _train(tmp_path / "parts", resume=True)
    whole, parts = (weights.load(name, tmp_path / part) for part in ("whole", "parts"))
    assert parts[1]["training"]["steps_done"] == 6
    for key, value in whole[0].items():
        same_bits(parts[0][key], value)
    with pytest.raises(ValueError, match="was made with settings"):
        _train(tmp_path / "parts", resume=True, batch=16)


@pytest.mark.usefixtures("_few_held_out")
@pytest.mark.parametrize(
    "options, name", [(["--correlation", "0.5"], "kronecker_0.5_2x1"), (["--cdl", "C"], "cdl_c_2x1")]
)
def test_training_command(tmp_path, capsys, options, name):
    """The command writes weights with a card that load into a denoiser."""
    line = ["train", "blind-mimosc", "--part", "channel", "--nr", "2", "--nt", "1", "--steps", "2", "--quiet", *options]
    assert cli.main([*line, "--out", str(tmp_path), "--head", "trace"]) == 0
    assert "learned_db" in capsys.readouterr().out
    card = json.loads((tmp_path / f"blind_mimosc_channel_{name}_trace.json").read_text())
    assert card["head"] == "trace" and card["licence"] and card["data"] and len(card["metrics"]) == 9
    law = ChannelLaw(**card["law"])
    mean, var = load_channel_denoiser(law, head="trace", folder=tmp_path)(
        draw(1, 1, 2, 2, 1, dtype=torch.complex64), 0.5
    )
    assert mean.shape == (1, 1, 2, 2, 1) and var.shape == (1, 1)
    with pytest.raises(FileNotFoundError, match="no weights 'blind_mimosc_channel"):
        load_channel_denoiser(law, folder=tmp_path)


def test_bad_training_options(tmp_path, capsys):
    for changes, message in (({"steps": 0}, "steps"), ({"rate": 0.0}, "rate"), ({"minutes": 0.0}, "minutes")):
        with pytest.raises(ValueError, match=message):
            _train(tmp_path, **changes)
    assert cli.main(["train", "blind-mimosc", "--part", "channel", "--correlation", "1.5"]) == 2
    assert "correlation must lie in [0, 1)" in capsys.readouterr().err


def test_shipped_prior_is_near_wiener():
    """Kronecker 0.7, 8x2, float16 as stored: within 0.3 dB of the exact denoiser at eight levels, variance too."""
    rows = train_channel.compare(load_channel_denoiser(), ChannelLaw(), count=4096)
    assert len(rows) == 8
    for sigma, row in rows.items():
        within(torch.tensor(row["learned_db"]), torch.tensor(0.0), 0.3, f"dB over Wiener, {sigma}")
        within(torch.tensor(row["reported_db"]), torch.tensor(0.0), 0.3, f"dB of the reported variance, {sigma}")


def test_shipped_weights_are_small():
    for name in weights.available():
        if name.startswith("blind_mimosc_channel_"):
            assert (weights.SHIPPED / f"{name}.safetensors").stat().st_size < 300_000
