"""The trained experts and single networks, loaded and ready to use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import weights
from .channels import PROFILES
from .network import CNNConfig, DenoiserCNN
from .train_settings import SINGLE, weights_name


def load_network(name: str, folder: Path | None = None) -> tuple[DenoiserCNN, dict[str, Any]]:
    """A trained network in evaluation mode, gradients off, with its card.

    Args:
        folder: weights of your own training; None means those shipped.

    Raises:
        FileNotFoundError: no such weights; the message says what is there.
        ValueError: the weights do not fit the configuration on their card.
    """
    tensors, card = weights.load(name, folder)
    network = DenoiserCNN(CNNConfig(**card["config"]))
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    if shapes != {key: value.shape for key, value in tensors.items()}:
        raise ValueError(f"weights {name!r} do not have the layers that their card describes")
    network.load_state_dict(tensors)
    return network.requires_grad_(False).eval(), card


def load_experts(
    kind: str = "fixed",
    *,
    array: str = "horizontal",
    scarce: str | None = None,
    profiles: Sequence[str] = PROFILES,
    folder: Path | None = None,
) -> list[DenoiserCNN]:
    """The experts of a channel set, one for each profile; errors as `load_network`.

    Args:
        kind, array: of the set, see `ChannelSet`.
        scarce: the profile whose expert is the one trained on few channels.
    """
    return [load_network(weights_name(profile, kind, array, scarce), folder)[0] for profile in profiles]


def load_single(
    kind: str = "fixed", *, array: str = "horizontal", scarce: str | None = None, folder: Path | None = None
) -> DenoiserCNN:
    """The one network for all profiles, with four times an expert's parameters.

    Raises:
        FileNotFoundError, ValueError: as `load_network`; also where those weights were trained with another profile scarce.
    """
    network, card = load_network(weights_name(SINGLE, kind, array, scarce), folder)
    if card["scarce"] != scarce:
        raise ValueError(f"weights {card['name']!r} were trained with {card['scarce']} scarce, not {scarce}")
    return network
