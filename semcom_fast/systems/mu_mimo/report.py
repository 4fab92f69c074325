"""One run of the system: a table, a CSV and a picture, from what ships with the package."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.photos import PhotoCrops, figure_photographs
from ...errors import require_extra
from ...links import psnr
from ..evaluation import where
from .evaluate import (
    PSNR_CAP_DB,
    CsvRows,
    Protocol,
    Result,
    Systems,
    labelled_images,
    results,
    scenario_channels,
    send,
)
from .evaluate_classical import ClassicalProtocol, Evaluation, best_modes
from .evaluate_classical import evaluate as evaluate_classical
from .figure import LABELS, SCENARIO_NAMES, Curve, Row, draw
from .networks import SHIPPED_SUBCARRIERS, available_variants
from .system import VARIANTS


@dataclass(frozen=True)
class RunSettings:
    """What to send and where the results go; see `semcom-fast run mu-mimo --help`."""

    out: Path = Path("out/mu_mimo.png")
    csv: Path | None = None
    variants: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ("all",)
    snrs_db: tuple[float, ...] = (-7.0, -3.0, 1.0, 7.0)
    images: int = 128
    digits: int = 96
    seeds: int = 1
    seed: int = 0
    photos: str = "bundled"
    channels: str = "shipped"
    csi_error_var: float = 0.0
    classical: tuple[str, ...] = ()
    on_singular: str | None = None
    subcarriers: int = SHIPPED_SUBCARRIERS
    weights: Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("images", "digits"):
            if getattr(self, name) < 4:
                raise ValueError(f"a grid carries 4 images: --{name} must be at least 4, got {getattr(self, name)}")
        if self.seeds < 1:
            raise ValueError(f"--seeds must be at least 1, got {self.seeds}")
        if not self.snrs_db:
            raise ValueError("give at least one SNR in dB")
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown:
            raise ValueError(f"unknown variant {unknown[0]!r}: choose from {', '.join(VARIANTS)}")


def table(found: Sequence[Result], seeds: int) -> str:
    """The results as text, one line per variant and scenario, one column per SNR."""
    snrs = list(dict.fromkeys(result.snr_db for result in found))
    labels = list(dict.fromkeys(name for result in found for name in result.accuracy))
    by = {(r.variant, r.scenario, r.snr_db): r for r in found}
    unit = " ".join([f"{'PSNR':>6} {'SSIM':>6}", *(f"{name:>7}" for name in labels)])
    head = f"{'variant':9} {'scenario':8} | " + " | ".join(f"{f'{snr:g} dB':^{len(unit)}}" for snr in snrs)
    lines = [head, f"{'':9} {'':8} | " + " | ".join([unit] * len(snrs)), "-" * len(head)]
    for variant, scenario in dict.fromkeys((r.variant, r.scenario) for r in found):
        cells = []
        for snr in snrs:
            r = by[variant, scenario, snr]
            right = (f"{r.accuracy[name][0]:7.1%}" if name in r.accuracy else f"{'-':>7}" for name in labels)
            cells.append(" ".join([f"{r.psnr_db:6.2f} {r.ssim:6.3f}", *right]))
        lines.append(f"{variant:9} {scenario:8} | " + " | ".join(cells))
    errors = [r.psnr_se for r in found if not math.isnan(r.psnr_se)]
    if errors:
        lines.append(f"PSNR: standard error over {seeds} draws of channels and noise at most {max(errors):.3f} dB")
    return "\n".join(lines)


def classical_table(evaluation: Evaluation) -> str:
    """The classical links as text: one line per codec and scenario, per SNR the mode that does best there."""
    best = best_modes(evaluation)
    snrs = list(dict.fromkeys(snr for _, _, snr, _ in best))
    head = f"{'codec':9} {'scenario':8} | " + " | ".join(f"{f'{snr:g} dB':^26}" for snr in snrs)
    lines = [
        head,
        f"{'':9} {'':8} | " + " | ".join([f"{'PSNR':>6} {'BLER':>6} {'mode':>12}"] * len(snrs)),
        "-" * len(head),
    ]
    for codec, scenario in dict.fromkeys((codec, scenario) for codec, scenario, _, _ in best):
        cells = []
        for snr in snrs:
            job = best[codec, scenario, snr, evaluation.protocol.csi_error_vars[0]]
            figures = evaluation.found[job]
            cells.append(f"{figures['psnr'].mean():6.2f} {figures['block_error'].mean():6.1%} {job.mode:>12}")
        lines.append(f"{codec:9} {scenario:8} | " + " | ".join(cells))
    return "\n".join(lines)


def _classical(settings: RunSettings, protocol: Protocol) -> ClassicalProtocol | None:
    """The classical links over the same images, channels and noise, where they are asked for."""
    if not settings.classical:
        return None
    links = ClassicalProtocol(
        protocol.photos, protocol.channels, settings.classical, snrs_db=protocol.snrs_db, seeds=protocol.seeds,
        csi_error_vars=(protocol.csi_error_var,), subcarriers=settings.subcarriers,
    )  # fmt: skip
    require_extra("sionna.phy", "sionna")
    return links


def classical_path(settings: RunSettings) -> Path:
    """Where the rows of the classical links go: beside the others."""
    path = settings.csv or settings.out.with_suffix(".csv")
    return path.with_name(f"{path.stem}_classical{path.suffix}")


def _rows(systems: Systems, photos: PhotoCrops, protocol: Protocol, scenario: str) -> list[Row]:
    """Originals, and what the variants make of them at the highest SNR; the first one at the lowest, too."""
    images, _ = figure_photographs(photos)
    truth = images.float() / 255
    rows = [Row("sent", truth)]
    low, high = min(protocol.snrs_db), max(protocol.snrs_db)
    first = next(iter(systems.loaded))
    shown = [(first, low)] if low < high else []
    for name, snr in [*shown, *((name, high) for name in systems.loaded)]:
        (system, *_) = systems.loaded[name].values()
        sent = send(
            system, images, protocol.channels[scenario], snr, protocol.seeds[0],
            csi_error_var=protocol.csi_error_var, on_singular=protocol.on_singular,
        ).images  # fmt: skip
        notes = [f"{value:.1f} dB" for value in psnr(truth, sent, low=0.0, high=1.0, cap_db=PSNR_CAP_DB).tolist()]
        rows.append(Row(f"{name}\n{snr:g} dB", sent, notes))
    return rows


def _picture(
    settings: RunSettings, systems: Systems, photos: PhotoCrops, protocol: Protocol, found, classical: Evaluation | None
) -> None:
    by = {(r.variant, r.scenario, r.snr_db): r.psnr_db for r in found}
    snrs = sorted(set(protocol.snrs_db))
    curves = [
        Curve(name, scenario, [by[name, scenario, snr] for snr in snrs])
        for name in systems.loaded
        for scenario in protocol.channels
    ]
    if classical is not None:
        best = best_modes(classical)
        for codec in settings.classical:
            for scenario in protocol.channels:
                jobs = [best[codec, scenario, snr, protocol.csi_error_var] for snr in snrs]
                curves.append(Curve(codec, scenario, [float(classical.found[job]["psnr"].mean()) for job in jobs]))
    scenario = next(iter(protocol.channels))
    subtitle = (
        f"Four users, four antennas, {settings.subcarriers} subcarriers x 14 OFDM symbols, 3GPP TR 38.901 channels known to "
        f"the transmitter. Left: four photographs at 32x32, sent together over one {SCENARIO_NAMES[scenario]} channel."
    )
    rows = _rows(systems, photos, protocol, scenario)
    draw(settings.out, "Four images in one slot of a MU-MIMO OFDM downlink", subtitle, rows, snrs, curves)


def run_report(settings: RunSettings | None = None) -> list[Result]:
    """Run, print the table, write CSV and picture; returns what the table shows."""
    settings = settings or RunSettings()
    began = time.monotonic()
    variants = settings.variants or tuple(available_variants(settings.subcarriers, settings.weights))
    if not variants:
        raise FileNotFoundError(
            f"no weights for {settings.subcarriers} subcarriers: train them with "
            f"semcom-fast train mu-mimo --subcarriers {settings.subcarriers} and give --weights"
        )
    systems = Systems(variants, settings.subcarriers, settings.weights)
    photos = PhotoCrops(size=32, photos=settings.photos)
    crops = photos.load("test", settings.images)
    channels = scenario_channels(settings.scenarios, settings.channels)
    seeds = tuple(range(settings.seed, settings.seed + settings.seeds))
    labelled = labelled_images(settings.digits)
    protocol = Protocol(
        crops, labelled, channels, settings.snrs_db, seeds, settings.csi_error_var, settings.on_singular
    )
    links = _classical(settings, protocol)  # names what it lacks before anything is computed
    path = settings.csv or settings.out.with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    found = []
    with path.open("w", newline="") as file:
        rows = CsvRows(file, protocol, f"{settings.photos} test photos", settings.channels, settings.subcarriers)
        for result in results(systems, protocol, settings.progress):
            rows.add(result)
            found.append(result)
    classical = None
    if links is not None:
        classical = evaluate_classical(links, classical_path(settings), progress=settings.progress)
    _picture(settings, systems, photos, protocol, found, classical)
    names = ", ".join(f"{name}: {LABELS[name]}" for name in variants)
    print(f"\nMU-MIMO OFDM, {len(crops) // 4 * 4} held-out photo crops, 4 users to a slot ({names})\n")
    print(table(found, settings.seeds))
    if classical is not None:
        print("\nThe same by image codec, LDPC code and QAM, the best mode at each SNR; a lost image counts as 0 dB:\n")
        print(classical_table(classical))
    print(
        "\nPSNR in dB, mean over images; digits, stamps: accuracy of the classifier on held-out handwritten digits and,"
    )
    print("where tools/get_photos.sh --tuxpaint fetched them, on STAMPS-10 (55 test objects in 10 classes).")
    print("Crops of a few photographs: figures compare with each other, not with CIFAR-10 or the paper.")
    place = where()
    if classical is not None:
        print(f"Every mode of the classical links: {classical_path(settings)}")
    print(
        f"Ran on backend {place['backend']}, ISA {place['isa']}, {place['threads']} thread(s), torch {place['torch']}, "
        f"in {time.monotonic() - began:.0f} s. Table: {path}. Picture: {settings.out}"
    )
    return found
