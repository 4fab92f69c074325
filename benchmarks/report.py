"""The printed table: one line a row, details on request, what is missing said once at the end."""

import math
from collections.abc import Iterable

from .rows import Row
from .targets import verdicts

SHORT = {"complex64": "c64", "complex128": "c128", "float32": "f32", "float64": "f64"}
HEADER = (
    f"{'op':26} {'size':30} {'dtype':5} {'cache':7} {'ours us':>9} {'±':>4} {'torch us':>9} {'ratio':>6} {'[band]':14} "
    f"{'formulation':12} {'GB/s':>6} {'GF/s':>6} {'roof':>4} {'of':7} others, targets"
)


def number(value: float) -> str:
    """Three figures without an exponent: 0.031, 1.25, 63.8, 1240."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def _between(low: float, high: float) -> str:
    return f"[{number(low)} {number(high)}]"


def _targets(row: Row, record: dict[str, object]) -> list[str]:
    found = []
    for v in verdicts(row.target, record):
        if math.isnan(v.value):
            found.append(f"{v.clause}: not measured")
        else:
            value = f"{100 * v.value:.0f} %" if "%" in v.clause else f"{number(v.value)}x"
            found.append(f"{v.clause}: {'met' if v.met else 'MISSED'}, {value}")
    return found


def line(row: Row) -> str:
    """A row of the table."""
    spread = (row.ours_high_us - row.ours_low_us) / (2 * row.ours_us)
    ratio = f"{number(row.ratio):>5}x {_between(row.ratio_low, row.ratio_high):14}"
    others = [f"no {name}" if p.missing else f"{name} {number(p.ratio)}x" for name, p in row.peers.items()]
    return (
        f"{row.op:26} {row.size:30} {SHORT.get(row.dtype, row.dtype):5} {row.cache:7} {number(row.ours_us):>9} "
        f"{100 * spread:3.0f}% {number(row.best_torch_us):>9} {ratio} {row.best_torch[:12]:12} {number(row.gb_per_s):>6} "
        f"{number(row.gflop_per_s):>6} {100 * row.roofline_share:3.0f}% {row.roofline_bound:7} "
        + "; ".join(filter(None, [", ".join(others), *_targets(row, row.record())]))
    ).rstrip()


def details(row: Row) -> str:
    """Everything else about a row, and the command that measures it again."""
    shares = {"copy": row.copy_share, "gemm": row.cgemm_share, "floor": row.floor_share}
    text = ", ".join(f"{100 * value:.0f} % of {name}" for name, value in shares.items())
    out = [
        f"kernel {row.kernel}, {row.rounds} rounds, worst error {row.worst_error:.1e} of {row.bound:.1e}",
        f"ours {number(row.ours_us)} us {_between(row.ours_low_us, row.ours_high_us)}, {row.best_torch} "
        f"{number(row.best_torch_us)} us, reference {number(row.reference_us)} us, copy {number(row.copy_us)} us",
        f"{row.min_bytes} bytes, {row.flops} flops, {row.normals} normals: {text}",
    ]
    for name, p in row.peers.items():
        text = f"{number(p.us)} us, {number(p.ratio)}x {_between(p.low, p.high)}"
        out.append(f"no {name}: {p.missing}" if p.missing else f"{name} {text}")
    return "\n".join(f"    {text}" for text in [*out, row.command])


def closing(rows: Iterable[Row]) -> list[str]:
    """What was missing and why, and how the targets fared."""
    missing: dict[str, int] = {}
    met = count = 0
    for row in rows:
        for name, p in row.peers.items():
            if p.missing:
                missing[f"{name}: {p.missing}"] = missing.get(f"{name}: {p.missing}", 0) + 1
        if row.cache == "rotated":
            found = verdicts(row.target, row.record())
            met, count = met + sum(v.met for v in found), count + len(found)
    out = [f"missing in {n} rows - {text}" for text, n in missing.items()]
    return [*out, f"targets of rotated rows: {met} of {count} clauses met"] if count else out
