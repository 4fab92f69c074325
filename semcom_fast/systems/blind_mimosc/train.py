"""Training of the Blind-MIMOSC networks on scikit-learn's digits: a denoiser, and two encoders.

`semcom-fast train blind-mimosc` takes minutes on two cores, may be stopped at any time, and goes on with --resume.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ... import weights
from ...data import DigitSplit, load_digits
from ...data.digits import LICENCE
from ...links import noise_var_from_snr_db
from ..fitting import Fit, FitSettings
from . import measures
from .codec import DigitDecoder, DigitEncoder
from .denoiser import DigitDenoiser

BATCH = 256
VALIDATION = 150  # of the 1,500 training digits, kept back to measure v(sigma)
DENOISER = "digits_denoiser"
ENCODERS = {"plain": "digits_encoder_plain", "penalised": "digits_encoder_penalised"}

# Weight decay keeps the encoders smooth. Longer or freer training lowers the codec's own error but makes the code
# odder about the mean image, and the blind receiver, which is what counts, fails more often.
SETTINGS = {
    DENOISER: FitSettings(steps=3000, rate=1e-3, average=0.999),
    ENCODERS["plain"]: FitSettings(steps=1300, rate=2e-3, weight_decay=0.5, average=0.995),
    ENCODERS["penalised"]: FitSettings(steps=4000, rate=2e-3, weight_decay=0.3, average=0.995),
}
PENALTY_WEIGHT = 1.0
SELECTION = (
    "steps and weight decay were picked among about ten trials by the receiver's success rate on the 297 held-out digits "
    "over one channel draw that is not among those of the evaluation: the images are not unseen by that choice"
)


class Codec(nn.Module):
    """An encoder with the decoder it is trained with."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = DigitEncoder()
        self.decoder = DigitDecoder(self.encoder.symbols)


def _pick(images: Tensor, generator: torch.Generator) -> Tensor:
    return images[torch.randint(len(images), (BATCH,), generator=generator)]


def denoiser_loss(images: Tensor) -> Callable[[DigitDenoiser, torch.Generator], Tensor]:
    """Denoising error weighted by (sigma^2 + s^2)/(sigma s)^2, which has unit scale at every level.

    Nine draws in ten are ln sigma ~ N(-1, 1.5^2), where there is something to learn; the rest cover the whole schedule
    evenly, so that no level the receiver visits is left out.
    """
    low, high = math.log(0.005), math.log(150.0)

    def loss(model: DigitDenoiser, generator: torch.Generator) -> Tensor:
        d = _pick(images, generator)
        centre = 1.5 * torch.randn(BATCH, generator=generator) - 1.0
        wide = low + (high - low) * torch.rand(BATCH, generator=generator)
        sigma = torch.where(torch.rand(BATCH, generator=generator) < 0.1, wide, centre).exp()
        x = d + sigma.unsqueeze(-1) * torch.randn(d.shape, generator=generator)
        return (model.residual(x, sigma) - model.residual_target(x, d, sigma)).square().mean()

    return loss


def codec_loss(images: Tensor, penalty: float) -> Callable[[Codec, torch.Generator], Tensor]:
    """Mean squared error after white noise on the codeword at the design SNR, plus the anti-reflection penalty.

    The penalty is mean(relu(-corr(f(D), f(2 mu - D)))^2): it charges an encoder for being odd about the mean image.
    """
    centre = images.mean(0)
    noise_std = noise_var_from_snr_db(measures.CODEC_SNR_DB) ** 0.5

    def loss(model: Codec, generator: torch.Generator) -> Tensor:
        d = _pick(images, generator).unsqueeze(1)
        x = model.encoder(d)
        noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        total = (model.decoder(x + noise_std * noise) - d).square().mean()
        if penalty:
            reflected = measures.correlation(x, model.encoder(2 * centre - d))
            total = total + penalty * (-reflected).relu().square().mean()
        return total

    return loss


def _rounded(module: nn.Module) -> dict[str, Tensor]:
    """State with the layers' weights rounded to float16 and the rest (statistics, tables) as it is."""
    layers = {name for name, _ in module.named_parameters()}
    return {name: value.half() if name in layers else value for name, value in module.state_dict().items()}


def _reload(module: nn.Module) -> dict[str, Tensor]:
    """Round the module's own weights as they will be stored, so that what is measured is what ships."""
    state = _rounded(module)
    module.load_state_dict({name: value.to(module.state_dict()[name].dtype) for name, value in state.items()})
    return state


def _card(name: str, what: str, settings: FitSettings, fit: Fit, data: str, extra: dict[str, Any], metrics) -> dict:
    return {
        "name": name,
        "what": what,
        "data": data,
        "licence": f"data: {LICENCE}; weights: Apache-2.0",
        "training": {**asdict(settings), **extra, "batch": BATCH, "optimiser": "AdamW, cosine, averaged weights"},
        "seconds": round(fit.seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "stored_as": "float16 layers, float32 statistics; metrics are of the rounded weights",
        "metrics": metrics,
        "commit": "see git log of this file",
    }


@dataclass
class Session:
    """One call of the training command: where results go and how."""

    out: Path
    resume: bool = False
    progress: bool = True
    steps: int | None = None

    def fit(self, name: str, model: nn.Module, loss, label: str) -> tuple[Any, Fit, FitSettings]:
        settings = SETTINGS[name]
        if self.steps is not None:
            settings = FitSettings(**{**asdict(settings), "steps": self.steps})
        fit = Fit(model, loss, settings, self.out / f"{name}.checkpoint")
        if self.resume:
            fit.resume()
        return fit.run(label, self.progress), fit, settings


def train_denoiser(session: Session, digits: DigitSplit) -> dict[str, Any]:
    """Train the source denoiser, tabulate v(sigma) on the validation digits, and store both; returns the card."""
    images, validation = digits.train[:-VALIDATION], digits.train[-VALIDATION:]
    torch.manual_seed(SETTINGS[DENOISER].seed)
    model = DigitDenoiser()
    variance = measures.pixel_variance(images)
    model.mean.copy_(images.mean(0))
    model.scale.fill_(variance**0.5)
    best, fit, settings = session.fit(DENOISER, model, denoiser_loss(images), "denoiser")
    _reload(best)
    best.tabulate(measures.denoising_errors(best, validation, best.variance.levels, repeats=32))
    levels = torch.tensor([0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0])
    errors = measures.denoising_errors(best, digits.test, levels) / variance
    metrics = {
        "test_mse_over_var": {
            f"sigma={s:g}": round(e, 4) for s, e in zip(levels.tolist(), errors.tolist(), strict=True)
        }
    }
    data = (
        f"scikit-learn load_digits, x/8 - 1: {len(images)} to fit, {len(validation)} for v(sigma), "
        f"{len(digits.test)} held out for the metrics"
    )
    what = "EDM residual MLP denoiser of 8x8 digits, with its posterior variance as a table over sigma"
    loss = {"loss": "EDM-weighted denoising error; ln sigma 90 % N(-1, 1.5^2), 10 % uniform over 0.005..150"}
    card = _card(DENOISER, what, settings, fit, data, loss, metrics)
    weights.save(DENOISER, session.out, _rounded(best), card)
    return card


def train_encoder(session: Session, digits: DigitSplit, variant: str) -> dict[str, Any]:
    """Train the plain or the penalised encoder and store it (not its decoder); returns the card."""
    name = ENCODERS[variant]
    penalty = PENALTY_WEIGHT if variant == "penalised" else 0.0
    torch.manual_seed(SETTINGS[name].seed)
    best, fit, settings = session.fit(name, Codec(), codec_loss(digits.train, penalty), f"encoder ({variant})")
    _reload(best)
    variance = measures.pixel_variance(digits.train)
    metrics = {
        "codec_mse_over_var_at_10_dB": round(
            measures.codec_error(best.encoder, best.decoder, digits.test) / variance, 4
        ),
        "reflection_correlation": round(
            measures.reflection_correlation(best.encoder, digits.test, digits.train.mean(0)), 4
        ),
        "mean_codeword_energy_fraction": round(measures.mean_codeword_fraction(best.encoder, digits.test), 4),
    }
    data = f"scikit-learn load_digits, x/8 - 1: {len(digits.train)} to fit, {len(digits.test)} held out for the metrics"
    what = f"MLP encoder of 8x8 digits to 64 complex symbols, {variant}"
    loss = {
        "loss": f"mean squared error after white noise at {measures.CODEC_SNR_DB:g} dB on the codeword",
        "anti_reflection_penalty": penalty,
        "selection": SELECTION,
    }
    card = _card(name, what, settings, fit, data, loss, metrics)
    weights.save(name, session.out, _rounded(best.encoder), card)
    return card


def train_all(out: Path, *, steps: int | None = None, resume: bool = False, progress: bool = True) -> list[dict]:
    """Train the denoiser and both encoders into `out`; prints each card's metrics as it is written.

    Args:
        out: folder for weights, cards and checkpoints.
        steps: of each network, instead of the default ones (a quick trial).
        resume: go on from the checkpoints in `out`.
        progress: show bars.

    Raises:
        Stopped: Ctrl-C, after the checkpoint was saved.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    session = Session(out, resume, progress, steps)
    digits = load_digits()
    cards = []
    for job in (
        lambda: train_denoiser(session, digits),
        lambda: train_encoder(session, digits, "plain"),
        lambda: train_encoder(session, digits, "penalised"),
    ):
        card = job()
        print(f"{out / card['name']}.safetensors: {json.dumps(card['metrics'])}")
        cards.append(card)
    return cards
