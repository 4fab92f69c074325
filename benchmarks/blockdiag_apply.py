"""Rows of blockdiag_apply; its adjoint's rows are made the same way."""

from collections.abc import Callable

import semcom_fast as sf
from semcom_fast import reference

from . import peers
from .cases import Case, name_of, roundoff
from .likelihood_score import C64, C128, inputs, worst_error
from .rivals import rivals_for

SIZES = [(16, 1, 192, 4, 1, 24), (16, 1, 24, 64, 8, 24), (1, 1, 28672, 4, 4, 24)]


def block_cases(stem: str, group: dict[str, Callable], pick: slice, quick: bool) -> list[Case]:
    """Three of likelihood_score's sizes, one in both precisions; `pick` takes operands of (y, h, x), in order."""
    ours, twin = getattr(sf, stem), getattr(reference, stem)
    out = []
    rows = [(size, C64) for size in (SIZES[:1] if quick else SIZES)] + ([] if quick else [(SIZES[0], C128)])
    for size, dtype in rows:
        b, u, k, nr, nt, t = size
        m = u * nt
        make = lambda i, size=size, dtype=dtype: inputs(i, *size, dtype)[pick]  # noqa: E731
        out.append(
            Case(
                stem,
                f"B={b} K={k} Nr={nr} Nt={nt} T={t}",
                make,
                ours,
                group,
                twin,
                lambda make=make: worst_error(ours, twin, make(0)),
                4 * (nr + m) * roundoff(dtype),
                dtype.itemsize * b * k * (nr * t + m * (nr + t)),
                flops=8 * b * k * nr * t * m,
                rivals=rivals_for(stem, b=b, u=u, k=k, nr=nr, nt=nt, t=t, dtype=dtype),
                dtype=name_of(dtype),
            )
        )
    return out


def cases(quick: bool) -> list[Case]:
    group = {"matmul": peers.apply_matmul, "einsum": peers.apply_einsum, "broadcast": peers.apply_broadcast}
    return block_cases("blockdiag_apply", group, slice(1, None), quick)
