"""pvd_update's short calls: Python floats take a shorter way to the kernel than tensors, with the same bits and errors."""

import math

import pytest
import torch
from sf_testing import draw, same_bits

import semcom_fast as sf

LEVELS = {"sigma": 1.0, "sigma_above": 2.0, "zeta": 0.5, "score_var": 3.0}
DRAW = {"seed": 7, "step": 2, "stream": 1}


def _state(shape=(5, 2, 9), dtype=torch.float32):
    return [draw(*shape, seed=i, dtype=dtype) for i in range(5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("next_var", [None, 0.0, 0.25])
def test_kinds_of_levels_agree(dtype, next_var):
    """Floats, integers, 0-d tensors and one entry per item are the same levels."""
    state = _state(dtype=dtype)
    want = sf.pvd_update(*state, **LEVELS, next_var=next_var, **DRAW)
    exact = {k: torch.tensor(v, dtype=torch.float64) for k, v in LEVELS.items()}
    kinds = [
        {k: int(v) if v == int(v) else v for k, v in LEVELS.items()},
        exact,
        {k: v.expand(5) for k, v in exact.items()},
        LEVELS | {"score_var": exact["score_var"].expand(5, 2)},
    ]
    for levels in kinds:
        for a, b in zip(sf.pvd_update(*state, **levels, next_var=next_var, **DRAW), want, strict=True):
            same_bits(a, b, str(levels))


@pytest.mark.parametrize("name", ["sigma", "sigma_above", "score_var"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_floats_out_of_range(name, value):
    """The argument and its value are named."""
    with pytest.raises(ValueError, match=f"^pvd_update: {name} must be positive and finite, got {value}$"):
        sf.pvd_update(*_state(), **(LEVELS | {name: value}), **DRAW)


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_any_operand_may_be_a_view(at, dtype):
    """One strided, lazily negated or conjugated operand beside four plain ones."""
    state = _state(dtype=dtype)
    want = sf.pvd_update(*state, **LEVELS, **DRAW)
    t = state[at]
    views = [torch.stack([t, t], -1)[..., 0], torch._neg_view(-t), t.conj_physical().conj()]
    for view in views[: 3 if dtype.is_complex else 2]:
        for a, b in zip(sf.pvd_update(*state[:at], view, *state[at + 1 :], **LEVELS, **DRAW), want, strict=True):
            same_bits(a, b, f"operand {at}")


@pytest.mark.parametrize("item", [0, 4])
def test_non_finite_item_is_named(item):
    """By its index on axis 0."""
    state = _state()
    state[3][item, 1, 3] = math.nan
    with pytest.raises(ValueError, match=f"^pvd_update: item {item} is not finite"):
        sf.pvd_update(*state, **LEVELS, **DRAW)


@pytest.mark.parametrize("shape", [(), (6,), (0, 3)])
def test_shapes_without_groups(shape):
    """A single number, a vector and an empty state."""
    mean, sample = sf.pvd_update(*_state(shape), **LEVELS, **DRAW)
    levels = {k: torch.tensor(v, dtype=torch.float64) for k, v in LEVELS.items()}
    for a, b in zip((mean, sample), sf.pvd_update(*_state(shape), **levels, **DRAW), strict=True):
        assert a.shape == shape
        same_bits(a, b)
