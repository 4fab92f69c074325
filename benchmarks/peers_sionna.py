"""Sionna's functions for the same quantities, on the inputs of a row."""

import importlib
import importlib.util
from collections.abc import Callable

import torch

MISSING = "sionna is not installed: pip install -c constraints.txt 'semcom-fast[sionna]'"


def installed() -> bool:
    """Whether Sionna is there; it is imported when a row is built with it."""
    return importlib.util.find_spec("sionna") is not None


def _precision(h: torch.Tensor) -> str:
    """Sionna computes in single precision, whatever it is given, unless it is told not to."""
    return "double" if h.dtype is torch.complex128 else "single"


def rzf_precode(alpha: float) -> Callable:
    """sionna.phy's precoder; its columns are normalised, which costs it a pass. It takes one vector a channel."""
    mimo = importlib.import_module("sionna.phy.mimo")
    return lambda h, s: mimo.rzf_precoder(s, h, alpha, precision=_precision(h))


def rzf_matrix(alpha: float) -> Callable:
    mimo = importlib.import_module("sionna.phy.mimo")
    return lambda h: mimo.rzf_precoding_matrix(h, alpha, precision=_precision(h))


def lmmse_equalise(nr: int, noise_var: float, dtype: torch.dtype) -> Callable:
    mimo = importlib.import_module("sionna.phy.mimo")
    cov = noise_var * torch.eye(nr, dtype=dtype)
    return lambda y, h: mimo.lmmse_equalizer(y, h, cov.to(y.device), precision=_precision(h))


def cir_to_ofdm() -> Callable:
    """gains [B,K,M,P] as Sionna's [B,rx,rx_ant,tx,tx_ant,P,T]."""
    channel = importlib.import_module("sionna.phy.channel")

    def run(gains, delays, frequencies):
        a = gains[:, :, None, None, :, :, None]
        return channel.cir_to_ofdm_channel(frequencies, a, delays[:, :, 0, None, :])

    return run


def cdl_draw(letter: str, b: int, nr: int, nt: int, frequency: float) -> Callable:
    """Impulse responses and their frequency response at one subcarrier."""
    channel = importlib.import_module("sionna.phy.channel")
    tr38901 = importlib.import_module("sionna.phy.channel.tr38901")
    bs, ut = (
        tr38901.AntennaArray(
            num_rows=1,
            num_cols=n,
            polarization="single",
            polarization_type="V",
            antenna_pattern="omni",
            carrier_frequency=40e9,
        )
        for n in (nt, nr)
    )
    model = tr38901.CDL(
        model=letter, delay_spread=30e-9, carrier_frequency=40e9, ut_array=ut, bs_array=bs, direction="downlink"
    )

    @torch.no_grad()
    def run(_seed):
        return channel.cir_to_ofdm_channel(torch.tensor([frequency]), *model(b, 1, 15.36e6))

    return run
