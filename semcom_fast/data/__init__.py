"""Images and channels the systems train and run on."""

from .channels import ImpulseResponses, load_channels, subcarrier_frequencies, tapped_channels
from .cifar10 import Cifar10Python
from .digits import Digits, DigitSplit, load_digits
from .ffhq import FfhqFolder
from .image_folder import ImageFolder
from .images import ImageSet, ImageSource
from .photos import PhotoCrops
from .stamps import StampsTask

__all__ = [
    "Cifar10Python",
    "DigitSplit",
    "Digits",
    "FfhqFolder",
    "ImageFolder",
    "ImageSet",
    "ImageSource",
    "ImpulseResponses",
    "PhotoCrops",
    "StampsTask",
    "load_channels",
    "load_digits",
    "subcarrier_frequencies",
    "tapped_channels",
]
