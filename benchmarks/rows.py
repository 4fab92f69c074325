"""One row of the suite: checked against float64, measured in visits some seconds apart, summed up as medians and bands."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from semcom_fast import _backend, _native
from semcom_fast.ops._register import OPS

from . import timing
from .bands import Band, band, paired
from .cases import RIVALS, Case, column

NEAR_BEST = 1.5  # formulations this close to the fastest stay in the race in every round
SLOW_START = "left out of --quick: compiling takes longer than all rows together"
DOUBLE = ("complex128", "float64")
OUT_OF_RACE = {"ours", "copy", "reference"}  # sides that are not torch formulations
EAGER = {"cupy", "reference"}  # never captured: one allocates on its own, the other may run where no capture sees it
GRAPH_CALLS = {True: 200, False: 1000}  # most calls of a captured side, --quick or not


def _why(err: Exception) -> str:
    return f"failed on these inputs: {type(err).__name__}: {' '.join(str(err).split())[:200]}"


class WrongResult(AssertionError):
    """Ours differs from the float64 definition by more than the row's bound; it is not timed."""


class Settings(NamedTuple):
    """How long to measure: visits to a row, rounds a visit, seconds a sample, seconds a side may take in every round."""

    visits: int = 7
    rounds: int = 5
    target: float = 1e-3
    patience: float = 1e-2
    quick: bool = False
    graphs: bool = False
    without: tuple[str, ...] = ()


QUICK = Settings(target=3e-4, patience=3e-3, quick=True)


@dataclass
class Peer:
    """Another package on the same inputs: median microseconds and the band of its time over ours, or why it is missing."""

    us: float = float("nan")
    ratio: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    missing: str = ""


@dataclass
class Row:
    """Microseconds are medians; `ratio` = best torch / ours, with a band that another run should stay in (bands.py)."""

    op: str
    size: str
    dtype: str
    cache: str
    kernel: str
    rounds: int
    ours_us: float
    ours_low_us: float
    ours_high_us: float
    best_torch: str
    best_torch_us: float
    ratio: float
    ratio_low: float
    ratio_high: float
    reference_us: float
    copy_us: float
    min_bytes: int
    flops: int
    normals: int
    gb_per_s: float
    gflop_per_s: float
    copy_share: float
    cgemm_share: float
    floor_share: float
    roofline_share: float
    roofline_bound: str  # what sets the limit: bytes, flops or normals
    worst_error: float
    bound: float
    target: str = ""
    peers: dict[str, Peer] = field(default_factory=dict)
    command: str = ""

    def record(self) -> dict[str, Any]:
        """Flat columns for CSV and JSON: four for every known rival, blank where there is nothing to say."""
        flat = {k: v for k, v in vars(self).items() if k not in ("peers", "command")}
        for name in RIVALS:
            peer = self.peers.get(name, Peer())
            flat |= {f"{column(name)}_{k}": getattr(peer, k) for k in ("us", "ratio", "low", "high")}
        flat["missing"] = "; ".join(f"{name}: {p.missing}" for name, p in self.peers.items() if p.missing)
        flat["command"] = self.command
        return {k: "" if isinstance(v, float) and v != v else v for k, v in flat.items()}


def kernel_of(op: str) -> str:
    """The backend that runs an op here, with the vector level on a CPU."""
    entry = OPS.get(op.split("+")[0])
    homes = entry.homes if entry else ("cpu",)
    name = _backend.select(op, homes, torch.device(timing.device))
    return f"cpu {_native.info().get('cpu level running', 'none')}" if name == "cpu" else name


def check(case: Case) -> float:
    """The worst relative error of ours; raises WrongResult where it exceeds the row's bound or is not a number."""
    worst = case.check()
    if not worst <= case.bound:
        raise WrongResult(f"relative error {worst:.2e} exceeds {case.bound:.2e}; not timed")
    return worst


def input_sets(case: Case, hot: bool, calls: int, size: int = 0) -> list[tuple]:
    """Inputs for so many calls on the device under test; `size` = bytes of a set, where it is known already."""

    def make(i: int) -> tuple:
        return timing.to_device(case.make(i))

    return timing.rotation(make, size or input_bytes(make(0)), hot, calls)


def input_bytes(inputs: tuple) -> int:
    """Bytes of the tensors of an input set; at least a cache line."""
    return max(64, sum(v.numel() * v.element_size() for v in inputs if isinstance(v, torch.Tensor)))


class Measurement:
    """A row while it is being measured: `prepare` buffers, `sample` them, again and again; `row` at any time."""

    def __init__(self, case: Case, hot: bool, settings: Settings, worst: float = float("nan")) -> None:
        self.case, self.hot, self.settings, self.worst = case, hot, settings, worst
        case.kernel = case.kernel or kernel_of(case.op)
        self.kernel = case.kernel
        self.sets: list[tuple] = []
        self.prepared: dict[str, list[tuple]] = {}
        self.sides: list[timing.Side] = []
        self.rivals: dict[str, Any] = {}  # name -> callable, or a sentence
        self.visits: list[list[dict[str, float]]] = []

    def _side(self, name: str, fn: Callable[..., Any]) -> timing.Side:
        return timing.Side(name, lambda i: fn(*self.sets[i % len(self.sets)]))

    def _rival_side(self, name: str, fn: Any) -> timing.Side:
        if not hasattr(fn, "prepare"):
            return self._side(name, fn)
        self.prepared[name] = [fn.prepare(*s) for s in self.sets]
        return timing.Side(name, lambda i: fn(*self.prepared[name][i % len(self.sets)]))

    def _rivals(self) -> list[timing.Side]:
        """The packages that run here; one that fails at its first call is missing from then on."""
        found = []
        for name, fn in self.case.rivals.items():
            if name in self.settings.without:
                continue
            if self.settings.quick and getattr(fn, "slow_start", False):
                fn = SLOW_START
            self.rivals[name] = fn
            if isinstance(fn, str):
                continue
            try:
                side = self._rival_side(name, fn)
                side.plan(self.settings.target, self.settings.patience, self.settings.rounds)
                found.append(side)
            except Exception as err:
                self.rivals[name] = _why(err)
        return found

    def _able(self, sides: dict[str, Callable[..., Any]]) -> list[timing.Side]:
        """Those that can be called here, planned; the others are missing, with the reason, as a package would be."""
        found = []
        for name, fn in sides.items():
            try:
                side = self._side(name, fn)
                side.plan(self.settings.target, self.settings.patience, self.settings.rounds)
                found.append(side)
            except Exception as err:  # no formulation of torch's runs everywhere
                self.rivals[name] = _why(err)
        return found

    def _plan(self) -> None:
        """Who takes part and how often, from two calls of each."""
        self.sets = input_sets(self.case, self.hot, calls=2)
        ours = self._side("ours", self.case.ours)
        copy = timing.Side("copy", timing.copy_side(self.case.min_bytes, self.hot))
        for side in (ours, copy):
            side.plan(self.settings.target, self.settings.patience, self.settings.rounds)
        ours.every = 1
        race = self._able(self.case.peers)
        if not race:
            raise RuntimeError("no torch formulation " + next(iter(self.rivals.values()), "to compare with"))
        fastest = min(side.once for side in race)
        race = [s for s in race if s.once <= NEAR_BEST * fastest]
        self.sides = [ours, *race, copy, *self._able({"reference": self.case.reference}), *self._rivals()]

    def prepare(self) -> int:
        """Fresh input sets for a visit; returns their bytes. The caller evicts them from the caches when not hot."""
        if not self.sides:
            self._plan()
        calls, size = timing.calls_of(self.sides, self.settings.rounds), input_bytes(self.sets[0])
        if self.settings.graphs:
            calls = min(calls, GRAPH_CALLS[self.settings.quick])
        self.sets = input_sets(self.case, self.hot, calls, size)
        for name in self.prepared:
            self.prepared[name] = [self.rivals[name].prepare(*s) for s in self.sets]
        return size * len(self.sets)

    def sample(self) -> None:
        """One visit; the buffers are given back."""
        if self.settings.graphs:
            calls = 20 if self.hot else min(len(self.sets), GRAPH_CALLS[self.settings.quick])
            for side in self.sides:
                side.cold = not self.hot
            eager = [s.name for s in self.sides if s.name in EAGER or not s.capture(calls, self.settings.target)]
            self.kernel = self.case.kernel + " graph" + (f" (not captured: {', '.join(eager)})" if eager else "")
        for side in self.sides:
            if side.every == 1:
                side.fn(len(self.sets) - 1)
        self.visits.append(timing.sample(self.sides, self.settings.rounds, start=0))
        self.sets, self.prepared = self.sets[:1], {name: sets[:1] for name, sets in self.prepared.items()}
        for side in self.sides:
            side.release()

    def _times(self, side: str) -> list[list[float]]:
        return [[r[side] for r in rounds if side in r] for rounds in self.visits]

    def _median(self, side: str) -> float:
        times = [t for v in self._times(side) for t in v]
        return statistics.median(times) if times else float("nan")

    def _peer(self, name: str, fn: Any) -> Peer:
        if isinstance(fn, str):
            return Peer(missing=fn)
        found = band(paired(self.visits, name, "ours"))
        return Peer(self._median(name) * 1e6, *found)

    def row(self, limits: Any, command: str = "") -> Row:
        """What the visits so far say."""
        case, ours = self.case, band(self._times("ours"))
        race = [s.name for s in self.sides if s.name not in OUT_OF_RACE and s.name not in self.rivals]
        best = min(race, key=self._median)
        ratio, copy = band(paired(self.visits, best, "ours")), self._median("copy")
        gemm = limits.zgemm_flops_per_s if case.dtype in DOUBLE else limits.cgemm_flops_per_s
        workers = torch.get_num_threads() if timing.device == "cpu" else 1
        floors = {
            "bytes": copy,
            "flops": case.flops / gemm,
            "normals": case.normals * limits.ns_per_normal * 1e-9 / workers,
        }
        limit = max(floors, key=lambda k: floors[k])
        return Row(
            case.op, case.size, case.dtype, "hot" if self.hot else "rotated",
            self.kernel, sum(map(len, self.visits)),
            *(1e6 * t for t in ours), best, self._median(best) * 1e6, *ratio, self._median("reference") * 1e6, copy * 1e6,
            case.min_bytes, case.flops, case.normals, case.min_bytes / ours.median * 1e-9, case.flops / ours.median * 1e-9,
            copy / ours.median, floors["flops"] / ours.median, max(copy, floors["normals"]) / ours.median,
            floors[limit] / ours.median, limit, self.worst, case.bound, case.target,
            {name: self._peer(name, fn) for name, fn in self.rivals.items()}, command,
        )  # fmt: skip


def ratio_band(row: dict[str, str]) -> Band | None:
    """The band of best torch over ours in a written row; None in files that do not have it."""
    values = [row.get(k, "") for k in ("ratio", "ratio_low", "ratio_high")]
    return Band(*map(float, values)) if all(values) else None


def time_band(row: dict[str, str]) -> Band:
    """The band of our microseconds in a written row."""
    return Band(*(float(row[k]) for k in ("ours_us", "ours_low_us", "ours_high_us")))
