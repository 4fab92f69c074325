"""The fused update against the float64 definition: every switch, odd sizes, in-place results, flags."""

import math

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

from semcom_fast import reference
from semcom_fast.triton import pvd_update
from semcom_fast.triton._launch import PvdLevels, as_level

UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
NORMAL = {torch.float32: 2e-6, torch.float64: 2e-14}  # |kernel normal - reference normal|, see test_philox_normal.py
QUIET = 2**31 - 1
DTYPES = [torch.float32, torch.float64]
# (L, B, G, E): quads of one row only, rows sharing a program, quads that straddle groups, several programs per row
SIZES = [
    (1, 3, 1, 64),
    (2, 3, 1, 12),
    (1, 2, 2, 7),
    (2, 2, 3, 10),
    (1, 2, 1, 1030),
    (3, 2, 2, 515),
    (1, 1, 1, 1),
    (1, 1, 1, 1024),
]


def _state(size, dtype, device, seed=0):
    gen = torch.Generator().manual_seed(seed)
    count, b, g, e = size
    one = [torch.randn(b, g, e, dtype=dtype, generator=gen).to(device) for _ in range(2)]
    many = [torch.randn(count, b, g, e, dtype=dtype, generator=gen).to(device) for _ in range(3)]
    return *one, *many


def _level_values(size, seed=0):
    gen = torch.Generator().manual_seed(seed + 1)
    count, b, g, _ = size
    sigma = 0.2 + torch.rand(b, g, generator=gen, dtype=torch.float64)
    return {
        "sigma": sigma,
        "sigma_above": 1.3 + sigma[:, :1],
        "zeta": 0.1 + 0.1 * torch.rand(b, generator=gen, dtype=torch.float64),
        "score_var": 0.3 + torch.rand(count, b, generator=gen, dtype=torch.float64),
    }


def _levels(values, size, device):
    def cell(name):
        v = values[name]
        v = v.to(device) if isinstance(v, torch.Tensor) else v
        return as_level(
            v, device=device, batch=size[1], groups=size[2], samples=size[0] if name == "score_var" else None
        )

    following = values.get("next_var")
    return PvdLevels(
        *(cell(n) for n in ("sigma", "sigma_above", "zeta", "score_var")),
        None if following is None else cell("next_var"),
    )


def _wide(t):
    return t.cpu().double()


def _want(state, values, *, noise=None, **draw):
    """The definition in float64 on the same inputs, and the size of what each result rounds."""
    mean, anchor, sample, denoised, score = (_wide(t) for t in state)
    noise = None if noise is None else _wide(noise)
    new = reference.pvd_update(mean, anchor, sample, denoised, score, noise=noise, **values, **draw)
    quiet = {**values, "next_var": 0}
    # The sample enters with a minus sign twice: -|sample| adds every term's magnitude.
    size = reference.pvd_update(mean.abs(), anchor.abs(), -sample.abs(), denoised.abs(), score.abs(), **quiet)[0]
    return new, size


def _check(got, want, size, state, values, dtype, noise_size=None):
    """Roundings on the longest path: coefficient, differences, products, sums, L more sums, the mean over L, zeta."""
    count = state[2].shape[0]
    unit = UNIT[dtype]
    mean_bound = (10 + count) * unit * size
    s, a = values["sigma"], values["sigma_above"]
    var = values.get("next_var")
    var = reference.default_next_var(s, a) if var is None else var
    spread = torch.as_tensor(var, dtype=torch.float64).sqrt()
    spread = spread.reshape(*spread.shape, *(1,) * (3 - spread.ndim))
    noise_off = NORMAL[dtype] + 8 * unit if noise_size is None else 0.0
    noise_size = 6.0 if noise_size is None else noise_size
    sample_bound = mean_bound + unit * want[1].abs() + spread * (noise_off + 3 * unit * noise_size)
    for name, g, w, bound in zip(("mean", "sample"), got, want, (mean_bound, sample_bound), strict=True):
        assert g.dtype == dtype and g.shape == w.shape
        ratio = float(((_wide(g) - w).abs() / bound).max())
        print(f"{name} {tuple(g.shape)} {dtype}: worst error/bound {ratio:.3f}")
        assert ratio <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_drawn(size, dtype, device):
    state, values = _state(size, dtype, device), _level_values(size)
    draw = {"seed": -7, "step": 3, "stream": 2, "first_item": 5}
    flag = torch.full((1,), QUIET, dtype=torch.int32, device=device)
    got = pvd_update.run(*state, None, _levels(values, size, device), **draw, flag=flag)
    want, magnitude = _want(state, values, **draw)
    _check(got, want, magnitude, state, values, dtype)
    assert int(flag) == QUIET


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES[:5], ids=str)
def test_explicit_noise_and_given_variance(size, dtype, device):
    state, values = _state(size, dtype, device), _level_values(size)
    values["next_var"] = 0.5 + values["sigma"]
    noise = _state(size, dtype, device, seed=9)[2]
    got = pvd_update.run(*state, noise, _levels(values, size, device))
    want, magnitude = _want(state, values, noise=noise)
    _check(got, want, magnitude, state, values, dtype, noise_size=_wide(noise).abs())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_state_through_real_views(dtype, device):
    """The caller's way: view_as_real, E counts reals, complex_draw. Compared with the complex definition."""
    real = dtype.to_real()
    size = (2, 3, 2, 10)
    state, values = _state(size, real, device), _level_values(size)
    got = pvd_update.run(*state, None, _levels(values, size, device), seed=4, step=1, stream=1, complex_draw=True)
    as_complex = [torch.view_as_complex(t.reshape(*t.shape[:-1], 5, 2)) for t in state]
    wide = [t.cpu().to(torch.complex128) for t in as_complex]
    want = reference.pvd_update(*wide, **values, seed=4, step=1, stream=1)
    want = tuple(torch.view_as_real(w).flatten(-2) for w in want)
    _check(got, want, _want(state, values, seed=4)[1], state, values, real)


def test_no_draw_returns_the_mean(device):
    size = (2, 2, 1, 20)
    state, values = _state(size, torch.float32, device), _level_values(size)
    levels = _levels(values, size, device)
    drawn = pvd_update.run(*state, None, levels, seed=1)
    for following, seed, noise in ((None, None, None), (0, 1, None), (0, None, state[2])):
        mean, sample = pvd_update.run(*state, noise, levels._replace(next_var=following), seed=seed)
        assert torch.equal(mean, drawn[0])
        assert torch.equal(sample, mean.expand_as(sample))
    assert not torch.equal(drawn[1][0], drawn[0])


def test_numbers_tensors_and_strides_give_the_same_bits(device):
    size = (1, 3, 2, 9)
    state = _state(size, torch.float32, device)
    numbers = {"sigma": 0.5, "sigma_above": 0.75, "zeta": 0.125, "score_var": 2.0, "next_var": 0.25}
    plain = pvd_update.run(*state, None, _levels(numbers, size, device), seed=3, step=2)
    shapes = [(), (3,), (3, 1), (3, 2), (1, 2), (3, 2, 1)]
    for shape in shapes:
        for dtype in (torch.float32, torch.float64):
            full = {k: torch.full(shape, v, dtype=dtype) for k, v in numbers.items()}
            assert all(
                map(torch.equal, plain, pvd_update.run(*state, None, _levels(full, size, device), seed=3, step=2))
            )
    strided = {k: torch.full((2, 6), v).T[::2] for k, v in numbers.items()}
    assert strided["sigma"].stride() == (2, 6)
    assert all(map(torch.equal, plain, pvd_update.run(*state, None, _levels(strided, size, device), seed=3, step=2)))
    cells = {"seed": torch.tensor(3, device=device), "step": torch.tensor([2], device=device)}
    assert all(map(torch.equal, plain, pvd_update.run(*state, None, _levels(numbers, size, device), **cells)))


@pytest.mark.parametrize("size", [(1, 5, 1, 64), (2, 5, 2, 7), (1, 5, 1, 1030)], ids=str)
def test_a_split_batch_gives_the_same_bits(size, device):
    state, values = _state(size, torch.float32, device), _level_values(size)
    whole = pvd_update.run(*state, None, _levels(values, size, device), seed=8, first_item=100)
    for begin, end in ((0, 2), (2, 5)):
        part = [t[begin:end] for t in state[:2]] + [t[:, begin:end] for t in state[2:]]
        own = {k: v[:, begin:end] if k == "score_var" else v[begin:end] for k, v in values.items()}
        small = (size[0], end - begin, *size[2:])
        got = pvd_update.run(*part, None, _levels(own, small, device), seed=8, first_item=100 + begin)
        assert torch.equal(got[0], whole[0][begin:end]) and torch.equal(got[1], whole[1][:, begin:end])


@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("size", [(1, 4, 1, 64), (2, 4, 2, 7), (1, 4, 1, 1030)], ids=str)
def test_flag_names_the_lowest_item(size, kind, device):
    state, values = _state(size, torch.float32, device), _level_values(size)
    state[3][-1, 3, 0, 0] = math.nan
    state[4][0, 2, -1, -1] = math.inf
    flag = torch.full((1,), QUIET, dtype=kind, device=device)
    mean, _ = pvd_update.run(*state, None, _levels(values, size, device), seed=1, first_item=50, flag=flag)
    assert int(flag) == 2
    assert [bool(torch.isfinite(m).all()) for m in mean] == [True, True, False, False]
    noise = torch.zeros_like(state[2])
    noise[-1, 1, 0, -1] = -math.inf
    pvd_update.run(*state, noise, _levels(values, size, device), flag=flag)
    assert int(flag) == 1


def test_in_place_and_strided_inputs(device):
    size = (2, 3, 2, 10)
    state, values = _state(size, torch.float32, device), _level_values(size)
    levels = _levels(values, size, device)
    want = pvd_update.run(*state, None, levels, seed=2)
    strided = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in state]
    assert not strided[0].is_contiguous()
    assert all(map(torch.equal, want, pvd_update.run(*strided, None, levels, seed=2)))
    mean, sample = state[0].clone(), state[2].clone()
    got = pvd_update.run(mean, state[1], sample, *state[3:], None, levels, seed=2, out=(mean, sample))
    assert got[0] is mean and got[1] is sample
    assert torch.equal(mean, want[0]) and torch.equal(sample, want[1])


@pytest.mark.parametrize("size", [(1, 0, 1, 8), (1, 2, 1, 0), (0, 2, 1, 8)], ids=str)
def test_empty(size, device):
    state = _state(size, torch.float32, device)
    levels = _levels({"sigma": 1.0, "sigma_above": 2.0, "zeta": 0.1, "score_var": 1.0}, size, device)
    mean, sample = pvd_update.run(*state, None, levels, seed=0)
    assert torch.equal(mean, state[0]) and sample.shape == size


def test_wrong_arguments(device):
    size = (1, 2, 1, 8)
    state = _state(size, torch.float32, device)
    levels = _levels({"sigma": 1.0, "sigma_above": 2.0, "zeta": 0.1, "score_var": 1.0}, size, device)
    with pytest.raises(ValueError, match="anchor must be"):
        pvd_update.run(state[0], state[1][:1], *state[2:], None, levels, seed=0)
    with pytest.raises(ValueError, match=r"need mean \[B,G,E\]"):
        pvd_update.run(state[0], state[1], *(t[0] for t in state[2:]), None, levels, seed=0)
    with pytest.raises(ValueError, match="score must be"):
        pvd_update.run(*state[:4], state[4].double(), None, levels, seed=0)
    with pytest.raises(TypeError, match="flag must be"):
        pvd_update.run(*state, None, levels, seed=0, flag=torch.zeros(1, device=device))
    with pytest.raises(ValueError, match="zeta cannot vary over samples"):
        pvd_update.run(*state, None, levels._replace(zeta=(torch.ones(1, device=device), 1, 0, 0)), seed=0)
    with pytest.raises(ValueError, match="does not broadcast"):
        as_level(torch.ones(3, device=device), device=device, batch=2)
