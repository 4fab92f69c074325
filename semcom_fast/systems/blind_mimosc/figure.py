"""The one picture of the demonstration: originals and recovered digits, and NMSE against SNR."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ...data.digits import as_images
from ...errors import require_extra


class Curve(NamedTuple):
    """One line of the NMSE plot: its label, values in dB (one per SNR), colour and line style."""

    label: str
    values_db: Sequence[float]
    colour: str
    style: str
    marker: str


class Row(NamedTuple):
    """One row of pictures [n,64] with what stands to its left."""

    label: str
    images: Tensor


def _pictures(figure, area, rows: Sequence[Row]) -> None:
    """A grid of digits, one row per label."""
    columns = len(rows[0].images)
    grid = area.subgridspec(len(rows), columns, wspace=0.06, hspace=0.06)
    for r, row in enumerate(rows):
        for c, picture in enumerate(as_images(row.images).clamp(-1, 1)):
            axes = figure.add_subplot(grid[r, c])
            axes.imshow(picture.numpy(), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if c == 0:
                axes.set_ylabel(row.label, rotation=0, ha="right", va="center", labelpad=8, fontsize=10)


def _curves(axes, snrs_db: Sequence[float], curves: Sequence[Curve]) -> None:
    for curve in curves:
        axes.plot(
            snrs_db, curve.values_db, curve.style, color=curve.colour, marker=curve.marker, label=curve.label,
            linewidth=2, markersize=6, markerfacecolor="white", markeredgewidth=1.8,
        )  # fmt: skip
    axes.set_xlabel("SNR (dB)")
    axes.set_ylabel("channel NMSE (dB); PVD: over successes")
    axes.set_xticks(list(snrs_db))
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower left")


def draw(
    path: Path, title: str, subtitle: str, rows: Sequence[Row], snrs_db: Sequence[float], curves: Sequence[Curve]
) -> None:
    """Write the figure to `path` (its suffix picks the format); folders are made as needed."""
    require_extra("matplotlib", "demo").use("Agg")
    plt = require_extra("matplotlib.pyplot", "demo")
    height = 1.5 + 0.62 * max(len(rows), 6)
    figure = plt.figure(figsize=(13, height), dpi=150, facecolor="white")
    areas = figure.add_gridspec(
        1, 2, width_ratios=(1.25, 1), left=0.115, right=0.985, top=1 - 0.95 / height, bottom=0.6 / height, wspace=0.17
    )
    _pictures(figure, areas[0, 0], rows)
    _curves(figure.add_subplot(areas[0, 1]), snrs_db, curves)
    figure.text(0.015, 1 - 0.36 / height, title, fontsize=15, fontweight="bold", va="center")
    figure.text(0.015, 1 - 0.66 / height, subtitle, fontsize=10, color="0.35", va="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
