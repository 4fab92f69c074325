"""The second launch of a channel step: energies of the blocks added, and what a captured step makes of them."""

import triton
import triton.language as tl

from ._pvd_table import clamped, row_of
from .pvd_calibrate import of_user


@triton.jit
def _sum(energies, q, width, blocks, BLOCK: tl.constexpr, REAL: tl.constexpr):
    """One energy of an item over its blocks, summed in float64 and rounded once."""
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, blocks, BLOCK):
        k = first + tl.arange(0, BLOCK)
        total += tl.load(energies + k * width + q, mask=k < blocks, other=0.0)
    return tl.sum(total, 0).to(REAL)


@triton.jit(do_not_specialize=["noise_b", "var_b", "var_u", "prior_u", "levels", "last", "users", "blocks"])
def finish_kernel(
    energies, energy, probe_x, probe_y, score_var, per_score, noise_var, noise_b, var_h, var_b, var_u, prior, prior_u,
    table, counter, levels, last, x_energy: tl.float64, nr: tl.float64, share: tl.float64, users, blocks,
    PROBE: tl.constexpr, CALIBRATE: tl.constexpr, WHITE: tl.constexpr, LAGGED: tl.constexpr, PER_USER: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the block energies of item `program_id`: residual, probe at the receiver, probe of every user. CALIBRATE:
    of the last two it makes the effective noise variance, or of the residual where there is no probe; per_score [2,B] is
    what multiplies the scores of this iteration, those of the channel and of the codeword. share: one over Nr K T."""
    b = tl.program_id(0)
    width = 2 + users
    real = energy.dtype.element_ty
    energies += b.to(tl.int64) * blocks * width
    residual = _sum(energies, 0, width, blocks, BLOCK, real)
    tl.store(energy + b, residual)
    if PROBE:
        moved = _sum(energies, 1, width, blocks, BLOCK, real)
        spread = moved.to(tl.float64)
        if CALIBRATE:
            _, table, _ = row_of(table, counter, last, levels)
        else:
            tl.store(probe_y + b, moved)
        for u in range(users):
            moved = _sum(energies, 2 + u, width, blocks, BLOCK, real)
            if CALIBRATE:
                sigma = tl.load(table + (u if PER_USER else 0))
                if WHITE:
                    v = tl.load(prior + u * prior_u).to(tl.float64)
                    variance = v * (sigma * sigma / (v + sigma * sigma))
                else:
                    variance = clamped(tl.load(var_h + (b.to(tl.int64) * var_b + u * var_u)).to(tl.float64), sigma)
                spread += of_user(variance, moved.to(tl.float64), x_energy, nr)
            else:
                tl.store(probe_x + b * users + u, moved)
        extra = spread * share
    else:
        extra = residual.to(tl.float64) * share
    if CALIBRATE:
        noise = tl.load(noise_var + b.to(tl.int64) * noise_b).to(tl.float64)
        if PROBE:
            found = (noise + extra).to(real)
        else:
            found = tl.maximum(noise, extra, propagate_nan=tl.PropagateNan.ALL).to(real)
        divides = found
        if LAGGED:
            divides = tl.load(score_var + b)
            tl.debug_barrier()
        inverse = 1.0 / divides.to(tl.float64)
        tl.store(per_score + b, inverse)
        # torch's cotangent of a real loss is twice the Wirtinger score
        tl.store(per_score + tl.num_programs(0) + b, 2.0 * inverse)
        tl.store(score_var + b, found)
