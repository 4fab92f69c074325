"""Launches, waits for the device, host-to-device copies and peak memory of a run: counted, not guessed.

On a CUDA device the profiler's runtime events are counted. On a CPU the same program is watched call by call: every
torch call that does work on a device is a launch, every read of a value or copy to the host is a wait, and every tensor
made from host data is a copy to the device, wherever the tensors happen to live.
"""

import ctypes
import resource
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import semcom_fast.ops  # noqa: F401  (registers them)
from semcom_fast.ops import _register

from . import timing

_READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"}
_NO_WORK = {"detach", "lift_fresh", "_to_copy_view", "alias"}
_TO_HOST = {"cpu", "numpy", "tolist", "__array__"}
_FROM_HOST = {"tensor", "new_tensor", "as_tensor", "asarray"}
_EDGE = "semcom_fast: network call"


@dataclass
class Counts:
    """What a run asked of its device."""

    launches: int = 0
    syncs: int = 0
    copies: int = 0

    def copy(self) -> "Counts":
        return Counts(self.launches, self.syncs, self.copies)

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


@dataclass
class Counted:
    """Of a whole run, and of the part of it from the first network call to the last one."""

    run: Counts
    inside: Counts


class _Calls(TorchDispatchMode):
    """Counts what reaches the kernels below autograd."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name in _READS or (name == "index" and _by_mask(args[1])):
            self.counts.syncs += 1
        elif not (func.is_view or name in _NO_WORK or "empty" in name or func.namespace == "semcom_fast"):
            self.counts.launches += 1
        return func(*args, **(kwargs or {}))


def _by_mask(indices: Iterable[Any]) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


class _Transfers(TorchFunctionMode):
    """Counts what moves between tensors and the host's own objects; reads by float() and bool() are seen below."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _TO_HOST or (name == "to" and "cpu" in (*args[1:], kwargs.get("device"))[:2]):
            self.counts.syncs += 1
        elif name in _FROM_HOST and not isinstance(args[1 if name == "new_tensor" else 0], torch.Tensor):
            self.counts.copies += 1
        return func(*args, **kwargs)


class _CPUWatch:
    """Watches torch's dispatcher and our kernels, which loops call without it."""

    def __init__(self) -> None:
        self.counts = Counts()

    def now(self) -> Counts:
        return self.counts.copy()

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for op in _register.OPS.values():
                stack.enter_context(mock.patch.dict(op.kernels, {k: self._kernel(op.kernels[k]) for k in op.homes}))
            # else an op called by its public name turns its numbers into tensors, as tracers need them
            stack.enter_context(mock.patch.object(_register, "_modes_active", lambda: 0))
            stack.enter_context(mock.patch.object(torch, "from_numpy", self._copy(torch.from_numpy)))
            stack.enter_context(_Transfers(self.counts))
            stack.enter_context(_Calls(self.counts))
            yield

    def _kernel(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            before = self.now()
            out = kernel(*args)
            # one launch; how a kernel of the CPU reads its arguments is no business of the device's
            self.counts.launches, self.counts.syncs, self.counts.copies = (
                before.launches + 1,
                before.syncs,
                before.copies,
            )
            return out

        return counted

    def _copy(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.counts.copies += 1
            return make(*args)

        return counted


def _hooks(networks: Sequence[nn.Module], before: Callable[[], Any], after: Callable[[], Any]) -> list[Any]:
    """Handles of hooks around every call of these networks; what a hook returns would replace arguments or results."""

    def hook(action: Callable[[], Any]) -> Callable[..., None]:
        def called(*_: Any) -> None:
            action()

        return called

    made = [n.register_forward_pre_hook(hook(before)) for n in networks]
    return made + [n.register_forward_hook(hook(after)) for n in networks]


def count(run: Callable[[], Any], networks: Sequence[nn.Module]) -> Counted:
    """Counts of one run that calls these modules; counting changes no result."""
    if timing.device != "cpu":
        return _profiled(run, networks)
    watch = _CPUWatch()
    edges: list[Counts] = []
    hooks = _hooks(networks, lambda: edges.append(watch.now()), lambda: edges.append(watch.now()))
    try:
        with watch.watching():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return Counted(watch.counts, edges[-1] - edges[0] if edges else Counts())


def tally(events: Iterable[tuple[str, float]], begin: float = 0.0, end: float = float("inf")) -> Counts:
    """Counts of (name, start) runtime events of the profiler that start inside [begin, end]."""
    found = Counts()
    for name, start in events:
        if not begin <= start <= end:
            continue
        found.launches += name.startswith(("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch"))
        waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy2D")
        found.syncs += name.startswith(waits) or name == "cudaMemcpy"
        found.copies += name.startswith("Memcpy HtoD")
    return found


def _profiled(run: Callable[[], Any], networks: Sequence[nn.Module]) -> Counted:
    """On a CUDA device: the runtime's own calls. Torch's watch for synchronising calls is a second opinion; the larger
    number counts."""
    from torch.profiler import ProfilerActivity, profile, record_function

    def edge() -> None:
        with record_function(_EDGE):
            pass

    hooks = _hooks(networks, edge, edge)
    timing.synchronise()
    mode = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings(record=True) as told, profile(
            activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]
        ) as profiler:  # fmt: skip
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            run()
            torch.cuda.set_sync_debug_mode(mode)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
        for hook in hooks:
            hook.remove()
    events = [(e.name, e.time_range.start) for e in profiler.events() or ()]
    edges = [start for name, start in events if name == _EDGE]
    whole, inside = tally(events), tally(events, min(edges, default=0.0), max(edges, default=0.0))
    whole.syncs = max(whole.syncs, sum("synchronizing CUDA operation" in str(w.message) for w in told))
    return Counted(whole, inside)


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most memory that a run holds beyond what was held before it: of torch's allocator on a CUDA device, of the
    whole process on a CPU (there by the kernel's high-water mark, whose counters lag by some hundred kilobytes)."""
    if timing.device != "cpu":
        timing.synchronise()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        timing.synchronise()
        return torch.cuda.max_memory_allocated() - before
    reset = Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else memory freed by earlier runs is used again and not seen
        reset.write_text("5")
    except (OSError, AttributeError):  # elsewhere the mark of the whole process so far has to do
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    """A size of this process, in bytes, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(v.split()[1]) << 10 for v in lines if v.startswith(name + ":"))
