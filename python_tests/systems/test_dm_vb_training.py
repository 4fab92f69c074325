"""Training of the experts: the loss, the optimiser, stopping and going on, and what is stored."""

import json
import signal
from argparse import ArgumentParser
from dataclasses import replace

import pytest
import torch
from sf_testing import same_bits

from semcom_fast import weights
from semcom_fast.systems.dm_vb import train as training
from semcom_fast.systems.dm_vb.loss import complex_noise, measured_loss, noisy_planes
from semcom_fast.systems.dm_vb.network import CNNConfig, DenoiserCNN, step_embedding, to_planes
from semcom_fast.systems.dm_vb.networks import load_network
from semcom_fast.systems.dm_vb.soap import SOAP
from semcom_fast.systems.dm_vb.train import ChannelPool, alpha_bars, channel_pool, fitted, noise_loss, train, whitening
from semcom_fast.systems.dm_vb.train_settings import NetTrainSettings
from semcom_fast.systems.execution import add_execution
from semcom_fast.systems.fitting import Stopped


def _settings(tmp_path, **changes):
    plain = {"width": 6, "steps": 12, "batch": 4, "bf16": False, "progress": False, "out": tmp_path, "window": "paper"}
    return NetTrainSettings(**{**plain, **changes})


def _smooth(count, seed=0):
    """Channels of two plane waves of unit power: much of the noise can be told from them."""
    random = torch.Generator().manual_seed(seed)
    gains = complex_noise((count, 2, 1, 1), random)
    rows, columns = torch.arange(16.0)[:, None], torch.arange(64.0)
    waves = torch.stack([torch.exp(1j * (0.3 * rows + 0.2 * columns)), torch.exp(1j * (0.5 * columns - 0.1 * rows))])
    return (gains * waves).sum(1) / 2**0.5


def _pool(count=64, back=None):
    return ChannelPool(_smooth(count), back, {"CDL-A": _smooth(32, seed=1)})


# ---- settings


@pytest.mark.parametrize(
    "change, message",
    [
        ({"profile": "CDL-F"}, "unknown profile 'CDL-F': choose one of CDL-A"),
        ({"kind": "moving"}, "unknown kind 'moving': choose one of fixed, los, rotated"),
        ({"array": "round"}, "unknown array"),
        ({"domain": "beam"}, "unknown domain"),
        ({"window": "huge"}, "unknown window"),
        ({"scarce": "CDL-F"}, "unknown scarce"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"scarce_samples": 0}, "scarce_samples must be at least 1"),
        ({"minutes": 0.0}, "minutes must be positive"),
        ({"rate": 0.0}, "rate must be positive"),
        ({"time_power": 0.0}, "time_power must be positive"),
        ({"average": 1.0}, "average must be on"),
        ({"profile": "CDL-A", "scarce": "CDL-D"}, "the expert of CDL-A is that of the balanced setting"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        NetTrainSettings(**change)


def test_settings_name_sizes_and_samples():
    expert = NetTrainSettings("CDL-B", kind="rotated")
    assert expert.name == "dm_vb_rotated_cdl_b" and expert.counts() == {"CDL-B": 10_000}
    assert DenoiserCNN(expert.config).config.reach == (12, 28)
    assert sum(p.numel() for p in DenoiserCNN(expert.config).parameters()) == 55_025
    single = NetTrainSettings("single", scarce="CDL-D")
    assert single.name == "dm_vb_scarce_single" and single.config.widths == (2, 65, 130, 87, 44, 2)
    assert single.counts() == {"CDL-A": 10_000, "CDL-B": 10_000, "CDL-C": 10_000, "CDL-D": 1_000}
    assert NetTrainSettings(window="paper").config == CNNConfig()


def test_command_line_covers_the_settings(tmp_path, monkeypatch):
    parser = ArgumentParser()
    training.add_arguments(parser)
    add_execution(parser)
    seen = []
    monkeypatch.setattr(training, "train", seen.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    training.execute(parser.parse_args([]))
    assert seen[0] == NetTrainSettings()
    words = "--profile single --set rotated --scarce CDL-C --samples 50 --scarce-samples 5 --minutes 2 --steps 7 "
    words += "--time-power 1.5 --batch 3 --rate 0.01 --seed 4 --domain angular --window paper --width 9 "
    words += f"--precision fp32 --resume --quiet --out {tmp_path}"
    training.execute(parser.parse_args(words.split()))
    assert seen[1] == NetTrainSettings(
        "single", "rotated", scarce="CDL-C", samples=50, scarce_samples=5, minutes=2.0, time_power=1.5, steps=7, batch=3,
        rate=0.01, seed=4, domain="angular", window="paper", width=9, bf16=False, resume=True, progress=False, out=tmp_path,
    )  # fmt: skip
    with pytest.raises(SystemExit):
        parser.parse_args(["--profile", "CDL-Z"])


# ---- loss and optimiser


def test_loss_is_the_noise_error_per_complex_entry(tmp_path):
    alpha_bar, h = alpha_bars(100), _smooth(8)
    settings = _settings(tmp_path, batch=16).fit({}, "")
    seen = {}

    def zero(x, t):
        seen.update(x=x, t=t)
        return torch.zeros_like(x)

    loss = noise_loss(h, alpha_bar, settings)(zero, torch.Generator().manual_seed(3))
    random = torch.Generator().manual_seed(3)
    rows = torch.randint(8, (16,), generator=random)
    spread = (torch.arange(16) + torch.rand(16, generator=random)) / 16
    t = 1 + (100 * spread).long()
    noise = complex_noise((16, 16, 64), random)
    assert torch.equal(seen["t"], t) and t.min() >= 1 and t.max() <= 100
    same_bits(seen["x"], noisy_planes(h[rows], noise, alpha_bar[t - 1]))
    torch.testing.assert_close(loss, noise.abs().square().mean())
    assert float(loss) == pytest.approx(1, abs=0.05)


def test_every_step_is_as_likely_as_any_other(tmp_path):
    counts = torch.zeros(101)
    settings = _settings(tmp_path, batch=16).fit({}, "")

    def count(x, t):
        counts.index_add_(0, t, torch.ones(16))
        return x

    loss = noise_loss(_smooth(2)[:, :2, :2], alpha_bars(100), settings)
    for seed in range(600):
        loss(count, torch.Generator().manual_seed(seed))
    assert counts[0] == 0 and float((counts[1:] / 96 - 1).abs().max()) < 0.4  # 96 each, standard deviation below 10
    counts.zero_()
    powered = noise_loss(_smooth(2)[:, :2, :2], alpha_bars(100), replace(settings, time_power=2.0))
    for seed in range(600):
        powered(count, torch.Generator().manual_seed(seed))
    assert counts[0] == 0 and float(counts[1:26].sum() / counts.sum()) == pytest.approx(0.5, abs=0.02)


def test_schedule_is_the_estimators():
    alpha_bar = alpha_bars(100)
    assert alpha_bar.dtype == torch.float64 and len(alpha_bar) == 100
    assert float(1 - alpha_bar[0]) == pytest.approx(1 / 10_001) and float(alpha_bar[-1]) == pytest.approx(
        5.6e-3, rel=0.01
    )


def test_whitened_coordinates_are_orthonormal_where_the_embedding_says_anything():
    table = step_embedding(100, 16)
    turned = table.double() @ whitening(table)
    gram = turned.mT @ turned / 100
    torch.testing.assert_close(gram[:10, :10], torch.eye(10).double(), rtol=0, atol=1e-6)
    assert float(gram.diagonal()[10:].max()) < 1e-2  # next to nothing, and not blown up


def test_folding_back_the_whitened_affine_changes_nothing(tmp_path):
    model = fitted(_settings(tmp_path), _pool()).model
    torch.nn.init.normal_(model.network.step_affine.weight, std=0.3)
    network, x = model.folded(), to_planes(_smooth(4))
    for step in (1, 50, 100):
        t = torch.full((4,), step)
        torch.testing.assert_close(network(x, t), model(x, t), rtol=1e-3, atol=1e-3)
    assert network.embedding.equal(step_embedding(100, 16))


def test_soap_is_adam_where_the_preconditioner_is_diagonal():
    """A vector has no bases: from the second gradient on, Adam's update."""
    torch.manual_seed(0)
    mine, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    soap, adam = SOAP([mine], 0.01), torch.optim.Adam([theirs], 0.01, betas=(0.95, 0.95))
    mine.grad = torch.randn(5)
    soap.step()
    same_bits(mine.detach(), torch.ones(5), "the first gradient only sets the bases")
    for _ in range(12):
        mine.grad = theirs.grad = torch.randn(5)
        soap.step()
        adam.step()
    torch.testing.assert_close(mine, theirs)


def test_soap_beats_adam_on_a_badly_conditioned_fit():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 12)).Q
    inputs = torch.randn(256, 12) * torch.logspace(0, -1.5, 12) @ basis
    target = inputs @ (basis.T * torch.logspace(0, 1.5, 12)) @ torch.randn(12, 4)

    def left(make):
        weight = torch.nn.Parameter(torch.zeros(4, 12))
        optimiser = make([weight])
        for step in range(300):
            optimiser.param_groups[0]["lr"] = 0.3 * (1 - step / 300)
            loss = (inputs @ weight.T - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return loss.item()

    assert left(lambda p: SOAP(p, 0.3)) < 0.2 * left(lambda p: torch.optim.Adam(p, 0.3))


# ---- training


def test_interrupted_and_resumed_is_unbroken_with_a_judge(tmp_path, monkeypatch):
    """To the last bit: weights, average, optimiser and the average that did best."""
    monkeypatch.setattr(
        training, "measured_loss", lambda net, *a: net(torch.ones(1, 2, 9, 9), torch.tensor([3])).square()
    )
    settings, pool = _settings(tmp_path / "whole"), _pool(back=_smooth(8, seed=4))
    whole = fitted(settings, pool)
    whole._every = 2
    whole.train("whole", resume=False, progress=False)
    other = replace(settings, out=tmp_path / "part")
    broken = fitted(other, pool)
    broken._every = 2
    inner, calls = broken.loss, iter(range(100))

    def loss(model, generator):
        if next(calls) == 6:
            signal.raise_signal(signal.SIGINT)
        return inner(model, generator)

    broken.loss = loss
    with pytest.raises(Stopped, match="stopped at step 7 of 12"):
        broken.train("part", resume=False, progress=False)
    again = fitted(other, pool)
    again._every = 2
    again.train("part", resume=True, progress=False)
    assert again.step == 12 and again.best_step == whole.best_step > 0 and again.best_value == whole.best_value
    for mine, theirs in ((again.model, whole.model), (again.averaged, whole.averaged), (again.kept(), whole.kept())):
        for (name, value), expected in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
            same_bits(value, expected, name)


def test_the_best_average_is_kept(tmp_path):
    fit = fitted(_settings(tmp_path, steps=9), _pool(back=_smooth(8)))
    values = iter([3.0, 1.0, 2.0, 1.5, 4.0])
    fit._every, states = 2, {}
    fit.judge = lambda network: (
        states.setdefault(fit.step, network.network.layers[0].weight.clone()) is None or next(values)
    )
    fit.train("kept", resume=False, progress=False)
    assert sorted(states) == [2, 4, 6, 8, 9] and fit.best_step == 4 and fit.best_value == 1.0
    same_bits(fit.kept().network.layers[0].weight, states[4])
    plain = fitted(_settings(tmp_path / "plain"), _pool())
    assert plain.kept() is plain.averaged


def test_other_data_or_sizes_cannot_be_resumed(tmp_path):
    fitted(_settings(tmp_path), _pool()).train("one", resume=False, progress=False)
    for settings, pool in ((_settings(tmp_path), _pool(63)), (_settings(tmp_path, width=7), _pool())):
        with pytest.raises(ValueError, match="was made with settings"):
            fitted(settings, pool).train("two", resume=True, progress=False)


def test_divergence_is_named(tmp_path):
    pool = _pool()
    pool.train[:] = torch.nan
    with pytest.raises(ValueError, match="training diverged: the loss of step 1 is nan"):
        train(_settings(tmp_path), pool)


def test_training_learns_and_stores_what_it_says(tmp_path, capsys, monkeypatch):
    """Noise on plane waves is told from them, and the stored network is the judged one."""
    window = training.best_window_loss
    monkeypatch.setattr(training, "best_window_loss", lambda *a: window(*a[:-1], 16))
    settings = _settings(tmp_path, width=8, steps=120, batch=8, rate=2e-2, average=0.95)
    card = train(settings, _pool(512))
    assert weights.available(tmp_path) == ["dm_vb_fixed_cdl_a"]
    network, stored = load_network("dm_vb_fixed_cdl_a", tmp_path)
    assert stored == json.loads(json.dumps(card)) and stored["parameters"] == sum(
        p.numel() for p in network.parameters()
    )
    losses = measured_loss(network, _smooth(32, seed=1), alpha_bars(100))
    row = card["metrics"]["CDL-A"]
    assert row["loss"]["all t"] == pytest.approx(float(losses.mean()), abs=1e-4)
    assert row["loss"]["all t"] < 0.35 and row["loss"]["t 61..100"] < 0.15, row
    assert row["ratio"]["all t"] == pytest.approx(row["loss"]["all t"] / row["best"]["all t"], rel=1e-3)
    assert row["best_11x11_window"]["all t"] > row["best"]["all t"]
    printed = capsys.readouterr().out
    assert f"eps-MSE {row['loss']['all t']} averaged over t, best possible {row['best']['all t']}" in printed
    assert stored["training"]["steps_done"] == 120 and stored["receptive_field"] == [11, 11]


def test_time_limit_writes_weights_and_can_be_resumed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        training, "loss_figures", lambda *a: {"CDL-A": {key: {"all t": 1} for key in ("loss", "best", "ratio")}}
    )
    card = train(_settings(tmp_path, steps=50, minutes=1e-6), _pool())
    assert card["training"]["steps_done"] == 1 and "time limit reached at step 1 of 50" in capsys.readouterr().out
    card = train(_settings(tmp_path, steps=50, resume=True), _pool())
    assert card["training"]["steps_done"] == 50


# ---- data


def test_pools_come_from_the_channel_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path))
    monkeypatch.setattr(training, "HELD_OUT", 6)
    scarce = channel_pool(NetTrainSettings("CDL-D", scarce="CDL-D", scarce_samples=30))
    assert scarce.train.shape == (27, 16, 64) and scarce.kept_back.shape == (3, 16, 64)
    assert scarce.held_out["CDL-D"].shape == (6, 16, 64)
    both = torch.cat([scarce.kept_back, scarce.train])
    assert float(both.abs().square().mean()) == pytest.approx(1, rel=1e-5)  # by its own 30 samples
    pooled = channel_pool(NetTrainSettings("single", scarce="CDL-D", samples=10, scarce_samples=5))
    assert (
        len(pooled.train) == 35
        and pooled.kept_back is None
        and list(pooled.held_out) == ["CDL-A", "CDL-B", "CDL-C", "CDL-D"]
    )
    assert not torch.isclose(pooled.held_out["CDL-A"][0], pooled.train[0]).all()


def test_a_rotated_set_is_judged_against_the_linear_predictor(tmp_path, monkeypatch, capsys):
    """It has no best loss in closed form; a network that returns zero has loss one, worse than the linear predictor."""
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path))
    monkeypatch.setattr(training, "HELD_OUT", 6)
    settings = NetTrainSettings("CDL-D", "rotated", samples=40, width=4)
    network = DenoiserCNN(settings.config).requires_grad_(False)
    for parameter in network.parameters():
        parameter.zero_()
    row = training.loss_figures(network, settings, channel_pool(settings))["CDL-D"]
    assert "best" not in row and row["loss"]["all t"] == pytest.approx(1, abs=0.01)
    assert row["linear"]["all t"] < 0.9 and row["ratio"]["all t"] == pytest.approx(1 / row["linear"]["all t"], rel=0.01)
    training.print_losses({"CDL-D": row})
    assert (
        f"CDL-D: eps-MSE {row['loss']['all t']} averaged over t, linear predictor {row['linear']['all t']}"
        in capsys.readouterr().out
    )
