"""The whole link as one module: encoder, precoder, channel, decoder; its variants come from one configuration."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...links import mu_mimo_ofdm as link
from ...links.mu_mimo_ofdm import ResourceGrid
from .decoder import GuidedDecoder, cells
from .djscc import DjsccDecoder, DjsccEncoder
from .encoder import CELLS, SemanticEncoder
from .precoder import RefinementNet

ALPHA_FLOOR = 1e-4


class Parts(NamedTuple):
    """What a variant is made of."""

    adaptive: bool  # the encoder sees scenario and noise level
    refined: bool  # the precoder is refined by a network and its regulariser is learned
    guided: bool  # the decoder's attention sees the pilots
    autoencoder: bool = False  # plain convolutional encoder and decoder
    zero_forcing: bool = False  # no regulariser at all


VARIANTS = {
    "full": Parts(True, True, True),
    "no-pilot": Parts(True, True, False),
    "rzf": Parts(False, False, False),
    "zf": Parts(False, False, False, zero_forcing=True),
    "djscc": Parts(False, True, False, autoencoder=True),
}


@dataclass(frozen=True)
class SystemConfig:
    """What fixes the networks: the variant and the sizes.

    Attributes:
        variant: one of VARIANTS.
        subcarriers: Nf; 8x8 cells need Nf*Nt*2 and Nf*Nst*2 to be multiples of 64.
        users, antennas: K and M.
        total_power: mean sum_m |x|^2 per element; None is M.
        strip_pilots: decoders get the data symbols only (and hence no guidance).
    """

    variant: str = "full"
    subcarriers: int = 32
    users: int = 4
    antennas: int = 4
    classes: int = 10
    total_power: float | None = None
    strip_pilots: bool = False

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"unknown variant {self.variant!r}: choose one of {', '.join(VARIANTS)}")
        grid = self.grid()
        if self.reals % CELLS or 2 * self.subcarriers * grid.symbols % CELLS:
            raise ValueError(f"8x8 cells need a multiple of 16 subcarriers or so, got {self.subcarriers}")
        if self.strip_pilots and VARIANTS[self.variant].guided:
            raise ValueError("a pilot-guided decoder cannot work without pilots: take another variant than 'full'")

    def grid(self) -> ResourceGrid:
        return ResourceGrid(self.subcarriers, users=self.users)

    @property
    def reals(self) -> int:
        """R, real numbers per user and image."""
        return 2 * self.grid().data_elements


class Reception(NamedTuple):
    """What the users make of a slot, and what was sent."""

    images: Tensor  # [B,K,3,32,32]
    scores: Tensor  # [B,K,classes]
    received: Tensor  # y [B,Nf,Nt,K]
    transmitted: Tensor  # x [B,Nf,Nt,M]


class Precoder(nn.Module):
    """Coarse closed-form precoding plus a learned correction, then the power constraint.

    Model: x = c (h^H (h h^H + alpha noise_var I)^-1 s + network(coarse x, h)), alpha = softplus(rho) + 1e-4 learned, 1 at
    the start. Without refinement alpha is 1 (0 for zero-forcing) and there is no network.

    Source: the paper's eqs. (7)-(9).
    """

    def __init__(self, config: SystemConfig) -> None:
        super().__init__()
        parts = VARIANTS[config.variant]
        self.total_power, self.zero_forcing = config.total_power, parts.zero_forcing
        self.network = RefinementNet(config.users, config.antennas) if parts.refined else None
        # softplus(rho) + floor = 1
        start = torch.tensor(1 - ALPHA_FLOOR).expm1().log()
        self.rho = nn.Parameter(start) if parts.refined else None

    def alpha(self) -> float | Tensor:
        """The factor between noise variance and regulariser."""
        if self.rho is None:
            return 0.0 if self.zero_forcing else 1.0
        return functional.softplus(self.rho) + ALPHA_FLOOR

    def coarse(self, h: Tensor, s: Tensor, noise_var: Tensor, *, on_singular: str | None = None) -> Tensor:
        """The closed form, not yet normalised where a network follows."""
        alpha = 0.0 if self.zero_forcing else self.alpha() * noise_var
        normalise = self.network is None
        return link.precode(h, s, alpha, total_power=self.total_power, normalise=normalise, on_singular=on_singular)

    def forward(self, h: Tensor, s: Tensor, noise_var: Tensor, *, on_singular: str | None = None) -> Tensor:
        x = self.coarse(h, s, noise_var, on_singular=on_singular)
        if self.network is None:
            return x
        return link.normalise_power(x + self.network(x, h), self.total_power)


class MuMimoSystem(nn.Module):
    """K images in, K images and class scores out, over one slot of the downlink.

    Source: "Scenario-Adaptive MU-MIMO OFDM Semantic Communication With Asymmetric Neural Network".
    """

    def __init__(self, config: SystemConfig | None = None) -> None:
        super().__init__()
        config = config or SystemConfig()
        self.config, self.grid = config, config.grid()
        parts = VARIANTS[config.variant]
        symbols = len(self.grid.data_symbols) if config.strip_pilots else self.grid.symbols
        channels = 2 * config.subcarriers * symbols // CELLS
        self.encoder: SemanticEncoder | DjsccEncoder
        self.decoder: GuidedDecoder | DjsccDecoder
        if parts.autoencoder:
            self.encoder = DjsccEncoder(config.reals)
            self.decoder = DjsccDecoder(channels, config.classes)
        else:
            sizes = (self.grid.symbols, config.users, config.antennas)
            self.encoder = SemanticEncoder(config.reals, *sizes, adaptive=parts.adaptive)
            self.decoder = GuidedDecoder(channels, config.classes, guided=parts.guided)
        self.precoder = Precoder(config)
        pilots = self.grid.pilots.permute(2, 0, 1)
        self.pilot_cells: Tensor
        self.register_buffer("pilot_cells", cells(pilots), persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on the CPU

    def encode(self, images: Tensor, h: Tensor, noise_var: Tensor) -> Tensor:
        """images [B,K,3,32,32] -> the slot's symbols s [B,Nf,Nt,K], pilots in place."""
        reals = self.encoder(images, h, noise_var)
        shape = (self.grid.subcarriers, len(self.grid.data_symbols), 2)
        data = torch.view_as_complex(reals.unflatten(-1, shape))
        return self.grid.insert(link.normalise_symbols(data).permute(0, 2, 3, 1))

    def decoder_input(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """y [B,Nf,Nt,K] -> what each user's decoder is given: its own cells and its pilots, [B*K,C,8,8] each."""
        if self.config.strip_pilots:
            y = self.grid.extract(y)
        mine = cells(y.permute(0, 3, 1, 2)).flatten(0, 1)
        pilots = self.pilot_cells.expand(len(y), -1, -1, -1, -1).flatten(0, 1)
        return mine.contiguous(memory_format=torch.channels_last), pilots

    def decode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """y [B,Nf,Nt,K] -> images [B,K,3,32,32] and scores [B,K,classes], every user from its own grid."""
        images, scores = self.decoder(*self.decoder_input(y))
        grids = (y.shape[0], y.shape[-1])
        return images.unflatten(0, grids), scores.unflatten(0, grids)

    def air(
        self,
        images: Tensor,
        h: Tensor,
        noise_var: Tensor,
        *,
        noise: Tensor | None = None,
        seed: int | None = None,
        first_item: int = 0,
        csi_error_var: float = 0.0,
        on_singular: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Send one image per user, as far as the receivers' antennas: (y [B,Nf,Nt,K], x [B,Nf,Nt,M]).

        Args:
            images: [B,K,3,32,32] on [0,1].
            h: [B,Nf,Nt or 1,K,M] complex, mean |h|^2 = 1 per user.
            noise_var: [B].
            noise, seed, first_item: see `links.mu_mimo_ofdm.receive`.
            csi_error_var: variance of the transmitter's channel error (needs `seed`).
            on_singular: what zero-forcing does with singular channels, see `semcom_fast.rzf_precode`.
        """
        known = h
        if csi_error_var:
            if seed is None:
                raise ValueError("csi_error_var draws the channel error: give a seed")
            known = link.estimated_channel(h, csi_error_var, seed=seed, first_item=first_item)
        s = self.encode(images, known, noise_var)
        x = self.precoder(known, s, noise_var, on_singular=on_singular)
        return link.receive(h, x, noise_var, noise=noise, seed=seed, first_item=first_item), x

    def forward(self, images: Tensor, h: Tensor, noise_var: Tensor, **options) -> Reception:
        """Send one image per user and decode; arguments as of `air`."""
        y, x = self.air(images, h, noise_var, **options)
        return Reception(*self.decode(y), y, x)


def keras_count(module: nn.Module) -> int:
    """Parameters as Keras counts them: with the moving statistics of batch normalisation."""
    trained = sum(parameter.numel() for parameter in module.parameters())
    return trained + sum(2 * part.num_features for part in module.modules() if isinstance(part, nn.BatchNorm2d))
