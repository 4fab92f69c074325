"""Link and text encoders of SGD-JSCC."""

import math
import sys

import pytest
import torch

from semcom_fast.errors import MissingExtra
from semcom_fast.systems.sgd_jscc.link import (
    CHANNELS,
    LinkConfig,
    equalise,
    matched,
    noise_var_of_level,
    pack,
    send,
    unpack,
)
from semcom_fast.systems.sgd_jscc.receiver import (
    ReceiverConfig,
)
from semcom_fast.systems.sgd_jscc.report import RunSettings
from semcom_fast.systems.sgd_jscc.text import HashedBagOfWords, LocalClip, WordLlama

pytest.importorskip("skimage")  # edge maps and the bundled photographs


def _latents(count: int = 6, n: int = 64, k: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    f, o = torch.randn(count, n, generator=random), torch.randn(count, k, generator=random)
    f, o = (x / x.square().mean(1, keepdim=True).sqrt() for x in (f, o))
    return f.reshape(count, 4, 4, n // 16), o


# ------------------------------------------------------------------------------------------------ link


@pytest.mark.parametrize("mapping", ["separate", "concat"])
def test_pack_pairs_the_right_reals(mapping: str) -> None:
    f, o = torch.arange(8.0).reshape(1, 2, 2, 2), torch.arange(100.0, 104.0)[None]
    z = pack(f, o, mapping)[0]
    if mapping == "separate":
        assert z.tolist() == [0 + 4j, 1 + 5j, 2 + 6j, 3 + 7j, 100 + 102j, 101 + 103j]
    else:
        assert z.tolist() == [0 + 6j, 1 + 7j, 2 + 100j, 3 + 101j, 4 + 102j, 5 + 103j]
    back = unpack(torch.cat([z.real, z.imag])[None], 8, mapping)
    assert torch.equal(back[0], f.flatten(1)) and torch.equal(back[1], o)


def test_symbols_have_power_two_and_snr_is_per_real_pair() -> None:
    f, o = _latents(200)
    assert float(pack(f, o).abs().square().mean()) == pytest.approx(2, rel=1e-5)
    received = send(f, o, 3.0, LinkConfig(), seed=1)
    noise = received.y - pack(f, o)
    assert torch.allclose(received.noise_var, torch.full((200,), 2 * 10**-0.3))
    count = noise.numel()
    measured = float(noise.abs().square().mean())
    assert abs(measured / (2 * 10**-0.3) - 1) < 5 / math.sqrt(count)


@pytest.mark.parametrize("mapping", ["separate", "concat"])
@pytest.mark.parametrize("channel", CHANNELS)
def test_equalised_latent_follows_its_law(channel: str, mapping: str) -> None:
    f, o = _latents(400)
    link = LinkConfig(channel, mapping)
    received = send(f, o, 0.0, link, seed=3)
    got = equalise(received, link)
    d = got.d if got.d.shape[1] in (1, 64) else torch.cat([got.d, got.d], 1)
    assert got.d.shape[1] == {"awgn": 1, "slow": 1, "fast": 32 if mapping == "separate" else 64}[channel]
    noise = ((got.f.flatten(1) - (1 - d).sqrt() * f.flatten(1)) / d.sqrt()).double()
    bound = 5 * math.sqrt(2 / noise.numel())
    assert abs(float(noise.square().mean()) - 1) < bound and abs(float(noise.mean())) < bound
    assert abs(float((noise * f.flatten(1)).mean())) < bound
    if channel == "awgn":
        assert torch.allclose(d, torch.full_like(d, 0.5))
    else:  # E[1/(1 + |h|^2)] = e E1(1)
        levels = got.d.double()
        assert abs(float(levels.mean()) - 0.596347) < 5 * float(levels.std()) / math.sqrt(levels.numel())


def test_without_noise_everything_arrives() -> None:
    f, o = _latents()
    for channel in CHANNELS:
        link = LinkConfig(channel)
        got = equalise(send(f, o, 400.0, link, seed=0), link)
        assert torch.allclose(got.f, f, atol=1e-5) and torch.allclose(got.o, o, atol=1e-5)
        assert float(got.d.max()) < 1e-12


def test_draws_depend_on_item_and_seed_only() -> None:
    f, o = _latents()
    for link in (LinkConfig("fast"), LinkConfig("slow", edge_channel="own"), LinkConfig("awgn")):
        whole = send(f, o, 5.0, link, seed=7)
        part = send(f[4:], o[4:], 5.0, link, seed=7, first_item=4)
        assert torch.equal(whole.y[4:], part.y) and torch.equal(whole.h[4:], part.h)
        assert not torch.equal(whole.y, send(f, o, 5.0, link, seed=8).y)
        lower = send(f, o, -5.0, link, seed=7)  # the same draws at another SNR
        clean = whole.h * pack(f, o[:, :0] if link.edge_channel == "own" else o)
        assert torch.allclose((lower.y - clean) / 10**0.5, whole.y - clean, atol=1e-4)


def test_own_edge_channel_is_real_and_not_equalised() -> None:
    f, o = _latents(300)
    link = LinkConfig("awgn", edge_channel="own")
    received = send(f, o, 0.0, link, seed=1)
    assert received.y.shape == (300, 32) and received.edges is not None
    noise = (received.edges - o).double()
    assert abs(float(noise.square().mean()) - 1) < 5 * math.sqrt(2 / noise.numel())
    got = equalise(received, link)
    assert torch.equal(got.o, received.edges) and torch.allclose(got.edge_level, torch.full((300,), 0.5))


def test_estimated_noise_that_is_right_changes_nothing() -> None:
    f, o = _latents()
    for channel in CHANNELS:
        link = LinkConfig(channel)
        received = send(f, o, 2.0, link, seed=5)
        gamma = received.h.abs().square().mean(1) / (received.noise_var / 2)
        again = noise_var_of_level(1 / (1 + gamma), received.h)
        assert torch.allclose(again, received.noise_var, rtol=1e-5)
        a, b = equalise(received, link), equalise(received, link, again)
        assert torch.allclose(a.f, b.f, atol=1e-5) and torch.allclose(a.d, b.d, atol=1e-5)
        wrong = equalise(received, link, 4 * again)
        assert bool((wrong.d > a.d).all()) and float((wrong.d - a.d).mean()) > 0.05


def test_matched_latent_has_no_phase() -> None:
    f, o = _latents()
    link = LinkConfig("fast")
    received = send(f, o, 300.0, link, seed=2)
    size = received.h.abs()[:, :32]
    assert torch.allclose(matched(received, link).flatten(1), torch.cat([size, size], 1) * f.flatten(1), atol=1e-4)


def test_channel_renorm_gives_unit_rms() -> None:
    f, o = _latents()
    link = LinkConfig("awgn", channel_renorm=True)
    got = equalise(send(f, o, 0.0, link, seed=1), link)
    assert torch.allclose(got.f.flatten(1).square().mean(1), torch.ones(6), atol=1e-5)
    assert not torch.allclose(got.f, equalise(send(f, o, 0.0, LinkConfig(), seed=1), LinkConfig()).f, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinkConfig("rician"), "channel must be one of"),
        (lambda: LinkConfig(mapping="zigzag"), "mapping must be one of"),
        (lambda: LinkConfig(mapping="concat", edge_channel="own"), "edge_channel must be 'joint'"),
        (lambda: pack(torch.zeros(1, 3), torch.zeros(1, 2)), "pairs of reals"),
        (lambda: ReceiverConfig(denoiser="magic"), "denoiser must be"),
        (lambda: ReceiverConfig(snr="guessed"), "snr must be"),
        (lambda: ReceiverConfig(control_scale="ours"), "control_scale"),
        (lambda: ReceiverConfig(step_style="leaping"), "step_style"),
        (lambda: RunSettings(images=1), "--images"),
        (lambda: RunSettings(snrs_db=()), "at least one SNR"),
        (lambda: HashedBagOfWords(0), "dim must be"),
        (lambda: WordLlama(100), "64, 128 or 256"),
    ],
)
def test_wrong_settings(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------------------------------ text


def test_hashed_words_are_the_same_in_every_process() -> None:
    """Python's own hash() changes from process to process; places and signs are those of SHA-256, worked out apart."""
    places = {"coffee": (55, -1), "rocket": (5, 1), "mountain": (59, -1)}
    for word, (place, sign) in places.items():
        vector = HashedBagOfWords(64).encode([word])[0]
        assert float(vector[place]) == sign and float(vector.abs().sum()) == 1, (word, vector.nonzero(), vector.sum())


def test_hashed_words_forget_order_case_and_punctuation_only() -> None:
    encoder = HashedBagOfWords()
    a, b, c, empty = encoder.encode(["a red cup", "Cup, RED: a", "a blue cup", ""])
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert float(a.norm()) == pytest.approx(1) and float(empty.norm()) == 0
    assert encoder.encode([]).shape == (0, 64)
    with pytest.raises(TypeError, match="list of strings"):
        encoder.encode("a red cup")


def test_encoders_that_are_not_there_say_so(tmp_path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        LocalClip(tmp_path / "clip")
    for module in ("transformers", "wordllama"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"'transformers' is needed.*\[text\]"):
        LocalClip(tmp_path)
    with pytest.raises(MissingExtra, match=r"'wordllama' is needed.*\[text\]"):
        WordLlama()


# ------------------------------------------------------------------------------------------------ receiver
