"""Counter-based normals: known words, addresses of draws, and agreement of the kernel with float64."""

import math

import pytest
import torch
from sf_testing import same_bits, within

import semcom_fast as sf
from semcom_fast import reference

MASK = 0xFFFFFFFF
KNOWN = [  # counter, key, words: the known-answer vectors published with Philox4x32-10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]  # fmt: skip


def _normals(words):
    """Box-Muller with u = ((w >> 8) + 1/2) 2^-24, in double precision by Python's own math."""
    u = [((w >> 8) + 0.5) * 2.0**-24 for w in words]
    lanes = []
    for a, b in ((u[0], u[1]), (u[2], u[3])):
        lanes += [
            math.sqrt(-2 * math.log(a)) * math.cos(2 * math.pi * b),
            math.sqrt(-2 * math.log(a)) * math.sin(2 * math.pi * b),
        ]
    return torch.tensor(lanes, dtype=torch.float64)


@pytest.mark.parametrize("counter, key, words", KNOWN)
def test_known_words_of_the_reference(counter, key, words):
    """The reference generator reproduces the published words."""
    assert [int(w) for w in reference.philox_words(counter, key)] == list(words)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=["f64", "f32"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_known_words_through_the_public_op(backend, dtype, tolerance):
    """Counter and key 0, addressed by seed, step, item and stream: the op gives the normals of the known words."""
    with sf.use_backend(backend):
        got = sf.philox_normal((1, 4), seed=0, dtype=dtype)
    within(got[0], _normals(KNOWN[0][2]), tolerance, f"known normals {backend} {str(dtype)[6:]}")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_counter_layout(backend):
    """Counter = (i//4, step, item, stream), key = (seed low, seed high), shown by an address with four known parts."""
    seed, step, item, stream = (0x299F31D0 << 32) | 0xA4093822, 0x85A308D3, 0x13198A2E, 0x03707344
    with sf.use_backend(backend):
        got = sf.philox_normal((1, 12), seed=seed, step=step, stream=stream, first_item=item, dtype=torch.float64)
    for quad in range(3):
        words = reference.philox_words((quad, step, item, stream), (seed & MASK, seed >> 32))
        within(got[0, 4 * quad : 4 * quad + 4], _normals([int(w) for w in words]), 1e-13, f"counter layout {backend}")


def test_words_of_a_later_quad():
    """Quad 7 of an item with the other three counter words of the third known vector, through the kernel."""
    step, item, stream = (w for w in KNOWN[2][0][1:])
    seed = (KNOWN[2][1][1] << 32) | KNOWN[2][1][0]
    words = [int(w) for w in reference.philox_words((7, step, item, stream), KNOWN[2][1])]
    got = sf.philox_normal((1, 32), seed=seed, step=step, stream=stream, first_item=item, dtype=torch.float64)
    within(got[0, 28:], _normals(words), 1e-13, "kernel words")


def test_float32_agrees_with_float64():
    """Element by element within 2e-6 absolute over 4 million draws, tails included."""
    shape = (4, 1_000_003)
    wide, narrow = (sf.philox_normal(shape, seed=7, dtype=d) for d in (torch.float64, torch.float32))
    within(narrow, wide, 2e-6, "float32 normals against float64")
    assert wide.abs().max() > 4.9  # the tails are in the sample: P(max < 4.9) of 4e6 normals is below 3 %


def test_kernel_agrees_with_reference():
    """The same normals from the kernel's and the reference's arithmetic, in both precisions and complex."""
    for dtype, tolerance in (
        (torch.float64, 1e-13),
        (torch.float32, 2e-6),
        (torch.complex128, 1e-13),
        (torch.complex64, 2e-6),
    ):
        for shape in ((3, 1), (2, 3), (3, 5, 7), (2, 1023), (1, 4099), (7,)):
            key = {"seed": 12345678901234567890, "step": 3, "stream": 5, "first_item": 9, "dtype": dtype}
            got, want = sf.philox_normal(shape, **key), reference.philox_normal(shape, **key)
            within(got, want, tolerance, f"philox twin {str(dtype)[6:]}")


def test_complex_entries_use_consecutive_reals():
    """Complex entry e is (normal 2e + i normal 2e+1)/sqrt(2)."""
    z = sf.philox_normal((3, 5), seed=3, dtype=torch.complex128)
    x = sf.philox_normal((3, 10), seed=3, dtype=torch.float64)
    want = torch.complex(x[:, 0::2], x[:, 1::2]) * math.sqrt(0.5)
    within(z, want, 1e-15 * want.abs().max(), "complex layout")


def test_shape_inside_an_item_does_not_matter():
    """The index is row-major inside an item, whatever its shape; a longer item extends a shorter one."""
    flat = sf.philox_normal((2, 60), seed=3)
    assert torch.equal(sf.philox_normal((2, 3, 4, 5), seed=3).reshape(2, 60), flat)
    assert torch.equal(sf.philox_normal((2, 77), seed=3)[:, :60], flat)
    assert torch.equal(sf.philox_normal((), seed=3), flat[0, 0])


@pytest.mark.parametrize("cut", [1, 2, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
def test_split_batch(cut, dtype):
    """first_item makes a split batch draw the same bits."""
    whole = sf.philox_normal((9, 33), seed=11, step=2, stream=4, dtype=dtype)
    parts = [
        sf.philox_normal((n, 33), seed=11, step=2, stream=4, first_item=f, dtype=dtype)
        for n, f in ((cut, 0), (9 - cut, cut))
    ]
    same_bits(torch.cat(parts), whole)


def test_large_item_indices():
    """Item indices use the whole 32-bit counter word."""
    whole = sf.philox_normal((4, 8), seed=1, first_item=2**31 - 2)
    assert torch.equal(whole[2:], sf.philox_normal((2, 8), seed=1, first_item=2**31))
    want = reference.philox_normal((4, 8), seed=1, first_item=2**31 - 2, dtype=torch.float64)
    within(whole, want, 2e-6, "large item index")


def test_addresses_are_independent():
    """Seed (low and high word), step, item and stream each give other numbers, uncorrelated within 5 sigma."""
    n = 100_000
    base = {"seed": 5, "step": 1, "stream": 2, "first_item": 3}
    a = sf.philox_normal((1, n), **base, dtype=torch.float64)
    for change in (
        {"seed": 6},
        {"seed": 5 + 2**32},
        {"seed": 5 + 2**63},
        {"step": 2},
        {"stream": 3},
        {"stream": 18},
        {"first_item": 4},
    ):
        b = sf.philox_normal((1, n), **(base | change), dtype=torch.float64)
        assert abs(float((a * b).mean())) < 5 / math.sqrt(n), change
        assert float((a == b).double().mean()) < 1e-4, change


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1, 2**63, 2**63 + 12345, 2**64 - 1])
def test_seeds_are_unsigned_64_bit(seed):
    """Every 64-bit seed is its own key; an int64 tensor holds the same bits."""
    got = sf.philox_normal((2, 8), seed=seed, dtype=torch.float64)
    words = [int(w) for w in reference.philox_words((1, 0, 1, 0), (seed & MASK, seed >> 32))]
    within(got[1, 4:], _normals(words), 1e-13, "64-bit seeds")
    as_tensor = torch.tensor(seed - 2**64 if seed >= 2**63 else seed)
    same_bits(sf.philox_normal((2, 8), seed=as_tensor, dtype=torch.float64), got)
    same_bits(
        sf.philox_normal((2, 8), seed=as_tensor, step=torch.tensor(7)), sf.philox_normal((2, 8), seed=seed, step=7)
    )


def test_seed_tensor_is_reference_compatible():
    """Tensor seeds of the upper half mean the same on the reference backend."""
    got = sf.philox_normal((2, 8), seed=torch.tensor(-5), dtype=torch.float64)
    with sf.use_backend("reference"):
        within(sf.philox_normal((2, 8), seed=torch.tensor(-5), dtype=torch.float64), got, 1e-13, "negative tensor seed")


def test_moments():
    """Mean, variance, skewness and kurtosis of 4 million normals within 5 standard errors."""
    x = sf.philox_normal((4, 1_000_000), seed=99).double().flatten()
    n = x.numel()
    for name, value, want, sd in (
        ("mean", x.mean(), 0.0, 1.0),
        ("variance", x.square().mean(), 1.0, math.sqrt(2)),
        ("skewness", x.pow(3).mean(), 0.0, math.sqrt(15)),
        ("kurtosis", x.pow(4).mean(), 3.0, math.sqrt(96)),
    ):
        within(value, torch.tensor(want, dtype=torch.float64), 5 * sd / math.sqrt(n), f"moments {name}")


def test_distribution():
    """Kolmogorov-Smirnov: the greatest gap to the normal distribution stays below its 1e-6 quantile, 2.69/sqrt(n)."""
    x = sf.philox_normal((1, 1_000_000), seed=5, dtype=torch.float64)[0].sort().values
    n = x.numel()
    cdf = 0.5 * torch.erfc(-x / math.sqrt(2))
    steps = torch.arange(n, dtype=torch.float64) / n
    gap = torch.maximum((cdf - steps).abs().max(), (cdf - steps - 1 / n).abs().max())
    within(gap, torch.tensor(0.0, dtype=torch.float64), 2.69 / math.sqrt(n), "Kolmogorov-Smirnov gap")


def test_lanes_of_one_quad_are_uncorrelated():
    """Cosine and sine lanes share their radius: normals and their squares are still uncorrelated."""
    q = sf.philox_normal((1, 2_000_000), seed=21).double().reshape(-1, 4)
    for t, sd in ((q, 1.0), (q.square() - 1, 2.0)):
        cov = (t.T @ t / len(t)).fill_diagonal_(0)
        within(cov, torch.zeros_like(cov), 5 * sd / math.sqrt(len(t)), "lane correlation")


def test_complex_variance():
    """CN(0,1): variance one half per component, no correlation between them."""
    z = sf.philox_normal((2, 500_000), seed=8, dtype=torch.complex64).to(torch.complex128).flatten()
    n = z.numel()
    for name, value, want, sd in (
        ("re", z.real.square().mean(), 0.5, 0.5 * math.sqrt(2)),
        ("im", z.imag.square().mean(), 0.5, 0.5 * math.sqrt(2)),
        ("cross", (z.real * z.imag).mean(), 0.0, 0.5),
    ):
        within(value, torch.tensor(want, dtype=torch.float64), 5 * sd / math.sqrt(n), f"CN(0,1) {name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_threads_do_not_change_a_bit(dtype):
    """Long items and many items, one thread against two."""
    for shape in ((3, 200_001), (4096, 37)):
        torch.set_num_threads(1)
        one = sf.philox_normal(shape, seed=4, dtype=dtype)
        torch.set_num_threads(2)
        same_bits(sf.philox_normal(shape, seed=4, dtype=dtype), one)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 3, 0)])
def test_empty(shape):
    """Empty shapes give empty tensors."""
    assert sf.philox_normal(shape, seed=1, dtype=torch.complex64).shape == shape


def test_sizes_beside_each_other_leave_no_gap():
    """No entry of an odd-sized draw is left unwritten or zero."""
    for n in (*range(1, 40), 255, 256, 257, 1023, 1025, 2047, 2049):
        x = sf.philox_normal((3, n), seed=6)
        assert torch.isfinite(x).all() and int((x == 0).sum()) == 0, n
        assert torch.equal(x, sf.philox_normal((3, 2100), seed=6)[:, :n]), n
