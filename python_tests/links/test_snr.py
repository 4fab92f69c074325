"""Decibels become a noise variance per complex entry in one place; each system's own ratio comes out as asked."""

import math

import pytest
import torch

from semcom_fast.links import draw_channel, noise_var_from_snr_db, transmit
from semcom_fast.ops import philox_normal
from semcom_fast.reference import blockdiag_apply

SNR_DB = 7.0


def _noise_energy(noise_var: float, count: int = 400_000) -> float:
    """Measured E|n|^2 per complex entry of what `transmit` adds."""
    silent = torch.zeros(count // 8, 1, 1, 1, 8, dtype=torch.complex64)
    y = transmit(torch.zeros(count // 8, 1, 1, 1, 1, dtype=torch.complex64), silent, noise_var, seed=11)
    return float(y.abs().double().square().mean())


def _check(signal_power: float, signal_spread: float, noise_var: float) -> None:
    """Measured powers give the ratio; 5 sigma of a mean of exponentials for the noise, the caller's for the signal."""
    noise = _noise_energy(noise_var)
    assert noise == pytest.approx(noise_var, rel=5 / math.sqrt(400_000))
    measured = 10 * math.log10(signal_power / noise)
    tolerance = 10 * math.log10(1 + signal_spread + 5 / math.sqrt(400_000))
    assert measured == pytest.approx(SNR_DB, abs=tolerance)


@pytest.mark.parametrize(("users", "nt", "power", "channel_var"), [(1, 1, 1.0, 1.0), (2, 3, 0.5, 2.0)])
def test_blind_mimosc_counts_all_streams_per_receive_antenna(users, nt, power, channel_var):
    h = draw_channel(4000, users, 4, 4, nt, seed=1, var=channel_var)
    x = philox_normal((4000, users, 4, nt, 8), seed=2, dtype=torch.complex64) * math.sqrt(power)
    signal = float(blockdiag_apply(h, x).abs().double().square().mean())
    noise_var = noise_var_from_snr_db(SNR_DB, users=users, nt=nt, power=power, channel_var=channel_var)
    # 16,000 independent blocks; a block's mean energy spreads by about its own mean
    _check(signal, 5 / math.sqrt(16_000), noise_var)


def test_dm_vb_counts_transmit_antennas():
    nt = 8
    h = draw_channel(4000, 1, 1, 4, nt, seed=1)
    pilots = torch.exp(1j * 2 * math.pi * torch.rand(nt, 5, generator=torch.Generator().manual_seed(0)))
    signal = float((h[:, 0, 0] @ pilots.to(h)).abs().double().square().mean())
    _check(signal, 5 / math.sqrt(16_000), noise_var_from_snr_db(SNR_DB, "dm_vb", nt=nt))


def test_mu_mimo_is_a_unit_link():
    symbols = philox_normal((200_000,), seed=3, dtype=torch.complex64)
    signal = float(symbols.abs().double().square().mean())
    _check(signal, 5 / math.sqrt(200_000), noise_var_from_snr_db(SNR_DB, "mu_mimo"))


def test_sgd_jscc_symbols_have_power_two():
    real = philox_normal((200_000, 2), seed=4)
    signal = float(torch.complex(real[:, 0], real[:, 1]).abs().double().square().mean())
    _check(signal, 5 / math.sqrt(200_000), noise_var_from_snr_db(SNR_DB, "sgd_jscc"))


def test_takes_tensors_and_rejects_nonsense():
    levels = noise_var_from_snr_db(torch.tensor([0.0, 10.0], dtype=torch.float64), nt=4)
    torch.testing.assert_close(levels, torch.tensor([4.0, 0.4], dtype=torch.float64), rtol=1e-15, atol=0)
    with pytest.raises(ValueError, match="unknown system 'fax'"):
        noise_var_from_snr_db(3.0, "fax")
    with pytest.raises(ValueError, match="must be positive"):
        noise_var_from_snr_db(3.0, users=0)
