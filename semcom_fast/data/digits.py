"""The handwritten digits that come with scikit-learn: 1,797 scans of 8x8 pixels, always available, no download."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import require_extra
from .images import ImageSet, check_held_out, check_split

SIDE = 8
TRAIN_COUNT = 1500
LICENCE = "UCI Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, 1998), CC BY 4.0, via scikit-learn"
_SPLIT_SEED = 0


class DigitSplit(NamedTuple):
    """Images [n,64] float32 on [-1,1], row by row, and their labels [n] int64."""

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor


def load_digits() -> DigitSplit:
    """Load the digits and split them, always the same way, into 1,500 for training and 297 held out.

    Pixel values 0..16 become x/8 - 1. The split is a fixed random permutation: writers appear on both sides, as in
    most uses of this set. Images are views [n,64]; `as_images` gives [n,8,8].

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    raw = require_extra("sklearn.datasets", "demo").load_digits()
    # RandomState's stream is frozen by NumPy's compatibility policy, so the split never moves.
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(raw.data))
    images = torch.from_numpy(raw.data[order] / 8.0 - 1.0).float()
    labels = torch.from_numpy(raw.target[order]).long()
    return DigitSplit(images[:TRAIN_COUNT], images[TRAIN_COUNT:], labels[:TRAIN_COUNT], labels[TRAIN_COUNT:])


def as_images(flat: Tensor) -> Tensor:
    """View flat digits [...,64] as images [...,8,8]."""
    return flat.unflatten(-1, (SIDE, SIDE))


class Digits:
    """The digits as labelled colour images of 32x32: each pixel repeated 4x4, grey on all three channels.

    The split is that of `load_digits`: 1,500 for training, 297 for test. A task to try things on: digits are far simpler
    than photographs.

    Args:
        val: how many of the last training images are held out for the split "val".

    Raises:
        ValueError: `val` out of range.
    """

    size = 32

    def __init__(self, val: int = 0):
        self.val = check_held_out(val, TRAIN_COUNT)

    def load(self, split: str, n: int | None = None) -> ImageSet:
        """The digits of "train", "val" or "test", the first `n` when given.

        Raises:
            ValueError: no such split, or fewer than `n` in it.
            MissingExtra: scikit-learn is not installed.
        """
        check_split(split, ("train", "val", "test") if self.val else ("train", "test"))
        digits = load_digits()
        edge = TRAIN_COUNT - self.val
        rows = {"train": slice(0, edge), "val": slice(edge, TRAIN_COUNT), "test": slice(0, None)}[split]
        flat, labels = (digits.test, digits.test_labels) if split == "test" else (digits.train, digits.train_labels)
        flat, labels = flat[rows], labels[rows]
        grey = ((as_images(flat) + 1) * (255 / 2)).round().to(torch.uint8)  # 0..16 becomes 0..255
        repeat = self.size // SIDE
        large = grey.repeat_interleave(repeat, -1).repeat_interleave(repeat, -2)
        images = large.unsqueeze(1).repeat(1, 3, 1, 1)
        return ImageSet(images, labels, tuple(map(str, range(10))), (LICENCE,)).first(n)
