"""The MU-MIMO OFDM downlink: pilots, power, precoding and reception against what the formulas say."""

import math

import pytest
import torch
from sf_testing import draw, same_bits, unit, within

import semcom_fast as sf
from semcom_fast.links import mu_mimo_ofdm as link
from semcom_fast.links import noise_var_from_snr_db
from semcom_fast.links.mu_mimo_ofdm import ResourceGrid

GRID = ResourceGrid(32)


def _channel(batch=3, subcarriers=32, slots=1, users=4, antennas=4, dtype=torch.complex128, seed=1):
    return draw(batch, subcarriers, slots, users, antennas, seed=seed, dtype=dtype)


def _symbols(batch=3, grid=GRID, dtype=torch.complex128, seed=2):
    data = draw(batch, grid.users, grid.subcarriers, len(grid.data_symbols), seed=seed, dtype=dtype)
    return grid.insert(link.normalise_symbols(data).permute(0, 2, 3, 1))


def test_pilots_are_a_comb_on_two_symbols():
    pilots, mask = GRID.pilots, GRID.pilot_mask
    assert pilots.shape == (32, 14, 4) and GRID.data_symbols == (0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13)
    assert torch.equal(pilots != 0, mask)
    assert int(mask.sum(-1).max()) == 1, "two users on one element"
    for user in range(4):
        owned = mask[..., user].nonzero()
        assert set(owned[:, 1].tolist()) == {2, 11}
        assert sorted(set(owned[:, 0].tolist())) == list(range(user, 32, 4))
    within(pilots[mask].abs(), torch.full((64,), 2.0), 4 * unit(torch.float32), "pilot amplitude")
    within(pilots[:, [2, 11]].abs().square().mean((0, 1)), torch.ones(4), 1e-6, "pilot energy")
    assert not torch.equal(pilots[:, 2], pilots[:, 11])


def test_pilots_are_fixed_by_their_seed():
    assert torch.equal(ResourceGrid(32).pilots, GRID.pilots)
    assert not torch.equal(ResourceGrid(32, seed=1).pilots, GRID.pilots)
    quadrants = {(bool(p.real > 0), bool(p.imag > 0)) for p in GRID.pilots[GRID.pilot_mask]}
    assert len(quadrants) == 4, "QPSK visits all four points"


@pytest.mark.parametrize("users", [1, 3, 4])
def test_insert_then_extract_is_the_identity(users):
    grid = ResourceGrid(16, users=users)
    data = draw(2, 16, 12, users)
    s = grid.insert(data)
    same_bits(grid.extract(s), data)
    same_bits(s[:, :, list(grid.pilot_symbols)], grid.pilots[:, list(grid.pilot_symbols)].to(s).expand(2, -1, -1, -1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subcarriers": 3}, "4 users need as many subcarriers"),
        ({"subcarriers": 32, "users": 0}, "0 users"),
        ({"subcarriers": 32, "pilot_symbols": (2, 14)}, r"different ones of 14, got \(2, 14\)"),
        ({"subcarriers": 32, "pilot_symbols": (2, 2)}, "different ones"),
    ],
)
def test_impossible_grids_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResourceGrid(**arguments)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"takes data \[B,32,12,4\], got \(2, 32, 14, 4\)"):
        GRID.insert(draw(2, 32, 14, 4))
    with pytest.raises(ValueError, match="need h"):
        link.precode(_channel(slots=7), _symbols(), 1.0)
    with pytest.raises(ValueError, match="need h"):
        link.apply_channel(_channel(slots=7), _symbols())
    with pytest.raises(ValueError, match="noise= or seed="):
        link.receive(_channel(), _symbols(), 1.0)
    with pytest.raises(ValueError, match="must not be negative"):
        link.estimated_channel(_channel(), -0.1, seed=0)
    with pytest.raises(ValueError, match="total power must be positive"):
        link.normalise_power(_symbols(), total_power=0.0)


def test_every_users_data_has_unit_power():
    s = _symbols()
    power = GRID.extract(s).abs().square().mean((1, 2))
    within(power, torch.ones(3, 4), 1e-14, "data power per user")


@pytest.mark.parametrize("total", [None, 1.0, 2.5])
def test_transmit_power(total):
    s, h = _symbols(dtype=torch.complex64), _channel(dtype=torch.complex64)
    x = link.precode(h, s, torch.tensor([0.2, 1.0, 5.0]), total_power=total)
    power = x.to(torch.complex128).abs().square().sum(-1).mean((1, 2))
    within(power, torch.full((3,), 4.0 if total is None else total), (total or 4.0) * 2e-7, f"transmit power {total}")
    again = link.normalise_power(x * torch.tensor([1e-3, 1.0, 77.0]).view(3, 1, 1, 1), total)
    within(again, x, 8 * unit(x.dtype) * x.abs().max(), "scale invariance")


def test_power_gradient_is_tangent():
    """f(c x) = f(x), so the gradient has no part along x."""
    x = draw(2, 8, 14, 4, seed=3).requires_grad_()
    g = draw(2, 8, 14, 4, seed=4)
    (grad,) = torch.autograd.grad((link.normalise_power(x).conj() * g).real.sum(), x)
    along = (grad.conj() * x.detach()).real.sum((1, 2, 3))
    scale = (grad.abs() * x.detach().abs()).sum((1, 2, 3))
    within(along, torch.zeros(2), 1e-13 * scale, "<x, dx>")
    assert float(grad.abs().max()) > 1e-3


def test_zero_forcing_without_noise_returns_the_symbols():
    """y = c s on every element, hence received pilots are c times the pilots."""
    h, s = _channel(), _symbols()
    y = link.apply_channel(h, link.precode(h, s, 0.0))
    c = y[:, :1, :1, :1] / s[:, :1, :1, :1]
    within(y, c * s, 1e-10, "ZF reception")
    assert (c.real > 0).all() and float(c.imag.abs().max()) < 1e-10
    received = y[GRID.pilot_mask.expand(3, -1, -1, -1)].unflatten(0, (3, -1))
    within(received, c.flatten(1) * GRID.pilots[GRID.pilot_mask].to(y), 1e-10, "received pilots")
    silent = y[:, :, [2, 11]][~GRID.pilot_mask[:, [2, 11]].expand(3, -1, -1, -1)]
    within(silent, torch.zeros_like(silent), 1e-10, "others' pilots")


def test_a_static_channel_equals_its_copies_in_time():
    h, s, alpha = _channel(), _symbols(), torch.tensor([0.1, 1.0, 3.0])
    copies = h.repeat(1, 1, 14, 1, 1)
    x = link.precode(h, s, alpha)
    within(link.precode(copies, s, alpha), x, 1e-12, "precoding, materialised channel")
    within(link.precode(h.expand(-1, -1, 14, -1, -1), s, alpha), x, 1e-12, "precoding, stride 0")
    within(link.apply_channel(copies, x), link.apply_channel(h, x), 1e-13, "channel, materialised")


def test_time_varying_precoding_is_the_formula_on_every_element():
    h, s = _channel(2, 8, 14, 3, 5), draw(2, 8, 14, 3, seed=5)
    x = link.precode(h, s, 0.7, normalise=False)
    direct = h.mH @ torch.linalg.solve(h @ h.mH + 0.7 * torch.eye(3, dtype=torch.float64), s.unsqueeze(-1))
    within(x, direct.squeeze(-1), 1e-12, "RZF per element")
    within(link.apply_channel(h, x), torch.einsum("bftkm,bftm->bftk", h, x), 1e-13, "channel per element")


def test_two_equal_users_have_no_zero_forcing():
    h, s = _channel(dtype=torch.complex64), _symbols(dtype=torch.complex64)
    h[1, 5, 0, 2] = h[1, 5, 0, 0]
    with pytest.raises(sf.SingularChannelError):
        link.precode(h, s, 0.0)
    flagged = link.precode(h, s, 0.0, on_singular="flag")
    assert torch.isfinite(torch.view_as_real(flagged)).all()
    assert not flagged[1, 5].any() and flagged[1, 4].any()
    regular = link.precode(h, s, 0.1)
    assert torch.isfinite(torch.view_as_real(regular)).all() and regular[1, 5].any()


@pytest.mark.parametrize("snr_db", [-7.0, 0.0, 7.0])
def test_noise_has_the_variance_of_the_snr(snr_db):
    h, x = _channel(64, dtype=torch.complex64), torch.zeros(64, 32, 14, 4, dtype=torch.complex64)
    noise_var = noise_var_from_snr_db(snr_db, "mu_mimo")
    y = link.receive(h, x, noise_var, seed=3)
    measured, count = float(y.abs().square().double().mean()), y.numel()
    # |n|^2/noise_var is exponential: the mean of n draws has standard deviation 1/sqrt(n)
    assert abs(measured / 10 ** (-snr_db / 10) - 1) < 5 / math.sqrt(count)


def test_noise_levels_and_draws_belong_to_grids():
    h, x = _channel(4, dtype=torch.complex64), draw(4, 32, 14, 4, dtype=torch.complex64)
    levels = torch.tensor([0.0, 0.1, 1.0, 4.0])
    y = link.receive(h, x, levels, seed=9)
    same_bits(y[0], link.apply_channel(h, x)[0])
    same_bits(y[2:], link.receive(h[2:], x[2:], levels[2:], seed=9, first_item=2), "split batch")
    assert not torch.equal(y, link.receive(h, x, levels, seed=10))
    given = link.receive(h, x, levels, noise=torch.ones(4, 32, 14, 4, dtype=torch.complex64))
    within(given - link.apply_channel(h, x), levels.sqrt().view(4, 1, 1, 1).expand(4, 32, 14, 4) + 0j, 1e-5, "noise=")


def test_channel_error_has_its_variance():
    h = _channel(64, dtype=torch.complex64)
    assert link.estimated_channel(h, 0.0, seed=0) is h
    error = link.estimated_channel(h, 0.3, seed=0) - h
    measured = float(error.abs().square().double().mean())
    assert abs(measured / 0.3 - 1) < 5 / math.sqrt(error.numel())
    noise = link.receive(h, torch.zeros(64, 32, 14, 4, dtype=torch.complex64), 0.3, seed=0)
    assert not torch.equal(noise.flatten(1)[:, :512], error.flatten(1)), "error and noise share their draws"
