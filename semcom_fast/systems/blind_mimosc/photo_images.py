"""Grey crops of photographs as sources: values on [-1,1], split by photograph."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...data.images import ImageSet, ImageSource
from ...data.photos import PhotoCrops

SIDE = 32
TRAIN_CROPS = 60_000
HELD_OUT = 512
LUMINANCE = (0.299, 0.587, 0.114)
_CHUNK = 8192


def grey(images: Tensor) -> Tensor:
    """Luminance of uint8 images [N,3,S,S], rounded to uint8 [N,1,S,S]."""
    weights = torch.tensor(LUMINANCE).view(3, 1, 1)
    parts = [(part.float() * weights).sum(1, keepdim=True).round() for part in images.split(_CHUNK)]
    return torch.cat(parts).to(torch.uint8)


def as_source(images: Tensor) -> Tensor:
    """uint8 [N,1,S,S] -> float32 on [-1,1]."""
    return images.float() / 127.5 - 1


class GreyCrops(NamedTuple):
    """uint8 images [N,1,S,S] with a credit line for each photograph."""

    images: Tensor
    sources: tuple[str, ...]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` of them at random, float32 [count,1,S,S] on [-1,1]."""
        return as_source(self.images[torch.randint(len(self.images), (count,), generator=generator)])


def photo_source() -> PhotoCrops:
    """The crops of the default photographs."""
    return PhotoCrops(size=SIDE, n=TRAIN_CROPS)


def grey_crops(source: ImageSource, split: str, count: int | None = None) -> GreyCrops:
    """The crops of a split in grey."""
    images: ImageSet = source.load(split, count)
    return GreyCrops(grey(images.images), tuple(images.sources))


def crop_covariance(images: Tensor) -> Tensor:
    """Mean-free second moments of crops: the covariance [n,n] over pixels of uint8 images [N,1,S,S] on [-1,1], float64.

    The mean is the crops' own, pixel by pixel.
    """
    flat = as_source(images).flatten(1)
    centred = flat - flat.mean(0)
    total = torch.zeros(flat.shape[1], flat.shape[1], dtype=torch.float64)
    for part in centred.split(_CHUNK):
        total += (part.T @ part).double()
    return total / len(flat)
