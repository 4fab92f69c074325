"""SGD-JSCC: semantics-guided diffusion as the denoiser of a deep joint source-channel code for images.

Networks, link, receiver, training, evaluation and command line. Source: "Semantics-Guided Diffusion for Deep Joint
Source-Channel Coding in Wireless Image Transmission".
"""

from .link import LinkConfig
from .receiver import ReceiverConfig, SgdJscc, load_system
from .text import HashedBagOfWords, LocalClip, TextEncoder, WordLlama

__all__ = [
    "HashedBagOfWords",
    "LinkConfig",
    "LocalClip",
    "ReceiverConfig",
    "SgdJscc",
    "TextEncoder",
    "WordLlama",
    "load_system",
]
