"""Launches that cover the kernels' compile-time variants: `warmup` runs them, tools/check_triton.py compiles them."""

import functools
from collections.abc import Callable, Iterator

import torch

from . import philox_normal, power_normalise, pvd_calibrate, pvd_update
from ._launch import PvdLevels, as_level

Call = tuple[str, Callable[[], object]]
_STATES = ((2, 1, 64), (2, 1, 1536), (2, 1, 8192), (2, 2, 10), (2, 2, 7))  # [B,G,E]: one per tiling


def _update(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, *, samples: int = 1, mode: str = "draw",
    next_var: float | None = None, cells: bool = False, flag: bool = True, complex_draw: bool = False,
    level_dtype: torch.dtype = torch.float64,
) -> object:  # fmt: skip
    state = torch.ones(shape, dtype=dtype, device=device)
    sample = state.expand(samples, *shape).contiguous()

    def level(value):
        return as_level(torch.full((), value, dtype=level_dtype, device=device), device=device, batch=shape[0])

    following = 0 if mode == "none" else None if next_var is None else level(next_var)
    levels = PvdLevels(level(1.0), level(2.0), level(0.1), level(1.0), following)
    cell = torch.zeros((), dtype=torch.int64, device=device)
    return pvd_update.run(
        state, state, sample, sample, sample, sample if mode == "noise" else None, levels,
        seed=cell if cells else 1, step=cell if cells else 1, complex_draw=complex_draw,
        flag=torch.full((1,), 2**31 - 1, dtype=torch.int32, device=device) if flag else None,
    )  # fmt: skip


def _updates(dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
    call = functools.partial(_update, dtype=dtype, device=device)
    for shape in _STATES:
        tag = "x".join(map(str, shape))
        yield f"pvd_update {tag} draw", functools.partial(call, shape)
        yield f"pvd_update {tag} draw, L=2", functools.partial(call, shape, samples=2)
    base = _STATES[1]
    yield "pvd_update draw, complex, no flag", functools.partial(call, base, complex_draw=True, flag=False)
    yield "pvd_update draw, given next_var", functools.partial(call, base, next_var=0.5)
    yield "pvd_update draw, seed and step cells", functools.partial(call, base, cells=True, next_var=0.5)
    yield "pvd_update draw, float32 levels", functools.partial(call, base, level_dtype=torch.float32)
    yield "pvd_update explicit noise", functools.partial(call, base, mode="noise")
    yield "pvd_update explicit noise, L=2", functools.partial(call, base, mode="noise", samples=2)
    yield "pvd_update no draw", functools.partial(call, base, mode="none")
    yield "pvd_update no draw, L=2", functools.partial(call, base, mode="none", samples=2)


def calls(device: torch.device, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)) -> Iterator[Call]:
    """(description, thunk that launches one variant on `device`)."""
    for dtype in dtypes:
        for reals in (64, 1536, 8192, 10, 7):
            draw = functools.partial(philox_normal.run, 2, reals, dtype=dtype, device=device)
            yield f"philox_normal {reals}", functools.partial(draw, 1)
        cell = torch.zeros((), dtype=torch.int64, device=device)
        counted = functools.partial(philox_normal.run, 2, 1536, cell, cell, dtype=dtype, device=device)
        yield "philox_normal 1536, cells", counted
        yield from _updates(dtype, device)
        for n in (24, 300, 1536, 9216, 33):
            z = torch.ones((2, n), dtype=dtype, device=device)
            flag = torch.zeros(1, dtype=torch.int32, device=device)
            yield f"power_normalise {n}", functools.partial(power_normalise.run, z, 1.0)
            yield f"power_normalise {n}, flag", functools.partial(power_normalise.run, z, 1.0, flag=flag)
            yield f"power_normalise vjp {n}", functools.partial(power_normalise.vjp, z, z[:, 0].contiguous(), z, 1.0)
        pair = torch.ones((2, 2), dtype=dtype, device=device)
        one = torch.ones(2, dtype=dtype, device=device)
        yield "pvd_calibrate", functools.partial(pvd_calibrate.run, 1.0, pair, pair, one, 1.0, 4, 96)
