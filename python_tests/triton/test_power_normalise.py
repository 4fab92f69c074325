"""Power normalisation and its gradient against the float64 definition and autograd."""

import math

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

from semcom_fast import reference
from semcom_fast.triton import power_normalise

UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
QUIET = 2**31 - 1
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def _random(b, n, dtype, device, seed=0):
    return torch.randn(b, n, dtype=dtype, generator=torch.Generator().manual_seed(seed)).to(device)


def _unit(dtype):
    return UNIT[dtype.to_real()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("b", "n"), [(3, 24), (2, 33), (1, 1), (2, 1000), (1, 4099), (2, 9216)])
def test_forward(b, n, dtype, device):
    z = _random(b, n, dtype, device)
    power = 2.5
    x, norm = power_normalise.run(z, math.sqrt(power * n))
    wide = z.cpu().to(WIDE.get(dtype, dtype))
    want, want_norm = reference.power_normalise(wide, power=power, dims=1)
    # x: the factor and the product round; norm rounds once. float64: the roundings of 2n
    # squares and their sum accumulate as a random walk, here and in the reference.
    growth = 3 + (2 * math.sqrt(2 * n) if _unit(dtype) < 1e-10 else 0)
    off_x = float(((x.cpu() - want).abs() / (growth * _unit(dtype) * want.abs())).max())
    off_norm = float(((norm.cpu().double() - want_norm).abs() / (growth * _unit(dtype) * want_norm)).max())
    print(f"{b}x{n} {dtype}: x {off_x:.3f}, norm {off_norm:.3f} of the bound ({growth:.0f} units)")
    assert x.dtype == dtype and norm.dtype == dtype.to_real() and norm.shape == (b,)
    assert off_x <= 1 and off_norm <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("b", "n"), [(3, 24), (2, 33), (1, 1), (2, 1000), (1, 4099)])
def test_gradient(b, n, dtype, device):
    z, g = _random(b, n, dtype, device), _random(b, n, dtype, device, seed=1)
    scale = math.sqrt(n)
    got = power_normalise.vjp(z, power_normalise.run(z, scale)[1], g, scale).cpu()
    wide = z.cpu().to(WIDE.get(dtype, dtype)).requires_grad_()
    reference.power_normalise(wide, dims=1)[0].backward(g.cpu().to(wide.dtype))
    assert wide.grad is not None
    # a g/|z| and a z Re<z,g>/|z|^3: the saved norm enters up to cubed, then coefficient, product, sum, product.
    # In float64 the inner product itself is rounded, relative to |z||g|; in float32 its terms are exact.
    exact, wide_g = wide.detach(), g.cpu().to(wide.dtype)
    size, size_g = exact.norm(dim=1, keepdim=True), wide_g.norm(dim=1, keepdim=True)
    double = _unit(dtype) < 1e-10
    along = (exact.conj() * wide_g).real.sum(1, keepdim=True).abs() / size**2 + double * size_g / size
    growth = 8 + (2 * math.sqrt(2 * n) if double else 0)
    bound = growth * _unit(dtype) * scale / size * (wide_g.abs() + exact.abs() * along)
    ratio = float(((got - wide.grad).abs() / bound).max())
    print(f"{b}x{n} {dtype}: worst error/bound {ratio:.3f} ({growth:.0f} units)")
    assert got.dtype == dtype and ratio <= 1


def test_energies_are_summed_in_double(device):
    """A row of one large and many small entries: a float32 sum of squares would lose them all."""
    z = torch.full((1, 8193), 2.0**-13, device=device)
    z[0, 0] = 1.0
    norm = power_normalise.run(z, 1.0)[1]
    assert float(norm) == float(torch.tensor(math.sqrt(1 + 8192 * 2.0**-26), dtype=torch.float32))
    assert float(norm) > 1


def test_gradient_is_orthogonal_to_the_codeword(device):
    z, g = (_random(2, 300, torch.complex128, device, seed=s) for s in (0, 1))
    _, norm = power_normalise.run(z, 3.0)
    along = (z.conj() * power_normalise.vjp(z, norm, g, 3.0)).real.sum(1).abs()
    bound = 50 * UNIT[torch.float64] * 3.0 * g.norm(dim=1)
    print(f"Re<z, vjp> / bound {float((along / bound).max()):.3f}")
    assert bool((along <= bound).all())


def test_strided_conjugated_and_split(device):
    z = _random(40, 3, torch.complex64, device).mT
    assert not z.is_contiguous()
    whole = power_normalise.run(z.conj(), 2.0)
    assert torch.equal(whole[0], power_normalise.run(z.conj().resolve_conj().contiguous(), 2.0)[0])
    parts = [power_normalise.run(z.conj()[i : i + 1], 2.0) for i in range(3)]
    assert all(torch.equal(whole[k], torch.cat([p[k] for p in parts])) for k in (0, 1))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is NumPy, which reports what is tested here
@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, 1e-45, 1e30])
def test_flag_names_the_lowest_row(bad, kind, device):
    z = _random(4, 50, torch.float32, device)
    flag = torch.full((1,), QUIET, dtype=kind, device=device)
    power_normalise.run(z, 1.0, flag=flag)
    assert int(flag) == QUIET
    z[3] = bad
    z[2] = bad
    x, norm = power_normalise.run(z, 1e9 if bad == 1e-45 else 1.0, flag=flag)  # 1e9/norm overflows float32
    if bad == 1e30:  # a finite row of finite norm is no error, although its float32 energy would overflow
        assert int(flag) == QUIET and bool(torch.isfinite(x).all()) and bool(torch.isfinite(norm).all())
    else:
        assert int(flag) == 2
        assert bool(torch.isfinite(x[:2]).all())


def test_empty_and_wrong_arguments(device):
    x, norm = power_normalise.run(torch.zeros(0, 5, device=device), 1.0)
    assert x.shape == (0, 5) and norm.shape == (0,)
    assert power_normalise.vjp(x, norm, x, 1.0).shape == (0, 5)
    with pytest.raises(ValueError, match=r"must be \[B,n\]"):
        power_normalise.run(torch.zeros(3, device=device), 1.0)
    with pytest.raises(TypeError, match="float32 or float64"):
        power_normalise.run(torch.zeros(3, 2, dtype=torch.int32, device=device), 1.0)
    z = torch.ones(2, 3, device=device)
    with pytest.raises(ValueError, match="g must be like z"):
        power_normalise.vjp(z, z[:, 0], z[:1], 1.0)
