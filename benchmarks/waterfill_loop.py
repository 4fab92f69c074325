"""What the water-filling loop costs beyond its network, beside the same algorithm in plain torch and as published code.

python -m benchmarks.waterfill_loop --threads 1 2 --csv benchmarks/results/loops.csv
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

import semcom_fast as sf

from . import loops, timing

LATENTS = {"small": (16, 8, 8), "paper": (16, 16, 16)}
STEPS = 50
SNR_DB = 5.0
AGREEMENT = 1e-4
BATCHES, WIDTHS = {"small": (1, 16, 64), "paper": (8,)}, {"small": 32, "paper": 128}


class SmallPredictor(nn.Module):
    """A few convolutions that know the level, run on 2B rows for guidance: small, so that the loop's own work shows."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels + 1, width, 3, padding=1)
        self.outer = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, g: Tensor, beta_bar: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, x0_uncond) like g."""
        rows = torch.cat([g, g])
        level = beta_bar.sqrt().repeat(2).reshape(-1, 1, 1, 1).expand(-1, 1, *g.shape[2:])
        out = self.outer(torch.nn.functional.silu(self.inner(torch.cat([rows, level], 1))))
        x0, x0_uncond = out.chunk(2)
        return x0, x0_uncond


def plain_torch(predictor: nn.Module, config: sf.WaterfillConfig, f: Tensor, d: Tensor) -> Tensor:
    """Algorithm 3 in torch's own operations with nothing to wait for between start and end: the tables of levels and
    guidance weights are formed once, in NumPy, and copied once; separate b and f."""
    b = torch.cat([d, d], 1).reshape(f.shape)
    tables = config.tables(b.flatten(1).amax(1).double().cpu().numpy(), falling=True)
    column = (-1, len(f), *(1,) * (f.ndim - 1))
    levels, weights = (torch.from_numpy(t).to(f.dtype).to(f.device).reshape(column) for t in tables[:2])
    for k in range(config.steps):
        beta_t, beta_s, w = levels[k], levels[k + 1], weights[k]
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


def user_style(predictor: nn.Module, config: sf.WaterfillConfig, f: Tensor, d: Tensor) -> Tensor:
    """Algorithm 3 as a published sampler has it: time and schedule in NumPy at every step, per-image loops that pick the
    elements of every set by their mask, weights copied to the device, a progress record that reads the state."""
    schedule = config.schedule
    f, b = f.clone(), torch.cat([d, d], 1).reshape(f.shape).clone()
    start = b.flatten(1).amax(1).cpu().numpy().astype(np.float64)
    m = schedule.time(start)
    record: list[float] = []
    for k in range(config.steps):
        t, s = m * (1 - k / config.steps), m * (1 - (k + 1) / config.steps)
        level_t, level_s = schedule.level(t) if k else start, schedule.level(s)
        beta_t = torch.tensor(level_t, dtype=f.dtype).to(f.device)
        weight = torch.tensor(config.guidance_at(t), dtype=f.dtype).to(f.device).reshape(-1, *(1,) * (f.ndim - 1))
        noise, g = torch.randn_like(f), f.clone()
        for i in range(len(f)):
            waiting = b[i] < beta_t[i].item()
            if waiting.any():
                own, now = b[i][waiting], beta_t[i].item()
                g[i][waiting] = ((1 - now) / (1 - own)).sqrt() * f[i][waiting] + (
                    (now - own) / (1 - own)
                ).sqrt() * noise[i][waiting]
        x0, x0_uncond = predictor(g, beta_t)
        x0 = weight * x0 + (1 - weight) * x0_uncond
        for i in range(len(f)):
            now, then = beta_t[i].item(), float(level_s[i])
            a = math.sqrt(then / now)
            moved = a * g[i] + (math.sqrt(1 - then) - a * math.sqrt(1 - now)) * x0[i]
            reached = b[i] >= torch.tensor(then, dtype=f.dtype).to(f.device)
            f[i][reached] = moved[reached]
            b[i][reached] = then
        if torch.isnan(f).any():
            raise RuntimeError(f"NaN at step {k}")
        record.append(float(g.detach().cpu().numpy().std()))
    return f


def received(batch: int, latent: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """An equalised latent over Rayleigh fading, and its noise levels."""
    n = math.prod(latent)
    noise_var = 2 * 10 ** (-SNR_DB / 10)
    h, noise, z = (sf.philox_normal((batch, n // 2), seed=s, dtype=torch.complex64) for s in (1, 2, 3))
    f, d = sf.waterfill_equalise(h * z * 2**0.5 + noise_var**0.5 * noise, h, noise_var)
    f, d = timing.to_device((f.reshape(batch, *latent), d))
    return f, d


def case(size: str, batch: int, steps: int) -> loops.LoopCase:
    latent = LATENTS[size]
    torch.manual_seed(0)
    predictor = SmallPredictor(latent[0], WIDTHS[size]).to(timing.device).eval()
    config = sf.WaterfillConfig(steps=steps, guidance=4.0, cfg_schedule="pcs_1.0")
    f, d = received(batch, latent)
    receiver = sf.WaterfillDDIM(predictor, config)
    inputs: list[tuple[Tensor, Tensor]] = []

    def noted(g: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        inputs.append((g, level))
        return predictor(g, level)

    sf.WaterfillDDIM(noted, config).run(f, d)

    def network() -> None:
        with torch.no_grad():
            for g, level in inputs:
                predictor(g, level)

    with torch.no_grad():
        fixed = predictor(f, d.amax(1))
    bare = sf.WaterfillDDIM(lambda g, beta_bar: fixed, config)
    programs: dict[str, Callable[..., Tensor]] = {"plain": plain_torch, "user": user_style}

    def run(program: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return torch.no_grad()(lambda: program(predictor, config, f, d))

    def agree() -> dict[str, float]:
        """On the same draws of torch's generator."""
        found = []
        for program in (lambda: receiver.run(f, d, noise="torch"), *map(run, programs.values())):
            torch.manual_seed(4)
            found.append(program())
        return {
            name: loops.difference(name, got, found[0], AGREEMENT)
            for name, got in zip(programs, found[1:], strict=True)
        }

    sides: dict[str, Callable[[], object]] = {"loop": lambda: receiver.run(f, d), "network": network}
    sides |= {name: run(program) for name, program in programs.items()} | {"bare": lambda: bare.run(f, d)}
    if timing.device != "cpu":
        sides["graph"] = lambda: receiver.run(f, d, graph=True)
    facts = {"batch": batch, "sizes": "x".join(map(str, latent)) + f", width {WIDTHS[size]}"}
    return loops.LoopCase("waterfill_loop", size, steps, [predictor], sides, agree, facts=facts)


def cases(quick: bool, sizes: Sequence[str] | None = None) -> Iterator[loops.LoopCase]:
    """small: latents of 16x8x8; paper: 16x16x16, those of 128x128 images, with a larger network of the same kind."""
    for size in sizes or (("small",) if quick else ("small", "paper")):
        for batch in BATCHES[size][1:2] if quick and size == "small" else BATCHES[size]:
            yield case(size, batch, STEPS // 5 if quick else STEPS)


def main() -> int:
    return loops.main(names=["waterfill_loop"])


if __name__ == "__main__":
    raise SystemExit(main())
