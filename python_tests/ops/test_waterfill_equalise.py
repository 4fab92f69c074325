"""waterfill_equalise: the fused MMSE weight and its noise level, against NumPy, statistics and the cases at the edge."""

import math

import numpy as np
import pytest
import torch
import waterfill_cases as cases
from sf_testing import DTYPES, draw, same_bits, shadow_memory, unit, within

import semcom_fast as sf

NAN, INF = float("nan"), float("inf")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
backends = pytest.mark.parametrize("backend", ["cpu", "reference"])


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with sf.use_backend(request.param):
        yield request.param


def _check(y, h, noise_var, label):
    """f: twelve roundings (scaled channel, its square, an inverse root, the scaled gain, the root of the power, the
    weight, two products and a sum per part). A part of h* y cancels, so its error is measured against |y|.
    d: sixteen, because it is the square of sigma/sqrt(|h|^2 + sigma^2), formed so that no square overflows; that root
    carries the roundings of sigma, of the scaled sum of squares, of its inverse root and of a product. Below 1e-6.
    """
    want_f, want_d = cases.equalise(*(t.detach().numpy().astype(np.complex128) for t in (y, h)), noise_var)
    shadow_memory(y.numel() * y.element_size())
    f, d = sf.waterfill_equalise(y, h, noise_var)
    assert f.dtype is d.dtype is y.dtype.to_real() and f.is_contiguous() and d.is_contiguous()
    size = np.hypot(*np.split(want_f, 2, -1))
    size = torch.from_numpy(np.concatenate([size, size], -1))
    within(f, torch.from_numpy(want_f), 12 * unit(y) * size, f"{label} f {str(y.dtype)[6:]}")
    within(d, torch.from_numpy(want_d), 16 * unit(y) * torch.from_numpy(want_d), f"{label} d {str(y.dtype)[6:]}")


@dtypes
@pytest.mark.parametrize(
    "shape", [(1,), (3,), (2, 1), (3, 4), (3, 16), (2, 17), (2, 3, 5), (1, 1023), (2, 2, 2, 33), (5, 64)]
)
def test_fast_fading(shape, dtype, backend):
    """One h per symbol, sizes around the vector width."""
    y, h = draw(*shape, seed=1, dtype=dtype) * 1.5, draw(*shape, seed=2, dtype=dtype)
    for noise_var in (0.5, 1e-4, 30.0):
        _check(y, h, noise_var, f"equalise {backend}")


SHARED = {
    "slow": ((4, 9), (4, 1)),
    "one for all": ((4, 9), ()),
    "one per item of [B,S,M]": ((3, 2, 7), (3, 1, 1)),
    "one per symbol, shared by the batch": ((3, 7), (7,)),
    "[1,M]": ((3, 7), (1, 7)),
}


@dtypes
@pytest.mark.parametrize("case", SHARED)
def test_channel_broadcasts(case, dtype, backend):
    """Slow fading [..., 1] and AWGN 0-d channels broadcast; d has the symbol's shape all the same."""
    y, h = (draw(*s, seed=i, dtype=dtype) for i, s in enumerate(SHARED[case]))
    _check(y, h, 0.3, f"equalise shared {backend}")
    f, d = sf.waterfill_equalise(y, h, 0.3)
    full = sf.waterfill_equalise(y, h.expand(y.shape).contiguous(), 0.3)
    assert d.shape == y.shape and f.shape == (*y.shape[:-1], 2 * y.shape[-1])
    same_bits(f, full[0], "materialised h")
    same_bits(d, full[1], "materialised h")


@dtypes
@pytest.mark.parametrize("kind", ["0-d", "[1]", "[B]", "[B,U]", "[B,1]", "float32 [B]"])
def test_noise_variance_tensors(kind, dtype, backend):
    """noise_var as a tensor over the leading dimensions, aligned from the left."""
    base = {"0-d": (), "[1]": (1,), "[B]": (3,), "[B,U]": (3, 2), "[B,1]": (3, 1), "float32 [B]": (3,)}[kind]
    level = torch.linspace(0.25, 2.0, math.prod(base), dtype=torch.float64).reshape(base)
    level = level.float() if kind.startswith("float32") else level
    y, h = draw(3, 2, 5, seed=1, dtype=dtype), draw(3, 2, 5, seed=2, dtype=dtype)
    want = torch.cat([torch.stack([_one(y, h, level, i, j, k) for k in range(2)]) for i in range(3) for j in range(2)])
    f, d = sf.waterfill_equalise(y, h, level)
    got = torch.stack([f[..., :5], f[..., 5:]], 2).reshape(12, 5)
    within(got, want, 8 * unit(y) * (want.abs() + want.abs().max()), f"equalise levels {backend}")
    sigma2 = level.double().reshape(level.shape + (1,) * (3 - level.ndim)) / 2
    within(d, sigma2 / (h.to(torch.complex128).abs() ** 2 + sigma2), 6 * unit(y), f"equalise levels d {backend}")


def _one(y, h, level, i, j, part):
    at = [level, level, level][0]
    full = at.double().reshape(at.shape + (1,) * (2 - at.ndim)).expand(3, 2)
    f, _ = cases.equalise(y[i, j].numpy().astype(complex), h[i, j].numpy().astype(complex), float(full[i, j]))
    return torch.from_numpy(np.split(f, 2)[part])


def test_statistics():
    """Over z of power 2 and n of variance noise_var: f~ has unit power, gain sqrt(1-d) on z and residual variance d."""
    n, noise_var = 200_000, 0.8
    bits = draw(n, seed=1) * math.sqrt(2)
    h = draw(4, 1, seed=2)
    y = h * bits + math.sqrt(noise_var) * draw(4, n, seed=3)
    f, d = sf.waterfill_equalise(y, h, noise_var)
    z = torch.cat([bits.real, bits.imag])
    root = 5 / math.sqrt(2 * n)  # five standard errors of a mean of 2n products of unit size, each of variance <= 2
    within((f**2).mean(-1), torch.ones(4).double(), root * math.sqrt(2), "unit power of f~")
    gain = (1 - d[:, 0]).sqrt()
    within((f * z).mean(-1), gain, root * math.sqrt(2), "gain of f~")
    residual = ((f - gain[:, None] * z) ** 2).mean(-1)
    within(residual, d[:, 0], root * math.sqrt(2) * d[:, 0], "noise level of f~")


@dtypes
def test_noise_in_noise_out(dtype, backend):
    """f~ = sqrt(1-d) f + sqrt(d) n with n = h* N/(|h| sigma) for every symbol: the definition of d."""
    z, h, n = (draw(3, 6, seed=s, dtype=torch.complex128) for s in (1, 2, 3))
    sigma2 = 0.35
    f, d = sf.waterfill_equalise((h * z + math.sqrt(2 * sigma2) * n).to(dtype), h.to(dtype), 2 * sigma2)
    want = (1 - d.double()).sqrt() * z + d.double().sqrt() * math.sqrt(2) * n * h.conj() / h.abs()
    # the inputs are rounded once more than in `_check`; d enters through roots of d and 1 - d
    size = (z.abs() + 2 * n.abs()).repeat(1, 2)
    within(f, torch.cat([want.real, want.imag], -1), 16 * unit(dtype) * size, f"f~ of signal and noise {backend}")


@dtypes
def test_silent_channel(dtype, backend):
    """|h| = 0: phase 1, d = 1 exactly and f~ = n/sigma."""
    y, h = draw(2, 4, seed=1, dtype=dtype), draw(2, 4, seed=2, dtype=dtype)
    h[0, 1] = h[1, 3] = 0
    f, d = sf.waterfill_equalise(y, h, 0.5)
    for i, j in ((0, 1), (1, 3)):
        assert float(d[i, j]) == 1.0
        within(f[i, [j, j + 4]], torch.view_as_real(y[i, j] / 0.5), 4 * unit(dtype) * abs(y[i, j]) / 0.5, "|h| = 0")
    assert (d < 1).sum() == 6


@dtypes
def test_no_noise(dtype, backend):
    """noise_var = 0 (number or tensor): d = 0 exactly and f~ = z, for channels of any size that is not zero."""
    z, h = draw(2, 5, seed=1, dtype=dtype), draw(2, 5, seed=2, dtype=dtype)
    h = h * torch.tensor([1, 1e-12, 1e12, 1e-18, 1e18], dtype=dtype.to_real())
    for noise_var in (0.0, 0, torch.zeros(2), torch.tensor(0.0)):
        f, d = sf.waterfill_equalise(h * z, h, noise_var)
        assert not d.any()
        want = torch.cat([z.real, z.imag], -1)
        within(f, want, 10 * unit(dtype) * z.abs().repeat(1, 2), f"noise_var = 0 {backend}")


@dtypes
def test_nothing_received(dtype, backend):
    """Neither channel nor noise: nothing is known, so d = 1 and f~ = 0 rather than NaN; the other symbols are untouched."""
    y, h = draw(2, 3, seed=1, dtype=dtype), draw(2, 3, seed=2, dtype=dtype)
    h[1, 1] = y[1, 1] = 0
    f, d = sf.waterfill_equalise(y, h, 0.0)
    assert float(d[1, 1]) == 1 and not f[1, [1, 4]].any() and d.sum() == 1 and f.isfinite().all()


@dtypes
def test_extreme_scales(dtype, backend):
    """Channels whose squares leave single precision, beside noise of their own size."""
    for scale in (1e-25, 1e-20, 1e20):
        y, h = draw(2, 5, seed=1, dtype=dtype) * scale, draw(2, 5, seed=2, dtype=dtype) * scale
        _check(y, h, 0.7 * scale**2, f"equalise extreme {backend}")


@dtypes
@pytest.mark.parametrize("operand", ["y", "h"])
@pytest.mark.parametrize("bad", [complex(NAN, 0), complex(0, NAN), complex(INF, 0), complex(0, -INF)], ids=str)
def test_not_finite(bad, operand, dtype, backend):
    """NaN or Inf in y or h raises on the CPU and names the item."""
    args = {"y": draw(3, 4, seed=1, dtype=dtype), "h": draw(3, 4, seed=2, dtype=dtype)}
    args[operand][1, 2] = bad
    with pytest.raises(ValueError, match=r"^waterfill_equalise: .*\b1\b"):
        sf.waterfill_equalise(**args, noise_var=0.5)


@pytest.mark.parametrize(
    "noise_var", [-1.0, NAN, INF, torch.tensor(-0.5), torch.tensor([0.1, NAN, 0.1]), torch.tensor([0.1, -1.0, 0.1])],
    ids=str,
)  # fmt: skip
def test_noise_variance_is_a_variance(noise_var, backend):
    """Negative and non-finite variances, as a number or any entry of a tensor."""
    with pytest.raises(ValueError, match=r"^waterfill_equalise: "):
        sf.waterfill_equalise(draw(3, 4), draw(3, 4), noise_var)


def test_arguments():
    """Kinds and shapes are refused with the op's name and the argument's."""
    y, h, none = draw(3, 4), draw(3, 4), None
    for wrong in ((y.real.clone(), h), (y, h.real.clone()), (y, h.to(torch.complex64)), ([1.0], h), (y, none)):
        with pytest.raises(TypeError, match=r"^waterfill_equalise: [yh] "):
            sf.waterfill_equalise(*wrong, 0.1)
    for wrong in ((draw(3, 4), draw(2, 4)), (draw(3, 4), draw(3, 5)), (draw(), draw())):
        with pytest.raises(ValueError, match=r"^waterfill_equalise: need "):
            sf.waterfill_equalise(*wrong, 0.1)
    with pytest.raises(ValueError, match=r"^waterfill_equalise: noise_var .*must align from the left"):
        sf.waterfill_equalise(y, h, torch.ones(4))
    with pytest.raises(TypeError, match=r"^waterfill_equalise: noise_var"):
        sf.waterfill_equalise(y, h, None)
    with pytest.raises(ValueError, match=r"^waterfill_equalise: .*meta"):
        sf.waterfill_equalise(y, h.to("meta"), 0.1)


def test_golden(backend):
    """Inputs and outputs of an independent program."""
    g = cases.golden()
    f, d = sf.waterfill_equalise(*(torch.from_numpy(g[k]) for k in ("y", "h")), float(g["noise_var"]))
    within(f, torch.from_numpy(g["equalised_f"]), 1e-14 * 4, f"golden equalised f {backend}")
    within(d, torch.from_numpy(g["equalised_d"]), 1e-14, f"golden equalised d {backend}")
