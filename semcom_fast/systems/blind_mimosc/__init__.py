"""Blind-MIMOSC: semantic communication over MIMO without pilots, received by parallel variational diffusion.

Networks, training and evaluation on scikit-learn's digits and on photographs, a demonstration, and learned priors of
correlated channels. Source: "Blind MIMO Semantic Communication via Parallel Variational Diffusion".
"""

from .bound import BoundResult, linearised_bound
from .channel_laws import ChannelLaw
from .channel_prior import ChannelDenoiser, load_channel_denoiser
from .codec import DigitDecoder, DigitEncoder, RandomLinearEncoder
from .denoiser import DigitDenoiser
from .experiment import Link, Outcome, Summary, send_and_receive, summarise
from .mixture import GaussianMixturePrior
from .networks import load_denoiser, load_encoder, load_photo_codec, load_photo_denoiser
from .photo_codec import PhotoCodec
from .photo_denoiser import PhotoDenoiser

__all__ = [
    "BoundResult",
    "ChannelDenoiser",
    "ChannelLaw",
    "DigitDecoder",
    "DigitDenoiser",
    "DigitEncoder",
    "GaussianMixturePrior",
    "Link",
    "Outcome",
    "PhotoCodec",
    "PhotoDenoiser",
    "RandomLinearEncoder",
    "Summary",
    "linearised_bound",
    "load_channel_denoiser",
    "load_denoiser",
    "load_encoder",
    "load_photo_codec",
    "load_photo_denoiser",
    "send_and_receive",
    "summarise",
]
