"""NCSN++, the score network of the paper's full-size source prior, with the names of the published checkpoints."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_ROOT_HALF = math.sqrt(0.5)
# What the published configurations may hold beside the sizes; the network is built for these values only.
_REQUIRED = {
    "name": "ncsnpp",
    "embedding_type": "fourier",
    "resblock_type": "biggan",
    "progressive": "output_skip",
    "progressive_input": "input_skip",
    "progressive_combine": "sum",
    "normalization": "GroupNorm",
    "nonlinearity": "swish",
    "attention_type": "ddpm",
    "fir": True,
    "conditional": True,
    "scale_by_sigma": True,
    "skip_rescale": True,
    "resamp_with_conv": True,
    "conv_size": 3,
}


@dataclass(frozen=True)
class NCSNppConfig:
    """Sizes of an NCSN++; the defaults are the published continuous VE configurations for 256x256 images.

    Attributes:
        image_size, num_channels: side of the square images, and their channels.
        nf: width; ch_mult: its multiples at image_size, image_size/2, ...; num_res_blocks: per size.
        attn_resolutions: sides at which there is self-attention (always in the middle).
        fir_kernel: taps of the anti-aliasing filter. fourier_scale: of the random features of ln sigma.
        centered: the network takes images on [-1,1]; False: on [0,1], with noise on that scale, as published.
    """

    image_size: int = 256
    num_channels: int = 3
    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    fir_kernel: tuple[int, ...] = (1, 3, 3, 1)
    fourier_scale: float = 16.0
    centered: bool = False

    def __post_init__(self) -> None:
        for name in ("ch_mult", "attn_resolutions", "fir_kernel"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.ch_mult or min(*self.ch_mult, self.nf, self.num_channels, self.num_res_blocks) < 1:
            raise ValueError("NCSNppConfig: nf, ch_mult, num_channels and num_res_blocks must be positive")
        if self.image_size % 2 ** (len(self.ch_mult) - 1):
            raise ValueError(
                f"NCSNppConfig: image_size {self.image_size} cannot be halved {len(self.ch_mult) - 1} times"
            )
        if len(self.fir_kernel) != 4:
            raise ValueError(f"NCSNppConfig: fir_kernel must have 4 taps, got {self.fir_kernel}")

    @classmethod
    def from_dict(cls, values: dict) -> "NCSNppConfig":
        """From a flat dictionary, or the published nesting {"data": {...}, "model": {...}}.

        Raises:
            ValueError: an unknown name (flat), or a variant of the network that is not this one.
        """
        nested = "model" in values
        flat = {**values.get("data", {}), **values["model"]} if nested else dict(values)
        for name, value in _REQUIRED.items():
            if flat.pop(name, value) != value:
                raise ValueError(f"NCSNppConfig: only {name} = {value!r} is built here")
        known = cls.__dataclass_fields__
        unknown = [name for name in flat if name not in known]
        if unknown and not nested:
            raise ValueError(f"NCSNppConfig: unknown {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(**{name: value for name, value in flat.items() if name in known})


def _uniform(shape: tuple[int, ...], fan_in: int, fan_out: int, scale: float = 1.0) -> Tensor:
    """Uniform draws of variance scale/mean(fans); scale 0 becomes 1e-10, as published."""
    bound = math.sqrt(3 * (scale or 1e-10) * 2 / (fan_in + fan_out))
    return torch.empty(shape).uniform_(-bound, bound)


def _conv(size: int, inputs: int, outputs: int, scale: float = 1.0) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    conv.weight = nn.Parameter(_uniform(tuple(conv.weight.shape), inputs * size**2, outputs * size**2, scale))
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _dense(inputs: int, outputs: int) -> nn.Linear:
    dense = nn.Linear(inputs, outputs)
    dense.weight = nn.Parameter(_uniform((outputs, inputs), inputs, outputs))
    nn.init.zeros_(dense.bias)
    return dense


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, min(channels // 4, 32)), channels, eps=1e-6)


class FourierFeatures(nn.Module):
    """sin and cos of 2 pi W ln sigma, with fixed random W."""

    def __init__(self, features: int, scale: float) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(features) * scale, requires_grad=False)

    def forward(self, log_sigma: Tensor) -> Tensor:
        phase = 2 * math.pi * log_sigma.unsqueeze(-1) * self.W
        return torch.cat((phase.sin(), phase.cos()), -1)


class Resample(nn.Module):
    """Halve or double an image with a separable anti-aliasing filter whose taps sum to 1; zeros outside the image."""

    kernel: Tensor

    def __init__(self, taps: tuple[int, ...], up: bool) -> None:
        super().__init__()
        line = torch.tensor(taps, dtype=torch.float32)
        kernel = torch.outer(line, line) / line.sum() ** 2
        self.up = up
        self.register_buffer("kernel", 4 * kernel if up else kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4)
        apply = functional.conv_transpose2d if self.up else functional.conv2d
        return apply(x, weight, stride=2, padding=1, groups=x.shape[1])


class Combine(nn.Module):
    """A 1x1 convolution of the reduced input added to the features."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.Conv_0 = _conv(1, inputs, outputs)

    def forward(self, image: Tensor, h: Tensor) -> Tensor:
        return self.Conv_0(image) + h


class PixelLinear(nn.Module):
    """The same linear map of the channels at every position: W [in,out], b [out]."""

    def __init__(self, channels: int, scale: float = 0.1) -> None:
        super().__init__()
        self.W = nn.Parameter(_uniform((channels, channels), channels, channels, scale))
        self.b = nn.Parameter(torch.zeros(channels))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens @ self.W + self.b


class Attention(nn.Module):
    """Self-attention of one head over all positions, added to its input and rescaled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = _norm(channels)
        self.NIN_0, self.NIN_1, self.NIN_2 = (PixelLinear(channels) for _ in range(3))
        self.NIN_3 = PixelLinear(channels, scale=0.0)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.GroupNorm_0(x).flatten(2).mT
        found = functional.scaled_dot_product_attention(self.NIN_0(tokens), self.NIN_1(tokens), self.NIN_2(tokens))
        return (x + self.NIN_3(found).mT.unflatten(2, x.shape[2:])) * _ROOT_HALF


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions conditioned on the noise level, around an optional change of size; rescaled by 1/sqrt 2."""

    def __init__(self, inputs: int, outputs: int, level: int, resample: Resample | None = None) -> None:
        super().__init__()
        # in the order in which published averages of the weights list them
        self.GroupNorm_0 = _norm(inputs)
        self.Conv_0 = _conv(3, inputs, outputs)
        self.Dense_0 = _dense(level, outputs)
        self.GroupNorm_1 = _norm(outputs)
        self.Conv_1 = _conv(3, outputs, outputs, scale=0.0)
        self.Conv_2 = _conv(1, inputs, outputs) if inputs != outputs or resample is not None else None
        self.resample = resample

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        h = functional.silu(self.GroupNorm_0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.Conv_0(h) + self.Dense_0(functional.silu(level))[..., None, None]
        h = self.Conv_1(functional.silu(self.GroupNorm_1(h)))
        return ((x if self.Conv_2 is None else self.Conv_2(x)) + h) * _ROOT_HALF


class NCSNpp(nn.Module):
    r"""The score of images under Gaussian noise: (x [N,C,S,S], sigma [N] or 0-d) -> grad ln p_sigma(x), like x.

    Definition: S = F(x, ln sigma)/sigma with a U-Net F of residual blocks; the image enters at every size through an
    input pyramid, the output is summed over an output pyramid. x and sigma are on the scale of the training: [0,1] unless
    `centered`. `noise` gives F = sigma S alone, of unit scale: with x = x0 + sigma z it estimates -z, and

    .. math:: E[x_0|x] = x + \sigma F(x, \ln \sigma),

    so that the score itself, which is 1/sigma, need not be formed.

    Parameters are named as in the published checkpoints (`all_modules.0.W`, ...), which load by `load_state_dict`.

    Source: Y. Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", appendix H
    (NCSN++, VE, continuous), and the configurations published with it.
    """

    def __init__(self, config: NCSNppConfig | None = None) -> None:
        super().__init__()
        self.config = config or NCSNppConfig()
        self.all_modules = nn.ModuleList(self._layers())
        self.shrink, self.grow = (Resample(self.config.fir_kernel, up) for up in (False, True))  # of the pyramids

    def _layers(self) -> Iterator[nn.Module]:
        """All layers in the order of the published list, which is that of their use."""
        c = self.config
        level, sizes = 4 * c.nf, len(c.ch_mult)

        def resample(up: bool) -> Resample:
            return Resample(c.fir_kernel, up)

        yield FourierFeatures(c.nf, c.fourier_scale)
        yield _dense(2 * c.nf, level)
        yield _dense(level, level)
        yield _conv(3, c.num_channels, c.nf)
        width, kept = c.nf, [c.nf]
        for i, multiple in enumerate(c.ch_mult):
            for _ in range(c.num_res_blocks):
                yield ResidualBlock(width, c.nf * multiple, level)
                width = c.nf * multiple
                if self._attends(i):
                    yield Attention(width)
                kept.append(width)
            if i < sizes - 1:
                yield ResidualBlock(width, width, level, resample(False))
                yield Combine(c.num_channels, width)
                kept.append(width)
        yield ResidualBlock(width, width, level)
        yield Attention(width)
        yield ResidualBlock(width, width, level)
        for i in reversed(range(sizes)):
            for _ in range(c.num_res_blocks + 1):
                yield ResidualBlock(width + kept.pop(), c.nf * c.ch_mult[i], level)
                width = c.nf * c.ch_mult[i]
            if self._attends(i):
                yield Attention(width)
            yield _norm(width)
            yield _conv(3, width, c.num_channels, scale=0.0)
            if i > 0:
                yield ResidualBlock(width, width, level, resample(True))

    def _attends(self, i: int) -> bool:
        return self.config.image_size >> i in self.config.attn_resolutions

    def noise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """F(x, ln sigma) = sigma S."""
        c, layer = self.config, iter(self.all_modules)
        level = next(layer)(sigma.log().reshape(-1))
        level = next(layer)(level)
        level = next(layer)(functional.silu(level))
        image = x if c.centered else 2 * x - 1
        kept = [next(layer)(image)]
        last = len(c.ch_mult) - 1
        for i in range(last + 1):
            for _ in range(c.num_res_blocks):
                h = next(layer)(kept[-1], level)
                kept.append(next(layer)(h) if self._attends(i) else h)
            if i < last:
                h = next(layer)(kept[-1], level)
                image = self.shrink(image)
                kept.append(next(layer)(image, h))
        h = next(layer)(kept[-1], level)
        h = next(layer)(h)
        h = next(layer)(h, level)
        out: Tensor | None = None
        for i in reversed(range(last + 1)):
            for _ in range(c.num_res_blocks + 1):
                h = next(layer)(torch.cat((h, kept.pop()), 1), level)
            if self._attends(i):
                h = next(layer)(h)
            norm, conv = next(layer), next(layer)
            fine = conv(functional.silu(norm(h)))
            out = fine if out is None else self.grow(out) + fine
            if i > 0:
                h = next(layer)(h, level)
        assert out is not None
        return out

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.noise(x, sigma) / sigma.reshape(-1, 1, 1, 1)
