"""The evaluation protocol: held-out images over stored channels, PSNR, SSIM and accuracy against SNR.

    python -m semcom_fast.systems.mu_mimo.evaluate --out benchmarks/results/mu_mimo.csv

sends 1,024 held-out photo crops (and the held-out labelled images the classifier was trained for) with every variant
that has weights, over the evaluation channels of every scenario, once per seed of channel order and noise. All variants
meet the same images, channels and noise. Means are over images, then over seeds; `_se` is the standard error over seeds,
of channel and noise draws that is, not of the choice of images. Rows are written as they are finished.
"""

import argparse
import contextlib
import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import torch
from torch import Tensor

from ...data import ImpulseResponses, load_channels, subcarrier_frequencies
from ...data.digits import Digits
from ...data.images import ImageSet
from ...data.photos import PhotoCrops
from ...data.stamps import StampsTask
from ...errors import require_extra
from ...links import noise_var_from_snr_db, psnr, ssim
from ...links.mu_mimo_ofdm import ResourceGrid
from ..evaluation import where
from .batches import SCENARIOS, SPACING_HZ
from .networks import SHIPPED_SUBCARRIERS, available_heads, available_variants, load_head, load_system
from .system import MuMimoSystem

SNRS_DB = (-7.0, -5.0, -3.0, -1.0, 1.0, 3.0, 5.0, 7.0)
PSNR_CAP_DB = 100.0
GRIDS_AT_ONCE = 32


class Sent(NamedTuple):
    """What came out of sending N images in order, four to a grid."""

    images: Tensor  # [N,3,32,32]
    scores: Tensor  # [N,classes]


@dataclass(frozen=True)
class Protocol:
    """What is sent over what.

    Attributes:
        photos: images for PSNR and SSIM.
        labelled: images for accuracy, by the name of their labels.
        channels: impulse responses by scenario.
        seeds: of channel order and noise.
        csi_error_var: variance of the transmitter's channel error.
        on_singular: what zero-forcing does with singular channels.
    """

    photos: ImageSet
    labelled: dict[str, ImageSet]
    channels: dict[str, ImpulseResponses]
    snrs_db: Sequence[float] = SNRS_DB
    seeds: Sequence[int] = (0, 1, 2)
    csi_error_var: float = 0.0
    on_singular: str | None = None


class Result(NamedTuple):
    """One variant in one scenario at one SNR; accuracy holds (mean, standard error) for each set of labels."""

    variant: str
    scenario: str
    snr_db: float
    psnr_db: float
    psnr_se: float
    ssim: float
    ssim_se: float
    accuracy: dict[str, tuple[float, float]]


def slots(
    grid: ResourceGrid, sent: Tensor, cir: ImpulseResponses, snr_db: float, seed: int
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """What is sent [N,...], one per user, N a multiple of the users, slot by slot: (index of the first, [B,K,...] of it,
    channels [B,Nf,1,K,M] drawn from `cir` by `seed`, noise variances [B])."""
    slot = sent.unflatten(0, (-1, grid.users))
    frequencies = subcarrier_frequencies(grid.subcarriers, SPACING_HZ)
    order = torch.randperm(len(cir), generator=torch.Generator().manual_seed(seed))
    for first in range(0, len(slot), GRIDS_AT_ONCE):
        part = slot[first : first + GRIDS_AT_ONCE]
        h = cir[order[(first + torch.arange(len(part))) % len(cir)]].to_ofdm(frequencies)
        yield first, part, h, torch.full((len(part),), noise_var_from_snr_db(snr_db, "mu_mimo"))


@torch.no_grad()
def send(
    system: MuMimoSystem, images: Tensor, cir: ImpulseResponses, snr_db: float, seed: int, *, csi_error_var: float = 0.0,
    on_singular: str | None = None,
) -> Sent:  # fmt: skip
    """Send uint8 images [N,3,32,32], N a multiple of the users, each grid over a channel drawn from `cir` by `seed`."""
    parts = []
    for first, part, h, noise_var in slots(system.grid, images.float() / 255, cir, snr_db, seed):
        result = system(
            part, h, noise_var, seed=seed, first_item=first, csi_error_var=csi_error_var, on_singular=on_singular
        )
        parts.append((result.images.flatten(0, 1), result.scores.flatten(0, 1)))
    return Sent(*map(torch.cat, zip(*parts, strict=True)))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error over the values; the error of a single value is unknown (NaN)."""
    table = torch.tensor(values, dtype=torch.float64)
    return float(table.mean()), float(table.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")


def measure(variant: str, scenario: str, snr_db: float, systems: dict[str, MuMimoSystem], protocol: Protocol) -> Result:
    """One row of the protocol; `systems` holds the variant by the labels that its head knows."""
    cir, (first, *_) = protocol.channels[scenario], systems.values()
    users = first.config.users
    photos = protocol.photos.images[: len(protocol.photos) // users * users]
    quality, structure = [], []
    right: dict[str, list[float]] = {name: [] for name in systems if name in protocol.labelled}

    def through(system: MuMimoSystem, images: Tensor, seed: int) -> Sent:
        error, singular = protocol.csi_error_var, protocol.on_singular
        return send(system, images, cir, snr_db, seed, csi_error_var=error, on_singular=singular)

    for seed in protocol.seeds:
        sent, truth = through(first, photos, seed), photos.float() / 255
        quality.append(float(psnr(truth, sent.images, low=0.0, high=1.0, cap_db=PSNR_CAP_DB).double().mean()))
        structure.append(float(ssim(truth, sent.images, low=0.0, high=1.0).double().mean()))
        for name, hits in right.items():
            known = protocol.labelled[name]
            assert known.labels is not None
            count = len(known) // users * users
            scores = through(systems[name], known.images[:count], seed).scores
            hits.append(float(scores.argmax(-1).eq(known.labels[:count]).double().mean()))
    accuracy = {name: mean_and_error(hits) for name, hits in right.items()}
    return Result(variant, scenario, snr_db, *mean_and_error(quality), *mean_and_error(structure), accuracy)


class Systems:
    """The variants to compare, loaded once, each with every classifier head there is: {variant: {labels: system}}."""

    def __init__(
        self, variants: Sequence[str], subcarriers: int = SHIPPED_SUBCARRIERS, folder: Path | None = None
    ) -> None:
        self.loaded: dict[str, dict[str, MuMimoSystem]] = {}
        for variant in variants:
            system, card = load_system(variant, subcarriers, folder=folder)
            heads = {
                labels: load_head(system, labels, folder=folder)
                for labels in available_heads(variant, subcarriers, folder)
            }
            self.loaded[variant] = {card["labels"]: system, **heads}


def results(systems: Systems, protocol: Protocol, progress: bool = True) -> Iterator[Result]:
    """Every variant in every scenario at every SNR, as they are finished."""
    jobs = [(v, c, s) for v in systems.loaded for c in protocol.channels for s in protocol.snrs_db]
    bar = require_extra("tqdm", "demo").tqdm(jobs, unit="row", disable=not progress, dynamic_ncols=True)
    for variant, scenario, snr in bar:
        bar.set_description(f"{variant}, {scenario}, {snr:g} dB")
        yield measure(variant, scenario, snr, systems.loaded[variant], protocol)


def scenario_channels(scenarios: Sequence[str], split: str) -> dict[str, ImpulseResponses]:
    """Stored channels of the scenarios named, all of them for "all"."""
    names = SCENARIOS if "all" in scenarios else tuple(scenarios)
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        raise ValueError(f"unknown scenario {unknown[0]!r}: choose from {', '.join(SCENARIOS)}, all")
    return {name: load_channels(name, split) for name in names}


def labelled_images(digits: int | None = None, stamps: int = 512) -> dict[str, ImageSet]:
    """Held-out labelled images by the name of their labels: digits, and stamps where they were fetched."""
    found = {"digits": Digits().load("test", digits)}
    with contextlib.suppress(FileNotFoundError):
        found["stamps"] = StampsTask().load("test", stamps)
    return found


class CsvRows:
    """Results as CSV, each row flushed when it is done."""

    def __init__(self, file: TextIO, protocol: Protocol, photos: str, channels: str, subcarriers: int) -> None:
        self.file = file
        self.fixed = {
            "subcarriers": subcarriers,
            "photos": photos,
            "images": len(protocol.photos) // 4 * 4,
            "channels": channels,
            "seeds": len(protocol.seeds),
            **where(),
        }
        names = [name for name in Result._fields if name != "accuracy"]
        accuracies = [f"accuracy_{part}" for labels in protocol.labelled for part in (labels, f"{labels}_se")]
        self.writer = csv.DictWriter(file, [*names, *accuracies, *self.fixed], lineterminator="\n")
        self.writer.writeheader()

    def add(self, result: Result) -> None:
        row = {**result._asdict(), "snr_db": f"{result.snr_db:g}"}
        for labels, (mean, error) in row.pop("accuracy").items():
            row[f"accuracy_{labels}"], row[f"accuracy_{labels}_se"] = mean, error
        row = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in row.items()}
        self.writer.writerow({**row, **self.fixed})
        self.file.flush()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mu_mimo.csv"))
    parser.add_argument("--images", type=int, default=1024, help="held-out photo crops (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="of channel order and noise (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="default: all that have weights")
    parser.add_argument("--scenarios", nargs="+", default=["all"], metavar="NAME")
    parser.add_argument("--snr", type=float, nargs="+", default=list(SNRS_DB), metavar="DB")
    parser.add_argument("--subcarriers", type=int, default=SHIPPED_SUBCARRIERS, metavar="NF")
    parser.add_argument("--weights", type=Path, metavar="DIR")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    variants = args.variants or available_variants(args.subcarriers, args.weights)
    protocol = Protocol(
        PhotoCrops(size=32).load("test", args.images),
        labelled_images(),
        scenario_channels(args.scenarios, "eval"),
        tuple(args.snr),
        tuple(range(args.seeds)),
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with args.out.open("w", newline="") as file:
            rows = CsvRows(file, protocol, "all test photos", "eval", args.subcarriers)
            for result in results(Systems(variants, args.subcarriers, args.weights), protocol):
                rows.add(result)
    except KeyboardInterrupt:
        print(f"\nstopped; the rows finished so far are in {args.out}", file=sys.stderr)
        return 130
    print(args.out.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
