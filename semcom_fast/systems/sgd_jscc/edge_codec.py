"""The codec of the edge maps: windowed attention that knows the SNR, a few reals for each of a few positions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...ops.power_normalise import power_normalise
from ..mu_mimo.encoder import unrounded
from .window_attention import StageSettings, SwinStage

if TYPE_CHECKING:
    from jaxtyping import Float

PATCH = 2  # pixels to a token's side at full resolution


@dataclass(frozen=True)
class EdgeCodecConfig:
    """Sizes of the edge codec. The defaults have the shape of the authors' code, 64 positions and 13 of 256 channels.

    Attributes:
        image: side of the edge maps in pixels, a multiple of the reduction 2^len(widths).
        widths: features of the encoder's stages, each at half the resolution of the one before; the first has tokens of
            2x2 pixels. The decoder mirrors them.
        depths: attention blocks of each stage.
        head: features of an attention head.
        window: side of the attention windows in tokens, cut to the map where that is smaller.
        mlp: hidden over outer features of the blocks' two-layer networks.
        channels: features at every position of the last stage.
        kept: how many of them are sent, the first ones.
        condition: features the SNR is embedded in.
    """

    image: int = 128
    widths: tuple[int, ...] = (32, 64, 128, 256)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    head: int = 32
    window: int = 8
    mlp: int = 4
    channels: int = 256
    kept: int = 13
    condition: int = 64

    def __post_init__(self) -> None:
        for name in ("widths", "depths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists, when read from a card
        if len(self.widths) != len(self.depths) or not self.widths or min(self.widths + self.depths) < 1:
            raise ValueError(
                f"widths and depths must be positive, one of each a stage, got {self.widths}, {self.depths}"
            )
        if any(width % self.head for width in self.widths):
            raise ValueError(f"head = {self.head} must divide every width, got {self.widths}")
        if not 1 <= self.kept <= self.channels:
            raise ValueError(f"kept must be 1 to channels = {self.channels}, got {self.kept}")
        if self.image < self.reduction or self.image % self.reduction:
            raise ValueError(f"image = {self.image} must be a multiple of {self.reduction}")
        for side in self.sides:
            if side % min(self.window, side):
                raise ValueError(f"window = {self.window} must divide the side of every stage, got {self.sides}")

    @property
    def reduction(self) -> int:
        """Side of the edge map over side of the last stage."""
        return PATCH * 2 ** (len(self.widths) - 1)

    @property
    def sides(self) -> tuple[int, ...]:
        """Side of each stage's map in tokens."""
        return tuple(self.image // (PATCH * 2**stage) for stage in range(len(self.widths)))

    @property
    def positions(self) -> int:
        """Of the last stage."""
        return self.sides[-1] ** 2

    @property
    def reals(self) -> int:
        """K, the reals sent for one edge map."""
        return self.positions * self.kept

    @classmethod
    def small(cls) -> "EdgeCodecConfig":
        """The one whose weights ship: 64x64 pixels, 16 positions of 13 reals, K = 208."""
        widths, depths = (16, 32, 48, 64), (2, 2, 2, 1)
        return cls(64, widths, depths, head=16, window=4, mlp=2, channels=13, condition=16)


class EdgeCodec(nn.Module):
    """Edge maps on [0,1] to K reals of mean power 1 and back, for a known SNR.

    Four stages of windowed attention with merged 2x2 neighbours in between, the decoder their mirror image; layer
    normalisations are modulated by the SNR (AdaLN). Sent are `kept` features of every position, scaled so that their
    squares sum to K.

    Source: Section VII of "Semantics-Guided Diffusion for Deep Joint Source-Channel Coding in Wireless Image
    Transmission"; the shape is that of the authors' published code, the widths and depths are ours.
    """

    def __init__(self, config: EdgeCodecConfig | None = None) -> None:
        super().__init__()
        self.config = config = EdgeCodecConfig() if config is None else config
        widths, last = config.widths, config.widths[-1]
        self.condition = nn.Sequential(
            nn.Linear(1, config.condition), nn.SiLU(), nn.Linear(config.condition, config.condition)
        )
        stages = [
            StageSettings(
                width, depth, side, min(config.window, side), width // config.head, config.mlp, config.condition
            )
            for width, depth, side in zip(widths, config.depths, config.sides, strict=True)
        ]
        self.down = nn.ModuleList(SwinStage(stage) for stage in stages)
        self.merge = nn.ModuleList(nn.Linear(4 * (widths[i - 1] if i else 1), width) for i, width in enumerate(widths))
        self.send, self.receive = nn.Linear(last, config.channels), nn.Linear(config.channels, last)
        self.up = nn.ModuleList(SwinStage(stage) for stage in reversed(stages))
        self.split = nn.ModuleList(
            nn.Linear(width, 4 * (widths[i - 1] if i else 1)) for i, width in reversed(list(enumerate(widths)))
        )

    def encode(
        self, edges: "Float[Tensor, 'B 1 H W']", snr_db: "Float[Tensor, '*batch'] | float"
    ) -> "Float[Tensor, 'B K']":
        """The reals sent, position by position, each image scaled to sum o^2 = K.

        Args:
            edges: edge maps on [0,1].
            snr_db: the SNR they are sent at, a number or one for each.

        Raises:
            ValueError: another shape, or a code that is zero or not finite.
        """
        side = self.config.image
        if edges.ndim != 4 or edges.shape[1:] != (1, side, side):
            raise ValueError(f"edges must be [B,1,{side},{side}], got {tuple(edges.shape)}")
        condition = self._embed(snr_db, edges)
        x = edges.permute(0, 2, 3, 1)
        for merge, stage in zip(self.merge, self.down, strict=True):
            x = stage(merge(_gather(x)), condition)
        sent = unrounded(self.send(x)[..., : self.config.kept])
        return power_normalise(sent.flatten(1), dims=1)[0]

    def decode(
        self, received: "Float[Tensor, 'B K']", snr_db: "Float[Tensor, '*batch'] | float"
    ) -> "Float[Tensor, 'B 1 H W']":
        """Edge maps on (0,1); see `logits`."""
        return torch.sigmoid(self.logits(received, snr_db))

    def logits(
        self, received: "Float[Tensor, 'B K']", snr_db: "Float[Tensor, '*batch'] | float"
    ) -> "Float[Tensor, 'B 1 H W']":
        """Log odds of an edge at every pixel.

        Args:
            received: what arrived, of any scale: every code is brought to unit RMS first.
            snr_db: the SNR it arrived with, a number or one for each.

        Raises:
            ValueError: another shape, or a code that is zero or not finite.
        """
        config = self.config
        if received.ndim != 2 or received.shape[1] != config.reals:
            raise ValueError(f"received must be [B,{config.reals}], got {tuple(received.shape)}")
        condition = self._embed(snr_db, received)
        side = config.sides[-1]
        kept = power_normalise(received, dims=1)[0].reshape(-1, side, side, config.kept)
        x = self.receive(functional.pad(kept, (0, config.channels - config.kept)))
        for stage, split in zip(self.up, self.split, strict=True):
            x = _spread(split(stage(x, condition)))
        return unrounded(x).permute(0, 3, 1, 2)

    def _embed(self, snr_db: Tensor | float, like: Tensor) -> Tensor:
        """Features [B,c] of the SNR."""
        snr = torch.as_tensor(snr_db, dtype=like.dtype, device=like.device)
        if snr.ndim > 1 or (snr.ndim == 1 and len(snr) != len(like)):
            raise ValueError(f"snr_db must be a number or [{len(like)}], got {tuple(snr.shape)}")
        return self.condition(snr.expand(len(like)).unsqueeze(1) / 10)


def _gather(x: Tensor) -> Tensor:
    """[B,H,W,C] -> [B,H/2,W/2,4C]: 2x2 neighbours side by side."""
    return x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 1, 3, 2, 4, 5).flatten(3)


def _spread(x: Tensor) -> Tensor:
    """The inverse of `_gather`."""
    return x.unflatten(3, (2, 2, -1)).permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
