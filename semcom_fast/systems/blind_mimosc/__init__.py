"""Blind-MIMOSC: semantic communication over MIMO without pilots, received by parallel variational diffusion.

Networks, training, evaluation and demonstration on scikit-learn's digits. Source: "Blind MIMO Semantic Communication via
Parallel Variational Diffusion".
"""

from .codec import DigitDecoder, DigitEncoder, RandomLinearEncoder
from .denoiser import DigitDenoiser
from .experiment import Link, Outcome, Summary, send_and_receive, summarise
from .mixture import GaussianMixturePrior
from .networks import load_denoiser, load_encoder

__all__ = [
    "DigitDecoder",
    "DigitDenoiser",
    "DigitEncoder",
    "GaussianMixturePrior",
    "Link",
    "Outcome",
    "RandomLinearEncoder",
    "Summary",
    "load_denoiser",
    "load_encoder",
    "send_and_receive",
    "summarise",
]
