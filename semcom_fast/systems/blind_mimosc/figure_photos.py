"""The picture of a run on photographs: what was sent, what each receiver made of it, NMSE and PSNR against SNR."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import require_extra
from ..decibels import Estimate, mean_db, standard_error

COLOURS = {
    "pvd": "#7fb3d9", "pvd-starts": "#1b6ca8", "pvd-plain": "#17a2a2", "dps-csi": "#5aa17f", "bound": "#444444",
    "lmmse-m": "#e6a06a", "lmmse-2m": "#d95f02", "dps-m": "#7a4ea3", "oracle": "#9a9a9a", "djscc-csi": "#c0392b",
}  # fmt: skip
MARKERS = {"pvd": "o", "pvd-starts": "o", "bound": "x", "lmmse-m": "v", "lmmse-2m": "v", "dps-m": "^", "oracle": "+"}
PANELS = (("nmse", "channel NMSE (dB)"), ("psnr_db", "PSNR (dB)"))


class Row(NamedTuple):
    """One row of pictures, uint8 [n,S,S], what stands to its left and under each picture."""

    label: str
    images: np.ndarray
    notes: Sequence[str]


def _pictures(figure, area, rows: Sequence[Row]) -> None:
    grid = area.subgridspec(len(rows), len(rows[0].images), wspace=0.05, hspace=0.25)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row.images):
            axes = figure.add_subplot(grid[r, c])
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if row.notes:
                axes.set_xlabel(row.notes[c], fontsize=8, color="0.35", labelpad=2)
            if c == 0:
                axes.set_ylabel(row.label, rotation=0, ha="right", va="center", labelpad=8, fontsize=10)


def _value(values: np.ndarray, name: str) -> Estimate:
    """Mean and standard error; of a ratio, both in dB."""
    return mean_db(values) if name == "nmse" else Estimate(float(values.mean()), standard_error(values))


def _panels(figure, area, found: Mapping, snrs_db: Sequence[float], labels: Mapping[str, str]) -> None:
    grid = area.subgridspec(len(PANELS), 1, hspace=0.3)
    names = [name for name in dict.fromkeys(job.receiver for job in found) if name in COLOURS]
    snrs = sorted(snrs_db)
    for place, (figure_name, label) in enumerate(PANELS):
        axes = figure.add_subplot(grid[place, 0])
        for name in names:
            of_snr = {job.snr_db: figures for job, figures in found.items() if job.receiver == name}
            if figure_name not in of_snr[snrs[0]]:
                continue
            values = [_value(of_snr[snr][figure_name], figure_name) for snr in snrs]
            axes.errorbar(
                snrs, [v.value for v in values], yerr=[v.se for v in values], color=COLOURS[name], label=labels[name],
                marker=MARKERS.get(name, "s"), linewidth=1.8, markersize=6, markerfacecolor="white",
                markeredgewidth=1.6, capsize=2, elinewidth=1, linestyle="--" if name == "bound" else "-",
            )  # fmt: skip
        axes.set_ylabel(label)
        axes.set_xticks(snrs)
        axes.grid(True, color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_xlabel("SNR (dB)")


def draw(
    path: Path, rows: Sequence[Row], found: Mapping, snrs_db: Sequence[float], shown_db: float,
    labels: Mapping[str, str],
) -> None:  # fmt: skip
    """Write the figure to `path` (its suffix picks the format); folders are made as needed."""
    require_extra("matplotlib", "demo").use("Agg")
    plt = require_extra("matplotlib.pyplot", "demo")
    height = max(1.5 + 1.2 * len(rows), 6.5)
    figure = plt.figure(figsize=(16, height), dpi=120, facecolor="white")
    areas = figure.add_gridspec(
        1, 2, width_ratios=(1.5, 1), left=0.125, right=0.855, top=1 - 1.05 / height, bottom=0.65 / height, wspace=0.14
    )
    _pictures(figure, areas[0, 0], rows)
    _panels(figure, areas[0, 1], found, snrs_db, labels)
    figure.text(0.015, 1 - 0.32 / height, "Photographs received without knowing the channel", fontsize=15,
                fontweight="bold", va="center")  # fmt: skip
    subtitle = (
        f"32x32 grey crops, 256 symbols over 8 blocks of a Rayleigh 8x2 channel. Left: {shown_db:g} dB, PSNR in dB under "
        "each picture. Right: means over all crops, bars: standard error. Pilots and known channels: plain code."
    )
    figure.text(0.015, 1 - 0.64 / height, subtitle, fontsize=10, color="0.35", va="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
