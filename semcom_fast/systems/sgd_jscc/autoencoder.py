"""The JSCC autoencoder: an image becomes a power-constrained latent, and a noisy latent an image.

Layout of the KL-VAE that latent diffusion models use, without its sampling: the latent is the encoder's mean.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from ...ops.power_normalise import power_normalise
from ..mu_mimo.encoder import unrounded

if TYPE_CHECKING:
    from jaxtyping import Float

ATTENTION = ("middle", "all")


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder; the defaults are the authors'.

    Attributes:
        channels: feature maps at full resolution; level i has channels * multipliers[i].
        multipliers: one for each level; every level but the last halves the resolution.
        blocks: residual blocks of an encoder level; a decoder level has one more.
        latent: channels of the latent.
        attention: "middle" (the authors' published code) or "all", after every residual block too (the paper).
        image: side of the images in pixels.
        groups: of the group normalisations; must divide the channels of every level.
        patch: the networks see patch x patch pixels as one position of 3 patch^2 channels; 1 for the authors' layout.
        moments: also compute the variances a KL-VAE's encoder ends with, which are not used: the authors' layout.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent: int = 16
    attention: str = "middle"
    image: int = 128
    groups: int = 32
    patch: int = 1
    moments: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))  # a list, when read from a card
        for name in ("channels", "blocks", "latent", "image", "groups", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be positive, at least one, got {self.multipliers}")
        if self.attention not in ATTENTION:
            raise ValueError(f"attention must be one of {', '.join(ATTENTION)}, got {self.attention!r}")
        if any(width % self.groups for width in self.widths):
            raise ValueError(f"groups = {self.groups} must divide the channels of every level, {self.widths}")
        if self.image % self.reduction:
            raise ValueError(f"image = {self.image} must be a multiple of {self.reduction}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Feature maps of each level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def reduction(self) -> int:
        """Image side over latent side."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latent of a `image` x `image` image."""
        side = self.image // self.reduction
        return self.latent, side, side

    @classmethod
    def small(cls) -> "AutoencoderConfig":
        """The one whose weights ship: 64x64 images, latent 16x8x8, bandwidth compression ratio 1/24."""
        return cls(channels=88, multipliers=(1, 1), blocks=1, image=64, groups=8, patch=4, moments=False)


def _norm(groups: int, width: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, width, eps=1e-6)


class ResidualBlock(nn.Module):
    """Twice norm-SiLU-convolution, plus a skip that is a 1x1 convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(groups, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _norm(groups, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(functional.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(functional.silu(self.norm2(hidden)))


class PixelAttention(nn.Module):
    """Single-head attention between all positions, plus a skip."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(groups, width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, -1)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.squeeze(1).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve height and width: a 3x3 convolution of stride 2 over an image padded at the right and the bottom."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width: every pixel four times, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0))


def _level(config: AutoencoderConfig, inputs: int, outputs: int, blocks: int) -> list[nn.Module]:
    parts: list[nn.Module] = []
    for place in range(blocks):
        parts.append(ResidualBlock(outputs if place else inputs, outputs, config.groups))
        if config.attention == "all":
            parts.append(PixelAttention(outputs, config.groups))
    return parts


def _middle(config: AutoencoderConfig, width: int) -> list[nn.Module]:
    block, groups = ResidualBlock, config.groups
    return [block(width, width, groups), PixelAttention(width, groups), block(width, width, groups)]


def _encoder(config: AutoencoderConfig) -> nn.Sequential:
    """Images on [-1,1] -> latent before normalisation (and, with `moments`, variances)."""
    widths, outputs = config.widths, config.latent * (2 if config.moments else 1)
    parts: list[nn.Module] = [nn.PixelUnshuffle(config.patch)] if config.patch > 1 else []
    parts.append(nn.Conv2d(3 * config.patch**2, widths[0], 3, padding=1))
    for level, width in enumerate(widths):
        parts += _level(config, widths[max(level - 1, 0)], width, config.blocks)
        if level < len(widths) - 1:
            parts.append(Downsample(width))
    parts += [*_middle(config, widths[-1]), _norm(config.groups, widths[-1]), nn.SiLU()]
    parts.append(nn.Conv2d(widths[-1], outputs, 3, padding=1))
    if config.moments:
        parts.append(nn.Conv2d(outputs, outputs, 1))
    return nn.Sequential(*parts)


def _decoder(config: AutoencoderConfig) -> nn.Sequential:
    """Latent -> images on [-1,1]."""
    widths = config.widths[::-1]
    parts: list[nn.Module] = [nn.Conv2d(config.latent, config.latent, 1)] if config.moments else []
    parts += [nn.Conv2d(config.latent, widths[0], 3, padding=1), *_middle(config, widths[0])]
    for level, width in enumerate(widths):
        parts += _level(config, widths[max(level - 1, 0)], width, config.blocks + 1)
        if level < len(widths) - 1:
            parts.append(Upsample(width))
    parts += [_norm(config.groups, widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], 3 * config.patch**2, 3, padding=1)]
    if config.patch > 1:
        parts.append(nn.PixelShuffle(config.patch))
    return nn.Sequential(*parts)


class Autoencoder(nn.Module):
    """Encoder and decoder of the JSCC latent f.

    f is N = latent * h * w reals with sum f^2 = N in every image, so that E f_i^2 = 1 and two of them make one complex
    symbol of power 2: the power constraint (1). Everything is differentiable.

    Source: "Semantics-Guided Diffusion for Deep Joint Source-Channel Coding in Wireless Image Transmission", Section
    III; sizes of the authors' published code.
    """

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = AutoencoderConfig() if config is None else config
        self.encoder, self.decoder = _encoder(config), _decoder(config)

    def encode(self, images: "Float[Tensor, 'B 3 H W']") -> "Float[Tensor, 'B C h w']":
        """Latents of images on [0,1], each scaled to sum f^2 = N.

        Height and width may be any multiples of `config.reduction`, not only `config.image`.

        Raises:
            ValueError: another shape or integer images, or a latent that is zero or not finite.
        """
        if images.ndim != 4 or images.shape[1] != 3 or any(side % self.config.reduction for side in images.shape[2:]):
            raise ValueError(
                f"images must be [B,3,H,W] with H and W multiples of {self.config.reduction}, got {tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise ValueError(f"images must be floating-point numbers on [0,1], got {images.dtype}")
        mean = self.encoder(2 * images - 1)[:, : self.config.latent]
        return power_normalise(unrounded(mean))[0]

    def decode(self, f: "Float[Tensor, 'B C h w']", *, rescale: bool = True) -> "Float[Tensor, 'B 3 H W']":
        """Images of latents, on the scale [0,1] but not clamped to it.

        Args:
            f: received or denoised latents.
            rescale: first bring every latent to unit RMS, as the receiver does and as training did.

        Raises:
            ValueError: another number of channels, or with `rescale` a latent that is zero or not finite.
        """
        if f.ndim != 4 or f.shape[1] != self.config.latent:
            raise ValueError(f"f must be [B,{self.config.latent},h,w], got {tuple(f.shape)}")
        f = power_normalise(f)[0] if rescale else f
        return unrounded(self.decoder(f)) / 2 + 0.5
