"""The expert-mixture estimator beyond its networks, beside the same algorithm in plain torch and as published code does.

python -m benchmarks.vb_loop --threads 2 --csv benchmarks/results/loops.csv
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import semcom_fast as sf
from semcom_fast.links.snr import noise_var_from_snr_db
from semcom_fast.systems.dm_vb.bank import CNNExpert, GroupedExperts
from semcom_fast.systems.dm_vb.channels import ChannelSet, load_set
from semcom_fast.systems.dm_vb.link import pilot_count, qpsk_pilots, transmit
from semcom_fast.systems.dm_vb.network import CNNConfig, DenoiserCNN
from semcom_fast.systems.dm_vb.networks import load_experts

from . import loops, timing

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


def make_networks(width: int, steps: int) -> list[DenoiserCNN]:
    """The four shipped experts, or untrained ones of another size."""
    if width == 64 and steps == 100:
        return load_experts("fixed")
    torch.manual_seed(0)
    return [DenoiserCNN(CNNConfig.scaled(width, steps=steps)).eval() for _ in PROFILES]


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


class UserStyle(PlainTorch):
    """The same as a published program has it: coefficients read from tensors at every step, the likelihood's inverse formed
    anew for every channel in a Python loop, evidences as Python numbers, responsibilities in NumPy, a progress record."""

    def __init__(self, networks: Sequence[nn.Module], config: sf.VBMoEConfig, problem: Problem) -> None:
        super().__init__(networks, config, problem)
        self.levels, self.rates = (torch.from_numpy(t).to(self.pilots.device) for t in (self.alpha_bar, self.beta))
        self.record: list[float] = []

    def chain(self, y: Tensor, h: Tensor, rho: Tensor, chosen: Sequence[int], x0: bool, lam: float) -> Tensor:
        p, eye = self.pilots, torch.eye(self.pilots.shape[1], dtype=self.pilots.dtype, device=self.pilots.device)
        for t in range(self.config.steps, 0, -1):
            ab, beta = self.levels[t].item(), self.rates[t].item()
            eps = sum(rho[:, e, None, None] * self.eps(k, h, t) for e, k in enumerate(chosen))
            clean = (h - np.sqrt(1 - ab) * eps) / np.sqrt(ab) if x0 else h / np.sqrt(ab)
            g = torch.zeros_like(h)
            for b in range(len(h)):
                inverse = torch.linalg.inv(self.noise_var * eye + (1 - ab) / ab * (p.mH @ p))
                g[b] = (y[b] - clean[b] @ p) @ inverse @ p.mH / np.sqrt(ab)
            h = (h - beta / np.sqrt(1 - ab) * eps + lam * beta * g) / np.sqrt(1 - beta)
            self.record.append(float((y - h @ p).abs().square().mean().cpu().numpy()))
        return h

    def evidence(self, y: Tensor, h: Tensor, noise: Tensor, chosen: Sequence[int]) -> Tensor:
        found = super().evidence(y, h, noise, chosen)
        numbers = [[found[b, e].item() for e in range(found.shape[1])] for b in range(len(found))]
        return torch.tensor(numbers, dtype=found.dtype).to(h.device)


Program = type[PlainTorch]


@dataclass
class Size:
    """Width of the networks (64: the four shipped experts), T, outer iterations, channels in the batch."""

    width: int
    steps: int
    iterations: int
    batch: int


SIZES = {"quick": Size(16, 6, 3, 2), "small": Size(16, 20, 3, 8), "paper": Size(64, 100, 2, 4)}
SNR_DB = 10.0
AGREEMENT = 1e-3
SEED = 3
RULES: dict[str, dict[str, Any]] = {"all iterations": {"prune": 0.0, "tolerance": 0.0}, "stop and pruning": {}}


class Noted:
    """An expert that keeps every call: which expert, its input, which step."""

    def __init__(self, expert: nn.Module, k: int, calls: list[tuple[int, Tensor, int]]) -> None:
        self.expert, self.k, self.calls = expert, k, calls

    def __call__(self, h: Tensor, t: int) -> Tensor:
        self.calls.append((self.k, h, t))
        return self.expert(h, t)


def network_calls(experts: Sequence[nn.Module], config: sf.VBMoEConfig, p: Problem) -> Callable[[], None]:
    """The network calls of a run on its own inputs, and nothing else."""
    calls: list[tuple[int, Tensor, int]] = []
    noted = [Noted(e, k, calls) for k, e in enumerate(experts)]
    sf.VBMoE(noted, config).run(p.y, p.svd, p.noise_var, seed=SEED)

    def replay() -> None:
        with torch.no_grad():
            for k, h, t in calls:
                experts[k](h, t)

    return replay


def draws(p: Problem, config: sf.VBMoEConfig, ours: bool) -> tuple[Tensor, Tensor]:
    """H_T and the noise of the evidence: the loop's own, or torch's."""
    shape, steps = p.h.shape, config.elbo_steps or ()
    if not ours:
        noise = torch.randn(len(p.h), len(steps), *shape[1:], dtype=p.h.dtype, device=p.h.device)
        return torch.randn(shape, dtype=p.h.dtype, device=p.h.device), noise
    draw: dict[str, Any] = {"seed": SEED, "dtype": p.h.dtype, "device": p.h.device}
    noise = torch.stack([sf.philox_normal(shape, stream=STREAM_NOISE, step=t, **draw) for t in steps], 1)
    return sf.philox_normal(shape, stream=STREAM_START, **draw), noise


def nmse_db(got: Tensor, h: Tensor) -> float:
    """Mean over channels of |got - h|^2/|h|^2."""
    ratio = (got - h).abs().square().sum((1, 2)).double() / h.abs().square().sum((1, 2)).double()
    return 10 * math.log10(float(ratio.mean()))


def _apply(layer: nn.Module, x: Tensor, _: int) -> Tensor:
    return layer(x)


def convolution_seconds(expert: CNNExpert, batch: int, nr: int, nt: int, rounds: int) -> float:
    """One forward pass of the convolutions alone: every layer back to back on its own input, channels last."""
    total, config = 0.0, expert.config
    for (a, b), spacing in zip(pairwise(config.widths), config.spacing, strict=True):
        layer = nn.Conv2d(a, b, 3, padding=spacing, dilation=spacing).to(expert.dtype)
        layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last)
        x = torch.randn(batch, a, nr, nt, dtype=expert.dtype).to(memory_format=torch.channels_last)
        with torch.no_grad():
            total += timing.interleave({"conv": partial(_apply, layer, x)}, rounds=rounds, target=0.02)["conv"].median
    return total


def case(
    name: str, size: Size, networks: list[DenoiserCNN], p: Problem, rule: str, dtype: torch.dtype
) -> loops.LoopCase:
    experts = [CNNExpert(n, dtype).to(timing.device) for n in networks]
    base: dict[str, Any] = {"steps": size.steps, "iterations": size.iterations}
    receiver = sf.VBMoE(experts, config := sf.VBMoEConfig(**RULES[rule], **base))
    whole = rule == "all iterations" and dtype is torch.float32

    def run(program: Program, ours: bool = False) -> Tensor:
        with torch.no_grad():
            return made[program].run(p.y, *draws(p, config, ours))

    def loop() -> sf.VBMoEResult:
        return receiver.run(p.y, p.svd, p.noise_var, seed=SEED)

    made = {kind: kind(networks, config, p) for kind in (PlainTorch, UserStyle)}
    errors: dict[str, Any] = {}

    def agree() -> dict[str, float]:
        """Element by element where precision and iterations are the same; by their NMSE in any case."""
        found, plain = loop(), run(PlainTorch, True)
        errors["nmse_db"], before = nmse_db(found.h, p.h), nmse_db(plain, p.h)
        errors["nmse_minus_plain_db"] = errors["nmse_db"] - before
        errors["forwards_per_channel"] = float(found.calls.sum()) / len(p.h)
        if not whole:
            return {}
        pairs = (("plain", plain), ("user", run(UserStyle, True)))
        return {which: loops.difference(which, got, found.h, AGREEMENT) for which, got in pairs}

    def finish(row: dict[str, Any]) -> dict[str, Any]:
        more = {**errors, "seconds_per_channel": row["run_ms"] / 1e3 / len(p.h)}
        more["plain_seconds_per_channel"] = row["plain_us_per_step"] * row["steps"] / 1e6 / len(p.h)
        if timing.device == "cpu" and name != "quick":
            conv = convolution_seconds(experts[0], len(p.h), p.h.shape[1], p.h.shape[2], 5) / len(p.h)
            network = row["network_us_per_step"] * row["steps"] / 1e6 / len(p.h)
            more["network_share_of_conv_rate"] = conv * errors["forwards_per_channel"] / network
        return more

    sides: dict[str, Callable[[], Any]] = {"loop": loop, "network": network_calls(experts, config, p)}
    sides |= {"plain": lambda: run(PlainTorch)}
    if whole:
        sides["user"] = lambda: run(UserStyle)
    if timing.device != "cpu":
        graphed = sf.VBMoE(
            GroupedExperts(networks, dtype).to(timing.device), sf.VBMoEConfig(graph=True, **RULES[rule], **base)
        )
        sides["graph"] = lambda: graphed.run(p.y, p.svd, p.noise_var, seed=SEED)
    facts = {
        "batch": len(p.h),
        "sizes": "x".join(map(str, p.h.shape[1:])),
        "experts": len(networks),
        "snr_db": SNR_DB,
        "T": size.steps,
        "iterations": size.iterations,
        "widths": "-".join(map(str, networks[0].config.widths)),
    }
    return loops.LoopCase(
        "vb_loop", "small" if name == "quick" else name, size.steps * size.iterations, [*experts, *networks], sides, agree,
        variant=f"{rule}, {str(dtype).removeprefix('torch.')}", facts=facts, finish=finish,
    )  # fmt: skip


def cases(quick: bool, sizes: Sequence[str] | None = None) -> Iterator[loops.LoopCase]:
    """small: untrained narrow networks; paper: the four shipped experts on their whole schedule. Both on 16x64 channels;
    times are per diffusion step of all outer iterations, stopped early or not."""
    for name in sizes or (("small",) if quick else ("small", "paper")):
        name = "quick" if quick and name == "small" else name
        size = SIZES[name]
        networks, p = make_networks(size.width, size.steps), Problem.make(size.batch, SNR_DB)
        for dtype in (torch.float32,) if quick else (torch.float32, torch.bfloat16):
            for rule in list(RULES)[: 1 if quick else None]:
                yield case(name, size, networks, p, rule, dtype)


def main() -> int:
    return loops.main(names=["vb_loop"])


if __name__ == "__main__":
    raise SystemExit(main())
