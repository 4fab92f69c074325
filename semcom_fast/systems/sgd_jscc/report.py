"""One run of the system: a table, two CSV files and a picture."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ...data.captions import caption_of
from ...data.images import data_home
from ...data.photos import PhotoCrops, figure_photographs
from ...links.metrics import psnr, ssim
from ...links.perceptual import ClipScore, Inception, Lpips, WeightsNotGiven
from ..evaluation import where
from .evaluate import (
    MAIN,
    SNRS_DB,
    STEPS,
    Evaluation,
    Extra,
    Figures,
    Job,
    evaluate,
    gains,
    gains_path,
    mean_of,
    protocol_of,
)
from .figure import CHANNEL_NAMES, LABELS, Curve, Row, draw
from .link import CHANNELS, LinkConfig, send
from .receiver import SgdJscc, load_system


@dataclass(frozen=True)
class RunSettings:
    """What to send and where the results go; see `semcom-fast run sgd-jscc --help`."""

    out: Path = Path("out/sgd_jscc.png")
    csv: Path | None = None
    receivers: tuple[str, ...] = MAIN
    channels: tuple[str, ...] = CHANNELS
    snrs_db: tuple[float, ...] = SNRS_DB
    images: int = 256
    photos: str = "all"
    steps: int = STEPS
    shown_db: float = -5.0
    seed: int = 0
    mapping: str = "separate"
    edge_channel: str = "joint"
    bf16: bool = False
    lpips: tuple[Path, Path] | None = None
    clip: Path | None = None
    inception: Path | None = None
    weights: Path | None = None
    keep: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        if self.images < 2:
            raise ValueError(f"--images must be at least 2, got {self.images}")
        if not self.snrs_db or not self.channels or not self.receivers:
            raise ValueError("give at least one SNR in dB, one channel and one receiver")
        if self.steps < 1:
            raise ValueError(f"--steps must be at least 1, got {self.steps}")

    @classmethod
    def demo(cls, **changes) -> "RunSettings":
        """About a minute on one core, with photographs that come inside scikit-image and scikit-learn."""
        small = {
            "snrs_db": (-10.0, -5.0, 0.0, 5.0, 10.0),
            "channels": ("awgn", "fast"),
            "images": 24,
            "photos": "bundled",
        }
        return cls(**{**small, "keep": False, **changes})


def table(found: Mapping[Job, Figures], origins: np.ndarray) -> str:
    """The results as text, one line per channel and receiver, one column per SNR."""
    snrs = list(dict.fromkeys(job.snr_db for job in found))
    unit = f"{'PSNR':>5} {'SSIM':>5} {'edge':>5}"
    head = f"{'channel':8} {'receiver':17} | " + " | ".join(f"{f'{snr:g} dB':^{len(unit)}}" for snr in snrs)
    lines = [head, f"{'':26} | " + " | ".join([unit] * len(snrs)), "-" * len(head)]
    last = None
    for channel, receiver in dict.fromkeys((job.channel, job.receiver) for job in found):
        cells = []
        for snr in snrs:
            f = found[Job(receiver, channel, snr)]
            cells.append(f"{f['psnr_db'].mean():5.2f} {f['ssim'].mean():5.3f} {f['edge_f1'].mean():5.3f}")
        lines.append(f"{channel if channel != last else '':8} {receiver:17} | " + " | ".join(cells))
        last = channel
    errors = [mean_of(f["ssim"], origins).se for f in found.values()]
    lines.append(
        f"SSIM: standard error over crops at most {max(errors):.3f}; differences between receivers are paired:"
    )
    return "\n".join(lines)


def gain_lines(found: Mapping[Job, Figures], origins: np.ndarray) -> str:
    """SSIM differences with their standard errors as text."""
    rows = gains(found, origins)
    snrs = list(dict.fromkeys(str(row["snr_db"]) for row in rows))
    lines = []
    for what, channel in dict.fromkeys((str(row["what"]), str(row["channel"])) for row in rows):
        cells = {
            str(row["snr_db"]): f"{float(str(row['ssim'])):+.3f} ± {float(str(row['ssim_se'])):.3f}"
            for row in rows
            if (row["what"], row["channel"]) == (what, channel)
        }
        name = what if " over AWGN" in what else f"{what}, {channel}"
        lines.append(f"{name:46} | " + " | ".join(f"{cells.get(snr, ''):^15}" for snr in snrs))
    head = f"{'SSIM of the same crops':46} | " + " | ".join(f"{snr + ' dB':^15}" for snr in snrs)
    return "\n".join([head, "-" * len(head), *lines])


def _rows(settings: RunSettings, evaluation: Evaluation, photos: PhotoCrops) -> list[Row]:
    """Originals and what the receivers make of them on the first channel, and the edge map that arrived."""
    system, protocol = evaluation.system, evaluation.protocol
    images, names = figure_photographs(photos)
    captions = [caption_of(name) for name in names] or [""] * len(images)
    truth = images.float() / 255
    sent = system.transmit(truth, settings.shown_db)
    link = replace(protocol.link, channel=protocol.channels[0])
    received = send(sent.f, sent.o, settings.shown_db, link, seed=protocol.seed)
    rows, arrived = [Row("sent", truth), Row("its edges", sent.edges)], None
    for name, config in protocol.receivers.items():
        result = system.receive(received, link, config, captions=captions, seed=protocol.seed)
        quality, structure = psnr(truth, result.images, low=0.0), ssim(truth, result.images, low=0.0)
        notes = [f"{a:.1f} dB, {b:.2f}" for a, b in zip(quality.tolist(), structure.tolist(), strict=True)]
        rows.append(
            Row(
                LABELS[name].replace(", ", ",\n").replace(" guided", "\nguided").replace(" denoiser", "\ndenoiser"),
                result.images,
                notes,
            )
        )
        arrived = result.edges if arrived is None else arrived
    if arrived is not None:
        rows.insert(2, Row("edges received", arrived))
    return rows


def _picture(settings: RunSettings, evaluation: Evaluation, photos: PhotoCrops) -> None:
    origins = evaluation.protocol.origins.numpy()
    snrs = sorted(set(settings.snrs_db))
    curves = []
    for channel in settings.channels:
        for name in settings.receivers:
            values = [mean_of(evaluation.found[Job(name, channel, snr)]["ssim"], origins) for snr in snrs]
            curves.append(Curve(name, channel, [v.mean for v in values], [v.se for v in values]))
    subtitle = (
        f"64x64 crops, 512 symbols for the latent and 104 for the edges, {settings.steps} diffusion steps. Left: four "
        f"photographs at {settings.shown_db:g} dB, {CHANNEL_NAMES[settings.channels[0]]} (PSNR, SSIM). Bars: standard error."
    )
    rows = _rows(settings, evaluation, photos)
    title = "Images from a noisy latent, by diffusion that starts at the channel's noise level"
    draw(settings.out, title, subtitle, rows, snrs, curves)


def _extras(settings: RunSettings) -> tuple[dict[str, Extra], dict[str, Callable[[Tensor], Tensor]], list[str]]:
    """Figures per crop and feature networks that need the user's weights, and one line for each that is left out."""

    def lpips() -> Extra:
        distance = Lpips(*(settings.lpips or (None, None)))
        return lambda images, recovered, captions: distance(images, recovered)

    def clip() -> Extra:
        score = ClipScore(settings.clip)
        return lambda images, recovered, captions: score(recovered, captions)

    makers: dict[str, Callable[[], Extra]] = {"lpips": lpips, "clip_score": clip}
    extras: dict[str, Extra] = {}
    features: dict[str, Callable[[Tensor], Tensor]] = {}
    notes: list[str] = []
    for name, make in makers.items():
        try:
            extras[name] = make()
        except WeightsNotGiven as err:
            notes.append(str(err))
    try:
        features["fid"] = Inception(settings.inception)
    except WeightsNotGiven as err:
        notes.append(str(err))
    return extras, features, notes


def run_report(settings: RunSettings | None = None, system: SgdJscc | None = None) -> Evaluation:
    """Run, print the tables, write CSV files and picture; returns what they show.

    Args:
        settings: what to send.
        system: networks in place of those in `settings.weights`.
    """
    settings = settings or RunSettings()
    began = time.monotonic()
    system = load_system(settings.weights) if system is None else system
    photos = PhotoCrops(size=64, photos=settings.photos)
    extras, features, notes = _extras(settings)
    protocol = protocol_of(
        photos, settings.images, settings.receivers, settings.steps, bf16=settings.bf16, channels=settings.channels,
        snrs_db=settings.snrs_db, seed=settings.seed, extras=extras, features=features,
        link=LinkConfig(mapping=settings.mapping, edge_channel=settings.edge_channel),
    )  # fmt: skip
    path = settings.csv or settings.out.with_suffix(".csv")
    keep = data_home() / "sgd_jscc" if settings.keep else None
    evaluation = evaluate(
        system, protocol, path, f"{settings.photos} test photos", keep=keep, progress=settings.progress
    )
    _picture(settings, evaluation, photos)
    origins = protocol.origins.numpy()
    print(f"\nSGD-JSCC, {len(origins)} held-out 64x64 crops of {len(np.unique(origins))} photographs, "
          f"{settings.steps} steps ({', '.join(f'{n}: {LABELS[n]}' for n in settings.receivers)})\n")  # fmt: skip
    print(table(evaluation.found, origins))
    print(f"\n{gain_lines(evaluation.found, origins)}")
    print("\nPSNR in dB; edge: F1 of the edge pixels of the recovered image against the original's (noise hits some by")
    print("chance). Small networks, trained on crops of 18 photographs: a demonstration, not the paper's figures.")
    print("\n".join([*notes, ""]) if notes else "", end="")
    place = where()
    print(
        f"Ran on backend {place['backend']}, ISA {place['isa']}, {place['threads']} thread(s), torch {place['torch']}, "
        f"in {time.monotonic() - began:.0f} s. Tables: {path}, {gains_path(path)}. Picture: {settings.out}"
    )
    return evaluation
