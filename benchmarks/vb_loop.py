"""The expert-mixture estimator against the same algorithm in plain torch at equal NMSE, and beyond its networks.

python -m benchmarks.vb_loop --csv benchmarks/results/vb_loop.csv
A short run: --width 16 --steps 10 --batch 8 --channels 16 --rounds 3 --threads 1
On a GPU, chains as CUDA graphs beside eager ones: --device cuda --batch 1 --channels 16
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import semcom_fast as sf
from semcom_fast.links.snr import noise_var_from_snr_db
from semcom_fast.systems.dm_vb.bank import CNNExpert, GroupedExperts
from semcom_fast.systems.dm_vb.channels import ChannelSet, load_set
from semcom_fast.systems.dm_vb.link import pilot_count, qpsk_pilots, transmit
from semcom_fast.systems.dm_vb.network import CNNConfig, DenoiserCNN
from semcom_fast.systems.dm_vb.networks import load_experts

from . import timing

PROFILES = "ABCD"
DENSITY = 0.6
STREAM_START, STREAM_NOISE = 7, 8


@dataclass
class Problem:
    """Channels [N,Nr,Nt] of all profiles in turn, their received pilots, and the noise of both sides' draws."""

    h: Tensor
    pilots: Tensor
    y: Tensor
    noise_var: float
    svd: tuple  # the pilots' decomposition: both sides form what depends on the pilots alone beforehand

    @staticmethod
    def make(channels: int, snr_db: float) -> "Problem":
        each = -(-channels // len(PROFILES))
        sets = [load_set(ChannelSet(f"CDL-{p}"), "test", each) for p in PROFILES]
        h = torch.stack(sets, 1).flatten(0, 1)[:channels]
        nt = h.shape[-1]
        pilots = qpsk_pilots(nt, pilot_count(DENSITY, nt), seed=1)
        noise_var = noise_var_from_snr_db(snr_db, "dm_vb", nt=nt)
        h, pilots, y = timing.to_device((h, pilots, transmit(h, pilots, noise_var, seed=2)))
        return Problem(h, pilots, y, noise_var, sf.pilot_svd(pilots))


def make_networks(width: int, steps: int) -> tuple[list[DenoiserCNN], str]:
    """The four shipped experts, or untrained ones of another size."""
    if width == 64 and steps == 100:
        return load_experts("fixed"), "shipped"
    torch.manual_seed(0)
    return [DenoiserCNN(CNNConfig.scaled(width, steps=steps)).eval() for _ in PROFILES], "untrained"


class PlainTorch:
    """The algorithm as one writes it: NCHW float32 networks that embed the step in every call, every expert on every row
    at every step, all iterations, and the likelihood's inverse formed once per step and pilot matrix."""

    def __init__(self, networks: Sequence[nn.Module], config: sf.VBMoEConfig, problem: Problem) -> None:
        self.networks = [n.to(timing.device) for n in networks]
        self.config, self.noise_var = config, problem.noise_var
        self.beta, self.alpha_bar, self.weights = config.tables()
        self.pilots = problem.pilots
        nt, slots = self.pilots.shape
        self.snr_db = 10 * math.log10(nt / self.noise_var)
        p = self.pilots.cpu().to(torch.complex128)
        gram, eye = p.mH @ p, torch.eye(slots, dtype=torch.complex128)
        self.gains = [torch.empty(0, 0)] + [
            (torch.linalg.inv(self.noise_var * eye + (1 - ab) / ab * gram) @ p.mH / ab**0.5).to(self.pilots)
            for ab in self.alpha_bar[1:]
        ]

    def eps(self, k: int, h: Tensor, t: int) -> Tensor:
        out = self.networks[k](torch.stack([h.real, h.imag], 1), torch.full((len(h),), t, device=h.device))
        return torch.complex(out[:, 0], out[:, 1])

    def chain(self, y: Tensor, h: Tensor, rho: Tensor, chosen: Sequence[int], x0: bool, lam: float) -> Tensor:
        """T steps under responsibilities rho [B,E] of the chosen experts."""
        for t in range(self.config.steps, 0, -1):
            ab, beta = float(self.alpha_bar[t]), float(self.beta[t])
            eps = sum(rho[:, e, None, None] * self.eps(k, h, t) for e, k in enumerate(chosen))
            clean = (h - math.sqrt(1 - ab) * eps) / math.sqrt(ab) if x0 else h / math.sqrt(ab)
            g = (y - clean @ self.pilots) @ self.gains[t]
            h = (h - beta / math.sqrt(1 - ab) * eps + lam * beta * g) / math.sqrt(1 - beta)
        return h

    def evidence(self, y: Tensor, h: Tensor, noise: Tensor, chosen: Sequence[int]) -> Tensor:
        """L + D [B,E]."""
        found = []
        for k in chosen:
            total = torch.zeros(len(h), device=h.device)
            for i, t in enumerate(self.config.elbo_steps or ()):
                ab = float(self.alpha_bar[t])
                noisy = math.sqrt(ab) * h + math.sqrt(1 - ab) * noise[:, i]
                eps = self.eps(k, noisy, t)
                total -= float(self.weights[t]) * (noise[:, i] - eps).abs().square().sum((1, 2))
                if t == self.config.tau_step:
                    clean = (noisy - math.sqrt(1 - ab) * eps) / math.sqrt(ab)
                    total -= (y - clean @ self.pilots).abs().square().sum((1, 2)) / self.noise_var
            found.append(total)
        return torch.stack(found, 1)

    def run(self, y: Tensor, start: Tensor, noise: Tensor) -> Tensor:
        """Per-expert first pass, then the rest of the iterations; no stop rule."""
        everyone = range(len(self.networks))
        one = torch.ones(len(y), 1, device=y.device)
        ends = [self.chain(y, start, one, [k], False, 1.0) for k in everyone]
        score = torch.cat([self.evidence(y, end, noise, [k]) for k, end in zip(everyone, ends, strict=True)], 1)
        gamma, h = torch.ones_like(score), ends[0]
        x0, lam = self.config.residual_at_x0(self.snr_db), self.config.likelihood_scale(self.snr_db)
        for _ in range(self.config.iterations - 1):
            rho = torch.softmax(score + torch.digamma(gamma) - torch.digamma(gamma.sum(1, keepdim=True)), 1)
            gamma = 1 + rho
            h = self.chain(y, start, rho, everyone, x0, lam)
            score = self.evidence(y, h, noise, everyone)
        return h


class Listed:
    """An expert that notes every call: which expert, how many rows, which step."""

    def __init__(self, expert: CNNExpert, k: int, calls: list[tuple[int, int, int]]) -> None:
        self.expert, self.k, self.calls = expert, k, calls

    def __call__(self, h: Tensor, t: int) -> Tensor:
        self.calls.append((self.k, len(h), t))
        return self.expert(h, t)


@dataclass
class Side:
    """One configuration of our loop on one dtype of its networks."""

    name: str
    experts: Sequence[CNNExpert]
    receiver: sf.VBMoE

    def run(self, p: Problem, lo: int, hi: int) -> sf.VBMoEResult:
        return self.receiver.run(p.y[lo:hi], p.svd, p.noise_var, seed=3, first_item=lo)

    def network(self, p: Problem, lo: int, hi: int) -> Callable[[], None]:
        """The same network calls as in `run`, and nothing else."""
        calls: list[tuple[int, int, int]] = []
        listed = [Listed(e, k, calls) for k, e in enumerate(self.experts)]
        Side(self.name, self.experts, sf.VBMoE(listed, self.receiver.config)).run(p, lo, hi)
        like = sf.philox_normal((max(n for _, n, _ in calls), *p.h.shape[1:]), seed=4, dtype=torch.complex64)

        def replay() -> None:
            for k, n, t in calls:
                self.experts[k](like[:n], t)

        return replay


def make_sides(networks: list[DenoiserCNN], config: dict) -> list[Side]:
    """Same iteration count (no pruning, no stop), and with both; float32 and bfloat16 networks. On a GPU also as graphs,
    all experts in one grouped convolution."""
    made = []
    every = {"prune": 0.0, "tolerance": 0.0}
    for dtype in (torch.float32, torch.bfloat16):
        short = str(dtype).removeprefix("torch.")
        kinds: dict[str, tuple] = {"loop": ([CNNExpert(n, dtype).to(timing.device) for n in networks], False)}
        if timing.device != "cpu":
            kinds["graph"] = (GroupedExperts(networks, dtype).to(timing.device), True)
        for kind, (experts, graph) in kinds.items():
            for rule, options in (("all iterations", every), ("stop and pruning", {})):
                receiver = sf.VBMoE(experts, sf.VBMoEConfig(graph=graph, **options, **config))
                made.append(Side(f"{kind}, {rule}, {short}", experts, receiver))
    return made


def nmse(got: Tensor, h: Tensor) -> Tensor:
    """|got - h|^2/|h|^2 per channel."""
    return (got - h).abs().square().sum((1, 2)).double() / h.abs().square().sum((1, 2)).double()


def decibel(values: Sequence[Tensor]) -> float:
    return 10 * math.log10(float(torch.cat(list(values)).mean()))


def timed(run: Callable) -> tuple[Any, float]:
    """What it returned, and the seconds it took."""
    timing.synchronise()
    began = time.perf_counter()
    out = run()
    timing.synchronise()
    return out, time.perf_counter() - began


def whole_runs(sides: list[Side], plain: PlainTorch, p: Problem, batch: int) -> dict[str, dict[str, float]]:
    """Every side on every batch, in turns: seconds per channel, forwards, iterations and NMSE."""
    shape = p.h.shape[1:]
    seconds: dict[str, list[float]] = {}
    errors: dict[str, list[Tensor]] = {}
    counts: dict[str, list[float]] = {}
    starts = range(0, len(p.h), batch)
    for number, lo in enumerate(starts):
        hi = min(lo + batch, len(p.h))
        draw = {"seed": 3, "first_item": lo, "dtype": torch.complex64, "device": timing.device}

        def plain_run(lo: int = lo, hi: int = hi, draw: dict = draw) -> Tensor:
            start = sf.philox_normal((hi - lo, *shape), stream=STREAM_START, **draw)
            noise = [
                sf.philox_normal((hi - lo, *shape), stream=STREAM_NOISE, step=t, **draw)
                for t in plain.config.elbo_steps or ()
            ]
            with torch.no_grad():
                return plain.run(p.y[lo:hi], start, torch.stack(noise, 1))

        runs: dict[str, Callable] = {"plain torch": plain_run}
        runs |= {s.name: lambda s=s, lo=lo, hi=hi: s.run(p, lo, hi) for s in sides}
        for name in runs if number % 2 else reversed(runs):
            for _ in range(3 if number == 0 and timing.device != "cpu" else 0):
                runs[name]()  # compiles, then records its graphs
            out, took = timed(runs[name])
            seconds.setdefault(name, []).append(took / (hi - lo))
            h = out if isinstance(out, Tensor) else out.h
            errors.setdefault(name, []).append(nmse(h, p.h[lo:hi]))
            if not isinstance(out, Tensor):
                counts.setdefault(name, []).append(float(out.calls.sum()))
        print(
            f"  batch {number + 1} of {len(starts)}: " + ", ".join(f"{n} {s[-1]:.3g}" for n, s in seconds.items()),
            flush=True,
        )
    k, c = len(plain.networks), plain.config
    everything = c.iterations * k * (c.steps + len(c.elbo_steps or ()))
    return {
        name: {
            "seconds_per_channel": statistics.median(seconds[name]),
            "ratio_to_plain": statistics.median(seconds["plain torch"]) / statistics.median(seconds[name]),
            "nmse_db": decibel(errors[name]),
            "nmse_minus_plain_db": decibel(errors[name]) - decibel(errors["plain torch"]),
            "forwards_per_channel": sum(counts[name]) / len(p.h) if name in counts else everything,
        }
        for name in seconds
    }


def convolution_seconds(expert: CNNExpert, batch: int, nr: int, nt: int, rounds: int) -> float:
    """One forward pass of the convolutions alone: every layer back to back on its own input, channels last."""
    total, config = 0.0, expert.config
    for (a, b), spacing in zip(pairwise(config.widths), config.spacing, strict=True):
        layer = nn.Conv2d(a, b, 3, padding=spacing, dilation=spacing).to(expert.dtype)
        layer = layer.to(memory_format=torch.channels_last)
        x = torch.randn(batch, a, nr, nt, dtype=expert.dtype).to(memory_format=torch.channels_last)
        with torch.no_grad():
            found = timing.interleave({"conv": lambda _, x=x, f=layer: f(x)}, rounds=rounds, target=0.05)
        total += found["conv"].median
    return total


def overheads(sides: list[Side], p: Problem, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Loop against its network calls alone, interleaved; and the convolutions' share of the networks' time."""
    hi = min(batch, len(p.h))
    found = {}
    for side in sides:
        replay = side.network(p, 0, hi)
        runs = {"loop": lambda s=side: s.run(p, 0, hi), "network": replay}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for r in range(rounds + 1):
            for name in runs if r % 2 else reversed(runs):
                took = timed(runs[name])[1]
                if r:  # the first round warms up
                    seconds[name].append(took)
        loop, network = (statistics.median(seconds[name]) for name in runs)
        rows = float(side.run(p, 0, hi).calls.sum())
        shape = p.h.shape[1:]
        conv = min(convolution_seconds(side.experts[0], n, *shape, max(rounds, 3)) / n for n in {min(16, hi), hi})
        flops = side.experts[0].config.flops(*p.h.shape[1:])
        found[side.name] = {
            "network_overhead": loop / network - 1,
            "own_us_per_forward": (loop - network) / rows * 1e6,
            "network_us_per_forward": network / rows * 1e6,
            "network_gflops": flops * rows / network / 1e9,
            "conv_alone_gflops": flops / conv / 1e9,
            "network_share_of_conv_rate": conv * rows / network,
        }
        print(f"  {side.name}: " + ", ".join(f"{n} {v:.3g}" for n, v in found[side.name].items()), flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vb_loop", description=__doc__)
    parser.add_argument("--width", type=int, default=64, help="channels at the affine; 64 takes the shipped experts")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--snr", type=float, default=10.0, help="dB")
    parser.add_argument("--rounds", type=int, default=7, help="of the comparison with the network calls alone")
    parser.add_argument(
        "--overhead-steps", type=int, default=20, help="T of that comparison (what it finds is per step)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    timing.device = args.device
    torch.set_num_threads(args.threads)
    networks, origin = make_networks(args.width, args.steps)
    p = Problem.make(args.channels, args.snr)
    size = {"batch": args.batch, "channels": args.channels, "steps": args.steps, "iterations": args.iterations,
            "snr_db": args.snr, "widths": "-".join(map(str, networks[0].config.widths)),
            "reach": "x".join(map(str, networks[0].config.reach)), "weights": origin}  # fmt: skip
    config = {"steps": args.steps, "iterations": args.iterations}
    short = {"steps": min(args.overhead_steps, args.steps), "iterations": min(3, args.iterations)}
    print(f"beyond the networks (T = {short['steps']}, {short['iterations']} iterations):", flush=True)
    own = overheads(make_sides(networks, short), p, args.batch, args.rounds) if args.device == "cpu" else {}
    print("whole runs, seconds per channel:", flush=True)
    sides = make_sides(networks, config)
    plain = PlainTorch(networks, sides[0].receiver.config, p)
    whole = whole_runs(sides, plain, p, args.batch)
    blank = dict.fromkeys(next(iter(own.values()), {}), "")
    rows = [{"side": name, **size, **whole[name], **own.get(name, blank)} for name in whole]
    for r in rows:
        print(f"{r['side']}: {r['seconds_per_channel']:.4g} s per channel, {r['ratio_to_plain']:.2f} x plain", end=", ")
        print(f"NMSE {r['nmse_db']:.3f} dB ({r['nmse_minus_plain_db']:+.3f}), {r['forwards_per_channel']:.0f} forwards")
    if args.csv:
        timing.write_csv(args.csv, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
