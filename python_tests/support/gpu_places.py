"""Where an op runs in the checks of all ops: a GPU's streams, graphs and waits, with stand-ins on a CPU."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DELAY = 20_000_000  # cycles a producer waits: some ten milliseconds


class Place(NamedTuple):
    """Where and on which backend an op runs."""

    device: str
    backend: str

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def to(self, value: Any) -> Any:
        """A copy of one argument here; a device among the arguments becomes this one."""
        if isinstance(value, torch.device):
            return torch.device(self.device)
        return value.to(self.device, copy=True) if isinstance(value, Tensor) else value

    @contextlib.contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Whatever makes the host wait for the device raises."""
        if not self.cuda:
            yield
            return
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def captured(self, body: Callable[[], tuple]) -> tuple[tuple, Callable[[], None]]:
        """(static outputs, replay) of a body that has run before."""
        if not self.cuda:
            out = body()
            return out, lambda: _into(out, body())
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = body()
        return out, graph.replay

    def late(self, args: tuple, body: Callable[[tuple], tuple]) -> tuple:
        """body(args) on a stream of its own, where the tensors of `args` arrive only after a long wait."""
        if not self.cuda:
            return body(tuple(self.to(a) for a in args))
        empty = tuple(torch.zeros_like(a) if isinstance(a, Tensor) else a for a in args)
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            torch.cuda._sleep(DELAY)
            for static, given in zip(empty, args, strict=True):
                if isinstance(static, Tensor):
                    static.copy_(given)
            out = body(empty)
        side.synchronize()
        return out


def _into(out: tuple, values: tuple) -> None:
    for o, v in zip(out, values, strict=True):
        if isinstance(o, Tensor):
            o.copy_(v)


@contextlib.contextmanager
def counted_waits(place: Place) -> Iterator[list[str]]:
    """The places at which the host waited for the device, as torch reports them; on a CPU, where values were read."""
    found: list[str] = []
    if not place.cuda:
        with Reads(found.append):
            yield found
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            yield found
        found.extend(f"{w.filename}:{w.lineno}" for w in seen if "called a synchronizing" in str(w.message))
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Reads(TorchDispatchMode):
    """Tells where torch copies a value to the host: on a GPU the host waits there."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_linalg_check_errors", "is_nonzero")

    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = [i for i in (args[1] if name.startswith(("index", "_index")) and len(args) > 1 else ()) or ()
                 if isinstance(i, Tensor) and i.dtype is torch.bool]  # fmt: skip
        if name in self.READS or masks:
            self.tell(str(func))
        return func(*args, **(kwargs or {}))
