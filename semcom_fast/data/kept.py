"""Image arrays made once and kept on disk beside the recipe that vouches for them."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import require_extra


def kept_images(
    folder: Path, stem: str, recipe: dict[str, Any], make: Callable[[], np.ndarray], credits: Sequence[str]
) -> np.ndarray:
    """The images of a recipe, uint8 [n,3,size,size]: those kept in `folder`, or made now and kept.

    Args:
        folder: where the pair lies: STEM_KEY.npy with the images, STEM_KEY.json with recipe, credits and Pillow version.
        stem: start of the files' names; the key is of the recipe, so another recipe makes another pair.
        recipe: everything the images depend on, as JSON can hold it; has "n" and "size".
        make: makes the images.
        credits: one line for each source.
    """
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{stem}_{key}.npy"
    images = _read(path, recipe)
    if images is None:
        _write(path, make(), recipe, credits)
        images = _read(path, recipe)
        if images is None:
            raise OSError(f"images written to {path} could not be read back")
    return images


def _read(path: Path, recipe: dict[str, Any]) -> np.ndarray | None:
    """The images of a recipe, or None if they are not there whole."""
    try:
        if json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["recipe"] != recipe:
            return None
        images = np.load(path, mmap_mode="c")  # pages are read when touched; writing to them leaves the file alone
    except (OSError, ValueError, KeyError, EOFError):
        return None
    expected = (recipe["n"], 3, recipe["size"], recipe["size"])
    return images if images.shape == expected and images.dtype == np.uint8 else None


def _write(path: Path, images: np.ndarray, recipe: dict[str, Any], credits: Sequence[str]) -> None:
    """Images first, then their recipe; each appears whole or not at all, so that a stopped run leaves nothing half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.save(file, images)
        os.replace(part, path)
        note = {"recipe": recipe, "credits": list(credits), "pillow": require_extra("PIL", "images").__version__}
        part.write_text(json.dumps(note, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, path.with_suffix(".json"))
    finally:
        part.unlink(missing_ok=True)
