"""Channels without inverse: none missed, the rest of the batch untouched, and what "raise", "flag" and "pinv" do."""

import re

import pytest
import torch
from rzf_cases import FINITE_KINDS, KINDS, precode_bound, singular
from sf_testing import DTYPES, draw, same_bits, wide, within

import semcom_fast as sf

NAN, INF = float("nan"), float("inf")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
backends = pytest.mark.parametrize("backend", ["cpu", "reference"])
SIZES = [(2, 2), (3, 5), (4, 4), (5, 5), (8, 8), (16, 16), (17, 20)]


def _flag(h, s, alpha=0.0, **kwargs):
    return sf.rzf_precode(h, s, alpha, on_singular="flag", return_info=True, **kwargs)


@backends
@dtypes
@pytest.mark.parametrize("k, m", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_found(kind, k, m, dtype, backend):
    """alpha = 0: info is not 0 and x is 0 for each; other channels and their gradients keep every bit."""
    good, s = draw(37, k, m, seed=1, dtype=dtype), draw(37, k, 2, seed=2, dtype=dtype)
    bad = [0, 7, 8, 20, 36]
    rest = [i for i in range(37) if i not in bad]
    h = good.clone()
    h[bad] = singular(kind, good[bad], seed=len(kind))
    results, grads = [], []
    for channel in (good, h):
        leaves = [channel.clone().requires_grad_(True), s.clone().requires_grad_(True)]
        with sf.use_backend(backend):
            x, info = _flag(*leaves)
            grads.append(torch.autograd.grad(x, leaves, draw(37, m, 2, seed=3, dtype=dtype)))
        results.append((x.detach(), info))
    assert info.dtype is torch.int32 and info.shape == (37,)
    assert bool((info[bad] != 0).all()) and not info[rest].any(), info
    assert not x.detach()[bad].any()
    same_bits(results[1][0][rest], results[0][0][rest], "the rest of the batch")
    for a, b in zip(grads[1], grads[0], strict=True):
        same_bits(a[rest], b[rest], "gradients of the rest")
        assert not a[bad].any(), "gradients where x is the constant 0"


RANKS = {"equal rows": -1, "proportional rows": -1, "linear combination": -1, "zero row": -1}


@backends
@dtypes
@pytest.mark.parametrize("k, m", [(2, 2), (4, 4), (4, 7), (8, 8)])
@pytest.mark.parametrize("kind", RANKS)
def test_info_is_the_failing_pivot(kind, k, m, dtype, backend):
    """1-based: rank + 1 with diagonal pivoting; 1 for a channel of zeros."""
    h, s = draw(20, k, m, seed=4, dtype=dtype), draw(20, k, seed=5, dtype=dtype)
    with sf.use_backend(backend):
        assert bool((_flag(singular(kind, h), s)[1] == k).all())
        assert bool((_flag(singular("all zero", h), s)[1] == 1).all())
        twice = singular(kind, singular(kind, h)[:, :, :], seed=0)
        assert bool((_flag(twice, s)[1] == k).all())


@backends
@dtypes
@pytest.mark.parametrize("k, m", [(3, 2), (4, 1), (6, 4), (17, 16), (20, 5)])
def test_more_users_than_antennas(k, m, dtype, backend):
    """Zero forcing with M < K has no solution: refused in both automatic and K-form, with info M + 1."""
    h, s = draw(5, k, m, seed=6, dtype=dtype), draw(5, k, seed=7, dtype=dtype)
    with sf.use_backend(backend):
        for form in (None, "K"):
            x, info = _flag(h, s, form=form)
            assert not x.any() and bool((info == m + 1).all()), info
            with pytest.raises(sf.SingularChannelError):
                sf.rzf_precode(h, s, 0.0, form=form)
        level = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
        x, info = _flag(h, s, level)
        assert info.tolist() == [m + 1, 0, m + 1, 0, m + 1] and not x[::2].any()
        same_bits(x[1::2], sf.rzf_precode(h[1::2], s[1::2], 0.5), "regularised neighbours")


def _trials(k, dtype, count):
    h = draw(count, k, k, seed=k, dtype=dtype)
    third = count // 3
    names = ("equal rows", "proportional rows", "linear combination")
    for i, kind in enumerate(names):
        part = slice(i * third, count if i == 2 else (i + 1) * third)
        h[part] = singular(kind, h[part], seed=i)
    return h


@dtypes
def test_none_missed(dtype):
    """20,000 singular channels of each size K = 2..16 (4,000 at 16), rows equal, proportional or dependent: all found."""
    missed = {}
    for k in range(2, 17):
        h = _trials(k, dtype, 4_000 if k == 16 else 20_000)
        _, info = _flag(h, torch.ones(len(h), k, dtype=dtype))
        missed[k] = int((info == 0).sum())
    assert not any(missed.values()), missed


@dtypes
def test_false_alarms(dtype):
    """Rayleigh channels at alpha = 0: none in complex128, at most 5 in 10,000 in complex64; the counts are printed."""
    count, alarms = 5_000, {}
    for k in (2, 3, 4, 6, 8, 12, 16):
        h = draw(count, k, k, seed=50 + k, dtype=dtype)
        alarms[k] = int((_flag(h, torch.ones(count, k, dtype=dtype))[1] != 0).sum())
    print(f"false alarms in {count} Rayleigh channels per size, {dtype}: {alarms}")
    assert max(alarms.values()) <= (5e-4 * count if dtype is torch.complex64 else 0), alarms


@backends
@dtypes
@pytest.mark.parametrize("alpha", [1e-6, 0.5])
@pytest.mark.parametrize("bad", [complex(NAN, 0), complex(0, NAN), complex(INF, 0), complex(0, -INF)], ids=str)
def test_non_finite_channels_at_any_regulariser(bad, alpha, dtype, backend):
    """NaN or Inf in h is found at alpha > 0 too, in every place and every form; neighbours keep their bits."""
    good, s = draw(18, 3, 4, seed=8, dtype=dtype), draw(18, 3, seed=9, dtype=dtype)
    with sf.use_backend(backend):
        for form in ("K", "M"):
            want, _ = _flag(good, s, alpha, form=form)
            h = good.clone()
            for i in range(12):
                h[i, i // 4, i % 4] = bad
            x, info = _flag(h, s, alpha, form=form)
            assert bool((info[:12] != 0).all()) and not info[12:].any() and not x[:12].any()
            same_bits(x[12:], want[12:])
            with pytest.raises(sf.SingularChannelError, match="12 of 18 channels") as caught:
                sf.rzf_precode(h, s, alpha, form=form)
            assert caught.value.count == 12 and caught.value.index == (0,)


@dtypes
@pytest.mark.parametrize("kind", FINITE_KINDS)
def test_tiny_regularisers(kind, dtype):
    """Singular channels with alpha from rounding level up: zeros and info, or |x| <= |s|/(2 sqrt(alpha)); never garbage."""
    alpha = torch.logspace(-37, 1, 400, dtype=torch.float64).to(dtype.to_real())
    h, s = singular(kind, draw(400, 4, 4, seed=10, dtype=dtype)), draw(400, 4, seed=11, dtype=dtype)
    x, info = _flag(h, s, alpha)
    assert bool(torch.isfinite(torch.view_as_real(x)).all())
    assert not x[info != 0].any()
    assert not info[alpha >= 1e-9].any(), "a regulariser far above rounding level makes every channel regular"
    cap = wide(s)[0].norm(dim=-1) / (2 * alpha.double().sqrt())
    # a pivot accepted at 4 K eps of the largest diagonal has a relative error of at most a quarter
    assert float((wide(x)[0].norm(dim=-1) / cap)[info == 0].max()) <= 1.25


def _broken(lead, *bad, dtype=torch.complex64):
    h, s = draw(*lead, 4, 4, seed=12, dtype=dtype), draw(*lead, 4, seed=13, dtype=dtype)
    for at in bad:
        h[at] = singular("equal rows", h[at].unsqueeze(0))[0]
    return h, s


@backends
def test_raise_names_count_and_index(backend):
    """The default on the CPU: a ValueError with the count and the first index over all leading dimensions."""
    h, s = _broken((3, 5, 2), (1, 4, 0), (1, 3, 1), (2, 0, 0))
    with sf.use_backend(backend):
        for call in (lambda: sf.rzf_precode(h, s, 0.0), lambda: sf.rzf_precode(h, s, 0.0, on_singular="raise"),
                     lambda: sf.rzf_matrix(h, 0.0), lambda: sf.rzf_precode(h, s, 0.0, power=1.0)):  # fmt: skip
            with pytest.raises(sf.SingularChannelError, match=r"3 of 30 channels.*\(1, 3, 1\)") as caught:
                call()
            assert caught.value.count == 3 and caught.value.index == (1, 3, 1)
            assert isinstance(caught.value, ValueError)
        with pytest.raises(sf.SingularChannelError, match=r"^rzf_matrix: "):
            sf.rzf_matrix(h, 0.0)
        single, one = h[1, 3, 1], s[1, 3, 1]
        with pytest.raises(sf.SingularChannelError, match="1 of 1 channels") as caught:
            sf.rzf_precode(single, one, 0.0)
        assert caught.value.index == ()


@backends
def test_matrix_of_singular_channels(backend):
    """rzf_matrix has the same choices: zeros and info, or the columns of the users that are served."""
    h, _ = _broken((3, 5), (1, 4), dtype=torch.complex128)
    with sf.use_backend(backend):
        v, info = sf.rzf_matrix(h, 0.0, on_singular="flag", return_info=True)
        assert (
            info.nonzero().tolist() == [[1, 4]] and info[1, 4] == 4 and info.dtype is torch.int32 and not v[1, 4].any()
        )
        p, codes = sf.rzf_matrix(h, 0.0, on_singular="pinv", return_info=True)
    assert torch.equal(codes, info)
    same_bits(p[info == 0], v[info == 0])
    columns = p[1, 4].norm(dim=0)
    assert int((columns == 0).sum()) == 1  # the dropped user
    served = columns > 0
    through = h[1, 4][served] @ p[1, 4][:, served]
    within(
        through, torch.eye(3, dtype=h.dtype), 1e-12 * columns.max() * h[1, 4].norm(), "the others see the unit matrix"
    )


def test_raise_names_the_first_with_threads():
    """Two threads find many at once; the lowest index is named, with the right count, every time."""
    torch.set_num_threads(2)
    h, s = _broken((64, 64), *((i, 5) for i in range(3, 64)))
    for _ in range(5):
        with pytest.raises(sf.SingularChannelError) as caught:
            sf.rzf_precode(h, s, 0.0)
        assert caught.value.count == 61 and caught.value.index == (3, 5)


@pytest.mark.parametrize("lead", [(2, 3), (20, 4)])
def test_static_channels_are_named_by_the_callers_index(lead):
    """Whatever is folded inside, count and index speak of all leading dimensions of the call, as info does."""
    h, _ = _broken(lead, (1, 2))
    s = draw(*lead, 14, 4, dtype=torch.complex64)
    for channel in (h.unsqueeze(-3), h.unsqueeze(-3).expand(*lead, 14, 4, 4), h.unsqueeze(-3).repeat(1, 1, 14, 1, 1)):
        with pytest.raises(sf.SingularChannelError) as caught:
            sf.rzf_precode(channel, s, 0.0)
        assert caught.value.index == (1, 2, 0)
        assert re.search(r"\b14 of " + str(14 * lead[0] * lead[1]), str(caught.value))
        x, info = _flag(channel, s)
        assert info.shape == (*lead, 14) and int((info != 0).sum()) == 14 and bool((info[1, 2] == 4).all())
        assert not x[1, 2].any() and bool(x[0].abs().gt(0).all())


@backends
@dtypes
@pytest.mark.parametrize("k, m", [(2, 2), (4, 4), (4, 6), (8, 8)])
@pytest.mark.parametrize("kind", RANKS)
def test_pinv_drops_one_user(kind, k, m, dtype, backend):
    """One user is dropped; x is the zero-forcing solution of the others alone."""
    h, s = singular(kind, draw(25, k, m, seed=14, dtype=dtype)), draw(25, k, 1, seed=15, dtype=dtype)
    with sf.use_backend(backend):
        x, info = sf.rzf_precode(h, s, 0.0, on_singular="pinv", return_info=True)
    assert bool((info == k).all())
    residual = (wide(h)[0] @ wide(x)[0] - wide(s)[0]).abs().squeeze(-1)
    dropped = residual.argmax(-1)
    assert float(residual.gather(1, dropped[:, None]).min()) > 1e-3, "somebody cannot be served"
    for i in range(25):
        rest = [u for u in range(k) if u != int(dropped[i])]
        want = sf.rzf_precode(wide(h[i, rest])[0], wide(s[i, rest])[0], 0.0)
        bound = precode_bound(h[i, rest], s[i, rest], 0.0, dtype, "K")
        # a dependent user of float32 rows leaves a pivot of rounding size, which the factor still sees
        within(x[i], want, 2 * bound + 1e-12 * want.norm(), f"pinv {str(dtype)[6:]}")


@backends
@dtypes
def test_pinv_edge_cases(dtype, backend):
    """All zero: x = 0. Regular channels: the bits of "raise". M < K: least squares. NaN: zeros. It never raises."""
    h, s = draw(20, 4, 4, seed=16, dtype=dtype), draw(20, 4, seed=17, dtype=dtype)
    with sf.use_backend(backend):
        x, info = sf.rzf_precode(h, s, 0.0, on_singular="pinv", return_info=True)
        same_bits(x, sf.rzf_precode(h, s, 0.0))
        assert not info.any()
        same_bits(sf.rzf_precode(h, s, 0.3, on_singular="pinv"), sf.rzf_precode(h, s, 0.3))
        broken = h.clone()
        broken[3], broken[5, 1, 1] = 0, NAN
        x, info = sf.rzf_precode(broken, s, 0.0, on_singular="pinv", return_info=True)
        assert info.nonzero().flatten().tolist() == [3, 5] and not x[[3, 5]].any()
        tall, t = draw(9, 6, 3, seed=18, dtype=dtype), draw(9, 6, 1, seed=19, dtype=dtype)
        x = wide(sf.rzf_precode(tall, t, 0.0, on_singular="pinv"))[0]
    want = torch.linalg.lstsq(*wide(tall, t)).solution
    within(x, want, 2 * precode_bound(tall, t, 0.0, dtype, "M"), "pinv, more users than antennas")


@pytest.mark.parametrize("kind", [k for k in FINITE_KINDS if k != "equal rows"])
def test_pinv_gradients(kind):
    """Finite everywhere, and that of the reference. (Of two equal rows either may be the one to go.)"""
    h, s = singular(kind, draw(6, 3, 4, seed=20)), draw(6, 3, seed=21)
    grads = []
    for backend in ("cpu", "reference"):
        leaves = [h.clone().requires_grad_(True), s.clone().requires_grad_(True)]
        with sf.use_backend(backend):
            x = sf.rzf_precode(*leaves, 0.0, on_singular="pinv")
            grads.append(torch.autograd.grad(x, leaves, draw(6, 4, seed=22)))
    for a, b in zip(*grads, strict=True):
        assert bool(torch.isfinite(torch.view_as_real(a)).all())
        within(a, b, 1e-10 * (1 + b.abs().max()), "pinv gradients")


@backends
@dtypes
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("bad", [complex(NAN, 0), complex(0, INF)], ids=str)
def test_non_finite_symbols(bad, alpha, dtype, backend):
    """A NaN or Inf symbol: named by op and index with "raise"; info -1, zeros and zero gradients with "flag"."""
    h, good = draw(20, 3, 4, 4, seed=23, dtype=dtype), draw(20, 3, 4, seed=24, dtype=dtype)
    s = good.clone()
    s[2, 1, 3], s[17, 0, 0] = bad, bad
    with sf.use_backend(backend):
        want, _ = _flag(h, good, alpha)
        for power in (None, 1.0):
            with pytest.raises(ValueError, match=r"^rzf_precode: .*\(2, 1\).*not finite") as caught:
                sf.rzf_precode(h, s, alpha, power=power)
            assert not isinstance(caught.value, sf.SingularChannelError)
        leaves = [h.clone().requires_grad_(True), s.clone().requires_grad_(True)]
        level = torch.full((20,), alpha, dtype=dtype.to_real()).requires_grad_(True)
        x, info = _flag(*leaves, level)
        grads = torch.autograd.grad(x.abs().square().sum(), [*leaves, level])
    assert info[2, 1] == -1 and info[17, 0] == -1 and int((info != 0).sum()) == 2
    rest = info == 0
    assert not x.detach()[~rest].any()
    same_bits(x.detach()[rest], want[rest])
    assert all(bool(torch.isfinite(torch.view_as_real(g) if g.is_complex() else g).all()) for g in grads)
    assert not grads[0][~rest].any() and not grads[1][~rest].any()


@backends
@pytest.mark.parametrize("items", [2, 20])
def test_static_channel_with_a_bad_symbol(items, backend):
    """A NaN symbol beside a static channel is named by the caller's own index, and only its own resource element is lost."""
    h, s = draw(items, 3, 1, 4, 4, seed=23), draw(items, 3, 14, 4, seed=24)
    with sf.use_backend(backend):
        want = sf.rzf_precode(h, s, 0.5)
        s[1, 2, 5, 2] = NAN
        with pytest.raises(ValueError, match=r"^rzf_precode: .*\(1, 2, 5\)"):
            sf.rzf_precode(h, s, 0.5)
        x, info = _flag(h, s, 0.5)
    assert info.nonzero().tolist() == [[1, 2, 5]] and info[1, 2, 5] == -1
    assert not x[1, 2, 5].any()
    same_bits(x[info == 0], want[info == 0])


@backends
@pytest.mark.parametrize("value", [-1e-9, -1.0, NAN, INF, -INF])
def test_levels_that_are_refused(value, backend):
    """alpha negative or not finite: as a number, a 0-d tensor, or one entry of a tensor, which is named."""
    h, s = draw(2, 3, 4, 4), draw(2, 3, 4)
    with sf.use_backend(backend):
        for alpha in (value, torch.tensor(value)):
            for call in (lambda a: sf.rzf_precode(h, s, a), lambda a: sf.rzf_matrix(h, a)):
                with pytest.raises(ValueError, match=r"^rzf_(precode|matrix): alpha must be finite and >= 0"):
                    call(alpha)
        level = torch.ones(2, 3)
        level[1, 2] = value
        with pytest.raises(ValueError, match=r"^rzf_precode: alpha must be .*\(1, 2\)"):
            sf.rzf_precode(h, s, level)


@backends
@dtypes
def test_power_of_a_zero_group(dtype, backend):
    """A group of zero symbols, or of singular channels only, stays zero with zero gradients; others are scaled."""
    h, s = draw(4, 6, 4, 4, seed=25, dtype=dtype), draw(4, 6, 4, seed=26, dtype=dtype)
    s[1] = 0
    h[3] = singular("equal rows", h[3])
    h[2, 4] = singular("equal rows", h[2, 4:5])[0]
    leaves = [h.clone().requires_grad_(True), s.clone().requires_grad_(True)]
    with sf.use_backend(backend):
        x, info = _flag(*leaves, power=1.0)
        grads = torch.autograd.grad(x, leaves, draw(4, 6, 4, seed=27, dtype=dtype))
    assert not x.detach()[1].any() and not x.detach()[3].any() and not info[1].any() and bool((info[3] == 4).all())
    mean = wide(x.detach())[0].abs().square().mean((1, 2))
    within(
        mean, torch.tensor([1.0, 0.0, 1.0, 0.0]).double(), 3e-7 if dtype is torch.complex64 else 1e-14, "zero groups"
    )
    for g in grads:
        assert bool(torch.isfinite(torch.view_as_real(g)).all()) and not g[1].any() and not g[3].any()
        assert bool(g[0].any())


@pytest.mark.parametrize("value", ["ignore", "RAISE", 1])
def test_unknown_choice(value):
    """on_singular outside its three values lists them."""
    with pytest.raises(ValueError, match=r"^rzf_precode: on_singular must be one of 'raise', 'flag', 'pinv'"):
        sf.rzf_precode(draw(4, 4), draw(4), 0.1, on_singular=value)
