"""Channel priors compared: PVD with the Rayleigh, the Gaussian and the learned prior over channels that are correlated.

    python -m semcom_fast.systems.blind_mimosc.evaluate_channels --out benchmarks/results/pvd_channels.csv

sends held-out digits in K = 4 blocks of T = 8 slots from 2 antennas to 8, over exponentially correlated (Kronecker, 0.7)
and CDL-C channels, and receives them with the codeword known ("known") and blindly. Priors: "rayleigh" is mismatched (the
paper's PVD*), "gaussian" the exact Kronecker prior or, for CDL, the Gaussian prior of the sample covariance, "learned" the
network. Images, channels and noise are the same for all priors. nmse_db is the mean ratio over all images, failures
included; gain_db what a prior gains over "rayleigh", with the standard error of the paired difference (delta method), and
gain_per_image_db the mean of the images' own gains, which a few failures do not rule; share is the learned prior's gain
over the exact prior's, where that is above twice its standard error. lmmse_db: LMMSE with the codeword and the covariance
known; over CDL channels, which are not Gaussian, a prior may beat it.

What every image gave is kept in a folder of the cache that is named after weights and settings, so that a stopped
evaluation goes on where it was.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...data import load_digits
from ...data.images import data_home
from ...links import channel_nmse, noise_var_from_snr_db, to_db, transmit
from ...receivers import PVD, GaussianChannelPrior, PVDConfig
from ..decibels import Estimate, gain_db, influence, mean_db, standard_error
from ..evaluation import Figures, KeptEvaluation, table_or_stop
from ..sgd_jscc.evaluate import write_table
from .channel_laws import ChannelLaw
from .channel_prior import load_channel_denoiser
from .experiment import SUCCESS_DB, Link
from .measures import pixel_variance
from .networks import load_denoiser, load_encoder

SNRS_DB = (0.0, 5.0, 10.0, 20.0)
PRIORS = ("rayleigh", "gaussian", "learned")
KNOWLEDGE = ("known", "blind")
BATCH = 24
_VERSION = 1
LINK = Link(blocks=4, nr=8, nt=2, slots=8)
LAWS = {"kronecker": ChannelLaw(LINK.nr, LINK.nt), "cdl": ChannelLaw(LINK.nr, LINK.nt, cdl="C")}


class Job(NamedTuple):
    """One prior over one law at one SNR, with the codeword known or not."""

    law: str
    knowledge: str
    snr_db: float
    prior: str


class KnownCodeword:
    """An encoder that ignores its source: the receiver knows the codewords x [B,U,K,Nt,T] and estimates the channel."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __call__(self, d: Tensor) -> Tensor:
        return self.x


def _no_source(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The source is not looked for: zero, known for certain."""
    return torch.zeros_like(x), x.new_zeros(x.shape[:2])


def covariance_lmmse(y: Tensor, x: Tensor, noise_var: float, cov: Tensor) -> Tensor:
    """E[h|y] for one user's known codeword and a Gaussian channel of covariance `cov`, block by block.

    Model: Y_k = H_k X_k + N_k, E[vec h vec h^H] = cov [Nr Nt, Nr Nt] (row-major vec). With G = X X^H,
    vec h = (I + cov (I (x) G^T)/s)^-1 cov vec(Y X^H)/s.

    Args:
        y: [B,K,Nr,T]. x: [B,1,K,Nt,T]. noise_var: s.

    Returns:
        h [B,1,K,Nr,Nt].
    """
    (b, k, nr, _), nt = y.shape, x.shape[-2]
    codeword = x[:, 0].to(torch.complex128)
    gram = (codeword @ codeword.mH).mT
    blocks = torch.einsum("ac,bkmn->bkamcn", torch.eye(nr, dtype=gram.dtype), gram).reshape(b, k, nr * nt, nr * nt)
    matched = (y.to(gram.dtype) @ codeword.mH).reshape(b, k, nr * nt, 1)
    wide = cov.to(gram.dtype)
    system = torch.eye(nr * nt, dtype=gram.dtype) + wide @ blocks / noise_var
    return torch.linalg.solve(system, wide @ matched / noise_var).reshape(b, 1, k, nr, nt).to(y.dtype)


@dataclass(frozen=True)
class Protocol:
    """What is sent and how it is received: laws, SNRs and priors, held-out digits, the seed of channels and noise."""

    laws: Sequence[str] = tuple(LAWS)
    knowledge: Sequence[str] = KNOWLEDGE
    snrs_db: Sequence[float] = SNRS_DB
    priors: Sequence[str] = PRIORS
    images: int = 96
    seed: int = 0
    config: PVDConfig = field(default_factory=lambda: PVDConfig(users=LINK.users, nt=LINK.nt))
    weights: Path | None = None

    def __post_init__(self) -> None:
        available = len(load_digits().test)
        if not 2 <= self.images <= available:
            raise ValueError(f"images must be 2 to {available}, got {self.images}")
        if not self.snrs_db:
            raise ValueError("give at least one SNR in dB")


class Evaluation(KeptEvaluation[Job]):
    """Runs the jobs of a protocol and keeps what every image gave.

    Args:
        protocol: what is measured.
        folder: of the kept figures; None keeps them in memory alone.
    """

    def __init__(self, protocol: Protocol, folder: Path | None = None) -> None:
        super().__init__(folder)
        self.protocol = protocol
        self.encoder = load_encoder("penalised", LINK.blocks, LINK.nt, LINK.slots)
        self.denoiser = load_denoiser()
        self.digits = load_digits().test[: protocol.images].unsqueeze(1)
        self._priors: dict[tuple[str, str], Any] = {}
        self._covariance: dict[str, Tensor] = {}

    def jobs(self) -> list[Job]:
        """Comparison by comparison, so that a stopped run holds whole ones."""
        p = self.protocol
        return [
            Job(law, known, snr, prior)
            for snr in p.snrs_db
            for law in p.laws
            for known in p.knowledge
            for prior in p.priors
        ]

    def prior(self, law: str, name: str) -> Any:
        """The channel prior of that name, made once."""
        if (law, name) not in self._priors:
            makers: dict[str, Callable[[], Any]] = {
                "rayleigh": GaussianChannelPrior,
                "gaussian": LAWS[law].gaussian_prior,
                "learned": lambda: load_channel_denoiser(LAWS[law], folder=self.protocol.weights),
            }
            self._priors[law, name] = makers[name]()
        return self._priors[law, name]

    def covariance(self, law: str) -> Tensor:
        """Of vec h: exact for Kronecker, of samples for CDL."""
        if law not in self._covariance:
            channels = LAWS[law]
            kronecker = channels.cdl is None
            self._covariance[law] = torch.kron(*channels.covariances()) if kronecker else channels.sample_covariance()
        return self._covariance[law]

    def _mark(self, job: Job) -> str:
        p = self.protocol
        digest = hashlib.sha256(repr((_VERSION, p.images, p.seed, p.config, LINK, LAWS[job.law])).encode())
        networks = [self.encoder, self.denoiser, *([self.prior(job.law, "learned")] if job.prior == "learned" else [])]
        for network in networks:
            for tensor in network.state_dict().values():
                digest.update(tensor.numpy().tobytes())
        return f"{job.law}_{job.knowledge}_{job.snr_db:g}dB_{job.prior}_{digest.hexdigest()[:16]}"

    def _title(self, job: Job) -> str:
        return f"{job.law}, {job.knowledge}, {job.snr_db:g} dB, {job.prior}"

    def _measure(self, job: Job) -> Figures:
        parts = [self._batch(job, first) for first in range(0, self.protocol.images, BATCH)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _batch(self, job: Job, first: int) -> Figures:
        """One batch of images, the first of index `first`; a split protocol sees the same channels and noise."""
        p, d = self.protocol, self.digits[first : first + BATCH]
        noise_var = noise_var_from_snr_db(job.snr_db, users=LINK.users, nt=LINK.nt)
        x = self.encoder(d)
        h = LAWS[job.law].draw(len(d), LINK.users, LINK.blocks, seed=p.seed, first_item=first)
        y = transmit(h, x, noise_var, p.seed, first_item=first)
        prior, config = self.prior(job.law, job.prior), p.config
        blind = job.knowledge == "blind"
        receiver = (
            PVD(self.encoder, prior, self.denoiser, config)
            if blind
            else PVD(KnownCodeword(x), prior, _no_source, config)
        )
        result = receiver.run(y, noise_var, seed=p.seed, first_item=first)
        lmmse = covariance_lmmse(y, x, noise_var, self.covariance(job.law))
        figures = {
            "nmse": channel_nmse(h, result.h),
            "lmmse": channel_nmse(h, lmmse),
            "source": (result.d - d).square().mean((1, 2)),
        }
        return {name: value.double().numpy() for name, value in figures.items()}


def gain_share(base: np.ndarray, learned: np.ndarray, exact: np.ndarray) -> Estimate:
    """gain_db(base, learned) over gain_db(base, exact)."""
    part, whole = gain_db(base, learned).value, gain_db(base, exact).value
    share = part / whole
    at = influence(base)
    moves = (at - influence(learned) - share * (at - influence(exact))) / whole
    return Estimate(share, standard_error(moves))


def gain_per_image(base: np.ndarray, better: np.ndarray) -> Estimate:
    """The mean over images of each one's gain in dB: a few failures do not rule it as they rule the mean ratio."""
    gains = 10 * np.log10(base / better)
    return Estimate(float(gains.mean()), standard_error(gains))


GAINS = ("gain_db", "gain_se", "gain_per_image_db", "gain_per_image_se", "share", "share_se")


def rows_of(evaluation: Evaluation) -> list[dict[str, object]]:
    """What was found, as rows of a table."""
    p, found = evaluation.protocol, evaluation.found
    variance = pixel_variance(load_digits().train)
    rows = []
    for job, figures in found.items():
        nmse = figures["nmse"]
        mean, lmmse = mean_db(nmse), mean_db(figures["lmmse"])
        row: dict[str, object] = {"channel": LAWS[job.law].name, "codeword": job.knowledge, "snr_db": f"{job.snr_db:g}"}
        row |= {"prior": job.prior, "nmse_db": f"{mean.value:.3f}", "nmse_se": f"{mean.se:.3f}"}
        row["nmse_median_db"] = f"{to_db(float(np.median(nmse))):.3f}"
        row["success_rate"] = f"{(nmse < 10 ** (SUCCESS_DB / 10)).mean():.4f}"
        row |= dict.fromkeys(GAINS, "")
        base, exact = (found.get(job._replace(prior=name)) for name in ("rayleigh", "gaussian"))
        if base is not None and job.prior != "rayleigh":
            gain, each = gain_db(base["nmse"], nmse), gain_per_image(base["nmse"], nmse)
            row |= {"gain_db": f"{gain.value:.3f}", "gain_se": f"{gain.se:.3f}"}
            row |= {"gain_per_image_db": f"{each.value:.3f}", "gain_per_image_se": f"{each.se:.3f}"}
        if base is not None and exact is not None and job.prior == "learned" and LAWS[job.law].cdl is None:
            whole = gain_db(base["nmse"], exact["nmse"])
            if whole.value > 2 * whole.se:  # a share of nothing is no figure
                share = gain_share(base["nmse"], nmse, exact["nmse"])
                row |= {"share": f"{share.value:.3f}", "share_se": f"{share.se:.3f}"}
        row |= {"lmmse_db": f"{lmmse.value:.3f}", "lmmse_se": f"{lmmse.se:.3f}"}
        row["mse_over_var"] = f"{figures['source'].mean() / variance:.4f}" if job.knowledge == "blind" else ""
        row |= {"K": LINK.blocks, "Nr": LINK.nr, "Nt": LINK.nt, "T": LINK.slots, "images": p.images, "seed": p.seed}
        rows.append(row | evaluation.places[job])
    return rows


def evaluate(protocol: Protocol, out: Path, *, keep: Path | None = None, progress: bool = True) -> Evaluation:
    """Run all jobs, rewriting the table after each."""
    evaluation = Evaluation(protocol, keep)
    for _ in evaluation.run(progress):
        write_table(out, rows_of(evaluation))
    return evaluation


def main(argv: Sequence[str] | None = None) -> int:
    default = Protocol()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pvd_channels.csv"))
    parser.add_argument("--images", type=int, default=default.images, help="held-out digits (default: %(default)s)")
    parser.add_argument("--laws", nargs="+", choices=tuple(LAWS), default=list(default.laws))
    parser.add_argument("--codeword", nargs="+", choices=KNOWLEDGE, default=list(default.knowledge))
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=list(default.priors))
    parser.add_argument("--snr", type=float, nargs="+", default=list(default.snrs_db), metavar="DB")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--weights", type=Path, metavar="DIR", help="channel priors of your own training")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    protocol = Protocol(
        tuple(args.laws), tuple(args.codeword), tuple(args.snr), tuple(args.priors), args.images, args.seed,
        weights=args.weights,
    )  # fmt: skip
    return table_or_stop(lambda: evaluate(protocol, args.out, keep=data_home() / "pvd_channels"), args.out)


if __name__ == "__main__":
    sys.exit(main())
