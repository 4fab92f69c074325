"""Rows of pvd_update: the channel state of the paper's sizes and a large real source."""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case, name_of
from .rivals import rivals_for

LEVELS = {"sigma": 0.5, "sigma_above": 0.7, "zeta": 0.1, "score_var": 0.8}
SIZES = [  # shape, dtype
    ((64, 1, 24, 64, 8), torch.complex64),
    ((16, 1, 256 * 256 * 3), torch.float32),
    ((64, 1, 24, 64, 8), torch.complex128),
    ((24, 1, 64), torch.float32),
]


def _ours(*state):
    return sf.pvd_update(*state, **LEVELS, seed=1, step=3, stream=1)


def _reference(*state):
    return reference.pvd_update(*state, **LEVELS, seed=1, step=3, stream=1)


def _error(make) -> float:
    state = make(0)
    wide = torch.complex128 if state[0].is_complex() else torch.float64
    pairs = zip(_ours(*timing.to_device(state)), _reference(*(s.to(wide) for s in state)), strict=True)
    return max(float((a.cpu() - b).abs().max() / b.abs().max()) for a, b in pairs)


def cases(quick: bool) -> list[Case]:
    """Targets: >= 80 % of max(copy of the minimal bytes, time of the normals alone)."""
    out = []
    for shape, dtype in SIZES[-1:] if quick else SIZES:

        def make(i: int, shape=shape, dtype=dtype):
            g = torch.Generator().manual_seed(i)
            return tuple(torch.randn(shape, dtype=dtype, generator=g) for _ in range(5))

        entries = torch.Size(shape).numel()
        reals = entries * (2 if dtype.is_complex else 1)

        def peer(fn):
            return lambda *s: fn(*s, *LEVELS.values())

        out.append(
            Case(
                "pvd_update",
                f"{tuple(shape)}",
                make,
                _ours,
                {
                    "eager": peer(peers.update_eager),
                    "add-alpha": peer(peers.update_addcmul),
                    "normal": peer(peers.update_normal),
                },
                _reference,
                lambda make=make: _error(make),
                2e-6,  # the normals' own bound
                7 * dtype.itemsize * entries,  # five reads, two writes
                normals=reals,
                target=">= 80 % of floor" if reals > 10000 and dtype is not torch.complex128 else "no target",
                rivals=rivals_for("pvd_update", shape=shape, levels=LEVELS, dtype=dtype),
                dtype=name_of(dtype),
            )
        )
    return out
