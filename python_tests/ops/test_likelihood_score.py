"""likelihood_score beyond its twins: blocks of single numbers, which have a path of their own, and stored adjoints H^H."""

from itertools import pairwise

import pytest
import torch
from sf_testing import DTYPES, block_bounds, draw, same_bits, unit, wide, within

import semcom_fast as sf
from semcom_fast import reference
from semcom_fast.ops._checks import tolerate_non_finite

FIELDS = ("score_h", "score_x", "energy")
# users, blocks, Nr, Nt, T: lanes along the batch (also with users and blocks), then lanes along the slots
ADJOINT = [
    (1, 1, 1, 1, 1),
    (1, 2, 1, 1, 1),
    (2, 3, 3, 2, 1),
    (1, 1, 16, 5, 1),
    (1, 1, 64, 5, 1),
    (2, 1, 9, 8, 24),
    (3, 2, 5, 7, 30),
]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def _singles(batch, dtype, shared=()):
    shapes = {"y": (1, 1, 1), "h": (1, 1, 1, 1), "x": (1, 1, 1, 1)}
    return {n: draw(1 if n in shared else batch, *s, seed=i, dtype=dtype) for i, (n, s) in enumerate(shapes.items())}


@pytest.mark.parametrize("batch", [1, 3, 8, 15, 16, 17, 100])
def test_single_numbers(batch, dtype):
    """y - h x, its products and its square, within rounding; the bits are those of the general path, which a probe takes."""
    ops = _singles(batch, dtype)
    got, want = sf.likelihood_score(**ops), reference.likelihood_score(*wide(*ops.values()))
    bounds = block_bounds(*ops.values())
    twin = 2.0 if dtype is torch.complex128 else 1.0
    general = sf.likelihood_score(**ops, probe=ops["x"])
    for name in FIELDS:
        within(getattr(got, name), getattr(want, name), twin * unit(dtype) * bounds[name], f"single numbers {name}")
        same_bits(getattr(got, name), getattr(general, name), name)


@pytest.mark.parametrize("shared", [("h",), ("x",), ("y",), ("h", "x")], ids=str)
def test_shared_single_numbers(shared, dtype):
    """An operand of one item serves the whole batch, with one noise level or a level per item."""
    ops = _singles(37, dtype, shared)
    full = {n: t.expand(37, *t.shape[1:]).contiguous() for n, t in ops.items()}
    for noise in (0.3, torch.linspace(0.2, 3, 37, dtype=torch.float64)):
        for a, b in zip(
            sf.likelihood_score(**ops, noise_var=noise)[:3],
            sf.likelihood_score(**full, noise_var=noise)[:3],
            strict=True,
        ):
            same_bits(a, b, str(shared))


def test_strided_single_numbers(dtype):
    """Leading dimensions that are slices of something larger, and lazily conjugated operands of every kind."""
    ops = _singles(40, dtype)
    views = {n: torch.stack([t, t * 3], 1)[:, 0].conj_physical().conj() for n, t in ops.items()}
    for a, b in zip(sf.likelihood_score(**views)[:3], sf.likelihood_score(**ops)[:3], strict=True):
        same_bits(a, b)


@pytest.mark.parametrize("bad", [complex(float("nan"), 0), complex(0, float("inf"))], ids=str)
@pytest.mark.parametrize("operand", ["y", "h", "x"])
@pytest.mark.parametrize("item", [0, 7, 16, 34])
def test_single_numbers_name_the_item(item, operand, bad, dtype):
    """The lowest item that is not finite is named, in full packs of lanes and in the rest; tolerated, its energy is NaN."""
    ops = _singles(35, dtype)
    ops[operand][item] = ops[operand][34] = bad
    with pytest.raises(ValueError, match=f"^likelihood_score: batch item {item}, block 0 is not finite"):
        sf.likelihood_score(**ops)
    with tolerate_non_finite():
        energy = sf.likelihood_score(**ops).energy
    assert torch.equal(~energy.isfinite(), torch.tensor([i in (item, 34) for i in range(35)]))


def test_single_numbers_overflow():
    """An energy beyond float32 is flagged although the residual itself is finite."""
    ops = _singles(20, torch.complex64)
    ops["y"][11], ops["h"][11], ops["x"][11] = 1e30, 0.0, 0.0
    with pytest.raises(ValueError, match="batch item 11, block 0 is not finite"):
        sf.likelihood_score(**ops)


@pytest.mark.parametrize("u, k, nr, nt, t", ADJOINT, ids=str)
def test_stored_adjoint(u, k, nr, nt, t, dtype):
    """`stored.mH` is read where it lies; every bit is that of a plain copy, and the scores are plain tensors."""
    y, x = draw(19, k, nr, t, seed=1, dtype=dtype), draw(19, u, k, nt, t, seed=2, dtype=dtype)
    stored, probe = draw(19, u, k, nt, nr, seed=3, dtype=dtype), draw(19, u, k, nt, t, seed=4, dtype=dtype)
    plain = stored.mH.resolve_conj().contiguous()
    for options in ({}, {"probe": probe, "noise_var": 0.7}):
        got, want = sf.likelihood_score(y, stored.mH, x, **options), sf.likelihood_score(y, plain, x, **options)
        for name in got._fields:
            same_bits(getattr(got, name), getattr(want, name), name)
        assert got.score_h.is_contiguous() and not got.score_h.is_conj()
    shared, one = sf.likelihood_score(y, stored[:1].mH, x), sf.likelihood_score(y, plain[:1], x)
    same_bits(shared.score_h, one.score_h, "shared adjoint")


@pytest.mark.parametrize(
    "u, k, nr, nt, t", [(1, 1, 1, 1, 1), (1, 1, 3, 2, 1), (1, 1, 17, 16, 1), (2, 2, 35, 3, 9)], ids=str
)
@pytest.mark.parametrize("adjoint", [False, True])
def test_split_batch(u, k, nr, nt, t, adjoint, dtype):
    """A batch cut anywhere gives the same bits, and so do two threads."""
    y, x = draw(50, k, nr, t, seed=1, dtype=dtype), draw(50, u, k, nt, t, seed=2, dtype=dtype)
    h = draw(50, u, k, nt, nr, seed=3, dtype=dtype).mH if adjoint else draw(50, u, k, nr, nt, seed=3, dtype=dtype)
    whole = sf.likelihood_score(y, h, x)[:3]
    for cuts in ((0, 1, 50), (0, 7, 24, 40, 50)):
        parts = [sf.likelihood_score(y[a:b], h[a:b], x[a:b])[:3] for a, b in pairwise(cuts)]
        for i, want in enumerate(whole):
            same_bits(torch.cat([p[i] for p in parts]), want, f"{cuts}")


def test_threads_share_single_numbers():
    """20,000 items are enough for two threads; no bit changes, and the lowest bad item of both halves is named."""
    ops, results = _singles(20000, torch.complex64), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(sf.likelihood_score(**ops))
        ops["y"][5], ops["y"][19999] = float("nan"), float("nan")
        with pytest.raises(ValueError, match="batch item 5, block 0"):
            sf.likelihood_score(**ops)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(results[0][:3], results[1][:3], strict=True):
        same_bits(a, b)


@pytest.mark.parametrize("row", [0, 31, 32, 66])
@pytest.mark.parametrize("operand", ["y", "h"])
def test_rows_of_large_blocks_name_the_block(operand, row):
    """Large blocks are taken 32 rows at a time: a value not finite in any row names its block, and in no other."""
    ops = {"y": draw(3, 2, 67, 9, seed=1), "h": draw(3, 2, 2, 67, 3, seed=2), "x": draw(3, 2, 2, 3, 9, seed=3)}
    sf.likelihood_score(**ops), sf.blockdiag_adjoint(ops["h"], ops["y"])
    at = (1, 1, row, 2) if operand == "y" else (1, 0, 1, row, 2)
    ops[operand][at] = float("nan")
    for call in (lambda: sf.likelihood_score(**ops), lambda: sf.blockdiag_adjoint(ops["h"], ops["y"])):
        with pytest.raises(ValueError, match="batch item 1, block 1 is not finite"):
            call()
