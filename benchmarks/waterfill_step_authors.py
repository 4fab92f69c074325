"""Rows of waterfill_step_authors: own base, amplitude top-up, unit RMS, in fast Rayleigh fading."""

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case
from .rivals import rivals_for
from .waterfill_step import fading, needed_normals

SIZES = [(512, 4096, (0.3, 0.25)), (16, 1024, (0.3, 0.25))]


def cases(quick: bool) -> list[Case]:
    """Bytes: f, x0, d in, f' and g' out, and g' once more for its norm."""
    out = []
    for batch, n, levels in SIZES[-1:] if quick else SIZES:
        beta_t, beta_s = map(timing.float32, levels)

        def make(i: int, batch=batch, n=n):
            g, x0, f, d = fading(i, batch, n)
            return f, g, d, x0

        def ours(f, g, d, x0, levels=(beta_t, beta_s)):
            return sf.waterfill_step_authors(f, g, d, x0, *levels, seed=1, step=3)

        def exact(f, g, d, x0, levels=(beta_t, beta_s)):
            return reference.waterfill_step_authors(f, g, d, x0, *levels, seed=1, step=3)

        def error(make=make, ours=ours, exact=exact) -> float:
            state = make(0)
            pairs = zip(ours(*timing.to_device(state)), exact(*(t.double() for t in state)), strict=True)
            return max(float((a.cpu() - b).abs().max() / b.abs().max()) for a, b in pairs)

        out.append(
            Case(
                "waterfill_step_authors",
                f"B={batch} N={n}",
                make,
                ours,
                {"eager": lambda *s, levels=(beta_t, beta_s): peers.waterfill_authors(*s, *levels)},
                exact,
                error,
                3e-6,
                batch * n * (4 + 4 + 2 + 4 + 4),
                normals=needed_normals(make(0)[2], beta_s),
                target="no target",
                rivals=rivals_for("waterfill_step_authors", batch=batch, n=n, levels=(beta_t, beta_s)),
                dtype="float32",
            )
        )
    return out
