"""Where the time of one slot goes: encoder, closed-form precoder, refinement network, channel, decoder.

    python -m semcom_fast.systems.mu_mimo.latency --subcarriers 128 --batch 1

Times are medians of interleaved runs, so that a busy moment of the machine touches all stages alike. The precoder is
given in its parts and as a whole: the refined precoder contains the closed form.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ...data import subcarrier_frequencies, tapped_channels
from ...links import mu_mimo_ofdm as link
from ..evaluation import where
from .batches import SPACING_HZ
from .system import MuMimoSystem, SystemConfig

CLOSED_FORM, NETWORK, SUM, PRECODER = "RZF, closed form", "refinement network", "sum and power", "precoder as a whole"


class Stage(NamedTuple):
    """A part of the slot and its time per grid."""

    name: str
    milliseconds: float


def stages(system: MuMimoSystem, batch: int, *, static: bool = True, seed: int = 0) -> dict[str, Callable[[], object]]:
    """The parts as calls without arguments, on random images and built-in channels."""
    generator = torch.Generator().manual_seed(seed)
    config, grid = system.config, system.grid
    images = torch.rand(batch, config.users, 3, 32, 32, generator=generator)
    cir = tapped_channels(batch, config.users, config.antennas, seed=seed)
    h = cir.to_ofdm(subcarrier_frequencies(grid.subcarriers, SPACING_HZ))
    if not static:
        h = h.repeat(1, 1, grid.symbols, 1, 1)
    noise_var = torch.full((batch,), 0.2)
    s = system.encode(images, h, noise_var)
    coarse = system.precoder.coarse(h, s, noise_var)
    x = system.precoder(h, s, noise_var)
    noise = torch.randn(*x.shape[:-1], config.users, dtype=x.dtype, generator=generator)
    y = link.receive(h, x, noise_var, noise=noise)
    calls: dict[str, Callable[[], object]] = {
        "encoder": lambda: system.encode(images, h, noise_var),
        CLOSED_FORM: lambda: system.precoder.coarse(h, s, noise_var),
    }
    network = system.precoder.network
    if network is not None:
        correction = network(coarse, h)
        calls |= {
            NETWORK: lambda: network(coarse, h),
            SUM: lambda: link.normalise_power(coarse + correction),
            PRECODER: lambda: system.precoder(h, s, noise_var),
        }
    calls |= {
        "channel": lambda: link.receive(h, x, noise_var, noise=noise),
        "decoder": lambda: system.decode(y),
    }
    return calls


@torch.no_grad()
def measure(config: SystemConfig, *, batch: int = 1, repeats: int = 30, static: bool = True) -> list[Stage]:
    """Median milliseconds per grid of every stage of an untrained system; the last is the whole slot."""
    if batch < 1 or repeats < 1:
        raise ValueError(f"batch and repeats must be at least 1, got {batch} and {repeats}")
    system = MuMimoSystem(config).requires_grad_(False).eval()
    calls = stages(system, batch, static=static)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):  # the first round warms up
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    result = [Stage(name, 1e3 * statistics.median(spans[1:]) / batch) for name, spans in times.items()]
    parts = (CLOSED_FORM, NETWORK, SUM) if PRECODER in calls else ()
    slot = sum(stage.milliseconds for stage in result if stage.name not in parts)
    return [*result, Stage("slot", slot)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="full")
    parser.add_argument("--subcarriers", type=int, nargs="+", default=[32, 64, 128], metavar="NF")
    parser.add_argument("--batch", type=int, default=1, help="grids at once (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--time-varying", action="store_true", help="a channel per OFDM symbol instead of one per slot")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    columns = {}
    for subcarriers in args.subcarriers:
        config = SystemConfig(args.variant, subcarriers)
        found = measure(config, batch=args.batch, repeats=args.repeats, static=not args.time_varying)
        columns[subcarriers] = {stage.name: stage.milliseconds for stage in found}
    print(f"{'ms per grid of 4 users':24}" + "".join(f"{f'Nf={n}':>10}" for n in columns))
    for name in next(iter(columns.values())):
        print(f"{name:24}" + "".join(f"{column[name]:10.3f}" for column in columns.values()))
    print(", ".join(f"{key} {text}" for key, text in where().items()) + f", batch {args.batch}, variant {args.variant}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
