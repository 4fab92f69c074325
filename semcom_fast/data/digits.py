"""The handwritten digits that come with scikit-learn: 1,797 scans of 8x8 pixels, always available, no download."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import require_extra

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
