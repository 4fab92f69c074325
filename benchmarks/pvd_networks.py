"""What compiled and bfloat16 networks change in the results of blind reception, beside what is derived, and what they cost.

    python -m benchmarks.pvd_networks --csv benchmarks/results/pvd_networks.csv

Digits, a learned channel prior and photographs are received with the same draws by float32 networks and by variants of
them. Columns, over images that the float32 networks receive (NMSE below -6 dB; `received` counts them for the variant):
nmse_db, d_error (rms per entry of the source); their paired differences from float32 with standard errors over images;
change_d and change_h, rms per entry, of the recovered source and channel; bound_d and bound_h of these (`change_bound`
from the calls measured at every level, plus what an encoder's relative change does; empty where no network of that
variable differs); eps_low, eps_mid and eps_high, the change of one call over c_out at sigma near 0.01, 1 and 100;
us_per_step, the median of interleaved runs, and its ratio to float32's.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semcom_fast.data import load_digits
from semcom_fast.links import channel_nmse, draw_channel, noise_var_from_snr_db, to_db, transmit
from semcom_fast.receivers import (
    PVD,
    CallChange,
    GaussianChannelPrior,
    PVDConfig,
    PVDResult,
    call_change,
    change_bound,
    half_precision,
)
from semcom_fast.systems.blind_mimosc.channel_laws import ChannelLaw
from semcom_fast.systems.blind_mimosc.channel_prior import load_channel_denoiser
from semcom_fast.systems.blind_mimosc.evaluate_channels import LINK as CORRELATED
from semcom_fast.systems.blind_mimosc.experiment import SUCCESS_DB, Link
from semcom_fast.systems.blind_mimosc.networks import (
    load_denoiser,
    load_encoder,
    load_photo_codec,
    load_photo_denoiser,
)
from semcom_fast.systems.blind_mimosc.photo_images import as_source, grey_crops, photo_source
from semcom_fast.systems.evaluation import where

from . import timing

PROBED = 16  # images and channels on which single calls are compared


@dataclass
class Case:
    """One transmission and the float32 networks that receive it."""

    name: str
    encoder: Callable[..., Any]
    prior: Callable[..., Any]
    denoiser: Callable[..., Any]
    d: Tensor
    h: Tensor
    var_d: float
    snr_db: float

    def __post_init__(self) -> None:
        self.config = PVDConfig(nt=self.h.shape[-1], source_shape=tuple(self.d.shape[2:]))
        self.noise_var = noise_var_from_snr_db(self.snr_db, nt=self.h.shape[-1])
        with torch.no_grad():
            self.x = self.encoder(self.d)
        self.y = transmit(self.h, self.x, self.noise_var, 0)

    def networks(self) -> dict[str, Callable[..., Any]]:
        """Those that can be compiled or rounded: a closed-form prior is no network."""
        found = {"encoder": self.encoder, "denoiser": self.denoiser, "prior": self.prior}
        return {k: v for k, v in found.items() if not isinstance(v, GaussianChannelPrior)}

    def receive(self, networks: dict[str, Callable[..., Any]]) -> PVDResult:
        return PVD(
            networks["encoder"], networks.get("prior", self.prior), networks["denoiser"], self.config
        ).run(self.y, self.noise_var)  # fmt: skip


def cases(images: int, photos: int) -> list[Case]:
    """Digits over Rayleigh fading at 10 and 20 dB, over correlated channels with the learned prior, photographs."""
    digits, denoiser, law = load_digits(), load_denoiser(), ChannelLaw()
    d = digits.test[:images].unsqueeze(1)
    var = float(digits.train.var(0, correction=0).mean())
    link = Link()
    h = draw_channel(images, 1, link.blocks, link.nr, link.nt, seed=0)
    found = [Case("digits", load_encoder(), GaussianChannelPrior(), denoiser, d, h, var, snr) for snr in (10.0, 20.0)]
    encoder = load_encoder("penalised", CORRELATED.blocks, CORRELATED.nt, CORRELATED.slots)
    h = law.draw(images, 1, CORRELATED.blocks, seed=0)
    found.append(Case("digits, correlated", encoder, load_channel_denoiser(law), denoiser, d, h, var, 15.0))
    if photos:
        codec, unet = load_photo_codec(), load_photo_denoiser()
        d = as_source(grey_crops(photo_source(), "test", photos).images).unsqueeze(1)
        c = codec.config
        h = draw_channel(photos, 1, c.blocks, 8, c.nt, seed=0)
        var = float(unet.spectrum.mean())
        found.append(Case("photographs", codec.encoder, GaussianChannelPrior(), unet, d, h, var, 15.0))
    return found


def _half(network: Callable[..., Any]) -> Callable[..., Any]:
    """In bfloat16: by its own switch where it has one."""
    if not hasattr(network, "bf16"):
        return half_precision(network)
    network = copy.deepcopy(network)
    network.bf16 = True  # type: ignore[attr-defined]
    return network


VARIANTS: dict[str, Callable[[Any], Any]] = {
    "float32": lambda network: network,
    "compiled": lambda network: torch.compile(network, fullgraph=True),
    "bfloat16": _half,
    "bfloat16 compiled": lambda network: torch.compile(_half(network), fullgraph=True),
}


def _rms(t: Tensor) -> float:
    return float(t.abs().double().square().mean().sqrt())


def bounds(case: Case, networks: dict[str, Any], exact: PVDResult, good: Tensor) -> dict[str, Any]:
    """Measured changes of single calls, and the bounds on source and channel that follow."""
    levels, zeta = case.config.schedule(), {"d": case.config.zeta_d, "h": case.config.zeta_h}
    own, row = case.networks(), {}
    for which, name, clean, var in (("d", "denoiser", case.d, case.var_d), ("h", "prior", case.h, 1.0)):
        if name not in own:
            continue
        calls = call_change(own[name], networks[name], clean[:PROBED], levels[:-1], var=var)
        total = change_bound(levels, *calls, var=var, zeta=zeta[which], steps=case.config.Jin)  # type: ignore[arg-type]
        row[f"bound_{which}"] = total
        if which == "d":
            row |= _three_levels(calls)
    with torch.no_grad():
        off = _rms(networks["encoder"](case.d) - case.x) / _rms(case.x)
    noise = off * (case.h.shape[-2] / case.noise_var) ** 0.5
    row["bound_d"] += noise * _rms((exact.d - case.d)[good])
    return row | {"eps_encoder": off}


def _three_levels(calls: CallChange) -> dict[str, float]:
    last = len(calls.forward) - 1
    places = {"eps_low": 0, "eps_mid": last // 2, "eps_high": last}
    return {name: float(calls.forward[at]) for name, at in places.items()}


def _paired(now: Tensor, before: Tensor) -> tuple[float, float]:
    """Mean difference and its standard error over images."""
    difference = (now - before).double()
    return float(difference.mean()), float(difference.std() / len(difference) ** 0.5)


def compare(case: Case, variant: dict[str, Any], got: PVDResult, exact: PVDResult) -> dict[str, Any]:
    """One row: what a variant's run gives against the float32 run."""
    threshold = 10 ** (SUCCESS_DB / 10)
    nmse, before = channel_nmse(case.h, got.h), channel_nmse(case.h, exact.h)
    good = before < threshold
    error, error_before = ((r.d - case.d).flatten(1).square().mean(1).sqrt()[good] for r in (got, exact))
    nmse_change, nmse_error = _paired(to_db(nmse[good]), to_db(before[good]))
    d_change, d_error = _paired(error, error_before)
    row = {
        "images": len(case.d),
        "received": int((nmse < threshold).sum()),
        "nmse_db": float(to_db(nmse[good].double().mean())),
        "nmse_change_db": nmse_change,
        "nmse_change_se_db": nmse_error,
        "d_error": float(error.square().mean().sqrt()),
        "d_error_change": d_change,
        "d_error_change_se": d_error,
        "change_d": _rms((got.d - exact.d)[good]),
        "change_h": _rms((got.h - exact.h)[good]),
    }
    names = ("bound_d", "bound_h", "eps_low", "eps_mid", "eps_high", "eps_encoder")
    return row | dict.fromkeys(names, "") | bounds(case, variant, exact, good)


def measure(case: Case, rounds: int) -> list[dict[str, Any]]:
    """Runs of all variants in turns; the first round warms up (and compiles), all give the same results."""
    torch._dynamo.reset()  # every case is compiled from nothing: graphs of the last one would count as recompilations
    networks = {name: {k: make(v) for k, v in case.networks().items()} for name, make in VARIANTS.items()}
    found: dict[str, PVDResult] = {}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for r in range(rounds + 1):
        for name in VARIANTS if r % 2 else reversed(VARIANTS):
            start = time.perf_counter()
            found[name] = case.receive(networks[name])
            if r:
                seconds[name].append(time.perf_counter() - start)
    steps = case.config.J * case.config.Jin
    us = {name: statistics.median(s) / steps * 1e6 for name, s in seconds.items()}
    rows = []
    for name, variant in networks.items():
        row = {"case": case.name, "snr_db": case.snr_db, "networks": name}
        row |= compare(case, variant, found[name], found["float32"])
        rows.append(row | {"us_per_step": us[name], "ratio_to_float32": us[name] / us["float32"]})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pvd_networks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=24, help="held-out digits (default: %(default)s)")
    parser.add_argument("--photos", type=int, default=8, help="test crops of photographs; 0 leaves them out")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    place, rows = where(), []
    for case in cases(args.images, args.photos):
        for row in measure(case, args.rounds):
            rows.append(row | place)
            shown = {k: v for k, v in row.items() if v != ""}
            print(
                ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()), flush=True
            )
        if args.csv:
            timing.write_csv(args.csv, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
