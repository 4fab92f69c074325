"""Images and channels the systems train and run on."""

from .captions import photo_captions
from .channels import ImpulseResponses, load_channels, subcarrier_frequencies, tapped_channels
from .cifar10 import Cifar10Python
from .digits import Digits, DigitSplit, load_digits
from .edges import edge_uncertainty, kept_edges, soft_edges
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
    "edge_uncertainty",
    "kept_edges",
    "load_channels",
    "load_digits",
    "photo_captions",
    "soft_edges",
    "subcarrier_frequencies",
    "tapped_channels",
]
