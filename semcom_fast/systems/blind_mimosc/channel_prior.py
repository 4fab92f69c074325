"""A learned channel prior: a small convolutional denoiser over the antennas, with a head for its posterior variance."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ... import weights
from ...receivers.second_order import variance_of_trace
from .channel_laws import ChannelLaw
from .derived import KeepsDerived

HEADS = ("variance", "trace")


_DENSE_UP_TO = 16  # antennas: up to here a convolution is fastest as one matrix product


def to_features(h: Tensor) -> Tensor:
    """Complex [...,Nr,Nt] -> real [N,Nr,2 Nt]: the transmit antennas' real and imaginary parts are features."""
    return torch.view_as_real(h.reshape(-1, *h.shape[-2:])).flatten(2)


def from_features(features: Tensor, shape: torch.Size) -> Tensor:
    """Real [N,Nr,2 Nt] -> complex of the given shape."""
    return torch.view_as_complex(features.unflatten(-1, (-1, 2)).contiguous()).reshape(shape)


class AntennaConv(KeepsDerived):
    """Zero-padded convolution along the receive antennas, [N,n,in] -> [N,n,out], `taps` odd.

    On short arrays it is one product with the [n in, n out] Toeplitz matrix, which is kept while the weights are frozen.
    """

    places: Tensor

    def __init__(self, antennas: int, inputs: int, outputs: int, taps: int) -> None:
        super().__init__()
        if taps % 2 == 0:
            raise ValueError(f"taps must be odd, got {taps}")
        self.antennas = antennas
        self.weight = nn.Parameter(torch.empty(taps, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.uniform_(self.weight, -((taps * inputs) ** -0.5), (taps * inputs) ** -0.5)
        place = torch.arange(antennas)
        tap = place[:, None] - place + taps // 2  # of input antenna (row) and output antenna (column)
        self.register_buffer("places", (tap.unsqueeze(-1) == torch.arange(taps)).float(), persistent=False)

    def _matrix(self) -> Tensor:
        taps, inputs, outputs = self.weight.shape
        spread = (self.places @ self.weight.view(taps, -1)).unflatten(-1, (inputs, outputs))
        return spread.transpose(1, 2).reshape(self.antennas * inputs, -1)

    def matrix(self) -> Tensor:
        """Toeplitz matrix [n in, n out]: rows by antenna, then input; columns by antenna, then output."""
        return self._kept("matrix", self.weight, self._matrix)

    def forward(self, x: Tensor) -> Tensor:
        if self.antennas <= _DENSE_UP_TO:
            return (x.flatten(1) @ self.matrix()).unflatten(1, (self.antennas, -1)) + self.bias
        taps = self.weight.permute(2, 1, 0)
        return functional.conv1d(x.mT, taps, self.bias, padding=self.weight.shape[0] // 2).mT


class _GatedBlock(nn.Module):
    """h + W2 (a . sigmoid(g + b(sigma))) with (a, g) = W1 * h: linear in h where the gates are left alone.

    The best denoiser of a Gaussian channel is linear with taps that depend on sigma: gates moved by sigma alone make
    just that, and gates moved by h the rest.
    """

    def __init__(self, antennas: int, width: int, taps: int) -> None:
        super().__init__()
        self.first = AntennaConv(antennas, width, 2 * width, taps)
        self.second = nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, h: Tensor, shift: Tensor) -> Tensor:
        a, g = self.first(h).chunk(2, -1)
        return h + self.second(a * torch.sigmoid(g + shift.unsqueeze(-2)))


class ChannelDenoiser(nn.Module):
    """E[h | h + sigma z] of one block of antennas [Nr,Nt] by a convolutional network in EDM form, z ~ CN(0,1).

    Definition: den(x) = c_skip x + c_out F(c_in x, sigma) with c_skip = 1/(sigma^2 + 1), c_in = 1/sqrt(sigma^2 + 1) and
    c_out = sigma/sqrt(sigma^2 + 1), for entries of unit variance: F = 0 is the exact denoiser of Rayleigh fading. F is a
    convolution, gated residual blocks and a linear layer along the receive antennas; zero padding tells it where the
    array ends, and the transmit antennas' real and imaginary parts are its input features. All blocks and users go
    through the same network, each block on its own.

    head "variance": the posterior variance per entry is sigma^2 w/(sigma^2 + w), w = exp(q(x, sigma)): the variance that
    an entry of prior variance w has, never outside (0, sigma^2). head "trace": the network gives the trace of the second-
    order score, as the paper writes it, and the variance follows by (40); see `receivers.second_order` for what that
    loses at large sigma.

    Args:
        nr, nt: antennas it is made for; others are refused.
        width, blocks, taps: features, gated blocks, and kernel over the receive antennas.
        head: "variance" or "trace".

    Shapes: x [B,U,K,Nr,Nt] complex64, sigma a 0-d tensor or a number -> mean like x, var [B,U] (mean over the blocks).

    Source: equations (19), (20), (38), (40) of "Blind MIMO Semantic Communication via Parallel Variational Diffusion".
    """

    frequencies: Tensor

    def __init__(
        self,
        nr: int = 8,
        nt: int = 2,
        *,
        width: int = 32,
        blocks: int = 3,
        taps: int = 7,
        features: int = 16,
        head: str = "variance",
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"ChannelDenoiser: head must be one of {', '.join(HEADS)}, got {head!r}")
        self.antennas, self.head = (nr, nt), head
        self.config = {"nr": nr, "nt": nt, "width": width, "blocks": blocks, "taps": taps, "features": features}
        self.inner = AntennaConv(nr, 2 * nt, width, taps)
        self.body = nn.ModuleList(_GatedBlock(nr, width, taps) for _ in range(blocks))
        self.outer = nn.Linear(width, 2 * nt, bias=False)
        self.embed = nn.Sequential(nn.Linear(2 * features, 32), nn.SiLU(), nn.Linear(32, width * (blocks + 1)))
        last = nn.Linear(width, 1)
        self.spread = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), last)
        self.register_buffer("frequencies", torch.linspace(0.2, 4.0, features), persistent=False)
        for layer in (self.outer, last):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(last.bias)

    @property
    def entries(self) -> int:
        """Complex entries of a block, Nr Nt."""
        return self.antennas[0] * self.antennas[1]

    def _network(self, scaled: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """F [N,Nr,2 Nt] and the head's raw output [N] at inputs of unit scale and levels sigma [N] or [1]."""
        phase = sigma.log().unsqueeze(-1) * self.frequencies
        shifts = self.embed(torch.cat((phase.sin(), phase.cos()), -1)).chunk(len(self.body) + 1, -1)
        h = self.inner(scaled)
        for block, shift in zip(self.body, shifts[:-1], strict=True):
            h = block(h, shift)
        # The head only looks on: the mean is trained as if it was not there, and the loops do not differentiate it.
        seen = functional.silu(h.detach()).mean(1)
        pooled = torch.cat((seen, shifts[-1].expand(len(h), -1)), -1)
        return self.outer(h), self.spread(pooled).squeeze(-1)

    def denoise(self, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [N,Nr,2 Nt] and the head's raw output [N] at noisy features and levels sigma [N] or [1]."""
        level = sigma[:, None, None]
        c_in = (level.square() + 1).rsqrt()
        # under autocast the network alone is in bfloat16: its rounding counts c_out times, that of x would sigma times
        residual, raw = (out.to(noisy.dtype) for out in self._network(noisy * c_in, sigma))
        return torch.addcmul(noisy * c_in.square(), residual, level * c_in), raw

    def trace(self, raw: Tensor, sigma: Tensor) -> Tensor:
        """tr d score/dh of a block from the raw output of a trace head; raw = 0 is that of Rayleigh fading."""
        return self.entries * (raw - 1) / (sigma.square() + 1)

    def variance(self, raw: Tensor, sigma: Tensor) -> Tensor:
        """Posterior variance per entry from the raw output of the head; not clamped where the head is a trace."""
        if self.head == "trace":
            return variance_of_trace(self.trace(raw, sigma), sigma, self.entries)
        noise, own = sigma.square(), raw.exp()
        return noise * own / (noise + own)

    def forward(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        if x.ndim < 3 or tuple(x.shape[-2:]) != self.antennas:
            raise ValueError(
                f"ChannelDenoiser: made for [B,U,K,{self.antennas[0]},{self.antennas[1]}], got x {tuple(x.shape)}"
            )
        level = torch.as_tensor(sigma, dtype=self.frequencies.dtype, device=x.device).reshape(1)
        mean, raw = self.denoise(to_features(x), level)
        var = self.variance(raw, level)
        return from_features(mean, x.shape), var.reshape(x.shape[:-2]).mean(-1)


def weights_name(law: ChannelLaw, head: str = "variance") -> str:
    """Name of the weights for a law: "blind_mimosc_channel_kronecker_0.7", "blind_mimosc_channel_cdl_c"."""
    return f"blind_mimosc_channel_{law.name}" + ("" if head == "variance" else f"_{head}")


def load_channel_denoiser(
    law: ChannelLaw | None = None, *, head: str = "variance", folder: Path | None = None
) -> ChannelDenoiser:
    """The trained denoiser for a law (default: Kronecker 0.7, 8x2); `folder` None means the weights shipped."""
    tensors, card = weights.load(weights_name(law or ChannelLaw(), head), folder)
    model = ChannelDenoiser(**card["config"], head=head)
    model.load_state_dict(tensors)
    return model.requires_grad_(False).eval()
