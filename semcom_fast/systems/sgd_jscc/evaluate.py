"""The evaluation protocol: held-out photo crops over three channels, every receiver on the same images and noise.

    python -m semcom_fast.systems.sgd_jscc.evaluate --out benchmarks/results/sgd_jscc.csv

sends 256 held-out 64x64 crops over AWGN, slow and fast Rayleigh fading at -15 to 15 dB. Means are over crops, `_se` is
their standard error. All receivers meet the same crops, channels and noise, so their differences are paired: a second
table, OUT_gains.csv, holds them with their own standard errors. The crops are of a dozen photographs and crops of one
photograph are alike: `_se_photos` is the standard error over the photographs' means, a more cautious figure.

What every crop gave is kept in a folder of the cache that is named after weights, images and settings, so that a stopped
evaluation goes on where it was.
"""

import argparse
import csv
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...baselines.wiener import WienerDenoiser
from ...data.captions import crop_captions
from ...data.edges import soft_edges
from ...data.images import data_home
from ...data.kept import whole_file
from ...data.photos import PhotoCrops
from ...links.metrics import psnr, ssim
from ...links.perceptual import edge_f1, frechet_distance, latent_features, ms_ssim
from ...receivers.waterfill_config import WaterfillConfig
from ..evaluation import Figures, KeptEvaluation, fingerprint, table_or_stop
from .link import CHANNELS, LinkConfig, send
from .receiver import ReceiverConfig, Sent, SgdJscc, load_system

SNRS_DB = (-15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0)
PSNR_CAP_DB = 100.0
BATCH = 64
STEPS = 10
PER_CROP = ("psnr_db", "ssim", "edge_f1")
_VERSION = 2

# A figure of the user's own weights: (images, recovered, captions) -> [B].
Extra = Callable[[Tensor, Tensor, Sequence[str]], Tensor]


def receivers(steps: int = STEPS, *, bf16: bool = False) -> dict[str, ReceiverConfig]:
    """The receivers that are compared, by name."""
    full = ReceiverConfig(waterfill=WaterfillConfig(steps=steps), bf16=bf16)
    authors = WaterfillConfig.preset("authors_per_sample", steps=max(steps, 2))
    return {
        "codec": replace(full, denoiser="none"),
        "wiener": replace(full, denoiser="wiener", rescale=False),
        "diffusion": replace(full, edges=False),
        "guided": full,
        "guided-estimated": replace(full, snr="estimated"),
        "captioned": replace(full, text=True),
        "one-step": replace(full, waterfill=WaterfillConfig(steps=1)),
        "authors": replace(full, waterfill=authors, control_scale="authors"),
    }


MAIN = ("codec", "wiener", "diffusion", "guided", "guided-estimated")


@dataclass(frozen=True)
class Protocol:
    """What is sent over what, and how it is received.

    Attributes:
        images: uint8 [N,3,S,S]; captions one for each; origins [N] the photograph each is of.
        receivers: those compared, by name.
        seed: of channels and noise.
        extras: further figures per crop, by name; features: [N,D] of images, whose Fréchet distance is a figure.
    """

    images: Tensor
    captions: Sequence[str]
    origins: Tensor
    receivers: Mapping[str, ReceiverConfig] = field(default_factory=receivers)
    channels: Sequence[str] = CHANNELS
    snrs_db: Sequence[float] = SNRS_DB
    seed: int = 0
    link: LinkConfig = field(default_factory=LinkConfig)
    extras: Mapping[str, Extra] = field(default_factory=dict)
    features: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.images) or len(self.captions) != len(self.images) or len(self.origins) != len(self.images):
            raise ValueError("images, captions and origins must be equally many, at least one")


def protocol_of(
    photos: PhotoCrops, count: int, names: Sequence[str] = MAIN, steps: int = STEPS, *, bf16: bool = False, **changes
) -> Protocol:
    """The protocol for the first `count` held-out crops of `photos` and the receivers named."""
    known = receivers(steps, bf16=bf16)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown receiver {unknown[0]!r}: choose from {', '.join(known)}")
    origins = photos.origins("test", count)
    captions = crop_captions(photos.photographs("test"), origins)
    chosen = {name: known[name] for name in names}
    return Protocol(photos.load("test", count).images, captions, origins, chosen, **changes)


class Job(NamedTuple):
    """One receiver on one channel at one SNR."""

    receiver: str
    channel: str
    snr_db: float

    def __str__(self) -> str:
        return f"{self.receiver}_{self.channel}_{self.snr_db:g}dB"


class Evaluation(KeptEvaluation[Job]):
    """Runs the jobs of a protocol and keeps what every crop gave.

    Args:
        system, protocol: what is measured on what.
        folder: of the kept figures; None keeps them in memory alone.
    """

    def __init__(self, system: SgdJscc, protocol: Protocol, folder: Path | None = None) -> None:
        self.system, self.protocol = system, protocol
        super().__init__(None if folder is None else folder / self._key())
        self.images = protocol.images.float() / 255
        self._sent: dict[float, Sent] = {}
        self._edges: Tensor | None = None
        self._features: dict[str, Tensor] = {}
        self._prints: dict[object, bytes] = {}

    def jobs(self) -> list[Job]:
        """SNR by SNR, so that a stopped run holds whole comparisons."""
        p = self.protocol
        return [Job(name, channel, snr) for channel in p.channels for snr in p.snrs_db for name in p.receivers]

    def _key(self) -> str:
        p = self.protocol
        digest = hashlib.sha256(
            repr((_VERSION, p.seed, p.link, sorted([*p.extras, *p.features]), list(p.captions))).encode()
        )
        digest.update(p.images.numpy().tobytes())
        for part in (self.system.autoencoder, self.system.edge_codec):
            digest.update(fingerprint(part).encode())
        return digest.hexdigest()[:16]

    def _mark(self, job: Job) -> str:
        digest = hashlib.sha256(repr(self.protocol.receivers[job.receiver]).encode())
        for part in self.system.parts(self.protocol.receivers[job.receiver]):
            if part not in self._prints:
                tensors = part.covariance.numpy().tobytes() if isinstance(part, WienerDenoiser) else None
                self._prints[part] = fingerprint(part).encode() if tensors is None else tensors  # type: ignore[arg-type]
            digest.update(self._prints[part])
        return f"{job}_{digest.hexdigest()[:12]}"

    def _title(self, job: Job) -> str:
        return f"{job.receiver}, {job.channel}, {job.snr_db:g} dB"

    def _transmitted(self, snr_db: float) -> Sent:
        if self._edges is None:
            self._edges = torch.cat([soft_edges(block) for block in self.protocol.images.split(BATCH)])
        if snr_db not in self._sent:
            blocks = zip(self.images.split(BATCH), self._edges.split(BATCH), strict=True)
            sent = [self.system.transmit(images, snr_db, edges) for images, edges in blocks]
            self._sent[snr_db] = Sent(*map(torch.cat, zip(*sent, strict=True)))
        return self._sent[snr_db]

    def recovered(self, job: Job) -> Tensor:
        """The images [N,3,S,S] that a job's receiver makes of the crops, clamped to [0,1]."""
        p, sent = self.protocol, self._transmitted(job.snr_db)
        link, config = replace(p.link, channel=job.channel), p.receivers[job.receiver]
        images = []
        for first in range(0, len(self.images), BATCH):
            cut = slice(first, first + BATCH)
            received = send(sent.f[cut], sent.o[cut], job.snr_db, link, seed=p.seed, first_item=first)
            images.append(
                self.system.receive(
                    received, link, config, captions=p.captions[cut], seed=p.seed, first_item=first
                ).images.clamp(0, 1)
            )
        return torch.cat(images)

    @torch.no_grad()
    def _measure(self, job: Job) -> Figures:
        recovered, p = self.recovered(job), self.protocol
        assert self._edges is not None
        edges = torch.cat([soft_edges(block) for block in recovered.split(BATCH)])
        figures = {
            "psnr_db": psnr(self.images, recovered, low=0.0, cap_db=PSNR_CAP_DB),
            "ssim": ssim(self.images, recovered, low=0.0),
            "ms_ssim": ms_ssim(self.images, recovered, low=0.0),
            "edge_f1": edge_f1(self._edges, edges),
        }
        for name, extra in p.extras.items():
            figures[name] = extra(self.images, recovered, p.captions)
        arrays = {name: value.double().numpy() for name, value in figures.items()}
        for name, features in {"latent_frechet": self._encoded_features, **p.features}.items():
            if name not in self._features:
                self._features[name] = torch.cat([features(block) for block in self.images.split(BATCH)])
            found = torch.cat([features(block) for block in recovered.split(BATCH)])
            arrays[name] = np.array([frechet_distance(self._features[name], found)])
        return arrays

    def _encoded_features(self, images: Tensor) -> Tensor:
        return latent_features(self.system.autoencoder.encode(images))


class Difference(NamedTuple):
    """A mean over crops with its standard error, and the standard error over photographs' means."""

    mean: float
    se: float
    se_photos: float


def mean_of(values: np.ndarray, origins: np.ndarray) -> Difference:
    """Mean and standard errors of one figure (or of a paired difference) over crops; NaN errors where there is one."""
    if len(values) == 1:
        return Difference(float(values[0]), float("nan"), float("nan"))
    photos = np.array([values[origins == photo].mean() for photo in np.unique(origins)])
    spread = photos.std(ddof=1) / len(photos) ** 0.5 if len(photos) > 1 else float("nan")
    return Difference(float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5), float(spread))


# Paired differences: name -> (receiver and channel, less receiver and channel); None is the channel of the row.
GAINS: dict[str, tuple[tuple[str, str | None], tuple[str, str | None]]] = {
    "guided diffusion over codec alone": (("guided", None), ("codec", None)),
    "guided diffusion over Wiener": (("guided", None), ("wiener", None)),
    "diffusion without edges over codec alone": (("diffusion", None), ("codec", None)),
    "diffusion without edges over Wiener": (("diffusion", None), ("wiener", None)),
    "Wiener over codec alone": (("wiener", None), ("codec", None)),
    "edge guidance": (("guided", None), ("diffusion", None)),
    "caption": (("captioned", None), ("guided", None)),
    "all steps over one": (("guided", None), ("one-step", None)),
    "estimated over known SNR": (("guided-estimated", None), ("guided", None)),
    "fast fading over AWGN, guided": (("guided", "fast"), ("guided", "awgn")),
    "fast fading over AWGN, codec alone": (("codec", "fast"), ("codec", "awgn")),
    "slow fading over AWGN, guided": (("guided", "slow"), ("guided", "awgn")),
}


def gains(found: Mapping[Job, Figures], origins: np.ndarray) -> list[dict[str, object]]:
    """The paired differences of whatever pairs of jobs are there, as rows of a table."""
    rows: list[dict[str, object]] = []
    for name, ((better, where_better), (base, where_base)) in GAINS.items():
        for job in found:
            at = where_better or job.channel
            if (job.receiver, job.channel) != (better, at):
                continue
            other = found.get(Job(base, where_base or job.channel, job.snr_db))
            if other is None:
                continue
            row: dict[str, object] = {"what": name, "channel": job.channel, "snr_db": f"{job.snr_db:g}"}
            for figure in PER_CROP:
                values = mean_of(found[job][figure] - other[figure], origins)
                row |= {figure: f"{values.mean:.4f}", f"{figure}_se": f"{values.se:.4f}"}
                row[f"{figure}_se_photos"] = f"{values.se_photos:.4f}"
            rows.append(row | {"crops": len(origins), "photographs": len(np.unique(origins))})
    return rows


def rows_of(
    found: Mapping[Job, Figures], protocol: Protocol, photos: str, places: Mapping[Job, dict[str, str]]
) -> list[dict[str, object]]:
    """The means as rows of a table."""
    origins = protocol.origins.numpy()
    rows = []
    for job, figures in found.items():
        config = protocol.receivers[job.receiver]
        row: dict[str, object] = {"receiver": job.receiver, "channel": job.channel, "snr_db": f"{job.snr_db:g}"}
        row["steps"] = config.waterfill.steps if config.denoiser == "diffusion" else 0
        for name, values in figures.items():
            value = mean_of(values, origins)
            row[name] = f"{value.mean:.4f}"
            if len(values) == len(origins) and len(values) > 1:
                row[f"{name}_se"] = f"{value.se:.4f}"
        row |= {"crops": len(origins), "photographs": len(np.unique(origins)), "photos": photos, "seed": protocol.seed}
        rows.append(row | {"networks": "bfloat16" if config.bf16 else "float32"} | places[job])
    return rows


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows as CSV, the file replaced as a whole."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with whole_file(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def gains_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}_gains{path.suffix}")


def evaluate(
    system: SgdJscc, protocol: Protocol, out: Path, photos: str, *, keep: Path | None = None, progress: bool = True
) -> Evaluation:
    """Run all jobs, rewriting both tables after each."""
    evaluation = Evaluation(system, protocol, keep)
    for _ in evaluation.run(progress):
        write_table(out, rows_of(evaluation.found, protocol, photos, evaluation.places))
        write_table(gains_path(out), gains(evaluation.found, protocol.origins.numpy()))
    return evaluation


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sgd_jscc.csv"))
    parser.add_argument("--images", type=int, default=256, help="held-out crops (default: %(default)s)")
    parser.add_argument("--receivers", nargs="+", default=list(MAIN), metavar="NAME", help=", ".join(receivers()))
    parser.add_argument("--channels", nargs="+", default=list(CHANNELS), choices=CHANNELS)
    parser.add_argument("--snr", type=float, nargs="+", default=list(SNRS_DB), metavar="DB")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the diffusion (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="networks of the diffusion in bfloat16")
    parser.add_argument("--weights", type=Path, metavar="DIR")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    protocol = protocol_of(
        PhotoCrops(size=64), args.images, args.receivers, args.steps, bf16=args.bf16, channels=tuple(args.channels),
        snrs_db=tuple(args.snr), seed=args.seed,
    )  # fmt: skip

    def run() -> None:
        edges = any(config.edges and config.denoiser == "diffusion" for config in protocol.receivers.values())
        system = load_system(args.weights, control=edges)
        evaluate(system, protocol, args.out, "all test photos", keep=data_home() / "sgd_jscc")

    return table_or_stop(run, args.out, gains_path(args.out))


if __name__ == "__main__":
    sys.exit(main())
