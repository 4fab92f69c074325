"""Training of the denoiser and its control branch, and the latents it is done on."""

import signal
from types import SimpleNamespace

import pytest
import torch
from dit_cases import TINY, shaken, source
from sf_testing import same_bits

from semcom_fast import weights
from semcom_fast.data.images import ImageSet
from semcom_fast.data.photos import PhotoCrops
from semcom_fast.systems.fitting import Stopped, TimedFit
from semcom_fast.systems.sgd_jscc import train_denoiser
from semcom_fast.systems.sgd_jscc.autoencoder import Autoencoder, AutoencoderConfig
from semcom_fast.systems.sgd_jscc.codec_networks import load_autoencoder
from semcom_fast.systems.sgd_jscc.control import ControlBranch
from semcom_fast.systems.sgd_jscc.denoiser_networks import CONTROL, DENOISER, load_control, load_denoiser, load_dit
from semcom_fast.systems.sgd_jscc.denoiser_settings import DenoiserTrainSettings
from semcom_fast.systems.sgd_jscc.dit import DiT, DiTConfig
from semcom_fast.systems.sgd_jscc.edge_codec import EdgeCodec, EdgeCodecConfig
from semcom_fast.systems.sgd_jscc.latents import corrupted, encoded, kept, received
from semcom_fast.systems.sgd_jscc.train_denoiser import SCHEDULE, denoiser_loss, train


@pytest.mark.parametrize(
    "change, message",
    [
        ({"part": "snr"}, "unknown part"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"text_dropped": 1.5}, "text_dropped must be on"),
        ({"highest_level": 0.0}, "highest_level must be on"),
        ({"minutes": 0.0}, "minutes must be positive"),
    ],
)
def test_bad_training_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DenoiserTrainSettings(**change)


# ---- training


def _settings(part="dit", steps=200, **changes):
    plain = {"batch": 32, "rate": 3e-3, "bf16": False, "progress": False, "masked_rows": 0.25}
    return DenoiserTrainSettings(part=part, steps=steps, **{**plain, **changes})


def _fit(path, steps=6):
    settings, drawn = _settings(steps=steps, relative=False), source()
    torch.manual_seed(0)
    marked = settings.fit("", "", 0.8)
    return TimedFit(DiT(DiTConfig(**TINY, inert=False)), denoiser_loss(drawn, marked), marked, path)


def test_every_parameter_that_counts_gets_a_gradient():
    model = shaken(DiT(DiTConfig(**TINY, output="residual", rank=20)))
    settings = _settings().fit("", "", 0.8)
    denoiser_loss(source(), settings)(model, torch.Generator().manual_seed(0)).backward()
    for name, parameter in model.named_parameters():
        inert = ".query." in name or ".key." in name
        assert inert == (parameter.grad is None), name
        assert inert or parameter.grad.abs().max() > 0, name


def test_a_new_branch_gets_gradients_and_leaves_the_denoiser_alone():
    dit = shaken(DiT(DiTConfig(**TINY, output="residual", rank=20))).requires_grad_(False)
    branch = ControlBranch.of(dit)
    loss = denoiser_loss(source(guides=True), _settings("control").fit("", "", 0.8), dit)
    loss(branch, torch.Generator().manual_seed(0)).backward()
    assert all(layer.weight.grad.abs().max() > 0 for layer in branch.exits)
    assert all(parameter.grad is None for parameter in dit.parameters())


def test_loss_is_that_of_algorithm_1():
    drawn, model = source(), shaken(DiT(DiTConfig(**TINY)))
    plain = {"masked_rows": 0.0, "relative": False, "time_power": 1.0, "text_dropped": 0.5}
    settings = _settings(highest_level=1.0, **plain).fit("", "", 1.0)
    loss = denoiser_loss(drawn, settings)(model, torch.Generator().manual_seed(5))
    random = torch.Generator().manual_seed(5)
    f0, text, _ = drawn.draw(32, random)
    beta = SCHEDULE.level(torch.rand(32, generator=random)).float()
    noise = torch.randn(f0.shape, generator=random)
    told = torch.rand(32, 1, generator=random) >= 0.5
    shaped = beta[:, None, None, None]
    x0 = model((1 - shaped).sqrt() * f0 + shaped.sqrt() * noise, beta, text * told)
    torch.testing.assert_close(loss, (x0 - f0).square().mean())
    assert 4 < told.sum() < 28


def test_inert_parameters_cannot_be_trained(tmp_path):
    with pytest.raises(ValueError, match="inert=False"):
        train(_settings(out=tmp_path), source(), source(), DiTConfig(**TINY))


def test_interrupted_and_resumed_is_unbroken(tmp_path):
    averaged = _fit(tmp_path / "whole").run("whole", progress=False)
    broken = _fit(tmp_path / "part")
    inner, calls = broken.loss, iter(range(100))

    def loss(model, generator):
        if next(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return inner(model, generator)

    broken.loss = loss
    with pytest.raises(Stopped, match="stopped at step 3 of 6"):
        broken.run("part", progress=False)
    again = _fit(tmp_path / "part")
    assert again.resume() and again.step == 3
    for (name, mine), theirs in zip(
        again.run("part", progress=False).state_dict().items(), averaged.state_dict().values(), strict=True
    ):
        same_bits(mine, theirs, name)


@pytest.mark.slow
def test_training_learns_what_a_linear_denoiser_cannot_know(tmp_path):
    """Under a minute on one core: the loss falls, and the stored networks beat the Wiener denoiser of their latents."""
    drawn, held = source(4096, guides=True), source(256, guides=True, seed=1)
    config = DiTConfig(**TINY, output="residual", rank=24, inert=False)
    card = train(_settings(out=tmp_path), drawn, held, config)
    assert weights.available(tmp_path) == [DENOISER]
    row = card["metrics"]["0 dB"]
    assert row["dit"] < 0.8 * min(row["wiener"], row["low_rank_linear"]), row
    dit = load_dit(tmp_path)
    assert dit.side is None and not any(p.requires_grad for p in dit.parameters())
    card = train(_settings("control", steps=150, out=tmp_path, weights=tmp_path), drawn, held)
    row = card["metrics"]["-10 dB"]
    assert row["dit_edges"] < 0.9 * row["dit"], row  # the guide of this test is the clean latent, or its mirror image
    assert weights.available(tmp_path) == [CONTROL, DENOISER]
    loaded, branch = load_denoiser(tmp_path)
    again = load_control(tmp_path)
    for mine, theirs in zip(branch.state_dict().values(), again.state_dict().values(), strict=True):
        same_bits(mine, theirs)
    same_bits(loaded.patch.weight, dit.patch.weight)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights 'sgd_jscc_dit'"):
        load_denoiser(tmp_path)


# ---- data


def test_kept_latents_are_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return torch.ones(2, 3).half()

    for _ in range(2):
        assert torch.equal(kept("a", make, tmp_path), torch.ones(2, 3).half())
    kept("b", make, tmp_path)
    assert len(made) == 2 and len(list(tmp_path.glob("*.npy"))) == 2


def test_corrupted_edges_stay_edge_maps():
    edges = torch.zeros(50, 1, 32, 32, dtype=torch.uint8)
    edges[..., 16] = 255
    received = corrupted(edges)
    same_bits(received, corrupted(edges))
    assert received.dtype == torch.uint8 and received.shape == edges.shape
    assert not torch.equal(received, corrupted(edges, seed=1))
    line, rest = received[..., 16].float().mean(), received[..., :12].float().mean()
    assert 60 < line < 230 and rest < 40
    copied = edges.clone()
    corrupted(edges)
    same_bits(edges, copied)


def _photos(count=6):
    """Stands in for PhotoCrops: crops of two photographs, one of which has a caption."""
    pixels = torch.randint(256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return SimpleNamespace(
        load=lambda split, n: ImageSet(pixels, sources=("one", "two")),
        origins=lambda split, n: torch.arange(count) % 2,
        photographs=lambda split: [SimpleNamespace(name="Aqua"), SimpleNamespace(name="nobody's")],
    )


def test_latents_of_photographs(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path))
    photos = _photos()
    monkeypatch.setattr(train_denoiser, "PhotoCrops", lambda **sizes: photos)
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig.small()).requires_grad_(False).eval()
    codec = EdgeCodec(EdgeCodecConfig.small()).requires_grad_(False).eval()
    pixels = photos.load("train", 6).images
    drawn = train_denoiser.latent_source(autoencoder, crops=5)
    assert drawn.latents.shape == (10, 16, 8, 8) and drawn.guides is None and drawn.sources == ("one", "two")
    torch.testing.assert_close(drawn.latents[5:], encoded(autoencoder, pixels[:5].flip(-1)))
    assert drawn.origins.tolist() == [0, 1, 0, 1, 0] * 2
    assert drawn.text[0].norm().item() == pytest.approx(1) and drawn.text[1].norm() == 0
    guided = train_denoiser.latent_source(autoencoder, crops=5, codec=codec)
    torch.testing.assert_close(guided.latents, drawn.latents[:5])
    assert guided.guides.shape == (5, 3, 16, 8, 8)
    _, _, guides = guided.draw(64, torch.Generator().manual_seed(0))
    assert len({round(float(guide.sum()), 3) for guide in guides}) > 8  # all versions of all images are met
    other = train_denoiser.latent_source(Autoencoder(AutoencoderConfig.small()).eval(), crops=5)
    assert (other.latents - drawn.latents).abs().max() > 0.1  # what is kept belongs to one autoencoder
    with pytest.raises(ValueError, match="there are 40000 crops"):
        train_denoiser.latent_source(autoencoder, crops=40_001)


def test_received_edges_come_from_the_codec():
    torch.manual_seed(0)
    codec = EdgeCodec(EdgeCodecConfig.small()).eval()
    edges = torch.randint(256, (3, 1, 64, 64), dtype=torch.uint8)
    clean = received(codec, edges, snr_db=(90.0, 90.0))
    decoded = codec.decode(codec.encode(edges / 255, 90.0), 90.0)
    assert (clean / 255 - decoded).abs().max() < 0.5 / 255 + 1e-3
    assert torch.equal(received(codec, edges), received(codec, edges)) and clean.dtype == torch.uint8
    assert not torch.equal(received(codec, edges), received(codec, edges, seed=1))


def test_shipped_networks_beat_a_linear_estimate_on_new_photographs(tmp_path):
    pixels = PhotoCrops(size=64, photos="bundled", cache=tmp_path).load("test", 32).images
    clean = encoded(load_autoencoder(), pixels).float()
    dit, control = load_denoiser()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    for snr, most in ((-10, 0.95), (0, 0.85), (10, 0.92)):
        beta = 1 / (1 + 10 ** (snr / 10))
        g, levels = (1 - beta) ** 0.5 * clean + beta**0.5 * noise, torch.full((32,), beta)
        with torch.no_grad():
            x0, linear = dit(g, levels), dit.prior.estimate(g, levels)
        ratio = float((x0 - clean).square().mean() / (linear - clean).square().mean())
        assert ratio < most, (snr, ratio)
    for name, module in ((DENOISER, dit), (CONTROL, control)):
        _, card = weights.load(name)
        assert card["parameters"] == sum(value.numel() for value in module.state_dict().values())
        assert len(card["sources"]) == 18 and card["metrics"]["0 dB"]["dit"] < card["metrics"]["0 dB"]["wiener"]
