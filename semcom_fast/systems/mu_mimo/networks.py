"""Trained systems, loaded and ready to use."""

import copy
from pathlib import Path
from typing import Any

from ... import weights
from .decoder import Classifier
from .system import VARIANTS, MuMimoSystem, SystemConfig

SHIPPED_SUBCARRIERS = 32


def weights_name(variant: str, subcarriers: int = SHIPPED_SUBCARRIERS) -> str:
    """Of the file of a variant; zero-forcing runs on the weights of rzf."""
    return f"mu_mimo_{'rzf' if variant == 'zf' else variant.replace('-', '_')}_nf{subcarriers}"


def head_name(variant: str, subcarriers: int, labels: str) -> str:
    """Of the file of a classifier head that was trained on its own."""
    return f"{weights_name(variant, subcarriers)}_{labels}"


def load_system(
    variant: str = "full", subcarriers: int = SHIPPED_SUBCARRIERS, *, folder: Path | None = None
) -> tuple[MuMimoSystem, dict[str, Any]]:
    """A trained system in evaluation mode, gradients off, and its card.

    Args:
        variant: one of `system.VARIANTS`; "zf" is "rzf" with its regulariser at zero.
        subcarriers: Nf; one set of weights for each.
        folder: weights of your own training; None means those shipped.

    Raises:
        ValueError: unknown variant.
        FileNotFoundError: no such weights; the message says what is there.
    """
    SystemConfig(variant, subcarriers)  # refuses what does not exist before looking for its weights
    tensors, card = weights.load(weights_name(variant, subcarriers), folder)
    system = MuMimoSystem(SystemConfig(variant, subcarriers, classes=card.get("classes", 10)))
    system.load_state_dict(tensors)
    return system.requires_grad_(False).eval(), card


def load_head(system: MuMimoSystem, labels: str, *, folder: Path | None = None) -> MuMimoSystem:
    """The same system with the head for other labels, itself left as it is.

    Raises:
        FileNotFoundError: no such head.
    """
    config = system.config
    tensors, card = weights.load(head_name(config.variant, config.subcarriers, labels), folder)
    head = Classifier(system.decoder.classifier.inputs, card["classes"])
    head.load_state_dict(tensors)
    other = copy.deepcopy(system)
    other.decoder.classifier = head.requires_grad_(False).eval()
    return other


def available_heads(variant: str, subcarriers: int, folder: Path | None = None) -> list[str]:
    """The labels there is a head of its own for."""
    start = weights_name(variant, subcarriers) + "_"
    there = weights.available(weights.SHIPPED if folder is None else folder)
    return [name.removeprefix(start) for name in there if name.startswith(start)]


def available_variants(subcarriers: int = SHIPPED_SUBCARRIERS, folder: Path | None = None) -> list[str]:
    """The variants whose weights are there."""
    there = weights.available(weights.SHIPPED if folder is None else folder)
    return [variant for variant in VARIANTS if weights_name(variant, subcarriers) in there]
