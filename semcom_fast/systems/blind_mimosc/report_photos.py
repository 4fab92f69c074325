"""One run on photographs: a table, a CSV file and a picture."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...data.images import data_home
from ...data.photos import IN_FIGURES, PhotoCrops
from ..evaluation import where
from .evaluate_photos import CROPS, SNRS_DB, Job, PhotoEvaluation, PhotoProtocol, evaluate, rows_of
from .figure_photos import Row, draw
from .photo_images import SIDE, grey
from .photo_reception import RECEIVERS, STARTS

SHOWN = 8
PICTURES = ("pvd-starts", "pvd-plain", "lmmse-m", "lmmse-2m", "dps-m", "dps-csi", "djscc-csi")  # rows, where received
LABELS = {
    "pvd": "PVD, one start",
    "pvd-starts": f"PVD, {STARTS} starts",
    "pvd-plain": f"PVD, plain code, {STARTS} starts",
    "pvd-moment": "PVD, residual-matched noise",
    "pvd-csi": "PVD, channel known",
    "pvd-csi-low": "PVD, same, first level 3",
    "bound": "linearised bound",
    "bound-random": "bound, random code",
    "oracle": "LMMSE, codeword known",
    "lmmse-m": "LMMSE + DJSCC, M pilots",
    "lmmse-2m": "LMMSE + DJSCC, 2M pilots",
    "lmmse-m-equal": "  M pilots, equal CBR",
    "lmmse-2m-equal": "  2M pilots, equal CBR",
    "langevin-m": "Langevin + DJSCC, M pilots",
    "dps-m": "DPS, M pilots",
    "dps-m-equal": "DPS, M pilots, equal CBR",
    "dps-csi": "DPS, channel known",
    "djscc-csi": "DJSCC, channel known",
}


@dataclass(frozen=True)
class PhotoRunSettings:
    """What to send and where the results go; see `semcom-fast run blind-mimosc --help`."""

    out: Path = Path("out/blind_mimosc_photos.png")
    encoder: str = "penalised"
    crops: int = CROPS
    photos: str = "all"
    snrs_db: tuple[float, ...] = SNRS_DB
    receivers: tuple[str, ...] = tuple(RECEIVERS)
    seed: int = 0
    bf16: bool = False
    weights: Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.crops < 2:
            raise ValueError(f"send at least 2 crops, got {self.crops}")


def _pair(text: dict[str, str], name: str, digits: int) -> str:
    """A mean with its standard error, empty where there is none."""
    if not text[name]:
        return ""
    return f"{float(text[name]):.{digits}f} ± {float(text[f'{name}_se']):.{digits}f}"


def table(evaluation: PhotoEvaluation) -> str:
    """The results as text: one line per receiver and SNR."""
    head = (
        f"{'receiver':27} {'SNR':>4} {'CBR':>6} | {'success':>7} {'NMSE (dB)':>16} {'median':>7} | "
        f"{'PSNR (dB)':>14} {'SSIM':>14}"
    )
    lines = [head, "-" * len(head)]
    for row in rows_of(evaluation, ""):
        text = {name: str(value) for name, value in row.items()}
        success = f"{float(text['success_rate']):.0%}" if text["success_rate"] else ""
        median = f"{float(text['nmse_median_db']):.2f}" if text["nmse_median_db"] else ""
        lines.append(
            f"{LABELS[text['receiver']]:27} {text['snr_db']:>4} {float(text['cbr']):6.3f} | {success:>7} "
            f"{_pair(text, 'nmse_db', 2):>16} {median:>7} | {_pair(text, 'psnr_db', 2):>14} {_pair(text, 'ssim', 3):>14}"
        )
        if text["psnr_known_db"]:
            known = _pair(text, "psnr_known_db", 2)
            lines.append(f"{'  channel known':27} {text['snr_db']:>4} {'':6} | {'':7} {'':16} {'':7} | {known:>14}")
    return "\n".join(lines)


def figure_crops(protocol: PhotoProtocol, photos: PhotoCrops) -> Tensor:
    """Places of the crops to show, at most SHOWN: of photographs free for any figure, or the first where none is there."""
    free = torch.tensor([photo.name in IN_FIGURES for photo in photos.photographs("test")])
    places = free[protocol.origins].nonzero().squeeze(1)
    return (places if len(places) else torch.arange(len(protocol.images)))[:SHOWN]


def _rows(evaluation: PhotoEvaluation, snr_db: float, places: Tensor) -> list[Row]:
    p = evaluation.protocol
    rows = [Row("sent", p.images[places].squeeze(1).numpy(), ())]
    for name in (name for name in PICTURES if name in p.receivers):
        figures = evaluation.found[Job(name, snr_db)]
        notes = [f"{value:.1f}" for value in figures["psnr_db"][places.numpy()]]
        rows.append(Row(LABELS[name], figures["recovered"][places.numpy()], notes))
    return rows


def run_photos(settings: PhotoRunSettings | None = None) -> PhotoEvaluation:
    """Run, print the table, write CSV file and picture; a stopped run goes on where it was."""
    settings = settings or PhotoRunSettings()
    began = time.monotonic()
    photos = PhotoCrops(size=SIDE, photos=settings.photos)
    protocol = PhotoProtocol(
        grey(photos.load("test", settings.crops).images), photos.origins("test", settings.crops),
        receivers=settings.receivers, snrs_db=settings.snrs_db, seed=settings.seed, bf16=settings.bf16,
    )  # fmt: skip
    path, keep = settings.out.with_suffix(".csv"), data_home() / "blind_mimosc"
    evaluation = evaluate(
        (settings.encoder,), protocol, path, weights=settings.weights, progress=settings.progress, keep=keep
    )[settings.encoder]
    places = figure_crops(protocol, photos)
    shown = max(settings.snrs_db)
    draw(settings.out, _rows(evaluation, shown, places), evaluation.found, protocol.snrs_db, shown, LABELS)
    print(f"\nBlind reception of {settings.crops} held-out 32x32 grey crops of {len(protocol.origins.unique())} "
          f"photographs, 256 symbols each (CBR {float(256 / 1024):g}), encoder {settings.encoder!r}\n")  # fmt: skip
    print(table(evaluation))
    print(
        "\n± standard error over crops. Success: NMSE below -6 dB; PSNR and SSIM are over all crops. The bound is the"
    )
    print(
        "prediction of the linearised model with the training crops' covariance as prior. Small networks, 18 training"
    )
    print("photographs: a demonstration, not the paper's figures.")
    place = where()
    print(
        f"Ran on backend {place['backend']}, ISA {place['isa']}, {place['threads']} thread(s), torch {place['torch']}, "
        f"in {time.monotonic() - began:.0f} s. Table: {path}. Picture: {settings.out}"
    )
    return evaluation
