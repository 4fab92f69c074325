"""What the networks are judged by on held-out digits."""

import math

import torch
from torch import Tensor

CODEC_SNR_DB = 10.0


def pixel_variance(images: Tensor) -> float:
    """Mean over pixels of the variance over images [n,64]: the error of always guessing the mean image."""
    return float(images.var(0, correction=0).mean())


@torch.no_grad()
def denoising_errors(denoiser, images: Tensor, sigmas: Tensor, repeats: int = 8, seed: int = 0) -> Tensor:
    """Mean squared error per pixel of a denoiser at each of `sigmas` [S], over `repeats` noise draws per image -> [S]."""
    generator = torch.Generator().manual_seed(seed)
    errors = []
    for sigma in sigmas.tolist():
        total = 0.0
        for _ in range(repeats):
            noise = torch.randn(images.shape, generator=generator)
            mean, _ = denoiser(images + sigma * noise, sigma)
            total += float((mean - images).double().square().mean())
        errors.append(total / repeats)
    return torch.tensor(errors)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Real correlation Re<a,b>/(|a||b|) of codewords [B,...] -> [B]."""
    a, b = a.flatten(1), b.flatten(1)
    inner = (a.conj() * b).real.sum(1)
    return inner / (a.abs().square().sum(1) * b.abs().square().sum(1)).sqrt()


@torch.no_grad()
def reflection_correlation(encoder, images: Tensor, centre: Tensor) -> float:
    """Mean correlation of f(D) with f(2 mu - D): -1 for an encoder that is odd about the mean image mu.

    An odd encoder makes (-H, 2 mu - D) explain the received signal as well as (H, D), and a blind receiver may end
    there; images [n,64], centre mu [64].
    """
    d = images.unsqueeze(1)
    return float(correlation(encoder(d), encoder(2 * centre - d)).mean())


@torch.no_grad()
def mean_codeword_fraction(encoder, images: Tensor) -> float:
    """Share of the transmit energy that is the same for every image: |E_D f(D)|^2 / E_D |f(D)|^2.

    That part acts as a pilot superimposed on the data: 0 for a truly pilot-free encoder. For several users, of user 0.
    """
    users = getattr(encoder, "users", 1)
    x = encoder(images.unsqueeze(1).expand(-1, users, -1))[:, :1]
    return float(x.mean(0).abs().square().sum() / x.abs().square().flatten(1).sum(1).mean())


@torch.no_grad()
def codec_error(encoder, decoder, images: Tensor, snr_db: float = CODEC_SNR_DB, seed: int = 0) -> float:
    """Mean squared error per pixel of decoding a codeword received with white noise (no channel) at `snr_db`."""
    d = images.unsqueeze(1)
    x = encoder(d)
    noise = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
    return float((decoder(x + noise * math.sqrt(10 ** (-snr_db / 10))) - d).square().mean())
