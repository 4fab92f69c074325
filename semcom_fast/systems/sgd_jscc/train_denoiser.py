"""Training of the denoiser and its control branch: `semcom-fast train sgd-jscc --part dit|control`.

Algorithm 1 on latents that the trained autoencoder made once, so that a step costs the denoiser alone. May be stopped
at any time and goes on with --resume; the result is what an unbroken run gives.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ... import weights
from ...data.captions import caption_of
from ...data.edges import kept_edges
from ...data.photos import PhotoCrops
from ...receivers.schedules import SigmoidSchedule
from ..evaluation import fingerprint
from ..fitting import TimedFit
from ..mu_mimo.train import IMAGE_LICENCE
from .autoencoder import Autoencoder
from .codec_networks import load_autoencoder, load_edge_codec
from .control import ControlBranch
from .denoiser_measures import denoiser_metrics
from .denoiser_networks import CONTROL, DENOISER, load_control, load_dit, without_side_block
from .denoiser_settings import DenoiserFitSettings, DenoiserTrainSettings
from .dit import DiT, DiTConfig
from .edge_codec import EdgeCodec
from .latents import LatentSource, corrupted, encoded, kept, received
from .text import HashedBagOfWords

SCHEDULE = SigmoidSchedule()
CROPS, SIDE, HELD_OUT = 40_000, 64, 512
_LOWEST_LEVEL = 1e-4
_LEAST_KEPT, _MOST_KEPT = 0.5, 0.7  # of the tokens, in masked rows

Loss = Callable[[Any, torch.Generator], Tensor]


def latent_source(
    autoencoder: Autoencoder,
    split: str = "train",
    *,
    crops: int = CROPS,
    codec: EdgeCodec | None = None,
    bf16: bool = False,
) -> LatentSource:
    """Latents of photograph crops with captions; kept on disk, made anew for another autoencoder.

    With the edge codec there are guides, three for each image: its edge map clean, corrupted, and as received over the
    codec; training latents come with those of the mirrored crops otherwise. Raises ValueError for more crops than CROPS.
    """
    if crops > CROPS:
        raise ValueError(f"there are {CROPS} crops, {crops} were asked for")
    photos = PhotoCrops(size=SIDE, n=CROPS)
    n = CROPS if split == "train" else HELD_OUT
    images = photos.load(split, n)
    pixels, origins = images.images[:crops], photos.origins(split, n)[:crops]
    mirrored = split == "train" and codec is None
    key = f"{fingerprint(autoencoder)}/{split}/{len(pixels)}/{bf16}"
    latents = kept(f"{key}/{mirrored}", lambda: _latents(autoencoder, pixels, mirrored, bf16))
    text = HashedBagOfWords().encode([caption_of(photo.name) for photo in photos.photographs(split)])
    versions = None
    if codec is not None:

        def make() -> Tensor:
            edges = kept_edges(images.images)[: len(pixels)]
            maps = (edges, corrupted(edges), received(codec, edges))
            return torch.stack([encoded(autoencoder, version, bf16) for version in maps], 1)

        versions = kept(f"{key}/{fingerprint(codec)}/guides", make)
    return LatentSource(latents, text, origins.repeat(1 + mirrored), versions, images.sources)


def _latents(autoencoder: Autoencoder, pixels: Tensor, mirrored: bool, bf16: bool) -> Tensor:
    latents = [encoded(autoencoder, pixels, bf16)]
    if mirrored:
        latents.append(encoded(autoencoder, pixels.flip(-1), bf16))
    return torch.cat(latents)


def denoiser_loss(source: LatentSource, settings: DenoiserFitSettings, dit: DiT | None = None) -> Loss:
    """Loss (20) under Algorithm 1: a random time t, beta = S(t), the clean latent predicted; captions withheld at random.

    With `dit`, which stays as it is, the model trained is its control branch.
    """

    def loss(model: Any, generator: torch.Generator) -> Tensor:
        f0, text, guides = source.draw(settings.batch, generator)
        times = settings.latest * torch.rand(settings.batch, generator=generator) ** settings.time_power
        beta = SCHEDULE.level(times).to(f0.dtype).clamp_min(_LOWEST_LEVEL)
        weight = torch.ones_like(beta)
        if settings.relative:
            prior = (dit or model).prior
            if prior is None:
                raise ValueError('errors relative to the linear estimate need output="residual"; pass relative=False')
            weight = 1 / prior.error(beta)

        def error(x0: Tensor) -> Tensor:
            """Over the first rows, as a share of the batch."""
            rows = len(x0)
            squares = (x0.float() - f0[:rows]).square().mean((1, 2, 3))
            return (weight[:rows] * squares).sum() / settings.batch

        noise = torch.randn(f0.shape, generator=generator)
        g = (1 - beta).sqrt()[:, None, None, None] * f0 + beta.sqrt()[:, None, None, None] * noise
        told = torch.rand(settings.batch, 1, generator=generator) >= settings.text_dropped
        text = text * told
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            if dit is not None:
                assert guides is not None
                return error(dit(g, beta, text, model.guided(guides)))
            total = error(model(g, beta, text))
            if settings.masked_rows > 0:
                rows = max(1, round(settings.masked_rows * settings.batch))
                kept_tokens = _some_tokens(rows, model.config.side**2, generator)
                total = total + error(model(g[:rows], beta[:rows], text[:rows], kept=kept_tokens))
        return total

    return loss


def _some_tokens(rows: int, tokens: int, generator: torch.Generator) -> Tensor:
    """Indices [rows,t] of the tokens that stay, another choice for every row."""
    share = _LEAST_KEPT + (_MOST_KEPT - _LEAST_KEPT) * float(torch.rand((), generator=generator))
    order = torch.rand(rows, tokens, generator=generator).argsort(1)
    return order[:, : max(1, round(share * tokens))].sort(1).values


def _digest(source: LatentSource) -> str:
    """What a checkpoint remembers of its data."""
    digest = hashlib.sha256(source.latents[:: max(1, len(source.latents) // 64)].numpy().tobytes())
    digest.update(source.text.numpy().tobytes())
    return f"{len(source.latents)} latents, {digest.hexdigest()[:16]}"


def _model(settings: DenoiserTrainSettings, source: LatentSource, config: DiTConfig) -> tuple[nn.Module, DiT | None]:
    """What is trained, and for the control branch the denoiser it steers."""
    if settings.part == "control":
        dit = load_dit(settings.weights)
        return ControlBranch.of(dit), dit
    if config.inert:
        raise ValueError("nothing can be learnt by parameters that no output depends on: train with inert=False")
    model = DiT(config)
    if model.prior is not None:
        model.prior.fit(source.latents)
    return model, None


def _stored(fit: TimedFit) -> dict[str, Tensor]:
    """The averaged weights as they ship: float16, without what only training uses."""
    return {name: value.half() for name, value in without_side_block(fit.averaged.state_dict()).items()}


def _card(settings: DenoiserTrainSettings, fit: TimedFit, source: LatentSource, name: str) -> dict[str, Any]:
    marked: Any = fit.settings
    what = "Diffusion transformer that predicts the clean JSCC latent" if settings.part == "dit" else "Control branch"
    stored = _stored(fit)
    return {
        "name": name,
        "what": f"{what}: 64 tokens of a 16x8x8 latent, noise level and caption (HashedBagOfWords(64))"
        + ("" if settings.part == "dit" else ", steered by the encoded edge map"),
        "config": asdict(fit.model.config),  # type: ignore[call-overload]
        "data": f"latents of {len(source.latents)} crops of 64x64 pixels of {len(source.text)} photographs"
        + (
            ", half of them mirrored"
            if source.guides is None
            else ", edge maps clean, corrupted or received over the edge codec, a third each"
        )
        + "; a demonstration, not the paper's data set",
        "licence": IMAGE_LICENCE,
        "sources": list(source.sources),
        "parameters": sum(value.numel() for value in stored.values()),
        "training": {
            **{key: value for key, value in asdict(marked).items() if key != "config"},
            "highest_level": settings.highest_level,
            "optimiser": "Adam, warm-up and cosine to the floor, averaged weights",
            "steps_done": fit.step,
            "latents_seen": fit.step * marked.batch,
            "loss": "mean squared error of the clean latent"
            + (", relative to that of the linear estimate at the same level" if marked.relative else "")
            + ("; masked rows add theirs" if marked.masked_rows else ""),
        },
        "seconds": round(fit.seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "stored_as": "float16; metrics are of the rounded weights",
        "metrics": {},
        "commit": "see git log of this file",
    }


def train(
    settings: DenoiserTrainSettings,
    source: LatentSource | None = None,
    held_out: LatentSource | None = None,
    config: DiTConfig | None = None,
) -> dict[str, Any]:
    """Train one part into `settings.out`; prints a line with the rate and returns the card.

    Args:
        source, held_out: latents to train and judge on instead of those of the photographs; both or neither.
        config: of the denoiser instead of `DiTConfig.small()`.

    Raises:
        Stopped: Ctrl-C, after the checkpoint was saved.
        ValueError: the configuration has inert parameters, or training diverged.
        FileNotFoundError: photographs, or the weights this part builds on, are missing.
    """
    latest = float(SCHEDULE.time(settings.highest_level))
    marked = settings.fit("", "", latest)
    if source is None or held_out is None:
        autoencoder = load_autoencoder(settings.weights)
        codec = load_edge_codec(settings.weights) if settings.part == "control" else None
        assert settings.crops is not None
        source = latent_source(autoencoder, crops=settings.crops, codec=codec, bf16=marked.bf16)
        held_out = latent_source(autoencoder, "val", codec=codec)
    torch.manual_seed(settings.seed)
    model, dit = _model(settings, source, config or DiTConfig.small(side_block=settings.masked > 0))
    marked = settings.fit(json.dumps(asdict(model.config)), _digest(source), latest)  # type: ignore[call-overload]
    name = DENOISER if settings.part == "dit" else CONTROL
    fit = TimedFit(
        model, denoiser_loss(source, marked, dit), marked, settings.out / f"{name}.checkpoint", settings.minutes
    )
    speed = fit.train(
        f"{settings.part}, {marked.batch} latents a step", resume=settings.resume, progress=settings.progress
    )
    card = _card(settings, fit, source, name)
    stored = _stored(fit)
    weights.save(name, settings.out, stored, card)
    trained = load_dit(settings.out) if dit is None else dit
    branch = None if dit is None else load_control(settings.out)
    card["metrics"] = denoiser_metrics(trained, branch, source, held_out)
    weights.save(name, settings.out, stored, card)
    line = {
        "steps": fit.step,
        "latents_per_second": round(speed * marked.batch, 1),
        "minutes": round(fit.seconds / 60, 1),
    }
    print(f"{settings.out / name}.safetensors: {json.dumps(line)}")
    return card
