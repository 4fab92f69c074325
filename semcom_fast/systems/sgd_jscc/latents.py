"""Latents of a trained autoencoder, made once and kept: what the denoiser and its control branch are trained on."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...data.images import data_home
from ...data.kept import whole_file
from .autoencoder import Autoencoder
from .edge_codec import EdgeCodec

_BLOCK = 128


@torch.no_grad()
def encoded(autoencoder: Autoencoder, images: Tensor, bf16: bool = False) -> Tensor:
    """Latents float16 [n,C,h,w] of images, uint8 [n,3,H,W]; or of edge maps, uint8 [n,1,H,W] as three equal channels."""
    blocks = []
    for block in images.split(_BLOCK):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            blocks.append(autoencoder.encode((block.float() / 255).expand(-1, 3, -1, -1)).half())
    return torch.cat(blocks)


def kept(key: str, make: Callable[[], Tensor], folder: Path | str | None = None) -> Tensor:
    """The float16 tensor of `key` from disk, or made now and kept in `folder` (default `data_home()/latents`)."""
    path = (Path(folder) if folder is not None else data_home() / "latents") / (
        hashlib.sha256(key.encode()).hexdigest()[:24] + ".npy"
    )
    try:
        return torch.from_numpy(np.load(path))
    except (OSError, ValueError, EOFError):
        made = make()
    with whole_file(path) as file:
        np.save(file, made.numpy())
    return made


def corrupted(edges: Tensor, seed: int = 0) -> Tensor:
    """Edge maps as a weak link might deliver them: uint8 [n,1,H,W] -> the same, drawn anew for every map.

    Each is blurred (standard deviation 0.5 to 2 pixels), scaled by 0.5 to 1, and gets smooth noise of standard deviation
    up to 0.15; values are clamped to [0,1].
    """
    random = torch.Generator().manual_seed(seed)
    maps = edges.float() / 255
    sigma = 0.5 + 1.5 * torch.rand(len(maps), generator=random)
    ramp = torch.arange(-4, 5)
    window = torch.exp(-ramp.square() / (2 * sigma[:, None] ** 2))
    window = (window / window.sum(1, keepdim=True)).unsqueeze(1)
    stack = maps.transpose(0, 1)  # one channel per map: each has its own window
    stack = functional.conv2d(stack, window[:, :, :, None], padding=(4, 0), groups=len(maps))
    stack = functional.conv2d(stack, window[:, :, None, :], padding=(0, 4), groups=len(maps))
    gain, size = (torch.rand(2, len(maps), 1, 1, 1, generator=random)).unbind(0)
    noise = functional.avg_pool2d(torch.randn(maps.shape, generator=random), 3, 1, 1) * 3
    maps = (0.5 + 0.5 * gain) * stack.transpose(0, 1) + 0.15 * size * noise
    return maps.clamp(0, 1).mul(255).round().to(torch.uint8)


@torch.no_grad()
def received(codec: EdgeCodec, edges: Tensor, seed: int = 0, snr_db: tuple[float, float] = (-10.0, 15.0)) -> Tensor:
    """Edge maps as the edge codec delivers them over AWGN, each at an SNR of its own: uint8 [n,1,H,W] -> the same."""
    random = torch.Generator().manual_seed(seed)
    low, high = snr_db
    blocks = []
    for block in edges.split(_BLOCK):
        snr = low + (high - low) * torch.rand(len(block), generator=random)
        code = codec.encode(block.float() / 255, snr)
        code = code + 10 ** (-snr[:, None] / 20) * torch.randn(code.shape, generator=random)
        blocks.append(codec.decode(code, snr).mul(255).round().to(torch.uint8))
    return torch.cat(blocks)


@dataclass(frozen=True)
class LatentSource:
    """What a training step draws from.

    Attributes:
        latents: float16 [n,C,h,w], unit mean square each.
        text: float32 [p,D], a sentence vector for each photograph.
        origins: int64 [n], the row of `text` for each latent.
        guides: float16 [n,v,C,h,w], v versions of each image's encoded edge map, or None.
        sources: credits, for the card.
    """

    latents: Tensor
    text: Tensor
    origins: Tensor
    guides: Tensor | None = None
    sources: tuple[str, ...] = ()

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Latents [B,C,h,w], sentence vectors [B,D] and a version of each guide [B,C,h,w], float32."""
        index = torch.randint(len(self.latents), (batch,), generator=generator)
        guides = None
        if self.guides is not None:
            version = torch.randint(self.guides.shape[1], (batch,), generator=generator)
            guides = self.guides[index, version].float()
        return self.latents[index].float(), self.text[self.origins[index]], guides

    def first(self, count: int) -> "LatentSource":
        """The first `count` latents, with their guides."""
        guides = None if self.guides is None else self.guides[:count]
        return replace(self, latents=self.latents[:count], origins=self.origins[:count], guides=guides)
