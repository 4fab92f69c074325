"""The kernels behind mimo_matmul one by one: dot products, outer products and scaled rows of every layout and width."""

import itertools

import pytest
import torch
from sf_testing import DTYPES, draw

from semcom_fast._native import kernel

ITEMS = 5
# lanes along K (N = 1), rows times numbers (K = 1), and tiles up to six packs wide, whole and with odd ends
SIZES = [
    *itertools.product((1, 3, 9, 64), (5, 16, 17, 40), (1,)),
    *itertools.product((4, 8, 16, 21, 64), (2, 4, 8), (1,)),
    *itertools.product((1, 2, 9), (1,), (1, 3, 7, 8, 24, 49)),
    *itertools.product((1, 3), (5, 17), (24, 25, 48)),
]
FLAGS = list(itertools.product((False, True), repeat=4))


def _operand(rows, cols, transposed, dtype, seed):
    return draw(ITEMS, *((cols, rows) if transposed else (rows, cols)), seed=seed, dtype=dtype)


def _product(a, b, flags, m, n):
    """(result, lowest item that is not finite); flags: transpose and conjugate A, the same of B."""
    out = a.new_full((len(a), m, n), float("nan"))
    sides = ((t.data_ptr(), t.shape, t.stride(), c, f) for t, f, c in ((a, *flags[:2]), (b, *flags[2:])))
    bad = kernel("cpu_mimo_matmul")(a.dtype is torch.complex128, *sides, out.data_ptr(), out.shape)
    return out, bad


def _plain(t, transposed, conjugated):
    t = (t.mT if transposed else t).to(torch.complex128)
    return t.conj() if conjugated else t


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("flags", FLAGS)
def test_every_path(flags, dtype):
    for m, k, n in SIZES:
        a, b = _operand(m, k, flags[0], dtype, 1), _operand(k, n, flags[2], dtype, 2)
        got, bad = _product(a, b, flags, m, n)
        left, right = _plain(a, *flags[:2]), _plain(b, *flags[2:])
        bound = 4 * (k + 2) * torch.finfo(dtype).eps * (left.abs() @ right.abs())
        assert bad == -1 and ((got - left @ right).abs() <= bound).all(), (m, k, n)
        alone, _ = _product(a[2:3], b[2:3], flags, m, n)
        assert torch.equal(alone[0], got[2]), f"one item alone, {(m, k, n)}"
        a[3, 0, 0] = float("nan")
        assert _product(a, b, flags, m, n)[1] == 3, f"the NaN of item 3, {(m, k, n)}"
