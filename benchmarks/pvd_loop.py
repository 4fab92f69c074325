"""What the PVD loop costs beyond its networks, and what it gains over the reference backend with the same networks.

python -m benchmarks.pvd_loop --csv benchmarks/results/pvd_loop.csv
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

import semcom_fast as sf
from semcom_fast.data import load_digits
from semcom_fast.receivers import PVDConfig
from semcom_fast.systems.blind_mimosc.experiment import Link
from semcom_fast.systems.blind_mimosc.networks import load_denoiser, load_encoder
from semcom_fast.systems.blind_mimosc.overhead import loop_pass, network_pass

from . import timing

BATCH = 24


def measure(threads: int, rounds: int) -> dict[str, float]:
    """Medians over interleaved whole runs: our loop, its networks alone, the loop on the reference backend."""
    torch.set_num_threads(threads)
    encoder, denoiser, link = load_encoder("penalised"), load_denoiser(), Link()
    config = PVDConfig(users=link.users, nt=link.nt)
    loop = loop_pass(encoder, denoiser, config, link, load_digits().test[:BATCH], 20.0)
    networks = network_pass(encoder, denoiser, config, BATCH)

    def reference() -> None:
        with sf.use_backend("reference"):
            loop()

    sides = {"loop": loop, "networks": networks, "reference": reference}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for r in range(rounds + 1):
        for name in sides if r % 2 else reversed(sides):
            start = time.perf_counter()
            sides[name]()
            if r:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    us = {name: statistics.median(s) / (config.J * config.Jin) * 1e6 for name, s in seconds.items()}
    return {
        "batch": BATCH,
        "loop_us_per_step": us["loop"],
        "networks_us_per_step": us["networks"],
        "own_us_per_step": us["loop"] - us["networks"],
        "overhead": us["loop"] / us["networks"] - 1,
        "reference_us_per_step": us["reference"],
        "ratio_to_reference": us["reference"] / us["loop"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pvd_loop", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    rows = []
    for threads in (1, 2):
        row = measure(threads, args.rounds)
        rows.append({**row, "threads": threads})
        print(f"{threads} threads: " + ", ".join(f"{k} {v:.3g}" for k, v in row.items()), flush=True)
    if args.csv:
        timing.write_csv(args.csv, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
