"""Channels whose narrow side is solved one matrix at a time: every form, layout and arithmetic, and what it leaves."""

from itertools import pairwise

import pytest
import torch
from isa_levels import OTHERS, run_at
from rzf_cases import precode_bound, textbook
from sf_testing import DTYPES, draw, same_bits, unit, wide, within

import semcom_fast as sf

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
NAN, INF = float("nan"), float("inf")


def _levels(h):
    """Three regularisers per channel [3]: plain arithmetic, float64 for complex64, and just above zero."""
    return (torch.tensor([0.3, 1e-6, 1e-12]) * h.abs().square().mean() * h.shape[-1]).to(h.dtype.to_real())


@dtypes
@pytest.mark.parametrize("form", ["K", "M"])
@pytest.mark.parametrize("k, m", [(17, 17), (25, 33), (33, 25), (64, 64), (26, 70)])
def test_textbook(k, m, form, dtype):
    """Symbols as columns, and as vectors that share a channel, within the bound of one Cholesky factor."""
    h = draw(3, k, m, seed=1, dtype=dtype)
    alpha = _levels(h)
    if form == ("M" if m > k else "K" if m < k else ""):
        alpha = alpha[:2].repeat_interleave(torch.tensor([2, 1]))  # the larger Gram matrix is singular but for alpha
    for t in (1, 3, 8, 24):
        s = draw(3, k, t, seed=t, dtype=dtype)
        want, bound = textbook(h, s, alpha), precode_bound(h, s, alpha, dtype, form)
        label = f"columns {form}-form {str(dtype)[6:]}"
        within(sf.rzf_precode(h, s, alpha, form=form), want, bound, label)
        vectors = sf.rzf_precode(h.unsqueeze(1), s.mT, alpha, form=form)
        within(vectors.mT, want, bound, f"{label}, vectors")
    if form == ("M" if m < k else "K"):
        unit_symbols = torch.eye(k, dtype=dtype).expand(3, k, k)
        limit = precode_bound(h, unit_symbols, alpha, dtype, form)
        if form == "K":  # solved as the adjoint of A^-1 h: each entry may err as much as the whole matrix
            limit = limit.norm(dim=-1, keepdim=True)
        within(sf.rzf_matrix(h, alpha), textbook(h, unit_symbols, alpha), limit, f"rzf_matrix {str(dtype)[6:]}")


@dtypes
def test_more_right_hand_sides_than_a_chunk(dtype):
    """131 symbols and a matrix with 131 antennas: more columns than are solved together."""
    h, s = draw(2, 26, 131, seed=1, dtype=dtype), draw(2, 26, 131, seed=2, dtype=dtype)
    for form in ("K", "M"):
        got, want = sf.rzf_precode(h, s, 2.0, form=form), textbook(h, s, 2.0)
        within(got, want, precode_bound(h, s, 2.0, dtype, form), f"131 columns {str(dtype)[6:]}")
        vectors = sf.rzf_precode(h.unsqueeze(1), s.mT, 2.0, form=form).mT
        within(vectors, want, precode_bound(h, s, 2.0, dtype, form), f"131 vectors {str(dtype)[6:]}")
    for a in (h, h.mT.contiguous()):
        got, eye = sf.rzf_matrix(a, 2.0), torch.eye(a.shape[1], dtype=dtype)
        size = wide(got)[0].norm(dim=(-2, -1), keepdim=True)
        within(got, textbook(a, eye, 2.0), 300 * unit(dtype) * size, f"131 antennas or users {str(dtype)[6:]}")


def _all(h, s, alpha):
    y = s[..., 0]
    return (
        sf.rzf_precode(h, s, alpha),
        sf.rzf_precode(h, y, alpha),
        sf.rzf_precode(h.unsqueeze(1), s.mT, alpha, power=2.0),
        sf.rzf_matrix(h, alpha),
        *sf.lmmse_equalise(y, h, alpha),
    )


@dtypes
@pytest.mark.parametrize("k, m", [(25, 28), (33, 26)])
def test_split_batch_and_threads(k, m, dtype):
    """A batch cut anywhere, and any number of threads, give the same bits, whatever the neighbours' arithmetic."""
    h, s = draw(19, k, m, seed=1, dtype=dtype), draw(19, k, 5, seed=2, dtype=dtype)
    alpha = torch.logspace(-9, 1, 19, dtype=torch.float64).to(dtype.to_real())
    whole = _all(h, s, alpha)
    for cuts in ((1, 19), (7, 8, 19), (16, 19)):
        parts = [_all(h[a:b], s[a:b], alpha[a:b]) for a, b in pairwise((0, *cuts))]
        for want, *got in zip(whole, *parts, strict=True):
            same_bits(torch.cat(got), want, f"cut at {cuts}")
    torch.set_num_threads(3)
    for want, got in zip(whole, _all(h, s, alpha), strict=True):
        same_bits(got, want, "three threads")


@dtypes
def test_shared_channel_and_power(dtype):
    """One channel for a batch of symbols is the channel repeated; a power scale gives every group its mean power."""
    h, s = draw(1, 25, 28, seed=1, dtype=dtype), draw(6, 25, 3, seed=2, dtype=dtype)
    alpha = torch.logspace(-3, 1, 6).to(dtype.to_real())
    same_bits(sf.rzf_precode(h, s, alpha), sf.rzf_precode(h.repeat(6, 1, 1), s, alpha))
    h = draw(4, 3, 25, 28, seed=3, dtype=dtype)
    s = draw(4, 3, 25, 2, seed=4, dtype=dtype)
    x, bare = sf.rzf_precode(h, s, 0.4, power=3.0), wide(sf.rzf_precode(h, s, 0.4))[0]
    scale = (3.0 / bare.abs().square().mean((1, 2, 3), keepdim=True)).sqrt()
    within(x, scale * bare, 4 * unit(dtype) * (scale * bare).abs(), "power over a group")


@dtypes
@pytest.mark.parametrize("k, m", [(25, 29), (29, 25)])
@pytest.mark.parametrize("kind", ["nan", "inf", "zero forcing", "equal rows", "symbol"])
def test_what_is_left_to_the_lanes(kind, k, m, dtype):
    """One bad channel in a batch is named and becomes zero; the others keep the bits they have without it."""
    h, s = draw(5, k, m, seed=1, dtype=dtype), draw(5, k, 4, seed=2, dtype=dtype)
    alpha = torch.full((5,), 0.1, dtype=dtype.to_real())
    want = sf.rzf_precode(h, s, alpha)
    if kind in ("nan", "inf"):
        h[3, 1, 2] = complex(float(kind), 0)
    elif kind == "symbol":
        s[3, 2, 1] = NAN
    else:
        alpha[3] = 0
        if kind == "equal rows":
            h[3, 4] = h[3, 9]
            h[3, :, 4] = h[3, :, 9]
    x, info = sf.rzf_precode(h, s, alpha, on_singular="flag", return_info=True)
    good = [0, 1, 2, 4]
    same_bits(x[good], want[good])
    assert not info[good].any()
    if kind == "zero forcing" and k < m:
        assert not info[3]
        within((h[3] @ x[3]) - s[3], torch.zeros_like(s[3]), 1e3 * unit(dtype) * s[3].norm(), "zero forcing")
        return
    assert not x[3].any() and int(info[3]) == (-1 if kind == "symbol" else info[3]) != 0
    error = ValueError if kind == "symbol" else sf.SingularChannelError
    with pytest.raises(error, match=r"\(3,"):
        sf.rzf_precode(h, s, alpha)


@dtypes
@pytest.mark.parametrize("nr, nt", [(20, 33), (33, 20), (64, 64)])
def test_equaliser_from_loud_to_silent(nr, nt, dtype):
    """A silent column, a faint one, and levels down to -90 dB: gain and what it leaves both keep their digits."""
    y, h = draw(3, nr, seed=1, dtype=dtype), draw(3, nr, nt, seed=2, dtype=dtype)
    h[:, :, 1], h[:, :, 2] = 0, 1e-4 * h[:, :, 2]
    levels = torch.tensor([1e-1, 1e3, 1e9], dtype=dtype.to_real())
    s_hat, noise_eff = sf.lmmse_equalise(y, h, levels)
    y2, h2 = wide(y, h)
    for i, v in enumerate(levels.double()):
        _, sigma, right = torch.linalg.svd(h2[i], full_matrices=True)
        power = torch.zeros(nt, dtype=torch.float64)
        power[: min(nr, nt)] = sigma.square()
        heard = right.mH.abs().square()  # of the modes; gain and 1 - gain are sums of positive terms
        gain, rest = heard @ (power / (power + v)), heard @ (v / (power + v))
        solved = torch.linalg.solve(h2[i] @ h2[i].mH + v * torch.eye(nr, dtype=h2.dtype), y2[i])
        loud = torch.arange(nt) != 1
        assert s_hat[i, 1] == 0 and noise_eff[i, 1] == INF
        ratio = (rest / gain)[loud]
        within(noise_eff[i, loud], ratio, (2 * unit(dtype) + 1e-9) * ratio, "noise_eff, faint and loud")
        want = (h2[i].mH @ solved)[loud] / gain[loud]
        within(s_hat[i, loud], want, (4 * unit(dtype) + 1e-9) * want.norm(), "s_hat, faint and loud")


def test_equaliser_leaves_bad_channels():
    """No noise, or NaN in one of three channels: named, zeros and infinite noise, neighbours untouched."""
    y, h = draw(3, 20, seed=1), draw(3, 20, 18, seed=2)
    want = sf.lmmse_equalise(y, h, 0.5)
    h[1, 3, 3] = NAN
    with pytest.raises(sf.SingularChannelError, match=r"1 of 3 .*\(1,\)"):
        sf.lmmse_equalise(y, h, 0.5)
    s_hat, noise_eff = sf.lmmse_equalise(y, h, 0.5, on_singular="flag")
    assert not s_hat[1].any() and bool((noise_eff[1] == INF).all())
    same_bits(s_hat[::2], want[0][::2])
    same_bits(noise_eff[::2], want[1][::2])


ISA = """
import sys, torch, semcom_fast as sf
out = {}
for key, (h, s, alpha) in torch.load(sys.argv[1]).items():
    out[key] = (sf.rzf_precode(h, s, alpha), sf.rzf_matrix(h, alpha), *sf.lmmse_equalise(s[..., 0], h, alpha))
torch.save(out, sys.argv[2])
"""


@pytest.mark.parametrize("level", OTHERS)
def test_every_instruction_set(level, tmp_path):
    """Each other level, in a process of its own, against float64 and the equaliser of the running level."""
    data = {}
    for dtype in DTYPES:
        for k, m, t in ((25, 28, 1), (28, 25, 3), (17, 33, 8), (33, 29, 2)):
            h, s = draw(2, k, m, seed=m, dtype=dtype), draw(2, k, t, seed=k, dtype=dtype)
            data[(dtype, k, m)] = (h, s, torch.tensor([1e-2, 2.0], dtype=dtype.to_real()))
    torch.save(data, tmp_path / "in.pt")
    run_at(level, ISA, tmp_path / "in.pt", tmp_path / "out.pt")
    for (dtype, k, m), (x, matrix, s_hat, noise_eff) in torch.load(tmp_path / "out.pt").items():
        h, s, alpha = data[(dtype, k, m)]
        label = f"columns, ISA {level} {str(dtype)[6:]}"
        form = "M" if m < k else "K"
        within(x, textbook(h, s, alpha), precode_bound(h, s, alpha, dtype, form), label)
        eye = torch.eye(k, dtype=dtype).expand(2, k, k)
        limit = precode_bound(h, eye, alpha, dtype, form).norm(dim=-1, keepdim=True)
        within(matrix, textbook(h, eye, alpha), limit, label)
        want = sf.lmmse_equalise(s[..., 0], h, alpha)
        within(s_hat, want[0], (4 * unit(dtype) + 1e-9) * wide(want[0])[0].norm(), label)
        within(noise_eff, want[1], (4 * unit(dtype) + 1e-9) * want[1], label)
