"""What the receivers are compared with."""

from .lmmse import gaussian_pilots, lmmse_pilot_channel, oracle_lmmse_channel, orthogonal_pilots, pilot_lmmse_nmse
from .wiener import WienerDenoiser

__all__ = [
    "WienerDenoiser",
    "gaussian_pilots",
    "lmmse_pilot_channel",
    "oracle_lmmse_channel",
    "orthogonal_pilots",
    "pilot_lmmse_nmse",
]
