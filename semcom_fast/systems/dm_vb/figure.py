"""The picture of a run: one channel of each profile as the estimators see it, and NMSE against SNR and pilot density."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ...errors import require_extra

COLOURS = {
    "dm-vb": "#1b6ca8", "dm-vb-paper": "#7fb2d6", "dm-vb-exact": "#123f63", "single-dm": "#5aa17f", "gm-mmse": "#d95f02",
    "gm-exact": "#444444", "lmmse": "#7a4ea3", "lasso": "#b58900", "rls": "#9a9a9a", "lasso-2x": "#8a4b08",
}  # fmt: skip
MARKERS = {"dm-vb": "o", "single-dm": "^", "gm-mmse": "s", "lmmse": "D", "lasso": "v", "lasso-2x": "<", "rls": "x"}
DASHED = ("gm-exact", "dm-vb-exact")


class Strip(NamedTuple):
    """Angular power of channels [n,Nr,Nt] side by side (the truth first), what stands left of them and under each."""

    label: str
    power: Tensor
    notes: Sequence[str]


class Curve(NamedTuple):
    """NMSE in dB of one estimator on one profile, with its standard errors."""

    estimator: str
    profile: str
    at: Sequence[float]
    values: Sequence[float]
    errors: Sequence[float]


class Sweep(NamedTuple):
    """Curves over the same axis, one panel for each profile."""

    label: str
    curves: Sequence[Curve]


def _strips(figure, area, strips: Sequence[Strip], titles: Sequence[str]) -> None:
    grid = area.subgridspec(len(strips), len(titles), wspace=0.05, hspace=0.55)
    for r, strip in enumerate(strips):
        # 30 dB below the channel's own peak is white: one scale for a row
        level = 10 * (strip.power / strip.power[0].max()).clamp_min(1e-6).log10()
        for c, title in enumerate(titles):
            axes = figure.add_subplot(grid[r, c])
            axes.imshow(level[c].numpy(), vmin=-30, vmax=0, cmap="magma_r", interpolation="nearest", aspect="auto")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color("0.8")
            axes.set_xlabel(strip.notes[c], fontsize=8, color="0.35", labelpad=2)
            if r == 0:
                axes.set_title(title.replace(", ", ",\n"), fontsize=9, pad=4)
            if c == 0:
                axes.set_ylabel(strip.label, rotation=0, ha="right", va="center", labelpad=8, fontsize=10)


def _panels(figure, area, sweep: Sweep, labels: dict[str, str], legend: bool) -> None:
    profiles = list(dict.fromkeys(curve.profile for curve in sweep.curves))
    grid = area.subgridspec(1, len(profiles), wspace=0.08)
    first = None
    for place, profile in enumerate(profiles):
        axes = figure.add_subplot(grid[0, place], sharey=first)
        for curve in (c for c in sweep.curves if c.profile == profile):
            axes.errorbar(
                curve.at, curve.values, yerr=curve.errors, color=COLOURS[curve.estimator], linewidth=1.8, markersize=5,
                marker=MARKERS.get(curve.estimator, "."), label=labels[curve.estimator], markeredgewidth=1.5,
                linestyle="--" if curve.estimator in DASHED else "-", markerfacecolor="white", capsize=2, elinewidth=1,
            )  # fmt: skip
        axes.set_title(profile, fontsize=11, loc="left")
        axes.set_xlabel(sweep.label)
        axes.grid(True, color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if first is None:
            first = axes
            axes.set_ylabel("NMSE (dB), mean over channels")
            if legend:
                axes.legend(frameon=False, fontsize=8, loc="lower left")
        else:
            axes.tick_params(labelleft=False)


def draw(
    path: Path, title: str, subtitle: str, strips: Sequence[Strip], titles: Sequence[str], sweeps: Sequence[Sweep],
    labels: dict[str, str],
) -> None:  # fmt: skip
    """Write the figure to `path` (its suffix picks the format); folders are made as needed."""
    require_extra("matplotlib", "demo").use("Agg")
    plt = require_extra("matplotlib.pyplot", "demo")
    heights = [0.95 * len(strips) + 0.2] + [4.2] * len(sweeps)
    height = 1.65 + sum(heights) + 0.5 * len(sweeps)
    figure = plt.figure(figsize=(15, height), dpi=120, facecolor="white")
    areas = figure.add_gridspec(
        len(heights), 1, height_ratios=heights, left=0.07, right=0.985, top=1 - 1.3 / height, bottom=0.55 / height,
        hspace=0.55 * len(heights) / sum(heights),
    )  # fmt: skip
    _strips(figure, areas[0, 0], strips, titles)
    for place, sweep in enumerate(sweeps):
        _panels(figure, areas[place + 1, 0], sweep, labels, legend=place == 0)
    figure.text(0.015, 1 - 0.32 / height, title, fontsize=15, fontweight="bold", va="center")
    figure.text(0.015, 1 - 0.64 / height, subtitle, fontsize=10, color="0.35", va="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
