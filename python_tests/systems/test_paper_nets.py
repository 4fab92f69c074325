"""Networks of the paper's full size: published names, sizes and values, the denoiser made of them, and their loading."""

import hashlib
import json
import math

import pytest
import torch
from sf_testing import same_bits, within

import semcom_fast as sf
from semcom_fast.systems.blind_mimosc import paper_nets
from semcom_fast.systems.blind_mimosc.paper_ncsnpp import NCSNpp, NCSNppConfig, Resample
from semcom_fast.systems.blind_mimosc.paper_nets import (
    VEDenoiser,
    load_networks,
    measured_variance,
    ncsnpp_denoiser,
    random_networks,
    variance_table,
)
from semcom_fast.systems.blind_mimosc.paper_swin import SwinConfig, SwinDecoder, SwinEncoder, unwindow, windows

SCORE = NCSNppConfig(image_size=32, nf=16, ch_mult=(1, 2, 2), num_res_blocks=1)
SWIN = SwinConfig(image_size=32, embed_dims=(16, 32), depths=(2, 2), num_heads=(2, 4), window_size=4, latent=12)
LAYOUT = (16, 1, 24)


def _filled(network, std):
    """Weights that depend on the published names alone."""
    for i, (_, parameter) in enumerate(sorted(network.named_parameters())):
        parameter.data.copy_(std * sf.philox_normal(tuple(parameter.shape), seed=i))
    return network.requires_grad_(False).eval()


def _digest(network):
    lines = [f"{name} {tuple(value.shape)}" for name, value in sorted(network.state_dict().items())]
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# ---- shapes, names and values of the published networks


def test_full_sizes_are_the_published_ones():
    """Totals, and the digest of all names and shapes, of the modules published with the papers, built from the published
    configurations ffhq_256_ncsnpp_continuous and SwinJSCC "base" with modulators and C = 36.

    65.57 M agrees with the "65M parameters" that the authors of sgmse (github.com/sp-uhh/sgmse, issue 11) state for the
    256x256 NCSN++ configuration.
    """
    swin = SwinConfig(snr_db=10.0)
    with torch.device("meta"):
        found = {
            "ncsnpp": NCSNpp(),
            "encoder": SwinEncoder(swin, (192, 1, 24)),
            "decoder": SwinDecoder(swin, (192, 1, 24)),
        }
    totals = {name: sum(p.numel() for p in network.parameters()) for name, network in found.items()}
    assert totals == {"ncsnpp": 65_574_549, "encoder": 14_083_932, "decoder": 14_080_632}
    assert {name: _digest(network) for name, network in found.items()} == {
        "ncsnpp": (645, "214f55a6574f280d"),
        "encoder": (229, "b050ce0d316e2450"),
        "decoder": (228, "3bcd875569eba152"),
    }


def test_the_papers_codeword():
    """n = 256 x 256 x 3, m = 4608 and T = 24 give K = 192, 24 and 12."""
    assert SwinConfig().symbols == 4608
    assert [paper_nets.layout_of(4608, nt, 24)[0] for nt in (1, 8, 16)] == [192, 24, 12]
    with pytest.raises(ValueError, match="4608 symbols do not fill blocks"):
        paper_nets.layout_of(4608, 7, 24)


def test_ncsnpp_computes_what_the_published_module_does():
    """Outputs of the published module with the same weights and inputs, float32."""
    network = _filled(NCSNpp(SCORE), 0.1)
    x = sf.philox_normal((2, 3, 32, 32), seed=99) + 0.5
    sigma = torch.tensor([0.7, 3.0])
    out = network(x, sigma)
    want = torch.tensor([-0.02967102825641632, -0.0032624390441924334, 0.017884694039821625,
                         -0.1151173934340477, -0.08539962768554688])  # fmt: skip
    got = torch.cat((out[0, 0, 0, :3], out[1, 2, 17, 30:]))
    within(got, want, 2e-6 * torch.ones(5), "NCSN++ against the published module")  # 100 layers of unit roundoff 6e-8
    assert float(out.double().square().mean()) == pytest.approx(0.02125397273278377, rel=1e-5)
    torch.testing.assert_close(network.noise(x, sigma), out * sigma.view(2, 1, 1, 1))


@pytest.mark.parametrize(
    ("snr_db", "latent", "image"),
    [
        (None, (-0.7120885252952576, 1.4742276668548584, -0.7662086486816406, 0.9537872076034546, 0.7518484509073736),
         (0.553667426109314, -0.19984593987464905, 0.5665647983551025, -0.7856494784355164, 0.17868971422792815)),
        (10.0, (-0.6809723973274231, 0.39216792583465576, -0.7717984318733215, -0.4337863028049469, 0.32749943023575234),
         (0.5762345790863037, -0.16854360699653625, 0.5649492740631104, -0.7861372232437134, 0.17823419160082676)),
    ],
    ids=["plain", "modulated"],
)  # fmt: skip
def test_swin_computes_what_the_published_modules_do(snr_db, latent, image):
    """Outputs of the published encoder and decoder with the same weights and inputs, float32."""
    config = SwinConfig(**(vars(SWIN) | {"snr_db": 10.0}))  # the published modules always hold the modulators
    encoder, decoder = _filled(SwinEncoder(config, LAYOUT), 0.3), _filled(SwinDecoder(config, LAYOUT), 0.3)
    for part in (encoder, decoder):
        part.config = SwinConfig(**(vars(SWIN) | {"snr_db": snr_db}))
    kept = {}
    encoder.head_list.register_forward_hook(lambda module, given, out: kept.update(raw=out.flatten(1, 2)))
    x = encoder((2 * sf.philox_normal((2, 3, 32, 32), seed=98) - 1).unsqueeze(1))
    raw = kept["raw"]
    got = torch.stack((*raw[0, 0, :3], raw[1, 63, -1], raw.double().square().mean().float()))
    within(got, torch.tensor(latent), 5e-6 * torch.ones(5), "Swin encoder against the published module")
    halves = torch.complex(*raw.flatten(1).chunk(2, 1))
    want = halves * (384**0.5 / torch.linalg.vector_norm(halves, dim=1, keepdim=True))
    torch.testing.assert_close(x.flatten(1), want)
    codeword = torch.complex(*sf.philox_normal((2, 64, 12), seed=97).flatten(1).chunk(2, 1)).view(2, 1, *LAYOUT)
    out = 0.5 * (decoder(codeword)[:, 0] + 1)
    got = torch.stack((*out[0, 0, 0, :3], out[1, 2, 31, 31], out.double().square().mean().float()))
    within(got, torch.tensor(image), 5e-6 * torch.ones(5), "Swin decoder against the published module")


# ---- their parts


def test_resampling_keeps_constants_and_is_its_own_adjoint():
    """Inside the image the filter's taps sum to 1; growing is four times the transpose of shrinking."""
    shrink, grow = (Resample((1, 3, 3, 1), up) for up in (False, True))
    flat = torch.ones(1, 2, 8, 8)
    torch.testing.assert_close(shrink(flat)[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    torch.testing.assert_close(grow(flat)[..., 1:-1, 1:-1], torch.ones(1, 2, 14, 14))
    a, b = sf.philox_normal((1, 2, 8, 8), seed=1), sf.philox_normal((1, 2, 4, 4), seed=2)
    torch.testing.assert_close(4 * (shrink(a) * b).sum(), (a * grow(b)).sum())


def test_windows_come_apart_and_together():
    grid = torch.arange(2.0 * 8 * 8 * 3).view(2, 8, 8, 3)
    parts = windows(grid, 4)
    assert parts.shape == (2, 4, 16, 3)
    assert torch.equal(parts[0, 1], grid[0, :4, 4:].reshape(16, 3))
    assert torch.equal(unwindow(parts, 8), grid)


def test_shifted_windows_do_not_look_around_the_edge():
    """A corner's output follows its own window only: not the tokens at the far edge that a roll puts beside it."""
    block = _filled(SwinEncoder(SWIN, LAYOUT), 0.3).layers[0].blocks[1]
    assert block.shift == 2
    x = sf.philox_normal((1, 16, 16, 16), seed=3).requires_grad_(True)
    seen = torch.autograd.grad(block(x)[0, 0, 0].sum(), x)[0].abs().sum((0, 3))
    assert bool((seen[:2, :2] > 0).all())
    rest = seen.clone()
    rest[:2, :2] = 0
    assert float(rest.max()) == 0


def test_users_have_codes_of_their_own_and_the_decoder_knows_them():
    encoder = _filled(SwinEncoder(SWIN, LAYOUT, users=3), 0.3)
    d = sf.philox_normal((2, 1, 3, 32, 32), seed=4).expand(2, 3, 3, 32, 32)
    x = encoder(d)
    torch.testing.assert_close(x.abs().square().sum((2, 3, 4)), torch.full((2, 3), 384.0))
    first, second, third = x.flatten(2).unbind(1)
    for a, b in ((first, second), (first, third), (second, third)):
        assert float((a.conj() * b).sum(1).abs().max()) < 0.3 * 384
    decoder = _filled(SwinDecoder(SWIN, LAYOUT, users=3), 0.3)
    images = decoder(x)
    for user in (1, 2):  # all users sent the same image
        torch.testing.assert_close(images[:, user], images[:, 0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"progressive": "none"}, "only progressive = 'output_skip'"),
        ({"model": {"fir": False}}, "only fir = True"),
        ({"nf": 16, "width": 3}, "unknown width"),
        ({"image_size": 100}, "cannot be halved 6 times"),
        ({"fir_kernel": [1, 1]}, "4 taps"),
    ],
)
def test_other_score_networks_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        NCSNppConfig.from_dict(values)


def test_published_configuration_is_understood():
    published = {"data": {"image_size": 64, "centered": False, "random_flip": True},
                 "model": {"name": "ncsnpp", "nf": 32, "ch_mult": [1, 2], "fir": True, "ema_rate": 0.999}}  # fmt: skip
    assert NCSNppConfig.from_dict(published) == NCSNppConfig(image_size=64, nf=32, ch_mult=(1, 2))


# ---- the denoiser made of a score network


class _GaussianScore(torch.nn.Module):
    """Exact score of N(mu, v I), or sigma times it."""

    def __init__(self, mu, v, form):
        super().__init__()
        self.mu, self.form = mu, form
        self.v = torch.nn.Parameter(torch.tensor(v))

    def forward(self, x, sigma):
        score = (self.mu - x) / (self.v + sigma**2)
        return score * sigma if self.form == "noise" else score


@pytest.mark.parametrize("form", ["noise", "score"])
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("sigma", [0.01, 0.5, 100.0])
def test_a_score_network_becomes_the_posterior_mean(form, centered, sigma):
    """d ~ N(0.3, 0.2): mean 0.3 + 0.2/(0.2 + sigma^2) (x - 0.3). On [0,1] the source is N(0.65, 0.05).

    The mean of x + sigma F cancels to one part in 200 at sigma = 100: bound 8 roundings of x.
    """
    network = _GaussianScore(0.3, 0.2, form) if centered else _GaussianScore(0.65, 0.05, form)
    denoiser = VEDenoiser(network.requires_grad_(False), form=form, centered=centered)
    x = 0.3 + math.sqrt(0.2 + sigma**2) * sf.philox_normal((2, 2, 1, 8, 8), seed=5)
    level = torch.tensor(sigma)
    mean, var = denoiser(x, level)
    want = 0.3 + 0.2 / (0.2 + sigma**2) * (x.double() - 0.3)
    within(
        mean, want, 8 * 2.0**-24 * (x.abs().max() + 1) * torch.ones_like(want), f"denoiser of a score, sigma {sigma}"
    )
    assert var.shape == (2, 2) and float(var[0, 0]) == pytest.approx(0.2 * sigma**2 / (0.2 + sigma**2), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        same_bits(denoiser(x, level)[0], mean)


def test_half_precision_weights_leave_the_sum_in_single():
    """A network stored in bfloat16 changes F by its rounding, sigma times; x itself is not rounded."""
    network = _GaussianScore(0.3, 0.2, "noise").requires_grad_(False)
    exact = VEDenoiser(network)
    x = 0.3 + 0.2 * sf.philox_normal((1, 1, 1, 8, 8), seed=5)
    sigma = torch.tensor(0.01)
    want = exact(x, sigma)[0]
    coarse = VEDenoiser(_GaussianScore(0.3, 0.2, "noise").requires_grad_(False).bfloat16())(x, sigma)[0]
    assert coarse.dtype is torch.float32
    change = float((coarse - want).abs().max())
    assert 0 < change < 0.01 * 2.0**-6  # F is below 0.1: a few roundings of 2^-9, times sigma
    with pytest.raises(ValueError, match="'noise' or 'score'"):
        VEDenoiser(network, form="velocity")


def test_a_table_replaces_the_bound_on_the_variance():
    table = variance_table({"sigma": [0.01, 0.1, 1.0, 10.0], "mse": [5e-5, 2e-3, 0.05, 0.15]})
    for sigma, mse in ((0.01, 5e-5), (0.1, 2e-3), (1.0, 0.05), (10.0, 0.15), (1000.0, 0.15)):
        found = float(VEDenoiser(_GaussianScore(0.0, 0.2, "noise"), variance=table)(torch.zeros(1, 1, 4), sigma)[1])
        assert found == pytest.approx(mse, rel=0.05), sigma
    measured = measured_variance(VEDenoiser(_GaussianScore(0.0, 0.2, "noise").requires_grad_(False)),
                                 math.sqrt(0.2) * sf.philox_normal((16, 1, 16, 16), seed=8), points=5)  # fmt: skip
    for sigma, mse in zip(measured["sigma"], measured["mse"], strict=True):
        assert mse == pytest.approx(0.2 * sigma**2 / (0.2 + sigma**2), rel=0.1), sigma
    with pytest.raises(ValueError, match="rising"):
        variance_table({"sigma": [1.0, 0.5], "mse": [0.1, 0.1]})


# ---- loading


@pytest.fixture(scope="module")
def parts():
    return {
        "encoder": _filled(SwinEncoder(SWIN, LAYOUT), 0.3),
        "decoder": _filled(SwinDecoder(SWIN, LAYOUT), 0.3),
        "denoiser": _filled(NCSNpp(SCORE), 0.1),
    }


def _folder(tmp_path, parts, without=()):
    for name, network in parts.items():
        if name not in without:
            torch.save(network.state_dict(), tmp_path / f"{name}.pth")
    (tmp_path / "encoder.json").write_text(json.dumps({k: v for k, v in vars(SWIN).items()}))
    (tmp_path / "denoiser.json").write_text(json.dumps(vars(SCORE)))
    return tmp_path


def test_networks_load_as_they_were_saved(tmp_path, parts):
    nets = load_networks(_folder(tmp_path, parts), 1, 24, 1)
    d = sf.philox_normal((1, 1, 3, 32, 32), seed=6).clamp(-1, 1)
    same_bits(nets.encoder(d), parts["encoder"](d))
    same_bits(nets.decoder(nets.encoder(d)), parts["decoder"](parts["encoder"](d)))
    same_bits(nets.denoiser(d, torch.tensor(0.5))[0], ncsnpp_denoiser(parts["denoiser"])(d, torch.tensor(0.5))[0])
    assert nets.layout == LAYOUT and nets.image_shape == (3, 32, 32)
    assert any("no table being in denoiser.json" in note for note in nets.notes)
    assert not any(p.requires_grad for p in nets.denoiser.parameters()) and not nets.encoder.training


def test_other_ways_of_saving(tmp_path, parts):
    """safetensors, prefixes, derived buffers, a whole codec, unused modulators, a training checkpoint's average."""
    import safetensors.torch

    _folder(tmp_path, parts, without=parts)
    whole = {f"module.{part}.{k}": v for part in ("encoder", "decoder") for k, v in parts[part].state_dict().items()}
    whole["module.encoder.layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    whole["module.encoder.sm_list.0.weight"] = torch.zeros(3)
    torch.save({"state_dict": whole}, tmp_path / "encoder.pt")
    safetensors.torch.save_file(parts["decoder"].state_dict(), tmp_path / "decoder.safetensors")
    network = parts["denoiser"]
    names = [name for name, _ in network.named_parameters() if name != "all_modules.0.W"]
    last = {f"module.{k}": torch.zeros_like(v) if k in names else v for k, v in network.state_dict().items()}
    last["module.sigmas"] = torch.ones(2000)
    shadow = [network.state_dict()[name] for name in names]
    torch.save({"model": last, "ema": {"decay": 0.999, "shadow_params": shadow}, "step": 7}, tmp_path / "denoiser.pth")
    nets = load_networks(tmp_path, 1, 24, 1)
    for part in ("encoder", "decoder"):
        for (name, a), b in zip(
            getattr(nets, part).state_dict().items(), parts[part].state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), name
    for (name, a), b in zip(
        nets.denoiser.network.score.state_dict().items(), network.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_what_does_not_fit_is_named(tmp_path, parts):
    folder = _folder(tmp_path, parts)
    state = dict(parts["denoiser"].state_dict())
    del state["all_modules.1.bias"]
    state["all_modules.3.weight"] = torch.zeros(16, 4, 3, 3)
    state["all_modules.99.weight"] = torch.zeros(3)
    torch.save(state, folder / "denoiser.pth")
    with pytest.raises(ValueError, match=r"denoiser.pth does not fit NCSNpp.*missing: all_modules.1.bias; of the wrong "
                       r"shape: all_modules.3.weight \(16, 4, 3, 3\) in place of \(16, 3, 3, 3\); unexpected: "
                       r"all_modules.99.weight"):  # fmt: skip
        load_networks(folder, 1, 24, 1)
    torch.save({}, folder / "encoder.pth")
    with pytest.raises(ValueError, match=r"missing: patch_embed.proj.weight, .* and \d+ more"):
        load_networks(folder, 1, 24, 1)
    (folder / "encoder.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of the encoder .* encoder.safetensors, encoder.pth"):
        load_networks(folder, 1, 24, 1)
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_networks(tmp_path / "nowhere", 1, 24, 1)
    with pytest.raises(ValueError, match="384 symbols do not fill blocks"):
        load_networks(folder, 5, 24, 1)
    (folder / "denoiser.json").write_text(json.dumps(vars(SCORE) | {"image_size": 64}))
    with pytest.raises(ValueError, match="the codec is for 3x32x32 images, the denoiser for 3x64x64"):
        load_networks(folder, 1, 24, 1)


class _Code:
    def __reduce__(self):
        return print, ("unpickled code ran",)


def test_code_in_a_checkpoint_does_not_run(tmp_path, parts, capsys):
    folder = _folder(tmp_path, parts)
    torch.save({"state_dict": _Code()}, folder / "encoder.pth")
    with pytest.raises(ValueError, match="more than tensors"):
        load_networks(folder, 1, 24, 1)
    assert capsys.readouterr().out == ""


def test_random_networks_are_the_same_every_time():
    state = torch.get_rng_state()
    first, second = (random_networks("small", 8, 24, 2) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    d = sf.philox_normal((1, 2, 3, 32, 32), seed=6)
    same_bits(first.encoder(d), second.encoder(d))
    assert first.layout == (2, 8, 24)
    with pytest.raises(ValueError, match="unknown size 'huge'"):
        random_networks("huge", 1, 24, 1)
