"""Transmit side, channels and figures of merit: everything between a codeword and what the receiver is given."""

from .block_fading import draw_channel, transmit
from .metrics import channel_nmse, psnr, ssim, to_db
from .perceptual import edge_dice, edge_f1, frechet_distance, ms_ssim
from .snr import noise_var_from_snr_db

__all__ = [
    "channel_nmse",
    "draw_channel",
    "edge_dice",
    "edge_f1",
    "frechet_distance",
    "ms_ssim",
    "noise_var_from_snr_db",
    "psnr",
    "ssim",
    "to_db",
    "transmit",
]
