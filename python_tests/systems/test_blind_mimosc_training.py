"""Training may stop at any step: what it goes on to is what an unbroken run gives, to the last bit."""

import json
import signal

import pytest
import torch
from sf_testing import same_bits

from semcom_fast import weights
from semcom_fast.data import load_digits
from semcom_fast.systems.blind_mimosc import train
from semcom_fast.systems.blind_mimosc.networks import load_denoiser, load_encoder
from semcom_fast.systems.fitting import Fit, FitSettings, Stopped


class _Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)


def _loss(model, generator):
    x = torch.randn(16, 3, generator=generator)
    return (model.layer(x) - x @ torch.tensor([[1.0], [-2.0], [0.5]])).square().mean()


def _fit(path, steps=40) -> Fit:
    return Fit(_Line(), _loss, FitSettings(steps, rate=0.1, weight_decay=0.1, warm_up=5, average=0.9), path)


def _interrupt_at(step):
    """A loss that presses Ctrl-C during one step."""

    def loss(model, generator):
        if loss.calls == step:
            signal.raise_signal(signal.SIGINT)
        loss.calls += 1
        return _loss(model, generator)

    loss.calls = 0
    return loss


def test_fits_and_averages(tmp_path):
    fit = _fit(tmp_path / "c", steps=300)
    model = fit.run("line", progress=False)
    assert float(_loss(model, torch.Generator().manual_seed(1))) < 0.05
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert not torch.equal(model.layer.weight, fit.model.layer.weight)


def test_interrupted_and_resumed_is_unbroken(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    whole = _fit(tmp_path / "whole").run("line", progress=False)
    broken = _fit(tmp_path / "part")
    broken.loss = _interrupt_at(17)
    with pytest.raises(Stopped, match="stopped at step 18 of 40"):
        broken.run("line", progress=False)
    again = _fit(tmp_path / "part")
    assert again.resume() and again.step == 18
    resumed = again.run("line", progress=False)
    same_bits(resumed.layer.weight, whole.layer.weight)
    same_bits(resumed.layer.bias, whole.layer.bias)
    assert signal.getsignal(signal.SIGINT) is handler  # not Python's own where a shell started us in the background


def test_second_interrupt_does_not_wait(tmp_path):
    fit = _fit(tmp_path / "c")

    def loss(model, generator):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return _loss(model, generator)

    fit.loss = loss
    with pytest.raises(KeyboardInterrupt):
        fit.run("line", progress=False)


def test_resume_without_or_with_another_checkpoint(tmp_path):
    assert not _fit(tmp_path / "none").resume()
    _fit(tmp_path / "c").run("line", progress=False)
    with pytest.raises(ValueError, match="was made with settings"):
        _fit(tmp_path / "c", steps=41).resume()


def test_training_command_writes_usable_weights(tmp_path, capsys):
    cards = train.train_all(tmp_path, steps=3, progress=False)
    assert sorted(c["name"] for c in cards) == weights.available(tmp_path)
    assert "reflection_correlation" in capsys.readouterr().out
    for card in cards:
        stored = json.loads((tmp_path / f"{card['name']}.json").read_text())
        assert stored["training"]["steps"] == 3 and stored["licence"] and stored["data"]
    d = load_digits().test[:2].unsqueeze(1)
    assert load_encoder("plain", folder=tmp_path)(d).shape == (2, 1, 8, 1, 8)
    mean, var = load_denoiser(tmp_path)(d, 0.5)
    assert mean.shape == d.shape and float(var.max()) <= 0.25
    with pytest.raises(ValueError, match="steps must be at least 1"):
        train.train_all(tmp_path, steps=0)


def test_penalty_punishes_odd_encoders_only():
    images = load_digits().train[:300]
    torch.manual_seed(0)
    codec = train.Codec()

    def loss(weight):
        with torch.no_grad():
            return float(train.codec_loss(images, weight)(codec, torch.Generator().manual_seed(1)))

    plain = loss(0.0)
    # an untrained encoder is dominated by its biases: even, so the penalty costs nothing
    assert loss(1.0) == pytest.approx(plain, abs=1e-6)
    with torch.no_grad():
        for layer in (codec.encoder.second, codec.encoder.last):
            layer.bias.zero_()
        codec.encoder.first.bias.copy_(-codec.encoder.first.weight @ images.mean(0))
    assert loss(1.0) - loss(0.0) > 1e-3
