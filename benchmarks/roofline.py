"""Limits of the machine in front of us, measured, and the roofline plot of the rows.

    python -m benchmarks.roofline                                         print the limits
    python -m benchmarks.roofline --rows benchmarks/results/cpu.csv --png roofline.png

A point is a row: operations per byte of compulsory traffic against operations per second. Above it are what `dst.copy_(src)`
moves per second (from memory, and from each cache) and what torch's matrix products reach. A row without counted
operations stands in a panel of its own, by bytes per second.
"""

import argparse
import csv
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from . import timing
from .philox_normal import ns_per_normal


@dataclass(frozen=True)
class Limits:
    """Bytes read plus bytes written, real operations and normals: the most the machine did per second, or its inverse."""

    copy_bytes_per_s: float
    cgemm_flops_per_s: float
    zgemm_flops_per_s: float
    ns_per_normal: float  # one thread; a whole GPU
    sgemm_flops_per_s: float = float("nan")  # the nearest thing to the multiply-add peak
    staircase: tuple[tuple[int, float], ...] = ()  # (bytes of source and destination, copied bytes per second)
    caches: tuple[tuple[str, int], ...] = ()  # (name, bytes)


def gemm_rate(dtype: torch.dtype, n: int, rounds: int) -> float:
    """Real operations per second of torch's product of two n x n matrices."""
    a, b = torch.randn(2, n, n, dtype=dtype, device=timing.device).unbind(0)
    t = timing.interleave({"gemm": lambda i: a @ b}, rounds=rounds)["gemm"].median
    return (8 if dtype.is_complex else 2) * n**3 / t


def copy_rate(total: int, rounds: int) -> float:
    """Bytes per second (read plus written) of `dst.copy_(src)` on one pair of buffers; the cost of a call is taken off."""
    dst, src = torch.zeros(2, max(total // 2, 1), dtype=torch.uint8, device=timing.device).unbind(0)
    one, other = dst[:1], src[:1]
    sides = {"copy": lambda i: dst.copy_(src), "call": lambda i: one.copy_(other)}
    t = timing.interleave(sides, rounds=rounds, target=2e-4)
    return total / max(t["copy"].median - t["call"].median, 1e-9)


def caches() -> tuple[tuple[str, int], ...]:
    """Data caches of the device and their sizes, small to large."""
    if timing.device != "cpu":
        return (("L2", timing.last_cache_bytes()),)
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (folder / "type").read_text().strip() != "Instruction":
            text = (folder / "size").read_text().strip()
            found["L" + (folder / "level").read_text().strip()] = (
                int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]]
            )
    return tuple(found.items())


def _staircase(largest: int, rounds: int) -> tuple[tuple[int, float], ...]:
    sizes = [1 << p for p in range(14, largest.bit_length())]
    return tuple((size, copy_rate(size, rounds)) for size in [*sizes, largest])


def limits(quick: bool = False) -> Limits:
    """Measured now, on timing.device and torch's threads; `quick` leaves out the caches and takes about a second."""
    beyond = min(4 * timing.last_cache_bytes(), timing.MAX_ROTATION)
    gpu = timing.device != "cpu"
    n, rounds = (4096, 5) if gpu else (384, 5) if quick else (768, 15)
    stairs = () if quick else _staircase(beyond, 7)
    return Limits(
        copy_bytes_per_s=stairs[-1][1] if stairs else copy_rate(beyond, 3),
        cgemm_flops_per_s=gemm_rate(torch.complex64, n, rounds),
        zgemm_flops_per_s=gemm_rate(torch.complex128, n, rounds),
        ns_per_normal=ns_per_normal(),
        sgemm_flops_per_s=gemm_rate(torch.float32, 2 * n, rounds),
        staircase=stairs,
        caches=caches(),
    )


def read(path: Path) -> tuple[list[dict[str, Any]], Limits | None]:
    """The rows of a CSV file, or of a JSON file, which also holds the limits measured in the same run."""
    if path.suffix != ".json":
        with path.open(newline="") as f:
            return list(csv.DictReader(f)), None
    text = json.loads(path.read_text())
    known = {f.name for f in fields(Limits)}
    found = Limits(**{k: v for k, v in text["limits"].items() if k in known})
    return [{**text["machine"], **r} for r in text["rows"]], found


def recorded(rows: Iterable[Mapping[str, Any]]) -> Limits:
    """The limits that a file of rows was measured beside: its interleaved copies and its share of the product rate."""
    past = [r for r in rows if r["cache"] == "rotated"]
    copies = [float(r["min_bytes"]) / float(r["copy_us"]) * 1e6 for r in past if float(r["min_bytes"]) > 8e6]
    rates = [1e9 * float(r["gflop_per_s"]) / float(r["cgemm_share"]) for r in past if float(r["cgemm_share"] or 0) > 0]
    middle = lambda values: statistics.median(values) if values else float("nan")  # noqa: E731
    return Limits(middle(copies), middle(rates), float("nan"), float("nan"))


def plot(rows: Iterable[Mapping[str, Any]], limits: Limits, path: Path) -> Any:
    """The roofline of one device's rows as a PNG; returns the figure."""
    from . import roofline_plot

    here = timing.machine()  # rows just measured do not say where
    return roofline_plot.draw([{**here, **r} for r in rows], limits, path)


def by_device(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Rows measured with the same device and number of threads."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((str(row["device"]), str(row["threads"])), []).append(row)
    return groups


def show(found: Limits) -> None:
    """Print the limits."""
    print(f"copy {found.copy_bytes_per_s * 1e-9:.1f} GB/s read plus written, past the last cache")
    for name in ("cgemm", "zgemm", "sgemm"):
        print(f"{name} {getattr(found, f'{name}_flops_per_s') * 1e-9:.0f} GFLOP/s")
    print(f"{found.ns_per_normal:.2f} ns per normal, " + ("one thread" if timing.device == "cpu" else "whole device"))
    for size, rate in found.staircase:
        print(f"copy within {size / 1024:10.0f} KiB: {rate * 1e-9:8.1f} GB/s")


def main(argv: list[str] | None = None) -> int:
    """Print the limits measured now; with --rows, plot each device's rows under the limits of their own run where the file
    (JSON) holds them, under those measured now on the same device and threads, else under what the rows imply."""
    parser = argparse.ArgumentParser(prog="semcom-fast bench roofline", description=main.__doc__)
    parser.add_argument(
        "--rows", type=Path, nargs="+", default=[], help="files of `semcom-fast bench --csv` or `--json`"
    )
    parser.add_argument(
        "--png", type=Path, default=Path("roofline.png"), help="with several devices: -1, -2, ... added"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    torch.set_num_threads(args.threads)
    timing.device = args.device
    files = [read(path) for path in args.rows]
    groups = by_device(row for rows, _ in files for row in rows)
    kept = {key: limit for rows, limit in files if limit for key in by_device(rows)}
    now = None if groups and kept.keys() >= groups.keys() else limits()
    if now:
        show(now)
    machine = timing.machine()
    here = (machine["device"], machine["threads"])
    for number, (key, rows) in enumerate(groups.items(), 1):
        path = args.png if len(groups) == 1 else args.png.with_stem(f"{args.png.stem}-{number}")
        if key in kept:
            found, origin = kept[key], "of their run"
        elif now and key == here:
            found, origin = now, "measured now"
        else:
            found, origin = recorded(rows), "implied by the rows"
        plot(rows, found, path)
        print(f"wrote {path}: {key[0]}, {key[1]} threads, limits {origin}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
