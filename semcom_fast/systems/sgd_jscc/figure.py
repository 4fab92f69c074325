"""The picture of a run: what was sent, what each receiver made of it, and SSIM against SNR."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ...errors import require_extra

LABELS = {
    "codec": "codec alone",
    "wiener": "linear (Wiener) denoiser",
    "diffusion": "diffusion",
    "guided": "diffusion guided by edges",
    "guided-estimated": "guided, SNR estimated",
    "captioned": "guided, with caption",
    "one-step": "guided, one step",
    "authors": "guided, published sampler",
}
COLOURS = {
    "codec": "#9a9a9a", "wiener": "#d95f02", "diffusion": "#5aa17f", "guided": "#1b6ca8", "guided-estimated": "#7a4ea3",
    "captioned": "#b58900", "one-step": "#444444", "authors": "#c0392b",
}  # fmt: skip
STYLES = {"codec": "v", "wiener": "s", "diffusion": "^", "guided": "o", "guided-estimated": "D"}
CHANNEL_NAMES = {"awgn": "AWGN", "slow": "slow Rayleigh fading", "fast": "fast Rayleigh fading"}


class Row(NamedTuple):
    """One row of pictures [K,3,S,S] or [K,1,S,S] on [0,1], what stands to its left and under each picture."""

    label: str
    images: Tensor
    notes: Sequence[str] = ()


class Curve(NamedTuple):
    """A figure of one receiver on one channel over the SNRs, with its standard errors."""

    receiver: str
    channel: str
    values: Sequence[float]
    errors: Sequence[float]


def _pictures(figure, area, rows: Sequence[Row]) -> None:
    grid = area.subgridspec(len(rows), len(rows[0].images), wspace=0.05, hspace=0.30)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row.images.clamp(0, 1)):
            axes = figure.add_subplot(grid[r, c])
            shown = picture.expand(3, -1, -1).permute(1, 2, 0).numpy()
            axes.imshow(shown, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if row.notes:
                axes.set_xlabel(row.notes[c], fontsize=8, color="0.35", labelpad=2)
            if c == 0:
                axes.set_ylabel(row.label, rotation=0, ha="right", va="center", labelpad=8, fontsize=10)


def _panels(figure, area, snrs_db: Sequence[float], curves: Sequence[Curve], label: str) -> None:
    channels = list(dict.fromkeys(curve.channel for curve in curves))
    grid = area.subgridspec(len(channels), 1, hspace=0.22)
    first = None
    for place, channel in enumerate(channels):
        axes = figure.add_subplot(grid[place, 0], sharex=first, sharey=first)
        for curve in curves:
            if curve.channel == channel:
                axes.errorbar(
                    snrs_db, curve.values, yerr=curve.errors, color=COLOURS[curve.receiver],
                    marker=STYLES.get(curve.receiver, "x"), label=LABELS[curve.receiver], linewidth=1.8, markersize=5,
                    linestyle="--" if curve.receiver == "guided-estimated" else "-",
                    markerfacecolor="white", markeredgewidth=1.5, capsize=2, elinewidth=1,
                )  # fmt: skip
        axes.set_title(CHANNEL_NAMES.get(channel, channel), fontsize=11, loc="left")
        axes.grid(True, color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_ylabel(label)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if first is None:
            first = axes
            axes.legend(frameon=False, fontsize=9, loc="lower right")
        if place < len(channels) - 1:
            axes.tick_params(labelbottom=False)
        else:
            axes.set_xlabel("SNR (dB)")


def draw(
    path: Path, title: str, subtitle: str, rows: Sequence[Row], snrs_db: Sequence[float], curves: Sequence[Curve],
    label: str = "SSIM, mean over crops",
) -> None:  # fmt: skip
    """Write the figure to `path` (its suffix picks the format); folders are made as needed."""
    require_extra("matplotlib", "demo").use("Agg")
    plt = require_extra("matplotlib.pyplot", "demo")
    height = max(1.4 + 1.28 * len(rows), 6.0)
    figure = plt.figure(figsize=(15, height), dpi=120, facecolor="white")
    areas = figure.add_gridspec(
        1, 2, width_ratios=(1, 1.35), left=0.115, right=0.985, top=1 - 1.15 / height, bottom=0.6 / height, wspace=0.14
    )
    _pictures(figure, areas[0, 0], rows)
    _panels(figure, areas[0, 1], snrs_db, curves, label)
    figure.text(0.015, 1 - 0.32 / height, title, fontsize=15, fontweight="bold", va="center")
    figure.text(0.015, 1 - 0.64 / height, subtitle, fontsize=10, color="0.35", va="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
