"""Rows of lmmse_channel."""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case
from .rivals import rivals_for
from .rzf_precode import worst_error

NOISE = 0.1


def cases(quick: bool) -> list[Case]:
    """Many small estimates, each with pilots of its own."""
    n, nr, nt, slots = (1024 if quick else 16384), 4, 4, 8

    def make(i: int):
        g = torch.Generator().manual_seed(i)
        return tuple(torch.randn(s, dtype=torch.complex64, generator=g) for s in ((n, nr, slots), (n, nt, slots)))

    def check() -> float:
        y, p = make(0)
        want = reference.lmmse_channel(y.to(torch.complex128), p.to(torch.complex128), NOISE)
        return worst_error((sf.lmmse_channel(*timing.to_device((y, p)), NOISE),), (want,))

    return [
        Case(
            "lmmse_channel",
            f"{n} of Nr={nr} Nt={nt}, {slots} slots",
            make,
            lambda y, p: sf.lmmse_channel(y, p, NOISE),
            {"solve": lambda y, p: peers.channel_solve(y, p, NOISE)},
            lambda y, p: reference.lmmse_channel(y, p, NOISE),
            check,
            # unit roundoff times the condition number of 4 x 8 Gaussian pilots (99.99 %), and the length of the sums
            2.0**-24 * 100 * (nt + slots),
            8 * n * (nr * slots + nt * slots + nr * nt),
            target="no target",
            rivals=rivals_for("lmmse_channel", n=n, nr=nr, nt=nt, slots=slots, noise_var=NOISE, dtype=torch.complex64),
        )
    ]
