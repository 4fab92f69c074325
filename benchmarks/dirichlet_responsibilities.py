"""Rows of dirichlet_responsibilities: four experts, one channel to many."""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case
from .rivals import rivals_for

SIZES = [1, 256, 16384]
EXPERTS = 4


def cases(quick: bool) -> list[Case]:
    """Bytes: two evidences in, responsibilities and parameters out."""
    out = []
    for batch in SIZES[:2] if quick else SIZES:

        def make(i: int, batch=batch):
            generator = torch.Generator().manual_seed(i)
            return tuple(-20 * torch.rand(batch, EXPERTS, generator=generator) for _ in range(2))

        def ours(evidence, data):
            return sf.dirichlet_responsibilities(evidence, data, 1.0)

        def error(make=make, ours=ours) -> float:
            given = make(0)
            exact = reference.dirichlet_responsibilities(*(t.double() for t in given), 1.0)
            got = ours(*timing.to_device(given))
            return max(float((g.cpu() - e).abs().max()) for g, e in zip(got, exact, strict=True))

        out.append(
            Case(
                "dirichlet_responsibilities",
                f"B={batch} E={EXPERTS}",
                make,
                ours,
                {"softmax": peers.responsibilities_softmax},
                lambda evidence, data: reference.dirichlet_responsibilities(evidence, data, 1.0),
                error,
                1e-6,
                batch * EXPERTS * 16,
                target="no target",
                rivals=rivals_for("dirichlet_responsibilities", batch=batch, experts=EXPERTS),
                dtype="float32",
            )
        )
    return out
