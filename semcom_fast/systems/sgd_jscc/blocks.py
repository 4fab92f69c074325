"""Layers of the diffusion transformer: attention with a relative bias, AdaLN blocks, embeddings of level and text.

A block is given what depends on the level and on the text (`Modulation`), not the level and the text themselves, so
that a run may form it in another way than a single call does.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVEL_FREQUENCIES = 128
CLASS_ROWS = 3  # of a bias table that also serves a class token: to it, from it, to itself
_NORM_EPS = 1e-6


class Modulation(NamedTuple):
    """What a block is told: `shifts` [B,6D] = (shift, scale, gate) of attention, then of the MLP; `cross` [B,D] the
    outcome of cross-attention, the same for every token; `bias` [H,T,T] or [B,H,T,T] added to attention scores."""

    shifts: Tensor
    cross: Tensor
    bias: Tensor


def sincos_positions(width: int, side: int) -> Tensor:
    """Start of a learned position table, [side*side, width]: half the channels for the column, half for the row."""
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    table = torch.cat((angles.sin(), angles.cos()), 1)  # [side, width/2]
    columns = table[None].expand(side, -1, -1)
    rows = table[:, None].expand(-1, side, -1)
    return torch.cat((columns, rows), -1).reshape(side * side, width).to(torch.get_default_dtype())


def relative_index(side: int) -> Tensor:
    """Row of the bias table for every (query, key) pair of a side x side grid, [T,T] on 0..(2 side - 1)^2 - 1."""
    place = torch.arange(side)
    row, column = place.repeat_interleave(side), place.repeat(side)
    down = row[:, None] - row[None] + side - 1
    across = column[:, None] - column[None] + side - 1
    return down * (2 * side - 1) + across


def level_features(level: Tensor) -> Tensor:
    """cos and sin of 2 pi f level at 128 frequencies f, log-spaced on 1..1000: [B] -> float64 [B,256]."""
    exponents = torch.linspace(0, math.log(1000.0), LEVEL_FREQUENCIES, dtype=torch.float64, device=level.device)
    angles = 2 * math.pi * level.double()[:, None] * exponents.exp()
    return torch.cat((angles.cos(), angles.sin()), 1)


class LevelEmbedding(nn.Module):
    """[B] levels -> [B,D] conditioning vectors: LN(Linear(GELU(Linear(features))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * LEVEL_FREQUENCIES, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width)
        )

    def forward(self, level: Tensor) -> Tensor:
        first: nn.Module = self.layers[0]
        assert isinstance(first, nn.Linear)
        return self.layers(level_features(level).to(first.weight))


class TextEmbedding(nn.Module):
    """[B,text] sentence vectors -> [B,D], the one token that cross-attention sees: LN(Linear(text))."""

    def __init__(self, text: int, width: int) -> None:
        super().__init__()
        self.project, self.norm = nn.Linear(text, width), nn.LayerNorm(width)

    def forward(self, text: Tensor) -> Tensor:
        return self.norm(self.project(text))


class CrossAttention(nn.Module):
    """Cross-attention to one token.

    A softmax over one key is 1, so the outcome is W_v y + b_v whatever the queries are. With `inert` the module holds
    the query and key projections of the authors' layout, which no output depends on; `with_softmax` uses them.
    """

    def __init__(self, width: int, heads: int, inert: bool) -> None:
        super().__init__()
        self.heads = heads
        self.value = nn.Linear(width, width)
        self.query = nn.Linear(width, width) if inert else None
        self.key = nn.Linear(width, width) if inert else None

    def forward(self, y: Tensor) -> Tensor:
        return self.value(y)

    def with_softmax(self, x: Tensor, y: Tensor) -> Tensor:
        """The long way, for tests: x [B,T,D] attends to the token y [B,D]."""
        if self.query is None or self.key is None:
            raise ValueError("CrossAttention: built without query and key projections; pass inert=True")
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.query(x), self.key(y)[:, None], self.value(y)[:, None])
        )
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Self-attention over the tokens of a square grid with a learned relative bias per head."""

    def __init__(self, width: int, heads: int, side: int, inert: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.zeros((2 * side - 1) ** 2 + (CLASS_ROWS if inert else 0), heads))
        self.register_buffer("index", relative_index(side), persistent=False)

    def bias(self) -> Tensor:
        """[H,T,T], gathered from the table."""
        index: Tensor = self.get_buffer("index")
        return self.table[index.reshape(-1)].reshape(*index.shape, self.heads).permute(2, 0, 1)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if x.is_cuda:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        else:  # half the time of the CPU's fused kernel at a few hundred tokens, forward and backward
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias.to(q.dtype)
            mixed = scores.softmax(-1) @ v
        return self.project(mixed.transpose(1, 2).flatten(2))


def gathered(bias: Tensor, kept: Tensor) -> Tensor:
    """The bias [H,T,T] between the tokens that an image keeps, `kept` [B,t] -> [B,H,t,t]."""
    return bias[:, kept[:, :, None], kept[:, None, :]].transpose(0, 1)


class Block(nn.Module):
    """x += ga1 Attn(LN(x)(1+sc1)+sh1); x += cross; x += ga2 MLP(LN(x)(1+sc2)+sh2); both gates start at zero.

    A block with `skip` first joins x with an earlier x: Linear([x, skip]).
    """

    def __init__(self, width: int, heads: int, hidden: int, side: int, *, skip: bool, inert: bool) -> None:
        super().__init__()
        self.join = nn.Linear(2 * width, width) if skip else None
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS, elementwise_affine=False)
        self.attention = Attention(width, heads, side, inert)
        self.cross = CrossAttention(width, heads, inert)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width))
        self.shifts = nn.Linear(width, 6 * width)

    def modulation(self, c: Tensor, y: Tensor) -> Modulation:
        """What this block is told at conditioning vectors c [B,D] and text tokens y [B,D]."""
        return Modulation(self.shifts(functional.silu(c)), self.cross(y), self.attention.bias())

    def forward(self, x: Tensor, told: Modulation, skip: Tensor | None = None) -> Tensor:
        if self.join is not None and skip is not None:
            x = self.join(torch.cat((x, skip), -1))
        shift1, scale1, gate1, shift2, scale2, gate2 = told.shifts[:, None].chunk(6, -1)
        x = x + gate1 * self.attention(torch.addcmul(shift1, self.norm(x), 1 + scale1), told.bias)
        x = x + told.cross[:, None]
        return x + gate2 * self.mlp(torch.addcmul(shift2, self.norm(x), 1 + scale2))


class FinalLayer(nn.Module):
    """Tokens [B,T,D] -> [B,T,channels]: LN, shift and scale `shifts` [B,2D], Linear; starts at zero."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS, elementwise_affine=False)
        self.shifts, self.project = nn.Linear(width, 2 * width), nn.Linear(width, channels)

    def forward(self, x: Tensor, shifts: Tensor) -> Tensor:
        shift, scale = shifts[:, None].chunk(2, -1)
        return self.project(torch.addcmul(shift, self.norm(x), 1 + scale))


def zero(*layers: nn.Linear | None) -> None:
    """Set layers to zero."""
    for layer in layers:
        if layer is not None:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def start(modules: Sequence[nn.Module]) -> None:
    """The starting point of training: Glorot-uniform weights, zero biases; block modulations at zero."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in module.modules():
            if isinstance(layer, Block | FinalLayer):
                zero(layer.shifts)
            if isinstance(layer, FinalLayer):
                zero(layer.project)
            if isinstance(layer, Attention):
                nn.init.trunc_normal_(layer.table, std=0.02)
