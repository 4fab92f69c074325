"""One run of the system: a table, two CSV files and a picture."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ...data.images import data_home
from ..evaluation import where
from .estimators import LABELS, Estimators, fast_networks
from .evaluate import Evaluation, Figures, Job, Protocol, evaluate, gain_db, gains_path, mean_db, selection
from .figure import Curve, Strip, Sweep, draw
from .network import to_angular


@dataclass(frozen=True)
class RunSettings:
    """What to estimate and where the results go; see `semcom-fast run dm-vb --help`.

    strict: estimators whose weights are missing are an error, not a note. bf16: None is the processor's better choice.
    """

    protocol: Protocol = field(default_factory=lambda: Protocol(snrs_db=(20.0,), densities=()))
    out: Path = Path("out/dm_vb.png")
    csv: Path | None = None
    shown_db: float = 10.0
    bf16: bool | None = None
    weights: Path | None = None
    strict: bool = True
    keep: bool = True
    progress: bool = True

    @classmethod
    def demo(cls, **changes) -> "RunSettings":
        """About a minute on one core, after the training channels have been drawn once."""
        small = Protocol(snrs_db=(0.0, 10.0, 20.0), densities=(), channels=4)
        return cls(**{"protocol": small, "keep": False, **changes})


def _cell(figures: Figures | None) -> str:
    if figures is None:
        return f"{'-':>13}"
    value = mean_db(figures["nmse"])
    return f"{value.db:6.2f} ± {value.se:4.2f}"


def table(found: Mapping[Job, Figures], points: Sequence[tuple[float, float]], heads: Sequence[str]) -> str:
    """NMSE in dB ± standard error as text: one line per profile and estimator, one column per point of a sweep."""
    profiles = list(dict.fromkeys(job.profile for job in found))
    names = list(dict.fromkeys(job.estimator for job in found))
    head = f"{'profile':8} {'estimator':11} | " + " | ".join(f"{text:^13}" for text in heads)
    lines = [head, "-" * len(head)]
    for profile in profiles:
        for place, name in enumerate(names):
            cells = [_cell(found.get(Job(name, profile, *point))) for point in points]
            lines.append(f"{'' if place else profile:8} {name:11} | " + " | ".join(f"{c:>13}" for c in cells))
    return "\n".join(lines)


def selection_lines(found: Mapping[Job, Figures]) -> str:
    """Share of the channels whose own expert was chosen, over all profiles, by SNR or density."""
    lines = []
    for name in dict.fromkeys(job.estimator for job in found):
        points = dict.fromkeys((job.snr_db, job.density) for job in found if job.estimator == name)
        cells = []
        for snr, density in points:
            jobs = [job for job in found if job.estimator == name and (job.snr_db, job.density) == (snr, density)]
            rates = [selection(job, found[job]) for job in jobs]
            if None not in rates:
                mean = sum(rate for rate in rates if rate is not None) / len(rates)
                cells.append(f"{mean:.2f} at {snr:g} dB, density {density:g}")
        if cells:
            lines.append(f"own expert chosen, {name}: " + "; ".join(cells))
    return "\n".join(lines)


def cost_lines(found: Mapping[Job, Figures]) -> str:
    """Time and operations per channel, means over the jobs of each estimator."""
    lines = [f"{'':11} | CPU ms/channel | GFLOP/channel | iterations", "-" * 56]
    for name in dict.fromkeys(job.estimator for job in found):
        mine = [figures for job, figures in found.items() if job.estimator == name]
        mean = {key: float(np.mean([f[key][0] for f in mine])) for key in ("seconds", "gflop", "iterations")}
        lines.append(
            f"{name:11} | {1e3 * mean['seconds']:14.3g} | {mean['gflop']:13.3g} | {mean['iterations'] or float('nan'):10.3g}"
        )
    return "\n".join(lines).replace("nan", "  -")


def pooled_gain(found: Mapping[Job, Figures], better: str, base: str, point: tuple[float, float]) -> str:
    """The gain of an estimator over another on the channels of all profiles, as text; "" where one is not there."""
    profiles = dict.fromkeys(job.profile for job in found)
    pairs = [(found.get(Job(better, p, *point)), found.get(Job(base, p, *point))) for p in profiles]
    if not pairs or any(a is None or b is None for a, b in pairs):
        return ""
    ours, theirs = (np.concatenate([pair[k]["nmse"] for pair in pairs]) for k in (0, 1))  # type: ignore[index]
    gain = gain_db(ours, theirs)
    return f"{better} against {base}: {gain.db:+.2f} ± {gain.se:.2f} dB"


def _strip(evaluation: Evaluation, profile: str, shown_db: float) -> Strip:
    """The first held-out channel of a profile, and what each estimator makes of it, in beams."""
    truth = evaluation.channels(profile)[0]
    shown, notes = [truth], ["angular power"]
    for name in evaluation.names:
        h = evaluation.estimate(Job(name, profile, shown_db, evaluation.protocol.density), 1).h[0]
        error = (h - truth).abs().square().sum() / truth.abs().square().sum()
        shown.append(h)
        notes.append(f"{10 * float(error.log10()):.1f} dB")
    beams = torch.fft.fftshift(to_angular(torch.stack(shown)), dim=(1, 2))  # broadside in the middle
    return Strip(profile, beams.abs().square(), notes)


def _sweeps(evaluation: Evaluation) -> list[Sweep]:
    p = evaluation.protocol
    axes: list[tuple[str, list[tuple[float, float]], int]] = [
        ("SNR (dB)", [(snr, p.density) for snr in sorted(p.snrs_db)], 0),
        ("pilot density Np/Nt", [(p.density_snr_db, density) for density in sorted(p.densities)], 1),
    ]
    sweeps = []
    for label, points, axis in axes:
        curves = []
        for profile in p.profiles if points else ():
            for name in evaluation.names:
                values = [mean_db(evaluation.found[Job(name, profile, *point)]["nmse"]) for point in points]
                at = [point[axis] for point in points]
                curves.append(Curve(name, profile, at, [v.db for v in values], [v.se for v in values]))
        if curves:
            sweeps.append(Sweep(label, curves))
    return sweeps


def _picture(settings: RunSettings, evaluation: Evaluation) -> None:
    p = evaluation.protocol
    strips = [_strip(evaluation, profile, settings.shown_db) for profile in p.profiles]
    titles = ["true channel", *(LABELS[name] for name in evaluation.names)]
    subtitle = (
        f"16x64 channels, {p.setting.kind} set, {p.setting.data}, QPSK pilots of density {p.density:g}. Top: one held-out "
        f"channel of each profile at {settings.shown_db:g} dB, its beams over 30 dB, NMSE below. Bars: standard error over "
        f"{p.channels} channels."
    )
    title = "Channels from few pilots: a mixture of diffusion experts beside the linear references"
    draw(settings.out, title, subtitle, strips, titles, _sweeps(evaluation), LABELS)


def run_report(settings: RunSettings | None = None, estimators: Estimators | None = None) -> Evaluation:
    """Run, print the tables, write CSV files and picture; returns what they show.

    Args:
        settings: what to estimate.
        estimators: in place of those of `settings.weights`.
    """
    settings = settings or RunSettings()
    began, p = time.monotonic(), settings.protocol
    bf16 = fast_networks() if settings.bf16 is None else settings.bf16
    estimators = estimators or Estimators(p.setting, weights=settings.weights, bf16=bf16)
    keep = data_home() / "dm_vb" if settings.keep else None
    evaluation = Evaluation(estimators, p, keep, strict=settings.strict)
    path = settings.csv or settings.out.with_suffix(".csv")
    if not settings.keep:
        for old in (path, gains_path(path)):
            old.unlink(missing_ok=True)
    evaluate(evaluation, path, progress=settings.progress)
    if evaluation.names:
        _picture(settings, evaluation)
    print(_text(evaluation))
    place = where()
    print(
        f"\nRan on backend {place['backend']}, ISA {place['isa']}, {place['threads']} thread(s), torch {place['torch']}, "
        f"networks in {'bfloat16' if estimators.bf16 else 'float32'}, in {time.monotonic() - began:.0f} s. "
        f"Tables: {path}, {gains_path(path)}. Picture: {settings.out if evaluation.names else 'none'}"
    )
    return evaluation


def _text(evaluation: Evaluation) -> str:
    p, found = evaluation.protocol, evaluation.found
    names = ", ".join(f"{name}: {LABELS[name]}" for name in evaluation.names)
    parts = [
        f"\nDM-VB, {p.channels} held-out channels of each profile, {p.setting.kind} set, {p.setting.data} ({names})"
    ]
    if found and p.snrs_db:
        points = [(float(snr), p.density) for snr in p.snrs_db]
        parts += ["", f"NMSE in dB ± standard error, pilot density {p.density:g}:"]
        parts += [table(found, points, [f"{snr:g} dB" for snr in p.snrs_db])]
    if found and p.densities:
        points = [(p.density_snr_db, float(density)) for density in p.densities]
        parts += ["", f"NMSE in dB ± standard error at {p.density_snr_db:g} dB, by pilot density:"]
        parts += [table(found, points, [f"{density:g}" for density in p.densities])]
    parts += ["", cost_lines(found), "", selection_lines(found)]
    last = p.points()[-1]
    compared = [pooled_gain(found, "dm-vb", base, last) for base in evaluation.names if base != "dm-vb"]
    if any(compared):
        parts.append(f"All profiles together at {last[0]:g} dB, density {last[1]:g}, gain on the same channels:")
        parts += [line for line in compared if line]
    parts += [f"{name} missing: {reason}" for name, reason in evaluation.missing.items()]
    return "\n".join(parts)
