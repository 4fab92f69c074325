"""How well the denoiser predicts clean latents, beside the best linear one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...baselines.wiener import WienerDenoiser
from .control import ControlBranch
from .dit import DiT
from .latents import LatentSource

SNRS_DB = (-10.0, -5.0, 0.0, 5.0, 10.0)
_BLOCK = 64

Denoiser = Callable[[Tensor, float, slice], Tensor]


def denoisers(dit: DiT, control: ControlBranch | None, source: LatentSource, held: LatentSource) -> dict[str, Denoiser]:
    """What the card compares, by the name it has there."""
    text, linear = held.text[held.origins], WienerDenoiser.fit(source.latents)

    def network(captioned: bool, version: int | None) -> Denoiser:
        def denoise(g: Tensor, beta: float, rows: slice) -> Tensor:
            levels = torch.full((len(g),), beta)
            steering = None
            if control is not None and version is not None and held.guides is not None:
                steering = control.guided(held.guides[rows, version].float())
            return dit(g, levels, text[rows] if captioned else None, steering)

        return denoise

    found = {
        "wiener": lambda g, beta, rows: linear.denoise(g, beta),
        "dit": network(False, None),
        "dit_caption": network(True, None),
    }
    if dit.prior is not None:
        prior = dit.prior
        found["low_rank_linear"] = lambda g, beta, rows: prior.estimate(g, torch.full((len(g),), beta))
    if control is not None and held.guides is not None:
        for version, name in zip(range(held.guides.shape[1]), ("", "corrupted_", "received_"), strict=False):
            found[f"dit_{name}edges"] = network(False, version)
            found[f"dit_caption_{name}edges"] = network(True, version)
    return found


@torch.no_grad()
def denoiser_metrics(
    dit: DiT, control: ControlBranch | None, source: LatentSource, held: LatentSource, seed: int = 1
) -> dict[str, Any]:
    """Mean squared errors of clean latents (unit power) on held-out ones, with the same noise for every denoiser.

    Args:
        source: training latents, for the linear denoiser's mean and covariance.
        held: held-out latents, captions and guides.
    """
    compared = denoisers(dit, control, source, held)
    metrics: dict[str, Any] = {
        "on": f"{len(held.latents)} held-out latents; mean squared error of x0 per entry, one prediction from g at level "
        "1/(1+SNR); wiener: linear denoiser of the training latents' sample mean and covariance"
    }
    for snr in SNRS_DB:
        beta = 1 / (1 + 10 ** (snr / 10))
        totals = dict.fromkeys(compared, 0.0)
        random = torch.Generator().manual_seed(seed)
        for start in range(0, len(held.latents), _BLOCK):
            rows = slice(start, min(start + _BLOCK, len(held.latents)))
            clean = held.latents[rows].float()
            g = (1 - beta) ** 0.5 * clean + beta**0.5 * torch.randn(clean.shape, generator=random)
            for name, denoise in compared.items():
                totals[name] += float((denoise(g, beta, rows) - clean).double().square().sum())
        count = held.latents.numel()
        metrics[f"{snr:g} dB"] = {name: round(total / count, 5) for name, total in totals.items()}
    return metrics
