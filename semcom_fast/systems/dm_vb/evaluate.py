"""The evaluation protocol: NMSE of every estimator against SNR and against pilot density, profile by profile.

    python -m semcom_fast.systems.dm_vb.evaluate --out benchmarks/results/dm_vb.csv

sends QPSK pilots through held-out channels of each profile. All estimators meet the same channels, pilots and noise, so
their differences are paired: a second table, OUT_gains.csv, holds DM-VB's gains with their own standard errors. NMSE is
the mean over channels of |H - Hhat|^2/|H|^2, then in dB; `_se` is its standard error over channels, in dB by the delta
method. One pilot matrix serves all channels of a density, so it is not part of that error.

What every channel gave is kept in a folder of the cache that is named after set, channels and seed, so that a stopped
evaluation goes on where it was. Rows of other settings in OUT stay there: sets and settings are measured one by one.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...data.images import data_home
from ...links.snr import noise_var_from_snr_db
from .. import decibels
from ..evaluation import Figures, KeptEvaluation, table_or_stop, where
from .channels import ARRAYS, KINDS, NT, PROFILES, load_set
from .estimators import LABELS, MAIN, Estimate, Estimators, Setting
from .link import pilot_count, qpsk_pilots, transmit
from .tables import gains_path, merged, read_table, write_table

SNRS_DB = tuple(float(snr) for snr in range(-10, 31, 5))
DENSITIES = (0.2, 0.4, 0.6, 0.8, 1.0)
DENSITY, DENSITY_SNR_DB = 0.6, 20.0
CHANNELS = 32
_ITEMS = 1_000_000  # of noise and starts, apart for each profile
_VERSION = 3


@dataclass(frozen=True)
class Protocol:
    """What is estimated from what.

    Attributes:
        estimators: those compared, by name.
        profiles: of the test channels; the estimators always know all four.
        snrs_db: at pilot density `density`; densities: at `density_snr_db`; either may be empty.
        channels: held-out channels per profile.
        seed: of pilots, noise and starts.
    """

    setting: Setting = field(default_factory=Setting)
    estimators: Sequence[str] = MAIN
    profiles: Sequence[str] = PROFILES
    snrs_db: Sequence[float] = SNRS_DB
    density: float = DENSITY
    densities: Sequence[float] = DENSITIES
    density_snr_db: float = DENSITY_SNR_DB
    channels: int = CHANNELS
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.profiles if name not in PROFILES]
        if unknown:
            raise ValueError(f"unknown profile {unknown[0]!r}: choose from {', '.join(PROFILES)}")
        if self.channels < 2:
            raise ValueError(f"at least 2 channels per profile are needed for an error, got {self.channels}")
        if not self.estimators or not self.profiles or not self.points():
            raise ValueError("give at least one estimator, one profile, and one SNR or pilot density")
        for _, density in self.points():
            pilot_count(density, NT)

    def points(self) -> list[tuple[float, float]]:
        """(SNR in dB, pilot density) of both sweeps, each once."""
        sweeps = [(float(snr), self.density) for snr in self.snrs_db]
        return list(dict.fromkeys(sweeps + [(self.density_snr_db, float(d)) for d in self.densities]))


class Job(NamedTuple):
    """One estimator on the channels of one profile at one SNR and pilot density."""

    estimator: str
    profile: str
    snr_db: float
    density: float

    def __str__(self) -> str:
        return f"{self.estimator}_{self.profile}_{self.snr_db:g}dB_{self.density:g}"


class Evaluation(KeptEvaluation[Job]):
    """Runs the jobs of a protocol and keeps what every channel gave.

    Args:
        estimators, protocol: what is measured on what. Estimators whose weights are missing are left out unless they
            were asked for by name (`missing` has the reasons).
        folder: of the kept figures; None keeps them in memory alone.
        strict: raise for missing weights instead.
    """

    def __init__(
        self, estimators: Estimators, protocol: Protocol, folder: Path | None = None, *, strict: bool = False
    ) -> None:
        self.estimators, self.protocol = estimators, protocol
        self.missing: dict[str, str] = {}
        self.names = []
        for name in protocol.estimators:
            try:
                estimators.check(name)
                self.names.append(name)
            except FileNotFoundError as err:
                if strict:
                    raise
                what = str(err).split(" with a card")[0]  # the rest depends on the machine
                self.missing[name] = f"{what}; train them with semcom-fast train dm-vb"
        super().__init__(None if folder is None else folder / self._key())
        self._channels: dict[str, Tensor] = {}

    def jobs(self) -> list[Job]:
        """Point by point and profile by profile, so that a stopped run holds whole comparisons."""
        p = self.protocol
        return [Job(name, profile, *point) for point in p.points() for profile in p.profiles for name in self.names]

    def _key(self) -> str:
        p = self.protocol
        return hashlib.sha256(repr((_VERSION, p.setting, p.channels, p.seed)).encode()).hexdigest()[:16]

    def _mark(self, job: Job) -> str:
        digest = hashlib.sha256(self.estimators.mark(job.estimator).encode())
        return f"{job}_{digest.hexdigest()[:12]}"

    def _title(self, job: Job) -> str:
        return f"{job.estimator}, {job.profile}, {job.snr_db:g} dB, density {job.density:g}"

    def channels(self, profile: str) -> Tensor:
        """The held-out channels of a profile [N,16,64]."""
        if profile not in self._channels:
            self._channels[profile] = load_set(self.protocol.setting.channels(profile), "test", self.protocol.channels)
        return self._channels[profile]

    def estimate(self, job: Job, count: int | None = None) -> Estimate:
        """What the estimator of a job makes of its first `count` channels (default: all)."""
        seed, first = self.protocol.seed, PROFILES.index(job.profile) * _ITEMS
        pilots = qpsk_pilots(NT, pilot_count(job.density, NT), seed=seed)
        noise_var = noise_var_from_snr_db(job.snr_db, "dm_vb", nt=NT)
        y = transmit(self.channels(job.profile)[:count], pilots, noise_var, seed=seed, first_item=first)
        return self.estimators.estimate(job.estimator, y, pilots, noise_var, seed=seed, first_item=first)

    def _measure(self, job: Job) -> Figures:
        h, got = self.channels(job.profile), self.estimate(job)
        error = (got.h - h).abs().double().square().sum((1, 2)) / h.abs().double().square().sum((1, 2))
        chosen = torch.full((len(h),), -1) if got.weights is None else got.weights.argmax(1)
        return {
            "nmse": error.numpy(),
            "chosen": chosen.numpy(),
            "seconds": np.array([got.seconds / len(h)]),
            "gflop": np.array([got.flops / 1e9]),
            "iterations": np.array([got.iterations]),
        }


class Mean(NamedTuple):
    """A value in dB and its standard error over channels, in dB."""

    db: float
    se: float


def mean_db(nmse: np.ndarray) -> Mean:
    """10 log10 of the mean NMSE over channels, its standard error by the delta method."""
    return Mean(*decibels.mean_db(nmse))


def gain_db(better: np.ndarray, base: np.ndarray) -> Mean:
    """How much lower the mean NMSE `better` is than `base` on the same channels, in dB, with the error of the pairs."""
    return Mean(*decibels.gain_db(base, better))


def selection(job: Job, figures: Figures) -> float | None:
    """Share of the channels for which the expert of their own profile has most weight; None without experts."""
    chosen = figures["chosen"]
    return None if (chosen < 0).any() else float((chosen == PROFILES.index(job.profile)).mean())


def rows_of(evaluation: Evaluation) -> list[dict[str, object]]:
    """What was found as rows of a table, and one row for each estimator that is missing."""
    p, place = evaluation.protocol, where()
    common: dict[str, object] = {"set": p.setting.kind, "array": p.setting.array, "data": p.setting.data}
    rows = []
    for job, figures in evaluation.found.items():
        value, right = mean_db(figures["nmse"]), selection(job, figures)
        row = common | {"estimator": job.estimator, "profile": job.profile, "snr_db": f"{job.snr_db:g}"}
        row |= {"density": f"{job.density:g}", "pilots": pilot_count(job.density, NT)}
        row |= {"nmse_db": f"{value.db:.3f}", "nmse_se": f"{value.se:.3f}"}
        row |= {"selection": "" if right is None else f"{right:.4f}", "iterations": f"{figures['iterations'][0]:.2f}"}
        row |= {"cpu_ms_per_channel": f"{1e3 * figures['seconds'][0]:.4g}"}
        row |= {"gflop_per_channel": f"{figures['gflop'][0]:.4g}", "channels": p.channels, "seed": p.seed}
        diffusion = job.estimator in ("dm-vb", "dm-vb-paper", "single-dm")
        row |= {"networks": ("bfloat16" if evaluation.estimators.bf16 else "float32") if diffusion else ""}
        rows.append(row | {"note": ""} | evaluation.places[job])
    for name, reason in evaluation.missing.items():
        rows.append(common | {"estimator": name, "note": f"missing: {reason}"} | place)
    return rows


# What DM-VB is compared with, and whether a diffusion prior or a linear one wins where there is no DM-VB.
PAIRS = (
    *(("dm-vb", base) for base in ("rls", "lasso", "lmmse", "single-dm", "gm-mmse", "gm-exact")),
    ("gm-mmse", "lmmse"),
    ("gm-mmse", "lasso"),
)


def gains(evaluation: Evaluation) -> list[dict[str, object]]:
    """The paired differences of whatever pairs of jobs are there, as rows of a table."""
    p, found = evaluation.protocol, evaluation.found
    common: dict[str, object] = {"set": p.setting.kind, "array": p.setting.array, "data": p.setting.data}
    rows = []
    for better, base in PAIRS:
        for job, figures in found.items():
            other = found.get(job._replace(estimator=base)) if job.estimator == better else None
            if other is None:
                continue
            gain = gain_db(figures["nmse"], other["nmse"])
            row = common | {"estimator": better, "over": base, "profile": job.profile, "snr_db": f"{job.snr_db:g}"}
            row |= {"density": f"{job.density:g}", "gain_db": f"{gain.db:.3f}", "gain_se": f"{gain.se:.3f}"}
            rows.append(row | {"channels": p.channels, "seed": p.seed})
    return rows


def evaluate(evaluation: Evaluation, out: Path, *, progress: bool = True) -> None:
    """Run all jobs, rewriting both tables after each; rows of other settings that are there stay."""
    before, gains_before = read_table(out), read_table(gains_path(out))
    write_table(out, merged(before, rows_of(evaluation)))
    for _ in evaluation.run(progress):
        write_table(out, merged(before, rows_of(evaluation)))
        write_table(gains_path(out), merged(gains_before, gains(evaluation)))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_protocol(parser, Protocol())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dm_vb.csv"))
    parser.add_argument("--fp32", action="store_true", help="networks in float32, not bfloat16")
    parser.add_argument("--anew", action="store_true", help="measure again what is kept, for times on a quiet machine")
    parser.add_argument("--weights", type=Path, metavar="DIR")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    protocol = protocol_of(args)
    estimators = Estimators(protocol.setting, weights=args.weights, bf16=not args.fp32)
    keep = None if args.anew else data_home() / "dm_vb"

    def run() -> None:
        evaluate(Evaluation(estimators, protocol, keep, strict=args.estimators is not None), args.out)

    return table_or_stop(run, args.out, gains_path(args.out))


def add_protocol(parser: argparse.ArgumentParser, defaults: Protocol) -> None:
    """What is estimated from what, as options."""
    parser.add_argument("--set", choices=KINDS, default=defaults.setting.kind, help="channels (default: %(default)s)")
    parser.add_argument("--array", choices=ARRAYS, default=defaults.setting.array, help="default: %(default)s")
    parser.add_argument(
        "--scarce", choices=PROFILES, metavar="PROFILE", help="only 1,000 training channels of this profile"
    )
    parser.add_argument(
        "--estimators", nargs="+", metavar="NAME", help=f"of {', '.join(LABELS)} (default: {', '.join(MAIN)})"
    )
    parser.add_argument("--profiles", nargs="+", default=list(defaults.profiles), metavar="NAME", choices=PROFILES)
    parser.add_argument("--snr", type=float, nargs="*", default=list(defaults.snrs_db), metavar="DB")
    parser.add_argument("--density", type=float, default=defaults.density, help="pilot density of the SNRs")
    parser.add_argument(
        "--densities", type=float, nargs="*", default=list(defaults.densities), metavar="ALPHA", help="swept as well"
    )
    parser.add_argument(
        "--density-snr", type=float, default=defaults.density_snr_db, metavar="DB", help="and their SNR"
    )
    parser.add_argument(
        "--channels", type=int, default=defaults.channels, help="held-out, per profile (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of pilots, noise and starts")


def protocol_of(args: argparse.Namespace) -> Protocol:
    """The protocol that the options ask for; exact moments are left out by default where there are none."""
    setting = Setting(args.set, args.array, args.scarce)
    names = args.estimators
    if names is None:
        names = [name for name in MAIN if not (name == "gm-exact" and setting.kind == "rotated")]
    return Protocol(
        setting, tuple(names), tuple(args.profiles), tuple(args.snr), args.density, tuple(args.densities),
        args.density_snr, args.channels, args.seed,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
