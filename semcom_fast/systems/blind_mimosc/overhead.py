"""What the PVD loop costs beyond the networks it calls."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ...links import draw_channel, noise_var_from_snr_db, transmit
from ...receivers import PVD, GaussianChannelPrior, PVDConfig
from ...receivers.users import Denoiser, Encoder
from .experiment import Link

ROUNDS = 7


class Overhead(NamedTuple):
    """Microseconds per inner iteration of the loop and of its networks alone, and (loop - networks)/networks."""

    loop_us: float
    network_us: float
    overhead: float


@dataclass
class _Call:
    """One inner iteration's network inputs: the denoiser's, those of encoder calls without a gradient, the cotangent."""

    x: Tensor
    sigma: Tensor
    encoded: list[Tensor] = field(default_factory=list)
    cotangent: Tensor | None = None


def network_pass(
    encoder: Encoder,
    denoiser: Denoiser,
    config: PVDConfig,
    y: Tensor,
    noise_var: float,
    denoiser_h: Denoiser | None = None,
    *,
    end: bool = True,
) -> Callable[[], None]:
    """The network calls of one whole run and nothing else, on the inputs and cotangents of a run, as a function to time.

    Per inner iteration, as in the loop: denoiser and encoder forward, the encoder at the secant probe, and the
    vector-Jacobian product of denoiser and encoder. The channel prior (default: i.i.d. CN(0, 1)) is a closed form, no
    network.

    Args:
        encoder, denoiser: of the source, one callable each.
        y: [B,K,Nr,T]. noise_var: of the run that is recorded.
        end: with the encoder call behind the final residual energy.
    """
    calls: list[_Call] = []

    def recorded_denoiser(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(_Call(x.detach(), sigma))
        return denoiser(x, sigma)

    def recorded_encoder(d: Tensor) -> Tensor:
        x, call = encoder(d), calls[-1]
        if x.requires_grad:
            x.register_hook(lambda cotangent: setattr(call, "cotangent", cotangent))
        else:
            call.encoded.append(d)
        return x

    PVD(recorded_encoder, denoiser_h or GaussianChannelPrior(), recorded_denoiser, config).run(y, noise_var)
    if not end:
        calls[-1].encoded.pop()

    def run() -> None:
        for call in calls:
            with torch.enable_grad():
                leaf = call.x.detach().requires_grad_(True)
                sent = encoder(denoiser(leaf, call.sigma)[0])
            with torch.no_grad():
                for d in call.encoded:
                    encoder(d)
            torch.autograd.grad(sent, leaf, call.cotangent)

    return run


def measure(
    encoder,
    denoiser,
    images: Tensor,
    *,
    link: Link | None = None,
    config: PVDConfig | None = None,
    snr_db: float = 20.0,
    rounds: int = ROUNDS,
    on_round: Callable[[], None] | None = None,
) -> Overhead:
    """Time loop and networks in turns on the same batch size, shapes, dtype, threads and count; medians of `rounds`.

    Args:
        images: [B,64]; their number is the batch.
        link, config: sizes and schedule; the defaults of the demonstration.
        rounds: pairs of runs, the order alternating.
        on_round: called after each pair.

    Returns:
        Overhead, per inner iteration.
    """
    link = link or Link()
    config = config or PVDConfig(users=link.users, nt=link.nt)
    noise_var = noise_var_from_snr_db(snr_db, users=link.users, nt=link.nt)
    h = draw_channel(len(images), link.users, link.blocks, link.nr, link.nt, seed=0)
    y = transmit(h, encoder(images.unsqueeze(1).expand(-1, link.users, -1)), noise_var, 0)
    receiver = PVD(encoder, GaussianChannelPrior(), denoiser, config)
    passes = {
        "loop": lambda: receiver.run(y, noise_var),
        "network": network_pass(encoder, denoiser, config, y, noise_var),
    }
    seconds: dict[str, list[float]] = {"loop": [], "network": []}
    for turn in range(rounds):
        for name in sorted(passes, reverse=bool(turn % 2)):
            began = time.perf_counter()
            passes[name]()
            seconds[name].append(time.perf_counter() - began)
        if on_round is not None:
            on_round()
    steps = config.J * config.Jin
    loop, network = (statistics.median(seconds[name]) / steps * 1e6 for name in ("loop", "network"))
    return Overhead(loop, network, (loop - network) / network)
