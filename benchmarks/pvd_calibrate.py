"""The row of pvd_calibrate: one launch in place of six small ones."""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case
from .rivals import rivals_for

SIZES = {"x_energy": 64.0, "nr": 4, "count": 256}


def _make(i: int):
    g = torch.Generator().manual_seed(i)
    return tuple(torch.rand(s, generator=g) + 0.1 for s in ((24, 2), (24, 2), (24,)))


def _error() -> float:
    args = _make(0)
    want = reference.pvd_calibrate(0.1, *(a.double() for a in args), **SIZES)
    got = sf.pvd_calibrate(0.1, *timing.to_device(args), **SIZES).cpu()
    return float((got - want).abs().max() / want.max())


def cases(quick: bool) -> list[Case]:
    return [
        Case(
            "pvd_calibrate",
            "B=24 U=2",
            _make,
            lambda *a: sf.pvd_calibrate(0.1, *a, **SIZES),
            {"eager": lambda *a: peers.calibrate_eager(0.1, *a, *SIZES.values())},
            lambda *a: reference.pvd_calibrate(0.1, *a, **SIZES),
            _error,
            2.0**-23,
            4 * 24 * 6,
            rivals=rivals_for("pvd_calibrate", noise_var=0.1, **SIZES),
            dtype="float32",
        )
    ]
