"""Results of 32 MiB and more, which go around the caches or into memory that is handed over only as it is written."""

import pytest
from isa_levels import BUILT, run_at

pytestmark = pytest.mark.skipif(not BUILT, reason="needs the extension")

CODE = """
import ctypes
import torch, semcom_fast as sf
from sf_testing import draw, same_bits

torch.set_num_threads(2)  # what one thread sent around the caches, the other reads
LARGE = 32 << 20
libc = ctypes.CDLL(None)
mmap_max, trim_threshold, mapped = -4, -1, 65536  # glibc's defaults give every large tensor memory of its own

def fresh():
    libc.mallopt(mmap_max, mapped)

def kept():
    libc.mallopt(mmap_max, 0), libc.mallopt(trim_threshold, -1)
    torch.zeros(64 << 20)  # touched, and handed out again

def check(call, *operands):
    parts = [call(*some) for some in zip(*(t.tensor_split(3) for t in operands))]
    parts = [p if type(p) is tuple else (p,) for p in parts]
    for prepare in (fresh, kept):
        prepare()
        got = call(*operands)
        got = got if type(got) is tuple else (got,)
        fresh()
        assert max(t.nbytes for t in got) >= LARGE > max(t.nbytes for p in parts for t in p)
        for whole, *pieces in zip(got, *parts, strict=True):
            same_bits(whole, torch.cat(pieces))

def scores(y, h, x):
    out = sf.likelihood_score(y[None], h[None, None], x[None, None])
    return out.score_h[0, 0], out.score_x[0, 0]

for dtype, more in ((torch.complex64, 2), (torch.complex128, 1)):
    def of(b, r, c, seed):
        return draw(more * b, r, c, seed=seed, dtype=dtype)
    for b, nr, nt, t in ((33000, 64, 1, 1), (22000, 4, 4, 24), (4800, 64, 3, 7), (600, 64, 8, 64)):
        check(lambda h, x: sf.blockdiag_apply(h[None, None], x[None, None])[0], of(b, nr, nt, 1), of(b, nt, t, 2))
    for b, nr, nt, t in ((1400, 4, 64, 24), (520, 64, 64, 1), (520, 64, 64, 3), (22000, 24, 4, 1)):
        check(scores, of(b, nr, t, 1), of(b, nr, nt, 2), of(b, nt, t, 3))
    check(sf.mimo_matmul, of(530, 64, 8, 1), of(530, 8, 64, 2))
    check(sf.mimo_matmul, of(140000, 4, 4, 1), of(140000, 4, 4, 2))
    for b, k, m, t in ((1400, 2, 64, 24), (2100, 8, 64, 16), (22000, 4, 4, 24), (4800, 2, 64, 7)):
        check(lambda h, s: sf.rzf_precode(h, s, 0.5), of(b, k, m, 1), of(b, k, t, 2))
    for n in (1 << 20, (1 << 20) + 1):
        def normals(items, first):
            return sf.philox_normal((items, n), seed=3, first_item=first, dtype=dtype.to_real())
        for prepare in (fresh, kept):
            prepare()
            whole = normals(9 * more, 0)
            assert whole.nbytes >= LARGE
            for i in range(9 * more):
                same_bits(whole[i : i + 1], normals(1, i))
"""


@pytest.mark.parametrize("level", BUILT)
def test_as_in_parts(level):
    """The bits of a large call are those of its parts, in new memory and in memory used before, at every level."""
    run_at(level, CODE)


GUARDED = """
import torch
from semcom_fast import _native
from sf_testing import draw, same_bits

def product(a, b, out):
    sizes = (len(a), a.shape[1], b.shape[2])
    of = [(t.data_ptr(), t.shape, t.stride(), False, False) for t in (a, b)]
    assert _native.core.cpu_mimo_matmul(a.dtype is torch.complex128, *of, out.data_ptr(), sizes) == -1

mark = complex(7, 7)
for dtype, sizes in ((torch.complex64, ((27000, 4, 2, 40), (80000, 1, 2, 56), (110000, 1, 2, 40), (27000, 4, 2, 48))),
                     (torch.complex128, ((27000, 4, 2, 20), (80000, 1, 2, 28)))):
    for items, m, k, n in sizes:
        a, b = draw(items, m, k, seed=1, dtype=dtype), draw(items, k, n, seed=2, dtype=dtype)
        count = items * m * n
        assert count * dtype.itemsize >= 32 << 20
        memory = torch.full((count + 64,), mark, dtype=dtype)  # used before, so that rows go around the caches
        product(a, b, memory)
        half = items // 2
        for part in (slice(0, half), slice(half, items)):
            small = torch.empty(a[part].shape[0], m, n, dtype=dtype)
            product(a[part], b[part], small)
            same_bits(memory[:count].view(items, m, n)[part], small)
        assert bool((memory[count:] == mark).all()), (items, m, k, n)
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("level", BUILT)
def test_nothing_behind_the_last_row(level, threads):
    """Rows that end inside a tile of columns: what the tile has beyond them is nobody's, or another row's."""
    run_at(level, f"import torch; torch.set_num_threads({threads})" + GUARDED)
