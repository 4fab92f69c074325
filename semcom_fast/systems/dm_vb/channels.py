"""The channel sets: 38.901 clustered delay line links of a 64-antenna base station and a 16-antenna user.

Source: "Mixture-of-Experts Diffusion Models for Adaptive Massive MIMO Channel Estimation via Variational Bayesian
Inference", section V: 40 GHz, delay spread 30 ns, first of 300 subcarriers 15 kHz apart, every entry of unit mean power.
"""

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.cdl import cdl_moments, uniform_yaw
from ...data.images import data_home
from ...data.kept import whole_file
from ...ops import cdl_channels

NR, NT = 16, 64
PROFILES = ("CDL-A", "CDL-B", "CDL-C", "CDL-D")  # of the four experts
KINDS = ("fixed", "los", "rotated")
ARRAYS = ("horizontal", "vertical")
SPLITS = ("train", "val", "test")
TRAIN, SCARCE = 10_000, 1_000  # samples of a rich and of a scarce training set
SECTOR = math.radians(60)  # half of a base station's sector
_CHUNK = 500
_RECIPE = 1  # raised when the same set and seed give other channels


@dataclass(frozen=True)
class ChannelSet:
    """A law of channels and how they are normalised.

    Attributes:
        profile: "CDL-A" .. "CDL-E".
        kind: "fixed": both arrays face the reference direction, as in the paper; the specular path of CDL-D and CDL-E
            then has the same phase in every sample. "los": that phase is random. "rotated": random phase too, and in
            every sample the base station is turned by a yaw uniform on +-60 degrees and the user by any yaw.
        array: "horizontal" or "vertical" uniform linear arrays of half a wavelength. Yaw does not move a vertical array.
        train_count: size of the training set, whose mean power is brought to one.
    """

    profile: str = "CDL-A"
    kind: str = "fixed"
    array: str = "horizontal"
    train_count: int = TRAIN

    def __post_init__(self) -> None:
        known = (*PROFILES, "CDL-E")
        for name, value, choices in (
            ("profile", self.profile, known),
            ("kind", self.kind, KINDS),
            ("array", self.array, ARRAYS),
        ):
            if value not in choices:
                raise ValueError(f"ChannelSet: {name} must be one of {', '.join(choices)}, got {value!r}")
        if self.train_count < 1:
            raise ValueError(f"ChannelSet: train_count must be at least 1, got {self.train_count}")

    def draw(self, count: int, *, seed: int, first_item: int = 0) -> Tensor:
        """Channels before normalisation, complex64 [count,16,64]; a split draw gives the same channels."""
        yaw: dict[str, Any] = {}
        if self.kind == "rotated":
            item = {"seed": seed, "first_item": first_item}
            yaw["tx_yaw"] = uniform_yaw(count, SECTOR, end="tx", **item)
            yaw["rx_yaw"] = uniform_yaw(count, math.pi, end="rx", **item)
        return cdl_channels(
            self.profile,
            count,
            nr=NR,
            nt=NT,
            array=self.array,
            los_phase="fixed" if self.kind == "fixed" else "random",
            seed=seed,
            first_item=first_item,
            **yaw,
        )

    def seed(self, split: str) -> int:
        """Another seed for every profile, kind, array and split."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        place = KINDS.index(self.kind) * 10 + ARRAYS.index(self.array)
        return 1 + SPLITS.index(split) + 10 * (place * 10 + ord(self.profile[-1]) - ord("A"))

    def scale(self) -> float:
        """1/sqrt(mean |h|^2) over the training set: the one factor of the whole set. Kept on disk."""
        return _scale(self, data_home() / "cdl")


def load_set(channels: ChannelSet, split: str = "train", count: int | None = None) -> Tensor:
    """Normalised channels, complex64 [count,16,64], drawn once and kept in $SEMCOM_DATA/cdl.

    Args:
        channels: which set.
        split: "train", "val" or "test": independent draws.
        count: the first `count` of the split (default: the set's train_count). A longer draw starts with a shorter one.
    """
    count = channels.train_count if count is None else count
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    scale = channels.scale()
    raw = _kept(channels, split, count)
    return raw.mul_(scale)


def exact_moments(channels: ChannelSet) -> tuple[Tensor, Tensor]:
    """Mean [1024] and covariance [1024,1024] of the normalised h.flatten() (row-major, index i*64 + j), complex128.

    Raises:
        ValueError: for a rotated set, which is far from Gaussian and whose covariance has no closed form here.
    """
    if channels.kind == "rotated":
        raise ValueError("exact_moments: a rotated set has no closed form; estimate its moments from samples")
    los_phase = "fixed" if channels.kind == "fixed" else "random"
    mean, covariance = cdl_moments(channels.profile, nr=NR, nt=NT, array=channels.array, los_phase=los_phase)
    scale = channels.scale()
    return mean * scale, covariance * scale**2


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    for first in range(0, count, _CHUNK):
        yield first, min(_CHUNK, count - first)


def _law(channels: ChannelSet) -> dict[str, Any]:
    return {k: v for k, v in asdict(channels).items() if k != "train_count"} | {"recipe": _RECIPE}


def _stem(channels: ChannelSet) -> str:
    key = sha256(json.dumps(_law(channels), sort_keys=True).encode()).hexdigest()[:8]
    return f"{channels.profile.lower()}_{channels.kind}_{channels.array}_{key}"


def _kept(channels: ChannelSet, split: str, count: int) -> Tensor:
    """The first channels of a split before normalisation; a file with more of them serves as well."""
    seed, folder = channels.seed(split), data_home() / "cdl"
    stem = f"{_stem(channels)}_{split}_"
    for path in sorted(folder.glob(f"{stem}*.npy")):
        stored = path.stem.removeprefix(stem)
        if stored.isdigit() and int(stored) >= count:
            try:
                found = np.load(path, mmap_mode="r")
            except (OSError, ValueError):
                continue  # not whole: drawn again below
            if found.dtype == np.complex64 and found.shape == (int(stored), NR, NT):
                return torch.from_numpy(np.array(found[:count]))
    parts = [channels.draw(n, seed=seed, first_item=first) for first, n in _chunks(count)]
    drawn = torch.cat(parts) if parts else torch.empty(0, NR, NT, dtype=torch.complex64)
    if count:
        with whole_file(folder / f"{stem}{count}.npy") as file:
            np.save(file, drawn.numpy())
    return drawn


@functools.lru_cache(maxsize=64)
def _scale(channels: ChannelSet, folder: Path) -> float:
    path = folder / f"{_stem(channels)}_scale_{channels.train_count}.json"
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["scale"])
    except (OSError, ValueError, KeyError):
        pass
    power = torch.view_as_real(_kept(channels, "train", channels.train_count)).double().square().sum()
    scale = float((power / (channels.train_count * NR * NT)) ** -0.5)
    with whole_file(path, "w", encoding="utf-8") as file:
        file.write(json.dumps({"scale": scale, "law": _law(channels), "train_count": channels.train_count}) + "\n")
    return scale
