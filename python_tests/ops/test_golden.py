"""Every op against golden values of an independent double-precision program."""

import pytest
import torch
from sf_testing import DTYPES, block_bounds, dot_growth, unit, within

import semcom_fast as sf

BACKENDS = ("cpu", "reference")


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request):
    with sf.use_backend(request.param):
        yield request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def _bound(want, growth, dtype):
    """complex128: 1e-12 of the entry's scale; complex64: unit roundoff times the operation's growth."""
    if dtype is torch.complex128:
        return 1e-12 * want.abs().max()
    return unit(dtype) * growth


def _label(name, backend, dtype):
    return f"golden {name} {backend} {str(dtype).removeprefix('torch.')}"


def test_blockdiag_apply_and_adjoint(golden, backend, dtype):
    """Both adjoint maps on golden operands, from the explicit sum over users."""
    h, x, y = (golden[k].to(dtype) for k in ("h", "x", "y"))
    want = sum(golden["h"][:, u] @ golden["x"][:, u] for u in range(2))
    size = sum(golden["h"][:, u].abs() @ golden["x"][:, u].abs() for u in range(2))
    got = sf.blockdiag_apply(h, x)
    within(got, want, _bound(want, (dot_growth(4) + 2) * size, dtype), _label("blockdiag_apply", backend, dtype))
    want = golden["h"].mH @ golden["y"].unsqueeze(1)
    size = golden["h"].abs().mT @ golden["y"].abs().unsqueeze(1)
    got = sf.blockdiag_adjoint(h, y)
    within(got, want, _bound(want, (dot_growth(4) + 2) * size, dtype), _label("blockdiag_adjoint", backend, dtype))


def test_likelihood_score(golden, backend, dtype):
    """Both scores and the three energies."""
    y, h, x, dx = (golden[k].to(dtype) for k in ("y", "h", "x", "dx"))
    out = sf.likelihood_score(y, h, x, probe=dx)._asdict()
    bounds = block_bounds(golden["y"], golden["h"], golden["x"], golden["dx"], inputs_rounded=True)
    for name, got in out.items():
        within(got, golden[name], _bound(golden[name], bounds[name], dtype), _label(name, backend, dtype))


@pytest.mark.parametrize("form", ["complex", "real"])
def test_pvd_update(golden, backend, dtype, form):
    """The fused update with given noise and the default next variance; real states hold the same numbers as planes."""
    names = ("mean", "anchor", "sample", "denoised", "score", "noise")
    values = {k: golden[k].to(dtype) for k in names}
    want = {k: golden[k] for k in ("new_mean", "new_sample")}
    if form == "real":
        values = {k: torch.view_as_real(v) for k, v in values.items()}
        want = {k: torch.view_as_real(v) for k, v in want.items()}
    j = int(golden["level"])
    sigma, above = (float(v) for v in golden["sigma"][j : j + 2])
    levels = {
        "sigma": sigma,
        "sigma_above": above,
        "zeta": float(golden["zeta"]),
        "score_var": float(golden["score_var"]),
    }
    state = [values[k] for k in names[:5]]
    got = sf.pvd_update(*state, **levels, noise=values["noise"])
    m, a, s, d, g = (t.abs().double() for t in state)
    delta, zeta = above**2 - sigma**2, levels["zeta"]
    size = m + zeta * (a + s + delta / sigma**2 * (d + s) + delta / levels["score_var"] * g)
    size_sample = size + (sigma**2 * delta / above**2) ** 0.5 * values["noise"].abs().double()
    for name, result, scale in zip(want, got, (size, size_sample), strict=True):
        # at most eight roundings on the way to an entry (inputs, coefficients, differences, products, sums)
        within(result, want[name], _bound(want[name], 8 * scale, dtype), _label(f"{name} {form}", backend, dtype))


def test_power_normalise_and_its_vjp(golden, backend, dtype):
    """The normalised codeword, and the gradient in torch's convention for the golden cotangent."""
    z = golden["z"].to(dtype).requires_grad_(True)
    x, norm = sf.power_normalise(z)
    want = golden["normalised"]
    within(x, want, _bound(want, 5 * want.abs(), dtype), _label("power_normalise", backend, dtype))
    within(norm, golden["z"].abs().square().sum((-3, -2, -1)).sqrt(), 4 * unit(dtype) * norm.detach().double(),
           _label("power_normalise norm", backend, dtype))  # fmt: skip
    (got,) = torch.autograd.grad(x, z, golden["cotangent"].to(dtype))
    want, zd, g = golden["normalise_vjp"], golden["z"].abs(), golden["cotangent"].abs()
    scale = (zd[0, 0].numel() ** 0.5 / norm.detach().double()).reshape(2, 2, 1, 1, 1)
    along = (zd * g).sum((-3, -2, -1), keepdim=True) / norm.detach().double().reshape(2, 2, 1, 1, 1) ** 2
    within(got, want, _bound(want, 10 * scale * (g + zd * along), dtype), _label("power_normalise vjp", backend, dtype))


def test_schedule(golden):
    """The schedule of the loop is the printed formula with sigma_0 = 0.01."""
    got = torch.tensor(sf.PVDConfig(sigma_max=100.0, sigma_min=0.01, J=30).schedule(), dtype=torch.float64)
    within(got, golden["sigma"], 1e-14 * golden["sigma"], "golden schedule")


def test_lmmse_is_the_fixed_point_of_the_channel_score(golden, dtype):
    """At the golden LMMSE estimate the prior score -H/v and the likelihood score cancel (v = 1)."""
    h, x, y = (golden[k].to(dtype) for k in ("lmmse", "x", "y"))
    score = sf.likelihood_score(y, h, x, float(golden["noise_var"])).score_h
    bound = block_bounds(golden["y"], golden["lmmse"], golden["x"], inputs_rounded=True)["score_h"]
    grown = (bound / golden["noise_var"] + 2 * golden["lmmse"].abs()) * unit(dtype)
    within(score, golden["lmmse"], torch.clamp_min(grown, 1e-12 * 40), "golden LMMSE fixed point")
