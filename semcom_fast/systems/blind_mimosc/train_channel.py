"""Training of a channel prior: `semcom-fast train blind-mimosc --part channel --correlation 0.7 | --cdl C`.

Takes minutes on one core, may be stopped at any time, and goes on with --resume.
"""

import json
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import weights
from ...receivers import GaussianChannelPrior
from ...receivers.second_order import trace_loss, variance_loss
from ..fitting import FitSettings, TimedFit, check_call
from .channel_laws import ChannelLaw
from .channel_prior import HEADS, ChannelDenoiser, to_features, weights_name

SIGMAS = (0.03, 0.07, 0.15, 0.35, 0.8, 1.9, 4.4, 10.0)  # of the figures: eight levels, even in ln sigma
HELD_OUT = 16_384
_TRAIN_SEEDS = 2**32  # training draws channels from seeds above this, everything else from seeds below
_HELD_OUT_SEED = 7


@dataclass(frozen=True)
class ChannelFitSettings(FitSettings):
    """What a checkpoint must agree on."""

    batch: int = 128
    law: str = ""
    head: str = "variance"


@dataclass(frozen=True)
class ChannelTrainSettings:
    """One call of the training command.

    Attributes:
        law: of the channels.
        head: of the network, "variance" or "trace".
        steps, batch, rate: planned updates, channels in each, and the learning rate they start from.
        minutes: stop after that long, with weights written and a checkpoint to go on from.
    """

    law: ChannelLaw = field(default_factory=ChannelLaw)
    head: str = "variance"
    steps: int = 2500
    batch: int = 128
    rate: float = 3e-3
    seed: int = 0
    out: Path = Path("out/blind_mimosc")
    minutes: float | None = None
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        check_call(self, "steps", "batch")
        if not self.rate > 0:
            raise ValueError(f"rate must be positive, got {self.rate:g}")

    def fit(self) -> ChannelFitSettings:
        return ChannelFitSettings(
            steps=self.steps, rate=self.rate, seed=self.seed, batch=self.batch, law=str(self.law), head=self.head
        )


def _levels(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels [count]: nine in ten ln sigma ~ N(-0.7, 1.2^2), where there is something to learn; the rest even over
    the whole schedule."""
    low, high = math.log(0.005), math.log(150.0)
    centre = 1.2 * torch.randn(count, generator=generator) - 0.7
    wide = low + (high - low) * torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < 0.1, wide, centre).exp()


def channel_loss(settings: ChannelTrainSettings) -> Callable[[ChannelDenoiser, torch.Generator], Tensor]:
    """Denoising error weighted by (sigma^2 + 1)/sigma^2, which is |F - target|^2, plus the loss of the head."""

    def loss(model: ChannelDenoiser, generator: torch.Generator) -> Tensor:
        seed = _TRAIN_SEEDS + int(torch.randint(2**31, (), generator=generator))
        h = to_features(settings.law.draw(settings.batch, 1, 1, seed=seed))
        sigma = _levels(settings.batch, generator)
        noise = torch.randn(h.shape, generator=generator) * 2**-0.5
        mean, raw = model.denoise(h + sigma[:, None, None] * noise, sigma)
        error = (mean - h).square().sum((1, 2))
        weighted = ((sigma.square() + 1) / sigma.square() * error).mean() / model.entries
        error = error.detach()
        if model.head == "trace":
            return weighted + trace_loss(model.trace(raw, sigma), error, sigma, model.entries)
        return weighted + variance_loss(model.variance(raw, sigma), error, model.entries)

    return loss


@torch.no_grad()
def denoising_figures(denoiser, h: Tensor, sigmas=SIGMAS, seed: int = 1) -> dict[float, tuple[float, float]]:
    """By noise level: mean squared error per entry on channels h [N,1,1,Nr,Nt], and the mean reported variance."""
    generator, figures = torch.Generator().manual_seed(seed), {}
    for sigma in sigmas:
        noise = torch.randn(h.shape, dtype=h.dtype, generator=generator)
        parts = [
            denoiser(clean + sigma * z, torch.tensor(sigma))
            for clean, z in zip(h.split(1024), noise.split(1024), strict=True)
        ]
        mean, var = (torch.cat(part) for part in zip(*parts, strict=True))
        low, high = torch.zeros(()), torch.tensor(sigma**2)
        figures[sigma] = (
            float((mean - h).abs().double().square().mean()),
            float(var.clamp(low, high).double().mean()),
        )
    return figures


def compare(denoiser: ChannelDenoiser, law: ChannelLaw, count: int) -> dict[str, dict[str, float]]:
    """Errors on held-out channels in dB over the Gaussian prior's, beside those of the Rayleigh prior.

    The Gaussian prior is exact for the Kronecker law and of the sample covariance for CDL. "reported" is the denoiser's
    own mean variance over its error, in dB.
    """
    h = law.draw(count, 1, 1, seed=_HELD_OUT_SEED)
    priors = {"learned": denoiser, "rayleigh": GaussianChannelPrior(), "gaussian": law.gaussian_prior()}
    found = {name: denoising_figures(prior, h) for name, prior in priors.items()}

    def db(ratio: float) -> float:
        return round(10 * math.log10(max(ratio, 1e-12)), 3)

    rows = {}
    for sigma in SIGMAS:
        best, learned = found["gaussian"][sigma][0], found["learned"][sigma]
        rows[f"sigma={sigma:g}"] = {
            "gaussian_mse": float(f"{best:.4g}"),
            "learned_db": db(learned[0] / best),
            "rayleigh_db": db(found["rayleigh"][sigma][0] / best),
            "reported_db": db(learned[1] / learned[0]),
        }
    return rows


def _rounded(model: ChannelDenoiser) -> dict[str, Tensor]:
    """State in float16; the model itself is brought to the same values, so that what is measured is what ships."""
    state = {name: value.half() for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return state


def _card(settings: ChannelTrainSettings, fit: TimedFit, model: ChannelDenoiser) -> dict[str, Any]:
    law = settings.law
    channels = (
        f"exponentially correlated Rayleigh fading, {law.correlation:g} between neighbours at both ends (Kronecker)"
        if law.cdl is None
        else f"38.901 CDL-{law.cdl} uplink, 40 GHz, horizontal half-wavelength arrays, base station turned by up to 60 "
        "degrees either way, user by any yaw"
    )
    return {
        "name": weights_name(law, settings.head),
        "what": f"EDM convolutional denoiser of {law.nr}x{law.nt} channels with a {settings.head} head",
        "config": model.config,
        "head": settings.head,
        "law": asdict(law),
        "data": f"{channels}; drawn afresh in every step",
        "licence": "Apache-2.0; the channels are computed"
        + ("" if law.cdl is None else " from the tables of 3GPP TR 38.901"),
        "parameters": sum(value.numel() for value in model.parameters()),
        "training": {
            **asdict(fit.settings),
            "steps_done": fit.step,
            "loss": "EDM-weighted denoising error, plus the head's; ln sigma 90 % N(-0.7, 1.2^2), 10 % even over 0.005..150",
            "optimiser": "AdamW, cosine, averaged weights",
        },
        "seconds": round(fit.seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "stored_as": "float16; metrics are of the rounded weights",
        "metrics": {},
        "commit": "see git log of this file",
    }


def train_channel(settings: ChannelTrainSettings) -> dict[str, Any]:
    """Train one channel prior into `settings.out`; prints its error beside the Gaussian prior's and returns the card.

    Raises:
        Stopped: Ctrl-C, after the checkpoint was saved.
        ValueError: training diverged, or the checkpoint is of another training.
    """
    torch.manual_seed(settings.seed)
    model = ChannelDenoiser(settings.law.nr, settings.law.nt, head=settings.head)
    name = weights_name(settings.law, settings.head)
    fit = TimedFit(model, channel_loss(settings), settings.fit(), settings.out / f"{name}.checkpoint", settings.minutes)
    fit.train(f"channel prior ({settings.law.name})", resume=settings.resume, progress=settings.progress)
    best: Any = fit.averaged.eval()
    state, card = _rounded(best), _card(settings, fit, best)
    weights.save(name, settings.out, state, card)  # before the figures, which take a while
    card["metrics"] = {
        "on": f"{HELD_OUT} held-out channels; dB over the error of the Gaussian prior "
        + ("of the sample covariance" if settings.law.cdl else "(exact)"),
        **compare(best, settings.law, HELD_OUT),
    }
    weights.save(name, settings.out, state, card)
    print(f"{settings.out / name}.safetensors: {json.dumps(card['metrics'])}")
    return card


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `--part channel`."""
    law = ChannelLaw()
    group = parser.add_argument_group("channel prior (--part channel)")
    kind = group.add_mutually_exclusive_group()
    kind.add_argument(
        "--correlation", type=float, default=law.correlation, metavar="R",
        help="exponential, between neighbouring antennas at both ends (default: %(default)s)",
    )  # fmt: skip
    kind.add_argument("--cdl", choices=tuple("ABCDE"), help="3GPP CDL profile instead")
    group.add_argument("--nr", type=int, default=law.nr, help="receive antennas (default: %(default)s)")
    group.add_argument("--nt", type=int, default=law.nt, help="antennas of a user (default: %(default)s)")
    group.add_argument("--head", choices=HEADS, default=HEADS[0], help="second output (default: %(default)s)")


def execute(args: Namespace) -> None:
    """Train one channel prior into --out."""
    changes = {} if args.steps is None else {"steps": args.steps}
    train_channel(
        ChannelTrainSettings(
            law=ChannelLaw(args.nr, args.nt, args.correlation, args.cdl),
            head=args.head,
            out=args.out,
            minutes=args.minutes,
            seed=args.seed,
            resume=args.resume,
            progress=not args.quiet,
            **changes,
        )
    )
