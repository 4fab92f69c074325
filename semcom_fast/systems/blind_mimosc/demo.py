"""The demonstration: held-out digits over a blind MIMO channel, a table and one picture, in about a minute."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ...data import load_digits
from ...errors import require_extra
from ...receivers import PVDConfig
from ..evaluation import where
from .experiment import Link, Outcome, Summary, send_and_receive, summarise
from .figure import Curve, Row, draw
from .measures import mean_codeword_fraction, pixel_variance
from .networks import load_denoiser, load_encoder
from .overhead import ROUNDS, Overhead, measure

STARTS = 4
SHOWN = 10  # digits in the picture
TIMED_JIN = 10  # inner iterations per level while timing: half a run, on both sides
IMPLICIT_PILOT = 0.2  # share of constant energy from which the code is said to carry an implicit pilot


@dataclass(frozen=True)
class DemoSettings:
    """What to send: how many held-out digits, at which SNRs (dB), from which channel seed; where the picture goes."""

    out: Path = Path("out/blind_mimosc.png")
    images: int = 24
    snrs_db: tuple[float, ...] = (0.0, 5.0, 10.0, 15.0, 20.0)
    seed: int = 0
    weights: Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.images <= 297:
            raise ValueError(f"the demonstration sends 2 to 297 held-out digits, not {self.images}")
        if not self.snrs_db:
            raise ValueError("give at least one SNR in dB")


class Point(NamedTuple):
    """One encoder at one SNR, received from one start and from several."""

    encoder: str
    snr_db: float
    single: Summary
    multi: Summary
    outcome: Outcome


def _transmissions(settings: DemoSettings, link: Link, images: Tensor, variance: float, bar) -> list[Point]:
    denoiser = load_denoiser(settings.weights)
    points = []
    for variant in ("penalised", "plain"):
        encoder = load_encoder(variant, link.blocks, link.nt, link.slots, folder=settings.weights)
        for snr in settings.snrs_db:
            outcomes = []
            for starts in (1, STARTS):
                bar.set_description(f"{variant} encoder, {snr:g} dB, {starts} start{'s' if starts > 1 else ''}")
                outcomes.append(
                    send_and_receive(link, encoder, denoiser, images, snr, seed=settings.seed, restarts=starts)
                )
                bar.update()
            single, multi = (summarise(outcome, variance) for outcome in outcomes)
            points.append(Point(variant, snr, single, multi, outcomes[1]))
    return points


def table(points: Sequence[Point], link: Link) -> str:
    """The results as text: one line per encoder and SNR."""
    cbr, once, twice = (link.cbr(n) for n in (0, link.streams, 2 * link.streams))
    head = (
        f"{'':9} {'SNR':>4} | {'channel NMSE (dB)':^44} | {'success':^13} | {'images, ' + str(STARTS) + ' starts':^19} |"
        f" {'s/image':>12}\n"
        f"{'encoder':9} {'dB':>4} | {'PVD x1':>8} {f'PVD x{STARTS}':>8} {'LMMSE M':>8} {'LMMSE 2M':>8} {'oracle':>8} |"
        f" {'x1':>6} {f'x{STARTS}':>6} | {'MSE/var':>8} {'PSNR (dB)':>10} | {'x1':>6}{f'x{STARTS}':>6}"
    )
    lines = [head, "-" * len(head.splitlines()[1])]
    for p in points:
        lines.append(
            f"{p.encoder:9} {p.snr_db:4g} | {p.single.nmse_db:8.2f} {p.multi.nmse_db:8.2f} {p.multi.pilots_db:8.2f} "
            f"{p.multi.pilots_twice_db:8.2f} {p.multi.oracle_db:8.2f} | {p.single.success_rate:6.1%} "
            f"{p.multi.success_rate:6.1%} | {p.multi.mse_over_var:8.4f} {p.multi.psnr_db:10.2f} | "
            f"{p.single.seconds_per_image:6.3f}{p.multi.seconds_per_image:6.3f}"
        )
    lines.append(
        f"\nCBR (channel uses per pixel): PVD {cbr:.3f} with no pilots; LMMSE with M = {link.streams} Gaussian pilot(s) per "
        f"block {once:.3f}, with 2M {twice:.3f}; the oracle LMMSE\nknows the codeword. NMSE, MSE and PSNR are over "
        "successes (NMSE < -6 dB); MSE/var: 1 is guessing the mean image. xN: best of N starts by residual energy."
    )
    return "\n".join(lines)


def pilot_remark(fractions: dict[str, float]) -> str:
    """What share of each encoder's energy is the same for all images, and whether that is an implicit pilot."""
    lines = []
    for variant, fraction in fractions.items():
        verdict = (
            "an implicit superimposed pilot: do not call this encoder pilot-free"
            if fraction >= IMPLICIT_PILOT
            else "little that a receiver could use as a pilot"
        )
        lines.append(f"Mean-codeword energy, {variant} encoder: {fraction:.1%} of the transmit energy is the same for "
                     f"every image, {verdict}.")  # fmt: skip
    return "\n".join(lines)


def _picture(settings: DemoSettings, link: Link, points: Sequence[Point], fractions: dict[str, float]) -> None:
    by = {(p.encoder, p.snr_db): p for p in points}
    snrs = settings.snrs_db
    penalised = [by["penalised", snr] for snr in snrs]
    plain = [by["plain", snr] for snr in snrs]
    rows = [Row("sent", penalised[0].outcome.sent[:SHOWN, 0])]
    rows += [Row(f"{p.snr_db:g} dB", p.outcome.recovered[:SHOWN, 0]) for p in penalised]
    curves = [
        Curve("LMMSE, M Gaussian pilots", [p.multi.pilots_db for p in penalised], "#9a9a9a", "--", "v"),
        Curve("LMMSE, 2M Gaussian pilots", [p.multi.pilots_twice_db for p in penalised], "#5f5f5f", "--", "^"),
        Curve(
            f"PVD, plain encoder ({fractions['plain']:.0%} constant energy)",
            [p.multi.nmse_db for p in plain],
            "#d95f02",
            "-",
            "s",
        ),
        Curve(
            f"PVD, penalised encoder ({fractions['penalised']:.0%} constant energy)",
            [p.multi.nmse_db for p in penalised],
            "#1b6ca8",
            "-",
            "o",
        ),
        Curve("oracle LMMSE (codeword known)", [p.multi.oracle_db for p in penalised], "#1a1a1a", ":", "D"),
    ]
    subtitle = (
        f"Held-out 8x8 digits, {link.users} user, {link.blocks} fading blocks of {link.slots} slots, {link.nr}x{link.nt} "
        f"Rayleigh MIMO, noise variance known. Left: recovered from the penalised encoder's codewords, best of {STARTS} "
        "starts."
    )
    draw(settings.out, "Channel and images recovered together, blind", subtitle, rows, snrs, curves)


def _footer(place: dict[str, str], cost: Overhead, images: int, seconds: float, out: Path) -> str:
    return (
        f"Loop: {cost.loop_us:.0f} us per inner iteration at batch {images}, its networks alone {cost.network_us:.0f} us: "
        f"overhead beyond the networks {cost.overhead:.0%} (medians of {ROUNDS} interleaved runs).\n"
        f"Ran on backend {place['backend']}, ISA {place['isa']}, {place['threads']} thread(s), torch {place['torch']}, "
        f"in {seconds:.0f} s. Picture: {out}"
    )


def run_demo(settings: DemoSettings | None = None) -> list[Point]:
    """Run the demonstration, print its table and write its picture; returns what the table shows."""
    settings = settings or DemoSettings()
    began = time.monotonic()
    link, digits = Link(), load_digits()
    images, variance = digits.test[: settings.images], pixel_variance(digits.train)
    bar = require_extra("tqdm", "demo").tqdm(
        total=4 * len(settings.snrs_db) + ROUNDS, unit="run", disable=not settings.progress, dynamic_ncols=True
    )
    with bar:
        points = _transmissions(settings, link, images, variance, bar)
        bar.set_description("timing the loop and its networks")
        encoders = {variant: load_encoder(variant, folder=settings.weights) for variant in ("penalised", "plain")}
        denoiser = load_denoiser(settings.weights)
        config = PVDConfig(users=link.users, nt=link.nt, Jin=TIMED_JIN)
        cost = measure(encoders["penalised"], denoiser, images[:24], link=link, config=config, on_round=bar.update)
    fractions = {variant: mean_codeword_fraction(encoder, digits.test) for variant, encoder in encoders.items()}
    _picture(settings, link, points, fractions)
    print(f"\nBlind-MIMOSC, {len(images)} held-out digits, (K,Nr,Nt,T) = ({link.blocks},{link.nr},{link.nt},{link.slots}), "
          "channel and images unknown to the receiver\n")  # fmt: skip
    print(table(points, link))
    print(f"\n{pilot_remark(fractions)}")
    seconds = time.monotonic() - began
    print(_footer(where(), cost, min(24, len(images)), seconds, settings.out))
    return points
