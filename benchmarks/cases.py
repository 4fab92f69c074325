"""One benchmark row: how to make inputs, who competes, and the least work any implementation must do."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from . import timing


@dataclass
class Case:
    """`make(i)` builds an input tuple; `ours`, the peers and `reference` take it apart. `check` compares to float64."""

    op: str
    size: str
    make: Callable[[int], tuple]
    ours: Callable[..., Any]
    peers: dict[str, Callable[..., Any]]
    reference: Callable[..., Any]
    check: Callable[[], float]  # worst relative error of ours; the bound is `bound`
    bound: float
    min_bytes: int
    flops: int = 0
    normals: int = 0
    target: str = ""
    rival: tuple[str, Callable[..., Any] | None] | None = None  # another package; None when it is not installed


_missing: set[str] = set()


def optional_peer(module: str, extra: str) -> Any:
    """A package to compare with, or None after saying once that it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        if extra not in _missing:
            _missing.add(extra)
            print(f"{extra} is not installed: its column stays empty (pip install 'semcom-fast[{extra}]')")
        return None


@dataclass
class Row:
    """Microseconds are medians of interleaved rounds; `ratio` = best torch / ours."""

    op: str
    size: str
    cache: str
    kernel: str
    ours_us: float
    ours_low_us: float
    ours_high_us: float
    best_torch: str
    best_torch_us: float
    ratio: float
    reference_us: float
    copy_us: float
    min_bytes: int
    copy_share: float
    gb_per_s: float
    gflop_per_s: float
    cgemm_share: float
    floor_share: float
    worst_error: float
    target: str = field(default="")
    rival: str = field(default="")  # another package on the same inputs
    rival_us: float = field(default=float("nan"))
    rival_ratio: float = field(default=float("nan"))


def best_peer(case: Case, sets: list) -> str:
    """The fastest formulation on these inputs, by a short interleaved run."""
    sides = {n: (lambda i, f=f: f(*sets[i % len(sets)])) for n, f in case.peers.items()}
    t = timing.interleave(sides, rounds=7)
    return min(t, key=lambda n: t[n].median)


def measure(case: Case, hot: bool, kernel: str, gemm_rate: float, ns_per_normal: float, rounds: int) -> Row:
    """Check, then time ours, best torch, the reference twin and a plain copy of the same bytes in turns."""
    worst = case.check()
    if not worst <= case.bound:
        raise AssertionError(f"{case.op} {case.size}: relative error {worst:.2e} exceeds {case.bound:.2e}; not timed")
    sets = timing.rotation(lambda i: timing.to_device(case.make(i)), case.min_bytes, hot)
    n = len(sets)
    best = best_peer(case, sets)
    peer = case.peers[best]
    t = timing.interleave(
        {
            "ours": lambda i: case.ours(*sets[i % n]),
            "torch": lambda i: peer(*sets[i % n]),
            "copy": timing.copy_side(case.min_bytes, hot),
        },
        rounds=rounds,
    )
    ref = timing.interleave({"reference": lambda i: case.reference(*sets[i % n])}, rounds=7)["reference"].median
    rival, rival_us, rival_ratio = "", float("nan"), float("nan")
    if case.rival is not None:
        rival, fn = case.rival
        if fn is not None:
            pair = timing.interleave(
                {rival: lambda i: fn(*sets[i % n]), "ours": lambda i: case.ours(*sets[i % n])}, rounds=7
            )
            rival_us, rival_ratio = pair[rival].median * 1e6, pair[rival].median / pair["ours"].median
    ours, copy = t["ours"].median, t["copy"].median
    workers = torch.get_num_threads() if timing.device == "cpu" else 1
    floor = max(copy, case.normals * ns_per_normal * 1e-9 / workers)
    return Row(
        case.op, case.size, "hot" if hot else "rotated", kernel,
        ours * 1e6, t["ours"].low * 1e6, t["ours"].high * 1e6, best, t["torch"].median * 1e6,
        t["torch"].median / ours, ref * 1e6, copy * 1e6, case.min_bytes, copy / ours,
        case.min_bytes / ours * 1e-9, case.flops / ours * 1e-9, case.flops / ours / gemm_rate, floor / ours, worst,
        case.target, rival, rival_us, rival_ratio,
    )  # fmt: skip
