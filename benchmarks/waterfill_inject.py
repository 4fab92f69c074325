"""Rows of waterfill_inject: fast Rayleigh fading at 5 dB, the first injection of a run and a late one."""

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case
from .rivals import rivals_for
from .waterfill_step import fading, needed_normals

SIZES = [(512, 4096, 0.9), (512, 4096, 0.1), (16, 1024, 0.9)]  # images, N, level


def cases(quick: bool) -> list[Case]:
    """Bytes: f and g in full, d per symbol; normals: those of Philox counters with a waiting element."""
    out = []
    for batch, n, beta in SIZES[-1:] if quick else SIZES:

        def make(i: int, batch=batch, n=n):
            _, _, f, d = fading(i, batch, n)
            return f, d

        def ours(f, d, beta=beta):
            return sf.waterfill_inject(f, d, beta, seed=1, step=3)

        def error(make=make, beta=beta, ours=ours) -> float:
            f, d = make(0)
            exact = reference.waterfill_inject(f.double(), d.double(), timing.float32(beta), seed=1, step=3)
            return float((ours(*timing.to_device((f, d))).cpu() - exact).abs().max() / exact.abs().max())

        out.append(
            Case(
                "waterfill_inject",
                f"B={batch} N={n} level {beta}",
                make,
                ours,
                {
                    "where": lambda f, d, beta=beta: peers.inject_where(f, d, beta),
                    "masked": lambda f, d, beta=beta: peers.inject_masked(f, d, beta),
                },
                lambda f, d, beta=beta: reference.waterfill_inject(f, d, beta, seed=1, step=3),
                error,
                2e-6,
                batch * n * 10,
                normals=needed_normals(make(0)[1], beta),
                target="no target",
                rivals=rivals_for("waterfill_inject", batch=batch, n=n, beta=beta),
                dtype="float32",
            )
        )
    return out
