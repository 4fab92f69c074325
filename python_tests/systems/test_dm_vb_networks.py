"""The noise predictor's sizes, what the loop's experts make of it, and the best possible losses."""

import json

import numpy as np
import pytest
import torch
from sf_testing import same_bits, within

from semcom_fast import weights
from semcom_fast.systems.dm_vb import bank as banks
from semcom_fast.systems.dm_vb.bank import CNNExpert, GroupedExperts, prefer_grouped
from semcom_fast.systems.dm_vb.channels import PROFILES, ChannelSet
from semcom_fast.systems.dm_vb.loss import complex_noise, measured_loss
from semcom_fast.systems.dm_vb.network import (
    WIDE,
    CNNConfig,
    DenoiserCNN,
    step_embedding,
    to_angular,
    to_complex,
    to_planes,
    to_spatial,
)
from semcom_fast.systems.dm_vb.networks import load_experts, load_network, load_single
from semcom_fast.systems.dm_vb.train import alpha_bars
from semcom_fast.systems.dm_vb.train_settings import weights_name

SMALL = {"widths": (2, 6, 8, 5, 4, 2), "steps": 20}


def _network(seed=0, **changes):
    """Weights of ordinary size everywhere, the affine of the step included."""
    torch.manual_seed(seed)
    network = DenoiserCNN(CNNConfig(**{**SMALL, **changes}))
    torch.nn.init.normal_(network.step_affine.weight, std=0.3)
    return network.requires_grad_(False).eval()


def _channels(*shape, seed=1):
    return complex_noise(shape, torch.Generator().manual_seed(seed))


# ---- sizes


def test_the_papers_network_is_counted():
    network = DenoiserCNN()
    by_layer = [sum(p.numel() for p in layer.parameters()) for layer in network.layers]
    assert by_layer == [608, 18_496, 24_811, 8_536, 398]
    assert sum(p.numel() for p in network.step_affine.parameters()) == 2_176
    assert sum(p.numel() for p in network.parameters()) == 55_025
    assert sum(value.numel() for value in network.state_dict().values()) == 55_025
    assert network.config.macs_per_entry == 52_686 and network.config.flops() == 107_900_928
    assert network.config.reach == (5, 5)


def test_the_width_rule_gives_the_published_sizes():
    assert CNNConfig.scaled(64) == CNNConfig()
    single = CNNConfig.scaled(130)
    assert single.widths == (2, 65, 130, 87, 44, 2) and single.flops() == 438_792_192
    assert sum(p.numel() for p in DenoiserCNN(single).parameters()) == 219_002


def test_flops_are_those_of_the_convolutions():
    """Counted on a run, from what every convolution really wrote."""
    network, counted = DenoiserCNN(), []
    for layer in network.layers:
        layer.register_forward_hook(lambda layer, _, out: counted.append(2 * out.numel() * layer.weight[0].numel()))
    with torch.no_grad():
        network(torch.zeros(1, 2, 16, 64), torch.tensor([3]))
    assert sum(counted) == CNNConfig().flops() and len(counted) == 5


def test_wide_spacing_costs_nothing_and_sees_more():
    plain, wide = CNNConfig(), CNNConfig(dilations=WIDE)
    assert wide.flops() == plain.flops() and wide.reach == (12, 28)
    assert CNNConfig(dilations=(1, 2, 4, 2, 1)).reach == (10, 10)
    for config in (plain, wide):
        rows, columns = config.reach
        network = DenoiserCNN(config).double()
        x = torch.zeros(1, 2, 40, 80, dtype=torch.float64, requires_grad=True)
        network(x, torch.tensor([5]))[0, 0, 20, 40].backward()
        touched = x.grad[0].abs().amax(0).nonzero()
        assert touched.amin(0).tolist() == [20 - rows, 40 - columns], config
        assert touched.amax(0).tolist() == [20 + rows, 40 + columns], config


@pytest.mark.parametrize(
    "change, message",
    [
        ({"widths": (2, 8, 3)}, "start and end with 2"),
        ({"widths": (2, 2)}, "start and end with 2"),
        ({"split": 5}, "on either side of the affine"),
        ({"embedding": 7}, "embedding must be even"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"domain": "beam"}, "unknown domain 'beam': choose one of spatial, angular"),
        ({"dilations": (1, 2)}, "dilations must be 5 positive spacings"),
        ({"dilations": (1, 1, 0, 1, 1)}, "dilations must be 5 positive spacings"),
    ],
)
def test_bad_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        CNNConfig(**change)
    with pytest.raises(ValueError, match="width must be at least 2"):
        CNNConfig.scaled(1)


# ---- what it computes


def test_step_embedding_is_sines_then_cosines_of_the_index():
    table = step_embedding(100, 16).double().numpy()
    index, rates = np.arange(100)[:, None], 10_000.0 ** (-np.arange(8) / 7)
    np.testing.assert_allclose(table, np.concatenate([np.sin(index * rates), np.cos(index * rates)], 1), atol=1e-6)


def test_the_affine_sits_between_second_and_third_convolution():
    network, x = _network(), torch.randn(3, 2, 6, 9)
    t = torch.tensor([1, 7, 20])
    conv = [lambda v, layer=layer: torch.nn.functional.conv2d(v, layer.weight, layer.bias, padding=1)
            for layer in network.layers]  # fmt: skip
    s, b = (network.step_affine(step_embedding(20, 16)[t - 1])).chunk(2, 1)
    hidden = conv[1](conv[0](x).relu())
    hidden = hidden + s[:, :, None, None] * hidden + b[:, :, None, None]
    expected = conv[4](conv[3](conv[2](hidden).relu()).relu())
    torch.testing.assert_close(network(x, t), expected, atol=1e-5, rtol=1e-5)


def test_planes_are_a_view_of_the_complex_memory():
    h = _channels(2, 4, 5)
    planes = to_planes(h)
    assert planes.shape == (2, 2, 4, 5) and planes.is_contiguous(memory_format=torch.channels_last)
    assert planes.data_ptr() == h.data_ptr() and to_complex(planes).data_ptr() == h.data_ptr()
    same_bits(planes[:, 0], h.real.contiguous())
    same_bits(planes[:, 1], h.imag.contiguous())


def test_angular_domain_is_the_unitary_dft_of_both_sides():
    h = _channels(2, 4, 6).to(torch.complex128)
    dft = [torch.fft.fft(torch.eye(n, dtype=torch.complex128), norm="ortho") for n in (4, 6)]
    within(to_angular(h), dft[0].mH @ h @ dft[1], 1e-14, "F_r^H H F_t")
    within(to_spatial(to_angular(h)), h, 1e-14, "and back")
    network, same = _network(domain="angular"), _network()
    h, t = h.to(torch.complex64), torch.tensor([4, 9])
    inner = same(to_planes(to_angular(h)), t)
    within(network(to_planes(h), t), to_planes(to_spatial(to_complex(inner))), 1e-5, "the network between the two")


def test_angular_equals_spatial_for_a_predictor_that_does_not_mind():
    """1x1 weights on the centre tap make the network act on entries; a linear one commutes with the DFT."""
    network = _network()
    for number, layer in enumerate(network.layers):
        layer.weight.mul_(0)
        layer.bias.zero_()
        for channel in range(2):  # x and -x, each through its ReLU, so that x = relu(x) - relu(-x) survives
            if number in (0, 2, 3):
                layer.weight[2 * channel, channel, 1, 1] = 1
                layer.weight[2 * channel + 1, channel, 1, 1] = -1
            if number in (1, 4):
                layer.weight[channel, 2 * channel, 1, 1] = 1
                layer.weight[channel, 2 * channel + 1, 1, 1] = -1
        if number == 3:
            layer.weight.mul_(0)
            for unit in range(4):
                layer.weight[unit, unit, 1, 1] = 1
    network.step_affine.weight.zero_()
    network.step_affine.bias.zero_()
    angular = DenoiserCNN(CNNConfig(**SMALL, domain="angular"))
    angular.load_state_dict(network.state_dict())
    x, t = to_planes(_channels(2, 16, 64)), torch.tensor([3, 3])
    within(network(x, t), x, 1e-6, "the identity")
    within(angular(x, t), network(x, t), 1e-5, "angular against spatial")


# ---- experts of the loop


@pytest.mark.parametrize("changes", [{}, {"dilations": (1, 2, (2, 3), 1, 1)}, {"domain": "angular"}, {"split": 1}])
def test_folded_affine_changes_nothing(changes):
    network = _network(**changes)
    expert, h = CNNExpert(network), _channels(5, 16, 64)
    for t in (1, 2, 11, 20):
        want = to_complex(network(to_planes(h), torch.full((5,), t)))
        got = expert(h, t)
        assert got.dtype == h.dtype and got.shape == h.shape
        scale = float(want.abs().max())
        within(got, want, 5e-6 * scale, f"folded at t = {t}")
    assert float((expert(h, 1) - expert(h, 20)).abs().max()) > 1e-3  # the step counts


def test_default_network_folds_to_five_millionths():
    torch.manual_seed(3)
    network = DenoiserCNN().requires_grad_(False)
    h = _channels(3, 16, 64)
    for t in (1, 100):
        want = to_complex(network(to_planes(h), torch.full((3,), t)))
        within(CNNExpert(network)(h, t), want, 5e-6 * float(want.abs().max()), f"t = {t}")


def test_an_expert_is_a_snapshot_without_gradients():
    network, h = _network(), _channels(2, 8, 8)
    expert = CNNExpert(network)
    before = expert(h, 3)
    network.layers[0].weight.add_(1.0)
    same_bits(expert(h, 3), before)
    assert not expert(h.requires_grad_(), 3).requires_grad
    assert not any(True for _ in expert.parameters()) and not expert.state_dict()


def test_batch_split_strides_conjugates_and_precisions():
    expert, h = CNNExpert(_network()), _channels(6, 16, 64)
    whole = expert(h, 5)
    within(torch.cat([expert(h[:2], 5), expert(h[2:], 5)]), whole, 1e-6, "split")
    within(expert(h.transpose(1, 2).contiguous().transpose(1, 2), 5), whole, 1e-6, "strided")
    within(expert(h.conj().resolve_conj().conj(), 5), whole, 1e-6, "lazily conjugated")
    double = expert(h.to(torch.complex128), 5)
    assert double.dtype == torch.complex128
    within(double, whole.to(torch.complex128), 1e-6, "complex128 state")
    assert expert(h[:0], 5).shape == (0, 16, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_rows_and_the_fused_relu_change_nothing(dtype, monkeypatch):
    """40 rows go in blocks of 16, 16 and 8; without oneDNN's fused kernel the plain convolution gives the same."""
    experts = [GroupedExperts([_network(k) for k in range(2)], dtype, grouped=choice) for choice in (True, False)]
    h, t = _channels(40, 16, 64), 5
    fused = [expert(h, t) for expert in experts]
    monkeypatch.setattr(banks, "_fuses", lambda dtype: False)
    monkeypatch.setattr(banks, "_CPU_ROWS", 40)
    bound = (1e-6 if dtype == torch.float32 else 2e-2) * float(fused[0].abs().max())
    for expert, want in zip(experts, fused, strict=True):
        within(expert(h, t), want, bound, f"plain convolutions, {dtype}")
        single = torch.stack([network(h[35:36], t)[0] for network in expert.experts])
        within(single, want[35], bound, f"a row of the last block, {dtype}")


def test_bfloat16_is_close_and_really_bfloat16():
    network, h = _network(), _channels(4, 16, 64)
    exact, rough = CNNExpert(network)(h, 5), CNNExpert(network, torch.bfloat16)(h, 5)
    error = float((rough - exact).norm() / exact.norm())
    assert rough.dtype == torch.complex64 and 1e-4 < error < 2e-2, error
    with pytest.raises(TypeError, match="float32 or bfloat16"):
        CNNExpert(network, torch.float16)


@pytest.mark.parametrize("changes", [{}, {"dilations": (1, 2, (2, 3), 1, 1)}, {"domain": "angular"}])
def test_grouped_equals_separate(changes):
    networks = [_network(seed, **changes) for seed in range(3)]
    one, many = (GroupedExperts(networks, grouped=choice) for choice in (True, False))
    h, own = _channels(4, 16, 64), _channels(4, 3, 16, 64, seed=2)
    for t in (1, 13):
        assert one(h, t).shape == (4, 3, 16, 64)
        within(one(h, t), many(h, t), 5e-6 * float(many(h, t).abs().max()), f"same rows, t = {t}")
        within(one.each(own, t), many.each(own, t), 5e-6 * float(many.each(own, t).abs().max()), f"own rows, t = {t}")
    assert float((many(h, 1)[:, 0] - many(h, 1)[:, 1]).abs().max()) > 1e-3
    for k in range(3):
        same_bits(many(h, 7)[:, k], many[k](h, 7))
        same_bits(many.each(own, 7)[:, k], many[k](own[:, k], 7))
    assert len(one) == 3 and one(h[:0], 3).shape == (0, 3, 16, 64)


def test_the_rule_chooses_by_batch_and_device(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert prefer_grouped(1, cpu) and not prefer_grouped(64, cpu)
    assert prefer_grouped(1, cuda) and not prefer_grouped(4096, cuda)
    bank = GroupedExperts([_network(seed) for seed in range(2)])
    used = []
    inner = banks._Folded.forward
    monkeypatch.setattr(banks._Folded, "forward", lambda self, *a: used.append(self.groups) or inner(self, *a))
    bank(_channels(1, 8, 8), 3)
    bank(_channels(64, 8, 8), 3)
    assert used == [2, 1, 1]
    alone = GroupedExperts([_network()])
    assert alone(_channels(1, 8, 8), 3).shape == (1, 1, 8, 8) and used[-1] == 1


def test_bad_calls_of_experts_are_refused():
    expert, h = CNNExpert(_network()), _channels(2, 8, 8)
    for t in (0, 21):
        with pytest.raises(ValueError, match=rf"steps 1..20, got t = {t}"):
            expert(h, t)
    with pytest.raises(TypeError, match="takes complex channels"):
        expert(h.real, 3)
    with pytest.raises(ValueError, match="3 axes"):
        expert(h[0], 3)
    with pytest.raises(ValueError, match="at least one expert"):
        GroupedExperts([])
    with pytest.raises(ValueError, match="expert 1 is built as"):
        GroupedExperts([_network(), _network(steps=10)])
    with pytest.raises(ValueError, match="2 experts need as many states"):
        GroupedExperts([_network(), _network(1)]).each(_channels(2, 3, 8, 8), 3)


# ---- stored weights


@pytest.mark.parametrize("profile", PROFILES)
def test_shipped_experts_come_within_ten_per_cent_of_the_best_possible_loss(profile):
    """The card says so of all steps; new channels confirm it at a few of the second range."""
    network, card = load_network(weights_name(profile))
    row = card["metrics"][profile]
    assert row["loss"]["all t"] <= 1.1 * row["best"]["all t"], row
    assert row["loss"]["all t"] < row["best_11x11_window"]["all t"]  # what no 11x11 window could reach
    assert card["parameters"] == 55_025 == sum(p.numel() for p in network.parameters())
    h = ChannelSet(profile).draw(64, seed=77)
    loss = float(measured_loss(network, h, alpha_bars(100), range(12, 31, 4)).mean())
    assert 0.96 < loss / row["best"]["t 11..30"] < 1.12, (loss, row)


@pytest.mark.parametrize("profile", PROFILES)
def test_shipped_rotated_experts_beat_the_linear_predictor(profile):
    """On the rotated set, where channels are far from Gaussian; new channels confirm the card."""
    network, card = load_network(weights_name(profile, "rotated"))
    row = card["metrics"][profile]
    assert row["loss"]["all t"] < 0.95 * row["linear"]["all t"], row
    h = ChannelSet(profile, "rotated").draw(256, seed=77)
    loss = float(measured_loss(network, h, alpha_bars(100), range(12, 31, 4)).mean())
    assert 0.85 < loss / row["loss"]["t 11..30"] < 1.15, (loss, row)


def _store(folder, name, config=None, **card):
    network = _network()
    weights.save(name, folder, network.state_dict(), {"name": name, "config": config or SMALL, "scarce": None, **card})
    return network


def test_stored_networks_come_back_ready_to_use(tmp_path):
    kept = [_store(tmp_path, weights_name(f"CDL-{letter}", "los")) for letter in "ABCD"]
    loaded = load_experts("los", folder=tmp_path)
    for mine, theirs in zip(loaded, kept, strict=True):
        same_bits(mine.layers[1].weight, theirs.layers[1].weight)
        assert not mine.training and not any(p.requires_grad for p in mine.parameters())
    assert loaded[0].config == kept[0].config
    _store(tmp_path, "dm_vb_scarce_single", scarce="CDL-D")
    assert isinstance(load_single(scarce="CDL-D", folder=tmp_path), DenoiserCNN)
    with pytest.raises(ValueError, match="trained with CDL-D scarce, not CDL-A"):
        load_single(scarce="CDL-A", folder=tmp_path)


def test_missing_and_misfit_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights 'dm_vb_rotated_cdl_a'"):
        load_experts("rotated", folder=tmp_path)
    _store(tmp_path, "dm_vb_fixed_cdl_a", config={**SMALL, "widths": (2, 6, 9, 5, 4, 2)})
    with pytest.raises(ValueError, match="do not have the layers that their card describes"):
        load_network("dm_vb_fixed_cdl_a", tmp_path)


def test_names_tell_the_settings_apart():
    assert weights_name("CDL-A") == "dm_vb_fixed_cdl_a"
    assert weights_name("CDL-B", "rotated", "vertical") == "dm_vb_rotated_vertical_cdl_b"
    assert weights_name("CDL-D", scarce="CDL-D") == "dm_vb_scarce_cdl_d"
    assert weights_name("CDL-A", scarce="CDL-D") == "dm_vb_fixed_cdl_a"  # rich either way
    assert weights_name("single", scarce="CDL-D") == "dm_vb_scarce_single"
    assert weights_name("single", "los", scarce="CDL-D") == "dm_vb_los_scarce_single"


def test_cards_of_configurations_survive_json():
    config = CNNConfig.scaled(12, dilations=WIDE)
    assert CNNConfig(**json.loads(json.dumps(vars(config)))) == config
