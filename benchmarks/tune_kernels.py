"""What `bench tune` sweeps: for each Triton kernel with a choice of launch, its rows, its candidates, and how far a
result may move with the choice."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from semcom_fast.triton import (
    cdl_channels,
    elbo_reduce,
    philox_normal,
    pilot_posterior_step,
    power_normalise,
    pvd_channel_step,
    pvd_update,
    renoise,
    waterfill_equalise,
    waterfill_inject,
    waterfill_step,
    waterfill_step_authors,
)
from semcom_fast.triton._launch import PvdLevels, as_level
from semcom_fast.triton._tuned import Choice

Launch = Callable[[], Any]
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
WARPS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Kernel:
    """`make(length, items, dtype, device)` lays out a launch on `items` rows of `length` and returns it.

    per_thread: how much of a block one thread may get. growth: how far a result may move with the choice, in unit
    roundoffs of its largest entry; 0 where all choices give the same bits.
    """

    op: str  # its name in the table
    stem: str
    make: Callable[[int, int, torch.dtype, torch.device], Launch]
    lengths: tuple[int, ...]  # reals of a row, or antennas; the first ones are those of --quick
    bytes_per_real: float  # of the state's dtype, read and written, in units of its size
    per_thread: tuple[int, int] = (1, 8)
    least_block: int = 32
    growth: float = 0
    square: int = 1  # rows of a matrix of `length` columns

    def items(self, length: int, dtype: torch.dtype, total: int) -> int:
        """Rows whose traffic is about `total` bytes."""
        return max(2, int(total / (length * self.square * self.bytes_per_real * dtype.itemsize)))

    def candidates(self, default: Choice, quick: bool) -> list[Choice]:
        """The default first; `quick` looks at its neighbours only."""
        found = [default]
        factors = (0.5, 1, 2) if quick else (0.25, 0.5, 1, 2, 4)
        blocks = [0] if not default.block else [b for f in factors if (b := int(default.block * f)) >= self.least_block]
        stages = (default.num_stages,) if default.num_stages is None or quick else (1, 2, 3)
        for block in blocks:
            for warps in WARPS:
                share = block / (32 * warps)
                far = quick and max(warps / default.num_warps, default.num_warps / warps) > 2
                if far or (block and not self.per_thread[0] <= share <= self.per_thread[1]):
                    continue
                found += [c for s in stages if (c := Choice(block, warps, s)) not in found]
        return found


def _normals(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, device=device)


def _philox(n: int, items: int, dtype: torch.dtype, device: torch.device) -> Launch:
    return functools.partial(philox_normal.run, items, n, 1, dtype=dtype, device=device)


def _update(n: int, items: int, dtype: torch.dtype, device: torch.device) -> Launch:
    state = [_normals(items, 1, n, dtype=dtype, device=device) for _ in range(5)]
    samples = [t.unsqueeze(0) for t in state[2:]]
    levels = PvdLevels(*(as_level(v, device=device, batch=items) for v in (0.5, 0.7, 0.1, 0.9)))
    flag = torch.full((1,), 2**31 - 1, dtype=torch.int32, device=device)
    out = (torch.empty_like(state[0]), torch.empty_like(samples[0]))
    return functools.partial(pvd_update.run, *state[:2], *samples, None, levels, seed=1, step=1, flag=flag, out=out)


def _fading(n: int, items: int, dtype: torch.dtype, device: torch.device) -> tuple:
    g, x0, f, other = (_normals(items, n, dtype=dtype, device=device) for _ in range(4))
    d = torch.rand(items, n // 2, dtype=dtype, device=device) * 0.9 + 0.05
    return g, x0, f, other, d, torch.zeros(1, dtype=torch.int32, device=device)


def _inject(n: int, items: int, dtype: torch.dtype, device: torch.device) -> Launch:
    _, _, f, _, d, flag = _fading(n, items, dtype, device)
    return functools.partial(waterfill_inject.run, f, d, 0.5, seed=1, flag=flag)


def _step(n: int, items: int, dtype: torch.dtype, device: torch.device) -> Launch:
    g, x0, f, other, d, flag = _fading(n, items, dtype, device)
    options = {"x0_uncond": other, "guidance": 2.0, "seed": 1, "step": 3, "flag": flag}
    return functools.partial(waterfill_step.run, g, x0, f, d, 0.3, 0.25, **options)


def _authors(n: int, items: int, dtype: torch.dtype, device: torch.device) -> Launch:
    g, x0, f, _, d, flag = _fading(n, items, dtype, device)
    return functools.partial(waterfill_step_authors.run, f, g, d, x0, 0.3, 0.25, seed=1, step=3, flag=flag)


def _equalise(n: int, items: int, dtype: torch.dtype, device: torch.device) -> Launch:
    y, h = (_normals(items, 1, n // 2, dtype=dtype.to_complex(), device=device) for _ in range(2))
    return functools.partial(waterfill_equalise.run, y, h, 0.3)


def _normalise(n: int, items: int, dtype: torch.dtype, device: torch.device) -> Launch:
    return functools.partial(power_normalise.run, _normals(items, n, dtype=dtype, device=device), 1.0)


ROWS, STEPS = 16, (30, 40, 50, 60)  # antennas at the receiver, and steps of the evidence


def _tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(STEPS, device=device), torch.tensor([0.7, 0.6, 0.5, 0.4], dtype=torch.float64, device=device)


def _mixture(nt: int, items: int, dtype: torch.dtype, device: torch.device) -> tuple:
    """h, the pilots' yv, u and s, and a maker of expert noise."""
    rank = min(38, nt)
    draw = functools.partial(_normals, dtype=dtype.to_complex(), device=device)
    s = torch.rand(rank, dtype=dtype, device=device) + 0.5
    return draw(items, ROWS, nt), (draw(items, ROWS, rank), draw(nt, rank), s), draw


def _renoise(nt: int, items: int, dtype: torch.dtype, device: torch.device) -> Launch:
    h, _, _ = _mixture(nt, items, dtype, device)
    return functools.partial(renoise.run, h, *_tables(device), seed=1)


def _posterior(nt: int, items: int, dtype: torch.dtype, device: torch.device) -> Launch:
    h, pilots, draw = _mixture(nt, items, dtype, device)
    weights = torch.rand(items, 4, dtype=dtype, device=device)
    return functools.partial(
        pilot_posterior_step.run, h, draw(items, 4, ROWS, nt), weights, *pilots, 0.3, 0.42, 0.05, 1.3, True
    )


def _evidence(nt: int, items: int, dtype: torch.dtype, device: torch.device) -> Launch:
    h, pilots, draw = _mixture(nt, items, dtype, device)
    eps = draw(items, len(STEPS), 4, ROWS, nt)
    steps, bar = _tables(device)
    return functools.partial(elbo_reduce.run, eps, h, steps, bar, 1 - bar, *pilots, 0.3, 1, seed=1)


def _rays(nt: int, items: int, dtype: torch.dtype, device: torch.device) -> Launch:
    gains = _normals(items, 460, dtype=dtype.to_complex(), device=device)
    rx, tx = (torch.rand(items, 460, dtype=dtype, device=device) - 0.5 for _ in range(2))
    return functools.partial(cdl_channels.run, gains, rx, tx, ROWS, nt)


def _channel(nt: int, items: int, dtype: torch.dtype, device: torch.device) -> Launch:
    draw = functools.partial(_normals, dtype=dtype, device=device)
    blocks, slots, rows = 12, 24, 4 * nt
    mean, anchor, sample = (draw(items, 1, blocks, rows, nt, 2) for _ in range(3))
    x, probe = (draw(items, 1, blocks, nt, slots, 2) for _ in range(2))
    y = draw(items, blocks, rows, slots, 2)
    levels = pvd_channel_step.ChannelLevels(0.5, 0.7, 0.1, 0.9, 0.2, 1.0)
    out = tuple(torch.empty_like(t) for t in (mean, sample, x))
    sums = [torch.empty(items, *tail, dtype=dtype, device=device) for tail in ((), (1,), ())]
    run = functools.partial(
        pvd_channel_step.run, y, x, probe, mean, anchor, sample, None, levels, seed=1, step=1, out=(*out, *sums)
    )

    def launch() -> tuple:
        run()
        return (*out, *sums)

    return launch


_LENGTHS = (4096, 64, 16384, 256, 512, 1024, 2048, 8192)
_LINES = (64, 16, 128)  # antennas at the transmitter
KERNELS: Sequence[Kernel] = (
    Kernel("philox_normal", "philox_normal", _philox, _LENGTHS, 1),
    Kernel("pvd_update", "pvd_update", _update, _LENGTHS, 7),
    Kernel("waterfill_inject", "waterfill_inject", _inject, _LENGTHS, 2.5),
    Kernel("waterfill_step", "waterfill_step", _step, _LENGTHS, 5.5),
    # a sum of squares in float64, rounded once with the factor
    Kernel("waterfill_step_authors", "waterfill_step_authors", _authors, _LENGTHS, 5.5, growth=4),
    Kernel("waterfill_equalise", "waterfill_equalise", _equalise, _LENGTHS, 3.5),
    Kernel("power_normalise", "power_normalise", _normalise, _LENGTHS, 2, (1, 32), 128, growth=4),
    Kernel("renoise", "renoise", _renoise, _LINES, 10, square=ROWS),
    # products of real planes: a choice may change the order of their sums, of up to 4 * 64 terms
    Kernel("pilot_posterior_step", "pilot_posterior_step", _posterior, _LINES, 12, growth=512, square=ROWS),
    Kernel("elbo_reduce", "elbo_reduce", _evidence, _LINES, 34, growth=512, square=ROWS),
    Kernel("elbo_reduce.finish", "elbo_reduce", _evidence, _LINES, 34, growth=512, square=ROWS),
    Kernel("cdl_channels", "cdl_channels", _rays, _LINES, 60, (0, 2), 16, growth=4096, square=ROWS),
    Kernel("pvd_channel_step", "pvd_channel_step", _channel, (1, 4, 8), 8 * 12 * 24, growth=512),
)
STEMS = tuple(dict.fromkeys(k.stem for k in KERNELS))
