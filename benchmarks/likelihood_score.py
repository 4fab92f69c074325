"""Rows of likelihood_score, blockdiag_apply and blockdiag_adjoint share their inputs; each stem has its own `cases`."""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case, name_of, roundoff
from .rivals import rivals_for

C64, C128 = torch.complex64, torch.complex128
SIZES = [  # B, U, K, Nr, Nt, T, target
    (16, 1, 192, 4, 1, 24, ">= 8x, >= 60 % of copy"),
    (16, 1, 24, 64, 8, 24, ">= 6x, >= 65 % of cgemm"),
    (16, 1, 12, 128, 16, 24, ">= 4x"),
    (1, 1, 28672, 4, 4, 24, ">= 12x, >= 60 % of copy"),
    (24, 1, 8, 4, 1, 8, "demo size, no target"),
]


def inputs(i: int, b: int, u: int, k: int, nr: int, nt: int, t: int, dtype=torch.complex64):
    """(y, h, x) of one set; the seed is the set's index."""
    g = torch.Generator().manual_seed(i)
    shapes = (b, k, nr, t), (b, u, k, nr, nt), (b, u, k, nt, t)
    return tuple(torch.randn(s, dtype=dtype, generator=g) for s in shapes)


def worst_error(ours, reference_fn, args) -> float:
    """Largest error relative to the largest entry, over all outputs, against float64."""
    got = ours(*timing.to_device(args))
    want = reference_fn(*(a.to(torch.complex128) for a in args))
    got, want = (v if isinstance(v, tuple) else (v,) for v in (got, want))
    pairs = [(a, b) for a, b in zip(got, want, strict=True) if b is not None]
    return max(float((a.cpu() - b).abs().max() / b.abs().max()) for a, b in pairs)


def cases(quick: bool) -> list[Case]:
    """The sizes of the design targets, and two in double precision."""
    rows = [(C64, *row) for row in (SIZES[-1:] if quick else SIZES)]
    rows += [(C128, *row[:-1], "no target") for row in (SIZES[-1:] if quick else SIZES[:2])]
    out = []
    for dtype, *size, target in rows:
        b, u, k, nr, nt, t = size
        m = u * nt
        group = {
            "matmul": peers.score_matmul,
            "einsum": peers.score_einsum,
            "baddbmm": peers.score_baddbmm,
        }
        if m <= 4:
            group["broadcast"] = peers.score_broadcast
        make = lambda i, size=tuple(size), dtype=dtype: inputs(i, *size, dtype)  # noqa: E731
        out.append(
            Case(
                "likelihood_score",
                f"B={b} K={k} Nr={nr} Nt={nt} T={t}",
                make,
                sf.likelihood_score,
                group,
                reference.likelihood_score,
                lambda make=make: worst_error(sf.likelihood_score, reference.likelihood_score, make(0)),
                4 * (nr + m + t) * roundoff(dtype),  # unit roundoff times the length of the longest sum, and slack 4
                dtype.itemsize * (b * k * (nr * t + 2 * m * (nr + t)) + b // 2),
                flops=24 * b * k * nr * t * m,
                target=target,
                rivals=rivals_for("likelihood_score", b=b, u=u, k=k, nr=nr, nt=nt, t=t, dtype=dtype),
                dtype=name_of(dtype),
            )
        )
    return out
