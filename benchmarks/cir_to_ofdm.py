"""Rows of cir_to_ofdm."""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case
from .rivals import rivals_for
from .rzf_precode import worst_error


def cases(quick: bool) -> list[Case]:
    """Channels of a four-user downlink with 23 paths, straight into the [B,F,K,M] layout of a precoder."""
    b, k, m, p, f = (4 if quick else 256), 4, 4, 23, 128

    def make(i: int):
        g = torch.Generator().manual_seed(i)
        gains = torch.randn(b, k, m, p, dtype=torch.complex64, generator=g)
        return gains, torch.rand(b, k, 1, p, generator=g) * 2e-6, (torch.arange(f) - f // 2) * 15e3

    def ours(gains, delays, frequencies):
        return sf.cir_to_ofdm(gains, delays, frequencies, frequency_dim=1)

    def check() -> float:
        gains, delays, frequencies = make(0)
        wide = gains.to(torch.complex128), delays.double(), frequencies
        want = reference.cir_to_ofdm(*wide, frequency_dim=1)
        return worst_error((ours(*timing.to_device((gains, delays, frequencies))),), (want,))

    return [
        Case(
            "cir_to_ofdm",
            f"B={b} K={k} M={m} P={p} F={f}",
            make,
            ours,
            {"einsum": peers.ofdm_einsum, "matmul": peers.ofdm_matmul},
            lambda *a: reference.cir_to_ofdm(*a, frequency_dim=1),
            check,
            2.0**-24 * 2 * p,
            8 * b * k * (m * p + m * f) + 4 * b * k * p,
            flops=8 * b * k * m * p * f,
            target="no target",
            rivals=rivals_for("cir_to_ofdm", b=b, k=k, m=m, p=p, f=f, dtype=torch.complex64),
        )
    ]
