"""Runs of parallel variational diffusion whose batch is larger than memory: in parts, with the same random numbers."""

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import require_extra
from ..ops._levels import level_tensor
from .pvd import PVD
from .pvd_results import DivergedError, PVDResult, choose

SHARE = 0.5  # of the free memory, by default: the probe does not see the workspaces of libraries
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside that are alive at the same time, on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[weakref.ref, int] = {}
        self._now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(part, Tensor):
                self._count(part.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        ref = weakref.ref(storage, self._forget)  # a storage's Python object lives as long as its memory
        if ref not in self._live:
            self._live[ref] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)

    def _forget(self, ref: weakref.ref) -> None:
        self._now -= self._live.pop(ref, 0)


class PeakBytes:
    """What a block of code had allocated at most, beyond what was allocated before: `bytes`, after the block."""

    def __init__(self) -> None:
        self.bytes = 0


@contextmanager
def peak_bytes(device: torch.device) -> Iterator[PeakBytes]:
    """Measure a block's peak memory on `device`; the CPU's counts tensors made by torch, at some cost in time."""
    found = PeakBytes()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    with _LiveBytes() as counted:
        yield found
    found.bytes = counted.peak


def free_memory(device: torch.device) -> int | None:
    """Bytes that new tensors on `device` may take, None where the system does not say."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:  # of the container, where there is one
            root = Path("/sys/fs/cgroup")
            free = min(free, int((root / limit).read_text()) - int((root / used).read_text()))
        except (OSError, ValueError):
            continue
    return max(free, 0)


def bytes_per_start(receiver: PVD, y: Tensor, noise_var: float | Tensor) -> int:
    """Peak memory of one inner iteration of one start, measured: a run of a single step on the first image."""
    probe = copy.copy(receiver)
    probe.config = replace(receiver.config, J=1, Jin=1)
    level = noise_var[:1] if isinstance(noise_var, Tensor) and noise_var.ndim else noise_var
    with peak_bytes(y.device) as found, suppress(DivergedError):  # which says nothing about the real run
        probe.run(y[:1], level)
    return max(found.bytes, 1)


def _run_part(receiver: PVD, y: Tensor, noise_var: float | Tensor, seed: int, item: int, graph: bool) -> PVDResult:
    try:
        return receiver.run(y, noise_var, seed=seed, first_item=item, graph=graph)
    except DivergedError as lost:
        return lost.result  # infinite energy: the choice among all starts is made at the end


def _fits(run: Callable[[], PVDResult]) -> PVDResult | None:
    """The result, or None when memory was not enough; the failed attempt's tensors are gone on return."""
    try:
        return run()
    except RuntimeError as err:
        if not isinstance(err, torch.OutOfMemoryError) and not any(words in str(err) for words in _OUT_OF_MEMORY):
            raise
    return None


def _halved(receiver: PVD, size: int, device: torch.device) -> int:
    """The next size to try; called when nothing of the failed attempt is referenced any more but captured steps."""
    if size == 1:
        raise RuntimeError(f"PVD: one start alone is out of memory on {device}; smaller networks or another device")
    receiver.graphs.kept.clear()  # each holds the memory of an iteration
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return size // 2


def part_size(
    receiver: PVD, y: Tensor, noise_var: float | Tensor, starts: int, memory: int | None, graph: bool = False
) -> int:
    """Starts at once that stay within `memory` bytes (None: half of what is free); a captured iteration has memory of
    its own beside that of the first one, which runs as usual."""
    if memory is None:
        free = free_memory(y.device)
        if free is None:
            return starts
        memory = int(free * SHARE)
    if starts <= 1:
        return 1
    return min(starts, max(1, memory // (bytes_per_start(receiver, y, noise_var) * (1 + graph))))


def run_in_batches(
    receiver: PVD,
    y: Tensor,
    noise_var: float | Tensor,
    *,
    limit: int | None = None,
    memory: int | None = None,
    restarts: int = 1,
    seed: int = 0,
    first_item: int = 0,
    on_part: Callable[[int, int], None] | None = None,
    progress: bool = False,
    graph: bool = False,
) -> PVDResult:
    """:meth:`PVD.run` in as many parts as memory asks for; images, random numbers and result are those of one run.

    A batch of B images with R restarts is B R independent starts. They are run in parts, cut anywhere, also between
    the restarts of an image; every start keeps the random numbers it has in the unsplit run (`first_item`). With
    networks that treat the rows of a batch independently the result is that of the unsplit run to the last bit on the
    CPU; libraries that choose an algorithm by the batch size (matrix products, convolutions) may round differently.

    Args:
        receiver: a PVD. y, noise_var, restarts, seed, first_item: as of its `run`.
        limit: most starts (not images) at once; default: as many as memory holds.
        memory: bytes that a part may take; default half of what is free. How much a start takes is measured by one
            inner iteration on the first image. A part that runs out of memory all the same is halved and tried again,
            with what was computed before kept.
        on_part: called after every part with (starts done, starts in all).
        progress: show a bar over starts, which moves after every part (extra `demo`).
        graph: as of `run`: the iterations of every part replay a CUDA graph, captured once for all parts of one size.

    Raises:
        DivergedError: every restart of some image is non-finite; it names the image by its place in the whole batch and
            keeps the results of all parts. ValueError, TypeError: as `PVD.run`, or limit or memory below 1.
        RuntimeError: memory does not hold a single start.
    """
    for name, value in (("limit", limit), ("memory", memory)):
        if value is not None and value < 1:
            raise ValueError(f"run_in_batches: {name} must be at least 1, got {value}")
    if not isinstance(noise_var, (int, float, Tensor)):
        noise_var = level_tensor("run_in_batches", "noise_var", noise_var)  # NumPy numbers and arrays
    receiver._check_input(y, noise_var, restarts)  # of the whole batch: errors name its images
    images, starts = len(y), len(y) * restarts
    if starts == 0:
        return receiver.run(y, noise_var, restarts=restarts, seed=seed, first_item=first_item)
    if limit is None or memory is not None:
        size = min(part_size(receiver, y, noise_var, starts, memory, graph), limit or starts)
    else:
        size = min(limit, starts)
    bar = require_extra("tqdm.auto", "demo").tqdm(total=starts, desc="PVD", unit="start") if progress else None
    parts: list[PVDResult] = []
    done = 0
    while done < starts:
        rows = torch.arange(done, min(done + size, starts), device=y.device) // restarts
        level = (
            noise_var[rows.to(noise_var.device)]
            if isinstance(noise_var, Tensor) and noise_var.numel() > 1
            else noise_var
        )
        part = _fits(partial(_run_part, receiver, y[rows], level, seed, first_item * restarts + done, graph))
        if part is None:
            size = _halved(receiver, size, y.device)
            continue
        parts.append(part)
        done += len(rows)
        if bar is not None:
            bar.update(len(rows))
        if on_part is not None:
            on_part(done, starts)
    if bar is not None:
        bar.close()
    h, d, energy = (torch.cat([getattr(part, name) for part in parts]) for name in ("h", "d", "energy"))
    return choose(h, d, energy, images, restarts)
