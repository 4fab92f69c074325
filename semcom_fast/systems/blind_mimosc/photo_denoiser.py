"""The source denoiser of photographs: a small U-Net in EDM form with a posterior-variance head."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class UNetConfig:
    """Sizes: images of side x side grey pixels, widths at side/2, side/4 and side/8, noise-level features."""

    side: int = 32
    widths: tuple[int, int, int] = (32, 64, 128)
    embedding: int = 64
    features: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.side % 8 or len(self.widths) != 3:
            raise ValueError(f"need a side that is a multiple of 8 and three widths, got {self.side}, {self.widths}")


class _Block(nn.Module):
    """h + conv(silu(conv(silu(h)) * (1 + scale) + shift)), 3x3; scale and shift follow the noise level."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.level = nn.Linear(embedding, 2 * width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.level.weight)
        nn.init.zeros_(self.level.bias)

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        scale, shift = self.level(embedded)[..., None, None].chunk(2, 1)
        inside = torch.addcmul(shift, self.first(functional.silu(h)), 1 + scale)
        return h + self.second(functional.silu(inside))


class UNet(nn.Module):
    """F of the EDM form: noisy images [N,1,S,S] of unit scale and ln sigma [N] or [1] -> F and ln of its error [N]."""

    frequencies: Tensor

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        a, b, c = config.widths
        self.register_buffer("frequencies", torch.linspace(0.2, 6.0, config.features), persistent=False)
        self.embed = nn.Sequential(
            nn.Linear(2 * config.features, config.embedding), nn.SiLU(), nn.Linear(config.embedding, config.embedding)
        )
        self.inner = nn.Conv2d(4, a, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width, config.embedding) for width in (a, b, c, c, b, a))
        self.down = nn.ModuleList((nn.Conv2d(4 * a, b, 1), nn.Conv2d(4 * b, c, 1)))
        self.up = nn.ModuleList((nn.Conv2d(c, 4 * b, 1), nn.Conv2d(b, 4 * a, 1)))
        self.join = nn.ModuleList((nn.Conv2d(2 * b, b, 1), nn.Conv2d(2 * a, a, 1)))
        self.outer = nn.Conv2d(a, 4, 3, padding=1)
        nn.init.zeros_(self.outer.weight)
        self.outer.bias.data.zero_()  # type: ignore[union-attr]
        self.error = nn.Sequential(nn.Linear(a + c + config.embedding, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor]:
        phase = log_sigma.unsqueeze(-1) * self.frequencies
        embedded = functional.silu(self.embed(torch.cat((phase.sin(), phase.cos()), -1)))
        fine, middle, coarse, deep, back, last = self.blocks
        h = functional.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        top = fine(self.inner(h), embedded)
        mid = middle(self.down[0](functional.pixel_unshuffle(top, 2)), embedded)
        low = coarse(self.down[1](functional.pixel_unshuffle(mid, 2)), embedded)
        low = deep(low, embedded)
        h = self.join[0](torch.cat((functional.pixel_shuffle(self.up[0](low), 2), mid), 1))
        h = back(h, embedded)
        h = self.join[1](torch.cat((functional.pixel_shuffle(self.up[1](h), 2), top), 1))
        h = functional.silu(last(h, embedded))
        # The head reads the features and leaves them to the denoising loss.
        pooled = (h.abs().mean((2, 3)).detach(), low.abs().mean((2, 3)).detach(), embedded.detach())
        error = self.error(torch.cat([part.expand(len(x), -1) for part in pooled], 1)).squeeze(1)
        return functional.pixel_shuffle(self.outer(h), 2), error


def cosine_basis(size: int) -> Tensor:
    """The orthonormal DCT-II matrix [size,size], rows by frequency, float64."""
    place = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * (place + 0.5) * place.unsqueeze(1)) * math.sqrt(2 / size)
    basis[0] *= math.sqrt(0.5)
    return basis


class PhotoDenoiser(nn.Module):
    """E[d | d + sigma z] for grey photographs d, and its posterior variance, image by image.

    EDM form around the Wiener filter: with the pixels' mean m and the power spectrum p of d - m in the cosine basis C,

        mean = m + C^T (p/(p + sigma^2) C (x - m)) + c_out F(c_in (x - m), ln sigma)

    c_out^2 is the filter's mean squared error, c_in^2 the inverse power of x - m. With F = 0 this is the best linear
    denoiser of a source of that spectrum; the network adds what photographs have beyond their spectrum. Its rounding
    counts c_out times, so it may run in bfloat16 at any level. The variance per pixel is c_out^2 times the network's
    estimate of F's squared error, at most sigma^2; no gradient flows through it.

    Called with x [...,1,S,S], such as [B,U,1,S,S], and sigma (0-d): -> (mean like x, var [...]). `bf16` runs the network
    in bfloat16; sums with x are always in x's dtype.

    Source: eqs. (38), (40) of "Blind MIMO Semantic Communication via Parallel Variational Diffusion"; T. Karras et al.,
    "Elucidating the Design Space of Diffusion-Based Generative Models", eq. (7), there with a white spectrum.
    """

    mean: Tensor
    spectrum: Tensor
    basis: Tensor

    def __init__(self, config: UNetConfig | None = None, *, bf16: bool = False) -> None:
        super().__init__()
        self.config = config or UNetConfig()
        self.bf16 = bf16
        self.net = UNet(self.config)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("spectrum", torch.ones(self.config.side, self.config.side))
        self.register_buffer("basis", cosine_basis(self.config.side).float(), persistent=False)

    @torch.no_grad()
    def set_statistics(self, images: Tensor) -> None:
        """Take mean and power spectrum of images [N,1,S,S]."""
        self.mean.fill_(float(images.mean()))
        coefficients = self.basis @ (images - self.mean) @ self.basis.T
        self.spectrum.copy_(coefficients.square().mean((0, 1)))

    def _wiener(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Wiener estimate of d - m, c_in and c_out, both [N,1,1,1] (or 1 for N); x [N,1,S,S], sigma [N] or [1]."""
        noise = sigma.square()[:, None, None, None]
        share = self.spectrum / (self.spectrum + noise)
        estimate = self.basis.T @ (share * (self.basis @ (x - self.mean) @ self.basis.T)) @ self.basis
        c_out = (share * noise).mean((2, 3), keepdim=True).sqrt()
        return estimate, (self.spectrum.mean() + noise).rsqrt(), c_out

    def _network(self, x: Tensor, c_in: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            out, error = self.net((x - self.mean) * c_in, sigma.log())
        return out.to(x.dtype), error.to(x.dtype)

    def residual(self, x: Tensor, d: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """F at x = d + sigma z, both [N,1,S,S], sigma [N]; what it should be, of unit scale; ln of its squared error."""
        estimate, c_in, c_out = self._wiener(x, sigma)
        out, error = self._network(x, c_in, sigma)
        return out, (d - self.mean - estimate) / c_out, error

    def forward(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        if x.ndim < 4 or tuple(x.shape[-3:]) != (1, self.config.side, self.config.side):
            raise ValueError(f"need images [...,1,{self.config.side},{self.config.side}], got {tuple(x.shape)}")
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(1)
        flat = x.flatten(0, -4)
        estimate, c_in, c_out = self._wiener(flat, sigma)
        residual, error = self._network(flat, c_in, sigma)
        mean = torch.addcmul(self.mean + estimate, residual, c_out)
        var = torch.minimum(c_out.flatten().square() * error.detach().exp(), sigma.square())
        return mean.view_as(x), var.expand(len(flat)).view(x.shape[:-3])
