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
    """As many receive antennas as streams, and twice as many."""
    out = []
    for n, nr, nt in [(2048, 4, 4)] if quick else [(28672, 4, 4), (28672, 8, 4)]:

        def make(i: int, n=n, nr=nr, nt=nt):
            g = torch.Generator().manual_seed(i)
            return tuple(torch.randn(s, dtype=torch.complex64, generator=g) for s in ((n, nr), (n, nr, nt)))

        def check(make=make) -> float:
            y, h = make(0)
            want = reference.lmmse_equalise(y.to(torch.complex128), h.to(torch.complex128), NOISE)[:2]
            return worst_error(sf.lmmse_equalise(*timing.to_device((y, h)), NOISE), want)

        out.append(
            Case(
                "lmmse_equalise",
                f"{n} of {nr}x{nt}",
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
                n * (8 * (nr * nt + nr + nt) + 4 * nt),
                target="no target",
                rivals=rivals_for("lmmse_equalise", n=n, nr=nr, nt=nt, noise_var=NOISE, dtype=torch.complex64),
            )
        )
    return out
