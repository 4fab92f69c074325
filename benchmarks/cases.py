"""One benchmark row: how to make inputs, who competes, and the least work any implementation must do."""

import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

STEMS = [
    "mimo_matmul",
    "likelihood_score",
    "pvd_update",
    "blockdiag_apply",
    "blockdiag_adjoint",
    "philox_normal",
    "power_normalise",
    "pvd_calibrate",
    "pvd_channel_step",
    "rzf_precode",
    "rzf_matrix",
    "lmmse_equalise",
    "lmmse_channel",
    "cir_to_ofdm",
    "waterfill_equalise",
    "waterfill_inject",
    "waterfill_step",
    "waterfill_step_authors",
    "pilot_posterior_step",
    "renoise",
    "elbo_reduce",
    "dirichlet_responsibilities",
    "cdl_channels",
]
RIVALS = ("sionna", "mkl compact", "mkl compact packed", "mkl batch", "compiled planes", "cupy")  # columns, in order


def roundoff(dtype: torch.dtype) -> float:
    """Unit roundoff of a dtype; twice that in double precision, where the definition compared with rounds as well."""
    unit = torch.finfo(dtype).eps / 2
    return 2 * unit if unit < 1e-10 else unit


def name_of(dtype: torch.dtype) -> str:
    """torch.complex64 -> "complex64"."""
    return str(dtype).removeprefix("torch.")


def column(rival: str) -> str:
    """The stem of a rival's columns in CSV files: "mkl compact" -> mkl_compact."""
    return rival.replace(" ", "_")


@dataclass
class Case:
    """`make(i)` builds an input tuple; `ours`, the peers, the rivals and `reference` take it apart.

    peers: plain torch formulations by name; the fastest is "best torch". rivals: other packages by their name in RIVALS,
    each a callable on the same inputs or a sentence that says why it is missing and how to get it.
    """

    op: str
    size: str
    make: Callable[[int], tuple]
    ours: Callable[..., Any]
    peers: dict[str, Callable[..., Any]]
    reference: Callable[..., Any]
    check: Callable[[], float]  # worst relative error of ours against float64; at most `bound`, or nothing is timed
    bound: float
    min_bytes: int
    flops: int = 0
    normals: int = 0
    target: str = ""  # clauses that targets.verdicts reads
    rivals: dict[str, Callable[..., Any] | str] = field(default_factory=dict)
    dtype: str = "complex64"
    kernel: str = ""  # what runs ours, where it is not simply the op's kernel on this device
    stem: str = ""  # the file it comes from, filled in by `collect`

    def __post_init__(self) -> None:
        unknown = set(self.rivals) - set(RIVALS)
        if unknown:
            raise ValueError(f"{self.op}: no column for rival {min(unknown)!r}; there: {', '.join(RIVALS)}")


def collect(stems: Iterable[str], quick: bool) -> list[Case]:
    """Every row of these stems, in order."""
    out = []
    for stem in stems:
        for case in importlib.import_module(f".{stem}", __package__).cases(quick):
            case.stem = stem
            out.append(case)
    return out


def choose(cases: list[Case], size: str | None = None, op: str | None = None, dtype: str | None = None) -> list[Case]:
    """The rows that pass every filter; a ValueError names the filter that none passes.

    size: the exact text of a row's size, else a part of it, else a regular expression. op: exact, for a stem whose rows are
    of several ops.
    """
    found = cases
    if op:
        found = _some([c for c in found if c.op == op], "--op", op, [c.op for c in found])
    if dtype:
        found = _some([c for c in found if c.dtype == dtype], "--dtype", dtype, [c.dtype for c in found])
    if size:
        try:
            pattern = re.compile(size)
        except re.error:
            pattern = re.compile(re.escape(size))
        exact = [c for c in found if c.size == size]
        part = [c for c in found if size in c.size]
        match = [c for c in found if pattern.search(c.size)]
        found = _some(exact or part or match, "--size", size, [c.size for c in found])
    return found


def _some(found: list[Case], option: str, value: str, there: list[str]) -> list[Case]:
    if not found:
        shown = list(dict.fromkeys(there))
        more = f", and {len(shown) - 8} more" if len(shown) > 8 else ""
        raise ValueError(f"{option} {value!r} matches no row; there: {'; '.join(shown[:8])}{more}")
    return found
