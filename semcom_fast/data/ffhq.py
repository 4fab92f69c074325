"""FFHQ faces from the user's own copy (github.com/NVlabs/ffhq-dataset)."""

import re
from pathlib import Path

import numpy as np
import torch

from ..errors import require_extra
from .images import ImageSet, check_held_out, check_split

TRAIN_COUNT, COUNT = 60_000, 70_000
RESOLUTIONS = (64, 128, 256)
# Folders of the data set with the side of their images; None: look at the first image.
LAYOUTS: tuple[tuple[str, int | None], ...] = (("thumbnails128x128", 128), ("images1024x1024", 1024), (".", None))
SOURCE = "FFHQ (Karras, Laine, Aila, 2019), CC BY-NC-SA 4.0, each photograph under its own licence; the user's copy"
_NAME = re.compile(r"\d{5}\.png")


class FfhqFolder:
    """FFHQ faces at 64, 128 or 256 pixels, reduced by area averaging, without labels.

    Split by the number in the file's name, as is usual: 0..59,999 for training, 60,000..69,999 for test. A part of the
    data set will do; a number that is missing is just missing.

    Args:
        root: the data set's folder (thumbnails128x128/ or images1024x1024/ inside; the smallest that is large enough is
            read), or the folder of the images; 00000.png lies there or in folders of a thousand (00000/00000.png).
        res: side of the result.
        val: how many of the last training numbers (59,999 downwards) are held out for the split "val".

    Raises:
        FileNotFoundError: no images of the kind at `root`.
        ValueError: bad `res` or `val`, or the images are smaller than `res`.
    """

    def __init__(self, root: Path | str, res: int = 128, val: int = 0):
        if res not in RESOLUTIONS:
            raise ValueError(f"res must be one of {', '.join(map(str, RESOLUTIONS))}, got {res}")
        self.root, self.res, self.val = Path(root), res, check_held_out(val, TRAIN_COUNT)
        self._files = self._find()

    def load(self, split: str, n: int | None = None) -> ImageSet:
        """The faces of "train", "val" or "test" in the order of their numbers, the first `n` when given.

        Raises:
            ValueError: no such split, nothing in it, fewer than `n`, or an image that is not a large enough square.
            MissingExtra: Pillow is not installed.
        """
        check_split(split, ("train", "val", "test") if self.val else ("train", "test"))
        edge = TRAIN_COUNT - self.val
        first, last = {"train": (0, edge), "val": (edge, TRAIN_COUNT), "test": (TRAIN_COUNT, COUNT)}[split]
        files = [file for number, file in self._files.items() if first <= number < last]
        if not files or (n is not None and not 0 < n <= len(files)):
            raise ValueError(
                f"{n or 'some'} faces asked for; {self.root} has {len(files)} with numbers {first}..{last - 1} ({split})"
            )
        images = np.stack([self._face(file) for file in files[:n]])
        return ImageSet(torch.from_numpy(images), sources=(SOURCE,))

    def _find(self) -> dict[int, Path]:
        """Files by number from the layout with the smallest images that are large enough."""
        sides = []
        for folder, side in LAYOUTS:
            files = _numbered(self.root / folder)
            if not files:
                continue
            side = side or _side(next(iter(files.values())))
            if side >= self.res:
                return files
            sides.append(f"{folder}: {side}x{side}")
        if sides:
            raise ValueError(f"the images of {self.root} are smaller than {self.res} pixels ({', '.join(sides)})")
        folders = " or ".join(folder for folder, side in LAYOUTS if side)
        raise FileNotFoundError(
            f"no FFHQ images at {self.root}: expected 00000.png, 00000/00000.png, or {folders} in it"
        )

    def _face(self, file: Path) -> np.ndarray:
        pillow = require_extra("PIL.Image", "images")
        try:
            with pillow.open(file) as opened:
                image = opened.convert("RGB")
        except (OSError, SyntaxError) as err:
            raise ValueError(f"{file} cannot be read as an image ({err})") from err
        if image.size[0] != image.size[1] or image.size[0] < self.res:
            raise ValueError(f"{file} has {image.size[0]}x{image.size[1]} pixels, not a square of at least {self.res}")
        small = image.resize((self.res, self.res), pillow.Resampling.BOX)
        return np.asarray(small).transpose(2, 0, 1)


def _numbered(folder: Path) -> dict[int, Path]:
    """Images by the number in their names, in a folder or in its folders of a thousand."""
    flat = [path for path in folder.glob("*.png") if _NAME.fullmatch(path.name)]
    nested = [path for path in folder.glob("?????/*.png") if path.parent.name.isdigit() and _NAME.fullmatch(path.name)]
    return {int(path.stem): path for path in sorted(nested + flat, key=lambda path: path.stem)}


def _side(file: Path) -> int:
    with require_extra("PIL.Image", "images").open(file) as image:
        return min(image.size)
