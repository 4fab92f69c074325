"""Training of an expert or of the single network: `semcom-fast train dm-vb`.

May be stopped at any time and goes on with --resume; the result is what an unbroken run gives. A checkpoint is one
safetensors file, replaced atomically.
"""

import hashlib
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ... import weights
from ...baselines.gaussian_mixture import sample_moments
from ...receivers.vb_moe_config import VBMoEConfig
from ..execution import use_threads
from .best_average import AveragedBest
from .channels import ARRAYS, KINDS, NR, NT, PROFILES, ChannelSet, exact_moments, load_set
from .loss import best_loss, best_window_loss, by_range, complex_noise, linear_loss, measured_loss, noisy_planes
from .network import DOMAINS, DenoiserCNN, to_planes
from .train_settings import SINGLE, WINDOWS, NetFitSettings, NetTrainSettings

HELD_OUT = 512  # channels of the validation split of each profile
_HELD_BACK = 10  # one in so many scarce channels chooses among the averages instead of being trained on
_LEAST_SINGULAR = 1e-4  # directions of the step embedding this much smaller than the first are left small

Loss = Callable[[Any, torch.Generator], Tensor]


class ChannelPool(NamedTuple):
    """What a training draws from, and what judges it.

    train: complex64 [N,Nr,Nt]. kept_back: channels that choose among the averages, or None. held_out: of every profile,
    for the card.
    """

    train: Tensor
    kept_back: Tensor | None
    held_out: dict[str, Tensor]


def channel_pool(settings: NetTrainSettings) -> ChannelPool:
    """The channels that the settings name, each profile normalised by its own training channels."""
    parts, back, held = [], None, {}
    for profile, count in settings.counts().items():
        channels = ChannelSet(profile, settings.kind, settings.array, count)
        drawn = load_set(channels)
        if profile == settings.scarce and settings.profile == profile:
            few = max(1, count // _HELD_BACK)
            back, drawn = drawn[:few], drawn[few:]
        parts.append(drawn)
        held[profile] = load_set(channels, "val", HELD_OUT)
    return ChannelPool(torch.cat(parts), back, held)


def alpha_bars(steps: int) -> Tensor:
    """abar_1..abar_T of the estimator's schedule, float64."""
    return torch.from_numpy(VBMoEConfig(steps=steps).tables().alpha_bar[1:].copy())


def noise_loss(train: Tensor, alpha_bar: Tensor, settings: NetFitSettings) -> Loss:
    """E|eps - eps_theta|^2 per complex entry for channels drawn from `train` and steps spread over 1..T."""

    def loss(model: Any, generator: torch.Generator) -> Tensor:
        batch, steps = settings.batch, len(alpha_bar)
        h = train[torch.randint(len(train), (batch,), generator=generator)]
        # One step from each of `batch` equal parts: each t is as likely as with independent draws, the sum varies less.
        spread = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        t = 1 + (steps * spread**settings.time_power).long().clamp_max(steps - 1)
        noise = complex_noise(h.shape, generator)
        x = noisy_planes(h, noise, alpha_bar[t - 1])
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            eps = model(x, t)
        return 2 * (eps.float() - to_planes(noise)).square().mean()

    return loss


def whitening(embedding: Tensor) -> Tensor:
    """R [16,16] for which embedding @ R has orthogonal columns of mean square one, but for directions that are next to
    nothing in the embedding.

    The sinusoids of small frequency are nearly the same: in their own coordinates the optimiser hardly finds the
    steep dependence of the affine on the first few steps.
    """
    _, size, directions = torch.linalg.svd(embedding.double(), full_matrices=False)
    scale = len(embedding) ** 0.5 / size.clamp_min(_LEAST_SINGULAR * size[0])
    return directions.T * scale


class _Training(nn.Module):
    """The network with the affine of the step in whitened coordinates; `folded` is the network to keep."""

    def __init__(self, network: DenoiserCNN) -> None:
        super().__init__()
        self.network = network
        plain = network.embedding.clone()
        self.turn = whitening(plain)
        network.embedding.copy_(plain.double() @ self.turn)
        nn.init.zeros_(network.step_affine.weight)
        nn.init.zeros_(network.step_affine.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t)

    def folded(self) -> DenoiserCNN:
        network = DenoiserCNN(self.network.config)
        state = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        state["step_affine.weight"] = (state["step_affine.weight"].double() @ self.turn.T).float()
        network.load_state_dict(state)
        return network.requires_grad_(False).eval()


def _digest(pool: ChannelPool) -> str:
    """What a checkpoint remembers of its data."""
    sampled = pool.train[:: max(1, len(pool.train) // 64)].contiguous()
    return f"{len(pool.train)} channels, {hashlib.sha256(sampled.numpy().tobytes()).hexdigest()[:16]}"


def fitted(settings: NetTrainSettings, pool: ChannelPool) -> AveragedBest:
    """The training, at its start or where its checkpoint was made."""
    torch.manual_seed(settings.seed)
    network = DenoiserCNN(settings.config)
    marked = settings.fit(asdict(settings.config), _digest(pool))
    alpha_bar = alpha_bars(settings.config.steps)
    model = _Training(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    back = pool.kept_back
    judge = (
        None
        if back is None
        else lambda net: float(measured_loss(net, back, alpha_bar, range(1, len(alpha_bar) + 1, 4), 64).mean())
    )
    return AveragedBest(
        model,
        noise_loss(pool.train, alpha_bar, marked),
        marked,
        settings.out / f"{settings.name}.checkpoint",
        settings.minutes,
        judge=judge,
    )


def loss_figures(network: DenoiserCNN, settings: NetTrainSettings, pool: ChannelPool) -> dict[str, Any]:
    """Losses on held-out channels beside the best possible ones, by ranges of steps; the mean over t is "all t".

    A rotated set has no best loss in closed form: there "linear" is the loss of the predictor that would be best for
    Gaussian channels with the moments of the training set, and a ratio below one says how much better the network is.
    """
    alpha_bar = alpha_bars(network.config.steps)
    figures: dict[str, Any] = {
        "on": f"{HELD_OUT} held-out channels of a profile, 64 of them with new noise at every step; "
        "|eps - prediction|^2 per complex entry, float32"
    }
    for profile, held in pool.held_out.items():
        losses = measured_loss(network, held, alpha_bar)
        row: dict[str, Any] = {"loss": by_range(losses)}
        channels = ChannelSet(profile, settings.kind, settings.array, settings.counts()[profile])
        if settings.kind == "rotated":
            row["linear"] = by_range(linear_loss(*sample_moments(load_set(channels))[:2], held, alpha_bar))
        else:
            cov = exact_moments(channels)[1]
            row["best"] = by_range(best_loss(cov, alpha_bar))
            if settings.domain == "spatial":
                row["best_11x11_window"] = by_range(best_window_loss(cov, alpha_bar, (NR, NT), (5, 5), None))
        against = row["linear" if settings.kind == "rotated" else "best"]
        row["ratio"] = {key: value / against[key] for key, value in row["loss"].items()}
        figures[profile] = {name: {k: round(v, 4) for k, v in part.items()} for name, part in row.items()}
    if pool.kept_back is not None:
        own = measured_loss(network, pool.train, alpha_bar)
        figures["loss on its own training channels"] = {k: round(v, 4) for k, v in by_range(own).items()}
    return figures


def print_losses(figures: dict[str, Any]) -> None:
    """One line for every profile of `loss_figures`."""
    for profile, row in figures.items():
        other, name = ("best", "best possible") if "best" in row else ("linear", "linear predictor")
        loss, against, ratio = (row[key]["all t"] for key in ("loss", other, "ratio"))
        print(f"{profile}: eps-MSE {loss} averaged over t, {name} {against}, ratio {ratio}")


def _card(settings: NetTrainSettings, fit: AveragedBest, pool: ChannelPool, network: DenoiserCNN) -> dict[str, Any]:
    config = network.config
    sizes = ", ".join(f"{count:,} of {profile}" for profile, count in settings.counts().items())
    back = "" if pool.kept_back is None else f", of which {len(pool.kept_back)} only chose among the averages"
    return {
        "name": settings.name,
        "what": "Noise predictor of DM-VB channel estimation, "
        + ("one network for all profiles" if settings.profile == SINGLE else f"expert of {settings.profile}"),
        "config": asdict(config),
        "profiles": list(settings.counts()),
        "set": settings.kind,
        "array": settings.array,
        "scarce": settings.scarce,
        "samples": settings.counts(),
        "data": f"38.901 CDL channels {NR}x{NT}, 40 GHz, 30 ns, {settings.kind} set, {settings.array} arrays: {sizes}{back}",
        "licence": "Apache-2.0; the channels are computed from the tables of 3GPP TR 38.901",
        "parameters": sum(value.numel() for value in network.state_dict().values()),
        "flops_per_forward": config.flops(NR, NT),
        "receptive_field": [2 * side + 1 for side in config.reach],
        "training": {
            **{key: value for key, value in asdict(fit.settings).items() if key != "config"},
            "optimiser": "SOAP, warm-up and cosine to the floor, averaged weights, whitened affine of the step",
            "steps_done": fit.step,
            "kept_from_step": fit.best_step or fit.step,
            "channels_seen": fit.step * settings.batch,
            "loss": "|eps - eps_theta|^2 per complex entry, t = T u^time_power",
        },
        "seconds": round(fit.seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "stored_as": "float32",
        "metrics": {},
        "commit": "see git log of this file",
    }


def train(settings: NetTrainSettings, pool: ChannelPool | None = None) -> dict[str, Any]:
    """Train one network into `settings.out`; prints the losses beside the best possible ones and returns the card.

    Args:
        pool: channels to train and judge on instead of those the settings name.

    Raises:
        Stopped: Ctrl-C, after the checkpoint was saved.
        ValueError: training diverged, or the checkpoint is of another one.
    """
    pool = pool or channel_pool(settings)
    fit = fitted(settings, pool)
    speed = fit.train(
        f"{settings.name}, {settings.batch} channels a step", resume=settings.resume, progress=settings.progress
    )
    kept: Any = fit.kept()
    network = kept.folded()
    card = _card(settings, fit, pool, network)
    weights.save(settings.name, settings.out, network.state_dict(), card)
    card["metrics"] = loss_figures(network, settings, pool)
    weights.save(settings.name, settings.out, network.state_dict(), card)
    print_losses({profile: card["metrics"][profile] for profile in settings.counts()})
    line = {
        "steps": fit.step,
        "channels_per_second": round(speed * settings.batch, 1),
        "minutes": round(fit.seconds / 60, 1),
    }
    print(f"{settings.out / settings.name}.safetensors: {json.dumps(line)}")
    return card


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `semcom-fast train dm-vb`, but for those every command has."""
    plain = NetTrainSettings()
    parser.add_argument("--profile", choices=(*PROFILES, SINGLE), default=plain.profile, help="default: %(default)s")
    parser.add_argument("--set", dest="kind", choices=KINDS, default=plain.kind, help="channels (default: %(default)s)")
    parser.add_argument("--array", choices=ARRAYS, default=plain.array)
    parser.add_argument("--scarce", choices=PROFILES, help="the profile of which only --scarce-samples are known")
    parser.add_argument(
        "--samples", type=int, default=plain.samples, help="channels of a profile (default: %(default)s)"
    )
    parser.add_argument("--scarce-samples", type=int, default=plain.scarce_samples, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=plain.out, metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--steps", type=int, default=plain.steps, help="planned, sets the cosine (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=plain.batch, help="channels a step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=plain.rate, help="learning rate (default: %(default)s)")
    parser.add_argument(
        "--time-power", type=float, default=plain.time_power, metavar="P",
        help="train on steps T u^P, u uniform (default: %(default)s, the paper's loss)",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, help="stop after that long, weights written; --resume goes on")
    parser.add_argument("--seed", type=int, default=plain.seed)
    parser.add_argument("--domain", choices=DOMAINS, default=plain.domain, help="convolve over antennas or beams")
    parser.add_argument(
        "--window", choices=tuple(WINDOWS), default=plain.window,
        help="wide: taps spaced to see 25x57 antennas; paper: 11x11; same size and cost (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--width", type=int, help="channels at the affine (default: 64, single: 130)")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="of the convolutions; auto: bfloat16 where the processor has instructions for it",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")


def execute(args: Namespace) -> None:
    """Train one network into --out."""
    use_threads(args)
    same = (
        *("profile", "kind", "array", "scarce", "samples", "scarce_samples", "out", "steps", "batch", "rate"),
        *("time_power", "minutes", "seed", "domain", "window", "width", "resume"),
    )
    train(
        NetTrainSettings(
            **{name: getattr(args, name) for name in same},
            bf16={"auto": None, "fp32": False, "bf16": True}[args.precision],
            progress=not args.quiet,
        )
    )
