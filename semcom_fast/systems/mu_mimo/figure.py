"""The picture of a run: what the four users sent and recovered, and PSNR against SNR."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ...baselines.sscc_codecs import CODECS
from ...errors import require_extra

COLOURS = {"full": "#1b6ca8", "no-pilot": "#5aa17f", "rzf": "#d95f02", "zf": "#9a9a9a", "djscc": "#7a4ea3"}
COLOURS |= {"jpeg": "#333333", "webp": "#777777", "bpg": "#aa7744"}
MARKERS = {"full": "o", "no-pilot": "^", "rzf": "s", "zf": "v", "djscc": "D", "jpeg": "P", "webp": "X", "bpg": "*"}
LABELS = {
    "full": "full system",
    "no-pilot": "without pilot guidance",
    "rzf": "RZF alone, no adaptation",
    "zf": "zero-forcing alone",
    "djscc": "DJSCC",
    "jpeg": "JPEG + LDPC + QAM",
    "webp": "WebP + LDPC + QAM",
    "bpg": "BPG + LDPC + QAM",
}

SCENARIO_NAMES = {"umi": "UMi", "uma": "UMa", "rma": "RMa"}


class Row(NamedTuple):
    """One row of pictures [K,3,32,32] on [0,1], what stands to its left and under each picture."""

    label: str
    images: Tensor
    notes: Sequence[str] = ()


class Curve(NamedTuple):
    """PSNR of one variant in one scenario over the SNRs."""

    variant: str
    scenario: str
    values_db: Sequence[float]


def _pictures(figure, area, rows: Sequence[Row]) -> None:
    columns = len(rows[0].images)
    grid = area.subgridspec(len(rows), columns, wspace=0.06, hspace=0.34)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row.images.clamp(0, 1)):
            axes = figure.add_subplot(grid[r, c])
            axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if r == 0:
                axes.set_title(f"user {c + 1}", fontsize=10)
            if row.notes:
                axes.set_xlabel(row.notes[c], fontsize=8, color="0.35", labelpad=2)
            if c == 0:
                axes.set_ylabel(row.label, rotation=0, ha="right", va="center", labelpad=8, fontsize=10)


def _panels(figure, area, snrs_db: Sequence[float], curves: Sequence[Curve]) -> None:
    scenarios = list(dict.fromkeys(curve.scenario for curve in curves))
    grid = area.subgridspec(1, len(scenarios), wspace=0.08)
    first = None
    for place, scenario in enumerate(scenarios):
        axes = figure.add_subplot(grid[0, place], sharey=first)
        for curve in curves:
            if curve.scenario == scenario:
                name = curve.variant
                axes.plot(
                    snrs_db, curve.values_db, color=COLOURS[name], marker=MARKERS[name], label=LABELS[name], linewidth=2,
                    linestyle="--" if name in CODECS else "-", markersize=5, markerfacecolor="white", markeredgewidth=1.6,
                )  # fmt: skip
        axes.set_title(SCENARIO_NAMES.get(scenario, scenario), fontsize=11)
        axes.set_xlabel("SNR (dB)")
        axes.grid(True, color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if first is None:
            first = axes
            axes.set_ylabel("PSNR (dB), mean over images")
            axes.legend(framealpha=0.85, edgecolor="none", fontsize=9, loc="best")
        else:
            axes.tick_params(labelleft=False)


def draw(
    path: Path, title: str, subtitle: str, rows: Sequence[Row], snrs_db: Sequence[float], curves: Sequence[Curve]
) -> None:
    """Write the figure to `path` (its suffix picks the format); folders are made as needed."""
    require_extra("matplotlib", "demo").use("Agg")
    plt = require_extra("matplotlib.pyplot", "demo")
    height = max(1.4 + 1.25 * len(rows), 5.2)
    figure = plt.figure(figsize=(15, height), dpi=150, facecolor="white")
    areas = figure.add_gridspec(
        1, 2, width_ratios=(1, 1.75), left=0.085, right=0.985, top=1 - 1.1 / height, bottom=0.65 / height, wspace=0.12
    )
    _pictures(figure, areas[0, 0], rows)
    _panels(figure, areas[0, 1], snrs_db, curves)
    figure.text(0.015, 1 - 0.32 / height, title, fontsize=15, fontweight="bold", va="center")
    figure.text(0.015, 1 - 0.62 / height, subtitle, fontsize=10, color="0.35", va="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
