"""Separate source and channel coding: bit budgets, codecs, the link without noise, and what counts as 0 dB."""

import stat
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from sf_testing import draw, within

from semcom_fast.baselines import sscc_codecs as codecs
from semcom_fast.baselines.sscc import MODES, PSNR_CAP, SSCC, Mode, estimate_gain
from semcom_fast.data import subcarrier_frequencies, tapped_channels
from semcom_fast.errors import BackendUnavailable, MissingExtra
from semcom_fast.links import psnr
from semcom_fast.links.mu_mimo_ofdm import ResourceGrid

PIL = pytest.importorskip("PIL.Image", reason="needs Pillow")


def scenes(count, side=32, seed=0):
    """Smooth colour images with an edge, [count,3,side,side] on [0,1]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    images = []
    for _ in range(count):
        a, b, c = rng.uniform(-1, 1, (3, 3, 1, 1))
        image = 0.5 + 0.25 * (a * rows + b * columns) + 0.15 * c * (rows + columns > rng.uniform(0.6, 1.4))
        images.append(image)
    return torch.tensor(np.stack(images), dtype=torch.float32).clamp(0, 1)


def channels(grid, batch, seed=1):
    cir = tapped_channels(batch, grid.users, 4, seed=seed, delay_spread=50e-9, paths=8)
    return cir.to_ofdm(subcarrier_frequencies(grid.subcarriers, 15e3))


@pytest.fixture(scope="module")
def link():
    pytest.importorskip("sionna.phy", reason="needs the extra sionna")
    return SSCC(ResourceGrid(32), MODES[0])


def test_bit_budgets_of_all_modes():
    """B_max = floor(12 Nf m r) for 4 and 16QAM at rates 1/2 and 2/3."""
    bits = {nf: [mode.budget_bits(ResourceGrid(nf)) for mode in MODES] for nf in (32, 64, 128)}
    assert bits == {32: [384, 512, 768, 1024], 64: [768, 1024, 1536, 2048], 128: [1536, 2048, 3072, 4096]}
    assert [mode.coded_bits(ResourceGrid(128)) for mode in MODES] == [3072, 3072, 6144, 6144]
    # 12*35*2/3 bits: an exact fraction has no rounding to be unlucky with
    assert Mode(1, Fraction(2, 3)).budget_bits(ResourceGrid(35)) == 280
    assert Mode(2, Fraction(3, 7)).budget_bits(ResourceGrid(32)) == 329
    assert str(MODES[3]) == "16QAM r=2/3"


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("subcarriers", [32, 64, 128])
def test_every_mode_has_a_code(subcarriers, mode):
    pytest.importorskip("sionna.phy", reason="needs the extra sionna")
    link = SSCC(ResourceGrid(subcarriers), mode)
    assert link.budget_bytes == mode.budget_bits(link.grid) // 8
    bits = (draw(2, mode.budget_bits(link.grid), dtype=torch.float32) > 0).float()
    coded = link._encoder(bits)
    assert coded.shape == (2, mode.coded_bits(link.grid))
    assert torch.equal(link._decoder(8 * (2 * coded - 1)), bits)


@pytest.mark.parametrize("codec", [codecs.PayloadJpeg(), codecs.WebP()], ids=lambda c: c.name)
def test_zero_padding_changes_nothing(codec):
    for image in scenes(6):
        pixels = codecs.to_pixels(image)
        for quality in (codec.qualities[1], 50, codec.qualities[-1]):
            payload = codec.encode(pixels, quality)
            shown = codec.decode(payload, (32, 32))
            assert shown.shape == (32, 32, 3) and shown.dtype == np.uint8
            assert np.array_equal(codec.decode(payload + bytes(100), (32, 32)), shown)


def test_payload_jpeg_is_the_jpeg_file_without_its_header():
    import io

    codec, pixels = codecs.PayloadJpeg(), codecs.to_pixels(scenes(1, seed=3)[0])
    for quality in (5, 50, 90):
        buffer = io.BytesIO()
        PIL.fromarray(pixels).save(buffer, format="JPEG", quality=quality, subsampling="4:2:0")
        payload = codec.encode(pixels, quality)
        assert payload[0] == quality and len(payload) < len(buffer.getvalue()) - 500
        whole = np.array(PIL.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
        assert np.array_equal(codec.decode(payload, (32, 32)), whole)


def test_best_fit_is_the_best_that_fits():
    codec, pixels = codecs.PayloadJpeg(), codecs.to_pixels(scenes(1, seed=4)[0])
    sizes = {quality: len(codec.encode(pixels, quality)) for quality in codec.qualities}
    for budget in (sizes[1], 30, 48, 96):
        payload = codecs.best_fit(codec, pixels, budget)
        assert payload[0] == max(quality for quality, size in sizes.items() if size <= budget)
    assert codecs.best_fit(codec, pixels, min(sizes.values()) - 1) is None


def test_bpg_calls_the_programs(tmp_path, monkeypatch):
    """Stand-ins on PATH that keep PNG files check the calls; without programs the error says what is needed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="bpgenc"):
        codecs.Bpg()
    body = (
        f"#!{sys.executable}\nimport shutil, sys\n"
        "out = sys.argv[sys.argv.index('-o') + 1]\n"
        "if 'enc' in sys.argv[0] and int(sys.argv[sys.argv.index('-q') + 1]) > 51: sys.exit('bad q')\n"
        "shutil.copyfile(sys.argv[-1], out)\n"
    )
    for name in ("bpgenc", "bpgdec"):
        (tmp_path / name).write_text(body)
        (tmp_path / name).chmod(stat.S_IRWXU)
    codec, pixels = codecs.Bpg(), codecs.to_pixels(scenes(1)[0])
    payload = codec.encode(pixels, codec.qualities[0])
    assert np.array_equal(codec.decode(payload, (32, 32)), pixels)
    with pytest.raises(RuntimeError, match="bad q"):
        codec.encode(pixels, -52)


def test_images_keep_their_pixels():
    image = torch.arange(3 * 4 * 4).reshape(3, 4, 4) / 255
    assert torch.equal(codecs.from_pixels(codecs.to_pixels(image)), image)
    assert codecs.to_pixels(torch.tensor([-0.2, 0.5, 1.7]).reshape(3, 1, 1)).ravel().tolist() == [0, 128, 255]


def test_without_noise_only_the_codec_matters(link):
    images = scenes(8).reshape(2, 4, 3, 32, 32)
    result = link.run(images, channels(link.grid, 2), 1e-6, seed=3)
    assert not result.block_error.any() and not result.over_budget.any()
    assert torch.equal(result.psnr, result.source_psnr) and float(result.psnr.min()) > 20
    for i, image in enumerate(images.flatten(0, 1)):
        codec = codecs.PayloadJpeg()
        payload = codecs.best_fit(codec, codecs.to_pixels(image), 48)
        shown = codecs.from_pixels(codec.decode(payload, (32, 32)))
        assert torch.equal(result.images.flatten(0, 1)[i], shown)
        assert result.psnr.flatten()[i] == psnr(image[None], shown[None], low=0, high=1, cap_db=PSNR_CAP)


def test_over_budget_is_zero_decibels(link):
    """Noise does not fit into 48 bytes at any quality; the user beside it is not affected."""
    images = scenes(4).reshape(1, 4, 3, 32, 32)
    images[0, 2] = (draw(3, 32, 32, dtype=torch.float32) > 0).float()
    result = link.run(images, channels(link.grid, 1), 1e-6, seed=3)
    assert result.over_budget.tolist() == [[False, False, True, False]]
    assert result.psnr[0, 2] == 0 and result.source_psnr[0, 2] == 0 and not result.images[0, 2].any()
    assert float(result.psnr[0, [0, 1, 3]].min()) > 20 and not result.block_error.any()


def test_a_block_error_is_zero_decibels(link):
    images = scenes(8).reshape(2, 4, 3, 32, 32)
    result = link.run(images, channels(link.grid, 2), 10.0, seed=3)  # SNR -10 dB
    assert result.block_error.all() and not result.psnr.any() and not result.images.any()
    assert float(result.source_psnr.min()) > 20


def test_more_noise_more_block_errors(link):
    h = channels(link.grid, 16)
    bits = (draw(16, 4, 384, dtype=torch.float32) > 0).float()

    def errors(snr_db):
        decoded = link.transmit_bits(bits, h, 10 ** (-snr_db / 10), seed=1)
        return float((decoded != bits).any(-1).float().mean())

    assert errors(-6) > errors(1) > errors(20) and errors(20) <= 1 / 64 and errors(-6) > 0.9


def test_wrong_channel_knowledge_costs_blocks(link):
    """The base station precodes for h + e: no error is the plain link bit for bit, a large one loses what SNR cannot buy."""
    h = channels(link.grid, 16)
    bits = (draw(16, 4, 384, dtype=torch.float32) > 0).float()

    def sent(**more):
        return link.transmit_bits(bits, h, 1e-2, seed=1, **more)

    assert torch.equal(sent(csi_error_var=0.0), sent())
    lost = [float((sent(csi_error_var=v) != bits).any(-1).float().mean()) for v in (0.0, 0.05, 1.0)]
    assert lost[0] < 0.05 and lost[0] <= lost[1] < lost[2] and lost[2] > 0.5, lost
    with pytest.raises(ValueError, match="csi_error_var must not be negative"):
        sent(csi_error_var=-0.1)


def test_a_split_batch_gives_the_same(link):
    images, h = scenes(8).reshape(2, 4, 3, 32, 32), channels(link.grid, 2)
    noise_var = torch.tensor([0.5, 1.0])
    whole = link.run(images, h, noise_var, seed=3)
    parts = [link.run(images[i : i + 1], h[i : i + 1], noise_var[i : i + 1], seed=3, first_item=i) for i in (0, 1)]
    assert torch.equal(whole.psnr, torch.cat([p.psnr for p in parts]))


def test_moving_users(link):
    """A channel that changes over the slot is followed from pilot symbol to pilot symbol."""
    h = channels(link.grid, 4)
    turn = torch.polar(torch.ones(14), torch.linspace(0, 1.0, 14)).reshape(1, 1, 14, 1, 1)
    bits = (draw(4, 4, 384, dtype=torch.float32) > 0).float()
    assert torch.equal(link.transmit_bits(bits, h * turn, 1e-4, seed=1), bits)


@pytest.mark.parametrize("static", [True, False])
def test_gain_estimates_follow_lines(static):
    """Gains that are linear between pilots come back exactly where pilots surround them; noise is averaged over."""
    grid = ResourceGrid(16)
    f, t = torch.arange(16.0)[:, None, None], torch.zeros(1, 14, 1) if static else torch.arange(14.0)[:, None]
    slope = torch.tensor([0.1, 0.2 + 0.1j, -0.3j, 0.05])
    gain = 1 + slope * f + (0 if static else 0.2j * t)
    gain = gain.expand(16, 14, 4)[None]
    y = gain * grid.pilots
    got = estimate_gain(grid, y, static=static)
    inside = slice(3, 13), slice(0, 14) if static else slice(2, 12)
    within(got[0, inside[0], inside[1]], gain[0, inside[0], inside[1]], 5e-6, f"gain estimates, static={static}")
    edge = got[0, 15, 5, 0]  # held from user 0's last pilot, subcarrier 12
    within(edge, gain[0, 12, 5, 0], 5e-6, f"gain held at the edge, static={static}")


def test_interference_is_measured_on_empty_pilots(link):
    gains = draw(1, 4, 4, dtype=torch.complex64)  # [1, user k, stream j]
    y = torch.einsum("bkj,ftj->bftk", gains, link.grid.pilots)
    power = gains.abs().square()
    want = power.sum(2) - power.diagonal(dim1=1, dim2=2)
    # 32 subcarriers: every other user is heard on the same number of pilots
    within(link._interference(y, torch.zeros(1, 1)), want, 1e-5 * float(want.max()), "interference power")


def test_scrambling_evens_out_padding(link):
    """An empty payload is sent with the power of any other."""
    coded = (link._encoder(torch.zeros(1, 384)) - link._scrambling).abs()
    assert abs(float(coded.mean()) - 0.5) < 0.07  # four standard deviations of 768 fair bits


def test_errors_name_what_is_wrong(monkeypatch):
    with pytest.raises(ValueError, match="jpeg, webp, bpg"):
        SSCC(ResourceGrid(32), MODES[0], "gif")
    monkeypatch.setitem(sys.modules, "sionna.phy.fec.ldpc", None)
    with pytest.raises(MissingExtra, match=r"semcom-fast\[sionna\]"):
        SSCC(ResourceGrid(32), MODES[0])
