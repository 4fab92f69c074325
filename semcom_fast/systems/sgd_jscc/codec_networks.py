"""Trained networks of the codec, loaded and ready to use."""

from pathlib import Path
from typing import TypeVar

from torch import nn

from ... import weights
from .autoencoder import Autoencoder, AutoencoderConfig
from .edge_codec import EdgeCodec, EdgeCodecConfig
from .snr_estimator import SnrEstimator, SnrEstimatorConfig

AUTOENCODER = "sgd_jscc_autoencoder"
SNR = "sgd_jscc_snr"
EDGES = "sgd_jscc_edges"

Network = TypeVar("Network", bound=nn.Module)


def _load(network: type[Network], config: type, name: str, folder: Path | None) -> Network:
    tensors, card = weights.load(name, folder)
    loaded = network(config(**card["config"]))
    counts = {key: value for key, value in loaded.state_dict().items() if key.endswith("num_batches_tracked")}
    loaded.load_state_dict(counts | tensors)
    return loaded.requires_grad_(False).eval()


def load_autoencoder(folder: Path | None = None) -> Autoencoder:
    """The trained JSCC autoencoder in evaluation mode, gradients off.

    Args:
        folder: weights of your own training; None means those shipped.

    Raises:
        FileNotFoundError: no such weights; the message says what is there.
    """
    return _load(Autoencoder, AutoencoderConfig, AUTOENCODER, folder)


def load_snr_estimator(folder: Path | None = None) -> SnrEstimator:
    """The trained SNR estimator; as `load_autoencoder`."""
    return _load(SnrEstimator, SnrEstimatorConfig, SNR, folder)


def load_edge_codec(folder: Path | None = None) -> EdgeCodec:
    """The trained edge codec; as `load_autoencoder`."""
    return _load(EdgeCodec, EdgeCodecConfig, EDGES, folder)
