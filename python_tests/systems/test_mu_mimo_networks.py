"""The networks of the MU-MIMO downlink: sizes, exact savings, invariances, and what each variant is made of."""

import pytest
import torch
from sf_testing import draw, same_bits, within

import semcom_fast as sf
from semcom_fast.links import mu_mimo_ofdm as link
from semcom_fast.systems.mu_mimo import MuMimoSystem, SystemConfig, keras_count
from semcom_fast.systems.mu_mimo.decoder import cells
from semcom_fast.systems.mu_mimo.encoder import ScenarioNet
from semcom_fast.systems.mu_mimo.precoder import RefinementNet


def trainable(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _channel(batch=2, subcarriers=32, slots=1, dtype=torch.complex128, seed=1):
    return draw(batch, subcarriers, slots, 4, 4, seed=seed, dtype=dtype)


def _images(batch=2, dtype=torch.float64):
    return torch.rand(batch, 4, 3, 32, 32, dtype=dtype, generator=torch.Generator().manual_seed(0))


def _system(variant="full", dtype=torch.float64, seed=0, **sizes) -> MuMimoSystem:
    """An untrained system whose refinement network does something."""
    torch.manual_seed(seed)
    system = MuMimoSystem(SystemConfig(variant, **sizes)).to(dtype)
    if system.precoder.network is not None:
        torch.nn.init.normal_(system.precoder.network.last.weight, std=0.05)
    return system.requires_grad_(False).eval()


@pytest.mark.parametrize(
    ("variant", "subcarriers", "encoder", "precoder", "decoder"),
    [
        ("full", 32, 1_239_804, 61_064, 39_667),
        ("full", 64, 3_023_880, 61_064, 46_905),
        ("full", 128, 10_130_976, 61_064, 61_381),
        ("no-pilot", 128, 10_130_976, 61_064, 35_109),
        ("rzf", 128, 10_103_920, 0, 35_109),
        ("djscc", 128, 6_359_840, 61_064, 7_447_109),
    ],
)
def test_parameter_totals(variant, subcarriers, encoder, precoder, decoder):
    """Counted the Keras way, as the paper's Table III is; the decoders' totals are ours."""
    system = MuMimoSystem(SystemConfig(variant, subcarriers))
    network = system.precoder.network
    counts = keras_count(system.encoder), 0 if network is None else keras_count(network), keras_count(system.decoder)
    assert counts == (encoder, precoder, decoder)
    assert trainable(system.precoder) - (0 if network is None else trainable(network)) == (network is not None)


def test_trainable_totals():
    full = MuMimoSystem(SystemConfig("full", 128))
    assert trainable(full.encoder) == 10_129_184
    assert trainable(full.precoder.network) == 60_808
    assert trainable(full.decoder) == 60_933
    assert trainable(MuMimoSystem(SystemConfig("rzf", 128)).encoder) == 10_102_128
    assert trainable(MuMimoSystem(SystemConfig("no-pilot", 128)).decoder) == 34_917


def test_pilots_may_be_stripped_before_the_decoder():
    system = _system("no-pilot", subcarriers=128, strip_pilots=True)
    assert keras_count(system.decoder) == 33_885
    result = system(_images(1), _channel(1, 128), torch.ones(1).double(), seed=0)
    assert result.images.shape == (1, 4, 3, 32, 32)
    with pytest.raises(ValueError, match="cannot work without pilots"):
        SystemConfig("full", strip_pilots=True)


@pytest.mark.parametrize("subcarriers", [32, 64, 128])
def test_cells_hold_neighbouring_elements(subcarriers):
    grid = torch.arange(subcarriers * 14.0).reshape(subcarriers, 14)
    cut = cells(torch.complex(grid, -grid))
    channels = 2 * subcarriers * 14 // 64
    assert cut.shape == (channels, 8, 8)
    place = torch.arange(64).view(8, 8) * channels // 2
    assert torch.equal(cut[0], place.float()) and torch.equal(cut[1], -place.float())


def test_every_cell_holds_a_pilot_element():
    system = _system("full")
    assert system.pilot_cells.shape == (4, 14, 8, 8)
    owned = (system.pilot_cells != 0).any(0).any(0)
    assert owned.all()


def test_scenario_network_folds_a_static_channel():
    torch.manual_seed(0)
    net, h = ScenarioNet(14, 4, 4).double(), _channel()
    scale = net(h)
    assert scale.shape == (2, 64) and float(scale.detach().std()) > 0
    within(net(h.repeat(1, 1, 14, 1, 1)), scale, 1e-13, "scenario net, static")


def test_refinement_network_folds_a_static_channel():
    torch.manual_seed(0)
    net, h, x = RefinementNet().double().eval(), _channel(), draw(2, 32, 14, 4, seed=2)
    assert not net(x, h).any(), "untrained, the correction is zero"
    torch.nn.init.normal_(net.last.weight)
    found = net(x, h)
    assert float(found.detach().abs().max()) > 0.1
    within(net(x, h.repeat(1, 1, 14, 1, 1)), found, 1e-12, "refinement net, static")


@pytest.mark.parametrize("variant", ["full", "no-pilot", "rzf", "djscc"])
def test_whole_system_static_equals_materialised(variant):
    system, h, noise_var = _system(variant), _channel(), torch.tensor([0.3, 2.0], dtype=torch.float64)
    static = system(_images(), h, noise_var, seed=4)
    copies = system(_images(), h.repeat(1, 1, 14, 1, 1), noise_var, seed=4)
    for name in ("transmitted", "received", "images", "scores"):
        within(getattr(copies, name), getattr(static, name), 1e-11, f"{variant}, materialised: {name}")
    power = static.transmitted.abs().square().sum(-1).mean((1, 2))
    within(power, torch.full((2,), 4.0, dtype=torch.float64), 1e-13, "transmit power of the system")


def test_time_varying_channels_work():
    h = _channel(slots=14)
    result = _system()(_images(), h, torch.ones(2).double(), seed=0)
    same = _system()(_images(), h[:, :, :1], torch.ones(2).double(), seed=0)
    assert torch.isfinite(result.images).all() and float((result.images - same.images).abs().max()) > 1e-6


def test_without_refinement_the_neural_precoder_is_rzf():
    """Zero last convolution and alpha at its start: full and rzf send the same."""
    torch.manual_seed(0)
    system = MuMimoSystem(SystemConfig("full")).double().eval()
    h, s, noise_var = _channel(), draw(2, 32, 14, 4, seed=3), torch.tensor([0.2, 3.0], dtype=torch.float64)
    # alpha is a float32-born parameter: one up to its rounding
    within(system.precoder(h, s, noise_var), link.precode(h, s, noise_var), 1e-6, "refinement at zero")
    assert float(system.precoder.alpha().detach()) == pytest.approx(1.0, abs=1e-6)
    plain = _system("rzf").precoder(h, s, noise_var)
    same_bits(plain, link.precode(h, s, noise_var))


def test_users_are_interchangeable():
    """Permuting users permutes the encoder's output exactly, the scenario network's answer being fixed."""
    encoder, h, noise_var = _system().encoder, _channel(), torch.tensor([0.3, 2.0], dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    out, moved = (encoder(images, h, noise_var) for images in (_images(), _images()[:, order]))
    same_bits(moved, out[:, order])
    assert float((out[:, 0] - out[:, 1]).abs().max()) > 1e-3


def test_each_user_decodes_from_its_own_grid_alone():
    system, y = _system(), draw(2, 32, 14, 4, seed=5)
    images, _ = system.decode(y)
    other = y.clone()
    other[..., 1:] = 0
    same_bits(system.decode(other)[0][:, 0], images[:, 0])


def test_guidance_uses_the_pilots_and_adaptation_the_channel():
    system, h, noise_var = _system(), _channel(), torch.tensor([0.3, 2.0], dtype=torch.float64)
    y = draw(2, 32, 14, 4, seed=5)
    before = system.decode(y)[0]
    system.pilot_cells.neg_()
    assert float((system.decode(y)[0] - before).abs().max()) > 1e-5
    sent = system.encode(_images(), h, noise_var)
    assert float((system.encode(_images(), _channel(seed=9), noise_var) - sent).abs().max()) > 1e-5
    assert float((system.encode(_images(), h, noise_var * 2) - sent).abs().max()) > 1e-5
    plain = _system("rzf")
    same_bits(plain.encode(_images(), h, noise_var), plain.encode(_images(), _channel(seed=9), 2 * noise_var))


def test_zero_forcing_raises_on_singular_channels_and_never_gives_nan():
    system, h = _system("zf", torch.float32), _channel(dtype=torch.complex64)
    images, noise_var = _images(dtype=torch.float32), torch.full((2,), 0.2)
    assert torch.isfinite(system(images, h, noise_var, seed=0).images).all()
    h[1, 3, 0, 1] = h[1, 3, 0, 2]
    with pytest.raises(sf.SingularChannelError):
        system(images, h, noise_var, seed=0)
    for choice in ("flag", "pinv"):
        result = system(images, h, noise_var, seed=0, on_singular=choice)
        for part in (result.images, result.scores, torch.view_as_real(result.transmitted)):
            assert torch.isfinite(part).all(), choice
    regular = _system("rzf", torch.float32)(images, h, noise_var, seed=0)
    assert torch.isfinite(regular.images).all()


@pytest.mark.parametrize("variant", ["full", "no-pilot", "rzf", "djscc"])
def test_gradients_reach_every_parameter(variant):
    system = _system(variant, torch.float32).train().requires_grad_()
    result = system(_images(dtype=torch.float32), _channel(dtype=torch.complex64), torch.full((2,), 0.5), seed=0)
    (result.images.square().mean() + result.scores.square().mean()).backward()
    for name, parameter in system.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        if not name.endswith("bias"):  # a bias before batch normalisation has none
            assert parameter.grad.any(), name


def test_imperfect_knowledge_is_drawn_and_costs_nothing_when_zero():
    system, h, noise_var = _system("rzf"), _channel(), torch.full((2,), 0.2).double()
    exact = system(_images(), h, noise_var, seed=0)
    same_bits(system(_images(), h, noise_var, seed=0, csi_error_var=0.0).images, exact.images)
    wrong = system(_images(), h, noise_var, seed=0, csi_error_var=0.5)
    assert float((wrong.transmitted - exact.transmitted).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="give a seed"):
        system(_images(), h, noise_var, noise=exact.received, csi_error_var=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "best"}, "unknown variant 'best': choose one of full, no-pilot, rzf, zf, djscc"),
        ({"subcarriers": 24}, "8x8 cells"),
        ({"users": 64}, "64 users need as many subcarriers"),
    ],
)
def test_impossible_configurations_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SystemConfig(**arguments)
