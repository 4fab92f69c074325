"""Arrays made once and kept on disk: files that appear whole or not at all, and images beside their recipe."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import require_extra


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """A file to write that takes its place at `path` when all went well, so that a stopped run leaves nothing half.

    Folders are made. mode and options as of `open`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.part")
    try:
        with part.open(mode, **options) as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


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
    """Images first, then the recipe that vouches for them."""
    with whole_file(path) as file:
        np.save(file, images)
    note = {"recipe": recipe, "credits": list(credits), "pillow": require_extra("PIL", "images").__version__}
    with whole_file(path.with_suffix(".json"), "w", encoding="utf-8") as file:
        file.write(json.dumps(note, indent=1, ensure_ascii=False) + "\n")
