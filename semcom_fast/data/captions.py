"""Captions of the photographs: one plain sentence for each, written by hand while looking at it."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from .photos import Photo


@cache
def photo_captions() -> MappingProxyType[str, str]:
    """{name of a photograph in photo_manifest.txt: its caption}, read-only.

    There are captions for the photographs that tools/get_photos.sh fetches when told nothing else and for the test
    photographs inside scikit-image and scikit-learn; those of the larger sets have none.
    """
    text = (Path(__file__).parent / "captions.json").read_text(encoding="utf-8")
    return MappingProxyType(json.loads(text))


def caption_of(name: str) -> str:
    """The caption of a photograph, or the empty one where there is none, which text encoders take as no text."""
    return photo_captions().get(name, "")


def crop_captions(photos: Sequence[Photo], origins: Tensor) -> list[str]:
    """The caption for every crop: that of the photograph it was cut from.

    Args:
        photos: as `PhotoCrops.photographs` of the split.
        origins: int64 [N], place in `photos` of every crop's photograph, as `PhotoCrops.origins`.

    A crop shows a part of its photograph, so the caption may name things outside it.
    """
    captions = [caption_of(photo.name) for photo in photos]
    return [captions[place] for place in origins.tolist()]
