"""Classifier heads for labels that a system was not trained with: the system stays as it is, only the head learns."""

import json
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ... import weights
from ..fitting import TimedFit
from .batches import BatchSource
from .decoder import Classifier
from .fitting import LinkFitSettings
from .networks import head_name, load_system
from .system import MuMimoSystem
from .train import IMAGE_LICENCE, TrainSettings, batch_source, classes, fit_settings, half, validation


def head_loss(system: MuMimoSystem, source: BatchSource, settings: LinkFitSettings):
    """Cross entropy of the head's scores on what the receivers of the frozen `system` get."""

    def loss(head: Classifier, generator: torch.Generator) -> Tensor:
        batch = source.draw(settings.batch, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            with torch.no_grad():
                y, _ = system.air(batch.images, batch.h, batch.noise_var, seed=batch.seed)
                features = system.decoder.features(*system.decoder_input(y))
            scores = head(features)
        return functional.cross_entropy(scores.float(), batch.labels.flatten())

    return loss


def train_head(settings: TrainSettings) -> dict[str, Any]:
    """Train a head for the labels of `settings.images` on the weights in `settings.weights`; returns its card.

    Raises:
        ValueError: the images have no labels.
        Stopped: Ctrl-C, after the checkpoint was saved.
    """
    source = batch_source(settings)
    if source.main.labels is None:
        raise ValueError(f"a head needs labelled images, and {settings.images[0]} have no labels")
    labels = settings.images[0]
    system, of = load_system(settings.variant, settings.subcarriers, folder=settings.weights)
    torch.manual_seed(settings.seed)
    head = Classifier(system.decoder.classifier.inputs, classes(source))
    name = head_name(settings.variant, settings.subcarriers, labels)
    marked = fit_settings(settings)
    fit = TimedFit(
        head, head_loss(system, source, marked), marked, settings.out / f"{name}.checkpoint", settings.minutes
    )
    fit.train(f"{labels} head of {settings.variant}", resume=settings.resume, progress=settings.progress)
    card: dict[str, Any] = {
        "name": name,
        "what": f"classifier head for {labels} on the frozen {of['name']}",
        "data": f"{labels}: {len(source.main)} images of 32x32; not the paper's CIFAR-10 numbers",
        "labels": labels,
        "classes": classes(source),
        "licence": IMAGE_LICENCE,
        "sources": list(source.main.sources),
        "parameters": sum(parameter.numel() for parameter in head.parameters()),
        "training": {**asdict(marked), "steps_done": fit.step, "loss": "cross entropy"},
        "seconds": round(fit.seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "stored_as": "float16 layers",
        "metrics": {},
        "commit": "see git log of this file",
    }
    weights.save(name, settings.out, half(fit.averaged), card)
    card["metrics"] = validation(settings, labels, system_folder=settings.weights)
    weights.save(name, settings.out, half(fit.averaged), card)
    print(f"{settings.out / name}.safetensors: {json.dumps(card['metrics'])}")
    return card
