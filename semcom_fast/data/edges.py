"""Soft edge maps of photographs: the semantic guidance that is sent beside an image."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..errors import require_extra
from .images import data_home
from .kept import whole_file

SIGMA = 1.5
SIGMAS = (1.0, 1.5, 2.0, 2.5)
BLUR = 0.8  # pixels; a line one pixel wide becomes about two wide at half height
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_RECIPE_VERSION = 1
_BLOCK = 512


def luminance(images: Tensor) -> Tensor:
    """Grey values [B,H,W] in [0,1], float32, of images [B,3,H,W] (or [B,1,H,W]): uint8, or real in [0,1].

    Raises:
        ValueError: another shape.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"need images [B,3,H,W] or [B,1,H,W], got {tuple(images.shape)}")
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float().clamp(0, 1)
    if images.shape[1] == 1:
        return scaled[:, 0]
    red, green, blue = (weight * scaled[:, channel] for channel, weight in enumerate(LUMA))
    return red + green + blue


def _canny(images: Tensor, sigma: float) -> Tensor:
    """Thin edges [B,1,H,W], 0 or 1."""
    canny = require_extra("skimage.feature", "images").canny
    grey = luminance(images).detach().cpu().double().numpy()
    edges = np.zeros(grey.shape, np.float32)
    for place, picture in enumerate(grey):
        edges[place] = canny(picture, sigma=sigma)
    return torch.from_numpy(edges).unsqueeze(1)


def _soften(edges: Tensor, blur: float) -> Tensor:
    """Gaussian blur, scaled so that a straight line one pixel wide along a row or column peaks at 1; clamped to [0,1]."""
    if blur == 0:
        return edges
    reach = max(1, round(3 * blur))
    ramp = torch.arange(-reach, reach + 1, dtype=edges.dtype)
    window = torch.exp(-ramp.square() / (2 * blur**2))
    window = window / window.sum()
    blurred = functional.pad(edges, (reach, reach, reach, reach))
    for dim in (2, 3):  # sums of shifted images: a convolution's bits may change with the batch, these do not
        size = edges.shape[dim]
        blurred = sum(weight * blurred.narrow(dim, i, size) for i, weight in enumerate(window.tolist()))
    return (blurred / window.max()).clamp(0, 1)


def soft_edges(images: Tensor, *, sigma: float = SIGMA, blur: float = BLUR) -> Tensor:
    """Soft Canny edges of images.

    Canny's detector (scikit-image, its default thresholds: gradients above 0.2 start an edge and above 0.1 carry it on,
    for grey values in [0,1]) on the luminance, then a Gaussian blur scaled so that a straight edge peaks at 1.

    Args:
        images: [B,3,H,W] or [B,1,H,W]; uint8, or real in [0,1] (values outside are clamped).
        sigma: standard deviation in pixels of the smoothing before the gradient: larger finds fewer, coarser edges.
        blur: standard deviation in pixels of the softening afterwards; 0 keeps edges of 0 and 1.

    Returns:
        float32 [B,1,H,W] in [0,1], on the device of `images`. Deterministic. About 1.5 ms for 64x64 pixels on one core;
        see `kept_edges` for edges made once and kept.

    Raises:
        MissingExtra: scikit-image is not installed.
        ValueError: another shape, sigma not positive or blur negative.

    Source: the semantic edge maps of "Semantics-Guided Diffusion for Deep Joint Source-Channel Coding in Wireless Image
    Transmission", with a classical detector in place of a learned one.
    """
    if not sigma > 0 or not blur >= 0:
        raise ValueError(f"sigma must be positive and blur at least 0, got {sigma} and {blur}")
    return _soften(_canny(images, sigma), blur).to(images.device)


def edge_uncertainty(images: Tensor, *, sigmas: Sequence[float] = SIGMAS, blur: float = BLUR) -> Tensor:
    """How sure an edge is: the mean of `soft_edges` over smoothing scales, float32 [B,1,H,W] in [0,1].

    An edge found at every scale keeps its height, one that only the finest scale sees shrinks to 1/len(sigmas) of it.
    Arguments and errors as `soft_edges`; ValueError also for no sigmas.
    """
    if not sigmas:
        raise ValueError("give at least one sigma")
    total = sum(soft_edges(images, sigma=sigma, blur=blur) for sigma in sigmas)
    assert isinstance(total, Tensor)
    return total / len(sigmas)


def kept_edges(
    images: Tensor, *, sigma: float = SIGMA, blur: float = BLUR, cache: Path | str | None = None, progress: bool = False
) -> Tensor:
    """`soft_edges` of many images, rounded to uint8 [B,1,H,W] (0..255), made once and kept on disk.

    Args:
        images: uint8 [B,3,H,W]; their SHA-256 and the settings name the file, so other images make another file.
        sigma, blur: as `soft_edges`.
        cache: folder of the kept edges; default `data_home()/edges`.
        progress: show a bar while they are made.

    Returns:
        uint8 [B,1,H,W] on the CPU; divide by 255 for edges in [0,1].

    Raises:
        As `soft_edges`; ValueError unless the images are uint8.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"kept_edges takes uint8 images, got {images.dtype}")
    folder = Path(cache) if cache is not None else data_home() / "edges"
    pixels = np.ascontiguousarray(images.detach().cpu().numpy())
    digest = hashlib.sha256(pixels.data)
    digest.update(f"{_RECIPE_VERSION}/{pixels.shape}/{sigma!r}/{blur!r}".encode())
    path = folder / f"edges_{len(images)}_{digest.hexdigest()[:16]}.npy"
    shape = (len(images), 1, *images.shape[2:])
    found = _read(path, shape)
    if found is not None:
        return torch.from_numpy(found)
    blocks = images.split(_BLOCK)
    if progress:
        blocks = require_extra("tqdm", "demo").tqdm(blocks, desc="edge maps", unit="block", dynamic_ncols=True)
    made = [soft_edges(block, sigma=sigma, blur=blur).mul(255).round().to(torch.uint8) for block in blocks]
    edges = torch.cat(made) if made else images.new_zeros(shape)
    with whole_file(path) as file:
        np.save(file, edges.numpy())
    return edges


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        edges = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return edges if edges.shape == shape and edges.dtype == np.uint8 else None
