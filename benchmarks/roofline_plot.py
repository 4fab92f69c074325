"""The picture of roofline.py: rows under the ceilings of the machine, numbered, with a key."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from semcom_fast.errors import require_extra

if TYPE_CHECKING:
    from .roofline import Limits

OURS, TORCH, PRODUCTS = "#b3261e", "#5f6368", "#188038"
CEILINGS = ("#0b57d0", "#7b9fd9", "#9db8e3", "#c2d3ee")  # memory first, then the caches from large to small
STEPS = [
    (r * math.cos(a), r * math.sin(a)) for r in (9, 15, 22, 30, 40) for a in (0.8, 2.4, 3.9, 5.5, 0, 1.6, 3.1, 4.7)
]


class Point(NamedTuple):
    """One rotated row: operations per byte, rates of ours and of best torch, and the ratio of their times."""

    name: str
    intensity: float
    ours: float  # GFLOP/s, or GB/s where no operations are counted
    torch: float
    ratio: float  # the median over rounds, as the tables have it
    wide: bool  # double precision


def points(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Point], list[Point]]:
    """Rows with operations, and rows without."""
    counted, moved = [], []
    for r in rows:
        if r["cache"] != "rotated":
            continue
        ours_us, torch_us, ratio, nbytes = (float(r[k]) for k in ("ours_us", "best_torch_us", "ratio", "min_bytes"))
        flops = float(r["gflop_per_s"] or 0) * ours_us * 1e3
        name, wide = f"{r['op']} {r['size']}", "128" in str(r.get("dtype", ""))
        if wide and "complex128" not in name:
            name += " complex128"
        if flops > 0:
            counted.append(Point(name, flops / nbytes, flops / ours_us * 1e-3, flops / torch_us * 1e-3, ratio, wide))
        else:
            moved.append(Point(name, 0.0, nbytes / ours_us * 1e-3, nbytes / torch_us * 1e-3, ratio, wide))
    return counted, moved


def _bandwidths(limits: "Limits") -> list[tuple[str, float]]:
    """Memory and each cache, in GB/s: the copy whose two buffers fill about half of it."""
    out = [("memory", limits.copy_bytes_per_s * 1e-9)]
    for name, size in reversed(limits.caches if limits.staircase else ()):
        rate = min(limits.staircase, key=lambda step: abs(math.log(step[0] / (size / 2))))[1]
        out.append((name, rate * 1e-9))
    return out


def _merged(values: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Neighbours within a fifth of each other share one label."""
    out: list[tuple[str, float]] = []
    for name, value in sorted(values, key=lambda v: v[1]):
        if out and value < 1.2 * out[-1][1]:
            out[-1] = f"{name}, {out[-1][0]}", value
        else:
            out.append((name, value))
    return out


def _ceilings(axes: Any, limits: "Limits", low: float, high: float) -> None:
    """Drawn when the axes have their limits: the labels follow the lines."""
    bandwidths = _bandwidths(limits)
    rates = [
        ("cgemm", limits.cgemm_flops_per_s),
        ("zgemm", limits.zgemm_flops_per_s),
        ("sgemm", limits.sgemm_flops_per_s),
    ]
    rates = [(name, rate * 1e-9) for name, rate in rates if rate == rate]
    top, fastest = max(rate for _, rate in rates), max(rate for _, rate in bandwidths)
    for (name, rate), colour in zip(bandwidths, CEILINGS, strict=False):
        end = min(high, top / rate)
        axes.plot([low, end], [low * rate, end * rate], color=colour, lw=2 if name == "memory" else 1.2, zorder=1)
    (x0, y0), (x1, y1) = axes.transData.transform([(low, 1.0), (10 * low, 10.0)])
    turn = math.degrees(math.atan2(y1 - y0, x1 - x0))
    for name, rate in _merged(bandwidths):
        style = {"rotation": turn, "rotation_mode": "anchor", "fontsize": 8, "color": CEILINGS[0], "va": "bottom"}
        style |= {"bbox": {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.6}, "zorder": 6}
        axes.text(low * 1.1, low * 1.1 * rate * 1.12, f"copy, {name}: {rate:.3g} GB/s", **style)
    for name, rate in rates:
        style = {"lw": 2, "ls": "-"} if name == "cgemm" else {"lw": 1.2, "ls": "--"}
        axes.plot([rate / fastest, high], [rate, rate], color=PRODUCTS, zorder=1, **style)
    for name, rate in _merged(rates):
        axes.text(high * 1.03, rate, f"{name}\n{rate:.3g} GFLOP/s", color=PRODUCTS, fontsize=8, va="center")


def _markers(axes: Any, shown: Sequence[Point]) -> list[tuple[float, float]]:
    """Filled: ours; hollow: best torch on the same inputs; a thin line joins them."""
    for p in shown:
        shape = "s" if p.wide else "o"
        axes.plot([p.intensity] * 2, [p.torch, p.ours], color="#c4c7c5", lw=0.8, zorder=2)
        axes.plot(p.intensity, p.torch, shape, ms=5, mfc="white", mec=TORCH, mew=1, zorder=3)
        axes.plot(p.intensity, p.ours, shape, ms=6, color=OURS, mec="white", mew=0.5, zorder=4)
    return [(p.intensity, y) for p in shown for y in (p.ours, p.torch)]


def _numbers(axes: Any, shown: Sequence[Point], taken: list[tuple[float, float]]) -> None:
    """Each point's number at the nearest free place, with a leader when that is not beside it."""
    pixels = axes.figure.dpi / 72
    boxes = [
        (x - 4 * pixels, y - 4 * pixels, x + 4 * pixels, y + 4 * pixels) for x, y in axes.transData.transform(taken)
    ]
    for number, p in enumerate(shown, 1):
        x, y = axes.transData.transform((p.intensity, p.ours))
        half = (3 + 2.6 * len(str(number))) * pixels, 5 * pixels
        for dx, dy in STEPS:
            cx, cy = x + dx * pixels, y + dy * pixels
            box = cx - half[0], cy - half[1], cx + half[0], cy + half[1]
            if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes):
                break
        boxes.append(box)
        far = math.hypot(dx, dy) > 16
        arrow = {"arrowstyle": "-", "color": OURS, "lw": 0.5, "shrinkA": 0, "shrinkB": 2} if far else None
        centre = {"ha": "center", "va": "center", "textcoords": "offset points", "fontsize": 8, "color": OURS}
        centre["bbox"] = {"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.4}
        axes.annotate(str(number), (p.intensity, p.ours), (dx, dy), arrowprops=arrow, zorder=5, **centre)


def _roofline(axes: Any, shown: Sequence[Point], limits: "Limits") -> None:
    ridge = limits.cgemm_flops_per_s / limits.copy_bytes_per_s
    low = min([p.intensity for p in shown] + [0.5]) / 2.5
    high = max([p.intensity for p in shown] + [ridge]) * 3
    axes.set_xscale("log")
    axes.set_yscale("log")
    taken = _markers(axes, shown)
    bottom = min([min(p.ours, p.torch) for p in shown] + [low * limits.copy_bytes_per_s * 1e-9]) / 1.6
    rates = (limits.cgemm_flops_per_s, limits.zgemm_flops_per_s, limits.sgemm_flops_per_s)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, max([r for r in rates if r == r] + [p.ours * 1e9 for p in shown]) * 1.8e-9)
    axes.set_xlabel("real operations per byte of compulsory traffic")
    axes.set_ylabel("GFLOP/s")
    axes.grid(True, which="major", color="#eeeeee", zorder=0)
    axes.figure.canvas.draw()
    _ceilings(axes, limits, low, high)
    axes.figure.canvas.draw()
    _numbers(axes, shown, taken)


def _key(axes: Any, shown: Sequence[Point], limits: "Limits") -> None:
    """Numbers, names, and how far each is below the roof."""
    axes.axis("off")
    lines = ["     of roof   over best torch"]
    for number, p in enumerate(shown, 1):
        gemm = limits.zgemm_flops_per_s if p.wide and limits.zgemm_flops_per_s == limits.zgemm_flops_per_s else 0
        roof = min(p.intensity * limits.copy_bytes_per_s, gemm or limits.cgemm_flops_per_s) * 1e-9
        lines.append(f"{number:3d} {100 * p.ours / roof:4.0f} %{p.ratio:7.1f}x  {p.name}")
    axes.text(0, 1, "\n".join(lines), family="monospace", fontsize=7.5, va="top", transform=axes.transAxes)


def _bandwidth_panel(axes: Any, moved: Sequence[Point], limits: "Limits") -> None:
    """Rows whose operations are not counted, against the copy."""
    copy = limits.copy_bytes_per_s * 1e-9
    axes.axvline(copy, color=CEILINGS[0], lw=2)
    label = {"color": CEILINGS[0], "fontsize": 8, "ha": "center", "va": "center"}
    axes.text(copy, -1.3, f"copy {copy:.3g} GB/s", bbox={"fc": "white", "ec": "none", "pad": 1.5}, **label)
    for y, p in enumerate(moved):
        axes.plot([p.torch, p.ours], [y, y], color="#c4c7c5", lw=0.8, zorder=2)
        axes.plot(p.torch, y, "o", ms=5, mfc="white", mec=TORCH, zorder=3)
        axes.plot(p.ours, y, "o", ms=6, color=OURS, mec="white", mew=0.5, zorder=4)
    axes.set_xscale("log")
    axes.set_yticks(range(len(moved)), [p.name for p in moved], fontsize=7.5)
    axes.set_ylim(len(moved) - 0.4, -2.2)
    axes.set_xlabel("GB/s of compulsory traffic (operations not counted; some draw normals)")
    axes.grid(True, axis="x", which="major", color="#eeeeee", zorder=0)


def draw(rows: Sequence[Mapping[str, Any]], limits: "Limits", path: Path) -> Any:
    """One PNG: the roofline and its key on top, rows by bandwidth below; returns the figure."""
    require_extra("matplotlib", "demo")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counted, moved = points(rows)
    counted.sort(key=lambda p: (p.intensity, p.ours))
    heights = [max(6.0, 0.155 * (len(counted) + 2)), 0.6 + 0.2 * len(moved)] if moved else [6.0]
    figure = Figure(figsize=(15, sum(heights) + 1.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights), 2, width_ratios=(9, 6), height_ratios=heights)
    top, key = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    _key(key, counted, limits)
    if moved:
        _bandwidth_panel(figure.add_subplot(grid[1, :]), moved, limits)
    _roofline(top, counted, limits)
    first = rows[0] if rows else {}
    kinds = {k: sorted({str(r[k]) for r in rows if r.get(k)}) for k in ("device", "date", "commit")}
    where = ", ".join(" ".join(found) for found in kinds.values() if found)
    threads = f"{first['threads']} threads of " if first.get("threads") else ""
    legend = "filled: semcom_fast, hollow: best torch (squares: double precision), inputs past the last cache"
    title = f"{threads}{where}\n{legend}"
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return figure
