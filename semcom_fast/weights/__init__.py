"""Small trained weights that ship with the package, each a safetensors file with a JSON card beside it."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import require_extra

SHIPPED = Path(__file__).parent


def load(name: str, folder: Path | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card of the weights `name` (no suffix), from `folder` or from those shipped.

    Tensors stored as float16 to save space come back as float32.

    Raises:
        FileNotFoundError: no such weights; the message says what is there.
    """
    folder = SHIPPED if folder is None else Path(folder)
    path = folder / f"{name}.safetensors"
    card = folder / f"{name}.json"
    if not (path.exists() and card.exists()):
        there = ", ".join(available(folder)) or "none"
        raise FileNotFoundError(f"no weights {name!r} with a card in {folder}; there: {there}")
    tensors = require_extra("safetensors.torch", "demo").load_file(path)
    tensors = {key: value.float() if value.dtype == torch.float16 else value for key, value in tensors.items()}
    return tensors, json.loads(card.read_text())


def save(name: str, folder: Path, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write weights and their card."""
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {key: value.detach().contiguous() for key, value in tensors.items()}
    require_extra("safetensors.torch", "demo").save_file(contiguous, folder / f"{name}.safetensors")
    (folder / f"{name}.safetensors").chmod(0o644)  # the writer makes it private
    (folder / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")


def available(folder: Path = SHIPPED) -> list[str]:
    """Names of the weights in a folder that have a card."""
    return sorted(path.stem for path in folder.glob("*.safetensors") if path.with_suffix(".json").exists())
