"""Sweeps over blind links of digits: `semcom-fast sweep blind-mimosc`.

A cell sends the first `images` held-out digits over channels and noise drawn from the seed; every setting with the same
antennas, blocks and users meets the same ones. Figures are those of `Summary`. Where images diverged, the column
`failure` says how many, and they count as failed.
"""

import functools
import hashlib
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data import load_digits
from ...receivers import PVDConfig
from ..evaluation import fingerprint
from ..settings import described
from ..sweep import Cell, Measured, add_sweep, execute_sweep
from .evaluate import SNRS_DB
from .experiment import Link, Summary, send_and_receive, summarise
from .measures import pixel_variance
from .networks import load_denoiser, load_encoder

_LINK, _PVD = Link(), PVDConfig()
_PROTOCOL = 1  # to be raised when the same cell gives other figures than before


@dataclass(frozen=True)
class DigitSetting:
    """A link, an encoder and a receiver; zeta_d None is zeta."""

    nr: int = described(_LINK.nr, "receive antennas")
    nt: int = described(_LINK.nt, "antennas of a user")
    slots: int = described(_LINK.slots, "T, slots of a block")
    blocks: int = described(_LINK.blocks, "K, with K*nt*T = 64")
    users: int = described(_LINK.users, "U")
    encoder: str = described("penalised", "penalised or plain")
    images: int = described(24, "held-out digits of a cell")
    starts: int = described(1, "restarts per digit, the best by residual energy kept")
    levels: int = described(_PVD.J, "J, noise levels")
    inner: int = described(_PVD.Jin, "inner iterations of a level")
    samples: int = described(_PVD.L, "L, samples of an inner iteration")
    sigma_max: float = described(_PVD.sigma_max, "first noise level")
    sigma_min: float = described(_PVD.sigma_min, "last noise level")
    zeta: float = described(_PVD.zeta_h, "step size")
    zeta_d: float | None = described(None, "step size of the source; default: that of --zeta")
    calibration: str = described(_PVD.calibration, "secant or moment")
    sample_noise: bool = described(_PVD.sample_noise, "samples, or the means alone")
    v0: float = described(_PVD.v0, "variance of an entry of H_0 and D_0 in the samples' variance")
    exact_covariance: bool = described(_PVD.exact_covariance, "channel's score with the residual's exact covariance")
    lagged_noise: bool = described(_PVD.lagged_noise, "effective noise variance of the iteration before")

    def __post_init__(self) -> None:
        object.__setattr__(self, "zeta_d", self.zeta if self.zeta_d is None else self.zeta_d)

    @property
    def link(self) -> Link:
        return Link(self.blocks, self.nr, self.nt, self.slots, self.users)

    def config(self) -> PVDConfig:
        """The receiver's; ValueError where it cannot be."""
        return PVDConfig(
            users=self.users,
            nt=self.nt,
            J=self.levels,
            Jin=self.inner,
            L=self.samples,
            sigma_max=self.sigma_max,
            sigma_min=self.sigma_min,
            zeta_h=self.zeta,
            zeta_d=self.zeta if self.zeta_d is None else self.zeta_d,
            calibration=self.calibration,
            sample_noise=self.sample_noise,
            v0=self.v0,
            exact_covariance=self.exact_covariance,
            lagged_noise=self.lagged_noise,
        )


class DigitSweep:
    """The system that is swept: digits, trained networks (`weights` None: those shipped), Rayleigh block fading."""

    kind: type[DigitSetting] = DigitSetting
    figures: Sequence[str] = Summary._fields

    def __init__(self, weights: Path | None = None) -> None:
        self.digits = load_digits()
        self.denoiser = load_denoiser(weights)
        self.encoder = functools.cache(functools.partial(self._encoder, weights))
        self.variance = pixel_variance(self.digits.train)

    @staticmethod
    def _encoder(folder: Path | None, variant: str, link: Link):
        return load_encoder(variant, link.blocks, link.nt, link.slots, users=link.users, folder=folder)

    def fingerprint(self, setting: DigitSetting) -> str:
        """Of the protocol and the two networks."""
        setting.config()
        available = len(self.digits.test)
        if not 1 <= setting.images <= available:
            raise ValueError(f"images must be 1 to {available}, got {setting.images}")
        for name in ("nr", "starts"):
            if getattr(setting, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(setting, name)}")
        networks = self.encoder(setting.encoder, setting.link), self.denoiser
        parts = [str(_PROTOCOL), *map(fingerprint, networks)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    def measure(self, cell: Cell[DigitSetting]) -> Measured:
        """Send the digits and receive them."""
        s = cell.setting
        outcome = send_and_receive(
            s.link, self.encoder(s.encoder, s.link), self.denoiser, self.digits.test[: s.images], cell.snr_db,
            seed=cell.seed, restarts=s.starts, config=s.config(), keep_diverged=True,
        )  # fmt: skip
        lost = int(outcome.nmse.isinf().sum())
        failure = f"{lost} of {s.images} images diverged in all restarts" if lost else ""
        return Measured(summarise(outcome, self.variance)._asdict(), failure)


def add_arguments(parser: ArgumentParser) -> None:
    """What `semcom-fast sweep blind-mimosc` takes."""
    add_sweep(parser, DigitSetting, snrs_db=SNRS_DB, out=Path("out/blind_mimosc_sweep.csv"))
    parser.add_argument("--weights", type=Path, metavar="DIR", help="weights of your own training (default: shipped)")


def execute(args: Namespace) -> None:
    execute_sweep(args, DigitSweep(args.weights))
