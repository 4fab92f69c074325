"""The classical link beside the semantic one: the same images, channels and noise, by image codec, LDPC code and QAM.

    python -m semcom_fast.systems.mu_mimo.evaluate_classical --out benchmarks/results/mu_mimo_classical.csv

sends the held-out photo crops of `evaluate` in every mode (modulation and code rate) of `baselines.sscc`. psnr_db is the
mean over images, an image over the slot's budget or with a block error counting as 0 dB; psnr_arrived_db is that of the
images that arrive, source_psnr_db that of the codec alone (0 dB over budget); ssim counts lost images as 0. bler is the
share of blocks with an error in their information bits, over_budget the share of images that no quality of the codec
brings into a slot. `_se` is the standard error over seeds of channel order and noise. csi_error_var: of the base
station's channel; 0 is the perfect knowledge that the semantic figures assume.

Needs the extras `sionna` and `demo`. What every row gave is kept in a folder of the cache that is named after images,
channels and settings, so that a stopped evaluation goes on where it was.

Source: the SSCC baseline of "Scenario-Adaptive MU-MIMO OFDM Semantic Communication With Asymmetric Neural Network".
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ...baselines.sscc import MODES, SSCC, Mode, SourceCoded
from ...baselines.sscc_codecs import CODECS
from ...data import ImpulseResponses
from ...data.images import ImageSet, data_home
from ...data.photos import PhotoCrops
from ...links import ssim
from ...links.mu_mimo_ofdm import ResourceGrid
from ..evaluation import Figures, KeptEvaluation, table_or_stop
from ..sgd_jscc.evaluate import write_table
from .evaluate import SNRS_DB, mean_and_error, scenario_channels, slots
from .networks import SHIPPED_SUBCARRIERS

_VERSION = 1


class Job(NamedTuple):
    """One row: a mode of a codec's link in one scenario at one SNR."""

    codec: str
    mode: str
    scenario: str
    snr_db: float
    csi_error_var: float


@dataclass(frozen=True)
class ClassicalProtocol:
    """What is sent over what.

    Attributes:
        photos: images, of which a multiple of four is sent.
        channels: impulse responses by scenario.
        codecs: of `baselines.sscc_codecs.CODECS`.
        modes: modulations and code rates.
        seeds: of channel order and noise.
        csi_error_vars: variances of the transmitter's channel error.
        iterations: of the LDPC decoder.
    """

    photos: ImageSet
    channels: dict[str, ImpulseResponses]
    codecs: Sequence[str] = ("jpeg", "webp")
    modes: Sequence[Mode] = MODES
    snrs_db: Sequence[float] = SNRS_DB
    seeds: Sequence[int] = (0, 1, 2)
    csi_error_vars: Sequence[float] = (0.0,)
    subcarriers: int = SHIPPED_SUBCARRIERS
    iterations: int = 20

    def __post_init__(self) -> None:
        unknown = [name for name in self.codecs if name not in CODECS]
        if unknown:
            raise ValueError(f"unknown codec {unknown[0]!r}: choose from {', '.join(CODECS)}")
        if len(self.photos) < 4:
            raise ValueError(f"a grid carries 4 images, got {len(self.photos)}")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the images and channels."""
        digest = hashlib.sha256(self.photos.images.numpy().tobytes())
        for name, cir in sorted(self.channels.items()):
            digest.update(name.encode() + cir.gains.numpy().tobytes() + cir.delays.numpy().tobytes())
        return digest.hexdigest()


class Evaluation(KeptEvaluation[Job]):
    """All jobs of a protocol; a codec compresses an image once for each size of a slot's budget."""

    def __init__(self, protocol: ClassicalProtocol, folder: Path | None = None) -> None:
        super().__init__(folder)
        self.protocol = protocol
        self._links: dict[tuple[str, str], tuple[SSCC, SourceCoded]] = {}

    def jobs(self) -> list[Job]:
        p = self.protocol
        places = [(s, snr, error) for s in p.channels for error in p.csi_error_vars for snr in p.snrs_db]
        return [Job(codec, str(mode), *place) for codec in p.codecs for place in places for mode in p.modes]

    def _mark(self, job: Job) -> str:
        p = self.protocol
        what = (_VERSION, p.fingerprint, tuple(p.seeds), p.subcarriers, p.iterations)
        digest = hashlib.sha256(repr((*what, job)).encode()).hexdigest()[:16]
        return f"{job.codec}_{job.scenario}_{job.snr_db:g}dB_{digest}"

    def _title(self, job: Job) -> str:
        return f"{job.codec} {job.mode}, {job.scenario}, {job.snr_db:g} dB, error {job.csi_error_var:g}"

    def _link(self, job: Job) -> tuple[SSCC, SourceCoded]:
        """The link in the job's mode, and the images as its codec compresses them for it."""
        key = job.codec, job.mode
        if key not in self._links:
            p = self.protocol
            mode = next(mode for mode in p.modes if str(mode) == job.mode)
            link = SSCC(ResourceGrid(p.subcarriers), mode, job.codec, iterations=p.iterations)
            sent = p.photos.images[: len(p.photos) // link.grid.users * link.grid.users]
            self._links[key] = link, link.source_code(sent.float() / 255)
        return self._links[key]

    @torch.no_grad()
    def _measure(self, job: Job) -> Figures:
        """Per seed and image: PSNR, SSIM, block errors; per image: what the codec alone does."""
        p, (link, coded) = self.protocol, self._link(job)
        truth = p.photos.images[: len(coded.sizes)].float() / 255
        per_seed: dict[str, list[np.ndarray]] = {"psnr": [], "ssim": [], "block_error": []}
        for seed in p.seeds:
            parts = []
            for first, which, h, noise_var in slots(
                link.grid, torch.arange(len(truth)), p.channels[job.scenario], job.snr_db, seed
            ):
                some = SourceCoded(*(part[which] for part in coded))
                parts.append(
                    link.deliver(some, h, noise_var, seed=seed, first_item=first, csi_error_var=job.csi_error_var)
                )
            quality = torch.cat([part.psnr.flatten() for part in parts])
            shown = torch.cat([part.images.flatten(0, 1) for part in parts])
            structure = ssim(truth, shown, low=0.0, high=1.0).masked_fill(quality == 0, 0.0)
            per_seed["psnr"].append(quality.double().numpy())
            per_seed["ssim"].append(structure.double().numpy())
            per_seed["block_error"].append(torch.cat([part.block_error.flatten() for part in parts]).numpy())
        figures = {name: np.stack(values) for name, values in per_seed.items()}
        return {**figures, "source_psnr": coded.psnr.double().numpy(), "over_budget": (coded.sizes == 0).numpy()}


def rows_of(evaluation: Evaluation) -> list[dict[str, object]]:
    """What was found, as rows of a table."""
    p, rows = evaluation.protocol, []
    for job, figures in evaluation.found.items():
        quality, structure, wrong = (figures[name] for name in ("psnr", "ssim", "block_error"))
        (psnr_db, psnr_se), (similar, similar_se), (bler, bler_se) = (
            mean_and_error(values.mean(1)) for values in (quality, structure, wrong)
        )
        arrived = quality[quality > 0]
        row: dict[str, object] = {
            **job._asdict(),
            "snr_db": f"{job.snr_db:g}",
            "csi_error_var": f"{job.csi_error_var:g}",
        }
        row |= {"psnr_db": f"{psnr_db:.4f}", "psnr_se": f"{psnr_se:.4f}"}
        row |= {
            "ssim": f"{similar:.4f}",
            "ssim_se": f"{similar_se:.4f}",
            "bler": f"{bler:.4f}",
            "bler_se": f"{bler_se:.4f}",
        }
        row["over_budget"] = f"{figures['over_budget'].mean():.4f}"
        row["psnr_arrived_db"] = f"{arrived.mean():.4f}" if arrived.size else ""
        row["source_psnr_db"] = f"{figures['source_psnr'].mean():.4f}"
        row |= {"subcarriers": p.subcarriers, "images": quality.shape[1], "seeds": len(p.seeds)}
        rows.append(row | evaluation.places[job])
    return rows


def best_modes(evaluation: Evaluation) -> dict[tuple[str, str, float, float], Job]:
    """(codec, scenario, SNR in dB, channel error) -> the mode with the highest mean PSNR there. It is chosen on the very
    images and channels it is then shown for: an upper end of what adapting the mode to the SNR gives."""
    best: dict[tuple[str, str, float, float], Job] = {}
    for job, figures in evaluation.found.items():
        place = job.codec, job.scenario, job.snr_db, job.csi_error_var
        if place not in best or figures["psnr"].mean() > evaluation.found[best[place]]["psnr"].mean():
            best[place] = job
    return best


def evaluate(protocol: ClassicalProtocol, out: Path, *, keep: Path | None = None, progress: bool = True) -> Evaluation:
    """Run all jobs, rewriting the table after each."""
    evaluation = Evaluation(protocol, keep)
    for _ in evaluation.run(progress):
        write_table(out, rows_of(evaluation))
    return evaluation


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mu_mimo_classical.csv"))
    parser.add_argument("--images", type=int, default=1024, help="held-out photo crops (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="of channel order and noise (default: %(default)s)")
    parser.add_argument("--codecs", nargs="+", choices=tuple(CODECS), default=["jpeg", "webp"])
    parser.add_argument("--scenarios", nargs="+", default=["umi"], metavar="NAME", help="umi (default) uma rma all")
    parser.add_argument("--snr", type=float, nargs="+", default=list(SNRS_DB), metavar="DB")
    parser.add_argument(
        "--csi-error-var", type=float, nargs="+", default=[0.0], metavar="V", help="of the transmitter's channel"
    )
    parser.add_argument("--subcarriers", type=int, default=SHIPPED_SUBCARRIERS, metavar="NF")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    protocol = ClassicalProtocol(
        PhotoCrops(size=32).load("test", args.images),
        scenario_channels(args.scenarios, "eval"),
        tuple(args.codecs),
        snrs_db=tuple(args.snr),
        seeds=tuple(range(args.seeds)),
        csi_error_vars=tuple(args.csi_error_var),
        subcarriers=args.subcarriers,
    )
    return table_or_stop(lambda: evaluate(protocol, args.out, keep=data_home() / "mu_mimo_classical"), args.out)


if __name__ == "__main__":
    sys.exit(main())
