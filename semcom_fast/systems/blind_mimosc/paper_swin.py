"""A Swin-transformer codec of the paper's full size, with the names of the published SwinJSCC checkpoints."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...ops import power_normalise
from .photo_codec import PhotoCodecConfig, UserTurns

_MODULATORS = 7


@dataclass(frozen=True)
class SwinConfig:
    """Sizes of a Swin codec; the defaults are SwinJSCC "base" for 256x256 images with 36 reals per token: m = 4608.

    Attributes:
        image_size, num_channels: side of the square images, and their channels.
        embed_dims, depths, num_heads: per stage of the encoder; the decoder's are the same, reversed. The grid of tokens
            is halved at the start and between stages.
        window_size: side of the attention windows. mlp_ratio: of the hidden layers.
        latent: real symbols per token, C; m = tokens C/2 complex ones.
        snr_db: None, or the SNR handed to the modulators of a codec trained with them ("SA").
        centered: the network takes images on [-1,1]; False: on [0,1], as published.
    """

    image_size: int = 256
    num_channels: int = 3
    embed_dims: tuple[int, ...] = (128, 192, 256, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (4, 6, 8, 10)
    window_size: int = 8
    mlp_ratio: float = 4.0
    latent: int = 36
    snr_db: float | None = None
    centered: bool = False

    def __post_init__(self) -> None:
        stages = ("embed_dims", "depths", "num_heads")
        for name in stages:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len({len(getattr(self, name)) for name in stages}) != 1 or not self.depths:
            raise ValueError("SwinConfig: embed_dims, depths and num_heads need one entry per stage")
        if self.image_size % 2 ** len(self.depths):
            raise ValueError(f"SwinConfig: image_size {self.image_size} cannot be halved {len(self.depths)} times")
        if any(width % heads for width, heads in zip(self.embed_dims, self.num_heads, strict=True)):
            raise ValueError("SwinConfig: every embed_dims must be a multiple of its num_heads")
        for stage in range(len(self.depths)):
            side = self.side(stage)
            if side > self.window_size and side % self.window_size:
                raise ValueError(
                    f"SwinConfig: window_size {self.window_size} does not divide the grid of {side} tokens"
                )
        if self.tokens * self.latent % 2:
            raise ValueError(f"SwinConfig: {self.tokens} tokens of {self.latent} reals do not make complex symbols")

    def side(self, stage: int) -> int:
        """Side of the grid of tokens at a stage of the encoder."""
        return self.image_size >> stage + 1

    @property
    def tokens(self) -> int:
        return self.side(len(self.depths) - 1) ** 2

    @property
    def symbols(self) -> int:
        """Complex symbols per image, m."""
        return self.tokens * self.latent // 2

    @classmethod
    def from_dict(cls, values: dict) -> "SwinConfig":
        """From a dictionary; raises ValueError for an unknown name."""
        unknown = [name for name in values if name not in cls.__dataclass_fields__]
        if unknown:
            raise ValueError(f"SwinConfig: unknown {', '.join(unknown)}; known: {', '.join(cls.__dataclass_fields__)}")
        return cls(**values)


def windows(grid: Tensor, size: int) -> Tensor:
    """[N,S,S,C] -> [N,windows,size*size,C], windows in row order."""
    n, side, _, width = grid.shape
    count = side // size
    return grid.view(n, count, size, count, size, width).transpose(2, 3).reshape(n, count**2, size**2, width)


def unwindow(parts: Tensor, side: int) -> Tensor:
    """The inverse of `windows`."""
    n, many, area, width = parts.shape
    count, size = math.isqrt(many), math.isqrt(area)
    return parts.view(n, count, count, size, size, width).transpose(2, 3).reshape(n, side, side, width)


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learned bias per relative position."""

    index: Tensor

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * size - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        down = row.flatten().unsqueeze(1) - row.flatten() + size - 1
        across = column.flatten().unsqueeze(1) - column.flatten() + size - 1
        self.register_buffer("index", down * (2 * size - 1) + across, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [N,windows,tokens,C]; mask [windows,1,tokens,tokens] added to the logits."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)
        logits = (bias if mask is None else bias + mask).to(q.dtype)  # [(windows,)heads,tokens,tokens]
        found = functional.scaled_dot_product_attention(q, k, v, attn_mask=logits.expand(*q.shape[:3], -1, -1))
        return self.proj(found.transpose(2, 3).flatten(3))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


def shift_mask(side: int, size: int, shift: int) -> Tensor:
    """-inf between tokens of a window that were not neighbours before the grid was rolled by `shift`."""
    line = torch.zeros(side)
    line[side - size : side - shift] = 1
    line[side - shift :] = 2
    region = windows((3 * line.unsqueeze(1) + line).view(1, side, side, 1), size).squeeze(-1)[0]
    apart = region.unsqueeze(1) != region.unsqueeze(2)
    # published as -100, whose exponentials are denormal numbers: slow, and nothing
    return torch.zeros(apart.shape).masked_fill(apart, -math.inf).unsqueeze(1)


class SwinBlock(nn.Module):
    """Attention inside windows, shifted by half a window in every other block, and an MLP, on a grid [N,S,S,C]."""

    mask: Tensor | None

    def __init__(self, width: int, heads: int, side: int, size: int, hidden: int, shifted: bool) -> None:
        super().__init__()
        shift = size // 2 if shifted and side > size else 0
        self.size, self.shift = min(size, side), shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, self.size)
        self.mlp = Mlp(width, hidden)
        self.register_buffer("mask", shift_mask(side, self.size, shift) if shift else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        if self.shift:
            h = h.roll((-self.shift, -self.shift), (1, 2))
        h = unwindow(self.attn(windows(h, self.size), self.mask), x.shape[1])
        if self.shift:
            h = h.roll((self.shift, self.shift), (1, 2))
        x = x + h
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    """2x2 tokens into one: [N,S,S,C] -> [N,S/2,S/2,out]."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = (x[:, i::2, j::2] for j in (0, 1) for i in (0, 1))
        return self.reduction(self.norm(torch.cat(tuple(corners), -1)))


class Splitting(nn.Module):
    """One token into 2x2: [N,S,S,C] -> [N,2S,2S,out]."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.increment = nn.Linear(width, 4 * out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        fine = functional.pixel_shuffle(self.increment(self.norm(x)).permute(0, 3, 1, 2), 2)
        return fine.permute(0, 2, 3, 1)


class Stage(nn.Module):
    """Blocks of one width, after a reduction (encoder) or before a refinement (decoder)."""

    def __init__(self, config: SwinConfig, stage: int, *, before: nn.Module | None, after: nn.Module | None) -> None:
        super().__init__()
        c, width = config, config.embed_dims[stage]
        self.downsample, self.upsample = before, after
        self.blocks = nn.ModuleList(
            SwinBlock(width, c.num_heads[stage], c.side(stage), c.window_size, int(width * c.mlp_ratio), i % 2 == 1)
            for i in range(c.depths[stage])
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, 2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).permute(0, 2, 3, 1)


class Modulator(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        layers = nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        self.fc = nn.Sequential(*layers, nn.Sigmoid())

    def forward(self, snr_db: Tensor) -> Tensor:
        return self.fc(snr_db)


class SnrModulation(nn.Module):
    """Multiplies features by factors in (0,1) that follow them and the SNR in dB; mixed into encoder and decoder."""

    def modulators(self, width: int) -> None:
        """Build the layers, named as published."""
        hidden = int(1.5 * width)
        widths = [width, *[hidden] * _MODULATORS, width]
        self.sm_list = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.bm_list = nn.ModuleList(Modulator(hidden) for _ in range(_MODULATORS))

    def modulated(self, x: Tensor, snr_db: float | None) -> Tensor:
        if snr_db is None:
            return x
        level, gate = x.new_full((1,), snr_db), x
        for linear, modulator in zip(self.sm_list, self.bm_list, strict=False):
            gate = linear(gate) * modulator(level)
        return x * self.sm_list[-1](gate).sigmoid()


class SwinEncoder(SnrModulation):
    """Images d [B,U,C,S,S] on [-1,1] -> codewords x [B,U,K,Nt,T], power-normalised per user and image.

    Patch embedding, stages of shifted-window attention with patch merging between them, a linear map to `latent` reals
    per token. The first half of an image's reals are the real parts of its m symbols. Users share the network and are
    told apart by `photo_codec.UserTurns`.

    Args:
        config: sizes. layout: K, Nt and T with K Nt T = m. users: U.

    Source: K. Yang et al., "SwinJSCC: Taming Swin Transformer for Deep Joint Source-Channel Coding", and the layer names
    published with it; f_u of "Blind MIMO Semantic Communication via Parallel Variational Diffusion", eqs. (12), (44).
    """

    def __init__(self, config: SwinConfig, layout: tuple[int, int, int], users: int = 1) -> None:
        super().__init__()
        if math.prod(layout) != config.symbols:
            raise ValueError(f"this codec makes {config.symbols} symbols, not K*Nt*T = {math.prod(layout)}")
        c = self.config = config
        self.layout = layout
        self.turns = user_turns(layout, users)
        self.patch_embed = PatchEmbed(c.num_channels, c.embed_dims[0])
        self.layers = nn.ModuleList(
            Stage(c, i, before=Merging(c.embed_dims[i - 1], c.embed_dims[i]) if i else None, after=None)
            for i in range(len(c.depths))
        )
        self.norm = nn.LayerNorm(c.embed_dims[-1])
        self.head_list = nn.Linear(c.embed_dims[-1], c.latent)
        if c.snr_db is not None:
            self.modulators(c.embed_dims[-1])

    def forward(self, d: Tensor) -> Tensor:
        c = self.config
        expected = (self.turns.users, c.num_channels, c.image_size, c.image_size)
        if tuple(d.shape[1:]) != expected:
            raise ValueError(f"need images d [B,{','.join(map(str, expected))}], got {tuple(d.shape)}")
        images = d.flatten(0, 1)
        h = self.patch_embed(images if c.centered else 0.5 * (images + 1))
        for layer in self.layers:
            h = layer(h)
        reals = self.head_list(self.modulated(self.norm(h), c.snr_db)).flatten(1)
        x = torch.complex(*reals.to(d.dtype).chunk(2, 1)).view(*d.shape[:2], c.symbols)
        return power_normalise(self.turns(x).unflatten(2, self.layout))[0]


class SwinDecoder(SnrModulation):
    """Equalised codewords x [B,U,K,Nt,T] -> images [B,U,C,S,S] on [-1,1]: the encoder's stages in reverse."""

    def __init__(self, config: SwinConfig, layout: tuple[int, int, int], users: int = 1) -> None:
        super().__init__()
        c = self.config = config
        self.layout = layout
        self.turns = user_turns(layout, users)
        self.head_list = nn.Linear(c.latent, c.embed_dims[-1])
        following = [c.num_channels, *c.embed_dims]
        self.layers = nn.ModuleList(
            Stage(c, i, before=None, after=Splitting(c.embed_dims[i], following[i]))
            for i in reversed(range(len(c.depths)))
        )
        if c.snr_db is not None:
            self.modulators(c.embed_dims[-1])

    def forward(self, x: Tensor) -> Tensor:
        c = self.config
        if tuple(x.shape[1:]) != (self.turns.users, *self.layout):
            raise ValueError(f"need codewords x [B,{self.turns.users},{','.join(map(str, self.layout))}], "
                             f"got {tuple(x.shape)}")  # fmt: skip
        symbols = self.turns.undo(x.flatten(2)).flatten(0, 1)
        side = c.side(len(c.depths) - 1)
        reals = torch.cat((symbols.real, symbols.imag), 1).view(-1, side, side, c.latent)
        h = self.modulated(self.head_list(reals.to(self.head_list.weight.dtype)), c.snr_db)
        for layer in self.layers:
            h = layer(h)
        images = h.permute(0, 3, 1, 2).to(x.real.dtype).unflatten(0, x.shape[:2])
        return images if c.centered else 2 * images - 1


def user_turns(layout: tuple[int, int, int], users: int) -> UserTurns:
    """Permutations and masks of the users, for codewords of this layout."""
    blocks, nt, slots = layout
    return UserTurns(PhotoCodecConfig(side=8, blocks=blocks, nt=nt, slots=slots), users)
