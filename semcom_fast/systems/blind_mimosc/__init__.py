"""Blind-MIMOSC: semantic communication over MIMO without pilots, received by parallel variational diffusion.

Networks, training, evaluation and demonstration on scikit-learn's digits; learned priors of correlated channels. Source:
"Blind MIMO Semantic Communication via Parallel Variational Diffusion".
"""

from .channel_laws import ChannelLaw
from .channel_prior import ChannelDenoiser, load_channel_denoiser
from .codec import DigitDecoder, DigitEncoder, RandomLinearEncoder
from .denoiser import DigitDenoiser
from .experiment import Link, Outcome, Summary, send_and_receive, summarise
from .mixture import GaussianMixturePrior
from .networks import load_denoiser, load_encoder

__all__ = [
    "ChannelDenoiser",
    "ChannelLaw",
    "DigitDecoder",
    "DigitDenoiser",
    "DigitEncoder",
    "GaussianMixturePrior",
    "Link",
    "Outcome",
    "RandomLinearEncoder",
    "Summary",
    "load_channel_denoiser",
    "load_denoiser",
    "load_encoder",
    "send_and_receive",
    "summarise",
]
