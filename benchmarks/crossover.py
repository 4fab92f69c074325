"""From which batch on ours wins, per op, dtype and matrix size: the grid's rows condensed, and who ran in each."""

import csv
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from semcom_fast.ops import _matmul_rule

from . import timing
from .grid_ops import OWN_PRODUCT, Point

Rows = Mapping[Point, Mapping[str, str]]
LEAST, EXTRA_US, SHORT_US = 0.95, 4.0, 20.0
FIELDS = ["op", "dtype", "nr", "nt", "t", "backend", "wins_from", "wins_from_2_threads", "worst_ratio"]


def obeys(ours_us: float, torch_us: float, ratio: float) -> bool:
    """The grid's rule; `ratio` is that of paired rounds, which drifts of the clock rate do not touch."""
    return ratio >= LEAST if torch_us >= SHORT_US else ours_us - torch_us <= EXTRA_US


def passes(row: Mapping[str, str]) -> bool:
    """Does a CSV line keep to the rule?"""
    return row["op"] == OWN_PRODUCT or obeys(float(row["ours_us"]), float(row["torch_us"]), float(row["ratio"]))


def wins_from(rows: Iterable[tuple[int, float]]) -> int | None:
    """The batch from which every measured (batch, ratio) is at least 1; None where the largest is not."""
    by_batch: dict[int, float] = {}
    for batch, ratio in rows:
        by_batch[batch] = min(ratio, by_batch.get(batch, math.inf))
    first = None
    for batch in sorted(by_batch, reverse=True):
        if by_batch[batch] < 1:
            break
        first = batch
    return first


def _backend(rows: Rows) -> str:
    """The kernel that ran on contiguous operands; with the batch from which it did where torch's product runs below."""
    by_batch = {
        p.batch: r["kernel"]
        for p, r in sorted(rows.items(), key=lambda item: item[0].batch)
        if p.layout == "contiguous"
    }
    names = list(dict.fromkeys(by_batch.values()))
    if len(names) == 1:
        return names[0]
    return ", ".join(f"{n} from {min(b for b, k in by_batch.items() if k == n)}" for n in names)


def table(rows: Rows) -> list[dict[str, object]]:
    """One line per op, dtype and size; layouts count together (the worse decides)."""
    groups: dict[tuple, dict[Point, Mapping[str, str]]] = {}
    for p, row in rows.items():
        groups.setdefault((p.op, p.dtype, p.nr, p.nt, p.t), {})[p] = row
    lines = []
    for key, group in sorted(groups.items()):
        first = {n: wins_from((p.batch, float(r["ratio"])) for p, r in group.items() if p.threads == n) for n in (1, 2)}
        worst = min(float(r["ratio"]) for r in group.values())
        values = (*key, _backend(group), first[1], first[2], f"{worst:.3g}")
        lines.append(dict(zip(FIELDS, values, strict=True)))
    return lines


def worst_rows(rows: Rows) -> list[dict[str, object]]:
    """Per op, dtype, layout and thread count: how many rows, how many below the rule, the median and the worst."""
    groups: dict[tuple, list[tuple[Point, Mapping[str, str]]]] = {}
    for p, row in rows.items():
        groups.setdefault((p.op, p.dtype, p.layout, p.threads), []).append((p, row))
    out = []
    for key, group in sorted(groups.items()):
        ratio = lambda item: float(item[1]["ratio"])  # noqa: E731
        long = [item for item in group if float(item[1]["torch_us"]) >= SHORT_US]
        extra = [float(r["ours_us"]) - float(r["torch_us"]) for _, r in group if float(r["torch_us"]) < SHORT_US]
        p, worst = min(long or group, key=ratio)
        line: dict[str, object] = dict(zip(["op", "dtype", "layout", "threads"], key, strict=True))
        line |= {"rows": len(group), "below_rule": sum(not passes(r) for _, r in group)}
        line |= {"median_ratio": f"{statistics.median(map(ratio, group)):.3g}", "worst_ratio": worst["ratio"]}
        line |= {"worst_at": f"B={p.batch} Nr={p.nr} Nt={p.nt} T={p.t}", "worst_torch_us": worst["torch_us"]}
        line["most_extra_us_below_20_us"] = f"{max(extra):.1f}" if extra else ""
        out.append(line)
    return out


def product_rule(rows: Rows, cuda: bool) -> list[str]:
    """mimo_matmul's dispatch held against its own kernel's rows: where does it take the slower side, and where to cut?

    The slower side is the one that breaks the grid's rule against the other.
    """
    wrong: list[tuple[float, str]] = []
    wins: dict[int, bool] = {}  # by the largest side of a product: does the kernel keep to the rule at every batch?
    products = {p: r for p, r in rows.items() if p.op == OWN_PRODUCT and p.layout == "contiguous" and p.threads == 1}
    for p, r in products.items():
        ours, torch_us, ratio = float(r["ours_us"]), float(r["torch_us"]), float(r["ratio"])
        chosen = _matmul_rule.ours(p.nr, p.nt, p.t, p.batch, cuda)
        if not (obeys(ours, torch_us, ratio) if chosen else obeys(torch_us, ours, 1 / ratio)):
            wrong.append((ratio if chosen else 1 / ratio, f"B={p.batch} M={p.nr} K={p.nt} N={p.t} {p.dtype}"))
        side = max(p.nr, p.nt, p.t)
        wins[side] = wins.get(side, True) and obeys(ours, torch_us, ratio)
    if not products:
        return []
    text = f"mimo_matmul's rule takes the slower side in {len(wrong)} of {len(products)} products"
    text += "".join(f"; {ratio:.2f}x at {where}" for ratio, where in sorted(wrong)[:3])
    if not cuda:
        return [text]
    largest = max(itertools.takewhile(wins.__getitem__, sorted(wins)), default=0)
    return [text, f"its kernel keeps to the rule up to side {largest}; GPU_LARGEST is {_matmul_rule.GPU_LARGEST}"]


def summarise(rows: Rows, path: Path, tables: bool = True) -> None:
    """Print the summary and the failing rows; write both tables beside `path`."""
    summary = worst_rows(rows)
    for line in summary:
        print(
            f"{line['op']:18} {line['dtype']:10} {line['layout']:10} {line['threads']} thr {line['rows']:5} rows, "
            f"{line['below_rule']:4} below the rule, median {line['median_ratio']:>5}x, worst {line['worst_ratio']:>5}x "
            f"({line['worst_at']}), short calls at most {line['most_extra_us_below_20_us'] or '-'} us more"
        )
    bad = sorted((r for r in rows.values() if not passes(r)), key=lambda r: float(r["ratio"]))
    for r in bad[:40]:
        print("below: " + " ".join(f"{k}={v}" for k, v in r.items()))
    stem = path.stem.removesuffix("_grid")
    if summary and tables:
        timing.write_csv(path.with_name(f"{stem}_grid_summary.csv"), summary)
        with path.with_name(f"{stem}_crossover.csv").open("w", newline="") as f:
            writer = csv.DictWriter(f, FIELDS)
            writer.writeheader()
            writer.writerows(table(rows))
    for text in product_rule(rows, cuda=timing.device != "cpu"):
        print(text)
    print(f"{len(rows)} rows, {len(bad)} below the rule{'; tables' * tables} beside {path}")
