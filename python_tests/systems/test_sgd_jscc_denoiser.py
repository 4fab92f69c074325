"""The diffusion transformer, its control branch and the folded predictor."""

import math

import pytest
import torch
from dit_cases import SHAPE, TINY, inputs, latents, pair, shaken
from sf_testing import same_bits

from semcom_fast.systems.sgd_jscc import blocks
from semcom_fast.systems.sgd_jscc.control import ControlBranch
from semcom_fast.systems.sgd_jscc.dit import DiT, DiTConfig
from semcom_fast.systems.sgd_jscc.predictor import GuidedPredictor
from semcom_fast.systems.sgd_jscc.prior import LowRankPrior


def _parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# ---- sizes


def test_totals_of_the_authors_networks():
    with torch.device("meta"):
        dit, control = DiT(DiTConfig.authors()), ControlBranch(DiTConfig.authors())
    assert _parameters(dit) == 77_578_672  # 77.6 M
    assert _parameters(control) == 48_638_720  # 48.6 M
    assert dit.inner[0].attention.table.shape == (964, 8)


@pytest.mark.parametrize("build, most", [(DiT, 4.4e6), (ControlBranch, 2.8e6)])
def test_small_networks_fit_their_files(build, most):
    state = build(DiTConfig.small(side_block=False)).state_dict()
    assert 2 * sum(value.numel() for value in state.values()) < most


def test_inert_parameters_are_all_that_sets_the_layouts_apart():
    lean, full = DiT(DiTConfig(**TINY, inert=False)), DiT(DiTConfig(**TINY))
    width, layers = TINY["width"], 2 * 2 + 1 + 1
    assert _parameters(full) - _parameters(lean) == layers * (2 * width * (width + 1) + 3 * TINY["heads"])
    g, beta, text, _ = inputs(dtype=torch.float32)
    shaken(full)
    state = full.state_dict()
    rows = lean.inner[0].attention.table.shape[0]
    lean.load_state_dict({k: state[k][:rows] if k.endswith("table") else state[k] for k in lean.state_dict()})
    same_bits(lean(g, beta, text), full(g, beta, text))


# ---- what a fresh network does


def test_new_denoiser_predicts_zero_or_the_linear_estimate():
    g, beta, text, _ = inputs(dtype=torch.float32)
    assert DiT(DiTConfig(**TINY))(g, beta, text).abs().max() == 0
    dit = DiT(DiTConfig(**TINY, output="residual", rank=20))
    torch.testing.assert_close(dit(g, beta, text), (1 - beta).sqrt()[:, None, None, None] * g)
    dit.prior.fit(latents())
    same_bits(dit(g, beta, text), dit.prior.estimate(g, beta))


def test_new_blocks_add_only_the_text():
    block = blocks.Block(32, 2, 64, 4, skip=False, inert=False)
    blocks.start([block])
    x, c, y = torch.randn(3, 16, 32), torch.randn(3, 32), torch.randn(3, 32)
    same_bits(block(x, block.modulation(c, y)), x + block.cross(y)[:, None])


def test_new_control_branch_changes_nothing():
    dit, _ = pair()
    g, beta, text, guide = inputs()
    branch = ControlBranch.of(dit)
    same_bits(dit(g, beta, text, branch.guided(guide)), dit(g, beta, text))
    for mine, theirs in zip(branch.inner.parameters(), dit.inner.parameters(), strict=True):
        same_bits(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr() and mine.requires_grad


def test_control_acts_in_proportion_to_its_scale_at_the_last_block():
    dit, branch = pair(decoder=1)
    for layer in branch.exits[:-1]:
        blocks.zero(layer)
    g, beta, text, guide = inputs()
    told = [block.modulation(dit.level_vector(beta), dit.text(text)) for block in dit.blocks()]

    def entering_decoder(scale):
        seen = []
        hook = dit.decoder[0].register_forward_hook(lambda module, given, out: seen.append(given[0]))
        steering = (
            None if scale is None else branch.guided(guide, scale).begin(dit, dit.level_vector(beta), dit.text(text))
        )
        dit.trunk(dit.embed(g), told, steering)
        hook.remove()
        return seen[0]

    plain, half, whole = (entering_decoder(scale) for scale in (None, 0.5, 1.0))
    assert (whole - plain).abs().max() > 1e-3
    torch.testing.assert_close(2 * (half - plain), whole - plain)
    each = entering_decoder(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(each, torch.stack((plain[0], half[1], whole[2])))


# ---- layers against their definitions


def test_cross_attention_to_one_token_is_its_value():
    cross = shaken(blocks.CrossAttention(32, 4, inert=True).double())
    x, y = torch.randn(3, 16, 32, dtype=torch.float64), torch.randn(3, 32, dtype=torch.float64)
    torch.testing.assert_close(cross.with_softmax(x, y), cross(y)[:, None].expand(-1, 16, -1), rtol=0, atol=1e-14)


def test_attention_is_its_definition():
    layer = shaken(blocks.Attention(32, 4, 3, inert=True).double())
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    out = torch.empty_like(x)
    q, k, v = layer.qkv(x).split(32, -1)
    for head in range(4):
        part = slice(8 * head, 8 * head + 8)
        for i in range(9):
            scores = [
                (q[:, i, part] * k[:, j, part]).sum(-1) / math.sqrt(8)
                + layer.table[(i // 3 - j // 3 + 2) * 5 + i % 3 - j % 3 + 2, head]
                for j in range(9)
            ]
            share = torch.stack(scores, -1).softmax(-1)
            out[:, i, part] = (share[..., None] * v[:, :, part]).sum(1)
    torch.testing.assert_close(layer(x, layer.bias()), layer.project(out))


def test_level_features_and_positions():
    features = blocks.level_features(torch.tensor([0.0, 0.25]))
    assert features.shape == (2, 256)
    same_bits(features[0], torch.cat((torch.ones(128), torch.zeros(128))).double())
    assert features[1, 0].item() == pytest.approx(0, abs=1e-15) and features[1, 128].item() == pytest.approx(1)
    assert features[1, 127].item() == pytest.approx(math.cos(2 * math.pi * 250), abs=1e-9)
    table = blocks.sincos_positions(16, 3)
    assert table.shape == (9, 16) and len({tuple(row) for row in table.tolist()}) == 9


@pytest.mark.parametrize("level_input", ["std", "variance"])
def test_what_the_network_hears_of_the_level(level_input):
    dit, _ = pair(level_input=level_input)
    beta = torch.tensor([0.25, 0.09], dtype=torch.float64)
    heard = beta.sqrt() if level_input == "std" else beta
    same_bits(dit.level_vector(beta), dit.level(heard))


def test_prior_is_the_wiener_estimate_of_its_model():
    drawn = latents(2000)
    prior = LowRankPrior(64, 64).double()
    prior.fit(drawn)
    mean, basis, variance = prior.mean, prior.basis, prior.variance
    beta = torch.tensor([0.3], dtype=torch.float64)
    g = torch.randn(1, *SHAPE, dtype=torch.float64)
    covariance = (basis * variance) @ basis.T
    gain = 0.7**0.5 * covariance @ torch.linalg.inv(0.7 * covariance + 0.3 * torch.eye(64, dtype=torch.float64))
    expected = mean + gain @ (g.flatten() - 0.7**0.5 * mean)
    # The basis is rounded to float16: orthonormal to about 64 * 2^-11 only.
    torch.testing.assert_close(prior.estimate(g, beta).flatten(), expected, rtol=0, atol=0.02)
    torch.testing.assert_close(prior.estimate(g, torch.zeros(1)), g, rtol=0, atol=0.02)


def test_prior_knows_its_error():
    drawn = latents(20_000)
    prior = LowRankPrior(64, 24)
    prior.fit(drawn)
    beta = torch.full((20_000,), 0.4)
    g = 0.6**0.5 * drawn + 0.4**0.5 * torch.randn(drawn.shape, generator=torch.Generator().manual_seed(3))
    error = (prior.estimate(g, beta) - drawn).square().mean()
    assert error.item() == pytest.approx(prior.error(beta[:1]).item(), rel=0.02)
    noise = prior.spread(torch.randn(g.shape, generator=torch.Generator().manual_seed(4)), beta)
    assert noise.square().mean().item() == pytest.approx(prior.error(beta[:1]).item(), rel=0.02)


# ---- folds


@pytest.mark.parametrize("output", ["x0", "residual"])
def test_folded_predictor_is_two_plain_calls(output):
    dit, branch = pair(output=output, rank=20)
    g, beta, text, guide = inputs()
    negative = torch.randn(TINY["text"], dtype=torch.float64)
    scale = torch.tensor([0.2, 1.0, 1.5], dtype=torch.float64)
    x0, x0_uncond = GuidedPredictor(dit, branch, text, negative, guide, scale)(g, beta)
    torch.testing.assert_close(x0, dit(g, beta, text, branch.guided(guide, scale)), rtol=0, atol=1e-12)
    torch.testing.assert_close(x0_uncond, dit(g, beta, negative.expand(3, -1)), rtol=0, atol=1e-12)
    assert (x0 - x0_uncond).abs().max() > 0.1 and not x0.requires_grad


def test_no_control_on_unconditional_rows_is_a_scale_of_zero():
    dit, branch = pair()
    g, beta, text, guide = inputs()
    _, x0_uncond = GuidedPredictor(dit, branch, text, None, guide)(g, beta)
    without = torch.zeros_like(text)
    same_bits(dit(g, beta, without, branch.guided(guide, 0.0)), dit(g, beta, without))
    torch.testing.assert_close(x0_uncond, dit(g, beta), rtol=0, atol=1e-12)


@pytest.mark.parametrize("given", ["text", "control", "both", "nothing"])
def test_guided_off_is_one_plain_call(given):
    dit, branch = pair()
    g, beta, text, guide = inputs()
    with_text, with_control = given in ("text", "both"), given in ("control", "both")
    arguments = {"text": text if with_text else None, "guided": False}
    if with_control:
        arguments |= {"control": branch, "guide": guide}
    x0 = GuidedPredictor(dit, **arguments)(g, beta)
    plain = dit(g, beta, arguments["text"], branch.guided(guide) if with_control else None)
    torch.testing.assert_close(x0, plain, rtol=0, atol=1e-12)


def test_nothing_to_be_guided_by_returns_one_prediction():
    dit, _ = pair()
    g, beta, _, _ = inputs()
    x0 = GuidedPredictor(dit)(g, beta)
    torch.testing.assert_close(x0, dit(g, beta), rtol=0, atol=1e-12)


def test_one_text_for_all_images():
    dit, _ = pair()
    g, beta, text, _ = inputs()
    x0, _ = GuidedPredictor(dit, text=text[:1])(g, beta)
    torch.testing.assert_close(x0, dit(g, beta, text[:1].expand(3, -1)), rtol=0, atol=1e-12)


# ---- masked tokens


def test_masking_nothing_adds_the_positions_alone():
    dit, _ = pair()
    g, beta, text, _ = inputs()
    everything = torch.arange(16).expand(3, -1)
    torch.testing.assert_close(dit(g, beta, text, kept=everything), dit(g, beta, text), rtol=0, atol=1e-12)


def test_masked_tokens_reach_the_inner_blocks_not_at_all():
    dit, _ = pair()
    _, beta, text, _ = inputs()
    told = [block.modulation(dit.level_vector(beta), dit.text(text)) for block in [*dit.blocks(), dit.side]]
    x = torch.randn(3, 16, 32, dtype=torch.float64)
    order = torch.stack([torch.randperm(16)[:9].sort().values for _ in range(3)])
    seen = []
    hook = dit.inner[-1].register_forward_hook(lambda module, given, out: seen.append(out))
    dit.trunk(x, told, kept=order)
    gone = torch.ones(3, 16, 1, dtype=torch.float64).scatter(1, order[..., None], 0)
    dit.trunk(x + 5 * gone, told, kept=order)
    hook.remove()
    assert seen[0].shape == (3, 9, 32)
    same_bits(seen[0], seen[1])


# ---- errors


def test_bad_shapes_are_refused():
    dit, branch = pair()
    g, beta, text, guide = inputs()
    for arguments, message in [
        ((g[:, :3], beta), r"latents must be \[B,4,4,4\]"),
        ((g[0], beta), "latents must be"),
        ((g, beta[:2]), r"beta_bar must be \[3\]"),
        ((g, beta, text[:, :5]), r"text must be \[3,6\]"),
        ((g, beta, text, branch.guided(guide[:2])), "guide must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            dit(*arguments)
    with pytest.raises(ValueError, match="no control branch"):
        dit(g, beta, text, branch.guided(guide), kept=torch.arange(9).expand(3, -1))
    with pytest.raises(ValueError, match="side_block=True"):
        DiT(DiTConfig(**TINY, side_block=False))(g.float(), beta.float(), kept=torch.arange(9).expand(3, -1))


def test_bad_guidance_is_refused():
    dit, branch = pair()
    g, beta, text, guide = inputs()
    for arguments, message in [
        ({"control": branch}, "go together"),
        ({"guide": guide}, "go together"),
        ({"text": text[0]}, r"text must be \[B,6\]"),
        ({"negative": text}, r"negative must be \[6\]"),
        ({"control": branch, "guide": guide[:, :3]}, "the guide must be"),
        ({"text": text, "control": branch, "guide": guide, "control_scale": torch.ones(3, 1)}, r"must be \[B\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            GuidedPredictor(dit, **arguments)
    with pytest.raises(ValueError, match="text is for 2 images, the latents are 3"):
        GuidedPredictor(dit, text=text[:2])(g, beta)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"width": 30}, "multiple of 4"),
        ({"heads": 3}, "multiple of 4 and of heads=3"),
        ({"output": "noise"}, "output must be"),
        ({"level_input": "snr"}, "level_input must be"),
        ({"decoder": 0}, "decoder must be at least 1"),
        ({"output": "residual", "rank": 65}, "rank must be at most 64"),
    ],
)
def test_bad_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DiTConfig(**{**TINY, **change})
