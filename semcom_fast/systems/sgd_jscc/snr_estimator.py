"""Estimates the noise level of a received latent, which says at which diffusion step the receiver has to start."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...ops.power_normalise import power_normalise
from ..mu_mimo.encoder import unrounded

if TYPE_CHECKING:
    from jaxtyping import Float

HEADS = ("power", "amplitude")


@dataclass(frozen=True)
class SnrEstimatorConfig:
    """Sizes of the estimator; the defaults are the authors'.

    Attributes:
        latent: channels of the latent.
        widths: output channels of the blocks.
        snr_stride: of every block; 2 halves the map in each (the paper), 1 keeps it (the authors' published code).
        head: what the network's output on (0,1) is: "power", the noise level 1/(1+gamma) itself (the paper), or
            "amplitude", its square root (the published code).
    """

    latent: int = 16
    widths: tuple[int, ...] = (32, 64, 128, 256)
    snr_stride: int = 2
    head: str = "power"

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # a list, when read from a card
        if self.latent < 1 or not self.widths or min(self.widths) < 1:
            raise ValueError(f"latent and widths must be positive, got {self.latent} and {self.widths}")
        if self.snr_stride not in (1, 2):
            raise ValueError(f"snr_stride must be 1 or 2, got {self.snr_stride}")
        if self.head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, got {self.head!r}")

    @classmethod
    def small(cls) -> "SnrEstimatorConfig":
        """The one whose weights ship."""
        return cls(widths=(24, 48, 64, 64), snr_stride=1, head="amplitude")


class _BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus a 1x1 convolution with BN, then ReLU; convolutions without bias."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(hidden)) + self.skip(x))


class SnrEstimator(nn.Module):
    r"""Residual network from a received latent at unit RMS to its noise level.

    The latent is :math:`y = |h| f + n` with f of power 1 and noise of variance :math:`\sigma^2` per real; what is
    estimated is :math:`\bar\beta = 1/(1+\gamma)` with :math:`\gamma` the mean of :math:`|h|^2` over the latent divided
    by :math:`\sigma^2`. With one h for the whole latent (AWGN, slow fading) that is its noise level after unit-power
    normalisation.

    Source: Table I and (21) of "Semantics-Guided Diffusion for Deep Joint Source-Channel Coding in Wireless Image
    Transmission".
    """

    def __init__(self, config: SnrEstimatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = SnrEstimatorConfig() if config is None else config
        inputs = (config.latent, *config.widths[:-1])
        self.blocks = nn.Sequential(
            *(_BasicBlock(a, b, config.snr_stride) for a, b in zip(inputs, config.widths, strict=True))
        )
        self.last = nn.Linear(config.widths[-1], 1)

    def forward(self, y: Tensor) -> Tensor:
        """The network's output [B], which `head` gives its meaning; y [B,C,h,w] at unit RMS."""
        return torch.sigmoid(unrounded(self.last(self.blocks(y).mean((2, 3)))).squeeze(1))

    def target(self, snr_db: Tensor) -> Tensor:
        """The output that means gamma = 10^(snr_db/10)."""
        level = torch.sigmoid(-snr_db * (math.log(10) / 10))  # 1/(1+gamma)
        return level.sqrt() if self.config.head == "amplitude" else level

    def level(self, y_real: "Float[Tensor, 'B C h w']", *, rescale: bool = True) -> "Float[Tensor, '*batch']":
        """Noise levels beta_bar = 1/(1+gamma) on (0,1).

        Args:
            y_real: received latents, their phases removed.
            rescale: first bring every latent to unit RMS, what the network was trained on.

        Raises:
            ValueError: another number of channels, or with `rescale` a latent that is zero or not finite.
        """
        if y_real.ndim != 4 or y_real.shape[1] != self.config.latent:
            raise ValueError(f"y_real must be [B,{self.config.latent},h,w], got {tuple(y_real.shape)}")
        output = self(power_normalise(y_real)[0] if rescale else y_real)
        return output.square() if self.config.head == "amplitude" else output
