"""What the networks for photographs are trained on and judged by."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...links import psnr
from .measures import correlation
from .photo_codec import PhotoCodec
from .photo_denoiser import PhotoDenoiser
from .photo_images import GreyCrops, as_source
from .photo_settings import PhotoFitSettings

Loss = Callable[[Any, torch.Generator], Tensor]
CODEC_SNRS_DB = (10.0, 15.0, 20.0, 25.0)
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0, 10.0)
_CENTRE, _SPREAD = -1.2, 1.5  # of ln sigma
_LOW, _HIGH = 0.005, 150.0
_WIDE_SHARE = 0.1
_HEAD_WEIGHT = 0.1


def oddness(x: Tensor, reflected: Tensor) -> Tensor:
    """mean(relu(-corr)^2) over images, blocks and antennas of codewords [B,U,K,Nt,T] of images and their reflections.

    A received block can also be explained by any antenna's codeword turned, with its channel turned back: the penalty
    looks at every antenna of every block, where the one for digits looks at whole codewords.
    """
    return (-correlation(x.flatten(0, -2), reflected.flatten(0, -2))).relu().square().mean()


def codec_loss(crops: GreyCrops, settings: PhotoFitSettings) -> Loss:
    """Mean squared error after white noise of random SNR on the codeword, plus the penalty against odd encoders."""
    centre = float(as_source(crops.images).mean())

    def loss(model: PhotoCodec, generator: torch.Generator) -> Tensor:
        d = crops.draw(settings.batch, generator).unsqueeze(1)
        level = torch.rand(settings.batch, generator=generator)
        noise_var = 10 ** (-(settings.low_db + (settings.high_db - settings.low_db) * level) / 10)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            x = model.encoder(d)
            noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
            received = x + noise_var.sqrt().view(-1, 1, 1, 1, 1) * noise
            total = (model.decoder(received, noise_var) - d).square().mean()
            if settings.penalty:
                total = total + settings.penalty * oddness(x, model.encoder(2 * centre - d))
        return total

    return loss


def draw_sigma(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels: nine in ten where there is something to learn, the rest over all that a receiver visits."""
    centre = _SPREAD * torch.randn(count, generator=generator) + _CENTRE
    low, high = torch.tensor(_LOW).log(), torch.tensor(_HIGH).log()
    wide = low + (high - low) * torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < _WIDE_SHARE, wide, centre).clamp(low, high).exp()


def denoiser_loss(crops: GreyCrops, settings: PhotoFitSettings) -> Loss:
    """Squared error of F, which weights the denoising error to unit scale, and the likelihood of its size by the head.

    With the head's r per image, e exp(-r) + r is smallest in expectation where exp(r) is the expected squared error e.
    """

    def loss(model: PhotoDenoiser, generator: torch.Generator) -> Tensor:
        d = crops.draw(settings.batch, generator)
        sigma = draw_sigma(settings.batch, generator)
        x = d + sigma.view(-1, 1, 1, 1) * torch.randn(d.shape, generator=generator)
        model.bf16 = settings.bf16
        residual, target, head = model.residual(x, d, sigma)
        error = (residual - target).square().mean((1, 2, 3))
        return error.mean() + _HEAD_WEIGHT * (error.detach() * (-head).exp() + head).mean()

    return loss


@torch.no_grad()
def codec_metrics(codec: PhotoCodec, crops: GreyCrops, seed: int = 0) -> dict[str, Any]:
    """PSNR over white noise, and how odd the encoder is and how much of its energy is the same for all images."""
    d = as_source(crops.images).unsqueeze(1)
    x = codec.encoder(d)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Any] = {}
    for snr in CODEC_SNRS_DB:
        noise_var = 10 ** (-snr / 10)
        noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        recovered = codec.decoder(x + noise_var**0.5 * noise, noise_var)
        found[f"psnr_awgn_{snr:g}_db"] = round(float(psnr(d, recovered).mean()), 2)
    reflected = codec.encoder(2 * d.mean() - d)
    found["reflection_correlation"] = round(float(correlation(x, reflected).mean()), 3)
    found["mean_codeword_energy"] = round(mean_fraction(x), 3)
    return found


def mean_fraction(x: Tensor) -> float:
    """Share of the energy of codewords [B,...] that is the same for all: |E x|^2 / E|x|^2."""
    return float(x.mean(0).abs().square().sum() / x.abs().square().flatten(1).sum(1).mean())


@torch.no_grad()
def denoiser_metrics(denoiser: PhotoDenoiser, crops: GreyCrops, seed: int = 0) -> dict[str, Any]:
    """Denoising error over the pixels' variance at several levels, and the head's variance over that error."""
    d = as_source(crops.images).unsqueeze(1)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Any] = {}
    for sigma in SIGMAS:
        mean, var = denoiser(d + sigma * torch.randn(d.shape, generator=generator), sigma)
        error = float((mean - d).square().mean())
        found[f"sigma={sigma:g}"] = {
            "mse_over_var": round(error / float(d.var()), 5),
            "head_over_mse": round(float(var.mean()) / error, 3),
        }
    return found
