"""Images and channels the systems train and run on."""

from .digits import DigitSplit, load_digits

__all__ = ["DigitSplit", "load_digits"]
