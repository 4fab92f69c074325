"""The channels a learned prior is trained for: exponentially correlated Rayleigh fading, and 3GPP CDL links."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.cdl import uniform_yaw
from ...links import draw_channel
from ...ops import cdl_channels
from ...receivers import GaussianChannelPrior

SECTOR = math.radians(60)  # half of a base station's sector
_COVARIANCE_SEED = 2**40  # of the sample covariance; evaluations use small seeds
_COVARIANCE_DRAWS = 20_000


def exponential_covariance(n: int, correlation: float) -> Tensor:
    """R_ij = correlation^|i-j|, float64 [n,n]."""
    index = torch.arange(n)
    return torch.tensor(correlation, dtype=torch.float64) ** (index[:, None] - index).abs()


@dataclass(frozen=True)
class ChannelLaw:
    """A law of uplink channels between `nt` antennas of a user and `nr` of a base station, E|h_ij|^2 = 1.

    Attributes:
        nr, nt: receive and transmit antennas.
        correlation: h = A g B^T with R_ij = correlation^|i-j| at both ends (Kronecker); used when `cdl` is None.
        cdl: "A" .. "E": a 38.901 clustered delay line between horizontal half-wavelength arrays. The base station is
            turned by a yaw uniform on +-60 degrees, the user by any yaw, once per user; blocks share the yaws and have
            independent phases. Over all yaws the law is not Gaussian.

    Blocks have the same law and are used one by one: the prior of a block does not look at the others.
    """

    nr: int = 8
    nt: int = 2
    correlation: float = 0.7
    cdl: str | None = None

    def __post_init__(self) -> None:
        if self.nr < 1 or self.nt < 1:
            raise ValueError(f"ChannelLaw: nr and nt must be at least 1, got {self.nr} and {self.nt}")
        if not 0 <= self.correlation < 1:
            raise ValueError(f"ChannelLaw: correlation must lie in [0, 1), got {self.correlation}")
        if self.cdl is not None and self.cdl not in tuple("ABCDE"):
            raise ValueError(f"ChannelLaw: cdl must be one of A, B, C, D, E, got {self.cdl!r}")

    @property
    def name(self) -> str:
        """Of the law in tables and of its weights: "kronecker_0.7" or "cdl_c", and the antennas where not (8,2)."""
        law = f"kronecker_{self.correlation:g}" if self.cdl is None else f"cdl_{self.cdl.lower()}"
        return law if (self.nr, self.nt) == (8, 2) else f"{law}_{self.nr}x{self.nt}"

    def covariances(self) -> tuple[Tensor, Tensor]:
        """Receive and transmit covariance of the Kronecker law; raises ValueError for CDL."""
        if self.cdl is not None:
            raise ValueError("a CDL law has no Kronecker covariances")
        return exponential_covariance(self.nr, self.correlation), exponential_covariance(self.nt, self.correlation)

    def draw(self, batch: int, users: int, blocks: int, *, seed: int, first_item: int = 0) -> Tensor:
        """Channels complex64 [B,U,K,Nr,Nt]; item b is the item first_item + b of an unsplit draw."""
        if self.cdl is None:
            rx, tx = self.covariances()
            return draw_channel(
                batch, users, blocks, self.nr, self.nt, seed=seed, first_item=first_item, cov_rx=rx, cov_tx=tx
            )
        links, first = batch * users, first_item * users
        station = uniform_yaw(links, SECTOR, seed=seed, first_item=first, end="tx").repeat_interleave(blocks)
        user = uniform_yaw(links, math.pi, seed=seed, first_item=first, end="rx").repeat_interleave(blocks)
        down = cdl_channels(
            self.cdl,
            links * blocks,
            nr=self.nt,
            nt=self.nr,
            los_phase="random",
            tx_yaw=station,
            rx_yaw=user,
            seed=seed,
            first_item=first * blocks,
        )
        # The tables are of the downlink; by reciprocity the uplink is its transpose.
        return down.mT.reshape(batch, users, blocks, self.nr, self.nt)

    def sample_covariance(self) -> Tensor:
        """E[vec h vec h^H] over 20,000 draws, complex128 [Nr Nt, Nr Nt], index i*Nt + j."""
        h = (
            self.draw(_COVARIANCE_DRAWS, 1, 1, seed=_COVARIANCE_SEED)
            .reshape(_COVARIANCE_DRAWS, -1)
            .to(torch.complex128)
        )
        return h.mT @ h.conj() / len(h)

    def gaussian_prior(self) -> GaussianChannelPrior:
        """The exact prior of the Kronecker law; for CDL the Gaussian prior of the sample covariance."""
        if self.cdl is not None:
            return GaussianChannelPrior(cov=self.sample_covariance())
        rx, tx = self.covariances()
        return GaussianChannelPrior(cov_rx=rx, cov_tx=tx)
