"""The convolutional noise predictor of one expert.

Five 3x3 convolutions with the diffusion step entering as one affine per channel between the second and the third:
2 -> 32 -> 64, (1 + s_t) x + b_t, -> 43 -> 22 -> 2, ReLU after the first, third and fourth. 55,025 parameters.
"Mixture-of-Experts Diffusion Models for Adaptive Massive MIMO Channel Estimation via Variational Bayesian Inference",
equation (13) and the text around it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

DOMAINS = ("spatial", "angular")
_KERNEL = 3
WIDE = ((1, 1), (2, 2), (4, 8), (4, 16), (1, 1))  # dilations whose window covers most of a 16x64 array


@dataclass(frozen=True)
class CNNConfig:
    """Sizes of the noise predictor.

    Attributes:
        widths: channels before the first and after every convolution; both ends are 2, real and imaginary part.
        split: convolutions before the affine by which the diffusion step enters.
        embedding: length of the sinusoidal embedding of the step, even and at least 4.
        steps: T, the number of diffusion steps.
        domain: "spatial" convolves over antennas; "angular" over the two-dimensional DFT of the channel, F_r^H H F_t.
        dilations: spacing of the nine taps, (rows, columns) or one number for both, for every convolution; None is the
            paper's network, 1 everywhere, whose output sees 11x11 antennas. Wider spacing costs no parameter and no
            operation: `WIDE` sees 25x57 of the 16x64.
    """

    widths: tuple[int, ...] = (2, 32, 64, 43, 22, 2)
    split: int = 2
    embedding: int = 16
    steps: int = 100
    domain: str = "spatial"
    dilations: tuple[tuple[int, int] | int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # a list where a card was read
        if len(self.widths) < 3 or self.widths[0] != 2 or self.widths[-1] != 2 or min(self.widths) < 1:
            raise ValueError(f"widths must be positive, start and end with 2 and have one between, got {self.widths}")
        if not 1 <= self.split < len(self.widths) - 1:
            raise ValueError(f"split must leave a convolution on either side of the affine, got {self.split}")
        if self.embedding < 4 or self.embedding % 2:
            raise ValueError(f"embedding must be even and at least 4, got {self.embedding}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.domain not in DOMAINS:
            raise ValueError(f"unknown domain {self.domain!r}: choose one of {', '.join(DOMAINS)}")
        if self.dilations is not None:
            pairs = tuple((d, d) if isinstance(d, int) else (int(d[0]), int(d[1])) for d in self.dilations)
            if len(pairs) != self.layers or min(min(pair) for pair in pairs) < 1:
                raise ValueError(f"dilations must be {self.layers} positive spacings, got {self.dilations}")
            object.__setattr__(self, "dilations", pairs)

    @classmethod
    def scaled(cls, width: int, **changes) -> "CNNConfig":
        """The published width rule for `width` channels at the affine: 64 is the paper's expert, 130 has four times
        its parameters.

        Channels rise linearly from 1 over three convolutions' ends and fall back to 1 over four, truncated; the ends
        become 2.
        """
        if width < 2:
            raise ValueError(f"width must be at least 2, got {width}")
        rising = [1 + (width - 1) * k / 2 for k in range(3)]
        falling = [1 + (width - 1) * k / 3 for k in range(4)][::-1]
        inner = [int(value) for value in rising[1:] + falling[1:-1]]
        return cls(widths=(2, *inner, 2), **changes)

    @property
    def layers(self) -> int:
        """Number of convolutions."""
        return len(self.widths) - 1

    @property
    def spacing(self) -> tuple[tuple[int, int], ...]:
        """Of the taps of every convolution, in rows and columns."""
        return ((1, 1),) * self.layers if self.dilations is None else self.dilations  # type: ignore[return-value]

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns on either side of an entry that its output depends on."""
        rows, columns = zip(*self.spacing, strict=True)
        return sum(rows), sum(columns)

    @property
    def macs_per_entry(self) -> int:
        """Multiply-accumulates of the convolutions for one entry of the channel."""
        return sum(_KERNEL**2 * a * b for a, b in zip(self.widths[:-1], self.widths[1:], strict=True))

    def flops(self, nr: int = 16, nt: int = 64) -> int:
        """Floating-point operations of one forward pass for one channel, two for each multiply-accumulate of the
        convolutions (107.9 million for the paper's expert at 16x64)."""
        return 2 * self.macs_per_entry * nr * nt


def step_embedding(steps: int, size: int) -> Tensor:
    """Sinusoids [steps, size] of the index t - 1: sines, then cosines, of (t-1) 10000^(-j/(size/2-1))."""
    half = size // 2
    rates = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / (half - 1))
    angles = torch.arange(steps, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1).float()


def to_planes(h: Tensor) -> Tensor:
    """Complex [...,Nr,Nt] as real planes [...,2,Nr,Nt]: a view of the same memory, channels last."""
    return torch.view_as_real(h).movedim(-1, -3)


def to_complex(planes: Tensor) -> Tensor:
    """Inverse of `to_planes`; a view where the planes lie channels last, else a copy."""
    return torch.view_as_complex(planes.movedim(-3, -1).contiguous())


def to_angular(h: Tensor) -> Tensor:
    """F_r^H H F_t with unitary DFT matrices: beams in place of antennas."""
    return torch.fft.fft(torch.fft.ifft(h, dim=-2, norm="ortho"), dim=-1, norm="ortho")


def to_spatial(h: Tensor) -> Tensor:
    """Inverse of `to_angular`."""
    return torch.fft.ifft(torch.fft.fft(h, dim=-2, norm="ortho"), dim=-1, norm="ortho")


class DenoiserCNN(nn.Module):
    """Predicts the noise in H_t = sqrt(abar_t) H_0 + sqrt(1 - abar_t) eps.

    `net(x [B,2,Nr,Nt] real, t int [B] in 1..T) -> eps [B,2,Nr,Nt]`, real and imaginary planes over antennas in either
    domain: eps has unit variance per complex entry. Zero padding, so any array size goes through.
    """

    embedding: Tensor

    def __init__(self, config: CNNConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CNNConfig()
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, _KERNEL, padding=spacing, dilation=spacing)
            for a, b, spacing in zip(config.widths[:-1], config.widths[1:], config.spacing, strict=True)
        )
        self.step_affine = nn.Linear(config.embedding, 2 * config.widths[config.split])
        self.register_buffer("embedding", step_embedding(config.steps, config.embedding), persistent=False)

    def affine(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Factor 1 + s_t and shift b_t [B,C] of the affine at steps t [B]."""
        s, b = self.step_affine(self.embedding[t - 1]).float().chunk(2, 1)
        return 1 + s, b

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angular = self.config.domain == "angular"
        if angular:
            x = to_planes(to_angular(to_complex(x)))
        last = len(self.layers)
        for number, layer in enumerate(self.layers, 1):
            x = layer(x)
            if number == self.config.split:
                scale, shift = self.affine(t)
                x = torch.addcmul(shift[:, :, None, None].to(x.dtype), x, scale[:, :, None, None].to(x.dtype))
            elif number < last:
                x = x.relu()
        return to_planes(to_spatial(to_complex(x.float()))) if angular else x
