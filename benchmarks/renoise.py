"""Rows of renoise: eight diffusion steps of the 16 x 64 link."""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case
from .pilot_posterior_step import NR, NT, gaussian
from .rivals import rivals_for

STEPS = tuple(range(30, 101, 10))
BETA = torch.cat([torch.zeros(1, dtype=torch.float64), torch.linspace(1 / 10001, 0.1, 100, dtype=torch.float64)])
ALPHA_BAR = torch.cumprod(1 - BETA, 0)
SIZES = [1, 64, 1024]


def cases(quick: bool) -> list[Case]:
    """Bytes: the estimate and every noised copy; normals: two reals an entry and step."""
    out = []
    for batch in SIZES[:2] if quick else SIZES:

        def make(i: int, batch=batch):
            return (gaussian(i, batch, NR, NT),)

        def ours(h):
            return sf.renoise(h, STEPS, ALPHA_BAR, seed=1)

        def error(make=make, ours=ours) -> float:
            given = make(0)
            exact = reference.renoise(given[0].to(torch.complex128), STEPS, ALPHA_BAR, seed=1)
            return float((ours(*timing.to_device(given)).cpu() - exact).abs().max() / exact.abs().max())

        out.append(
            Case(
                "renoise",
                f"B={batch} {NR}x{NT} S={len(STEPS)}",
                make,
                ours,
                {"randn": lambda h: peers.renoise_randn(h, ALPHA_BAR[list(STEPS)])},
                lambda h: reference.renoise(h, STEPS, ALPHA_BAR, seed=1),
                error,
                1e-6,
                batch * 8 * NR * NT * (1 + len(STEPS)),
                normals=batch * 2 * NR * NT * len(STEPS),
                target="no target",
                rivals=rivals_for("renoise", batch=batch, nr=NR, nt=NT, steps=len(STEPS)),
            )
        )
    return out
