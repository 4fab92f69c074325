"""Figures of merit beyond squared error: edges kept, multi-scale structure, distances of distributions of features.

Everything above `WeightsNotGiven` needs no weights. LPIPS, CLIP score and FID are defined by trained networks, which
this package does not bring and never downloads: their loaders take the user's files.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import require_extra

_MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def edge_f1(edges: Tensor, recovered: Tensor, *, threshold: float = 0.5, tolerance: int = 0) -> Tensor:
    """F1 score of recovered edge pixels, per item: 2PR/(P+R) of precision P and recall R.

    Args:
        edges, recovered: true and recovered edge maps [B,1,H,W] in [0,1]; a pixel is an edge from `threshold` on.
        tolerance: an edge pixel also counts as found where the other map has one within this many pixels in both
            directions (a square; several pixels may match the same one).

    Returns:
        [B] in [0,1]; 1 where neither map has an edge, 0 where only one has.
    """
    if edges.shape != recovered.shape or edges.ndim != 4:
        raise ValueError(f"need two edge maps [B,1,H,W], got {tuple(edges.shape)} and {tuple(recovered.shape)}")
    true, found = edges >= threshold, recovered >= threshold

    def near(maps: Tensor) -> Tensor:
        size = 2 * tolerance + 1
        return maps if not tolerance else functional.max_pool2d(maps.float(), size, 1, tolerance) > 0

    hits_found, hits_true = (found & near(true)).flatten(1).sum(1), (true & near(found)).flatten(1).sum(1)
    count_found, count_true = found.flatten(1).sum(1), true.flatten(1).sum(1)
    precision, recall = hits_found / count_found.clamp_min(1), hits_true / count_true.clamp_min(1)
    score = 2 * precision * recall / (precision + recall).clamp_min(torch.finfo(precision.dtype).tiny)
    return torch.where((count_found == 0) & (count_true == 0), 1.0, score)


def edge_dice(edges: Tensor, recovered: Tensor) -> Tensor:
    """Soft Dice coefficient 2 sum(ab)/(sum a^2 + sum b^2) of edge maps, per item; 1 where both are empty."""
    a, b = edges.flatten(1), recovered.flatten(1)
    total = a.square().sum(1) + b.square().sum(1)
    return torch.where(total > 0, 2 * (a * b).sum(1) / torch.where(total > 0, total, 1), 1.0)


def ms_ssim(
    images: Tensor, recovered: Tensor, *, low: float = -1.0, high: float = 1.0, scales: int | None = None
) -> Tensor:
    """Multi-scale structural similarity of each item, for images [N,C,H,W] on the scale [low, high].

    Window and constants as in `ssim`; between scales both images are averaged over 2x2 pixels. The contrast-structure
    term of every scale but the last and the whole SSIM of the last are raised to the standard weights (0.0448, 0.2856,
    0.3001, 0.2363, 0.1333; with fewer scales the first of them, scaled to sum to 1) and multiplied, per channel;
    negative terms count as 0.

    Args:
        scales: 1 to 5; None means as many as the 11-pixel window fits into (3 at 64 pixels, 5 from 176 on).

    Raises:
        ValueError: shapes, or images too small for that many scales.

    Source: Z. Wang, E. Simoncelli, A. Bovik, "Multi-scale structural similarity for image quality assessment", eq. (7).
    """
    side = min(images.shape[-2:])
    fit = sum(side >> scale >= 11 for scale in range(5))
    count = fit if scales is None else scales
    if images.ndim != 4 or images.shape != recovered.shape or not 1 <= count <= 5 or count > fit:
        raise ValueError(
            f"need two [N,C,H,W] and 1 to 5 scales, {fit} of which fit, got {tuple(images.shape)}, "
            f"{tuple(recovered.shape)} and {count} scales"
        )
    a, b = (images - low) / (high - low), (recovered.clamp(low, high) - low) / (high - low)
    weights = torch.tensor(_MS_WEIGHTS[:count], dtype=a.dtype, device=a.device)
    result = torch.ones(a.shape[:2], dtype=a.dtype, device=a.device)
    for scale, weight in enumerate(weights / weights.sum()):
        whole, structure = _similarity(a, b)
        result = result * (whole if scale == count - 1 else structure).clamp_min(0) ** weight
        a, b = functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)
    return result.mean(1)


def _similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-structure term [N,C] of images on [0,1]."""
    ramp = torch.arange(11, dtype=a.dtype, device=a.device) - 5
    window = torch.exp(-ramp.square() / (2 * 1.5**2))
    window = window / window.sum()

    def local_mean(z: Tensor) -> Tensor:
        rows = functional.conv2d(z.flatten(0, 1).unsqueeze(1), window.view(1, 1, 11, 1))
        return functional.conv2d(rows, window.view(1, 1, 1, 11)).unflatten(0, z.shape[:2]).squeeze(2)

    mean_a, mean_b = local_mean(a), local_mean(b)
    var_a, var_b = local_mean(a * a) - mean_a.square(), local_mean(b * b) - mean_b.square()
    cov = local_mean(a * b) - mean_a * mean_b
    structure = (2 * cov + 0.03**2) / (var_a + var_b + 0.03**2)
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a.square() + mean_b.square() + 0.01**2)
    return (luminance * structure).mean((2, 3)), structure.mean((2, 3))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of Gaussians fitted to two sets of feature vectors [n,D] and [m,D].

    |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), covariances divided by n - 1, in float64. Biased
    upwards for few vectors: compare only sets of equal sizes. It is FID when, and only when, the features are those of
    the Inception network (`Inception`).

    Raises:
        ValueError: shapes, or fewer than two vectors in a set.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"need [n,D] and [m,D] with n, m >= 2, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return max(0.0, float(shift + cov_a.trace() + cov_b.trace() - 2 * cross))


def latent_features(latents: Tensor) -> Tensor:
    """[n,2C] of latents [n,C,h,w]: mean and standard deviation over the positions of every channel.

    `frechet_distance` of these is what the reports call the latent Fréchet distance; its scale is that of the codec's own
    latent, so it compares receivers of one codec and nothing else.
    """
    return torch.cat([latents.mean((2, 3)), latents.std((2, 3), correction=0)], 1)


class WeightsNotGiven(FileNotFoundError):
    """A figure that is defined by trained weights was asked for without them; the message says which file to give."""


def _file(path: Path | str | None, figure: str, what: str) -> Path:
    if path is None:
        raise WeightsNotGiven(f"{figure} not computed: its weights are not given ({what}; nothing is downloaded)")
    found = Path(path)
    if not found.exists():
        raise FileNotFoundError(f"{figure}: no {what} at {found}; nothing is downloaded")
    return found


_ALEXNET = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
_ALEXNET_PLACES = (0, 3, 6, 8, 10)


class Lpips(nn.Module):
    """Learned perceptual distance, AlexNet variant, version 0.1.

    Args:
        trunk: state dictionary of torchvision's AlexNet (keys "features.0.weight", ...), saved with torch.save.
        heads: the linear heads of the `lpips` package (alex.pth, keys "lin0.model.1.weight", ...).

    Raises:
        WeightsNotGiven: a path is None. FileNotFoundError: nothing there. KeyError, RuntimeError: other contents.

    Source: R. Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric".
    """

    def __init__(self, trunk: Path | str | None = None, heads: Path | str | None = None) -> None:
        super().__init__()
        paths = (
            _file(trunk, "LPIPS", "state dictionary of torchvision's AlexNet"),
            _file(heads, "LPIPS", "linear heads alex.pth of the lpips package"),
        )
        features, linear = (torch.load(path, map_location="cpu", weights_only=True) for path in paths)
        self.layers = nn.ModuleList(nn.Conv2d(*sizes) for sizes in _ALEXNET)
        for layer, place in zip(self.layers, _ALEXNET_PLACES, strict=True):
            layer.load_state_dict({name: features[f"features.{place}.{name}"] for name in ("weight", "bias")})
        self.heads = [linear[f"lin{place}.model.1.weight"].float() for place in range(len(_ALEXNET))]
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor, recovered: Tensor) -> Tensor:
        """Distance [B] of images [B,3,H,W] on [0,1]; AlexNet's strides need at least 32 pixels (64 are customary)."""
        shift, scale = (torch.tensor(v).view(3, 1, 1) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
        a, b = (((2 * x.clamp(0, 1) - 1) - shift) / scale for x in (images, recovered))
        total = torch.zeros(len(images))
        for place, (layer, head) in enumerate(zip(self.layers, self.heads, strict=True)):
            if place in (1, 2):
                a, b = functional.max_pool2d(a, 3, 2), functional.max_pool2d(b, 3, 2)
            a, b = functional.relu(layer(a)), functional.relu(layer(b))
            unit_a, unit_b = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in (a, b))
            total = total + functional.conv2d((unit_a - unit_b).square(), head).mean((1, 2, 3))
        return total


class ClipScore:
    """Cosine similarity of images with their captions in a CLIP model's space (the authors use ViT-B/16).

    Args:
        path: folder of a CLIP model as `transformers` saves it.

    Raises:
        WeightsNotGiven, FileNotFoundError: as `Lpips`. MissingExtra: transformers is not installed.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        folder = _file(path, "CLIP score", "folder of a CLIP model saved by transformers")
        transformers = require_extra("transformers", "text")
        self.processor: Any = transformers.CLIPProcessor.from_pretrained(folder, local_files_only=True)
        self.model: Any = transformers.CLIPModel.from_pretrained(folder, local_files_only=True).eval()

    @torch.no_grad()
    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Similarity [B] in [-1,1] of images [B,3,H,W] on [0,1] with one caption each."""
        pictures = list(images.clamp(0, 1).mul(255).round().to(torch.uint8))
        inputs = self.processor(
            text=list(captions), images=pictures, return_tensors="pt", padding=True, truncation=True
        )
        output = self.model(**inputs)
        return functional.cosine_similarity(output.image_embeds, output.text_embeds)


class Inception:
    """Pool features [n,2048] for FID, by `frechet_distance`.

    Args:
        path: the TorchScript file inception-2015-12-05.pt (used by StyleGAN's and clean-fid's FID), or any TorchScript
            module that turns uint8 images [B,3,299,299] into features with `return_features=True`.

    Raises:
        WeightsNotGiven, FileNotFoundError: as `Lpips`.
    """

    SIDE = 299

    def __init__(self, path: Path | str | None = None) -> None:
        file = _file(path, "FID", "TorchScript file inception-2015-12-05.pt")
        self.model: Callable[..., Tensor] = torch.jit.load(str(file), map_location="cpu").eval()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features of images [B,3,H,W] on [0,1], resized (bicubic, antialiased) to 299x299 and rounded to uint8."""
        resized = functional.interpolate(
            images.clamp(0, 1), (self.SIDE, self.SIDE), mode="bicubic", antialias=True, align_corners=False
        )
        return self.model(resized.clamp(0, 1).mul(255).round().to(torch.uint8), return_features=True)
