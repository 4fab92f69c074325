"""What the water-filling kernels share: levels, the mask, the top-up (23), draws, and the counter of captured graphs.

A state is [B,N] = [Re | Im] halves; d holds noise levels per real, per symbol (real i reads entry i mod N/2) or per
item. Levels are rounded once to the state's dtype, as the masks compare them; row coefficients are formed from them in
float64 and rounded once; what depends on d is formed in the state's dtype without cancellation.
"""

import triton
import triton.language as tl

from .philox import normals, over_lanes

STREAM = tl.constexpr(6)  # of docs/conventions.md
NO_DRAW, DRAW, EXPLICIT = 0, 1, 2
PER_ITEM, PER_SYMBOL, PER_REAL = 0, 1, 2


@triton.jit
def number(pointer, value, stride, b, TENSOR: tl.constexpr):
    """One float64 per row, from a tensor over the items or from a Python number."""
    if TENSOR:
        out = tl.load(pointer + b.to(tl.int64) * stride).to(tl.float64)
    else:
        out = value + b.to(tl.float64) * 0.0
    return out


@triton.jit
def rounded(level, REAL: tl.constexpr):
    """The level as the state's dtype holds it."""
    return level.to(REAL).to(tl.float64)


@triton.jit
def own_level(d, stride, b, quad, offset, mask, length, KIND: tl.constexpr, ROWS: tl.constexpr, VEC: tl.constexpr):
    """The channel's noise level: [T, 4], one per real; shared by an item it stays one per row, scalar or [T]."""
    if KIND == 0:
        own = tl.load(d + b.to(tl.int64) * stride)
    elif KIND == 1:
        index = quad.to(tl.int32)
        lane = tl.arange(0, 4)[None, :]
        if VEC == 4:  # whole quads lie in one half, which keeps the load as wide as the others
            half = length // 2
            index = tl.where(index >= half, index - half, index)[:, None] * 4 + lane
            half = half * 4
        else:
            half = (length * VEC) // 2
            index = index[:, None] * 4 + lane
            index = tl.where(index >= half, index - half, index)
        own = tl.load(d + (over_lanes(b.to(tl.int64) * half, ROWS) + index), mask=mask, other=0.0)
    else:
        own = tl.load(d + offset, mask=mask, other=0.0)
    return own


@triton.jit
def on_tile(value, mask, ROWS: tl.constexpr):
    """A per-row value on the tile [T, 4]; rows are compared there, since truth values of rows do not broadcast."""
    return tl.broadcast_to(over_lanes(value, ROWS), mask.shape)


@triton.jit
def divide(own, bar, mask, KIND: tl.constexpr, ROWS: tl.constexpr):
    """(own level on the tile, which elements wait below the row's `bar`, whether any of the program does).

    NaN waits, and shows. The last is a scalar to branch on: most programs of a late step draw nothing.
    """
    if KIND == 0:
        below = ((own >= bar) == 0).to(tl.int32)
        waits = mask & (on_tile(below, mask, ROWS) != 0)
        some = below
        if ROWS > 1:
            some = tl.max(below, axis=0)
        own = on_tile(own, mask, ROWS)
    else:
        waits = mask & ((own >= over_lanes(bar, ROWS)) == 0)
        some = tl.max(tl.max(waits.to(tl.int32), axis=1), axis=0)
    return own, waits, some > 0


@triton.jit
def whole_quads(part, KIND: tl.constexpr, VEC: tl.constexpr):
    """The quads that hold an element of `part`: a load stays wide when its mask is the same all over a quad."""
    if VEC == 4 and KIND != 0:
        out = tl.broadcast_to(tl.max(part.to(tl.int32), axis=1)[:, None], part.shape) != 0
    else:
        out = part
    return out


@triton.jit
def ddim(high, low):
    """A and B of g_s = A g_t + B x0 in float64, the deterministic step (24); equal levels leave g."""
    same = high == low
    a = tl.where(same, 1.0, tl.sqrt(low / tl.where(same, 1.0, high)))
    return a, tl.where(same, 0.0, tl.sqrt(1.0 - low) - a * tl.sqrt(1.0 - high))


@triton.jit
def shrink(low, root_rest, own):
    """sqrt(r) and 1-r of (23), r = (1-low)/(1-own), for elements with own < low; root_rest is sqrt(1-low)."""
    left = 1.0 - own
    return root_rest / tl.sqrt(left), (low - own) / left


@triton.jit
def draw(given, quad, step, item, k0, k1, MODE: tl.constexpr):
    """Standard normals of stream 6, or the ones that were given (zeros when nothing is to be drawn)."""
    if MODE == 1:
        out = normals(quad, step, item, STREAM, k0, k1, given.dtype == tl.float64)
    else:
        out = given
    return out


@triton.jit
def given_noise(noise, offset, needed, like, MODE: tl.constexpr):
    """Explicit noise, read where it is used; issued with the other loads."""
    if MODE == 2:
        out = tl.load(noise + offset, mask=needed, other=0.0)
    else:
        out = tl.zeros_like(like)
    return out


@triton.jit
def place(counter, last):
    """(k, min(k+1, last)) of a captured step; past the last level the step stays there and changes nothing."""
    k = tl.minimum(tl.load(counter), last)
    return k, tl.minimum(k + 1, last)


@triton.jit
def advance(counter, k):
    """Add one to the counter once every program of the launch has read it: the last to take a ticket does.

    The stores before the barrier needed the value read, so no read of the counter is outstanding in a program that
    takes its ticket: a relaxed atomic will do, and spares every program the wait for its stores.
    """
    tl.debug_barrier()
    ticket = tl.atomic_add(counter + 1, 1, sem="relaxed")
    if ticket == tl.num_programs(0) - 1:
        tl.store(counter + 1, 0)
        tl.store(counter, k + 1)


@triton.jit
def store_level(level_out, b, level, chunks, rows, QUADS: tl.constexpr, ROWS: tl.constexpr):
    """level_out[b] of this program's rows, written by the first program or lane of each row."""
    value = level.to(level_out.dtype.element_ty)
    if ROWS == 1:
        tl.store(level_out + b, value, mask=tl.program_id(0) % chunks == 0)
    else:
        t = tl.arange(0, QUADS * ROWS)
        tl.store(level_out + b, value, mask=(t % QUADS == 0) & (tl.program_id(0) * ROWS + t // QUADS < rows))
