"""How one row of the grid is measured: operands past the last cache, a first look at everybody, then paired rounds.

A sample is a batch of calls between two readings of the clock, on a GPU between two synchronisations, so that launching
counts like computing. Work goes where it decides something: formulations that were 3x slower than the best at the batch
before or with one thread are left out (2x and 1.5x where a call took 1 and 5 ms, all but the best where ours was 4x
faster still), and a long call that its first look or two decide is not repeated.
"""

import contextlib
import ctypes
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from semcom_fast import _native

from . import crossover, timing
from .grid_ops import BATCHES, BY_NAME, DTYPES, OWN_PRODUCT, Operand, Point, kernel_name

MEBI = 1 << 20
LARGEST = 256 * MEBI  # bytes of a row
LINE = 16  # entries from one operand to the next: whole cache lines
LONG = 1e-3  # seconds of a call whose repetition costs more than it tells
Call = Callable[..., object]


@dataclass
class GridRow:
    """Medians in microseconds; `rounds` paired rounds stand behind them."""

    point: Point
    kernel: str
    ours_us: float
    best_torch: str
    torch_us: float
    ratio: float
    rounds: int

    @property
    def passes(self) -> bool:
        return self.point.op == OWN_PRODUCT or crossover.obeys(self.ours_us, self.torch_us, self.ratio)

    @property
    def clear(self) -> bool:
        """Passes, and not narrowly."""
        return self.point.op == OWN_PRODUCT or crossover.obeys(1.1 * self.ours_us, self.torch_us, self.ratio / 1.1)

    def line(self) -> dict[str, object]:
        own = {"kernel": self.kernel, "best_torch": self.best_torch, "rounds": self.rounds}
        numbers = {"ours_us": f"{self.ours_us:.4g}", "torch_us": f"{self.torch_us:.4g}", "ratio": f"{self.ratio:.3g}"}
        return {**asdict(self.point), **own, **numbers}


class Arena:
    """Normal numbers in memory past the last cache, handed out in turn: no set is warm when it comes round again."""

    def __init__(self, dtype: torch.dtype, size: int, device: str) -> None:
        block = torch.randn(MEBI, dtype=dtype, generator=torch.Generator().manual_seed(0)).to(device)
        self.values = block.repeat(max(1, size // (MEBI * dtype.itemsize)))
        self.at = 0

    def take(self, operands: Sequence[Operand], adjoint: bool, count: int = 1) -> list[tuple[Tensor, ...]]:
        """`count` sets of operands that nobody has read since the arena was last gone through; where it is too small for
        so many, those that fit come round again, each with nearly a whole arena between its turns."""
        columns = []
        for shape, flips in operands:
            flip = adjoint and flips
            stored = (*shape[:-2], shape[-1], shape[-2]) if flip else shape
            strides = [math.prod(stored[i + 1 :]) for i in range(len(stored))]
            pitch = -(-math.prod(shape) // LINE) * LINE
            fit = max(1, min(count, self.values.numel() // pitch))
            if self.at + fit * pitch > self.values.numel():
                self.at = 0
            block = self.values.as_strided((fit, *stored), (pitch, *strides), self.at)
            self.at += fit * pitch
            views = (block.mH if flip else block).unbind(0)
            columns.append([views[i % fit] for i in range(count)])
        return list(zip(*columns, strict=True))


def keep_freed_memory(size: int = 1 << 30) -> None:
    """Have glibc hand freed memory out again whatever its size, and touch this much of it once.

    By default a tensor of more than 32 MiB is mapped anew, and its pages are zeroed by the kernel at first touch, in
    every call: that took 40 % of the time of the largest rows, the same for both sides, and was no part of an op.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_max = -1, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)
    torch.zeros(size, dtype=torch.uint8)


class Bench:
    """Measures points; remembers how the formulations compared."""

    def __init__(self, clock: str) -> None:
        self.clock = {"wall": time.perf_counter, "cpu": time.thread_time}[clock]
        self.cuda = timing.device != "cpu"
        self.arenas: dict[torch.dtype, Arena] = {}  # a GPU has room for one a dtype, and its rows take turns
        self.level = "cpu " + _native.info().get("cpu level running", "none")
        if self.cuda:
            self.level = "cuda sm_{}{}".format(*torch.cuda.get_device_capability())
        self.seen: dict[Point, dict[str, float]] = {}  # seconds of each side that was looked at

    def _arena(self, dtype: torch.dtype) -> Arena:
        if dtype not in self.arenas:
            if not self.cuda:
                if not self.arenas:
                    keep_freed_memory()
                self.arenas.clear()
            self.arenas[dtype] = Arena(dtype, max(4 * timing.last_cache_bytes(), 2 * LARGEST), timing.device)
        return self.arenas[dtype]

    def _sampler(self, p: Point) -> Callable[[Call, int], float]:
        """Seconds per call of a function over `count` calls on fresh operands."""
        arena, operands = self._arena(DTYPES[p.dtype]), BY_NAME[p.op].operands(p.batch, p.nr, p.nt, p.t)

        def sample(fn: Call, count: int) -> float:
            sets = arena.take(operands, p.layout == "mH", count)
            timing.synchronise()
            start = self.clock()
            for s in sets:
                fn(*s)
            timing.synchronise()
            return (self.clock() - start) / count

        return sample

    def _candidates(self, p: Point) -> list[str] | None:
        """The formulations near the best at the batch before, or with one thread; None where neither was measured."""
        earlier = [replace(p, batch=b) for b in reversed(BATCHES) if b < p.batch]
        for q in (p, *earlier, replace(p, threads=1)):
            if q in self.seen:
                times = {n: t for n, t in self.seen[q].items() if n != "ours"}
                best = min(times.values())
                factor = 3.0 if best < LONG or q.threads != p.threads else 2.0 if best < 5 * LONG else 1.5
                if q.batch < p.batch and best >= max(5 * LONG, 4 * self.seen[q]["ours"]):
                    factor = 1.0  # whoever wins does not decide the row
                return [n for n, t in times.items() if t <= factor * best + (20e-6 if best < LONG else 0)]
        return None

    def measure(self, p: Point, careful: bool = False) -> GridRow:
        """One row: looks, and the rounds that they leave necessary."""
        known = self._candidates(p)
        names = list(BY_NAME[p.op].peers) if known is None else known
        sides: dict[str, Call] = {"ours": BY_NAME[p.op].ours} | {n: BY_NAME[p.op].peers[n] for n in names}
        sample = self._sampler(p)
        first = {n: self._look(sample, fn) for n, fn in sides.items()}
        best = min(first[n] for n in names)
        if known and not careful and not self.cuda and best >= max(10 * LONG, 2.5 * first["ours"]):
            self.seen[p] = first
            return self._row(p, names, [first])
        # a first call may load its code: only later batches tell who is slow, and a GPU loads by size
        within = math.inf if known is None or self.cuda else 3 if best < 10 * LONG else 1.3
        again = [n for n in sides if n == "ours" or first[n] <= within * best]
        second = {n: self._look(sample, sides[n]) for n in reversed(again)}
        seen = {n: min(first[n], second.get(n, math.inf)) for n in sides}
        best = min(seen[n] for n in names)
        self.seen[p] = seen
        margin = 2 if best < LONG else 1.3
        if not careful and best * 1e6 >= crossover.SHORT_US and best >= margin * seen["ours"]:
            return self._row(p, names, [{n: seen[n] for n in again}] * 2)
        limit = 2 * best + 10e-6 if best < LONG else 1.5 * best
        keep = [n for n in names if n in second and seen[n] <= limit]
        kept = {n: sides[n] for n in ("ours", *keep)}
        looks = [{n: look[n] for n in kept} for look in (first, second)]
        return self._rounds(p, kept, seen, careful, looks if best >= LONG else [])

    def _look(self, sample: Callable[[Call, int], float], fn: Call) -> float:
        """One call; on a GPU, where a synchronisation takes as long as a short call, ten of those."""
        once = sample(fn, 1)
        return sample(fn, 10) if self.cuda and once < LONG else once

    def _rounds(
        self, p: Point, sides: dict[str, Call], seen: dict[str, float], careful: bool, looks: list[dict[str, float]]
    ) -> GridRow:
        """Paired rounds in alternating order, after looks that count as such; careful ones end when the row is clear."""
        sample = self._sampler(p)
        best, cost = min(seen[n] for n in sides if n != "ours"), sum(seen[n] for n in sides)
        target, most, budget = (1e-3, 25, 0.3) if careful else (1e-4, 5, 0.02)
        if self.cuda:
            target = max(target, 5e-4)
        if not careful and best > 4 * seen["ours"]:
            most = 3
        calls = max(1, min(200 if careful else 20, int(target / max(best, 1e-7))))
        rounds = max(1, min(most, int(budget / (cost * calls))))
        samples = list(looks)
        for r in range(rounds):
            order = sides if r % 2 == 0 else reversed(list(sides))
            samples.append({n: sample(sides[n], calls) for n in order})
            if careful and r >= 6 and r % 3 == 0 and self._row(p, list(sides), samples).clear:
                break
        return self._row(p, list(sides), samples)

    def _row(self, p: Point, names: Sequence[str], samples: Sequence[dict[str, float]]) -> GridRow:
        """The row that these rounds make."""
        medians = {n: statistics.median(s[n] for s in samples) for n in samples[0]}
        rival = min((n for n in names if n != "ours" and n in medians), key=medians.__getitem__)
        ratio = statistics.median(s[rival] / s["ours"] for s in samples)
        us = medians["ours"] * 1e6, medians[rival] * 1e6
        return GridRow(p, kernel_name(p, self.level, self.cuda), us[0], rival, us[1], ratio, len(samples))

    def row(self, p: Point) -> GridRow:
        """Screened; measured twice more, longer, where the rule is not met."""
        row = self.measure(p)
        for _ in range(2):
            if row.passes:
                break
            row = self.measure(p, careful=True)
        return row
