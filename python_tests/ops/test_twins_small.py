"""pvd_update, pvd_calibrate and power_normalise against the reference in double precision, over every argument form."""

import math

import pytest
import torch
from sf_testing import draw, shadow_memory, unit, wide, within

import semcom_fast as sf
from semcom_fast import reference

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
LEVELS = {"sigma": 0.5, "sigma_above": 0.7, "zeta": 0.1, "score_var": 0.9}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def _state(shape, dtype, samples=None):
    many = shape if samples is None else (samples, *shape)
    mean, anchor = (draw(*shape, seed=s, dtype=dtype) for s in (1, 2))
    return mean, anchor, *(draw(*many, seed=s, dtype=dtype) for s in (3, 4, 5, 6))


def _column(level, ndim):
    t = torch.as_tensor(level, dtype=torch.float64)
    return t.reshape(t.shape + (1,) * (ndim - t.ndim))


def _check_update(state, levels, label, stacked=False):
    """Against the definition, written out here with float64 levels, within eight roundings of an entry's terms.

    stacked: score_var carries the sample axis as [L, B].
    """
    *operands, noise = state
    m, a, s, d, g, n = wide(*state)
    samples = s.ndim > m.ndim
    sig, above, zeta = (_column(levels[k], m.ndim) for k in ("sigma", "sigma_above", "zeta"))
    score_var = _column(levels["score_var"], s.ndim if stacked else m.ndim)
    delta = above**2 - sig**2
    var = sig**2 * delta / above**2 if levels.get("next_var") is None else _column(levels["next_var"], m.ndim)

    def average(t):
        return t.mean(0) if samples else t

    want = m + zeta * average((a - s) + delta / sig**2 * (d - s) + delta / score_var * g)
    size = m.abs() + zeta * average(
        a.abs() + s.abs() + delta / sig**2 * (d.abs() + s.abs()) + delta / score_var * g.abs()
    )
    growth = (8 + (s.shape[0] if samples else 0)) * unit(operands[0])
    shadow_memory(operands[0].numel() * operands[0].element_size(), noise.numel() * noise.element_size())
    new_mean, new_sample = sf.pvd_update(*operands, **levels, noise=noise)
    within(new_mean, want, growth * size, f"{label} new_mean")
    within(new_sample, want + var.sqrt() * n, growth * (size + var.sqrt() * n.abs()), f"{label} new_sample")
    twin = reference.pvd_update(*wide(*operands), **levels, noise=n)
    within(twin[0], want, 1e-14 * size, "reference new_mean")
    within(twin[1], want + var.sqrt() * n, 1e-14 * (size + var.sqrt() * n.abs()), "reference new_sample")


@pytest.mark.parametrize(
    "shape", [(1,), (2, 1), (2, 3), (3, 2, 5), (2, 2, 3, 4, 2), (2, 2, 1023), (1, 1, 2049), (5, 1, 64), (2, 1, 33, 7)]
)
def test_pvd_update_shapes(shape, dtype):
    """Real and complex states of every rank, with sizes around the vector width and the chunk of the draws."""
    _check_update(_state(shape, dtype), LEVELS, f"pvd_update {str(dtype)[6:]}")


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_pvd_update_averages_samples(samples, dtype):
    """[L, *mean.shape] operands average the update; new_sample keeps the sample axis."""
    _check_update(_state((3, 2, 7), dtype, samples), LEVELS, f"pvd_update L {str(dtype)[6:]}")


def _tensor_levels(kind):
    base = {"[B]": (3,), "[B,U]": (3, 2), "[1,U]": (1, 2), "[B,1]": (3, 1), "[1]": (1,), "0-d": ()}[kind]
    grid = torch.linspace(0.5, 0.9, math.prod(base), dtype=torch.float64).reshape(base)
    return {"sigma": grid, "sigma_above": grid + 0.3, "zeta": grid / 7, "score_var": grid * 3, "next_var": grid / 5}


@pytest.mark.parametrize("kind", ["0-d", "[1]", "[B]", "[B,U]", "[1,U]", "[B,1]"])
@pytest.mark.parametrize("which", ["all", "sigma", "sigma_above", "zeta", "score_var", "next_var"])
def test_pvd_update_level_tensors(kind, which, dtype):
    """Each level as a tensor over the leading dimensions, alone beside numbers, and all together."""
    tensors = _tensor_levels(kind)
    levels = tensors if which == "all" else LEVELS | {which: tensors[which]}
    if which == "sigma":
        levels = levels | {"sigma_above": 1.4}
    _check_update(_state((3, 2, 37), dtype), levels, f"pvd_update levels {str(dtype)[6:]}")


@pytest.mark.parametrize("real_dtype", [torch.float32, torch.float64], ids=str)
def test_pvd_update_score_variance_per_sample(real_dtype, dtype):
    """score_var [L,B] divides each sample's score by its own variance."""
    score_var = torch.linspace(0.5, 3, 6, dtype=real_dtype).reshape(2, 3)
    _check_update(_state((3, 2, 7), dtype, 2), LEVELS | {"score_var": score_var}, "pvd_update [L,B]", stacked=True)


def test_pvd_update_score_variance_of_square_sample_axis(dtype):
    """With L = B the axis is still samples first: [L,B] is not read as [B,U] even when all sizes agree."""
    score_var = torch.tensor([[0.5, 4.0], [9.0, 0.25]], dtype=torch.float64)
    _check_update(_state((2, 2, 5), dtype, 2), LEVELS | {"score_var": score_var}, "pvd_update L=B", stacked=True)


@pytest.mark.parametrize("next_var", [0, 0.0, 0.3, None])
def test_pvd_update_next_variance(next_var, dtype):
    """next_var None is lambda_j = s_j^2 D/s_{j+1}^2; the number 0 returns the mean and needs no noise."""
    state = _state((3, 2, 7), dtype)
    if next_var == 0:
        new_mean, new_sample = sf.pvd_update(*state[:5], **LEVELS, next_var=next_var)
        assert torch.equal(new_mean, new_sample) and new_mean.data_ptr() != new_sample.data_ptr()
    else:
        _check_update(state, LEVELS | {"next_var": next_var}, "pvd_update next_var")


def test_default_next_variance_is_the_precision_of_the_bridge():
    """lambda_j is the variance of p(H_j | H_{j+1}, H_0): 1/lambda = 1/s_j^2 + 1/(s_{j+1}^2 - s_j^2)."""
    s, a = torch.tensor([0.01, 0.5, 3.0]).double(), torch.tensor([0.02, 0.7, 100.0]).double()
    want = 1 / (1 / s**2 + 1 / (a**2 - s**2))
    zero, one = torch.zeros(3, 4, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)
    _, sample = sf.pvd_update(*[zero] * 5, sigma=s, sigma_above=a, zeta=0.1, noise=one)
    within(sample[:, 0] ** 2, want, 1e-14 * want, "lambda_j")


@pytest.mark.parametrize("samples", [None, 2])
def test_pvd_update_draws_philox_normals(samples, dtype):
    """seed= draws what philox_normal gives for (seed, step, stream + 16 l, first_item)."""
    state = _state((3, 2, 7), dtype, samples)
    key = {"seed": 2**63 + 11, "step": 5, "first_item": 40}
    got = sf.pvd_update(*state[:5], **LEVELS, **key, stream=2)
    draws = [sf.philox_normal((3, 2, 7), **key, stream=2 + 16 * i, dtype=dtype) for i in range(samples or 1)]
    want = sf.pvd_update(*state[:5], **LEVELS, noise=torch.stack(draws) if samples else draws[0])
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_pvd_update_seed_and_step_as_tensors(backend):
    """Seed and step as 0-d tensors, upper half of 64 bits included, draw what the same numbers draw."""
    state = _state((3, 2, 7), torch.complex128)[:5]
    with sf.use_backend(backend):
        for seed in (5, 2**63 + 5):
            want = sf.pvd_update(*state, **LEVELS, seed=seed, step=9)
            bits = torch.tensor(seed - 2**64 if seed >= 2**63 else seed)
            got = sf.pvd_update(*state, **LEVELS, seed=bits, step=torch.tensor(9))
            assert torch.equal(got[1], want[1]) and not torch.equal(got[0], got[1])


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 3, 0), (0,)])
def test_pvd_update_empty(shape, dtype):
    """Empty states give empty results, with and without tensors as levels."""
    mean, sample = sf.pvd_update(*[torch.zeros(shape, dtype=dtype)] * 5, **LEVELS, seed=1)
    assert mean.shape == sample.shape == shape and mean.dtype is dtype


@pytest.mark.parametrize("noise_var", ["number", "[B]"])
@pytest.mark.parametrize("b, u", [(1, 1), (3, 2), (17, 3), (0, 2), (2, 0)])
@pytest.mark.parametrize("real_dtype", [torch.float32, torch.float64], ids=str)
def test_pvd_calibrate(b, u, real_dtype, noise_var):
    """s = noise_var + (sum_u nr v (x_energy + |dX|^2) + |H dX|^2)/count, formed in double precision."""
    var_h, probe_x = (draw(b, u, seed=s, dtype=real_dtype).abs() for s in (1, 2))
    probe_y, level = draw(b, seed=3, dtype=real_dtype).abs(), draw(b, seed=4, dtype=real_dtype).abs() + 0.1
    level = 0.25 if noise_var == "number" else level
    size = {"x_energy": 12.5, "nr": 4, "count": 96}
    v, p, q = wide(var_h, probe_x, probe_y)
    want = torch.as_tensor(level, dtype=torch.float64) + ((4 * v * (12.5 + p)).sum(1) + q) / 96
    got = sf.pvd_calibrate(level, var_h, probe_x, probe_y, **size)
    within(got, want, (unit(real_dtype) + (u + 8) * 2.0**-53) * want, f"pvd_calibrate {str(real_dtype)[6:]}")
    got = reference.pvd_calibrate(level, var_h, probe_x, probe_y, **size)
    within(got, want, (unit(real_dtype) + (u + 8) * 2.0**-53) * want, "reference pvd_calibrate")


@pytest.mark.parametrize(
    "shape, dims",
    [((2, 3, 4), 3), ((2, 3, 4), 1), ((5,), 1), ((2, 2, 3, 2, 8), 3), ((2, 3, 1, 1, 1), 3), ((3, 999), 1),
     ((0, 2, 3, 4), 3), ((2, 3, 4, 5), 2), ((2, 3, 4, 5), 4)],
)  # fmt: skip
@pytest.mark.parametrize("power", [1.0, 0.37])
def test_power_normalise(shape, dims, power, dtype):
    """x = z sqrt(P count)/|z| over the last dims; the norm is returned; |x|^2 = P count holds."""
    z = draw(*shape, dtype=dtype) * 3
    shadow_memory(z.numel() * z.element_size())
    x, norm = sf.power_normalise(z, power=power, dims=dims)
    (zd,) = wide(z)
    last, count = tuple(range(-dims, 0)), math.prod(shape[len(shape) - dims :])
    true = zd.abs().square().sum(last, keepdim=True).sqrt()
    double_sum = (count / 4 + 8) * 2.0**-53  # n doubles in eight partial sums; only seen in double precision
    within(norm, true.reshape(norm.shape), (2 * unit(dtype) + double_sum) * true.reshape(norm.shape), "norm")
    want = zd * math.sqrt(power * count) / true
    label = f"power_normalise {str(dtype)[6:]}"
    within(x, want, (4 * unit(dtype) + double_sum) * want.abs(), label)
    if x.numel():
        energy = wide(x)[0].abs().square().sum(last)
        target = torch.full_like(energy, power * count)
        within(energy, target, (8 * unit(dtype) + 4 * double_sum) * target, f"{label} energy")


def test_power_normalise_survives_extreme_scales():
    """Norms are summed in double: entries whose squares overflow or underflow single precision still work."""
    for scale in (1e-30, 1e30):
        z = (draw(2, 3, 2, 4) * scale).to(torch.complex64)
        x, norm = sf.power_normalise(z)
        want = reference.power_normalise(wide(z)[0])
        within(norm, want[1], 4 * unit(z) * want[1], "norm at extreme scale")
        within(x, want[0], 8 * unit(z) * want[0].abs(), "power_normalise at extreme scale")
