"""The evaluation for photographs: held-out 32x32 grey crops, every receiver on the same crops, channels and noise.

    python -m semcom_fast.systems.blind_mimosc.evaluate_photos --out benchmarks/results/pvd_photos.csv

One row per encoder, SNR and receiver. Means and standard errors are over all crops, successes or not; success is an NMSE
below -6 dB. `nmse_db` is the mean ratio in dB with its standard error carried over to dB, `nmse_median_db` its median.
`bound` is what the linearised bound predicts for the trained encoder, `bound-random` for a random linear one; both report
the PSNR with the channel known besides. `mse_over_var` is the mean squared error over the pixels' variance among the
crops: 1 is the error of their mean image. PVD is sent the penalised codec, which spends `mean_codeword_energy` of its power
on what all codewords have in common, a superimposed pilot; pilots and known channels go with the plain codec
(`codec`), and `pvd-plain` is PVD with it, the best of its starts. `pvd_psnr_over_db` is by how much blind reception with
one start beats the row's receiver, crop by crop. `cbr` counts pilots in blocks of T slots: with Np of them there are
T/(T - Np) times as many blocks, where every block simulated here carries T data slots and the channel is estimated from
Np more; `-equal` receivers have T - Np data slots and a shorter codeword instead.

What every crop gave is kept in a folder of the cache named after networks, crops and settings, so that a stopped
evaluation goes on where it was, and `semcom-fast run blind-mimosc --images photos` draws from it.
"""

import argparse
import functools
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...data.images import data_home
from ...data.photos import PhotoCrops
from ...receivers import PVDConfig
from ..decibels import mean_db
from ..evaluation import Figures, KeptEvaluation, fingerprint, table_or_stop
from ..sgd_jscc.evaluate import mean_of, write_table
from .experiment import SUCCESS_DB
from .measures import pixel_variance
from .networks import PHOTO_CODECS, load_photo_codec, load_photo_denoiser
from .photo_codec import PhotoCodec
from .photo_images import SIDE, as_source, crop_covariance, grey, grey_crops, photo_source
from .photo_losses import mean_fraction
from .photo_reception import RECEIVERS, STARTS, Networks, Reception, cbr

SNRS_DB = (10.0, 20.0)
CROPS = 16
PRIOR_CROPS = 20_000
NEED_TRAINING_CROPS = ("bound", "bound-random")  # receivers that know the training crops' covariance
PRIOR_FLOOR = 1e-6  # on the covariance's diagonal: below the rounding of 8-bit pixels, (2/255)^2/12
_VERSION = 2


@dataclass(frozen=True)
class PhotoProtocol:
    """What is sent and received.

    Attributes:
        images: uint8 [N,1,S,S]; origins [N], the photograph each is of.
        receivers: names of RECEIVERS. snrs_db, seed: of channels, noise and the receivers' draws.
        config: of PVD; None is its default.
        bf16: denoiser in bfloat16.
    """

    images: Tensor
    origins: Tensor
    receivers: Sequence[str] = tuple(RECEIVERS)
    snrs_db: Sequence[float] = SNRS_DB
    seed: int = 0
    config: PVDConfig | None = None
    bf16: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.receivers if name not in RECEIVERS]
        if unknown:
            raise ValueError(f"unknown receiver {unknown[0]!r}: choose from {', '.join(RECEIVERS)}")
        if not len(self.images) or len(self.images) != len(self.origins) or not self.snrs_db or not self.receivers:
            raise ValueError("need crops, one origin for each, at least one SNR and one receiver")


def protocol_of(photos: PhotoCrops, count: int, **changes) -> PhotoProtocol:
    """The protocol for the first `count` held-out crops of `photos`."""
    return PhotoProtocol(grey(photos.load("test", count).images), photos.origins("test", count), **changes)


def training_crops_missing() -> FileNotFoundError | None:
    """Why the photographs of the training crops cannot be had, or None."""
    try:
        photo_source().photographs("train")
    except FileNotFoundError as err:
        return err
    return None


def _precision() -> Tensor:
    """The training crops' inverse covariance [n,n]."""
    covariance = crop_covariance(grey_crops(photo_source(), "train").images[:PRIOR_CROPS])
    covariance.diagonal().add_(PRIOR_FLOOR)
    return torch.linalg.inv(covariance)


def load_networks(variant: str = "penalised", folder: Path | None = None, *, bf16: bool = False) -> Networks:
    """Codec of PVD, denoiser, precision of the training crops, and the plain codecs of the baselines.

    Without the training photographs the precision is empty: all but NEED_TRAINING_CROPS do without it.

    Raises:
        FileNotFoundError: weights are missing; a plain codec is looked for when it is used.
    """
    denoiser = load_photo_denoiser(folder)
    denoiser.bf16 = bf16
    plain = functools.cache(lambda symbols: load_photo_codec("plain", folder, symbols=symbols))
    prior = torch.empty(0) if training_crops_missing() else _precision()
    return Networks(load_photo_codec(variant, folder), denoiser, prior, plain)


class Job(NamedTuple):
    """One receiver at one SNR."""

    receiver: str
    snr_db: float

    def __str__(self) -> str:
        return f"{self.receiver}_{self.snr_db:g}dB"


class PhotoEvaluation(KeptEvaluation[Job]):
    """Runs the jobs of a protocol with one codec and keeps what every crop gave; `folder` None keeps it in memory.

    Raises:
        FileNotFoundError: a receiver needs the training photographs, and they are missing.
    """

    def __init__(self, networks: Networks, protocol: PhotoProtocol, folder: Path | None = None) -> None:
        self.networks, self.protocol = networks, protocol
        needed = [name for name in protocol.receivers if name in NEED_TRAINING_CROPS]
        if needed and not networks.prior.numel():
            why = training_crops_missing() or "networks without the training crops' precision"
            raise FileNotFoundError(
                f"{needed[0]} needs the training photographs: {why}; or leave it out of --receivers"
            )
        super().__init__(None if folder is None else folder / self._key())
        self.common_energy = functools.cache(self._common_energy)
        self._reception: tuple[float, Reception] | None = None

    def _key(self) -> str:
        p = self.protocol
        digest = hashlib.sha256(repr((_VERSION, p.seed, p.config, p.bf16, STARTS)).encode())
        digest.update(p.images.numpy().tobytes())
        digest.update(fingerprint(self.networks.denoiser).encode())
        return digest.hexdigest()[:16]

    def codec(self, symbols: int | None) -> PhotoCodec:
        """The plain one of so many symbols; None: that of blind reception."""
        return self.networks.codec if symbols is None else self.networks.plain(symbols)

    def _common_energy(self, symbols: int | None) -> float:
        with torch.no_grad():
            return mean_fraction(self.codec(symbols).encoder(as_source(self.protocol.images).unsqueeze(1)))

    def jobs(self) -> list[Job]:
        """SNR by SNR, so that a stopped run holds whole comparisons."""
        return [Job(name, snr) for snr in self.protocol.snrs_db for name in self.protocol.receivers]

    def _mark(self, job: Job) -> str:
        return f"{job}_{fingerprint(self.codec(RECEIVERS[job.receiver].symbols))[:8]}"

    def _title(self, job: Job) -> str:
        return f"{job.receiver}, {job.snr_db:g} dB"

    def _measure(self, job: Job) -> Figures:
        p = self.protocol
        if self._reception is None or self._reception[0] != job.snr_db:
            reception = Reception(self.networks, as_source(p.images), job.snr_db, seed=p.seed, config=p.config)
            self._reception = job.snr_db, reception
        return self._reception[1].receive(job.receiver)


def _successes(figures: Figures) -> dict[str, object]:
    """How many, over all starts, and the means over those alone."""
    limit = 10 ** (SUCCESS_DB / 10)
    good = figures["nmse"] < limit
    row: dict[str, object] = {
        "success_rate": f"{float((figures.get('nmse_starts', figures['nmse']) < limit).mean()):.4f}"
    }
    if good.any():
        row["success_nmse_db"] = f"{mean_db(figures['nmse'][good]).value:.3f}"
        if "psnr_db" in figures:
            row["success_psnr_db"] = f"{float(figures['psnr_db'][good].mean()):.4f}"
    return row


def row_of(job: Job, figures: Figures, protocol: PhotoProtocol, codec: PhotoCodec) -> dict[str, object]:
    """One line of the table."""
    row: dict[str, object] = {
        "receiver": job.receiver,
        "snr_db": f"{job.snr_db:g}",
        "cbr": f"{cbr(job.receiver, codec):.4f}",
    }
    if "nmse" in figures:
        nmse = figures["nmse"]
        mean, error = mean_db(nmse)
        row |= {
            "nmse_db": f"{mean:.3f}",
            "nmse_db_se": f"{error:.3f}",
            "nmse_median_db": f"{10 * float(np.log10(np.median(nmse))):.3f}",
        }
        if job.receiver not in ("bound", "bound-random", "oracle"):
            row |= _successes(figures)
    for name in ("psnr_db", "ssim", "psnr_known_db"):
        if name in figures:
            value = mean_of(figures[name], protocol.origins.numpy())
            row |= {name: f"{value.mean:.4f}", f"{name}_se": f"{value.se:.4f}"}
    if "psnr_db" in figures:  # of images on [0,1]; the bounds' PSNR is that of their mean squared error, too
        error = float((10 ** (-figures["psnr_db"] / 10)).mean())
        row["mse_over_var"] = f"{error / pixel_variance(protocol.images.flatten(1).double() / 255):.5f}"
    if "energy" in figures:
        good = figures["nmse"] < 10 ** (SUCCESS_DB / 10) if "nmse" in figures else np.ones(len(figures["energy"]), bool)
        for name, chosen in (("energy_of_successes", good), ("energy_of_failures", ~good)):
            if chosen.any():
                row[name] = f"{float(np.median(figures['energy'][chosen])):.3f}"
    return row


def _blind_over(blind: Figures | None, figures: Figures, protocol: PhotoProtocol) -> dict[str, object]:
    """PSNR of blind reception with one start less this receiver's, crop by crop: mean and standard error."""
    if blind is None or figures is blind or "recovered" not in figures:
        return {}
    gain = mean_of(blind["psnr_db"] - figures["psnr_db"], protocol.origins.numpy())
    return {"pvd_psnr_over_db": f"{gain.mean:.4f}", "pvd_psnr_over_db_se": f"{gain.se:.4f}"}


FIELDS = (
    "encoder", "receiver", "snr_db", "cbr", "success_rate", "nmse_db", "nmse_db_se", "nmse_median_db", "psnr_db",
    "psnr_db_se", "ssim", "ssim_se", "success_nmse_db", "success_psnr_db", "psnr_known_db", "psnr_known_db_se",
    "mse_over_var", "pvd_psnr_over_db", "pvd_psnr_over_db_se", "energy_of_successes", "energy_of_failures", "codec",
    "mean_codeword_energy", "crops", "photographs", "starts", "seed", "networks",
)  # fmt: skip


def rows_of(evaluation: PhotoEvaluation, variant: str) -> list[dict[str, object]]:
    """The means as rows of a table."""
    p = evaluation.protocol
    common = {
        "encoder": variant,
        "crops": len(p.images),
        "photographs": len(p.origins.unique()),
        "starts": STARTS,
        "seed": p.seed,
        "networks": "bfloat16" if p.bf16 else "float32",
    }
    rows = []
    for job, figures in evaluation.found.items():
        symbols = RECEIVERS[job.receiver].symbols
        row = row_of(job, figures, p, evaluation.networks.codec) | common
        row["codec"] = variant if symbols is None else f"plain_{symbols}"
        row["mean_codeword_energy"] = f"{evaluation.common_energy(symbols):.3f}"
        row |= _blind_over(evaluation.found.get(Job("pvd", job.snr_db)), figures, p)
        rows.append({name: row.get(name, "") for name in FIELDS} | evaluation.places[job])
    return rows


def evaluate(
    variants: Sequence[str], protocol: PhotoProtocol, out: Path, *, weights: Path | None = None, progress: bool = True,
    keep: Path | None = None,
) -> dict[str, PhotoEvaluation]:  # fmt: skip
    """Run all jobs with the codec of every variant, rewriting the table after each; returns the evaluations."""
    done: dict[str, PhotoEvaluation] = {}
    for variant in variants:
        networks = load_networks(variant, weights, bf16=protocol.bf16)
        done[variant] = PhotoEvaluation(networks, protocol, keep)
        for _ in done[variant].run(progress):
            write_table(out, [row for name, e in done.items() for row in rows_of(e, name)])
    return done


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pvd_photos.csv"))
    parser.add_argument("--crops", type=int, default=CROPS, help="held-out crops (default: %(default)s)")
    parser.add_argument("--receivers", nargs="+", default=list(RECEIVERS), metavar="NAME", help=", ".join(RECEIVERS))
    parser.add_argument("--encoders", nargs="+", default=["penalised"], choices=sorted(PHOTO_CODECS))
    parser.add_argument("--snr", type=float, nargs="+", default=list(SNRS_DB), metavar="DB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="denoiser in bfloat16")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="weights of your own training (default: shipped)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    protocol = protocol_of(
        PhotoCrops(size=SIDE), args.crops, receivers=tuple(args.receivers), snrs_db=tuple(args.snr), seed=args.seed,
        bf16=args.bf16,
    )  # fmt: skip
    keep = data_home() / "blind_mimosc"
    run = functools.partial(evaluate, args.encoders, protocol, args.out, weights=args.weights, keep=keep)
    return table_or_stop(run, args.out)


if __name__ == "__main__":
    sys.exit(main())
