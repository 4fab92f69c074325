"""What the parts of the codec are trained to minimise, and what they are judged by on held-out images."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...data.edges import kept_edges
from ...data.images import ImageSet
from ...links.metrics import psnr
from ...ops.power_normalise import power_normalise
from .autoencoder import Autoencoder
from .codec_networks import load_autoencoder
from .codec_settings import CodecFitSettings
from .edge_codec import EdgeCodec
from .snr_estimator import SnrEstimator

Loss = Callable[[Any, torch.Generator], Tensor]
MIRRORED = 0.5  # probability that a training image is mirrored left to right
LATENTS = 8192  # images whose latents the SNR estimator is trained on
EDGE = 0.5  # a pixel counts as an edge from this value on


def mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability MIRRORED."""
    flip = torch.rand(len(images), generator=generator) < MIRRORED
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def draw(images: Tensor, settings: CodecFitSettings, generator: torch.Generator) -> Tensor:
    """A batch of the images (or edge maps, or latents) at random."""
    return images[torch.randint(len(images), (settings.batch,), generator=generator)]


def draw_snr_db(settings: CodecFitSettings, generator: torch.Generator) -> Tensor:
    """One SNR for each image of a batch, uniform in dB."""
    low, high = settings.low_db, settings.high_db
    return low + (high - low) * torch.rand(settings.batch, generator=generator)


def add_noise(f: Tensor, snr_db: Tensor, generator: torch.Generator) -> Tensor:
    """AWGN of variance 10^(-snr_db/10) per real; f [B,...] has power 1 per real."""
    noise = torch.randn(f.shape, generator=generator)
    return f + noise * 10 ** (-snr_db / 20).reshape(-1, *[1] * (f.ndim - 1))


def fast_fading(f: Tensor, generator: torch.Generator) -> Tensor:
    """|h| f for Rayleigh h of each symbol, whose reals lie half the latent apart; the mean of |h|^2 is 1 in every latent."""
    count = f[0].numel() // 2
    gain = torch.randn(2, len(f), count, generator=generator).square().sum(0).sqrt()
    gain = gain / gain.square().mean(1, keepdim=True).sqrt()
    return f * gain.repeat(1, 2).reshape(f.shape)


def autoencoder_loss(images: ImageSet, settings: CodecFitSettings, folder: Path | None = None) -> Loss:
    """Mean squared error of the images after AWGN on the latent."""

    def loss(model: Autoencoder, generator: torch.Generator) -> Tensor:
        x = mirror(draw(images.images, settings, generator), generator).float() / 255
        snr_db = draw_snr_db(settings, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            recovered = model.decode(add_noise(model.encode(x), snr_db, generator))
        return (recovered - x).square().mean()

    return loss


@torch.no_grad()
def autoencoder_metrics(model: Autoencoder, images: ImageSet, folder: Path | None = None) -> dict[str, Any]:
    """PSNR of held-out images without noise and at six SNRs."""
    x = images.images.float() / 255
    f = model.encode(x)
    metrics: dict[str, Any] = {"noiseless psnr_db": round(float(psnr(x, model.decode(f), low=0.0).mean()), 2)}
    for snr in (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0):
        noisy = add_noise(f, torch.full((len(x),), snr), torch.Generator().manual_seed(0))
        metrics[f"{snr:g} dB psnr_db"] = round(float(psnr(x, model.decode(noisy), low=0.0).mean()), 2)
    return metrics


@torch.no_grad()
def latents_of(images: ImageSet, folder: Path | None, count: int = LATENTS) -> Tensor:
    """Latents of the first images under the trained autoencoder in `folder` (None: the one shipped)."""
    autoencoder = load_autoencoder(folder)
    blocks = images.images[:count].split(256)
    return torch.cat([autoencoder.encode(block.float() / 255) for block in blocks])


def snr_loss(images: ImageSet, settings: CodecFitSettings, folder: Path | None = None) -> Loss:
    """Squared error of the estimator's output; half the images have one gain for all symbols, half Rayleigh fading."""
    latents = latents_of(images, folder)

    def loss(model: SnrEstimator, generator: torch.Generator) -> Tensor:
        f = draw(latents, settings, generator)
        faded = torch.rand(len(f), 1, 1, 1, generator=generator) < 0.5
        f = torch.where(faded, fast_fading(f, generator), f)
        snr_db = draw_snr_db(settings, generator)
        y = power_normalise(add_noise(f, snr_db, generator))[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            output = model(y)
        return (output - model.target(snr_db)).square().mean()

    return loss


@torch.no_grad()
def snr_metrics(model: SnrEstimator, images: ImageSet, folder: Path | None = None) -> dict[str, Any]:
    """Errors of the level and of the SNR in dB on latents of held-out images, with and without fast fading."""
    f = latents_of(images, folder)
    metrics: dict[str, Any] = {}
    for fading in (False, True):
        for snr in range(-15, 16, 5):
            generator = torch.Generator().manual_seed(0)
            sent = fast_fading(f, generator) if fading else f
            level = model.level(add_noise(sent, torch.full((len(f),), float(snr)), generator)).double()
            off = level - 1 / (1 + 10 ** (snr / 10))
            off_db = 10 * torch.log10(1 / level - 1) - snr
            metrics[f"{'fast fading' if fading else 'one gain'} {snr} dB"] = {
                "level_rmse": round(float(off.square().mean().sqrt()), 5),
                "bias_db": round(float(off_db.mean()), 3),
                "rms_db": round(float(off_db.square().mean().sqrt()), 3),
            }
    return metrics


def dice_loss(estimate: Tensor, edges: Tensor) -> Tensor:
    """1 - (2 sum(p s) + 1) / (sum p^2 + sum s^2 + 1) of each image, averaged; the ones are for maps without edges."""
    common = (estimate * edges).flatten(1).sum(1)
    total = (estimate.square() + edges.square()).flatten(1).sum(1)
    return (1 - (2 * common + 1) / (total + 1)).mean()


def edges_loss(images: ImageSet, settings: CodecFitSettings, folder: Path | None = None) -> Loss:
    """Binary cross entropy plus Dice loss of the edge maps after AWGN on the code."""
    maps = kept_edges(images.images)

    def loss(model: EdgeCodec, generator: torch.Generator) -> Tensor:
        edges = mirror(draw(maps, settings, generator), generator).float() / 255
        snr_db = draw_snr_db(settings, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            logits = model.logits(add_noise(model.encode(edges, snr_db), snr_db, generator), snr_db)
        entropy = functional.binary_cross_entropy_with_logits(logits, edges)
        return entropy + dice_loss(torch.sigmoid(logits), edges)

    return loss


@torch.no_grad()
def edges_metrics(model: EdgeCodec, images: ImageSet, folder: Path | None = None) -> dict[str, Any]:
    """Cross entropy, Dice loss and F1 of the edge pixels on held-out images, pixels of all images counted together."""
    edges = kept_edges(images.images).float() / 255
    there = edges >= EDGE
    entropy = -float(torch.special.xlog1py(1 - edges, -edges).mean() + torch.special.xlogy(edges, edges).mean())
    share = edges.mean().item()
    metrics: dict[str, Any] = {
        "share of edge pixels": round(float(there.float().mean()), 4),
        "cross entropy of the truth": round(entropy, 4),
        "cross entropy of the mean": round(-share * math.log(share) - (1 - share) * math.log(1 - share), 4),
    }
    for snr in range(-15, 16, 5):
        generator = torch.Generator().manual_seed(0)
        level = torch.full((len(edges),), float(snr))
        logits = model.logits(add_noise(model.encode(edges, level), level, generator), level)
        found = torch.sigmoid(logits) >= EDGE
        hits, counted = int((found & there).sum()), int(found.sum() + there.sum())
        metrics[f"{snr} dB"] = {
            "f1": round(2 * hits / max(counted, 1), 4),
            "bce": round(float(functional.binary_cross_entropy_with_logits(logits, edges)), 4),
            "dice": round(float(dice_loss(torch.sigmoid(logits), edges)), 4),
        }
    return metrics
