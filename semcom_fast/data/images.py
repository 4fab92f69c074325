"""What every image loader returns, and where images live on this machine."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ..errors import require_extra

SPLITS = ("train", "val", "test")


def data_home() -> Path:
    """Folder of fetched photographs, cached crops and generated channels: $SEMCOM_DATA, by default ~/.cache/semcom_fast."""
    chosen = os.environ.get("SEMCOM_DATA")
    return Path(chosen) if chosen else Path.home() / ".cache" / "semcom_fast"


@dataclass(frozen=True)
class ImageSet:
    """Images of one split.

    Attributes:
        images: uint8 [N,3,S,S], red, green, blue.
        labels: int64 [N] on 0..len(names)-1, or None when the images carry no labels.
        names: the classes' names, `names[labels[i]]`; empty without labels.
        sources: one line for each source of the images with its licence, for a weight card or a figure's credits.
    """

    images: Tensor
    labels: Tensor | None = None
    names: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.images.shape[0]

    def first(self, n: int | None) -> "ImageSet":
        """The first `n` images (all of them for None).

        Raises:
            ValueError: there are fewer.
        """
        if n is None or n == len(self):
            return self
        if not 0 < n <= len(self):
            raise ValueError(f"{n} images asked for; there are {len(self)}")
        return replace(self, images=self.images[:n], labels=None if self.labels is None else self.labels[:n])


class ImageSource(Protocol):
    """A set of images with fixed splits: what a system trains and is measured on."""

    def load(self, split: str, n: int | None = None) -> ImageSet:
        """The split "train", "val" or "test", cut to `n` images when given."""


def check_split(split: str, there: Sequence[str] = SPLITS) -> None:
    """Raise ValueError unless `split` is one of those there."""
    if split not in there:
        hint = " (give val= when opening the images to hold some out)" if split == "val" else ""
        raise ValueError(f"no split {split!r}; there: {', '.join(there)}{hint}")


def random_stream(*names: object) -> np.random.RandomState:
    """Random numbers of their own for each name; RandomState's streams are frozen by NumPy's compatibility policy."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, "<u4"))


def reduce(image: Any, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """A square window (left, top, right, bottom) of a Pillow image, Lanczos-filtered to uint8 [size,size,channels]."""
    lanczos = require_extra("PIL.Image", "images").Resampling.LANCZOS
    return np.asarray(image.resize((size, size), lanczos, box=box))


def check_held_out(val: int, count: int) -> int:
    """`val`, the number of training images held out for validation; ValueError unless 0 <= val < count."""
    if not 0 <= val < count:
        raise ValueError(f"val must be at least 0 and below the {count} training images, got {val}")
    return val
