"""STAMPS-10: a small labelled task of object photographs pasted on crops of photographs."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import require_extra
from .images import SPLITS, ImageSet, check_split, data_home, random_stream
from .kept import kept_images
from .photos import SCRIPT, PhotoCrops

# The classes and where their stamps lie in the package.
CLASSES = {
    "mammals": ("animals/mammals",),
    "birds": ("animals/birds",),
    "fish": ("animals/fish",),
    "fruit": ("food/fruit",),
    "vegetables": ("food/vegetables",),
    "flowers": ("plants/flowers",),
    "instruments": ("hobbies/music",),
    "tools": ("household/tools",),
    "coins": (
        "symbols/money/canadian/coins",
        "symbols/money/euro/coins",
        "symbols/money/japanese",
        "symbols/money/us/coins",
    ),
    "planets": ("space/planets",),
}
LEFT_OUT = ("cartoon", "toys", "plastic")  # drawings and models of the things
MIRRORED = "_mirror"  # the same photograph again: it could fall on the other side of the split
EXTENT = (0.6, 1.0)  # a stamp's longer side, turned, relative to the image's
TURN = 20.0  # degrees, either way
_OVERSAMPLED = 4  # stamps are kept at this many times the image's size between draws
_RECIPE_VERSION = 1


@dataclass(frozen=True)
class Stamp:
    """One object: its file and the place of its class in `CLASSES`."""

    path: Path
    label: int


class StampsTask:
    """Tux Paint's photographed stamps in ten classes, each image one stamp pasted on a crop of a photograph.

    Classes are equally frequent (chance is 10 %); within a class its stamps are. A stamp is mirrored with probability
    1/2, turned by up to 20 degrees, scaled so that its longer side fills 60 to 100 % of the image, and placed at random.
    Split by stamp, in each class sorted by path: of every eight, numbers 3 and 7 are for test, 1 for validation, the
    rest for training; backgrounds are crops of the same split's photographs. Drawings, toys and mirrored copies are left
    out; the package files a lobster and a shrimp under fish.

    There are 237 objects (train 147, validation 35, test 55; planets 6, 2 and 2), so state the number beside
    every accuracy: it does not compare with one on CIFAR-10.

    Images are made once and kept like the crops (`kept_images`).

    Args:
        root: folder of the stamps; default `data_home()/stamps`, where tools/get_photos.sh --tuxpaint puts them.
        photos: the backgrounds; default `PhotoCrops(size=size)`.
        size: side of an image in pixels.
        n: images in a split when `load` is not told.
        seed: of everything drawn.
        cache: folder of the finished images; default that of `photos`.

    Raises:
        ValueError: `photos` makes crops of another size, or a number is not positive.
    """

    def __init__(
        self,
        root: Path | str | None = None,
        photos: PhotoCrops | None = None,
        size: int = 32,
        n: int = 20_000,
        seed: int = 0,
        *,
        cache: Path | str | None = None,
    ):
        if size < 1 or n < 1:
            raise ValueError(f"size and n must be positive, got {size} and {n}")
        self.photos = PhotoCrops(size=size) if photos is None else photos
        if self.photos.size != size:
            raise ValueError(f"backgrounds have {self.photos.size} pixels a side, the task {size}")
        self.root = Path(root) if root is not None else data_home() / "stamps"
        self.size, self.n, self.seed = size, n, seed
        self.cache = Path(cache) if cache is not None else self.photos.cache

    def load(self, split: str, n: int | None = None) -> ImageSet:
        """The `n` labelled images of a split (default: the `n` of the constructor).

        Raises:
            FileNotFoundError: stamps or photographs are missing; the message names the script that fetches them.
            ValueError: no such split.
            MissingExtra: Pillow is not installed.
        """
        check_split(split)
        count = self.n if n is None else n
        if count < 1:
            raise ValueError(f"n must be positive, got {count}")
        stamps = self.stamps(split)
        ground = self.photos.load(split, count)
        recipe = self._recipe(split, count, stamps, ground)
        stem = f"stamps_{split}_{self.size}px_{count}"
        licence = "Tux Paint stamps, GPL-2.0 (tuxpaint-stamps-default)"
        sources = (f"{len(stamps)} objects: {licence}", *ground.sources)
        # A class for each place, shuffled, so that any n has all of them.
        labels = random_stream(self.seed, split, "labels").permutation(count) % len(CLASSES)
        make = partial(self._paste, split, stamps, labels, ground)
        images = kept_images(self.cache, stem, recipe, make, sources)
        return ImageSet(torch.from_numpy(images), torch.from_numpy(labels).long(), tuple(CLASSES), sources)

    def stamps(self, split: str) -> tuple[Stamp, ...]:
        """The objects of a split, by class and path.

        Raises:
            FileNotFoundError: a class has no stamps at `root`, or too few for the split.
        """
        check_split(split)
        found: list[Stamp] = []
        for label, (name, folders) in enumerate(CLASSES.items()):
            files = sorted(
                (file for folder in folders for file in (self.root / folder).rglob("*.png") if self._wanted(file)),
                key=lambda file: file.relative_to(self.root).as_posix(),
            )
            chosen = [Stamp(file, label) for place, file in enumerate(files) if _split_of(place) == split]
            if not chosen:
                raise FileNotFoundError(
                    f"{len(files)} stamps of {name} in {self.root}, none for the {split} split: fetch them with "
                    f"{SCRIPT} --tuxpaint of the source tree"
                )
            found += chosen
        return tuple(found)

    def _wanted(self, file: Path) -> bool:
        return MIRRORED not in file.stem and not set(LEFT_OUT) & set(file.relative_to(self.root).parts)

    def _recipe(self, split: str, count: int, stamps: tuple[Stamp, ...], ground: ImageSet) -> dict[str, Any]:
        def digest(data: bytes) -> str:
            return hashlib.sha256(data).hexdigest()

        objects = {
            stamp.path.relative_to(self.root).as_posix(): [stamp.label, digest(stamp.path.read_bytes())]
            for stamp in stamps
        }
        settings = {"split": split, "size": self.size, "n": count, "seed": self.seed}
        backgrounds = digest(ground.images.numpy().tobytes())
        return {"version": _RECIPE_VERSION, **settings, "stamps": objects, "backgrounds": backgrounds}

    def _paste(self, split: str, stamps: tuple[Stamp, ...], labels: np.ndarray, ground: ImageSet) -> np.ndarray:
        pillow = require_extra("PIL.Image", "images")
        objects: list[list[Any]] = [[] for _ in CLASSES]
        for stamp in stamps:
            objects[stamp.label].append(_cut_out(stamp.path, self.size * _OVERSAMPLED))
        draws = random_stream(self.seed, split, "stamps").random_sample((len(labels), 6))
        images = np.empty((len(labels), 3, self.size, self.size), np.uint8)
        for image, label, draw, below in zip(images, labels, draws, ground.images.numpy(), strict=True):
            choices = objects[label]
            placed = pillow.fromarray(np.ascontiguousarray(below.transpose(1, 2, 0)))
            chosen = _vary(choices[int(draw[0] * len(choices))], self.size, *draw[1:4])
            across, down = draw[4:] * (self.size - chosen.size[0] + 1, self.size - chosen.size[1] + 1)
            placed.paste(chosen, (int(across), int(down)), chosen)
            image[:] = np.asarray(placed).transpose(2, 0, 1)
        return images


def _split_of(place: int) -> str:
    train, val, test = SPLITS
    if place % 4 == 3:
        return test
    return val if place % 8 == 1 else train


def _cut_out(path: Path, largest: int) -> Any:
    """A stamp without its transparent margin, its longer side at most `largest`."""
    pillow = require_extra("PIL.Image", "images")
    try:
        with pillow.open(path) as file:
            stamp = file.convert("RGBA")
    except (OSError, SyntaxError) as err:
        raise ValueError(f"{path} cannot be read as an image ({err})") from err
    box = stamp.getchannel("A").getbbox()
    if box is None:
        raise ValueError(f"{path} is wholly transparent")
    stamp = stamp.crop(box)
    stamp.thumbnail((largest, largest), pillow.Resampling.LANCZOS)
    return stamp


def _vary(stamp: Any, size: int, side: float, turn: float, extent: float) -> Any:
    """A stamp mirrored, turned and scaled as three draws on [0,1) say."""
    pillow = require_extra("PIL.Image", "images")
    if side < 0.5:
        stamp = stamp.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)
    stamp = stamp.rotate((2 * turn - 1) * TURN, pillow.Resampling.BICUBIC, expand=True)
    longer = size * (EXTENT[0] + (EXTENT[1] - EXTENT[0]) * extent)
    scale = longer / max(stamp.size)
    wanted = (max(1, round(stamp.size[0] * scale)), max(1, round(stamp.size[1] * scale)))
    return stamp.resize(wanted, pillow.Resampling.LANCZOS)
