"""How things are timed here: interleaved, rotated past the last cache, medians with quartiles.

Side A and side B run in turns inside one process (order alternating), each allocating its own outputs through torch, on
input sets that rotate over at least four times the last cache. Only ratios of such medians are quoted.
"""

import csv
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import semcom_fast
from semcom_fast import _native

RESULTS = Path(__file__).parent / "results"
MAX_ROTATION = 3 << 30  # bytes of input sets; more would only page
MAX_SETS = 20000  # tiny inputs: their cost is the call, not the memory
device = "cpu"  # set by __main__


def synchronise() -> None:
    """Wait for queued GPU work; nothing on a CPU."""
    if device != "cpu":
        torch.cuda.synchronize()


def to_device(values: tuple) -> tuple:
    """Tensors of an input set on the device under test."""
    return tuple(v.to(device) if isinstance(v, torch.Tensor) else v for v in values)


def last_cache_bytes() -> int:
    """Size of the last-level cache (of the GPU, when one is timed); 32 MiB where the kernel does not report it."""
    if device != "cpu":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
    return max(sizes, default=32 << 20)


def rotation(make: Callable[[int], Any], bytes_per_set: int, hot: bool) -> list[Any]:
    """Input sets; enough of them to leave the last cache unless `hot`."""
    if hot:
        return [make(0)]
    need = min(4 * last_cache_bytes(), MAX_ROTATION)
    count = max(2, -(-need // max(bytes_per_set, 1)))
    return [make(i) for i in range(min(count, MAX_SETS))]


@dataclass
class Timing:
    """Seconds per call: median and quartiles over the rounds."""

    median: float
    low: float
    high: float


def interleave(sides: dict[str, Callable[[int], Any]], rounds: int = 41, target: float = 1e-3) -> dict[str, Timing]:
    """Time every side in turns; short calls are repeated inside a round so that one sample lasts about `target` s."""
    names = list(sides)
    inner = {}
    for name in names:
        sides[name](0)
        synchronise()
        start = time.perf_counter()
        sides[name](1)
        synchronise()
        inner[name] = max(1, min(1000, int(target / max(time.perf_counter() - start, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in names}
    counter = 2
    for r in range(rounds):
        for name in names if r % 2 == 0 else reversed(names):
            fn, n = sides[name], inner[name]
            synchronise()
            start = time.perf_counter()
            for i in range(n):
                fn(counter + i)
            synchronise()
            samples[name].append((time.perf_counter() - start) / n)
            counter += n
    out = {}
    for name, s in samples.items():
        q = statistics.quantiles(s, n=4)
        out[name] = Timing(q[1], q[0], q[2])
    return out


def copy_side(total_bytes: int, hot: bool) -> Callable[[int], Any]:
    """`dst.copy_(src)` on buffers that total `total_bytes`: half read, half written."""
    half = max(8, total_bytes // 2)
    sets = rotation(lambda _: torch.zeros(2, half, dtype=torch.uint8, device=device).unbind(0), 2 * half, hot)

    def copy(i: int) -> None:
        dst, src = sets[i % len(sets)]
        dst.copy_(src)

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


def machine() -> dict[str, str]:
    """What every row carries: where, with what, and from which commit it came."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [v for v in cpuinfo.read_text().splitlines() if v.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "device": model if device == "cpu" else torch.cuda.get_device_name(),
        "isa": _native.info().get("cpu level running", "none"),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "semcom_fast": semcom_fast.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    """One line per row dataclass (or dict), machine columns appended."""
    if not rows:
        return
    host = machine()
    own = [r if isinstance(r, dict) else asdict(r) for r in rows]
    records = [{**r, **{k: v for k, v in host.items() if k not in r}} for r in own]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)
