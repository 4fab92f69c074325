"""What the PVD loop costs beyond the networks it calls."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...links import draw_channel, noise_var_from_snr_db, transmit
from ...receivers import PVD, GaussianChannelPrior, PVDConfig
from .experiment import Link

ROUNDS = 7


class Overhead(NamedTuple):
    """Microseconds per inner iteration of the loop and of its networks alone, and (loop - networks)/networks."""

    loop_us: float
    network_us: float
    overhead: float


def network_pass(
    encoder, denoiser, config: PVDConfig, batch: int, device: torch.device | str = "cpu"
) -> Callable[[], None]:
    """The network calls of one whole run and nothing else, as a function to time.

    Per inner iteration, as in the loop: denoiser and encoder forward, the vector-Jacobian product of their chain, and
    one more encoder forward for the secant probe. The channel prior is a closed form, not a network. Inputs follow the
    schedule: a digit-like source under noise of each level.
    """
    sigmas = torch.tensor(config.schedule()).to(device)
    generator = torch.Generator().manual_seed(0)
    shape = (batch, config.users, *config.source_shape)
    clean = (2 * torch.rand(shape, generator=generator) - 1).to(device)
    noise = torch.randn(shape, generator=generator).to(device)
    probe = torch.randn(shape, generator=generator).to(device)
    with torch.no_grad():
        codeword = encoder(clean)
    cotangent = torch.randn(codeword.shape, dtype=codeword.dtype, generator=generator).to(device)
    levels = [sigmas[j] for j in reversed(range(config.J))]
    noisy = [clean + sigma * noise for sigma in levels]

    def run() -> None:
        for sigma, x in zip(levels, noisy, strict=True):
            for _ in range(config.Jin):
                with torch.enable_grad():
                    leaf = x.detach().requires_grad_(True)
                    mean, _ = denoiser(leaf, sigma)
                    sent = encoder(mean)
                torch.autograd.grad(sent, leaf, cotangent)
                with torch.no_grad():
                    encoder(probe)

    return run


def loop_pass(encoder, denoiser, config: PVDConfig, link: Link, images: Tensor, snr_db: float) -> Callable[[], None]:
    """One whole run of the receiver on images [B,64], as a function to time."""
    noise_var = noise_var_from_snr_db(snr_db, users=link.users, nt=link.nt)
    sent = images.unsqueeze(1).expand(-1, link.users, -1)
    h = draw_channel(len(images), link.users, link.blocks, link.nr, link.nt, seed=0)
    y = transmit(h, encoder(sent), noise_var, 0)
    receiver = PVD(encoder, GaussianChannelPrior(), denoiser, config)

    def run() -> None:
        receiver.run(y, noise_var)

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
    passes = {
        "loop": loop_pass(encoder, denoiser, config, link, images, snr_db),
        "network": network_pass(encoder, denoiser, config, len(images)),
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
