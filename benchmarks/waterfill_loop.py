"""What the water-filling loop costs beyond its network, and what it gains over the same algorithm in plain torch.

python -m benchmarks.waterfill_loop --csv benchmarks/results/waterfill_loop.csv
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import semcom_fast as sf

from . import timing

LATENT = (16, 8, 8)
STEPS = 50
SNR_DB = 5.0


class SmallPredictor(nn.Module):
    """A few convolutions that know the level, run on 2B rows for guidance: small, so that the loop's own work shows."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.inner = nn.Conv2d(LATENT[0] + 1, width, 3, padding=1)
        self.outer = nn.Conv2d(width, LATENT[0], 3, padding=1)

    def forward(self, g: Tensor, beta_bar: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, x0_uncond) like g."""
        rows = torch.cat([g, g])
        level = beta_bar.sqrt().repeat(2).reshape(-1, 1, 1, 1).expand(-1, 1, *g.shape[2:])
        out = self.outer(torch.nn.functional.silu(self.inner(torch.cat([rows, level], 1))))
        x0, x0_uncond = out.chunk(2)
        return x0, x0_uncond


def plain_torch(predictor: SmallPredictor, config: sf.WaterfillConfig, f: Tensor, d: Tensor) -> Tensor:
    """Algorithm 3 as one writes it: schedule and guidance weights in NumPy, copied at every step; separate b and f."""
    schedule = config.schedule
    b = torch.cat([d, d], 1).reshape(f.shape)
    top = b.flatten(1).amax(1)
    m = schedule.time(top.double().cpu().numpy())

    def column(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(f.dtype).to(f.device).reshape(-1, 1, 1, 1)

    for k in range(config.steps):
        t, s = m * (1 - k / config.steps), m * (1 - (k + 1) / config.steps)
        beta_t = column(schedule.level(t)) if k else top.reshape(-1, 1, 1, 1)
        beta_s = column(schedule.level(s))
        w = column(config.guidance_at(t))
        keep = ((1 - beta_t) / (1 - b)).clamp(max=1)
        add = ((beta_t - b) / (1 - b)).clamp(min=0)
        g = keep.sqrt() * f + add.sqrt() * torch.randn_like(f)
        x0, x0_uncond = predictor(g, beta_t.reshape(-1))
        x0 = w * x0 + (1 - w) * x0_uncond
        a = (beta_s / beta_t).sqrt()
        moved = a * g + ((1 - beta_s).sqrt() - a * (1 - beta_t).sqrt()) * x0
        reached = b >= beta_s
        f, b = torch.where(reached, moved, f), torch.where(reached, beta_s, b)
    return f


def _same(receiver: sf.WaterfillDDIM, plain: Callable[[], Tensor], f: Tensor, d: Tensor) -> None:
    """Both sides agree on the same draws of torch's generator; else their times mean nothing."""
    torch.manual_seed(4)
    ours = receiver.run(f, d, noise="torch")
    torch.manual_seed(4)
    error = float((plain() - ours).abs().max() / ours.abs().max())
    if not error < 1e-4:
        raise RuntimeError(f"the plain formulation and the loop differ by {error:.1e}")


def sides(batch: int) -> dict[str, Callable[[], object]]:
    """Whole runs on the same Rayleigh block: the loop, its network calls alone, the plain formulation, and the loop
    beside a predictor that costs nothing, whose time is all its own."""
    torch.manual_seed(0)
    predictor = SmallPredictor().to(timing.device).eval()
    config = sf.WaterfillConfig(steps=STEPS, guidance=4.0, cfg_schedule="pcs_1.0")
    n = int(np.prod(LATENT))
    noise_var = 2 * 10 ** (-SNR_DB / 10)
    h = sf.philox_normal((batch, n // 2), seed=1, dtype=torch.complex64)
    n_ = sf.philox_normal((batch, n // 2), seed=2, dtype=torch.complex64)
    z = sf.philox_normal((batch, n // 2), seed=3, dtype=torch.complex64) * 2**0.5
    f, d = sf.waterfill_equalise(h * z + noise_var**0.5 * n_, h, noise_var)
    f, d = f.reshape(batch, *LATENT).to(timing.device), d.to(timing.device)
    receiver = sf.WaterfillDDIM(predictor, config)
    inputs: list[tuple[Tensor, Tensor]] = []
    receiver.run(f, d, on_step=lambda step: inputs.append((step.g, step.beta_bar)))
    inputs = [(f, d.amax(1)), *inputs[:-1]]

    def loop() -> object:
        return receiver.run(f, d)

    def network() -> object:
        with torch.no_grad():
            for g, level in inputs:
                predictor(g, level)
        return None

    def plain() -> Tensor:
        with torch.no_grad():
            return plain_torch(predictor, config, f, d)

    with torch.no_grad():
        fixed = predictor(f, d.amax(1))
    bare = sf.WaterfillDDIM(lambda g, beta_bar: fixed, config)
    _same(receiver, plain, f, d)
    found = {"loop": loop, "network": network, "plain": plain, "bare": lambda: bare.run(f, d)}
    if timing.device != "cpu":
        found["graph"] = lambda: receiver.run(f, d, graph=True)
    return found


def measure(batch: int, rounds: int) -> dict[str, float]:
    """Medians over interleaved whole runs, per step: time, own time beyond the network, and the plain formulation."""
    runs = sides(batch)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for r in range(rounds + 1):
        for name in runs if r % 2 else reversed(runs):
            timing.synchronise()
            start = time.perf_counter()
            runs[name]()
            timing.synchronise()
            if r:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    us = {name: statistics.median(s) / STEPS * 1e6 for name, s in seconds.items()}
    row = {"batch": batch, "steps": STEPS, "network_us_per_step": us["network"]}
    for name in us:
        if name == "bare":
            row["bare_us_per_step"] = us[name]
        elif name != "network":
            row[f"{name}_us_per_step"] = us[name]
            row[f"{name}_own_us_per_step"] = us[name] - us["network"]
            row[f"{name}_overhead"] = us[name] / us["network"] - 1
    return {**row, "ratio_to_plain": us["plain"] / us["loop"]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waterfill_loop", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    timing.device = args.device
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for batch in args.batch:
            row = measure(batch, args.rounds)
            rows.append({**row, "threads": threads})
            print(f"{threads} threads: " + ", ".join(f"{k} {v:.3g}" for k, v in row.items()), flush=True)
    if args.csv:
        timing.write_csv(args.csv, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
