"""Kernels beside their peers and the limits of the machine."""

from benchmarks.targets import verdicts

from .source import read, table

PEERS = {"sionna": "Sionna", "mkl_compact": "MKL compact", "compiled_planes": "compiled planes"}


def _times(value: str) -> str:
    """A ratio with two digits that count."""
    if value in ("", "nan"):
        return "-"
    number = float(value)
    return f"{number:.0f}x" if number >= 9.95 else f"{number:.1f}x"


def _share(value: str) -> str:
    return "-" if value in ("", "nan") or float(value) == 0 else f"{100 * float(value):.0f} %"


def _target(row: dict[str, str]) -> str:
    """Its clauses, each marked as met or missed."""
    found = verdicts(row["target"], row)
    return "; ".join(f"{v.clause} {'met' if v.met else '**missed**'}" for v in found) or "-"


def _where(rows: list[dict[str, str]]) -> str:
    r, commits = rows[0], ", ".join(dict.fromkeys(r["commit"] for r in rows))
    return (
        f"{r['threads']} thread(s) of {r['device']}, level {r['isa']}, torch {r['torch']}, commit {commits}, "
        f"{r['date']}, inputs rotated past the last cache"
    )


def _rows(name: str, wanted) -> list[list[str]]:
    out = []
    for r in (r for r in read(name) if r["cache"] == "rotated" and wanted(r)):
        band = f" ({_times(r['ratio_low'])}-{_times(r['ratio_high'])})" if r.get("ratio_low") else ""
        cells = [f"`{r['op']}` {r['size']}" + (", c128" if r.get("dtype") == "complex128" else "")]
        cells += [f"{float(r['ours_us']):.0f}", f"{_times(r['ratio'])}{band} {r['best_torch']}"]
        cells += [_times(r.get(f"{peer}_ratio", "")) for peer in PEERS]
        cells += [_share(r[k]) for k in ("copy_share", "cgemm_share", "floor_share")]
        out.append([*cells, _target(r)])
    return out


def _table(name: str, wanted) -> list[str]:
    head = ["kernel, size", "µs", "over best torch (quartiles)", *PEERS.values()]
    head += ["of copy bandwidth", "of cgemm rate", "of floor", "target"]
    return table(head, _rows(name, wanted))


def _with_targets(name: str) -> list[str]:
    return [f"Kernels, {_where(read(name))}:", "", *_table(name, lambda r: verdicts(r["target"], r))]


def one_thread() -> list[str]:
    """The rows that a target was set for on one thread; misses stand as misses."""
    return _with_targets("cpu_1_thread.csv")


def epyc() -> list[str]:
    """The same rows on another processor, the one measured last, on two threads."""
    return _with_targets("epyc.csv")


def every_row() -> list[str]:
    """All rotated rows of the suite."""
    return [f"All rows, {_where(read('cpu.csv'))}:", "", *_table("cpu.csv", lambda r: True)]
