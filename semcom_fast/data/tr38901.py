"""3GPP TR 38.901 channels of urban micro, urban macro and rural macro cells, drawn through Sionna.

    python -m semcom_fast.data.tr38901 --scenario all

generates the sets `load_channels` reads. The link is the one of "Scenario-Adaptive MU-MIMO OFDM Semantic Communication
With Asymmetric Neural Network", Table II: downlink at 2.6 GHz from one dual cross-polarised panel of two columns (4
ports, 38.901 pattern) to single-antenna users (vertical, omnidirectional) dropped at random in one sector.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import require_extra
from .channels import SCENARIOS, SPLITS, ImpulseResponses, set_path

CARRIER = 2.6e9  # Hz
SYMBOL_RATE = 14e3  # OFDM symbols per second: 14 in a slot of one millisecond
CHUNK = 64  # topologies drawn at once; a seed gives the same topologies whatever the count
COUNTS = {"train": 4096, "eval": 2048}
SEEDS = {"train": 1, "eval": 2}
_KMH = 3.6


def draw_tr38901(
    scenario: str,
    count: int,
    *,
    seed: int,
    users: int = 4,
    speed_kmh: float = 0.0,
    symbols: int = 1,
    pathloss: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ImpulseResponses:
    """Draw impulse responses of new random drops.

    The first topologies of a longer draw with the same seed are those of a shorter one. Sionna's own seed is set.

    Args:
        scenario: "umi", "uma" or "rma".
        count: topologies.
        seed: any integer >= 0.
        speed_kmh: speed of all users, in random directions; Sionna's default, and the paper's silence, is 0.
        symbols: OFDM symbols the gains are sampled at, 1/14 ms apart; 1 gives static channels.
        pathloss: keep path loss and shadow fading in the gains.
        progress: called with the number of topologies drawn so far.

    Returns:
        ImpulseResponses, gains complex64 [count,users,4,P] or [count,users,4,P,symbols]; P = 23 (UMi), 24 (UMa), 15 (RMa).

    Raises:
        MissingExtra: Sionna is not installed; the message names the extra `sionna`.
    """
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario must be one of {SCENARIOS}, got {scenario!r}")
    if count < 1 or symbols < 1 or speed_kmh < 0:
        raise ValueError(f"need count >= 1, symbols >= 1 and speed >= 0, got {count}, {symbols} and {speed_kmh}")
    if speed_kmh and symbols == 1:
        raise ValueError("moving users need symbols > 1: one sample in time is a static channel")
    model = _model(scenario, pathloss)
    require_extra("sionna.phy", "sionna").config.seed = seed
    gains, delays = [], []
    for done in range(0, count, CHUNK):
        a, tau = _draw_chunk(model, scenario, users, speed_kmh / _KMH, symbols)
        gains.append(a[: count - done])
        delays.append(tau[: count - done])
        if progress:
            progress(min(done + CHUNK, count))
    all_gains = torch.cat(gains)
    return ImpulseResponses(
        all_gains.squeeze(-1) if symbols == 1 else all_gains,
        torch.cat(delays),
        scenario,
        pathloss=pathloss,
        symbol_rate=None if symbols == 1 else SYMBOL_RATE,
        seed=seed,
    )


def _model(scenario: str, pathloss: bool) -> Any:
    tr38901 = require_extra("sionna.phy.channel.tr38901", "sionna")
    common: dict[str, Any] = {"carrier_frequency": CARRIER, "precision": "single", "device": "cpu"}
    panel = {"num_rows_per_panel": 1, **common}
    base_station = tr38901.PanelArray(
        num_cols_per_panel=2, polarization="dual", polarization_type="cross", antenna_pattern="38.901", **panel
    )
    user = tr38901.PanelArray(
        num_cols_per_panel=1, polarization="single", polarization_type="V", antenna_pattern="omni", **panel
    )
    if scenario != "rma":
        common["o2i_model"] = "low"
    return getattr(tr38901, {"umi": "UMi", "uma": "UMa", "rma": "RMa"}[scenario])(
        ut_array=user,
        bs_array=base_station,
        direction="downlink",
        enable_pathloss=pathloss,
        enable_shadow_fading=pathloss,
        **common,
    )


@torch.no_grad()
def _draw_chunk(model: Any, scenario: str, users: int, speed: float, symbols: int) -> tuple[Tensor, Tensor]:
    """gains [CHUNK,K,M,P,symbols] and delays [CHUNK,K,P] of one batch of drops."""
    topology = require_extra("sionna.phy.channel", "sionna").gen_single_sector_topology(
        CHUNK,
        users,
        scenario,
        min_ut_velocity=speed,
        max_ut_velocity=speed,
        precision="single",
        device="cpu",
    )
    model.reset_topology()
    model.set_topology(*topology)
    gains, delays = model(num_time_samples=symbols, sampling_frequency=SYMBOL_RATE)
    # [B, users, 1 antenna, 1 base station, M, P, time] and [B, users, 1 base station, P]
    gains, delays = gains[:, :, 0, 0], delays[:, :, 0]
    # Sionna pads with paths of no gain and a delay of about a second, whose phase no float32 holds.
    unused = (gains == 0).all(dim=-1).all(dim=2)
    return gains.contiguous(), delays.masked_fill(unused, 0.0)


def _report(scenario: str, count: int) -> Callable[[int], None]:
    """Progress on standard error: one line, rewritten on a terminal, a line every tenth otherwise."""
    start, terminal = time.perf_counter(), sys.stderr.isatty()

    def tell(done: int) -> None:
        tenth = done * 10 // count > max(done - CHUNK, 0) * 10 // count
        if terminal or tenth or done == count:
            end = "\n" if done == count or not terminal else ""
            line = f"{scenario}: {done} of {count} topologies, {time.perf_counter() - start:.0f} s"
            print(("\r" if terminal else "") + line, end=end, file=sys.stderr, flush=True)

    return tell


def main(argv: list[str] | None = None) -> None:
    """Generate sets of impulse responses; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m semcom_fast.data.tr38901", description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", choices=(*SCENARIOS, "all"), default="all")
    parser.add_argument("--split", choices=SPLITS[:2], help="one of the stored sets; without --count and --out, both")
    parser.add_argument("--count", type=int, help="topologies (default: the split's)")
    parser.add_argument("--seed", type=int, help="default: the split's; a set of your own needs one")
    parser.add_argument("--out", type=Path, help="an .npz file, for one scenario (default: where load_channels looks)")
    parser.add_argument("--speed", type=float, default=0.0, help="km/h (default 0)")
    parser.add_argument("--symbols", type=int, default=1, help="time samples, 1/14 ms apart (default 1: static)")
    parser.add_argument("--pathloss", action="store_true", help="keep path loss and shadow fading in the gains")
    parser.add_argument("--half", action="store_true", help="store 11-bit halves")
    args = parser.parse_args(argv)
    own = args.out is not None
    if not own and (
        args.count or args.speed or args.symbols > 1 or args.pathloss or args.half or args.seed is not None
    ):
        parser.error("a set of your own goes to a file of your own: give --out")
    if own and args.scenario == "all":
        parser.error("--out takes one --scenario")
    torch.set_num_threads(1)  # tensors are small: two threads are several times slower
    for split in [args.split or "train"] if own else [args.split] if args.split else SPLITS[:2]:
        for scenario in SCENARIOS if args.scenario == "all" else [args.scenario]:
            count = args.count or COUNTS[split]
            drawn = draw_tr38901(
                scenario,
                count,
                seed=SEEDS[split] if args.seed is None else args.seed,
                speed_kmh=args.speed,
                symbols=args.symbols,
                pathloss=args.pathloss,
                progress=_report(scenario, count),
            )
            path = args.out or set_path(scenario, split)
            drawn.save(path, half=args.half)
            print(json.dumps({"file": str(path), "topologies": count, "bytes": path.stat().st_size}))


if __name__ == "__main__":
    main()
