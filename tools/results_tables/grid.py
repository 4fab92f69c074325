"""The whole grid of sizes against the rule that no row may be slower than plain torch, and where ours begins to win."""

from .source import read, table

FIRST_WINS = ("1", "16", "256", "4096", "65536")


def _groups(rows: list[dict[str, str]], *keys: str) -> dict[tuple[str, ...], list[dict[str, str]]]:
    out: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for r in rows:
        out.setdefault(tuple(r[k] for k in keys), []).append(r)
    return out


def _rule(name: str) -> list[str]:
    """Per op and thread count: rows, misses, the worst of each kind."""
    rows = read(name)
    if not rows:
        return ["Not measured yet."]
    out = []
    for (op, threads), group in _groups(rows, "op", "threads").items():
        worst = min(group, key=lambda r: float(r["worst_ratio"]))
        extra = max(
            (float(r["most_extra_us_below_20_us"]) for r in group if r["most_extra_us_below_20_us"]), default=None
        )
        cells = [
            f"`{op}`",
            threads,
            str(sum(int(r["rows"]) for r in group)),
            str(sum(int(r["below_rule"]) for r in group)),
        ]
        cells.append(f"{float(worst['worst_ratio']):.2f}x ({worst['dtype']}, {worst['layout']}, {worst['worst_at']})")
        out.append([*cells, "-" if extra is None else f"{extra:.1f} µs"])
    head = ["op", "threads", "rows", "below the rule", "worst ratio where torch takes 20 µs or more"]
    head += ["most above torch in shorter calls"]
    r = rows[0]
    where = f"{r['device']}, level {r['isa']}, torch {r['torch']}, commit {r['commit']}, {r['date']}"
    return [f"The grid on {where}, rotated:", "", *table(head, out)]


def rule() -> list[str]:
    """The whole grid."""
    return _rule("cpu_grid_summary.csv")


def epyc() -> list[str]:
    """The rows up to 16 MiB on another processor."""
    return _rule("epyc_grid_summary.csv")


def crossover() -> list[str]:
    """Per op and dtype: of all sizes, how many are won from which batch on."""
    rows = read("cpu_crossover.csv")
    if not rows:
        return ["Not measured yet."]
    out = []
    for (op, dtype), group in _groups(rows, "op", "dtype").items():
        counts = [sum(r["wins_from"] == batch for r in group) for batch in FIRST_WINS]
        never = sum(r["wins_from"] == "" for r in group)
        out.append([f"`{op}`", dtype, str(len(group)), *map(str, counts), str(never)])
    return table(["op", "dtype", "sizes", *(f"from B = {b}" for b in FIRST_WINS), "not at the largest B"], out)
