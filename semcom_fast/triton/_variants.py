"""Launches that cover the kernels' compile-time variants: `warmup` runs them, tools/check_triton.py compiles them."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import (
    cdl_channels,
    dirichlet_responsibilities,
    elbo_reduce,
    philox_normal,
    pilot_posterior_step,
    power_normalise,
    pvd_calibrate,
    pvd_captured,
    pvd_channel_step,
    pvd_update,
    renoise,
    waterfill_equalise,
    waterfill_inject,
    waterfill_step,
    waterfill_step_authors,
)
from ._launch import PvdLevels, as_level
from ._pvd_table import Prior, PvdTable

Call = tuple[str, Callable[[], object]]
_ROWS = (64, 1536, 8192, 10)  # reals of a water-filling state: one per tiling, the last without wide accesses
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


def _channel_step(size: tuple[int, ...], dtype: torch.dtype, device: torch.device, **switches: Any) -> None:
    """One launch of `pvd_channel_step` on blocks (U, K, Nr, Nt, T); number levels, as far as the loop has numbers."""
    u, k, nr, nt, t = size
    ones = functools.partial(torch.ones, dtype=dtype, device=device)
    state, x, y = ones(2, u, k, nr, nt, 2), ones(2, u, k, nt, t, 2), ones(2, k, nr, t, 2)
    probe, mode = x if switches.pop("probe", True) else None, switches.pop("mode", "draw")
    cell, flag = (torch.zeros(1, dtype=kind, device=device) for kind in (torch.int64, torch.int32))
    level = (torch.ones(2, dtype=torch.float64, device=device), 0, 1, 0)
    item = (ones(2), 0, 1, 0)
    levels = pvd_channel_step.ChannelLevels(level, level, 0.1, item, None if mode == "noise" else level, 1.0)
    if switches.pop("numbers", False):
        levels = pvd_channel_step.ChannelLevels(0.5, 0.7, 0.1, item, 0.2, 1.0)
    pvd_channel_step.run(
        y, x, probe, state, state, state, state if mode == "noise" else None, levels,
        seed=cell if mode == "draw" else None, step=cell, flag=flag,
        out=(state.clone(), state.clone(), x.clone(), ones(2), ones(2 if probe is not None else 0, u), ones(2)),
    )  # fmt: skip


_BLOCKS = (
    (1, 8, 4, 1, 8),
    (4, 12, 4, 1, 24),
    (1, 8, 8, 2, 16),
    (1, 2, 64, 8, 24),
    (1, 2, 128, 16, 24),
    (2, 3, 3, 3, 5),
)


def _channel_steps(dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
    call = functools.partial(_channel_step, dtype=dtype, device=device)
    for size in _BLOCKS:
        yield f"pvd_channel_step {'x'.join(map(str, size))}", functools.partial(call, size)
    yield "pvd_channel_step 1x8x8x2x16 no probe", functools.partial(call, _BLOCKS[2], probe=False)
    yield "pvd_channel_step 1x8x8x2x16 numbers", functools.partial(call, _BLOCKS[2], numbers=True)
    for mode in ("noise", "none"):
        yield f"pvd_channel_step 1x8x8x2x16 {mode}", functools.partial(call, _BLOCKS[2], mode=mode)


def _captured(dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
    """The launches of PVD's captured steps, in the form the loop has them."""
    wide = functools.partial(torch.ones, dtype=torch.float64, device=device)
    counter, cell = (torch.zeros(n, dtype=torch.int64, device=device) for n in ((2,), ()))
    table, prior = PvdTable(wide(3, 7, 1), counter), Prior(wide(1), wide(3, 1))
    per_user, draw = PvdTable(wide(3, 7, 2), counter), {"seed": cell, "first_item": cell}
    one = (wide(()), 0, 0, 0)
    for shape in _STATES:
        state = torch.ones(shape, dtype=dtype, device=device)
        own = per_user if shape[1] == 2 else table
        tag, told = "x".join(map(str, shape)), state.new_ones(own.levels)
        var = state[:, :, 0], 0, state.stride(0), state.stride(1)
        yield (
            f"pvd_update probe {tag}",
            functools.partial(pvd_update.run_probe_table, state, var, state.clone(), own, stream=5, **draw),
        )
        for samples in (1, 2):
            many = state.expand(samples, *shape).contiguous()
            divisor = (wide(samples, shape[0]), shape[0], 1, 0)
            call = functools.partial(pvd_update.run_table, state, state, many)
            kinds: dict[str, tuple] = {
                "last": (many, {"stream": 2, "level_out": told}), "white": (None, {"prior": prior, "complex_draw": True}),
                "channel": (many, {"complex_draw": True}),
            }  # fmt: skip
            for kind, (denoised, switches) in kinds.items():
                yield (
                    f"pvd_update {kind}, table {tag}, L={samples}",
                    functools.partial(call, denoised, many, one, divisor, own, **draw | {"stream": 1} | switches),
                )
    for size in _BLOCKS:
        yield from _captured_blocks(size, dtype, table, prior, draw)


def _captured_blocks(
    size: tuple[int, ...], dtype: torch.dtype, table: PvdTable, prior: Prior, draw: dict[str, Any]
) -> Iterator[Call]:
    """The channel's part of a captured step on blocks (U, K, Nr, Nt, T)."""
    u, k, nr, nt, t = size
    ones = functools.partial(torch.ones, dtype=dtype, device=table.table.device)
    state, x, y, tag = ones(2, u, k, nr, nt, 2), ones(2, u, k, nt, t, 2), ones(2, k, nr, t, 2), "x".join(map(str, size))
    scratch = ones(2 * k, 2 + u, dtype=torch.float64)
    found = pvd_captured.Calibration(prior.var, 1.0, nr * k * t, ones(2), ones(2), prior.var.new_ones(2, 2), scratch)
    score = functools.partial(pvd_captured.run_score, (y, x, x), state, state.clone(), x.clone())
    yield f"pvd_captured score {tag}", functools.partial(score, prior, table, found)
    yield f"pvd_captured score, denoised {tag}", functools.partial(score, ones(2, u), table, found)
    lagged = found._replace(lagged=True)
    channel = (state, state.clone(), state.clone())
    step = functools.partial(pvd_captured.run_step, (y, x, x), channel, x.clone(), 0.1)
    yield f"pvd_captured step {tag}", functools.partial(step, prior, table, lagged, **draw)
    if size == _BLOCKS[2]:
        moment = functools.partial(pvd_captured.run_score, (y, x, None), state, state.clone(), x.clone())
        yield f"pvd_captured score, moment {tag}", functools.partial(moment, prior, table, found)


def _flat(n: int, dtype: torch.dtype, device: torch.device, **switches: Any) -> object:
    """One launch of `waterfill_step` (or `waterfill_inject`, `waterfill_step_authors`) on a state of n reals."""
    op, per = switches.pop("op", "step"), switches.pop("per", "symbol")
    g, flag = torch.ones((2, n), dtype=dtype, device=device), torch.zeros(1, dtype=torch.int32, device=device)
    x0 = g.to(switches.pop("net", dtype))
    d = torch.ones((2, {"symbol": n // 2, "real": n, "item": 1}[per]), dtype=dtype, device=device)
    level, cell = torch.ones(2, dtype=torch.float64, device=device), torch.zeros((), dtype=torch.int64, device=device)
    optional: dict[str, Any] = {"x0_uncond": x0, "guidance": level, "x0_prev": g, "ratio": level, "noise": g}
    given = {name: optional[name] for name in switches.pop("give", ())}
    draw: dict[str, Any] = {} if "noise" in given or switches.pop("quiet", False) else {"seed": cell}
    if op == "inject":
        return waterfill_inject.run(g, d, level, **given, **draw, flag=flag)
    if switches.pop("table", False):
        table, counter = torch.ones((3, 2), dtype=torch.float64, device=device), cell.new_zeros(2)
        given = {k: table if k in ("guidance", "ratio") else v for k, v in given.items()}
        found: dict[str, Any] = {"flag": flag, "level_out": level}
        if op == "authors":
            return waterfill_step_authors.run_table(g, g, d, x0, table, counter, **switches, **draw, **found)
        kept: dict[str, Any] = {"x0_out": g} if "x0_prev" in given else {}
        return waterfill_step.run_table(g, x0, g, d, table, counter, **given, **draw, **found, **kept)
    if op == "authors":
        return waterfill_step_authors.run(g, g, d, x0, level, level, **switches, **draw, flag=flag)
    return waterfill_step.run(g, x0, g, d, level, level, **given, **draw, flag=flag)


def _waterfill(dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
    call = functools.partial(_flat, dtype=dtype, device=device)
    bf16: dict[str, Any] = {"net": torch.bfloat16} if dtype is torch.float32 else {}
    guided = ("x0_uncond", "guidance")
    for n in _ROWS:
        yield f"waterfill_inject {n}", functools.partial(call, n, op="inject")
        yield f"waterfill_step {n}", functools.partial(call, n)
        yield f"waterfill_step {n} guided, table", functools.partial(call, n, give=guided, table=True)
        yield f"waterfill_step_authors {n}", functools.partial(call, n, op="authors")
    yield "waterfill_step 1536 guided, bf16 x0, table", functools.partial(call, 1536, give=guided, table=True, **bf16)
    yield "waterfill_step 1536 no draw", functools.partial(call, 1536, quiet=True)
    yield "waterfill_step 1536 explicit noise", functools.partial(call, 1536, give=("noise",))
    for per in ("real", "item"):
        yield f"waterfill_step 1536 d per {per}", functools.partial(call, 1536, per=per)
    second = (*guided, "x0_prev", "ratio")
    yield (
        "waterfill_step 1536 2M, d per item, table",
        functools.partial(call, 1536, give=second, per="item", table=True),
    )
    for n in (1024, 4096):
        yield f"waterfill_step_authors {n} table", functools.partial(call, n, op="authors", table=True)
    other: dict[str, Any] = {"op": "authors", "topup": "variance", "base": "common", "renorm": False}
    yield "waterfill_step_authors 1536 variance, common", functools.partial(call, 1536, **other)
    wide = torch.complex64 if dtype is torch.float32 else torch.complex128
    for symbols, dense in ((32, True), (512, True), (512, False), (5, False)):
        y = torch.ones((2, 3, symbols), dtype=wide, device=device)
        h = y if dense else y[:, :, :1].expand_as(y)
        name = f"waterfill_equalise {symbols}" + ("" if dense else ", one channel per row")
        yield name, functools.partial(waterfill_equalise.run, y, h, 0.1)


_CHANNELS = ((16, 64, 38), (4, 16, 8), (3, 7, 5), (16, 100, 64))  # Nr, Nt, r: the paper's, small, odd, several tiles


def _mixture(size: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
    """The kernels of the expert mixture at one size; levels in device tensors as the loop passes them."""
    nr, nt, rank = size
    ones = functools.partial(torch.ones, dtype=dtype, device=device)
    reals = functools.partial(torch.ones, dtype=dtype.to_real(), device=device)
    flag, cell = (torch.zeros(n, dtype=torch.int64, device=device) for n in ((1,), ()))
    items, bars = (torch.full((n,), 0.5, dtype=torch.float64, device=device) for n in (2, 8))
    steps = torch.ones(8, dtype=torch.int64, device=device)
    h, pilots = ones(2, nr, nt), (ones(2, nr, rank), ones(nt, rank), reals(rank))
    tag, counter = "x".join(map(str, size)), cell.new_zeros(2)
    experts = (h, ones(2, 4, nr, nt), reals(2, 4), *pilots, items)
    levels = (bars[0], bars[0], items)
    for lik, x0 in (("dmps", False), ("x0", True)):
        step = functools.partial(pilot_posterior_step.run, *experts, *levels, x0, flag=flag)
        yield f"pilot_posterior_step {tag} {lik}", step
    numbers = functools.partial(pilot_posterior_step.run, *experts[:6], 0.1, 0.5, 0.1, 1.0, True)
    yield f"pilot_posterior_step {tag} x0, numbers", numbers
    captured = functools.partial(pilot_posterior_step.run_table, *experts, bars, bars, counter, items, True, flag=flag)
    yield f"pilot_posterior_step {tag} x0, table", captured
    eps = ones(2, 8, 4, nr, nt)
    draws: dict[str, dict[str, Any]] = {"draw": {"seed": cell}, "explicit noise": {"noise": eps[:, :, 0].contiguous()}}
    for name, draw in draws.items():
        yield f"renoise {tag} {name}", functools.partial(renoise.run, h, steps, bars, **draw, flag=flag)
        evidence = functools.partial(elbo_reduce.run, eps, h, steps, bars, bars, *pilots, items, 0, **draw, flag=flag)
        yield f"elbo_reduce {tag} {name}", evidence
    rays = reals(2, 460)
    yield f"cdl_channels {nr}x{nt}", functools.partial(cdl_channels.run, ones(2, 460), rays, rays, nr, nt, flag=flag)


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
        yield from _channel_steps(dtype, device)
        yield from _captured(dtype, device)
        for n in (24, 300, 1536, 9216, 33):
            z = torch.ones((2, n), dtype=dtype, device=device)
            flag = torch.zeros(1, dtype=torch.int32, device=device)
            yield f"power_normalise {n}", functools.partial(power_normalise.run, z, 1.0)
            yield f"power_normalise {n}, flag", functools.partial(power_normalise.run, z, 1.0, flag=flag)
            yield f"power_normalise vjp {n}", functools.partial(power_normalise.vjp, z, z[:, 0].contiguous(), z, 1.0)
        pair = torch.ones((2, 2), dtype=dtype, device=device)
        one = torch.ones(2, dtype=dtype, device=device)
        yield from _waterfill(dtype, device)
        for size in _CHANNELS:
            yield from _mixture(size, dtype.to_complex(), device)
        for experts in (4, 300):
            row, flag = (
                torch.ones((5, experts), dtype=dtype, device=device),
                torch.zeros(1, dtype=torch.int64, device=device),
            )
            rule = functools.partial(dirichlet_responsibilities.run, row, row, row, row, flag=flag)
            yield f"dirichlet_responsibilities {experts}", rule
        yield "pvd_calibrate", functools.partial(pvd_calibrate.run, 1.0, pair, pair, one, 1.0, 4, 96)
