"""Sweeps over blind links of photographs, with every receiver as a setting.

    python -m semcom_fast.systems.blind_mimosc.sweep_photos --receiver pvd dps-m lmmse-m djscc-csi --snr 10 20 --seeds 4

takes the options of `semcom-fast sweep` and stops and resumes as that does. A cell sends the first `crops` held-out crops
over channels, pilots and noise drawn from the seed, the same for all receivers. Means are over all crops, successes or
not: nmse_db of the linear ratios, energy the median residual over its expectation at the truth; success is an NMSE below
-6 dB, counted over all starts for `pvd`. What a receiver does not give is nan.
"""

import argparse
import functools
import hashlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...data.photos import PhotoCrops
from ...receivers import PVDConfig
from ..evaluation import fingerprint
from ..settings import described
from ..sweep import Cell, Measured, add_sweep, execute_sweep
from .evaluate_photos import CROPS, SNRS_DB
from .experiment import SUCCESS_DB
from .networks import load_photo_codec, load_photo_denoiser
from .photo_images import SIDE, as_source, grey
from .photo_reception import RECEIVERS, STARTS, Networks, Reception

SWEPT = tuple(name for name in RECEIVERS if not name.startswith("bound"))  # bounds need the training photographs
_PVD = PVDConfig()
_PROTOCOL = 2  # to be raised when the same cell gives other figures than before


@dataclass(frozen=True)
class PhotoSetting:
    """What is sent, and one receiver."""

    encoder: str = described("penalised", "of PVD, penalised or plain; pilots and known channels go with the plain one")
    crops: int = described(CROPS, "held-out crops of a cell")
    photos: str = described("bundled", "test photographs: bundled, fetched or all")
    nr: int = described(8, "receive antennas")
    bf16: bool = described(False, "denoiser in bfloat16")
    starts: int = described(STARTS, "restarts of PVD per crop")
    levels: int = described(_PVD.J, "J, noise levels; DPS makes levels*inner steps")
    inner: int = described(_PVD.Jin, "inner iterations of a level")
    receiver: str = described("pvd", ", ".join(SWEPT))


class PhotoSweep:
    """The system that is swept, with networks of `weights` (None: those shipped)."""

    kind: type[PhotoSetting] = PhotoSetting
    figures: Sequence[str] = ("success_rate", "nmse_db", "nmse_median_db", "psnr_db", "ssim", "energy")

    def __init__(self, weights: Path | None = None) -> None:
        self.denoiser = load_photo_denoiser(weights)
        self.codec = functools.cache(functools.partial(load_photo_codec, folder=weights))
        self.plain = functools.cache(lambda symbols: load_photo_codec("plain", weights, symbols=symbols))
        self.crops = functools.cache(self._crops)
        self.reception = functools.lru_cache(1)(self._reception)  # receivers that follow each other share its runs

    @staticmethod
    def _crops(photos: str, count: int) -> Tensor:
        return grey(PhotoCrops(size=SIDE, photos=photos).load("test", count).images)

    def fingerprint(self, setting: PhotoSetting) -> str:
        """Of the protocol, the crops and the two networks."""
        if setting.receiver not in SWEPT:
            raise ValueError(f"unknown receiver {setting.receiver!r}: choose from {', '.join(SWEPT)}")
        for name in ("crops", "nr", "starts", "levels", "inner"):
            if getattr(setting, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(setting, name)}")
        digest = hashlib.sha256(str(_PROTOCOL).encode())
        symbols = RECEIVERS[setting.receiver].symbols
        codec = self.codec(setting.encoder) if symbols is None else self.plain(symbols)
        for network in (codec, self.denoiser):
            digest.update(fingerprint(network).encode())
        digest.update(self.crops(setting.photos, setting.crops).numpy().tobytes())
        return digest.hexdigest()[:16]

    def _reception(self, seed: int, snr_db: float, setting: PhotoSetting) -> Reception:
        codec = self.codec(setting.encoder)
        config = PVDConfig(nt=codec.config.nt, source_shape=(1, SIDE, SIDE), J=setting.levels, Jin=setting.inner)
        networks = Networks(codec, self.denoiser, prior=torch.empty(0), plain=self.plain)
        d = as_source(self.crops(setting.photos, setting.crops))
        return Reception(networks, d, snr_db, seed=seed, nr=setting.nr, starts=setting.starts, config=config)

    def measure(self, cell: Cell[PhotoSetting]) -> Measured:
        """Send the crops and receive them."""
        setting = cell.setting
        self.denoiser.bf16 = setting.bf16
        reception = self.reception(cell.seed, cell.snr_db, replace(setting, receiver=""))
        found = reception.receive(setting.receiver)
        figures = dict.fromkeys(self.figures, math.nan)
        if "nmse" in found:
            good = found.get("nmse_starts", found["nmse"]) < 10 ** (SUCCESS_DB / 10)
            figures["success_rate"] = float(good.mean())
            figures["nmse_db"] = 10 * math.log10(found["nmse"].mean())
            figures["nmse_median_db"] = 10 * math.log10(np.median(found["nmse"]))
        for name in ("psnr_db", "ssim"):
            if name in found:
                figures[name] = float(found[name].mean())
        if "energy" in found:
            figures["energy"] = float(np.median(found["energy"]))
        return Measured(figures)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sweep(parser, PhotoSetting, snrs_db=SNRS_DB, out=Path("out/blind_mimosc_sweep_photos.csv"))
    parser.add_argument("--weights", type=Path, metavar="DIR", help="weights of your own training (default: shipped)")
    args = parser.parse_args(argv)
    try:
        execute_sweep(args, PhotoSweep(args.weights))
    except KeyboardInterrupt as stop:
        print(f"\n{stop}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
