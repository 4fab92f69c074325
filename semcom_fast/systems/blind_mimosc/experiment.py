"""One blind transmission of digits and how well it was received: what demo, evaluation and command line share."""

import time
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...baselines import oracle_lmmse_channel, pilot_lmmse_nmse
from ...links import channel_nmse, draw_channel, noise_var_from_snr_db, psnr, to_db, transmit
from ...receivers import PVD, DivergedError, GaussianChannelPrior, PVDConfig

SUCCESS_DB = -6.0
_PARTNER = 37  # user u sends the digit 37 u places further on, so that users never send the same one


@dataclass(frozen=True)
class Link:
    """Sizes of a block-fading link: K blocks of T slots, Nr receive antennas, U users with Nt antennas each."""

    blocks: int = 8
    nr: int = 4
    nt: int = 1
    slots: int = 8
    users: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def streams(self) -> int:
        """M = U Nt, what pilots are counted in."""
        return self.users * self.nt

    def cbr(self, pilots: int = 0, source: int = 64) -> float:
        """Channel uses per source value and user; `pilots` slots of every block carry no data."""
        if not 0 <= pilots < self.slots:
            raise ValueError(f"{pilots} pilots leave no room for data in blocks of {self.slots} slots")
        return self.blocks * self.nt * self.slots / source * self.slots / (self.slots - pilots)


class Outcome(NamedTuple):
    """Per item: linear NMSE of the receiver and its baselines [B], what was sent and recovered [B,U,64], seconds.

    An item that diverged has infinite NMSE, and what was recovered of it is no image.
    """

    nmse: Tensor
    oracle: Tensor
    pilots: Tensor
    pilots_twice: Tensor
    sent: Tensor
    recovered: Tensor
    seconds: float


class Summary(NamedTuple):
    """An outcome in numbers; NMSE of successes is the mean ratio over items below -6 dB, then in dB."""

    success_rate: float
    nmse_db: float
    nmse_median_db: float
    oracle_db: float
    median_gap_db: float
    pilots_db: float
    pilots_twice_db: float
    mse_over_var: float
    psnr_db: float
    seconds_per_image: float


def send_and_receive(
    link: Link,
    encoder,
    denoiser,
    images: Tensor,
    snr_db: float,
    *,
    seed: int,
    restarts: int = 1,
    config: PVDConfig | None = None,
    keep_diverged: bool = False,
    progress: bool = False,
) -> Outcome:
    """Send images [B,64] over blind block fading at `snr_db` and recover channel and images together.

    The channel is Rayleigh, one draw per image from `seed`; the receiver knows the noise variance, the encoder and the
    priors, and neither channel nor pilots. User u sends image (b + 37 u) mod B.

    Args:
        config: of the receiver; its users and nt are those of the link. None: the defaults.
        keep_diverged: count an image whose restarts all diverged as one of infinite NMSE.

    Raises:
        DivergedError: an image's restarts all diverged, without keep_diverged.
    """
    sent = torch.stack([images.roll(-_PARTNER * u, 0) for u in range(link.users)], 1)
    noise_var = noise_var_from_snr_db(float(snr_db), users=link.users, nt=link.nt)
    h = draw_channel(len(images), link.users, link.blocks, link.nr, link.nt, seed=seed)
    x = encoder(sent)
    y = transmit(h, x, noise_var, seed)
    config = replace(config or PVDConfig(), users=link.users, nt=link.nt)
    receiver = PVD(encoder, GaussianChannelPrior(), denoiser, config)
    began = time.perf_counter()
    try:
        result = receiver.run(y, noise_var, restarts=restarts, seed=seed, progress=progress)
    except DivergedError as err:
        if not keep_diverged:
            raise
        result = err.result
    seconds = time.perf_counter() - began
    return Outcome(
        nmse=channel_nmse(h, result.h).where(result.energy.isfinite(), torch.inf),
        oracle=channel_nmse(h, oracle_lmmse_channel(y, x, noise_var)),
        pilots=pilot_lmmse_nmse(h, link.streams, noise_var, seed=seed),
        pilots_twice=pilot_lmmse_nmse(h, 2 * link.streams, noise_var, seed=seed),
        sent=sent,
        recovered=result.d,
        seconds=seconds,
    )


def join(outcomes: list[Outcome]) -> Outcome:
    """Outcomes of several batches as one."""

    def whole(name: str) -> Tensor:
        return torch.cat([getattr(outcome, name) for outcome in outcomes])

    tensors = {name: whole(name) for name in Outcome._fields if name != "seconds"}
    return Outcome(**tensors, seconds=sum(outcome.seconds for outcome in outcomes))


def summarise(outcome: Outcome, pixel_variance: float) -> Summary:
    """Success rate, NMSE and image quality; image figures are over successes too, as the NMSE."""
    good = outcome.nmse < 10 ** (SUCCESS_DB / 10)

    def db(ratios: Tensor) -> float:
        return float(to_db(ratios.double().mean())) if len(ratios) else float("nan")

    sent, recovered = outcome.sent[good].flatten(0, 1), outcome.recovered[good].flatten(0, 1)
    median = float(to_db(outcome.nmse.double().median()))
    oracle = db(outcome.oracle)
    return Summary(
        success_rate=float(good.double().mean()),
        nmse_db=db(outcome.nmse[good]),
        nmse_median_db=median,
        oracle_db=oracle,
        median_gap_db=median - oracle,
        pilots_db=db(outcome.pilots),
        pilots_twice_db=db(outcome.pilots_twice),
        mse_over_var=float((recovered - sent).double().square().mean()) / pixel_variance,
        psnr_db=float(psnr(sent, recovered).mean()),
        seconds_per_image=outcome.seconds / (outcome.sent.shape[0] * outcome.sent.shape[1]),
    )
