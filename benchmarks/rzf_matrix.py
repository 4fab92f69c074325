"""Rows of rzf_matrix."""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case, optional_peer
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

    def unit(h):
        return torch.eye(k, dtype=h.dtype, device=h.device).expand(h.shape[0], k, k)

    mimo = optional_peer("sionna.phy.mimo", "sionna")
    return [
        Case(
            "rzf_matrix",
            f"{n} of {k}x{m}",
            make,
            lambda h: sf.rzf_matrix(h, ALPHA),
            {
                "solve": lambda h: peers.rzf_solve(h, unit(h), ALPHA),
                "cholesky": lambda h: peers.rzf_cholesky(h, unit(h), ALPHA),
                "inv": lambda h: h.mH @ torch.linalg.inv_ex(h @ h.mH + ALPHA * unit(h))[0],
            },
            lambda h: reference.rzf_matrix(h, ALPHA)[0],
            check,
            2.0**-24 * 8 * (k + m),
            16 * n * k * m,
            target="no target",
            rival=("sionna", None if mimo is None else lambda h: mimo.rzf_precoding_matrix(h, ALPHA)),
        )
    ]
