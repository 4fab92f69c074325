"""Encoder and decoder of grey photographs: small convolutional networks over a grid of 8x8 positions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...ops import philox_normal, power_normalise

_ORDER_STEP, _MASK_STEP = 5, 6  # of the user stream: after channels, noise, pilots and the digits' masks
REDUCTION = 4  # image pixels per grid position and direction
_PIXEL_DEVIATION = 0.45  # of photographs on [-1,1]


@dataclass(frozen=True)
class PhotoCodecConfig:
    """Sizes: images of side x side grey pixels, a codeword of K blocks, Nt antennas and T slots, layers' widths."""

    side: int = 32
    blocks: int = 8
    nt: int = 2
    slots: int = 16
    width: int = 64
    encoder_blocks: int = 2
    decoder_width: int = 96
    decoder_blocks: int = 3
    interleaver_seed: int = 0

    def __post_init__(self) -> None:
        if self.side % (2 * REDUCTION) or 2 * self.symbols % self.positions or self.symbols < 1:
            raise ValueError(
                f"images of {self.side} pixels make {self.positions} grid positions (side a multiple of {2 * REDUCTION}), "
                f"which must share the 2*K*Nt*T = {2 * self.symbols} real symbols evenly"
            )

    @property
    def symbols(self) -> int:
        """Complex symbols per image, m = K Nt T."""
        return self.blocks * self.nt * self.slots

    @property
    def grid(self) -> int:
        return self.side // REDUCTION

    @property
    def positions(self) -> int:
        return self.grid**2

    @property
    def channels(self) -> int:
        """Real symbols per grid position."""
        return 2 * self.symbols // self.positions


class ResidualBlock(nn.Module):
    """h + conv(silu(conv(silu(h)))), 3x3, the second one zero at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(functional.silu(self.first(functional.silu(h))))


def interleaver(config: PhotoCodecConfig) -> Tensor:
    """Where the real parts of the m symbols come from among the channels x positions real symbols of the grid, [2m].

    Two channels of a position make a symbol, two positions of the last channel where their number is odd. The order of
    the symbols is pseudo-random: every fading block carries symbols from all over the image.
    """
    order = philox_normal((config.symbols,), seed=config.interleaver_seed, step=_ORDER_STEP).argsort()
    even = config.channels // 2 * 2
    places = torch.arange(config.channels * config.positions).view(config.channels, config.positions)
    pairs = torch.cat((places[:even].unflatten(0, (-1, 2)).mT.flatten(0, 1), places[even:].reshape(2, -1).mT))
    return pairs[order].flatten()


class UserTurns(nn.Module):
    """Makes the codewords of several users distinct: a fixed permutation and unit-modulus mask for every user but the
    first, which is left alone.

    The rows of T symbols that an antenna sends in a block are exchanged as wholes, their symbols inside each: a row stays
    as little odd about the mean image as its training made it.
    """

    order: Tensor
    turn: Tensor

    def __init__(self, config: PhotoCodecConfig, users: int) -> None:
        super().__init__()
        if users < 1:
            raise ValueError(f"need at least one user, got {users}")
        m, slots = config.symbols, config.slots
        orders, turns = [torch.arange(m)], [torch.ones(m, dtype=torch.complex64)]
        for user in range(1, users):
            draw = philox_normal((m,), seed=config.interleaver_seed, step=_MASK_STEP, first_item=user * m,
                                 dtype=torch.complex64)  # fmt: skip
            rows = draw.real[: m // slots].argsort()
            inside = draw.imag.view(-1, slots).argsort(1)
            orders.append((rows.unsqueeze(1) * slots + inside).flatten())
            turns.append(draw / draw.abs())
        self.users = users
        self.register_buffer("order", torch.stack(orders), persistent=False)
        self.register_buffer("turn", torch.stack(turns), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Codewords [B,U,m] of the shared network -> those that are sent."""
        return x if self.users == 1 else x.gather(2, self.order.expand_as(x)) * self.turn.to(x.dtype)

    def undo(self, x: Tensor) -> Tensor:
        """The inverse, on received codewords [B,U,m]."""
        if self.users == 1:
            return x
        return (x * self.turn.to(x.dtype).conj()).gather(2, self.order.argsort(1).expand_as(x))


def cosine_code(channels: int) -> tuple[Tensor, Tensor, float]:
    """A linear code to start from: the lowest cosine coefficients of 4x4 pixels with gains for a falling spectrum.

    Coefficients of standard deviation s get gains s^(-1/2), which is the best linear code for white noise.

    Returns:
        encoder [C,16] and decoder [16,C] over pixels in row order, C = min(channels, 16), the decoder for symbols of
        mean power 1/2 per real part; and the encoder's root mean power per symbol.
    """
    size = REDUCTION
    place = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * (place + 0.5) * place.unsqueeze(1)) * math.sqrt(2 / size)
    basis[0] *= math.sqrt(0.5)
    order = sorted(((u, v) for u in range(size) for v in range(size)), key=lambda uv: (sum(uv), max(uv)))
    kept = order[: min(channels, size**2)]
    deviation = torch.tensor([_PIXEL_DEVIATION * size / (1 + u + v) ** 2 for u, v in kept], dtype=torch.float64)
    rows = torch.stack([torch.outer(basis[u], basis[v]).flatten() for u, v in kept])
    gain = deviation.rsqrt()
    root = float((gain * deviation).square().mean().sqrt())
    decode = rows.T / (gain * math.sqrt(0.25) / root)  # half of the codeword's power is its constant at first
    return (rows * gain.unsqueeze(1)).float(), decode.float(), root


class PhotoEncoder(nn.Module):
    """Grey images d [B,U,1,S,S] on [-1,1] -> codewords x [B,U,K,Nt,T] with |x_u|^2 = K Nt T per image.

    4x4 pixels become channels; a linear convolution and a residual network beside it make the symbols of the S/4 x S/4
    grid. A learned constant is added to every symbol, the symbols are interleaved over blocks, antennas and slots, and
    the codeword is power-normalised. The constant lets the network place a superimposed pilot where its training asks
    for one. Users share the network; `UserTurns` makes their encoders distinct.

    Source: f_u of "Blind MIMO Semantic Communication via Parallel Variational Diffusion", eqs. (12), (44).
    """

    order: Tensor

    def __init__(self, config: PhotoCodecConfig | None = None, users: int = 1) -> None:
        super().__init__()
        self.config = c = config or PhotoCodecConfig()
        self.turns = UserTurns(c, users)
        self.inner = nn.Conv2d(REDUCTION**2, c.width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(c.width) for _ in range(c.encoder_blocks))
        self.outer = nn.Conv2d(c.width, c.channels, 3, padding=1)
        self.linear = nn.Conv2d(REDUCTION**2, c.channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.outer.weight)
        code, _, root = cosine_code(c.channels)
        with torch.no_grad():
            self.linear.weight[: len(code)] *= 0.1
            self.linear.weight[: len(code), :, 1, 1] = code
        self.constant = nn.Parameter(root * torch.randn(c.channels, c.grid, c.grid))
        self.register_buffer("order", interleaver(c), persistent=False)

    def forward(self, d: Tensor) -> Tensor:
        c = self.config
        if d.ndim != 5 or tuple(d.shape[1:]) != (self.turns.users, 1, c.side, c.side):
            raise ValueError(f"need images d [B,{self.turns.users},1,{c.side},{c.side}], got {tuple(d.shape)}")
        pixels = functional.pixel_unshuffle(d.flatten(0, 1), REDUCTION).contiguous(memory_format=torch.channels_last)
        h = self.inner(pixels)
        for block in self.blocks:
            h = block(h)
        z = (self.linear(pixels) + self.outer(functional.silu(h))).to(self.constant.dtype) + self.constant
        x = torch.view_as_complex(z.flatten(1)[:, self.order].view(*d.shape[:2], c.symbols, 2))
        return power_normalise(self.turns(x).unflatten(2, (c.blocks, c.nt, c.slots)))[0]


class PhotoDecoder(nn.Module):
    """Equalised codewords x [B,U,K,Nt,T] with error variance noise_var (number or [B]) -> images [B,U,1,S,S].

    The decoder of DJSCC: blind reception does not use it, its baselines do. The error's variance per symbol is an
    input, as the logarithm, so that one network serves a range of SNRs. `users` as of the encoder.
    """

    order: Tensor

    def __init__(self, config: PhotoCodecConfig | None = None, users: int = 1) -> None:
        super().__init__()
        self.config = c = config or PhotoCodecConfig()
        self.turns = UserTurns(c, users)
        wide, half = c.decoder_width, c.decoder_width // 2
        self.inner = nn.Conv2d(c.channels + 1, wide, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(wide) for _ in range(c.decoder_blocks))
        self.up = nn.Conv2d(wide, 4 * half, 1)
        self.fine = ResidualBlock(half)
        self.outer = nn.Conv2d(half, 4, 3, padding=1)
        self.linear = nn.Conv2d(c.channels + 1, REDUCTION**2, 3, padding=1)
        nn.init.zeros_(self.outer.weight)
        _, code, _ = cosine_code(c.channels)
        with torch.no_grad():
            self.linear.weight *= 0.1
            self.linear.weight[:, : code.shape[1], 1, 1] = code
        self.register_buffer("order", interleaver(c).argsort(), persistent=False)

    def forward(self, x: Tensor, noise_var: Tensor | float) -> Tensor:
        c = self.config
        expected = (self.turns.users, c.blocks, c.nt, c.slots)
        if x.ndim != 5 or tuple(x.shape[1:]) != expected:
            raise ValueError(f"need codewords x [B,{','.join(map(str, expected))}], got {tuple(x.shape)}")
        flat = torch.view_as_real(self.turns.undo(x.flatten(2))).flatten(0, 1).flatten(1)
        h = flat[:, self.order].view(-1, c.channels, c.grid, c.grid)
        level = torch.as_tensor(noise_var, dtype=h.dtype, device=h.device).log().reshape(-1, 1)
        level = level.expand(x.shape[0], x.shape[1]).reshape(-1, 1, 1, 1).expand(-1, 1, c.grid, c.grid)
        received = torch.cat((h, level), 1).contiguous(memory_format=torch.channels_last)
        h = self.inner(received)
        for block in self.blocks:
            h = block(h)
        h = self.fine(functional.pixel_shuffle(self.up(functional.silu(h)), 2))
        out = functional.pixel_shuffle(self.outer(functional.silu(h)), 2)
        out = out + functional.pixel_shuffle(self.linear(received), REDUCTION)
        return out.to(x.real.dtype).unflatten(0, x.shape[:2])


class PhotoCodec(nn.Module):
    """An encoder with the decoder it is trained with, for one user or several."""

    def __init__(self, config: PhotoCodecConfig | None = None, users: int = 1) -> None:
        super().__init__()
        self.config = config or PhotoCodecConfig()
        self.encoder = PhotoEncoder(self.config, users)
        self.decoder = PhotoDecoder(self.config, users)
