"""The update of the authors' published code against the float64 definition: every option, short and long rows."""

import itertools
import math

import pytest
import torch
import waterfill_bounds as wb

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

from semcom_fast import reference
from semcom_fast.triton import waterfill_step_authors

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes discarded lanes
QUIET = 2**31 - 1
DTYPES = [torch.float32, torch.float64]
OPTIONS = list(itertools.product(("amplitude", "variance"), (True, False), ("own", "common")))
DRAW = {"seed": -7, "step": 3, "first_item": 5}
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
options = pytest.mark.parametrize("option", OPTIONS, ids=str)


def _state(c):
    return c.f, c.g, c.d, c.x0, c.high, c.low


def _check(c, got, drawn, option):
    topup, renorm, base = option
    dtype, n = c.g.dtype, c.g.shape[1]
    unit = wb.UNIT[dtype]
    high, low = wb.as_state(c.high, dtype), wb.as_state(c.low, dtype)
    z, off = wb.normals(c, dtype, drawn)
    d = wb.full(c.d, n)
    state = (wb.wide(c.f), wb.wide(c.g), d, wb.wide(c.x0), high[:, 0], low[:, 0])
    want_f, want_g = reference.waterfill_step_authors(*state, topup=topup, renorm=False, base=base, noise=z)
    own = torch.minimum(d, high)
    start, origin = (own, c.f) if base == "own" else (high.expand_as(own), c.g)
    bound_f = torch.where(own >= low, wb.movement(origin, wb.wide(c.x0).abs(), start, low, dtype), 0)
    wb.within(got[0], want_f, bound_f, f"authors f {tuple(got[0].shape)} {dtype} {option}")
    own = torch.minimum(own, low)
    # The amplitude's spread is a difference in the reference, and at most what the variance's is.
    added = wb.injection(c, own, low, z, off, dtype) + 8 * wb.DOUBLE * low.sqrt() * z.abs()
    bound_g = torch.where(own < low, added, bound_f)
    if renorm:
        size = want_g.square().mean(1, keepdim=True).sqrt()
        relative = bound_g.square().mean(1, keepdim=True).sqrt() / size + (6 + math.sqrt(n) * wb.DOUBLE / unit) * unit
        want_g, bound_g = want_g / size, (bound_g + relative * want_g.abs()) / size
    wb.within(got[1], want_g, bound_g, f"authors g {tuple(got[1].shape)} {dtype} {option}")


@dtypes
@options
@pytest.mark.parametrize("size", [(5, 64), (3, 10)], ids=str)
def test_drawn(size, option, dtype, device):
    c = wb.make(*size, dtype, device=device)
    flag = torch.full((1,), QUIET, dtype=torch.int32, device=device)
    got = waterfill_step_authors.run(*_state(c), *option, **DRAW, flag=flag)
    assert got[0].dtype == got[1].dtype == dtype and int(flag) == QUIET
    _check(c, got, DRAW, option)


@dtypes
@pytest.mark.parametrize(
    ("size", "per"),
    [
        ((2, 1030), "symbol"), ((2, 4096), "symbol"), ((1, 4104), "symbol"), ((1, 9000), "real"), ((1, 2), "symbol"),
        ((2, 1032), "real"), ((2, 1032), "item"),
    ],
    ids=str,
)  # fmt: skip
def test_row_lengths(size, per, dtype, device):
    """One program per row, and chunks whose sums are put together by a second launch."""
    c = wb.make(*size, dtype, per=per, net=torch.bfloat16, device=device)
    flag = torch.full((1,), QUIET, dtype=torch.int32, device=device)
    got = waterfill_step_authors.run(*_state(c), noise=c.noise, flag=flag)
    _check(c, got, {"noise": c.noise}, OPTIONS[0])
    assert int(flag) == QUIET


@options
def test_ends(option, device):
    """At beta_s = 0 everything becomes x0, a noise-free element too, and nothing is drawn."""
    c = wb.make(3, 24, device=device)
    f, g = waterfill_step_authors.run(c.f, c.g, c.d, c.x0, c.high, 0.0, *option, **DRAW)
    assert torch.equal(f, c.x0) and bool((c.d == 0).any())
    if not option[1]:
        assert torch.equal(g, f)
    f, _ = waterfill_step_authors.run(c.f, c.g, c.d, c.x0, 0.3, 0.3, *option, **DRAW)
    kept = wb.full(c.d, 24) < torch.tensor(0.3).double()
    assert torch.equal(f[kept], c.f[kept])


@options
def test_waiting_elements_stay(option, device):
    c = wb.make(4, 64, device=device)
    f, _ = waterfill_step_authors.run(*_state(c), *option, **DRAW)
    waits = (wb.full(c.d, 64) < wb.as_state(c.low, torch.float32)).to(device)
    assert torch.equal(f[waits], c.f[waits]) and bool(waits.any())
    assert not torch.equal(f[~waits], c.f[~waits])


@pytest.mark.parametrize("n", [64, 10, 4104])
def test_a_split_batch_gives_the_same_bits(n, device):
    c = wb.make(3, n, device=device)
    whole = waterfill_step_authors.run(*_state(c), seed=8, first_item=100)
    for begin, end in ((0, 1), (1, 3)):
        part = [t[begin:end] for t in _state(c)]
        got = waterfill_step_authors.run(*part, seed=8, first_item=100 + begin)
        assert all(torch.equal(g, w[begin:end]) for g, w in zip(got, whole, strict=True))


def test_in_place_cells_and_empty(device):
    c = wb.make(3, 24, device=device)
    want = waterfill_step_authors.run(*_state(c), **DRAW)
    cells = {k: torch.tensor(v, device=device) for k, v in DRAW.items()}
    f, g = c.f.clone(), c.g.clone()
    got = waterfill_step_authors.run(f, g, *_state(c)[2:], **cells, out=(f, g))
    assert got[0] is f and got[1] is g and all(map(torch.equal, got, want))
    e = f.new_empty(0, 24)
    assert waterfill_step_authors.run(e, e, e[:, :12], e, 0.5, 0.3, seed=1)[1].shape == (0, 24)


@pytest.mark.parametrize("n", [24, 4104])
@pytest.mark.parametrize("renorm", [True, False])
def test_flag_names_the_lowest_item(n, renorm, device):
    c = wb.make(4, n, device=device)
    flag = torch.full((1,), QUIET, dtype=torch.int32, device=device)
    c.d[3], c.d[2, 5] = 1, math.nan
    c.x0[3, 1] = math.inf
    _, g = waterfill_step_authors.run(*_state(c), renorm=renorm, seed=1, first_item=50, flag=flag)
    assert int(flag) == 2 and [bool(torch.isfinite(r).all()) for r in g] == [True, True, False, False]


def test_wrong_arguments(device):
    c = wb.make(2, 8, device=device)
    for name, known in (("topup", "amplitude"), ("base", "common")):
        with pytest.raises(ValueError, match=f"{name} must be one of .*{known}"):
            waterfill_step_authors.run(*_state(c), **{name: "mean"}, seed=1)
    with pytest.raises(ValueError, match="g must be"):
        waterfill_step_authors.run(c.f, c.g[:1], *_state(c)[2:], seed=1)
    with pytest.raises(ValueError, match=r"out\[1\] must be contiguous"):
        waterfill_step_authors.run(*_state(c), seed=1, out=(c.f, c.g.double()))
