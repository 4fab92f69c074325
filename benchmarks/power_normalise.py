"""Rows of power_normalise."""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case
from .rivals import rivals_for


def cases(quick: bool) -> list[Case]:
    """Codewords of the demo and of the paper's first setting."""
    out = []
    for shape in [(24, 1, 8, 1, 8)] if quick else [(24, 1, 8, 1, 8), (64, 4, 192, 1, 24)]:

        def make(i: int, shape=shape):
            return (torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(i)),)

        def error(make=make) -> float:
            (z,) = make(0)
            x, _ = sf.power_normalise(z.to(timing.device))
            want, _ = reference.power_normalise(z.to(torch.complex128))
            return float((x.cpu() - want).abs().max() / want.abs().max())

        def rows(fn):
            return lambda z: fn(z.reshape(-1, *z.shape[2:]), 1.0)

        out.append(
            Case(
                "power_normalise",
                f"{shape}",
                make,
                lambda z: sf.power_normalise(z),
                {"vector_norm": rows(peers.normalise_norm), "square-sum": rows(peers.normalise_square)},
                lambda z: reference.power_normalise(z),
                error,
                4 * 2.0**-24,
                16 * torch.Size(shape).numel(),
                rivals=rivals_for("power_normalise", shape=shape),
            )
        )
    return out
