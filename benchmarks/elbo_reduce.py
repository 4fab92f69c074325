"""Rows of elbo_reduce: four experts at eight diffusion steps of the 16 x 64 link."""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case
from .pilot_posterior_step import NP, NR, NT, gaussian, svd
from .renoise import ALPHA_BAR, STEPS
from .rivals import rivals_for

EXPERTS, NOISE_VAR = 4, 0.64
WEIGHTS = torch.linspace(0.08, 0.12, len(STEPS), dtype=torch.float64)
SIZES = [1, 64, 512]


def cases(quick: bool) -> list[Case]:
    """Bytes: every prediction once; normals: two reals an entry and step, drawn again rather than kept."""
    out = []
    for batch in SIZES[:2] if quick else SIZES:

        def make(i: int, batch=batch):
            eps = gaussian(i, batch, len(STEPS), EXPERTS, NR, NT)
            return eps, gaussian(i + 1, batch, NR, NT), gaussian(i + 2, batch, NR, NP), *svd()

        def ours(eps, h, yv, u, s, v):
            return sf.elbo_reduce(
                eps, h, STEPS, ALPHA_BAR, WEIGHTS, yv, reference.PilotSVD(u, s, v), noise_var=NOISE_VAR, tau=30, seed=1
            )

        def twin(eps, h, yv, u, s, v):
            return reference.elbo_reduce(
                eps, h, STEPS, ALPHA_BAR, WEIGHTS, yv, reference.PilotSVD(u, s, v), noise_var=NOISE_VAR, tau=30, seed=1
            )

        def error(make=make, ours=ours, twin=twin) -> float:
            given = make(0)
            exact = twin(*[t.to(torch.complex128 if t.is_complex() else torch.float64) for t in given])
            got = ours(*timing.to_device(given))
            return max(float(((g.cpu() - e) / e).abs().max()) for g, e in zip(got, exact, strict=True))

        out.append(
            Case(
                "elbo_reduce",
                f"B={batch} S={len(STEPS)} E={EXPERTS} {NR}x{NT} Np={NP}",
                make,
                ours,
                {"stored noise": lambda *a: peers.elbo_randn(*a, ALPHA_BAR[list(STEPS)], WEIGHTS, NOISE_VAR)},
                twin,
                error,
                1e-6,
                batch * 8 * (NR * NT * (len(STEPS) * EXPERTS + 1) + NR * NP),
                flops=batch * EXPERTS * 8 * NR * NT * NP,
                normals=batch * 2 * NR * NT * len(STEPS),
                target="no target",
                rivals=rivals_for("elbo_reduce", batch=batch, experts=EXPERTS, nr=NR, nt=NT, pilots=NP),
            )
        )
    return out
