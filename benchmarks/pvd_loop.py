"""What the PVD loop costs beyond its networks, beside the same algorithm in plain torch and as published code does it.

python -m benchmarks.pvd_loop --threads 1 2 --csv benchmarks/results/loops.csv
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import semcom_fast as sf
from semcom_fast.data import load_digits
from semcom_fast.links import draw_channel, noise_var_from_snr_db, transmit
from semcom_fast.receivers import PVD, GaussianChannelPrior, PVDConfig
from semcom_fast.systems.blind_mimosc.experiment import Link
from semcom_fast.systems.blind_mimosc.networks import load_denoiser, load_encoder, load_photo_codec, load_photo_denoiser
from semcom_fast.systems.blind_mimosc.overhead import network_pass

from . import loops, timing

BATCH = 24
CHECKED: dict[str, Any] = {"J": 4, "Jin": 3, "sigma_max": 3.0, "sigma_min": 1.0}  # of the runs compared
AGREEMENT = 1e-4

Draw = Callable[..., Tensor]


def philox(shape: Sequence[int], dtype: torch.dtype, stream: int, step: int) -> Tensor:
    """The loop's own draws."""
    return sf.philox_normal(tuple(shape), seed=0, step=step, stream=stream, dtype=dtype, device=timing.device)


def generator(shape: Sequence[int], dtype: torch.dtype, stream: int, step: int) -> Tensor:
    """What a program of one's own draws from."""
    return torch.randn(tuple(shape), dtype=dtype, device=timing.device)


@dataclass
class Problem:
    """One reception: networks, sizes, what was received; the channel is i.i.d. CN(0, 1)."""

    encoder: nn.Module
    denoiser: nn.Module
    config: PVDConfig
    y: Tensor
    noise_var: float

    def ours(self) -> PVD:
        return PVD(self.encoder, GaussianChannelPrior(), self.denoiser, self.config)

    @property
    def zetas(self) -> tuple[Any, Any]:
        """Step sizes of channel and source, numbers here."""
        return self.config.zeta_h, self.config.zeta_d

    def start(self, draw: Draw, sigmas: Sequence[float]) -> tuple[list[Tensor], list[Tensor]]:
        """[mean, anchor, sample] of channel and source."""
        c, (batch, blocks, nr, _) = self.config, self.y.shape
        states = []
        for shape, dtype, stream in (
            ((batch, c.users, blocks, nr, c.nt), self.y.dtype, 1),
            ((batch, c.users, *c.source_shape), self.y.real.dtype, 2),
        ):
            anchor, mean = (draw(shape, dtype, stream + 2, k) * sigmas[-1 - k] for k in range(2))
            states.append([mean, anchor, mean + next_var(*sigmas[-2:]) ** 0.5 * draw(shape, dtype, stream, 0)])
        return states[0], states[1]


def next_var(sigma: float, above: float) -> float:
    """Variance of the next sample around its mean."""
    return sigma**2 * (above**2 - sigma**2) / above**2


def plain_torch(p: Problem, draw: Draw) -> tuple[Tensor, Tensor]:
    """Algorithm 1 in torch's own operations on all images and users at once, with nothing to wait for: schedules are
    numbers formed beforehand, products of blocks are batched, and only the source's networks need autograd."""
    c, sigmas, y = p.config, p.config.schedule(), p.y
    h, d = p.start(draw, sigmas)
    count = math.prod(y.shape[1:])
    x_energy = c.power * y.shape[1] * c.nt * y.shape[3]
    levels = torch.tensor(sigmas, dtype=y.real.dtype).to(y.device).unbind()
    n = 0
    for j, (sigma, above) in reversed(list(enumerate(pairwise(sigmas)))):
        delta, weight = above**2 - sigma**2, 1 / (1 + sigma**2)
        rho = delta / sigma**2
        for i in range(c.Jin):
            n += 1
            lower = sigmas[j - 1 : j + 1] if i == c.Jin - 1 and j else (sigma, above)
            spread = next_var(*lower) ** 0.5 if i < c.Jin - 1 or j else 0.0
            with torch.enable_grad():
                leaf = d[2].detach().requires_grad_(True)
                d0, var_d = p.denoiser(leaf, levels[j])
                x = p.encoder(d0)
            sent, clean = x.detach(), d0.detach()
            std = var_d.clamp(0, sigma**2).sqrt().reshape(*var_d.shape, *(1,) * len(c.source_shape))
            probe = p.encoder(clean + std * draw(clean.shape, clean.dtype, 5, n - 1)) - sent
            h0 = weight * h[2]
            residual = y - (h0 @ sent).sum(1)
            score_h = residual.unsqueeze(1) @ sent.mH
            score_x = h0.mH @ residual.unsqueeze(1)
            added = (x_energy + probe.abs().square().sum((2, 3, 4))).sum(1) * y.shape[2] * weight * sigma**2
            added = added + (h0 @ probe).sum(1).abs().square().sum((1, 2, 3))
            s = p.noise_var + added / count
            score_d = torch.autograd.grad(x, leaf, score_x)[0]
            for state, denoised, score, zeta, stream in (
                (h, h0, weight * score_h / s.reshape(-1, 1, 1, 1, 1), p.zetas[0], 1),
                (d, clean, 2 * score_d / s.reshape(-1, *(1,) * (d[0].ndim - 1)), p.zetas[1], 2),
            ):
                pull = (state[1] - state[2]) + rho * (denoised - state[2]) + delta * score
                state[0] = state[0] + zeta * pull
                state[2] = state[0] + spread * draw(state[0].shape, state[0].dtype, stream, n) if spread else state[0]
        h[1], d[1] = h[0], d[0]
    return h[0], d[0]


def block_diagonal(h: Tensor) -> Tensor:
    """[B,K,Nr,Nt] of one user -> [B, K Nr, K Nt], the blocks on the diagonal, as the system model is written down."""
    return torch.stack([torch.block_diag(*blocks) for blocks in h])


def user_style(p: Problem, draw: Draw) -> tuple[Tensor, Tensor]:
    """Algorithm 1 as a published program has it: the block-diagonal matrix of every user, a Python loop over users,
    levels of a NumPy schedule looked up by tensors' values, both scores by automatic differentiation of the residual,
    and a progress record that reads the residual and looks for NaN at every step."""
    c, y = p.config, p.y
    batch, blocks, nr, slots = y.shape
    schedule = np.asarray(c.schedule())
    h, d = p.start(draw, schedule.tolist())
    received = y.reshape(batch, blocks * nr, slots)
    count = blocks * nr * slots
    record: list[float] = []
    n = 0
    for j in range(c.J - 1, -1, -1):
        for i in range(c.Jin):
            n += 1
            sigma = torch.tensor(schedule[j], dtype=y.real.dtype).to(y.device)
            above = torch.tensor(schedule[j + 1], dtype=y.real.dtype).to(y.device)
            weight = 1 / (1 + sigma.item() ** 2)
            delta = above.item() ** 2 - sigma.item() ** 2
            leaf_h, leaf_d = (state[2].detach().requires_grad_(True) for state in (h, d))
            with torch.enable_grad():
                d0, var_d = p.denoiser(leaf_d, sigma)
                x = p.encoder(d0)
                h0 = weight * leaf_h
                residual = received
                for u in range(c.users):
                    residual = residual - block_diagonal(h0[:, u]) @ x[:, u].reshape(batch, blocks * c.nt, slots)
                energy = residual.abs().square().sum((1, 2))
            clean, sent = d0.detach(), x.detach()
            std = torch.clamp(var_d, max=sigma.item() ** 2).sqrt().reshape(*var_d.shape, *(1,) * len(c.source_shape))
            probe = p.encoder(clean + std * draw(clean.shape, clean.dtype, 5, n - 1)) - sent
            moved = torch.zeros_like(received)
            added = torch.zeros(batch, device=y.device)
            for u in range(c.users):
                change = probe[:, u].reshape(batch, blocks * c.nt, slots)
                moved = moved + block_diagonal(h0[:, u].detach()) @ change
                energies = sent[:, u].abs().square().sum((1, 2, 3)) + change.abs().square().sum((1, 2))
                added = added + nr * weight * sigma.item() ** 2 * energies
            s = p.noise_var + (added + moved.abs().square().sum((1, 2))) / count
            with torch.enable_grad():
                loss = -(energy / s).sum()
            grad_h, grad_d = torch.autograd.grad(loss, (leaf_h, leaf_d))
            last = i == c.Jin - 1 and j == 0
            ends = (schedule[j - 1], schedule[j]) if i == c.Jin - 1 and j else (schedule[j], schedule[j + 1])
            for state, denoised, score, zeta, stream in (
                (h, h0.detach(), 0.5 * grad_h, p.zetas[0], 1),
                (d, clean, grad_d, p.zetas[1], 2),
            ):
                pull = (state[1] - state[2]) + delta / sigma.item() ** 2 * (denoised - state[2]) + delta * score
                state[0] = state[0] + zeta * pull
                drawn = draw(state[0].shape, state[0].dtype, stream, n)
                state[2] = state[0] if last else state[0] + float(np.sqrt(next_var(*ends))) * drawn
            if torch.isnan(d[0]).any():
                raise RuntimeError(f"NaN at step {n}")
            record.append(float(energy.detach().cpu().numpy().mean()))
        h[1], d[1] = h[0], d[0]
    return h[0], d[0]


def agreement(p: Problem) -> dict[str, float]:
    """Both other programs against the loop on its own draws, over a short run."""
    short = replace(p, config=replace(p.config, **CHECKED))
    ours = short.ours().run(p.y, p.noise_var)
    found = {}
    for name, program in (("plain", plain_torch), ("user", user_style)):
        with torch.no_grad():
            got = program(short, philox)
        errors = [loops.difference(name, a, b, AGREEMENT) for a, b in zip(got, (ours.h, ours.d), strict=True)]
        found[name] = max(errors)
    return found


def problem(size: str, quick: bool) -> Problem:
    """small: the demonstration's digits; paper: photographs of four users on four antennas, T = 24, at 20 dB."""
    encoder: nn.Module
    denoiser: nn.Module
    if size == "small":
        shorter: dict[str, Any] = {"J": 6, "Jin": 8, "sigma_max": 1.0, "sigma_min": 0.16} if quick else {}
        link, encoder, denoiser = Link(), load_encoder(), load_denoiser()
        d = load_digits().test[:BATCH].unsqueeze(1)
        config = PVDConfig(users=link.users, nt=link.nt, **shorter)
        h = draw_channel(BATCH, link.users, link.blocks, link.nr, link.nt, seed=0)
    else:
        codec, denoiser = load_photo_codec(symbols=384, layout=(16, 1, 24), users=4), load_photo_denoiser()
        encoder = codec.encoder
        d = torch.rand((4, 4, 1, 32, 32), generator=torch.Generator().manual_seed(0)) * 2 - 1
        config = PVDConfig(users=4, source_shape=(1, 32, 32), J=8, Jin=4, sigma_max=1.0, sigma_min=0.08)
        h = draw_channel(4, 4, 16, 4, 1, seed=0)
    encoder, denoiser = encoder.to(timing.device), denoiser.to(timing.device)
    d, h = timing.to_device((d, h))
    noise_var = noise_var_from_snr_db(20.0, users=config.users, nt=config.nt)
    with torch.no_grad():
        y = transmit(h, encoder(d), noise_var, 0)
    return Problem(encoder, denoiser, config, y, noise_var)


def case(size: str, quick: bool) -> loops.LoopCase:
    p = problem(size, quick)
    receiver, c = p.ours(), p.config

    def run(program: Callable[[Problem, Draw], Any]) -> Callable[[], Any]:
        return torch.no_grad()(lambda: program(p, generator))

    def reference() -> None:
        with sf.use_backend("reference"):
            receiver.run(p.y, p.noise_var)

    sides = {
        "loop": lambda: receiver.run(p.y, p.noise_var),
        "network": network_pass(p.encoder, p.denoiser, p.config, p.y, p.noise_var),
        "plain": run(plain_torch),
        "user": run(user_style),
    }
    if not quick:
        sides["reference"] = reference
    if timing.device != "cpu":
        sides["graph"] = lambda: receiver.run(p.y, p.noise_var, graph=True)
    batch, blocks, nr, slots = p.y.shape
    facts = {
        "batch": batch,
        "sizes": f"U={c.users} K={blocks} Nr={nr} Nt={c.nt} T={slots} n={math.prod(c.source_shape)}",
    }
    return loops.LoopCase(
        "pvd_loop", size, c.J * c.Jin, [p.encoder, p.denoiser], sides, lambda: agreement(p), facts=facts
    )


def cases(quick: bool, sizes: Sequence[str] | None = None) -> Iterator[loops.LoopCase]:
    for size in sizes or (("small",) if quick else ("small", "paper")):
        yield case(size, quick)


def main() -> int:
    return loops.main(names=["pvd_loop"])


if __name__ == "__main__":
    raise SystemExit(main())
