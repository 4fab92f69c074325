"""How far PVD's channel estimate is from the oracle's: LMMSE with the codeword known over all T slots.

    python -m semcom_fast.systems.blind_mimosc.evaluate_oracle --out benchmarks/results/pvd_oracle.csv

The paper reports PVD "within 0.7 dB of the oracle". Here are its antenna settings, (Nr,Nu,Nt) = (4,4,1) at 20 dB and
(64,1,8) at 0 dB with T = 24, over Rayleigh channels, first with the codeword known to PVD too (Gaussian symbols), over
SNRs and variants of the receiver, then blindly: every user sends a group of 8x8 digits through a random linear encoder,
with a Gaussian mixture as prior, or a photograph through the trained codec of 384 symbols, with the trained denoiser.

Columns. codeword: "known" or "blind". nmse_db: the mean ratio over all items; nmse_success_db over items below -3 dB.
gap_db: nmse_db - oracle_db on the same items, with the standard error of the paired difference (delta method);
gap_success_db the same over successes. predicted_gap_db: what `known_codeword.response` predicts for these codewords;
limit_gap_db: its continuous limit without sampling noise, which is the cost of the white (42) alone. bound_db: the
linearised bound with the sources' second moments, label_bound_db with every digit's mixture component known (a genie);
bound_gap_db is how far the bound is above the oracle and gap_to_bound_db how far the receiver above the bound, over the
successes that have a bound. load: real source values over the 2 K Nt (T - M) that M unknown streams leave. starts: 1, or
4 with the smallest residual energy kept; success_rate_starts: of all single starts.

What every item gave is kept in a folder of the cache that is named after what was run, so that a stopped evaluation goes
on where it was.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...baselines.lmmse import gaussian_pilots, oracle_lmmse_channel
from ...data.images import data_home
from ...links import channel_nmse, draw_channel, noise_var_from_snr_db, to_db, transmit
from ...ops import power_normalise
from ...receivers import PVD, DivergedError, GaussianChannelPrior, PVDConfig
from ..decibels import Estimate, gain_db, mean_db
from ..evaluation import Figures, KeptEvaluation, table_or_stop
from ..sgd_jscc.evaluate import write_table
from .experiment import Link
from .known_codeword import Response, codeword_modes, limit_gain, lmmse_errors, mode_errors, response
from .oracle_sources import BlindSource, blind_source, known_source

SLOTS, STARTS, SUCCESS_DB = 24, 4, -3.0
SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
BATCH = 8  # items of one PVD run
_VERSION = 1


class Setting(NamedTuple):
    """Antennas and SNR of the paper, and its K."""

    nr: int
    users: int
    nt: int
    snr_db: float
    blocks: int

    def link(self, blocks: int) -> Link:
        return Link(blocks, self.nr, self.nt, SLOTS, self.users)


SETTINGS = {"4-4-1": Setting(4, 4, 1, 20.0, 192), "64-1-8": Setting(64, 1, 8, 0.0, 24)}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "means": {"sample_noise": False},
    "moment": {"calibration": "moment"},
    "four-samples": {"L": 4},
    "exact": {"exact_covariance": True},
    "exact-means": {"exact_covariance": True, "sample_noise": False},
    "zeta-0.02": {"zeta_h": 0.02},
    "zeta-0.05": {"zeta_h": 0.05},
    "zeta-0.15": {"zeta_h": 0.15},
}
SWEPT = ("paper", "means", "moment", "exact")  # variants that are run at every SNR, the others at the paper's
# blocks and digits per user of the blind cells, from easy to crowded
DIGIT_CELLS = {"4-4-1": ((16, 1), (4, 1), (2, 1), (1, 1), (4, 4)), "64-1-8": ((1, 1), (2, 8), (1, 8), (1, 16))}
PHOTO_BLOCKS = {"4-4-1": 16, "64-1-8": 2}
EXACT_CELLS = {"4-4-1": ((1, 1),), "64-1-8": ((1, 8),)}  # with the exact covariance too


class Job(NamedTuple):
    """One variant of the receiver at one setting, SNR and K; `group` sources of a user make one codeword."""

    setting: str
    source: str
    blocks: int
    group: int
    snr_db: float
    variant: str


@dataclass(frozen=True)
class Protocol:
    """What is run.

    images: transmissions of a blind cell of digits; photographs: half as many, and a quarter with four users; known
    codewords: half as many with the paper's K, more with fewer blocks. bounds: transmissions whose bound is computed.
    """

    settings: Sequence[str] = tuple(SETTINGS)
    sources: Sequence[str] = ("gaussian", "digits", "photos")
    snrs_db: Sequence[float] = SNRS_DB
    images: int = 16
    bounds: int = 8
    seed: int = 0
    changes: tuple[tuple[str, Any], ...] = ()  # of every PVDConfig

    def __post_init__(self) -> None:
        if self.images < 8 or self.bounds < 2:
            raise ValueError(f"need at least 8 images and 2 bounds, got {self.images} and {self.bounds}")

    def items(self, job: Job) -> int:
        if job.source == "gaussian":
            return min(4 * self.images, max(self.images // 2, self.images // 2 * self._paper_blocks(job) // job.blocks))
        return self.images if job.source == "digits" else self.images // max(2, SETTINGS[job.setting].users)

    @staticmethod
    def _paper_blocks(job: Job) -> int:
        return SETTINGS[job.setting].blocks


def _known_jobs(name: str, snrs_db: Sequence[float]) -> list[Job]:
    """The paper's K at every SNR, and all variants and fewer blocks at the paper's SNR."""
    setting = SETTINGS[name]
    cells = [(snr, v) for snr in snrs_db for v in VARIANTS if v in SWEPT or snr == setting.snr_db]
    jobs = [Job(name, "gaussian", setting.blocks, 1, snr, variant) for snr, variant in cells]
    few = dict.fromkeys((24, PHOTO_BLOCKS[name], 1))
    return jobs + [Job(name, "gaussian", k, 1, setting.snr_db, "paper") for k in few if k != setting.blocks]


def _blind_jobs(name: str, source: str) -> list[Job]:
    snr = SETTINGS[name].snr_db
    cells = DIGIT_CELLS[name] if source == "digits" else ((PHOTO_BLOCKS[name], 1),)
    jobs = [Job(name, source, blocks, group, snr, "paper") for blocks, group in cells]
    return jobs + [job._replace(variant="exact") for job in jobs if (job.blocks, job.group) in EXACT_CELLS[name]]


class Evaluation(KeptEvaluation[Job]):
    """Runs the jobs of a protocol and keeps what every item gave; `folder` None keeps it in memory."""

    def __init__(self, protocol: Protocol, folder: Path | None = None) -> None:
        super().__init__(folder)
        self.protocol = protocol
        self._sources: dict[tuple, BlindSource] = {}

    def jobs(self) -> list[Job]:
        p = self.protocol
        known = [j for name in p.settings for j in _known_jobs(name, p.snrs_db) if "gaussian" in p.sources]
        blind = [s for s in p.sources if s != "gaussian"]
        return known + [j for source in blind for name in p.settings for j in _blind_jobs(name, source)]

    def config(self, job: Job) -> PVDConfig:
        setting = SETTINGS[job.setting]
        base = PVDConfig(users=setting.users, nt=setting.nt, source_shape=(1,))
        return replace(base, **VARIANTS[job.variant], **dict(self.protocol.changes))

    def source(self, job: Job) -> BlindSource:
        """Encoder, prior and sources of a blind cell, made once for its variants."""
        key = job[:4]
        if key not in self._sources:
            count = self.protocol.items(job)
            self._sources = {key: blind_source(job.source, self._link(job), job.group, count)}
        return self._sources[key]

    def _link(self, job: Job) -> Link:
        return SETTINGS[job.setting].link(job.blocks)

    def _noise_var(self, job: Job) -> float:
        setting = SETTINGS[job.setting]
        return noise_var_from_snr_db(job.snr_db, users=setting.users, nt=setting.nt)

    def _mark(self, job: Job) -> str:
        p = self.protocol
        networks = "" if job.source == "gaussian" else self.source(job).mark
        text = repr((_VERSION, p.items(job), p.bounds, p.seed, STARTS, self._link(job), self.config(job), networks))
        return f"{'_'.join(map(str, job))}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _title(self, job: Job) -> str:
        return f"{job.setting} {job.source} K={job.blocks} x{job.group} {job.snr_db:g} dB {job.variant}"

    def _measure(self, job: Job) -> Figures:
        with torch.no_grad():
            return self._known(job) if job.source == "gaussian" else self._blind(job)

    def _known(self, job: Job) -> Figures:
        """Per item [N]: nmse, oracle; and predicted, limit and predicted oracle as mean errors of its modes."""
        p, link, config = self.protocol, self._link(job), self.config(job)
        noise_var, parts = self._noise_var(job), []
        for first in range(0, p.items(job), BATCH):
            count = min(BATCH, p.items(job) - first)
            sizes = count, link.users, link.blocks
            x = power_normalise(gaussian_pilots(*sizes, link.nt, SLOTS, seed=p.seed, first_item=first))[0]
            h = draw_channel(*sizes, link.nr, link.nt, seed=p.seed, first_item=first)
            y = transmit(h, x, noise_var, p.seed, first_item=first)
            estimate, _, _ = _receive(known_source(x), config, y, noise_var, p.seed, first)
            modes = codeword_modes(x)
            found = response(modes, noise_var, config, SLOTS)
            white = Response(limit_gain(modes, noise_var, link.streams), torch.zeros_like(modes))
            figures = {
                "nmse": channel_nmse(h, estimate),
                "oracle": channel_nmse(h, oracle_lmmse_channel(y, x, noise_var)),
                "predicted": mode_errors(modes, noise_var, found).mean((1, 2)),
                "limit": mode_errors(modes, noise_var, white).mean((1, 2)),
                "predicted_oracle": lmmse_errors(modes, noise_var).mean((1, 2)),
            }
            parts.append({name: value.double().numpy() for name, value in figures.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _blind(self, job: Job) -> Figures:
        """Per item: oracle [N]; nmse, energy, source error [N,starts]; of the first `bounds` items the bounds."""
        p, link, source = self.protocol, self._link(job), self.source(job)
        d, noise_var, config = source.d, self._noise_var(job), self.config(job)
        config = replace(config, source_shape=tuple(d.shape[2:]))
        x = source.encoder(d)
        h = draw_channel(len(d), link.users, link.blocks, link.nr, link.nt, seed=p.seed)
        y = transmit(h, x, noise_var, p.seed)
        figures: dict[str, Tensor] = {"oracle": channel_nmse(h, oracle_lmmse_channel(y, x, noise_var))}
        parts = []
        for first in range(0, len(d), BATCH // 2):
            many = y[first : first + BATCH // 2].repeat_interleave(STARTS, 0)
            estimate, sent, energy = _receive(source, config, many, noise_var, p.seed, first * STARTS)
            truth = h[first : first + BATCH // 2].repeat_interleave(STARTS, 0)
            wrong = (sent - d[first : first + BATCH // 2].repeat_interleave(STARTS, 0)).square().flatten(1).mean(1)
            parts.append(torch.stack((channel_nmse(truth, estimate), energy, wrong)).unflatten(1, (-1, STARTS)))
        figures |= dict(zip(("nmse", "energy", "source"), torch.cat(parts, 1), strict=True))
        figures["energy"] = figures["energy"] / (noise_var * y[0].numel())
        figures |= source.bounds(h[: p.bounds], noise_var) | {"values": torch.tensor([d[0, 0].numel()])}
        return {name: value.double().numpy() for name, value in figures.items()}


def _receive(
    source: Any, config: PVDConfig, y: Tensor, noise_var: float, seed: int, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Channel, source and residual energy of every item; one that diverged counts as zero, with infinite energy."""
    receiver = PVD(source.encoder, GaussianChannelPrior(), source.denoiser, config)
    try:
        result = receiver.run(y, noise_var, seed=seed, first_item=first)
    except DivergedError as err:
        result = err.result
    lost = ~result.energy.isfinite()
    h, d = result.h.clone(), result.d.clone()
    h[lost], d[lost] = 0, 0
    return h, d, result.energy


def _put(row: dict[str, object], name: str, estimate: Estimate | None) -> None:
    """A figure and its standard error, or two empty cells."""
    row[f"{name}_db"] = "" if estimate is None else f"{estimate.value:.3f}"
    row[f"{name}_se"] = "" if estimate is None else f"{estimate.se:.3f}"


def _compare(row: dict[str, object], nmse: np.ndarray, oracle: np.ndarray, bounds: dict[str, np.ndarray]) -> None:
    """NMSE of all and of the successes, and their gaps to the oracle and the bounds."""
    good = nmse < 10 ** (SUCCESS_DB / 10)
    several = good.sum() > 1
    row["success_rate"] = f"{good.mean():.4f}"
    _put(row, "nmse", mean_db(nmse))
    _put(row, "nmse_success", mean_db(nmse[good]) if several else None)
    _put(row, "oracle", mean_db(oracle))
    _put(row, "gap", gain_db(nmse, oracle))
    _put(row, "gap_success", gain_db(nmse[good], oracle[good]) if several else None)
    for name in ("bound", "label_bound"):
        bound = bounds.get(name, np.empty(0))
        some = good[: len(bound)]
        enough = some.sum() > 1
        _put(row, name, mean_db(bound) if len(bound) > 1 else None)
        _put(row, f"{name}_gap", gain_db(bound, oracle[: len(bound)]) if len(bound) > 1 else None)
        mine = nmse[: len(bound)][some]
        _put(row, f"gap_to_{name}", gain_db(mine, bound[some]) if enough else None)


def _ratio_db(above: np.ndarray, below: np.ndarray) -> str:
    return f"{to_db(float(above.mean() / below.mean())):.3f}"


def _rows_of_job(evaluation: Evaluation, job: Job, found: Figures) -> list[dict[str, object]]:
    p, setting, blind = evaluation.protocol, SETTINGS[job.setting], job.source != "gaussian"
    link, rows = setting.link(job.blocks), []
    for starts in (1, STARTS) if blind else (1,):
        row: dict[str, object] = {"Nr": setting.nr, "Nu": setting.users, "Nt": setting.nt, "K": job.blocks, "T": SLOTS}
        row |= {"snr_db": f"{job.snr_db:g}", "codeword": "blind" if blind else "known", "source": job.source}
        row |= {"variant": job.variant, "starts": starts, "items": len(found["nmse"]), "load": "", "cbr": ""}
        if blind:
            values = int(found["values"][0])
            row["load"] = f"{values / (2 * link.blocks * link.nt * (SLOTS - link.streams)):.3f}"
            row["cbr"] = f"{link.cbr(source=values):.4f}"
        nmse = found["nmse"]
        if blind:
            chosen = found["energy"].argmin(1) if starts > 1 else np.zeros(len(nmse), dtype=int)
            nmse = nmse[np.arange(len(nmse)), chosen]
        _compare(row, nmse, found["oracle"], found if blind else {})
        row["success_rate_starts"] = f"{(found['nmse'] < 10 ** (SUCCESS_DB / 10)).mean():.4f}" if blind else ""
        row["predicted_gap_db"] = "" if blind else _ratio_db(found["predicted"], found["predicted_oracle"])
        row["limit_gap_db"] = "" if blind else _ratio_db(found["limit"], found["predicted_oracle"])
        row["source_mse"] = f"{found['source'][np.arange(len(nmse)), chosen].mean():.5f}" if blind else ""
        rows.append(row | {"bounds": len(found["bound"]) if blind else "", "seed": p.seed})
    return rows


def rows_of(evaluation: Evaluation) -> list[dict[str, object]]:
    """What was found, as rows of a table."""
    return [
        row | evaluation.places[job]
        for job, found in evaluation.found.items()
        for row in _rows_of_job(evaluation, job, found)
    ]


def evaluate(protocol: Protocol, out: Path, *, keep: Path | None = None, progress: bool = True) -> Evaluation:
    """Run all jobs, rewriting the table after each."""
    evaluation = Evaluation(protocol, keep)
    for _ in evaluation.run(progress):
        write_table(out, rows_of(evaluation))
    return evaluation


def main(argv: Sequence[str] | None = None) -> int:
    default = Protocol()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pvd_oracle.csv"))
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=list(default.settings))
    parser.add_argument("--sources", nargs="+", choices=default.sources, default=list(default.sources))
    parser.add_argument("--snr", type=float, nargs="+", default=list(default.snrs_db), metavar="DB")
    parser.add_argument(
        "--images", type=int, default=default.images, help="items of a blind cell (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    protocol = Protocol(tuple(args.settings), tuple(args.sources), tuple(args.snr), args.images, seed=args.seed)
    return table_or_stop(lambda: evaluate(protocol, args.out, keep=data_home() / "pvd_oracle"), args.out)


if __name__ == "__main__":
    sys.exit(main())
