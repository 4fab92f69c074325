"""How things are timed here: interleaved rounds, input sets that rotate past the last cache, eager calls or CUDA graphs.

Side A and side B run in turns inside one process (order alternating), each allocating its own outputs through torch, on
input sets that rotate over at least four times the last cache. Only ratios of such rounds are quoted.
"""

import contextlib
import csv
import functools
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import semcom_fast
from semcom_fast import _native

RESULTS = Path(__file__).parent / "results"
MAX_ROTATION = 3 << 30  # bytes of input sets; more would only page
MAX_SETS = 20000  # tiny inputs: their cost is the call, not the memory
DISTINCT = 3  # sets with values of their own; further ones are copies at other addresses
device = "cpu"  # set by __main__, like the clock
clock: Callable[[], float] = time.perf_counter  # time.thread_time on a busy machine, for one thread


def synchronise() -> None:
    """Wait for queued GPU work; nothing on a CPU."""
    if device != "cpu":
        torch.cuda.synchronize()


def to_device(values: tuple) -> tuple:
    """Tensors of an input set on the device under test."""
    return tuple(v.to(device) if isinstance(v, torch.Tensor) else v for v in values)


@functools.cache
def _cpu_cache_bytes() -> int:
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
    return max(sizes, default=32 << 20)


def last_cache_bytes() -> int:
    """Size of the last-level cache (of the GPU, when one is timed); 32 MiB where the kernel does not report it."""
    return _cpu_cache_bytes() if device == "cpu" else torch.cuda.get_device_properties(device).L2_cache_size


def _copy_of(value: Any) -> Any:
    """The same values at another address; what is expanded stays expanded."""
    if isinstance(value, tuple):
        return tuple(_copy_of(v) for v in value)
    if not isinstance(value, torch.Tensor):
        return value
    with torch.no_grad():
        stored = value.detach()
        for dim, stride in enumerate(value.stride()):
            if stride == 0 and value.shape[dim] > 1:
                stored = stored.narrow(dim, 0, 1)
        new = stored.clone().expand(value.shape)
    return new.requires_grad_(value.requires_grad)


def rotation(make: Callable[[int], Any], bytes_per_set: int, hot: bool, calls: int = MAX_SETS) -> list[Any]:
    """Input sets; enough of them to leave the last cache unless `hot`, at most as many as there will be calls."""
    if hot:
        return [make(0)]
    need = min(4 * last_cache_bytes(), MAX_ROTATION)
    count = min(max(2, -(-need // max(bytes_per_set, 1))), MAX_SETS, max(2, calls))
    sets = [make(i) for i in range(min(count, DISTINCT))]
    return sets + [_copy_of(sets[i % len(sets)]) for i in range(len(sets), count)]


@functools.cache
def _buffer(_device: str, size: int, _use: str) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.uint8, device=_device)


def evict() -> None:
    """Read twice the last cache, so that inputs made just before are no longer in it."""
    _buffer(device, min(2 * last_cache_bytes(), MAX_ROTATION), "flush").view(torch.int64).sum()


_next_block: dict[str, int] = {}  # by device: where the buffers of the next copy begin


@dataclass
class Timing:
    """Seconds per call: median and quartiles over the rounds."""

    median: float
    low: float
    high: float


@functools.cache
def _capture_stream() -> Any:
    """One for every capture, made at the first: cuBLAS keeps a workspace for each stream that it has seen."""
    return torch.cuda.Stream()


@contextlib.contextmanager
def _waits_raise() -> Iterator[None]:
    """Torch raises where a call would wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _captured(work: Callable[[], Any]) -> Any:
    """The work as a CUDA graph.

    torch.cuda.graph is not used: where a capture fails, the end of it raises and leaves the capture's stream the current
    one. The pool of memory is named here, because torch up to 2.11 then goes on directing allocations to it.
    """
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # the memory of graphs that are gone
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    with torch.cuda.stream(_capture_stream()):
        graph.capture_begin(pool=pool)
        try:
            work()
        finally:
            try:
                graph.capture_end()
            except RuntimeError:
                with contextlib.suppress(RuntimeError):  # ended already: by a later torch
                    torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
                    torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
                raise
    return graph


class Side:
    """One competitor: `fn(i)` is a call on input set i. A captured side replays `calls` of them as one CUDA graph.

    A `cold` side has the last cache emptied before every sample: a graph replays the same input sets.
    """

    def __init__(self, name: str, fn: Callable[[int], Any]) -> None:
        self.name, self.fn = name, fn
        self.repeats, self.every, self.calls, self.replays = 1, 1, 1, 1
        self.once = 0.0  # seconds of one call, as planned
        self.graph: Any = None
        self.refused = self.cold = False

    def capture(self, calls: int, target: float = 0.0) -> bool:
        """Turn into a CUDA graph of this many calls; False (and unchanged) when the side cannot be captured.

        A sample is the planned number of calls, or with `target` as many replays as take about that many seconds. A wait
        is looked for in a plain call first, and a refusal remembered: a capture that fails leaves torch in a bad state.
        """
        if self.refused:
            return False

        def work() -> None:
            for i in range(calls):
                self.fn(i)

        stream, self.refused = _capture_stream(), True
        try:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream), _waits_raise():
                self.fn(0)
        except Exception:
            torch.cuda.synchronize()
            return False
        try:
            graph = _captured(work)
        except Exception:  # it waits where torch does not see it, or allocates on its own
            torch.cuda.synchronize()
            _captured(lambda: torch.zeros(1, device=device))  # or torch's generator would draw for a graph from now on
            return False
        self.refused, self.graph, self.calls, self.replays = False, graph, calls, 1
        self.seconds(0)  # the first replay also carries the graph to the device
        if not self.cold:
            replays = int(target / (self.seconds(0) * calls)) if target else self.repeats // calls
            self.replays = max(1, min(1000, replays))
        return True

    def release(self) -> None:
        """Plain calls again."""
        self.graph, self.calls, self.cold = None, 1, False

    def seconds(self, first: int) -> float:
        """Mean time of a call over one sample that starts at input set `first`."""
        if self.cold:
            evict()
        synchronise()
        start = clock()
        if self.graph is None:
            count = self.repeats
            for i in range(first, first + count):
                self.fn(i)
        else:
            count = self.replays * self.calls
            for _ in range(self.replays):
                self.graph.replay()
        synchronise()
        return max(clock() - start, 1e-9) / count

    def plan(self, target: float, patience: float, rounds: int) -> None:
        """Repeats for a sample of about `target` seconds; a call longer than `patience` sits out rounds to pay for it."""
        self.repeats = 1
        self.seconds(0)  # warms up
        self.once = self.seconds(1)
        for i in range(2, 7):  # the least of a few: one disturbed call must not drop a side from the race
            if self.once < patience:
                self.once = min(self.once, self.seconds(i))
        self.repeats = max(1, min(1000, int(target / self.once)))
        self.every = max(1, min(rounds, round(self.once / patience)))


def sample(sides: Sequence[Side], rounds: int, start: int = 2) -> list[dict[str, float]]:
    """Seconds per call of every side that takes part, one dict a round; the order turns round every time."""
    out = []
    for r in range(rounds):
        found = {}
        for side in sides if r % 2 == 0 else reversed(sides):
            if r % side.every == 0:
                found[side.name] = side.seconds(start)
                start += side.repeats
        out.append(found)
    return out


def calls_of(sides: Sequence[Side], rounds: int) -> int:
    """How many calls `sample` makes."""
    return sum(side.repeats * -(-rounds // side.every) for side in sides)


def interleave(sides: Mapping[str, Callable[[int], Any]], rounds: int = 41, target: float = 1e-3) -> dict[str, Timing]:
    """Time every side in turns; short calls are repeated inside a round so that one sample lasts about `target` s."""
    contestants = [Side(name, fn) for name, fn in sides.items()]
    for side in contestants:
        side.plan(target, float("inf"), rounds)
    found = sample(contestants, rounds)
    out = {}
    for name in sides:
        q = statistics.quantiles([r[name] for r in found], n=4)
        out[name] = Timing(q[1], q[0], q[2])
    return out


def copy_side(total_bytes: int, hot: bool) -> Callable[[int], Any]:
    """`dst.copy_(src)` on buffers that total `total_bytes`: half read, half written.

    All copies share one region of four times the last cache; each walks on from where the last one made began.
    """
    half = max(8, total_bytes // 2)
    pitch = -(-half // 64) * 64
    if hot:
        room = _buffer(device, 2 * pitch, "hot copy")
        dst, src = room[:half], room[pitch : pitch + half]
        return lambda _: dst.copy_(src)
    room = _buffer(device, max(min(4 * last_cache_bytes(), MAX_ROTATION), 4 * pitch), "copy")
    whole = room.numel() // pitch
    first, count = _next_block.get(device, 0) // pitch, min(whole // 2 * 2, MAX_SETS)
    places = [(first + k) % whole * pitch for k in range(count)]
    _next_block[device] = places[-1] + pitch
    blocks = [room[at : at + half] for at in places]
    state = [0]

    def copy(_: int) -> None:
        at = state[0]
        state[0] = (at + 2) % count
        blocks[at].copy_(blocks[at + 1])

    return copy


def float32(value: float) -> float:
    """The nearest single-precision number: a level as every side is to see it."""
    return float(torch.tensor(value, dtype=torch.float32))


def cgemm_rate() -> float:
    """Measured complex64 matrix-product rate of torch at 768^3, in real flops per second."""
    n = 768
    a, b = torch.randn(2, n, n, dtype=torch.complex64, device=device).unbind(0)
    t = interleave({"gemm": lambda i: a @ b}, rounds=15)["gemm"].median
    return 8 * n**3 / t


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((v.split(":", 1)[1].strip() for v in lines if v.startswith(key)), "")


def _vector_extensions() -> str:
    """The CPU's own list of vector extensions, so that rows of two machines are not confused."""
    known = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_fp16", "amx_tile", "asimd", "sve", "sve2")
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return " ".join(name for name in known if name in flags)


@functools.cache
def _driver() -> str:
    """The NVIDIA driver's version, and the CUDA version torch was built for."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        text = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0].strip()
    except OSError:
        text = ""
    return f"{text or 'unknown'}, CUDA {torch.version.cuda}"


@functools.cache
def _commit() -> str:
    """SEMCOM_FAST_COMMIT where it is set, for a copy without its history, or inside another's; else git's, of this tree."""
    if os.environ.get("SEMCOM_FAST_COMMIT"):
        return os.environ["SEMCOM_FAST_COMMIT"]
    git = ["git", "describe", "--always", "--dirty"]
    here = Path(__file__).resolve().parent
    try:
        text = subprocess.run(git, cwd=here, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        text = ""
    return text or "unknown"


def machine() -> dict[str, str]:
    """What every row carries: where, with what, and from which commit it came."""
    cpu = _cpuinfo("model name") or platform.processor() or platform.machine()
    return {
        "device": cpu if device == "cpu" else torch.cuda.get_device_name(),
        "isa": _native.info().get("cpu level running", "none"),
        "flags": _vector_extensions(),
        "driver": "" if device == "cpu" else _driver(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "semcom_fast": semcom_fast.__version__,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "clock": "wall" if clock is time.perf_counter else "processor time of one thread",
    }


def with_machine(rows: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Rows (dataclasses or dicts) with the machine's columns appended where they have none of their own."""
    host = machine()
    for row in rows:
        own = row if isinstance(row, dict) else asdict(row)
        yield {**own, **{k: v for k, v in host.items() if k not in own}}


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    """One line per row dataclass (or dict), machine columns appended; the file is whole at any moment."""
    if not rows:
        return
    records = list(with_machine(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".part")
    with scratch.open("w", newline="") as f:
        writer = csv.DictWriter(f, fieldnames=list(dict.fromkeys(k for r in records for k in r)))
        writer.writeheader()
        writer.writerows(records)
    scratch.replace(path)
