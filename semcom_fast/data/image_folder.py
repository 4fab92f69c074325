"""Any folder of the user's images."""

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from ..errors import require_extra
from .images import SPLITS, ImageSet, check_split, random_stream, reduce

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CROPS = ("centre", "random", "whole")


class ImageFolder:
    """Images of a folder and its sub-folders (jpg, png, webp), one square of each.

    Labels are the folders of the first level; images lying in `root` itself leave the whole set without labels. An
    image's split follows from its path alone, so adding files moves none: the SHA-1 of the relative path (with /), read
    as a number modulo 10, is 0 for test, 1 for validation, the rest is for training; or `split_file` says it. Within a
    split, images come in the order of these hashes, mixed over the folders.

    Args:
        root: the folder. Hidden files and folders are left out.
        size: side of the result; images are reduced, or enlarged, by Lanczos filtering.
        crop: "centre" (largest centred square), "random" (largest square, placed by `seed`), or "whole" (squeezed).
        split_file: text file with lines "SPLIT PATH", the path relative to `root`; other images are left out.
        seed: of random crops.

    Raises:
        FileNotFoundError: no folder, no image in it, or an image of `split_file` is missing.
        ValueError: bad size or crop, or a line of `split_file` that cannot be read.
    """

    def __init__(
        self,
        root: Path | str,
        size: int,
        crop: str = "centre",
        split_file: Path | str | None = None,
        *,
        seed: int = 0,
    ):
        if size < 1:
            raise ValueError(f"size must be positive, got {size}")
        if crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}, got {crop!r}")
        self.root, self.size, self.crop, self.seed = Path(root), size, crop, seed
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder {self.root}")
        found = _images_under(self.root)
        if not found:
            raise FileNotFoundError(f"no images ({', '.join(SUFFIXES)}) under {self.root}")
        self._splits = _hash_splits(found) if split_file is None else _read_splits(Path(split_file), self.root, found)
        tops = [PurePosixPath(name).parts[:-1][:1] for names in self._splits.values() for name in names]
        self.names: tuple[str, ...] = () if () in tops else tuple(sorted({top[0] for top in tops}))

    def files(self, split: str) -> tuple[str, ...]:
        """Paths of a split relative to `root`, in the order of `load`."""
        check_split(split)
        return self._splits[split]

    def load(self, split: str, n: int | None = None) -> ImageSet:
        """The images of a split, the first `n` when given.

        Raises:
            ValueError: no such split, nothing in it, fewer than `n`, or an image that cannot be read.
            MissingExtra: Pillow is not installed.
        """
        files = self.files(split)
        if not files or (n is not None and not 0 < n <= len(files)):
            raise ValueError(f"{n or 'some'} images asked for; the {split} split of {self.root} has {len(files)}")
        files = files[:n]
        images = np.stack([self._square(name) for name in files])
        place = {name: index for index, name in enumerate(self.names)}
        labels = torch.tensor([place[PurePosixPath(name).parts[0]] for name in files]) if self.names else None
        return ImageSet(torch.from_numpy(images), labels, self.names, (f"{self.root}, the user's images",))

    def _square(self, name: str) -> np.ndarray:
        pillow, ops = require_extra("PIL.Image", "images"), require_extra("PIL.ImageOps", "images")
        try:
            with pillow.open(self.root / name) as file:
                if file.mode.startswith(("I", "F")):
                    raise ValueError(f"{self.root / name}: images must have 8 bits a channel, this is {file.mode}")
                image = ops.exif_transpose(file).convert("RGB")
        except (OSError, SyntaxError, pillow.DecompressionBombError) as err:
            raise ValueError(f"{self.root / name} cannot be read as an image ({err})") from err
        width, height = image.size
        side = min(width, height)
        if self.crop == "whole":
            box = (0, 0, width, height)
        elif self.crop == "centre":
            box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
        else:
            across, down = random_stream(self.seed, "crop", name).random_sample(2) * (width - side, height - side)
            box = (across, down, across + side, down + side)
        return reduce(image, box, self.size).transpose(2, 0, 1)


def _images_under(root: Path) -> list[str]:
    """Paths of the images relative to `root`, with /."""
    paths = (path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]


def _digest(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


def _hash_splits(found: Sequence[str]) -> dict[str, tuple[str, ...]]:
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name in sorted(found, key=_digest):
        splits[{0: "test", 1: "val"}.get(int(_digest(name), 16) % 10, "train")].append(name)
    return {split: tuple(names) for split, names in splits.items()}


def _read_splits(path: Path, root: Path, found: Sequence[str]) -> dict[str, tuple[str, ...]]:
    there, splits = set(found), {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        split, _, name = line.strip().partition(" ")
        name = name.strip()
        if split not in SPLITS or not name:
            raise ValueError(f"{path}, line {number}: should be 'SPLIT PATH' with SPLIT of {', '.join(SPLITS)}")
        if name in splits:
            raise ValueError(f"{path}, line {number}: {name} appears twice")
        if name not in there:
            raise FileNotFoundError(f"{path}, line {number}: no image {name} under {root}")
        splits[name] = split
    if not splits:
        raise ValueError(f"{path} names no image")
    return {wanted: tuple(sorted((n for n, s in splits.items() if s == wanted), key=_digest)) for wanted in SPLITS}
