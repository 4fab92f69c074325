"""Channels that many vectors share: factored once, whatever dims share them, with the results of channels of their own."""

import math

import pytest
import torch
from equalise_cases import bounds, textbook
from isa_levels import BUILT, run_at
from rzf_cases import precode_bound
from rzf_cases import textbook as precoded
from sf_testing import DTYPES, draw, same_bits, within
from torch.autograd import gradcheck

import semcom_fast as sf

INF = float("inf")
SIZES = [(1, 1), (4, 4), (5, 3), (3, 5), (8, 8), (9, 12), (16, 16), (33, 20), (20, 33), (64, 8), (140, 3), (130, 130)]
sizes = pytest.mark.parametrize("nr, nt", SIZES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
VIEWS = {
    "size 1": lambda h, t: h,
    "stride 0": lambda h, t: h.expand(-1, t, -1, -1),
    "apart": lambda h, t: h.expand(-1, t, -1, -1).contiguous(),
}


@dtypes
@sizes
@pytest.mark.parametrize("t", [1, 2, 14, 40])
def test_equaliser_of_a_channel_constant_in_time(nr, nt, t, dtype):
    """By size 1, by stride 0 or written out, with levels for everything and per item: the textbook's estimates."""
    h, y = draw(3, 1, nr, nt, seed=1, dtype=dtype), draw(3, t, nr, seed=2, dtype=dtype)
    for noise_var in (0.3, torch.tensor([1e-6, 0.1, 1e3], dtype=dtype.to_real())):
        level = torch.as_tensor(noise_var, dtype=dtype.to_real())
        want, limit = textbook(y, h, level), bounds(y, h, level, dtype)
        for name, view in VIEWS.items():
            got = sf.lmmse_equalise(y, view(h, t), noise_var)
            for a, b, most, what in zip(got, want, limit, ("s_hat", "noise_eff"), strict=True):
                within(a, b, most, f"{what} of a {'shared ' if name != 'apart' else ''}channel {str(dtype)[6:]}")


@dtypes
@sizes
def test_equaliser_of_one_channel(nr, nt, dtype):
    """A channel without leading dims: the textbook's estimates, and the same bits however the batch is cut or shaped."""
    h, y = draw(nr, nt, seed=3, dtype=dtype), draw(2500 if nr < 100 else 70, nr, seed=4, dtype=dtype)
    whole, level = sf.lmmse_equalise(y, h, 0.3), torch.tensor(0.3, dtype=dtype.to_real())
    for a, b, most in zip(whole, textbook(y, h, level), bounds(y, h, level, dtype), strict=True):
        within(a, b, most, f"one channel {str(dtype)[6:]}")
    torch.set_num_threads(2)
    pieces = [sf.lmmse_equalise(y[i:j], h, 0.3) for i, j in ((0, 1), (1, 18), (18, 70), (70, len(y)))]
    shaped = sf.lmmse_equalise(y.reshape(2, -1, nr), h, level)
    for k in range(2):
        same_bits(torch.cat([p[k] for p in pieces]), whole[k], "cut")
        same_bits(shaped[k].reshape(-1, nt), whole[k], "as two dims")


@dtypes
@pytest.mark.parametrize("k, m", [(1, 1), (4, 4), (3, 7), (7, 3), (6, 6), (16, 16), (40, 33)])
@pytest.mark.parametrize("t", [2, 16, 50, 700])
def test_precoder_of_a_channel_constant_in_time(k, m, t, dtype):
    """Few channels take their vectors side by side, many take theirs one after the other: the textbook and the same bits."""
    h, s = draw(40, 1, k, m, seed=5, dtype=dtype), draw(40, t, k, seed=6, dtype=dtype)
    many, info = sf.rzf_precode(h, s, 0.3, return_info=True)
    alpha = torch.tensor(0.3, dtype=dtype.to_real())
    want, bound = precoded(h, s[..., None], alpha), precode_bound(h, s[..., None], alpha, dtype, "M" if m < k else "K")
    within(many, want[..., 0], bound[..., 0], "shared channel")
    assert info.shape == (40, t) and not info.any()
    for some in (slice(0, 1), slice(1, 3), slice(30, 40)):
        same_bits(sf.rzf_precode(h[some], s[some], 0.3), many[some], "fewer channels")


@dtypes
@pytest.mark.parametrize("k, m", [(1, 2), (2, 2), (3, 4), (4, 4), (4, 16), (16, 4), (8, 8), (16, 16), (40, 30)])
@pytest.mark.parametrize("streams", [None, 3, 24])
@pytest.mark.parametrize("alpha", [0.0, 1e-4, 0.3])
def test_channel_shared_by_the_batch(k, m, streams, alpha, dtype):
    """One factor for all items has the bits of a factor for each, in every arithmetic, alone and in groups of power."""
    if alpha == 0.0 and m < k:
        pytest.skip("zero forcing to more users than antennas")
    tail = (k,) if streams is None else (k, streams)
    h, s = draw(1, k, m, seed=12, dtype=dtype), draw(70, *tail, seed=13, dtype=dtype)
    each = h.expand(70, k, m).contiguous()
    x, info = sf.rzf_precode(h, s, alpha, return_info=True)
    same_bits(x, sf.rzf_precode(each, s, alpha), "shared by the batch")
    assert not info.any()
    for few in (1, 2, 17):
        same_bits(sf.rzf_precode(h, s[:few], alpha), x[:few], "fewer items")
    if streams:  # vectors become right-hand sides of one factor, whose energies are summed in an order of their own
        grouped = s.reshape(7, 10, *tail)
        got = sf.rzf_precode(h.unsqueeze(0), grouped, alpha, power=1.0)
        same_bits(got, sf.rzf_precode(each.reshape(7, 10, k, m), grouped, alpha, power=1.0), "with power")
    s[33] = float("inf")
    x, info = sf.rzf_precode(h, s, alpha, on_singular="flag", return_info=True)
    assert info.reshape(-1).nonzero().flatten().tolist() == [33] and not x[33].any()


@dtypes
def test_power_of_a_channel_constant_in_time(dtype):
    """One scale per item whichever way its vectors are solved, and the same bits for few and for many items."""
    h, s = draw(40, 1, 4, 4, seed=5, dtype=dtype), draw(40, 50, 4, seed=6, dtype=dtype)
    many = sf.rzf_precode(h, s, 0.3, power=2.0)
    power = many.abs().square().mean((1, 2)).double()
    within(power, torch.full_like(power, 2.0), 1e-5 if dtype is torch.complex64 else 1e-13, "power")
    for some in (slice(0, 1), slice(1, 3), slice(30, 40)):
        same_bits(sf.rzf_precode(h[some], s[some], 0.3, power=2.0), many[some], "power of fewer channels")


@dtypes
@pytest.mark.parametrize("n", [4, 16])
@pytest.mark.parametrize("t", [3, 50])
def test_singular_and_spoilt(n, t, dtype):
    """A singular channel loses all its vectors, a vector that is not finite itself alone; index and info say which."""
    h, y = draw(5, 1, n, n, seed=7, dtype=dtype), draw(5, t, n, seed=8, dtype=dtype)
    bad = h.clone()
    bad[3, 0, :, 1] = bad[3, 0, :, 0]
    with pytest.raises(sf.SingularChannelError, match=rf"{t} of {5 * t} .*\(3, 0\)") as caught:
        sf.lmmse_equalise(y, bad, 0.0)
    assert caught.value.index == (3, 0)
    spoilt = y.clone()
    spoilt[1, t - 1, 0] = float("nan")
    with pytest.raises(ValueError, match=rf"^lmmse_equalise: .*\(1, {t - 1}\).*not finite"):
        sf.lmmse_equalise(spoilt, h, 0.1)
    with pytest.raises(ValueError, match=rf"^rzf_precode: .*\(1, {t - 1}\).*not finite"):
        sf.rzf_precode(h, spoilt, 0.1)
    for level, channel in ((0.1, h), (0.0, bad)):
        want = sf.lmmse_equalise(y, channel, level, on_singular="flag")
        got = sf.lmmse_equalise(spoilt, channel, level, on_singular="flag")
        lost = torch.zeros(5, t, dtype=torch.bool)
        lost[1, t - 1] = True
        if level == 0.0:
            lost[3] = True
        assert not got[0][lost].any() and bool((got[1][lost] == INF).all())
        for a, b in zip(got, want, strict=True):
            same_bits(a[~lost], b[~lost], "beside a spoilt vector")
    x, info = sf.rzf_precode(h, spoilt, 0.1, on_singular="flag", return_info=True)
    assert info[1, t - 1] == -1 and int((info != 0).sum()) == 1 and not x[1, t - 1].any()


@dtypes
@pytest.mark.parametrize("nr, nt", [(4, 2), (9, 12), (16, 12)])
def test_vectors_that_channels_share(nr, nt, dtype):
    """One received vector, or one pilot observation, for as many channels as it has entries, and for more."""
    h = draw(nr + 1, nr, nt, seed=14, dtype=dtype)
    y, observed = draw(2 * nr, nr, seed=15, dtype=dtype), draw(nr, nt + 1, seed=16, dtype=dtype)
    pilots = draw(nr + 1, nt, nt + 1, seed=17, dtype=dtype)
    for n in (nr, nr + 1):
        for a, b in zip(sf.lmmse_equalise(y[0], h[:n], 0.3), sf.lmmse_equalise(y[:1], h[:n], 0.3), strict=True):
            same_bits(a, b, "one vector")
        same_bits(
            sf.lmmse_channel(observed, pilots[:n], 0.3), sf.lmmse_channel(observed[None], pilots[:n], 0.3), "one y"
        )


@dtypes
@pytest.mark.parametrize("t", [1, 2, 3, 40])
def test_spoilt_vector_of_a_silent_channel(t, dtype):
    """A vector that is not finite is named although no symbol hears it, however many vectors there are."""
    h, y = torch.zeros(2, 1, 16, 12, dtype=dtype), draw(2, t, 16, seed=18, dtype=dtype)
    s_hat, noise_eff = sf.lmmse_equalise(y, h, 0.1)
    assert not s_hat.any() and bool((noise_eff == INF).all())
    y[1, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"index \(1, 0\) is not finite"):
        sf.lmmse_equalise(y, h, 0.1)


def test_empty_dimension_of_an_expanded_channel():
    """No vectors behind channels that are expanded over them: empty results."""
    h, y = draw(2, 1, 4, 3).expand(2, 0, 4, 3), draw(2, 0, 4)
    assert sf.lmmse_equalise(y, h, 0.1)[0].shape == (2, 0, 3) and sf.rzf_precode(h, y, 0.1).shape == (2, 0, 3)


@pytest.mark.parametrize("n", [2, 8])
@pytest.mark.parametrize("level", [(), (2,)])
def test_gradients(n, level):
    """gradcheck of the equaliser through a channel constant in time, by size 1 and by missing dims."""
    y, v = draw(2, 3, n, seed=9), draw(*level, seed=11, dtype=torch.float64).abs() + 0.2
    for shape in ((2, 1, n, n), (n, n)):
        args = [t.clone().requires_grad_(True) for t in (y, draw(*shape, seed=10), v)]
        assert gradcheck(sf.lmmse_equalise, args, atol=1e-6, rtol=1e-5)


@dtypes
@pytest.mark.parametrize("k, m", [(4, 4), (3, 6), (6, 3)])
def test_gradients_of_many_vectors(k, m, dtype):
    """Gradients of the precoder over more vectors than scratch holds at a time: those of a channel per vector, summed."""
    t = 40 * min(k, m) + 7
    h, s, g = (draw(*n, seed=i, dtype=dtype) for i, n in enumerate(((2, 1, k, m), (2, t, k), (2, t, m))))
    alpha = torch.full((2,), 0.5, dtype=dtype.to_real())
    grads = []
    for view in VIEWS.values():
        leaves = [x.clone().requires_grad_(True) for x in (h, s, alpha)]
        x = sf.rzf_precode(view(leaves[0], t), *leaves[1:], power=1.5)
        grads.append(torch.autograd.grad(x, leaves, g))
    unit = torch.finfo(dtype).eps
    for other in grads[:2]:
        for a, b, terms in zip(other, grads[2], (t, 1, t), strict=True):
            # every term errs by some units (condition below 1e2), sums of `terms` of them by their root at random
            within(a, b, 100 * unit * math.sqrt(terms) * b.abs().max(), f"gradients of many vectors {str(dtype)[6:]}")


AT = """
import sys
import semcom_fast as sf
operands, wanted = torch.load(sys.argv[1]), []
for h, y in operands:
    wanted.append((*sf.lmmse_equalise(y, h, 0.2), sf.rzf_precode(h, y, 0.2)))
torch.save(wanted, sys.argv[2])
"""


@pytest.mark.parametrize("level", BUILT)
def test_instruction_sets(level, tmp_path):
    """Every built level serves shared channels within the bounds of the textbook."""
    cases = [(n, t, dtype) for dtype in DTYPES for n, t in ((3, 1), (4, 200), (5, 20), (16, 40), (24, 9), (40, 130))]
    operands = [(draw(3, 1, n, n, seed=n, dtype=d), draw(3, t, n, seed=t, dtype=d)) for n, t, d in cases]
    torch.save(operands, tmp_path / "in.pt")
    run_at(level, AT, tmp_path / "in.pt", tmp_path / "out.pt")
    for (h, y), got in zip(operands, torch.load(tmp_path / "out.pt"), strict=True):
        v = torch.tensor(0.2, dtype=h.dtype.to_real())
        want, limit = textbook(y, h, v), bounds(y, h, v, h.dtype)
        for a, b, most in zip(got[:2], want, limit, strict=True):
            within(a, b, most, f"shared channel at {level}")
        x, most = precoded(h, y[..., None], v), precode_bound(h, y[..., None], v, h.dtype, "K")
        within(got[2], x[..., 0], most[..., 0], f"shared channel at {level}")
