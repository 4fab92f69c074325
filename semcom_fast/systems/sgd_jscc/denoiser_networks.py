"""The trained denoiser and its control branch, loaded and ready to use."""

from pathlib import Path

from torch import Tensor, nn

from ... import weights
from .control import ControlBranch
from .dit import DiT, DiTConfig

DENOISER, CONTROL = "sgd_jscc_dit", "sgd_jscc_control"
_TRAINING_ONLY = ("side.", "mask_token")


def without_side_block(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A denoiser's state less what only training uses."""
    return {name: value for name, value in state.items() if not name.startswith(_TRAINING_ONLY)}


def _ready(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    module.load_state_dict(tensors)
    module.requires_grad_(False).eval()


def load_dit(folder: Path | None = None) -> DiT:
    """The trained denoiser without its side block, in evaluation mode, gradients off; errors as `load_denoiser`."""
    tensors, card = weights.load(DENOISER, folder)
    dit = DiT(DiTConfig(**{**card["config"], "side_block": False}))
    _ready(dit, tensors)
    return dit


def load_control(folder: Path | None = None) -> ControlBranch:
    """The trained control branch in evaluation mode, gradients off; errors as `load_denoiser`."""
    tensors, card = weights.load(CONTROL, folder)
    control = ControlBranch(DiTConfig(**card["config"]))
    _ready(control, tensors)
    return control


def load_denoiser(folder: Path | None = None) -> tuple[DiT, ControlBranch]:
    """The trained denoiser and its control branch in evaluation mode, gradients off.

    Args:
        folder: weights of your own training; None means those shipped.

    Raises:
        FileNotFoundError: no such weights; the message says what is there.
    """
    return load_dit(folder), load_control(folder)
