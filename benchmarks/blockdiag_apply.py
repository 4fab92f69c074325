"""Rows of blockdiag_apply."""

import semcom_fast as sf
from semcom_fast import reference

from . import peers
from .cases import Case
from .likelihood_score import inputs, worst_error

SIZES = [(16, 1, 192, 4, 1, 24), (16, 1, 24, 64, 8, 24), (1, 1, 28672, 4, 4, 24)]


def cases(quick: bool) -> list[Case]:
    """Three of likelihood_score's sizes."""
    out = []
    for size in SIZES[:1] if quick else SIZES:
        b, u, k, nr, nt, t = size
        m = u * nt
        make = lambda i, size=size: inputs(i, *size)[1:]  # noqa: E731
        out.append(
            Case(
                "blockdiag_apply",
                f"B={b} K={k} Nr={nr} Nt={nt} T={t}",
                make,
                sf.blockdiag_apply,
                {"matmul": peers.apply_matmul, "einsum": peers.apply_einsum, "broadcast": peers.apply_broadcast},
                reference.blockdiag_apply,
                lambda make=make: worst_error(sf.blockdiag_apply, reference.blockdiag_apply, make(0)),
                4 * (nr + m) * 2.0**-24,
                8 * b * k * (nr * t + m * (nr + t)),
                flops=8 * b * k * nr * t * m,
            )
        )
    return out
