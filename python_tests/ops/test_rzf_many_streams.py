"""rzf_precode with many right-hand sides on wide and tall channels: solved with lanes along them, one channel at a time."""

import math
from itertools import pairwise

import pytest
import torch
from rzf_cases import KINDS, conditioned, precode_bound, singular, smaller_form, textbook
from sf_testing import DTYPES, draw, same_bits, within

import semcom_fast as sf

NAN = float("nan")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# (K, M, T): every compiled narrow side and a generic one, odd wide sides, part and whole packs, several chunks
SIZES = [(1, 64, 8), (2, 64, 9), (3, 37, 24), (4, 64, 7), (5, 64, 24), (8, 37, 9), (16, 64, 24), (6, 29, 41)]
SIZES += [(64, 1, 24), (37, 5, 24), (64, 8, 9), (64, 16, 24)]


def _case(k, m, t, dtype, batch=21):
    """Regularisers of neighbours ask for single and for double precision."""
    alpha = torch.logspace(-5, 0, 7).repeat(batch // 7 + 1)[:batch].to(dtype.to_real())
    return draw(batch, k, m, seed=1, dtype=dtype), draw(batch, k, t, seed=2, dtype=dtype), alpha


@dtypes
@pytest.mark.parametrize("k, m, t", SIZES)
def test_against_the_definition(k, m, t, dtype):
    """Alpha per item, a channel shared by all items, and unit symbols where K streams are many."""
    h, s, alpha = _case(k, m, t, dtype)
    form = smaller_form(k, m)
    label = f"rzf many streams {form}-form {str(dtype)[6:]}"
    within(sf.rzf_precode(h, s, alpha), textbook(h, s, alpha), precode_bound(h, s, alpha, dtype, form), label)
    shared = h[:1]
    bound = precode_bound(shared, s, alpha, dtype, form)
    within(sf.rzf_precode(shared, s, alpha), textbook(shared, s, alpha), bound, label)
    one = torch.eye(k, dtype=dtype).expand(len(h), k, k)
    within(sf.rzf_matrix(h, alpha), textbook(h, one, alpha), precode_bound(h, one, alpha, dtype, form), label)


@dtypes
@pytest.mark.parametrize("k, m", [(3, 40), (40, 3)])
def test_zero_forcing_of_ill_conditioned_channels(k, m, dtype):
    """alpha = 0 takes the pivoted factor: its order is undone in every column."""
    h, s = conditioned(19, k, m, 30.0).to(dtype), draw(19, k, 24, seed=4, dtype=dtype)
    form = smaller_form(k, m)
    x, info = sf.rzf_precode(h, s, 0.0, form=form, on_singular="pinv", return_info=True)
    assert not info.any()
    within(x, textbook(h, s, 0.0), precode_bound(h, s, 0.0, dtype, form), f"rzf many streams zero forcing {dtype}")


@dtypes
@pytest.mark.parametrize("k, m, t", [(1, 64, 24), (4, 37, 24), (16, 64, 24), (64, 5, 24)])
def test_power_split_batches_and_threads(k, m, t, dtype):
    """The same bits whatever the batch is cut into and however many threads there are; the power is met."""
    h, s, alpha = _case(k, m, t, dtype, 70)
    x = sf.rzf_precode(h, s, alpha)
    for cuts in ((0, 1, 70), (0, 7, 40, 70)):
        parts = [sf.rzf_precode(*(z[a:b] for z in (h, s, alpha))) for a, b in pairwise(cuts)]
        same_bits(torch.cat(parts), x, f"{cuts}")
    scaled = sf.rzf_precode(h, s, alpha, power=2.0, power_dims=1)
    each = sf.rzf_precode(h, s, alpha, power=2.0)
    torch.set_num_threads(2)
    same_bits(sf.rzf_precode(h, s, alpha), x, "two threads")
    same_bits(sf.rzf_precode(h, s, alpha, power=2.0, power_dims=1), scaled, "two threads, one power")
    same_bits(sf.rzf_precode(h, s, alpha, power=2.0), each, "two threads, power per item")
    unit = torch.finfo(dtype).eps / 2
    for got, dims in ((scaled, (0, 1, 2)), (each, (1, 2))):
        want = x * (2 / x.abs().square().mean(dims, keepdim=True)).sqrt()
        within(got, want, (math.sqrt(x[0].numel()) + 8) * unit * want.abs().amax().item(), f"power {dtype}")


@dtypes
@pytest.mark.parametrize("k, m", [(2, 64), (5, 37), (8, 40), (16, 64)])
@pytest.mark.parametrize("kind", KINDS)
def test_singular_channels_inside_a_batch(kind, k, m, dtype):
    """They are flagged and zero, as with one right-hand side; the others keep every bit."""
    good, s, _ = _case(k, m, 24, dtype, 37)
    bad = [0, 7, 20, 36]
    rest = [i for i in range(37) if i not in bad]
    h = good.clone()
    h[bad] = singular(kind, good[bad], seed=len(kind))
    for form in ("K", None):
        want, _ = sf.rzf_precode(good, s, 0.0, on_singular="flag", return_info=True, form=form)
        x, info = sf.rzf_precode(h, s, 0.0, on_singular="flag", return_info=True, form=form)
        alone = sf.rzf_precode(h, s[..., :1], 0.0, on_singular="flag", return_info=True, form=form)[1]
        assert torch.equal(info, alone) and bool((info[bad] > 0).all()) and not info[rest].any()
        assert not x[bad].any()
        same_bits(x[rest], want[rest], "the rest of the batch")
    with pytest.raises(sf.SingularChannelError, match=r"4 of 37 channels.*the first at index \(0,\)"):
        sf.rzf_precode(h, s, 0.0)


@dtypes
@pytest.mark.parametrize("alpha", [0.5, 1e-5])
@pytest.mark.parametrize("k, m", [(3, 64), (64, 3), (16, 64)])
def test_a_symbol_that_is_not_finite(k, m, alpha, dtype):
    """All streams of that channel are zero and info is -1; the others keep every bit."""
    h, s, _ = _case(k, m, 24, dtype, 18)
    want = sf.rzf_precode(h, s, alpha)
    s[11, 1, 17] = NAN
    x, info = sf.rzf_precode(h, s, alpha, on_singular="flag", return_info=True)
    assert info.tolist() == [-1 if i == 11 else 0 for i in range(18)]
    assert not x[11].any()
    rest = [i for i in range(18) if i != 11]
    same_bits(x[rest], want[rest], "the rest of the batch")
    with pytest.raises(ValueError, match=r"index \(11,\) is not finite"):
        sf.rzf_precode(h, s, alpha)


def test_overflow_in_complex64_is_found():
    """A result past the largest float32 is not finite, although it was computed in double precision."""
    h = draw(3, 2, 64, seed=1, dtype=torch.complex64)
    s = draw(3, 2, 24, seed=2, dtype=torch.complex64)
    h[1] *= 1e-4
    s[1] *= 1e37
    x, info = sf.rzf_precode(h, s, 1e-14, on_singular="flag", return_info=True)
    assert info.tolist() == [0, -1, 0] and not x[1].any() and x[0].any()


@dtypes
@pytest.mark.parametrize("k, m", [(16, 64), (40, 9)])
def test_one_channel_for_many_vectors(k, m, dtype):
    """A channel that all 24 vectors share: each has a flag of its own."""
    h, s = draw(5, 1, k, m, seed=1, dtype=dtype), draw(5, 24, k, seed=2, dtype=dtype)
    want, columns = textbook(h[:, 0], s.mT, 0.5), precode_bound(h[:, 0], s.mT, 0.5, dtype, smaller_form(k, m))
    within(sf.rzf_precode(h, s, 0.5).mT, want, columns, f"rzf many vectors {dtype}")
    s[2, 20, 3] = NAN
    x, info = sf.rzf_precode(h, s, 0.5, on_singular="flag", return_info=True)
    assert info[2, 20] == -1 and info.abs().sum() == 1
    want[2, :, 20] = 0
    within(x.mT, want, columns.nan_to_num(), f"rzf many vectors {dtype}")
