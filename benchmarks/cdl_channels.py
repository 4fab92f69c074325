"""Rows of cdl_channels: the sum of given rays, and whole draws of channels."""

import math

import torch

import semcom_fast as sf
from semcom_fast import reference
from semcom_fast.ops._cdl_rays import clusters
from semcom_fast.ops._register import OPS

from . import peers, timing
from .cases import Case, name_of
from .rivals import rivals_for
from .rzf_precode import worst_error

NR, NT = 16, 64
FREQUENCY = -2.25e6  # Hz


def _sum_of_rays(b: int, r: int, nr: int, nt: int, dtype: torch.dtype) -> Case:
    """460 rays of CDL-A: the op alone, on the same gains and phase progressions."""

    def make(i: int):
        g = torch.Generator().manual_seed(i)
        gains = torch.randn(b, r, dtype=dtype, generator=g)
        return gains, *(torch.rand(2, b, r, dtype=dtype.to_real(), generator=g) - 0.5).unbind(0)

    def ours(gains, rx, tx):
        return OPS["cdl_channels"](gains, rx, tx, nr, nt)

    def check() -> float:
        gains, rx, tx = make(0)
        want = reference.cdl_channels(gains.to(torch.complex128), rx.double(), tx.double(), nr, nt)
        return worst_error((ours(*timing.to_device((gains, rx, tx))),), (want,))

    sides = {"matmul": peers.cdl_matmul, "einsum": peers.cdl_einsum, "powers": peers.cdl_powers}
    word = 8 if dtype is torch.complex64 else 16
    return Case(
        "cdl_channels",
        f"B={b} R={r} {nr}x{nt}",
        make,
        ours,
        {name: (lambda *a, f=f: f(*a, nr, nt)) for name, f in sides.items()},
        lambda gains, rx, tx: reference.cdl_channels(gains, rx, tx, nr, nt),
        check,
        1e-5 if dtype is torch.complex64 else 1e-12,
        b * (2 * word * r + word * nr * nt),
        flops=8 * b * r * nr * nt,
        target="no target",
        rivals=rivals_for("cdl_channels", b=b, r=r, nr=nr, nt=nt, dtype=dtype),
        dtype=name_of(dtype),
    )


def _torch_tables(letter: str):
    table = clusters(letter)
    turns = torch.remainder(FREQUENCY * table.delays * 30e-9, 1.0)
    return torch.polar((table.powers / 20).sqrt(), -2 * math.pi * turns).to(torch.complex64), table.angles.float()


def _draw(letter: str, b: int) -> Case:
    """A batch from seed to channel matrices: random numbers, coupling of the angles, gains and the sum."""
    tables = _torch_tables(letter)

    def ours(seed):
        return sf.cdl_channels(letter, b, nr=NR, nt=NT, seed=seed, device=timing.device)

    def twin(seed):
        with sf.use_backend("reference"):
            return ours(seed)

    def check() -> float:
        with sf.use_backend("reference"):
            want = sf.cdl_channels(letter, b, nr=NR, nt=NT, seed=3, dtype=torch.complex128)
        return worst_error((ours(3),), (want,))

    return Case(
        "cdl_channels",
        f"draw CDL-{letter} B={b} {NR}x{NT}",
        lambda i: (i,),
        ours,
        {"matmul": lambda _seed: peers.cdl_draw(tables, b, NR, NT)},
        twin,
        check,
        1e-5,
        8 * b * NR * NT,
        flops=8 * b * NR * NT * 20 * len(tables[0]),
        target=">= 50x Sionna",
        rivals=rivals_for("cdl_draw", letter=letter, b=b, nr=NR, nt=NT, frequency=FREQUENCY),
    )


def cases(quick: bool) -> list[Case]:
    """The sum alone in both precisions, a small and a turned link, and draws of three profiles beside Sionna's."""
    if timing.device != "cpu":
        return [_sum_of_rays(4096, 460, NR, NT, torch.complex64)]
    if quick:
        return [_sum_of_rays(16, 460, NR, NT, torch.complex64)]
    sums = [(64, 460, NR, NT, dtype) for dtype in (torch.complex64, torch.complex128)]
    sums += [(b, 460, nr, nt, torch.complex64) for b, nr, nt in ((1, NR, NT), (64, NT, NR), (256, 4, 4))]
    return [*(_sum_of_rays(*s) for s in sums), *(_draw(letter, 32) for letter in "ACD")]
