"""DM-VB's channel sets: normalisation, kept files, seeds, exact moments, orientations."""

import json
import math

import numpy as np
import pytest
import torch
from sf_testing import same_bits, within

import semcom_fast as sf
from semcom_fast.data.cdl import uniform_yaw
from semcom_fast.systems.dm_vb import ChannelSet, exact_moments, load_set
from semcom_fast.systems.dm_vb import channels as module

SMALL = 300  # training set of these tests


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMCOM_DATA", str(tmp_path))
    module._scale.cache_clear()
    yield
    module._scale.cache_clear()


@pytest.mark.parametrize("kind", module.KINDS)
@pytest.mark.parametrize("profile", [*module.PROFILES, "CDL-E"])
def test_training_set_has_unit_power(profile, kind):
    """One factor for the whole set brings the training set to mean |h|^2 = 1; the test set keeps that factor."""
    channels = ChannelSet(profile, kind, train_count=SMALL)
    train = load_set(channels)
    assert train.shape == (SMALL, 16, 64) and train.dtype is torch.complex64
    assert float(train.abs().square().double().mean()) == pytest.approx(1.0, abs=1e-6)
    raw = channels.draw(SMALL, seed=channels.seed("train"))
    within(train, raw * channels.scale(), 1e-5, "one factor")
    test = load_set(channels, "test", 8)
    within(test, channels.draw(8, seed=channels.seed("test")) * channels.scale(), 1e-5, "test set")
    assert 0.8 < channels.scale() < 1.2 and not torch.equal(train[:8], test)


def test_link_of_the_paper():
    """40 GHz, 30 ns, first of 300 subcarriers 15 kHz apart; 16 x 64; no yaw; the specular phase fixed or random."""
    kwargs = {"nr": 16, "nt": 64, "delay_spread": 30e-9, "carrier_frequency": 40e9, "frequency": -150 * 15e3, "seed": 7}
    fixed = ChannelSet("CDL-D", "fixed").draw(3, seed=7)
    same_bits(fixed, sf.cdl_channels("D", 3, **kwargs))
    same_bits(ChannelSet("CDL-D", "los").draw(3, seed=7), sf.cdl_channels("D", 3, los_phase="random", **kwargs))
    same_bits(
        ChannelSet("CDL-D", array="vertical").draw(3, seed=7), sf.cdl_channels("D", 3, array="vertical", **kwargs)
    )
    yaw = [uniform_yaw(3, w, seed=7, end=e) for w, e in ((math.pi / 3, "tx"), (math.pi, "rx"))]
    rotated = sf.cdl_channels("D", 3, los_phase="random", tx_yaw=yaw[0], rx_yaw=yaw[1], **kwargs)
    same_bits(ChannelSet("CDL-D", "rotated").draw(3, seed=7), rotated)


@pytest.mark.parametrize("kind", module.KINDS)
def test_split_draw(kind):
    """A draw in parts, and a longer one, hold the same channels bit for bit."""
    channels = ChannelSet("CDL-C", kind)
    whole = channels.draw(9, seed=3, first_item=4)
    same_bits(torch.cat([channels.draw(n, seed=3, first_item=4 + k) for k, n in ((0, 2), (2, 7))]), whole)
    scarce = ChannelSet("CDL-C", kind, train_count=50)
    longer, shorter = load_set(scarce, "val", 20), load_set(scarce, "val", 7)
    same_bits(longer[:7].contiguous(), shorter)


def test_kept_files(tmp_path, monkeypatch):
    """Drawn once: a second load reads the file, a spoilt or short file is drawn again, the factor is kept apart."""
    channels = ChannelSet("CDL-A", train_count=40)
    first = load_set(channels)
    files = sorted((tmp_path / "cdl").iterdir())
    assert [f.suffix for f in files] == [".json", ".npy"] and not list(tmp_path.rglob("*.part"))
    assert json.loads(files[0].read_text())["scale"] == channels.scale()
    with monkeypatch.context() as patch:
        patch.setattr(ChannelSet, "draw", lambda *a, **k: pytest.fail("drawn again"))
        same_bits(load_set(channels), first)
        same_bits(load_set(channels, "train", 11), first[:11].contiguous())
    loaded = load_set(channels)
    loaded.zero_()  # the caller's own copy
    same_bits(load_set(channels), first)
    files[1].write_bytes(files[1].read_bytes()[:1000])
    same_bits(load_set(channels), first)
    assert np.load(files[1]).shape == (40, 16, 64)
    assert load_set(channels, "test", 0).shape == (0, 16, 64)


def test_every_set_has_its_own_seed():
    sets = [ChannelSet(p, k, a) for p in module.PROFILES for k in module.KINDS for a in module.ARRAYS]
    seeds = [s.seed(split) for s in sets for split in module.SPLITS]
    assert len(set(seeds)) == len(seeds) == 4 * 3 * 2 * 3


@pytest.mark.parametrize("profile, kind", [("CDL-B", "fixed"), ("CDL-D", "fixed"), ("CDL-D", "los")])
@pytest.mark.parametrize("array", module.ARRAYS)
def test_exact_moments_are_those_of_the_samples(profile, kind, array):
    """The sample covariance of n Gaussian channels is off by trace(C)/sqrt(n) in the Frobenius norm: 15 % of that allowed
    either way, which another profile's or array's covariance does not meet. Row-major h.flatten()."""
    n = 1500
    channels = ChannelSet(profile, kind, array, train_count=n)
    mean, covariance = exact_moments(channels)
    h = load_set(channels).to(torch.complex128).flatten(1)
    d = h - mean
    power = float(covariance.diagonal().real.sum())
    sample = d.mT @ d.conj() / n
    error = float(torch.linalg.norm(sample - covariance))
    expected = power / math.sqrt(n)
    if kind == "fixed":
        assert 0.85 < error / expected < 1.15
    # a path of constant modulus varies less than a Gaussian of its power
    assert error < 1.15 * expected
    assert float(torch.linalg.norm(h.mean(0) - mean)) == pytest.approx(math.sqrt(power / n), rel=0.6)
    assert power + float(mean.abs().square().sum()) == pytest.approx(1024 * channels.scale() ** 2)
    # which end is which: the scatter seen by neighbouring columns (base station) and rows (user)
    for step in (1, 64):
        got, want = (complex(c.diagonal(step).mean()) for c in (sample, covariance))
        assert abs(got - want) < 0.1 * abs(power) / 1024


def test_refusals():
    with pytest.raises(ValueError, match="no closed form"):
        exact_moments(ChannelSet("CDL-A", "rotated"))
    for field, value in (("profile", "A"), ("kind", "mixed"), ("array", "round")):
        with pytest.raises(ValueError, match=f"ChannelSet: {field} must be one of .*got '{value}'"):
            ChannelSet(**{field: value})
    with pytest.raises(ValueError, match="train_count must be at least 1"):
        ChannelSet(train_count=0)
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'dev'"):
        load_set(ChannelSet(train_count=5), "dev", 3)
    with pytest.raises(ValueError, match="count must not be negative"):
        load_set(ChannelSet(train_count=5), "test", -1)
