"""DM-VB: channel estimation by a mixture of diffusion experts with variational Bayesian responsibilities.

Channel sets, expert networks, training, evaluation and demonstration. Source: "Mixture-of-Experts Diffusion Models for
Adaptive Massive MIMO Channel Estimation via Variational Bayesian Inference".
"""

from .bank import CNNExpert, GroupedExperts
from .channels import ChannelSet, exact_moments, load_set
from .network import CNNConfig, DenoiserCNN
from .networks import load_experts, load_single

__all__ = [
    "CNNConfig",
    "CNNExpert",
    "ChannelSet",
    "DenoiserCNN",
    "GroupedExperts",
    "exact_moments",
    "load_experts",
    "load_set",
    "load_single",
]
