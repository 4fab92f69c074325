"""Rows of rzf_matrix."""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case
from .rivals import rivals_for
from .rzf_precode import ALPHA, inputs, worst_error


def cases(quick: bool) -> list[Case]:
    """The whole precoding matrix instead of its product with one symbol vector."""
    n, k, m = (2048 if quick else 28672), 4, 4

    def make(i: int):
        return inputs(i, n, k, m, 0)[:1]

    def check() -> float:
        (h,) = make(0)
        want, _ = reference.rzf_matrix(h.to(torch.complex128), ALPHA)
        return worst_error((sf.rzf_matrix(h.to(timing.device), ALPHA),), (want,))

    return [
        Case(
            "rzf_matrix",
            f"{n} of {k}x{m}",
            make,
            lambda h: sf.rzf_matrix(h, ALPHA),
            {
                "solve": lambda h: torch.linalg.solve(peers.regularised(h, ALPHA), h).mH,
                "cholesky": lambda h: (
                    torch.cholesky_solve(h, torch.linalg.cholesky_ex(peers.regularised(h, ALPHA))[0]).mH
                ),
                "inv": lambda h: h.mH @ torch.linalg.inv_ex(peers.regularised(h, ALPHA))[0],
            },
            lambda h: reference.rzf_matrix(h, ALPHA)[0],
            check,
            2.0**-24 * 8 * (k + m),
            16 * n * k * m,
            target="no target",
            rivals=rivals_for("rzf_matrix", n=n, k=k, m=m, alpha=ALPHA, dtype=torch.complex64),
        )
    ]
