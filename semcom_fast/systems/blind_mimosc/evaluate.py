"""The evaluation protocol: all 297 held-out digits over several channel draws, one CSV row per setting and SNR.

    python -m semcom_fast.systems.blind_mimosc.evaluate --out benchmarks/results/pvd_digits.csv

Rows are written as they are finished. Success is an NMSE below -6 dB; nmse_db is the mean ratio over successes,
nmse_median_db the median over all items, median_gap_db that median minus the oracle LMMSE (mean ratio over all items).
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import torch

from ...data import load_digits
from ...errors import require_extra
from ..evaluation import where
from .experiment import Link, Summary, join, send_and_receive, summarise
from .measures import pixel_variance
from .networks import load_denoiser, load_encoder

SNRS_DB = (0.0, 5.0, 10.0, 15.0, 20.0)


class Case(NamedTuple):
    """One line of the protocol."""

    encoder: str
    users: int
    starts: int


CASES = (Case("penalised", 1, 1), Case("plain", 1, 1), Case("plain", 1, 4), Case("penalised", 2, 1))
CASE_FIELDS = ("encoder", "users", "starts", "snr_db", "K", "Nr", "Nt", "T", "images", "channel_seeds")
WHERE_FIELDS = ("backend", "isa", "threads", "torch", "commit")


def evaluate_case(case: Case, snr_db: float, *, images: int, channel_seeds: int, progress: bool = False) -> Summary:
    """Run one case at one SNR on the first `images` held-out digits, once per channel seed."""
    digits = load_digits()
    link = Link(users=case.users)
    encoder = load_encoder(case.encoder, link.blocks, link.nt, link.slots, users=link.users)
    denoiser = load_denoiser()
    outcomes = [
        send_and_receive(
            link, encoder, denoiser, digits.test[:images], snr_db, seed=seed, restarts=case.starts, progress=progress
        )
        for seed in range(channel_seeds)
    ]
    return summarise(join(outcomes), pixel_variance(digits.train))


def write_rows(file: TextIO, snrs: Sequence[float], images: int, channel_seeds: int, progress: bool = True) -> None:
    """Run every case at every SNR; each row is flushed when it is done."""
    writer = csv.DictWriter(file, [*CASE_FIELDS, *Summary._fields, *WHERE_FIELDS], lineterminator="\n")
    writer.writeheader()
    file.flush()
    link, place = Link(), where()
    runs = [(case, snr) for case in CASES for snr in snrs]
    for case, snr in require_extra("tqdm", "demo").tqdm(runs, desc="evaluation", unit="row", disable=not progress):
        summary = evaluate_case(case, snr, images=images, channel_seeds=channel_seeds)
        sizes = (link.blocks, link.nr, link.nt, link.slots, images, channel_seeds)
        row = dict(zip(CASE_FIELDS, (*case, f"{snr:g}", *sizes), strict=True))
        row.update({name: f"{value:.4f}" for name, value in summary._asdict().items()})
        writer.writerow({**row, **place})
        file.flush()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pvd_digits.csv"))
    parser.add_argument("--images", type=int, default=297, help="held-out digits to use (default: all 297)")
    parser.add_argument("--channel-seeds", type=int, default=4)
    parser.add_argument("--snr", type=float, nargs="+", default=list(SNRS_DB), metavar="DB")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with args.out.open("w", newline="") as file:
            write_rows(file, args.snr, args.images, args.channel_seeds)
    except KeyboardInterrupt:
        print(f"\nstopped; the rows finished so far are in {args.out}", file=sys.stderr)
        return 130
    print(args.out.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
