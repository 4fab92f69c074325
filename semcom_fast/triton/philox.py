"""Device functions shared by the kernels: Philox4x32-10, Box-Muller, and the map from programs to quads.

The counter of a quad is (i//4, step, item, stream) and the key (seed low, seed high); docs/conventions.md has the
layout and known answers. A uniform is u = m/2^25 with the odd integer m = 2*(word >> 8) + 1, which needs 25 bits: ln u
and the angle 2 pi u are therefore formed from exact integers, never from a rounded u.
"""

import triton
import triton.language as tl


@triton.jit
def words(c0, c1, c2, c3, k0, k1):
    """Ten rounds on uint32 counters and keys; one 64-bit product gives both halves of a round's multiplication."""
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 = (k0 + 0x9E3779B9).to(tl.uint32)
        k1 = (k1 + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _minus_log32(m):
    """-ln(m/2^25) in float32, to about one unit in the last place of the result, for odd m below 2^25.

    The mantissa is brought to [sqrt(1/2), sqrt(2)) and its distance t from 1 is exact: below u = 1/2 because m itself
    is a float32, above because 2^25 - m is, so this is log1p(-(1-u)) with the exact 1-u.
    """
    upper = m >= 0x1000000
    v = tl.where(upper, 0x2000000 - m, m).to(tl.float32)
    bits = v.to(tl.int32, bitcast=True) - 0x3F3504F3  # sqrt(1/2)
    exponent = bits >> 23
    mantissa = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
    w = v * 2.9802322387695312e-8  # 2^-25: 1-u in the upper half
    near = w < 0.29289323
    t = tl.where(upper, tl.where(near, -w, tl.fma(-2.0, w, 1.0)), mantissa - 1.0)
    e = tl.where(upper, tl.where(near, 0.0, 1.0), 25.0 - exponent.to(tl.float32))
    p = tl.fma(t, 0.069396568450803042, -0.117081602341209888)
    p = tl.fma(p, t, 0.118151506971863574)
    p = tl.fma(p, t, -0.123965900304015476)
    p = tl.fma(p, t, 0.142294683541727741)
    p = tl.fma(p, t, -0.166687688616675141)
    p = tl.fma(p, t, 0.200015589776654001)
    p = tl.fma(p, t, -0.249999897720178455)
    p = tl.fma(p, t, 0.333333232843225053)
    tt = t * t
    small = tl.fma(p * t, tt, -0.5 * tt)
    small = tl.fma(e, 2.12194440e-4, small)  # -ln 2 + 0.693359375, whose product with e is exact
    return tl.fma(e, 0.693359375, -(small + t))


@triton.jit
def radius32(word):
    """sqrt(-2 ln u) in float32: a reciprocal root and one Newton step, correct to about one unit in the last place."""
    a = 2.0 * _minus_log32(((word >> 8) * 2 + 1).to(tl.int32))
    r = tl.rsqrt(a)
    root = a * r
    return tl.fma(0.5 * r, tl.fma(-root, root, a), root)


@triton.jit
def _octant(word):
    """2 pi u = (quadrant + f/2^23) pi/2 with the centred integer |f| < 2^22; returns (quadrant, f)."""
    m = ((word >> 8) * 2 + 1).to(tl.int32)
    quadrant = (m + 0x400000) >> 23
    return quadrant, m - (quadrant << 23)


@triton.jit
def _rotate(quadrant, c, s):
    """(cos, sin) of quadrant * pi/2 + the angle whose cosine and sine are c, s."""
    odd = (quadrant & 1) != 0
    cos = tl.where(odd, s, c)
    sin = tl.where(odd, c, s)
    cos = tl.where(((quadrant + 1) & 2) != 0, -cos, cos)
    sin = tl.where((quadrant & 2) != 0, -sin, sin)
    return cos, sin


@triton.jit
def octant32(t):
    """(cos, sin) of t pi/4 in float32; minimax polynomials in t^2 on |t| <= 1."""
    x = t * t
    s = tl.fma(x, -3.59545075197346546e-5, 2.49000712673802193e-3)
    s = tl.fma(s, x, -0.0807454348301190725)
    s = tl.fma(s * x, t, 0.785398160983412084 * t)
    c = tl.fma(x, 3.53133455110496945e-6, -3.25942007739404209e-4)
    c = tl.fma(c, x, 0.015854327751742998)
    c = tl.fma(c, x, -0.30842513583834521)
    c = tl.fma(c, x, 1.0)
    return c, s


@triton.jit
def angle32(word):
    """(cos, sin) of 2 pi u in float32; t = angle/(pi/4) is exact."""
    quadrant, f = _octant(word)
    c, s = octant32(f.to(tl.float32) * 2.384185791015625e-7)  # 2^-22
    return _rotate(quadrant, c, s)


@triton.jit
def radius64(word):
    """sqrt(-2 ln u) in float64, where u is exact."""
    u = ((word >> 8) * 2 + 1).to(tl.float64) * 2.9802322387695312e-8
    return tl.sqrt(-2.0 * tl.log(u))


@triton.jit
def octant64(t):
    """(cos, sin) of t pi/4 in float64, |t| <= 1; own polynomials, since the library's cosine keeps a stack frame."""
    x = t * t
    s = x * -2.02259165217809338e-14 + 6.94815415049404162e-12
    s = s * x + -1.75724742053048137e-9
    s = s * x + 3.13361688919315584e-7
    s = s * x + -3.65762041821470983e-5
    s = s * x + 2.49039457019271639e-3
    s = s * x + -0.0807455121882807815
    s = (s * x) * t + 0.78539816339744831 * t
    c = x * -3.85905680510607813e-13 + 1.15005440682711024e-10
    c = c * x + -2.46113645042717063e-8
    c = c * x + 3.59086044637688223e-6
    c = c * x + -3.25991886926874003e-4
    c = c * x + 0.0158543442438154458
    c = c * x + -0.308425137534042455
    c = c * x + 1.0
    return c, s


@triton.jit
def angle64(word):
    """(cos, sin) of 2 pi u in float64."""
    quadrant, f = _octant(word)
    c, s = octant64(f.to(tl.float64) * 2.384185791015625e-7)
    return _rotate(quadrant, c, s)


@triton.jit
def turn(cycles, times):
    """(cos, sin) of 2 pi cycles*times in the dtype of both, for products below 2^20 turns; only `times` must be exact.

    The product is reduced before it is rounded: a fused multiply-add leaves what exceeds the nearest quarter turn.
    """
    four = 4.0 * cycles
    near = tl.floor(four * times + 0.5)
    t = 2.0 * tl.fma(four, times, -near)
    if cycles.dtype == tl.float64:
        c, s = octant64(t)
    else:
        c, s = octant32(t)
    return _rotate(near.to(tl.int32), c, s)


@triton.jit
def _pair(word_r, word_a, DOUBLE: tl.constexpr):
    if DOUBLE:
        r = radius64(word_r)
        c, s = angle64(word_a)
    else:
        r = radius32(word_r)
        c, s = angle32(word_a)
    return r * c, r * s


@triton.jit
def normals(quad, step, item, stream, k0, k1, DOUBLE: tl.constexpr):
    """Four standard normals per quad: [T] uint32 quad indices -> [T, 4] float32 or float64; the rest broadcasts."""
    zero = tl.zeros_like(quad)
    w0, w1, w2, w3 = words(quad, step + zero, item + zero, stream + zero, k0, k1)
    z0, z1 = _pair(w0, w1, DOUBLE)
    z2, z3 = _pair(w2, w3, DOUBLE)
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (quad.shape[0], 4))


@triton.jit
def stream_normals(entry, step, item, stream, k0, k1, DOUBLE: tl.constexpr):
    """(re, im) of circular normals, entries `entry` (uint32, any shape): reals 2e and 2e+1, times sqrt(1/2)."""
    zero = tl.zeros_like(entry)
    w0, w1, w2, w3 = words(entry >> 1, step + zero, item + zero, stream + zero, k0, k1)
    odd = (entry & 1) != 0
    re, im = _pair(tl.where(odd, w2, w0), tl.where(odd, w3, w1), DOUBLE)
    return re * 0.70710678118654752, im * 0.70710678118654752


@triton.jit
def key(seed, seed_high, SEED_TENSOR: tl.constexpr):
    """The two key words from a Python integer's words or from an int64 cell on the device."""
    if SEED_TENSOR:
        value = tl.load(seed)
        low = value.to(tl.uint32)
        high = (value >> 32).to(tl.uint32)
    else:
        low = seed.to(tl.uint32)
        high = seed_high.to(tl.uint32)
    return low, high


@triton.jit
def counter_word(value, IS_TENSOR: tl.constexpr):
    """A counter word from a Python integer or from an int64 cell on the device."""
    if IS_TENSOR:
        out = tl.load(value).to(tl.uint32)
    else:
        out = value.to(tl.uint32)
    return out


@triton.jit
def tile(chunks, rows, groups, length, QUADS: tl.constexpr, ROWS: tl.constexpr, VEC: tl.constexpr):
    """Map this program to whole quads of one row (b, g), or of ROWS short rows.

    `length` is in units of VEC reals. A quad is i//4 with i the real index inside the item, so with VEC < 4 the first
    and last quad of a row may reach into its neighbours: the mask keeps this row's part. Returns b and g (scalars when
    ROWS is 1, else [T]), the quad index [T], the 64-bit offset of each real [T, 4] and its mask.
    """
    pid = tl.program_id(0)
    t = tl.arange(0, QUADS * ROWS)
    if ROWS == 1:
        row = pid // chunks
        local = (pid - row * chunks) * QUADS + t
        inside = t >= 0
    else:
        row = pid * ROWS + t // QUADS
        local = t % QUADS
        inside = row < rows
        row = tl.minimum(row, rows - 1)
    b = row // groups
    g = row - b * groups
    reals = length * VEC
    first = g * reals
    quad = first // 4 + local
    lane = tl.arange(0, 4)[None, :]
    index = quad[:, None] * 4 + lane
    if VEC == 4:
        mask = (inside & (local < length))[:, None] & (lane >= 0)
    else:
        start = over_lanes(first, ROWS)
        mask = inside[:, None] & (index >= start) & (index < start + reals)
    offset = over_lanes(b.to(tl.int64) * (groups * reals), ROWS) + index
    return b, g, quad.to(tl.uint32), offset, mask


@triton.jit
def over_lanes(value, ROWS: tl.constexpr):
    """A per-row value, scalar or [T], shaped to broadcast against [T, 4]."""
    if ROWS == 1:
        out = value
    else:
        out = value[:, None]
    return out


@triton.jit
def flag_rows(flag, b, value, mask, SIZE: tl.constexpr):
    """Lower `flag` to the smallest batch index that holds a non-finite `value`; quiet programs touch no memory."""
    bad = tl.max(((tl.abs(value) < float("inf")) == 0) & mask, axis=1)
    index = (b + tl.zeros((SIZE,), tl.int32)).to(flag.dtype.element_ty)
    tl.atomic_min(flag + tl.zeros((SIZE,), tl.int32), index, mask=bad != 0, sem="relaxed")
