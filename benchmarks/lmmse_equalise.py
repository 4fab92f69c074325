"""Rows of lmmse_equalise."""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case
from .rivals import rivals_for
from .rzf_precode import worst_error

NOISE = 0.1


def cases(quick: bool) -> list[Case]:
    """As many receive antennas as streams, and twice as many; channels that the vectors of a subframe share."""
    out = []
    for n, nr, nt, t in (
        [(2048, 4, 4, 1)] if quick else [(28672, 4, 4, 1), (28672, 8, 4, 1), (2048, 4, 4, 14), (256, 16, 16, 14)]
    ):

        def make(i: int, n=n, nr=nr, nt=nt, t=t):
            g = torch.Generator().manual_seed(i)
            shapes = ((n, nr), (n, nr, nt)) if t == 1 else ((n, t, nr), (n, 1, nr, nt))
            return tuple(torch.randn(s, dtype=torch.complex64, generator=g) for s in shapes)

        def check(make=make) -> float:
            y, h = make(0)
            want = reference.lmmse_equalise(y.to(torch.complex128), h.to(torch.complex128), NOISE)[:2]
            return worst_error(sf.lmmse_equalise(*timing.to_device((y, h)), NOISE), want)

        out.append(
            Case(
                "lmmse_equalise",
                f"{n} of {nr}x{nt}" + (f", {t} vectors each" if t > 1 else ""),
                make,
                lambda y, h: sf.lmmse_equalise(y, h, NOISE),
                {
                    "solve": lambda y, h: peers.equalise_solve(y, h, NOISE),
                    "cholesky": lambda y, h: peers.equalise_cholesky(y, h, NOISE),
                    "inv": lambda y, h: peers.equalise_inverse(y, h, NOISE),
                },
                lambda y, h: reference.lmmse_equalise(y, h, NOISE),
                check,
                2.0**-24 * 4,  # float64 inside: the rounding of the results
                n * (8 * (nr * nt + t * nr + t * nt) + 4 * t * nt),
                target="no target",
                rivals=rivals_for("lmmse_equalise", n=n, nr=nr, nt=nt, noise_var=NOISE, dtype=torch.complex64)
                if t == 1
                else {},  # theirs take a channel for every vector
            )
        )
    return out
