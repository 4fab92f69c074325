"""Shifted-window attention whose layer normalisations follow a condition, as the edge codec stacks it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class StageSettings:
    """Sizes of a stage: its features, blocks, map side, window side, heads, MLP factor and condition features."""

    width: int
    depth: int
    side: int
    window: int
    heads: int
    mlp: int
    condition: int


def relative_places(window: int) -> Tensor:
    """Row of the bias table for every pair of tokens of a window, int64 [T,T]."""
    axis = torch.arange(window)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    apart = grid[:, :, None] - grid[:, None, :] + window - 1
    return apart[0] * (2 * window - 1) + apart[1]


def shift_mask(side: int, window: int, shift: int) -> Tensor:
    """Which tokens of a shifted window are neighbours on the map too, bool [windows,1,T,T]."""
    part = torch.zeros(side, dtype=torch.int64)
    part[side - window : side - shift], part[side - shift :] = 1, 2
    region = (3 * part[:, None] + part[None, :])[None, :, :, None]
    region = into_windows(region, window)[..., 0]
    return (region[:, :, None] == region[:, None, :]).unsqueeze(1)


def into_windows(x: Tensor, window: int) -> Tensor:
    """[B,H,W,C] -> [B*windows,T,C]."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def from_windows(x: Tensor, window: int, side: int) -> Tensor:
    """The inverse of `into_windows` for a square map."""
    rows = side // window
    return x.unflatten(1, (window, window)).unflatten(0, (-1, rows, rows)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


class SwinBlock(nn.Module):
    """Attention inside windows, then a two-layer network; both see a layer-normalised map scaled by the condition.

    Source: Z. Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows"; AdaLN as in W.
    Peebles and S. Xie, "Scalable Diffusion Models with Transformers".
    """

    def __init__(self, settings: StageSettings, shift: int) -> None:
        super().__init__()
        width, window = settings.width, settings.window
        self.heads, self.side, self.window, self.shift = settings.heads, settings.side, window, shift
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = settings.mlp * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, settings.heads))
        self.modulation = nn.Linear(settings.condition, 4 * width)
        nn.init.zeros_(self.modulation.weight)  # starts as a plain layer normalisation
        nn.init.zeros_(self.modulation.bias)
        self.places: Tensor
        self.mask: Tensor | None
        self.register_buffer("places", relative_places(window), persistent=False)
        mask = shift_mask(settings.side, window, shift) if shift else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale1, shift1, scale2, shift2 = self.modulation(condition)[:, None, None].chunk(4, -1)
        x = x + self._attend(_layer_norm(x) * (1 + scale1) + shift1)
        return x + self.mlp(_layer_norm(x) * (1 + scale2) + shift2)

    def _attend(self, x: Tensor) -> Tensor:
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        q, k, v = self.qkv(into_windows(x, self.window)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=self._scores(len(q), q.dtype))
        x = self.out(from_windows(mixed.transpose(1, 2).flatten(2), self.window, self.side))
        return x.roll((self.shift, self.shift), (1, 2)) if self.shift else x

    def _scores(self, windows: int, dtype: torch.dtype) -> Tensor:
        """What is added to the attention scores, [windows or 1, heads, T, T]."""
        bias = self.bias[self.places].permute(2, 0, 1).unsqueeze(0)
        if self.mask is not None:
            bias = bias.masked_fill(~self.mask, float("-inf")).repeat(windows // len(self.mask), 1, 1, 1)
        return bias.to(dtype)


def _layer_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6)


class SwinStage(nn.Module):
    """Blocks at one resolution, every second one with windows shifted by half their side."""

    def __init__(self, settings: StageSettings) -> None:
        super().__init__()
        half = settings.window // 2 if settings.window < settings.side else 0
        self.blocks = nn.ModuleList(SwinBlock(settings, half * (place % 2)) for place in range(settings.depth))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B,side,side,width], condition [B,c]."""
        for block in self.blocks:
            x = block(x, condition)
        return x
