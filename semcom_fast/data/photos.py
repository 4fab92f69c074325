"""Crops of a few dozen camera photographs, split by photograph: the images the systems train on by default."""

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import require_extra
from .images import ImageSet, check_split, data_home, random_stream, reduce
from .kept import kept_images

SCRIPT = "tools/get_photos.sh"
# Debian packages a set of photographs comes from; a larger choice is asked for, so that what is on disk decides nothing.
PACKAGE_SETS = {
    "default": ("lomiri-wallpapers-16.04", "mate-backgrounds"),
    "plasma": ("plasma-workspace-wallpapers",),
    "lomiri-20.04": ("lomiri-wallpapers-20.04",),
}
BUNDLED = {"scikit-image": "skimage", "scikit-learn": "sklearn"}
IN_FIGURES = ("astronaut", "coffee", "chelsea", "rocket")  # public domain or CC0: may stand in any figure
_RECIPE_VERSION = 1


@dataclass(frozen=True)
class Photo:
    """One line of the manifest; `sha256` is of the fetched file, empty for photographs inside Python packages."""

    split: str
    package: str
    name: str
    path: str
    licence: str
    author: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} by {self.author}, {self.licence} ({self.package})"


@cache
def manifest() -> tuple[Photo, ...]:
    """Every photograph that may be used, with its split, licence and author."""
    lines = (Path(__file__).parent / "photo_manifest.txt").read_text(encoding="utf-8").splitlines()
    fields = (line.split("|") for line in lines if not line.startswith("#"))
    return tuple(Photo(*("" if field == "-" else field for field in row)) for row in fields)


class PhotoCrops:
    """Seeded crops of photographs at many scales, uint8 [N,3,size,size].

    Every photograph of the split gives the same number of crops (one more for the first n mod P). A crop is a square
    window of size/scale pixels, scale log-uniform between `scales`, uniformly placed, reduced to size x size by Lanczos
    filtering and mirrored left to right with probability 1/2; scales at which a photograph is too small are left out.
    Photographs belong to one split only, fixed in photo_manifest.txt: training and validation use fetched photographs,
    the test split also astronaut, coffee, chelsea, rocket (inside scikit-image, where installed) and china, flower
    (inside scikit-learn, where installed), which nothing trains on.

    Crops are made once and kept in `cache`, an .npy beside a .json of the recipe and the SHA-256 of every source; a
    changed photograph or setting makes a new pair.

    PSNR depends on the images: figures on these crops compare with each other only, not with CIFAR-10 or Kodak.

    Args:
        root: folder of the fetched photographs; default `data_home()/photos`, where tools/get_photos.sh puts them.
        size: side of a crop in pixels.
        n: crops in a split when `load` is not told.
        seed: of the scales, positions and mirroring.
        scales: smallest and largest reduction, 0 < smallest <= largest <= 1.
        photos: which photographs the test split uses: "all", "fetched" (those of the manifest), or "bundled" (those
            inside scikit-image and scikit-learn: needs nothing fetched). Train and validation are always fetched ones.
        sets: fetched sets used, of "default", "plasma", "lomiri-20.04".
        cache: folder of the finished crops; default `data_home()/crops`.
    """

    def __init__(
        self,
        root: Path | str | None = None,
        size: int = 32,
        n: int = 60_000,
        seed: int = 0,
        scales: tuple[float, float] = (1 / 8, 1 / 2),
        *,
        photos: str = "all",
        sets: Sequence[str] = ("default",),
        cache: Path | str | None = None,
    ):
        if not (0 < scales[0] <= scales[1] <= 1):
            raise ValueError(f"scales must satisfy 0 < smallest <= largest <= 1, got {scales}")
        if size < 1 or n < 1:
            raise ValueError(f"size and n must be positive, got {size} and {n}")
        if photos not in ("all", "fetched", "bundled"):
            raise ValueError(f"photos must be 'all', 'fetched' or 'bundled', got {photos!r}")
        unknown = [name for name in sets if name not in PACKAGE_SETS]
        if unknown or not sets:
            raise ValueError(f"sets must name some of {', '.join(PACKAGE_SETS)}, got {tuple(sets)}")
        self.root = Path(root) if root is not None else data_home() / "photos"
        self.size, self.n, self.seed, self.scales = size, n, seed, (float(scales[0]), float(scales[1]))
        self.photos, self.sets = photos, tuple(sets)
        self.cache = Path(cache) if cache is not None else data_home() / "crops"

    def load(self, split: str, n: int | None = None) -> ImageSet:
        """The `n` crops of a split (default: the `n` of the constructor), from the cache or made now.

        Raises:
            FileNotFoundError: photographs are missing; the message names the script that fetches them.
            MissingExtra: Pillow is not installed, or only bundled photographs were asked for and neither scikit-image
                nor scikit-learn is installed.
            ValueError: no such split, the chosen sets have no photograph in it, or one is too small for the size.
        """
        check_split(split)
        count = self.n if n is None else n
        if count < 1:
            raise ValueError(f"n must be positive, got {count}")
        photos = self.photographs(split)
        recipe = self._recipe(split, count, photos)
        stem, lines = f"photos_{split}_{self.size}px_{count}", tuple(map(str, photos))
        crops = kept_images(self.cache, stem, recipe, lambda: self._cut(split, count, photos), lines)
        return ImageSet(torch.from_numpy(crops), sources=lines)

    def origins(self, split: str, n: int | None = None) -> torch.Tensor:
        """Which of `photographs(split)` each crop of `load(split, n)` is of: int64 [n]. Errors as `load`."""
        count = self.n if n is None else n
        photos = len(self.photographs(split))
        which = np.empty(count, np.int64)
        for photo, places in enumerate(self._places(split, count, photos)):
            which[places] = photo
        return torch.from_numpy(which)

    def photographs(self, split: str) -> tuple[Photo, ...]:
        """The photographs of a split, in the manifest's order.

        Raises:
            FileNotFoundError, MissingExtra, ValueError: as `load`.
        """
        check_split(split)
        packages = tuple(package for name in self.sets for package in PACKAGE_SETS[name])
        fetched = tuple(photo for photo in manifest() if photo.split == split and photo.package in packages)
        if split != "test":
            self._require(fetched, split)
            return fetched
        bundled = () if self.photos == "fetched" else _installed()
        if self.photos == "bundled":
            return bundled
        self._require(fetched, split)
        return fetched + bundled

    def file(self, photo: Photo) -> Path:
        """Where a fetched photograph lies."""
        return self.root / f"{photo.name}.jpg"

    def open(self, photo: Photo) -> Any:
        """A photograph as a Pillow image in RGB."""
        images = require_extra("PIL.Image", "images")
        if photo.package in BUNDLED:
            return images.fromarray(_bundled_pixels(photo))
        with images.open(self.file(photo)) as image:
            return image.convert("RGB")

    def _require(self, photos: Sequence[Photo], split: str) -> None:
        if not photos:
            raise ValueError(f"the sets {', '.join(self.sets)} have no photograph in the {split} split")
        missing = [photo for photo in photos if not self.file(photo).is_file()]
        if not missing:
            return
        flags = [f"--{name}" for name in self.sets if name != "default"]
        hint = '; or take those inside scikit-image and scikit-learn: --photos bundled (photos="bundled" in Python)'
        hint = hint if split == "test" else ""
        raise FileNotFoundError(
            f"{len(missing)} photographs of the {split} split are not in {self.root} (first: {missing[0].name}.jpg): "
            f"fetch them with {' '.join([SCRIPT, *flags])} of the source tree{hint}"
        )

    def _recipe(self, split: str, count: int, photos: Sequence[Photo]) -> dict[str, Any]:
        sources = [{"name": photo.name, "package": photo.package, "sha256": self._digest(photo)} for photo in photos]
        settings = {"split": split, "size": self.size, "n": count, "seed": self.seed, "scales": list(self.scales)}
        return {"version": _RECIPE_VERSION, **settings, "sources": sources}

    def _digest(self, photo: Photo) -> str:
        if photo.package in BUNDLED:
            return hashlib.sha256(np.ascontiguousarray(_bundled_pixels(photo)).tobytes()).hexdigest()
        with self.file(photo).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _cut(self, split: str, count: int, photos: Sequence[Photo]) -> np.ndarray:
        crops = np.empty((count, 3, self.size, self.size), np.uint8)
        # One photograph in memory at a time.
        for photo, places in zip(photos, self._places(split, count, len(photos)), strict=True):
            if len(places):
                crops[places] = self._crops_of(photo, len(places), random_stream(self.seed, split, photo.name))
        return crops

    def _places(self, split: str, count: int, photos: int) -> list[np.ndarray]:
        """Where each photograph's crops stand among all: equal shares, mixed by a fixed shuffle."""
        order = random_stream(self.seed, split, "order").permutation(count)
        shares = [count // photos + (place < count % photos) for place in range(photos)]
        return np.split(order, np.cumsum(shares)[:-1])

    def _crops_of(self, photo: Photo, share: int, random: np.random.RandomState) -> np.ndarray:
        image = self.open(photo)
        low, high = max(self.scales[0], self.size / min(image.size)), self.scales[1]
        if low > high:
            raise ValueError(
                f"{photo.name} has {image.size[0]}x{image.size[1]} pixels: too small for crops of {self.size} pixels at "
                f"scales up to {high:g}"
            )
        draws = random.random_sample((share, 4))
        crops = np.empty((share, 3, self.size, self.size), np.uint8)
        for crop, (level, across, down, side) in zip(crops, draws, strict=True):
            window = min(self.size / (low * math.pow(high / low, level)), *image.size)
            left, top = across * (image.size[0] - window), down * (image.size[1] - window)
            small = reduce(image, (left, top, left + window, top + window), self.size)
            crop[:] = (small[:, ::-1] if side < 0.5 else small).transpose(2, 0, 1)
        return crops


def _installed() -> tuple[Photo, ...]:
    """The test photographs inside those Python packages that are installed."""
    there = tuple(
        photo
        for photo in manifest()
        if photo.package in BUNDLED and importlib.util.find_spec(BUNDLED[photo.package]) is not None
    )
    if not there:
        require_extra("skimage", "images")
    return there


@cache
def _bundled_pixels(photo: Photo) -> np.ndarray:
    if photo.package == "scikit-image":
        return getattr(require_extra("skimage.data", "images"), photo.name)()
    return require_extra("sklearn.datasets", "demo").load_sample_image(f"{photo.name}.jpg")


def figure_photographs(photos: PhotoCrops) -> tuple[torch.Tensor, Sequence[str]]:
    """Whole photographs for a figure (their middle squares), uint8 [4,3,S,S], and their names.

    Where scikit-image, which holds them, is missing: four test crops and no names.
    """
    known = {photo.name: photo for photo in manifest() if photo.package == "scikit-image"}
    try:
        pictures = [photos.open(known[name]) for name in IN_FIGURES]
    except ImportError:
        return photos.load("test", 4).images, ()
    squares = []
    for picture in pictures:
        width, height = picture.size
        side = min(width, height)
        box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
        squares.append(torch.tensor(reduce(picture, box, photos.size)).permute(2, 0, 1))
    return torch.stack(squares), IN_FIGURES
