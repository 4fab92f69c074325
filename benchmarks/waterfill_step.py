"""Rows of waterfill_step at the latent size of the published networks: fast Rayleigh fading at three stages of a run,
slow fading, guidance, a bfloat16 network, and the small shipped size."""

import math

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case
from .rivals import rivals_for

# name, images, N, (beta_t, beta_s), guided, bfloat16, fast
ROWS = [
    ("early", 512, 4096, (0.85, 0.8), False, False, True),
    ("middle", 512, 4096, (0.3, 0.25), False, False, True),
    ("late", 512, 4096, (0.06, 0.03), False, False, True),
    ("middle, guided", 512, 4096, (0.3, 0.25), True, False, True),
    ("middle, guided, bf16", 512, 4096, (0.3, 0.25), True, True, True),
    ("slow", 512, 4096, (0.3, 0.25), False, False, False),
    ("slow, guided", 512, 4096, (0.3, 0.25), True, False, False),
    ("slow, guided, bf16", 512, 4096, (0.3, 0.25), True, True, False),
    ("middle, guided", 16, 1024, (0.3, 0.25), True, False, True),
]
GUIDANCE = 2.0
SNR_DB = 5.0


def fading(i: int, batch: int, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """g, x0, f of unit power, and d of fast Rayleigh fading."""
    generator = torch.Generator().manual_seed(i)
    g, x0, f = (torch.randn(batch, n, generator=generator) for _ in range(3))
    gain = torch.empty(batch, n // 2).exponential_(1.0, generator=generator)  # |h|^2
    sigma2 = 10 ** (-SNR_DB / 10)
    return g, x0, f, sigma2 / (gain + sigma2)


def needed_normals(d: torch.Tensor, beta: float) -> int:
    """Normals of the Philox counters (four reals each) that hold at least one waiting element."""
    waiting = torch.cat([d, d], -1) < timing.float32(beta)
    return 4 * int(waiting.unflatten(-1, (-1, 4)).any(-1).sum())


def min_bytes(reals: int, guided: bool, half: bool, fast: bool) -> int:
    """Every cache line of a fading state holds waiting and moving elements: g, f, g', d and the predictions in full."""
    prediction = (2 if half else 4) * (2 if guided else 1)
    return reals * (4 + 4 + prediction + (4 + 2 if fast else 0))


def cases(quick: bool) -> list[Case]:
    """Targets: >= 80 % of max(copy of the minimal bytes, time of the needed normals alone), >= 5x best torch."""
    out = []
    for name, batch, n, levels, guided, half, fast in ROWS[-1:] if quick else ROWS:
        beta_t, beta_s = map(timing.float32, levels)

        def make(i: int, batch=batch, n=n, guided=guided, half=half, fast=fast):
            g, x0, f, d = fading(i, batch, n)
            d = d if fast else torch.ones(batch, 1).expand(batch, n // 2)
            dtype = torch.bfloat16 if half else torch.float32
            other = f.flip(0).to(dtype) if guided else None
            return g, x0.to(dtype), f, d, other

        def options(other):
            return {} if other is None else {"x0_uncond": other, "guidance": GUIDANCE}

        def ours(g, x0, f, d, other, levels=(beta_t, beta_s), options=options):
            return sf.waterfill_step(g, x0, f, d, *levels, **options(other), seed=1, step=3)

        def exact(g, x0, f, d, other, levels=(beta_t, beta_s), options=options):
            return reference.waterfill_step(g, x0, f, d, *levels, **options(other), seed=1, step=3)

        def error(make=make, ours=ours, exact=exact) -> float:
            state = make(0)
            wide = exact(*(None if t is None else t.double() for t in state))
            return float((ours(*timing.to_device(state)).cpu() - wide).abs().max() / wide.abs().max())

        def peer(fn, levels=(beta_t, beta_s)):
            return lambda g, x0, f, d, other: fn(g, x0, f, d, *levels, other, GUIDANCE)

        small = math.prod((batch, n)) < 1e5
        out.append(
            Case(
                "waterfill_step",
                f"B={batch} N={n} {name}",
                make,
                ours,
                {"where": peer(peers.waterfill_where), "masked": peer(peers.waterfill_masked)}
                if fast
                else {"add": peer(peers.waterfill_slow)},
                exact,
                error,
                2e-6,
                min_bytes(batch * n, guided, half, fast),
                normals=needed_normals(make(0)[3], beta_s) if fast else 0,
                target="small, no target" if small else ">= 80 % of floor" + (", >= 5x" if fast else ""),
                rivals=rivals_for(
                    "waterfill_step",
                    batch=batch,
                    n=n,
                    levels=(beta_t, beta_s),
                    guidance=GUIDANCE,
                    guided=guided,
                    half=half,
                    fast=fast,
                ),
                dtype="float32",
            )
        )
    return out
