"""renoise: forward diffusion at several steps against NumPy, its draws element by element, tables and errors."""

import pytest
import torch
import vb_math as vb
from sf_testing import draw, same_bits, shadow_memory, unit, within
from vb_cases import DTYPES, NORMAL, numpy

import semcom_fast as sf
from semcom_fast import reference

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
BETA, BAR = vb.schedule(100)
TABLE = torch.from_numpy(BAR)
STEPS = [30, 100, 1, 57]
SHAPES = [(1, 1, 1), (2, 1, 3), (3, 4, 16), (2, 5, 33), (2, 16, 64), (17, 2, 7)]


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with sf.use_backend(request.param):
        yield request.param


def _expected(h, noise, off=0.0, steps=STEPS):
    """NumPy's value, and four roundings per term (table entry, root, product, sum) plus the draws' own error."""
    bar = BAR[steps]
    want = vb.renoise(*numpy(h), bar, numpy(noise)[0])
    keep, add = (vb.cast(f**0.5, 4 - 1)[None] for f in (bar, 1 - bar))
    size = torch.from_numpy(keep * abs(numpy(h)[0])[:, None] + add * abs(numpy(noise)[0]))
    return torch.from_numpy(want), 4 * unit(h) * size + off * torch.from_numpy(add)


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_given_noise(shape, dtype, backend):
    """sqrt(ab) h + sqrt(1-ab) eps at early, late and last steps."""
    h, noise = draw(*shape, dtype=dtype), draw(shape[0], len(STEPS), *shape[1:], seed=1, dtype=dtype)
    want, bound = _expected(h, noise)
    shadow_memory(noise.numel() * noise.element_size())
    got = sf.renoise(h, STEPS, TABLE, noise=noise)
    assert got.dtype is dtype and got.is_contiguous()
    within(got, want, bound, f"renoise {backend} {str(dtype)[6:]}")


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_draws(shape, dtype, backend):
    """Element by element the float64 normals of stream 8, Philox step t, item first_item + b; zero h shows them alone."""
    for seed, first in ((5, 0), (2**63 + 11, 40)):
        key = {"seed": seed, "stream": 8, "first_item": first}
        normals = [reference.philox_normal(shape, step=t, dtype=torch.complex128, **key) for t in STEPS]
        want, bound = _expected(torch.zeros(shape, dtype=dtype), torch.stack(normals, 1), NORMAL[dtype])
        got = sf.renoise(torch.zeros(shape, dtype=dtype), STEPS, TABLE, seed=seed, first_item=first)
        within(got, want, bound, f"renoise draws {backend} {str(dtype)[6:]}")


@dtypes
def test_drawn_is_given(dtype, backend):
    """seed= is noise=philox_normal(...) bit for bit, with numbers and tensors as seed."""
    h = draw(3, 4, 9, dtype=dtype)
    noise = torch.stack(
        [sf.philox_normal((3, 4, 9), seed=7, step=t, stream=8, first_item=2, dtype=dtype) for t in STEPS], 1
    )
    want = sf.renoise(h, STEPS, TABLE, noise=noise)
    for seed in (7, torch.tensor(7)):
        same_bits(sf.renoise(h, STEPS, TABLE, seed=seed, first_item=2), want, "drawn")
    assert not torch.equal(sf.renoise(h, STEPS, TABLE, seed=8, first_item=2), want)


@dtypes
def test_a_step_draws_the_same_in_any_company(dtype, backend):
    """The noise of step t depends on t alone: not on the other steps, their order, or repetition."""
    h = draw(2, 3, 5, dtype=dtype)
    whole = sf.renoise(h, STEPS, TABLE, seed=3)
    for s, t in enumerate(STEPS):
        same_bits(sf.renoise(h, [t], TABLE, seed=3)[:, 0], whole[:, s], "alone")
    same_bits(sf.renoise(h, STEPS[::-1], TABLE, seed=3), whole.flip(1), "reversed")
    twice = sf.renoise(h, [30, 30], TABLE, seed=3)
    same_bits(twice[:, 0], twice[:, 1], "the same step twice")


@dtypes
def test_steps_and_tables(dtype, backend):
    """Steps as lists, tuples, ranges and tensors; alpha_bar as the whole table or as its entries, tensor or list."""
    h = draw(2, 3, 5, dtype=dtype)
    want = sf.renoise(h, STEPS, TABLE, seed=3)
    for steps in (tuple(STEPS), torch.tensor(STEPS), torch.tensor(STEPS, dtype=torch.int32)):
        for table in (TABLE, TABLE[STEPS], TABLE[STEPS].tolist(), TABLE.tolist()):
            same_bits(sf.renoise(h, steps, table, seed=3), want, "steps and tables")
    same_bits(sf.renoise(h, range(30, 101, 10), TABLE, seed=3), sf.renoise(h, list(range(30, 101, 10)), TABLE, seed=3))
    single = sf.renoise(h, [30, 100], TABLE.float(), seed=3)  # early steps would amplify the rounding of 1 - ab
    within(single, want[:, :2], 4e-7 * (1 + want.abs().max()), "float32 table")


@dtypes
def test_both_ends(dtype, backend):
    """alpha_bar = 1 (step 0) returns h itself in that place."""
    h = draw(2, 3, 5, dtype=dtype)
    got = sf.renoise(h, [0, 50], TABLE, seed=3)
    same_bits(got[:, 0], h, "step 0")
    assert not torch.equal(got[:, 1], h)


@dtypes
@pytest.mark.parametrize("shape", [(0, 4, 6), (2, 0, 6), (2, 4, 0)], ids=str)
def test_empty(shape, dtype, backend):
    """Empty batches, matrices and step lists give empty results."""
    h = torch.zeros(shape, dtype=dtype)
    assert sf.renoise(h, STEPS, TABLE, seed=3).shape == (shape[0], 4, *shape[1:])
    assert sf.renoise(draw(2, 3, 4, dtype=dtype), [], TABLE, seed=3).shape == (2, 0, 3, 4)


def test_moments(backend):
    """Over 20,000 items mean 0, variance 1 - ab, no correlation between steps: five standard errors."""
    n, steps = 20000, [40, 80]
    got = sf.renoise(torch.zeros(n, 1, 2, dtype=torch.complex128), steps, TABLE, seed=11)
    for s, t in enumerate(steps):
        x, var = got[:, s].flatten(), 1 - BAR[t]
        count = x.numel()
        assert abs(complex(x.mean())) < 5 * (var / count) ** 0.5
        assert abs(float(x.abs().square().mean()) - var) < 5 * var / count**0.5
        assert abs(complex((x * x).mean())) < 5 * var * (2 / count) ** 0.5  # circular
    cross = (got[:, 0] * got[:, 1].conj()).mean()
    assert abs(complex(cross)) < 5 / (2 * n) ** 0.5


ERRORS = [
    (lambda h: (h, [30], TABLE, {}), ValueError, r"pass noise= or seed=|seed= or noise="),
    (lambda h: (h[0], [30], TABLE, {"seed": 1}), ValueError, "need"),
    (lambda h: (h, [101], TABLE, {"seed": 1}), ValueError, "alpha_bar"),
    (lambda h: (h, [-1], TABLE, {"seed": 1}), ValueError, "steps"),
    (lambda h: (h, torch.tensor([1.0]), TABLE, {"seed": 1}), (TypeError, ValueError), "steps"),
    (lambda h: (h, torch.tensor([[1]]), TABLE, {"seed": 1}), ValueError, "steps"),
    (lambda h: (h, [30, 40], [0.5, 1.5], {"seed": 1}), ValueError, "alpha_bar"),
    (lambda h: (h, [30, 40], [0.5, float("nan")], {"seed": 1}), ValueError, "alpha_bar"),
    (lambda h: (h, [30, 40], [0.5, -0.1], {"seed": 1}), ValueError, "alpha_bar"),
    (lambda h: (h, [30], TABLE, {"noise": h}), ValueError, "need"),
    (lambda h: (h, [30], TABLE, {"noise": torch.zeros(3, 1, 4, 5, dtype=torch.complex64)}), TypeError, "cast silently"),
    (lambda h: (h, [30], TABLE, {"seed": 1, "first_item": -1}), ValueError, "first_item"),
    (lambda h: (h.real, [30], TABLE, {"seed": 1}), TypeError, "h is float64"),
    (lambda h: (None, [30], TABLE, {"seed": 1}), TypeError, r"\bh\b"),
]


@pytest.mark.parametrize("change, kind, message", ERRORS)
def test_errors(change, kind, message):
    """What does not fit is refused by name."""
    h, steps, table, rest = change(draw(3, 4, 5))
    with pytest.raises(kind, match=rf"^renoise.*({message})"):
        sf.renoise(h, steps, table, **rest)
