"""At the ends of a dtype's range: a result that can be held is right, one that cannot is an error."""

import math

import pytest
import torch
from sf_testing import draw, same_bits, unit, within
from torch import Tensor

import semcom_fast as sf

backends = pytest.mark.parametrize("backend", ["cpu", "reference"])


@backends
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_channel_sums(dtype, backend):
    """Sums of rays around the largest number: channels that are finite and right, or an error; both happen."""
    largest = torch.finfo(dtype).max
    turns = torch.tensor([[0.11, 0.23, -0.31]], dtype=dtype.to_real())
    raised = 0
    with sf.use_backend(backend):
        want = torch.ops.semcom_fast.cdl_channels(torch.full((1, 3), 1 + 1j, dtype=dtype), turns, -turns, 6, 6) / 8
        for share in torch.linspace(0.5, 7.9, 39).tolist():
            gains = torch.full((1, 3), (1 + 1j) * (share * largest / 8), dtype=dtype)
            try:
                h = torch.ops.semcom_fast.cdl_channels(gains, turns, -turns, 6, 6)
            except ValueError as err:
                assert "channel 0 is not finite" in str(err)
                raised += 1
            else:
                within(h / largest, share * want, 40 * share * unit(dtype), f"share {share}")
    assert 0 < raised < 39


def _unit_mean_square(x: Tensor) -> Tensor:
    return x / x.abs().square().mean(tuple(range(1, x.ndim)), keepdim=True).sqrt()


@backends
@pytest.mark.parametrize("k, m, lead", [(4, 4, (5,)), (3, 6, (2, 40)), (16, 16, (5,)), (12, 24, (2, 3))])
def test_power_of_tiny_and_huge_vectors(k, m, lead, backend):
    """A scale that float32 cannot hold takes vectors that it can to their power; small norms keep their precision."""
    h, s = draw(*lead, k, m, seed=1, dtype=torch.complex64), draw(*lead, k, seed=2, dtype=torch.complex64)
    with sf.use_backend(backend):
        for alpha, factor in ((1e31, 1e-4), (1e-12, 1e30)):
            x = sf.rzf_precode(h, s * factor, alpha)
            got = sf.rzf_precode(h, s * factor, alpha, power=1.0)
            within(got, _unit_mean_square(x.to(torch.complex128)), 8 * unit(torch.float32) * got.abs().max(), "x")
        tiny = sf.rzf_precode(h, s * 1e-12, 1e31, power=1.0)  # x is subnormal: few bits, but the power is right
        within(tiny.abs().square().mean(tuple(range(1, tiny.ndim))), torch.ones(lead[0]), 1e-3, "power")


@backends
def test_power_beyond_the_dtype(backend):
    """A power that entries could not have is refused; an energy beyond float64 is NaN, not silence."""
    h, s = draw(3, 4, 4, seed=3, dtype=torch.complex64), draw(3, 4, seed=4, dtype=torch.complex64)
    with sf.use_backend(backend):
        with pytest.raises(ValueError, match=r"^rzf_precode: power 1e\+77 over 4 entries overflows torch.complex64"):
            sf.rzf_precode(h, s, 1.0, power=1e77)
        assert bool(torch.isfinite(sf.rzf_precode(h, s, 1.0, power=1e75).abs()).all())
        h, s = h.to(torch.complex128), s.to(torch.complex128)
        wide = sf.rzf_precode(h, s * torch.tensor([[1.0], [1e160], [1.0]], dtype=torch.float64), 1.0, power=1.0)
    assert wide[1].isnan().all() and not wide[::2].isnan().any()


@backends
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-30, 1e30, 1e38])
def test_unit_power_of_authors_states(size, backend):
    """States of any size that float32 holds are brought to unit mean square."""
    state = draw(3, 64, seed=5, dtype=torch.float32) * size
    with sf.use_backend(backend):
        _, g = sf.waterfill_step_authors(
            state, state, torch.zeros(3, 32), torch.zeros(3, 64), 0.3, 0.3, noise=0 * state
        )
    if size > 1e-40:  # else some are rounded to nothing
        within(g, _unit_mean_square(state.double()), 8 * unit(torch.float32) * g.abs().max(), "g")
    within(g.double().square().mean(1), torch.ones(3, dtype=torch.float64), 1e-5, "mean square")


@backends
def test_authors_states_without_energy(backend):
    """A mean square that is zero, or beyond float64, names its item."""
    state = draw(3, 64, seed=6, dtype=torch.float64)
    for factor in (0.0, 1e200):
        bad = state * torch.tensor([1.0, 1.0, factor], dtype=torch.float64)[:, None]
        with sf.use_backend(backend), pytest.raises(ValueError, match="item 2 is not finite"):
            sf.waterfill_step_authors(bad, bad, torch.zeros(3, 32).double(), 0 * bad, 0.3, 0.3, noise=0 * bad)


@pytest.mark.parametrize("base", ["own", "common"])
def test_authors_step_from_no_noise(base):
    """beta_t = 0 only tops up: nothing is noisier than beta_s."""
    f, g, x0, noise = (draw(3, 64, seed=7 + i, dtype=torch.float32) for i in range(4))
    d = torch.rand(3, 32)
    for beta_s in (0.0, 0.25):
        got, want = [], []
        for backend, out in (("cpu", got), ("reference", want)):
            with sf.use_backend(backend):
                out += sf.waterfill_step_authors(f, g, d, x0, 0.0, beta_s, base=base, noise=noise)
        for a, b in zip(got, want, strict=True):
            within(a, b, 20 * unit(torch.float32) * b.abs().max(), f"to {beta_s}")
        if beta_s:
            same_bits(got[0], f, "nothing moves")


@backends
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("n", [4, 12])
@pytest.mark.parametrize("op", [sf.rzf_precode, sf.lmmse_equalise])
def test_singular_count_beside_spoilt_vectors(op, n, shared, backend):
    """SingularChannelError counts channels without inverse alone, whatever else is wrong in the batch."""
    h, s = draw(6, n, n, seed=8), draw(6, 5, n, seed=9)
    h[2] = 0
    s[1, 3], s[4] = math.nan, math.inf
    args = (h[:, None], s) if shared else (h[:, None].expand(6, 5, n, n).contiguous(), s)
    with sf.use_backend(backend), pytest.raises(sf.SingularChannelError, match="5 of 30 channels") as caught:
        op(*(args if op is sf.rzf_precode else args[::-1]), 0.0)
    assert caught.value.count == 5 and caught.value.index == (2, 0)
