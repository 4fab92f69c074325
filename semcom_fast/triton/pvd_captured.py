"""The channel's part of a captured step of parallel variational diffusion: levels read at a counter, results in place.

The kernels are those of `pvd_channel_step`; two launches either way. `run_step` moves an i.i.d. Gaussian channel whose
divisor is known from the iteration before; `run_score` leaves the move to `pvd_update.run_table`, because the divisor
needs the energies of all blocks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import pvd_channel_step as step_kernels
from ._launch import Cell
from ._pvd_table import Prior, PvdTable
from .pvd_channel_step import DRAW, NO_DRAW, ChannelLevels

_NAME = "pvd_captured"


Signals = tuple[Tensor, Tensor, Tensor | None]
"""Real views: y [B,K,Nr,T,2], the codeword x [B,U,K,Nt,T,2] and, under a secant calibration, that at the probe point."""


class Calibration(NamedTuple):
    """What makes the effective noise variance, and where it goes.

    noise_var: 0-d or [B]; x_energy: |x_u|^2 of the power constraint; entries: Nr K T. energy and score_var [B] in
    the state's real dtype: the residual's energy and the variance of this iteration. per_score [2,B] float64: what
    multiplies this iteration's scores, the inverse of score_var (with `lagged` of the one before) for the channel's and
    twice that for the codeword's, whose pulled back cotangent is half of what torch wants. scratch [B K, 2+U] float64.
    """

    noise_var: Tensor
    x_energy: float
    entries: int
    energy: Tensor
    score_var: Tensor
    per_score: Tensor
    scratch: Tensor
    lagged: bool = False


def run_step(
    signals: Signals,
    channel: tuple[Tensor, Tensor, Tensor],
    score_x: Tensor,
    zeta: Cell | float,
    prior: Prior,
    table: PvdTable,
    found: Calibration,
    *,
    seed: int | Tensor | None,
    stream: int = 1,
    first_item: int | Tensor = 0,
) -> None:
    """`pvd_channel_step` in place, then the effective noise variance of this iteration for the next one.

    channel: mean, anchor and sample, real views [B,U,K,Nr,Nt,2]. The probe's codeword comes as it is: the step takes
    the difference. The anchor becomes the mean at a level's end.
    """
    mean, _, sample = channel
    size = _check(signals, channel, (mean, sample, score_x), table, found, prior)
    cell = (table.table, 0, 0, table.stride)
    mode = NO_DRAW if seed is None else DRAW
    levels = ChannelLevels(cell, cell, zeta, (found.score_var, 0, 1, 0), None if seed is None else cell, prior.cell)
    step_kernels._launch(
        signals, (*channel, mean), (mean, sample, score_x), found.scratch, None, levels, size,
        (seed, 0, stream, first_item), table, MODE=mode, DEFAULT_NEXT=seed is None,
    )  # fmt: skip
    _finish(found, size, table, signals[2] is not None, prior)


def run_score(
    signals: Signals,
    sample: Tensor,
    score_h: Tensor,
    score_x: Tensor,
    denoiser: Prior | Tensor,
    table: PvdTable,
    found: Calibration,
) -> None:
    """R X^H and H^H R of the denoised channel, unscaled, and the effective noise variance.

    denoiser: the prior that denoises `sample` [B,U,K,Nr,Nt,2] and whose variance counts; or, where `sample` holds the
    denoised channel, its variance [B,U], brought into [0, sigma^2] here.
    """
    size = _check(signals, (sample, sample, sample), (score_h, score_h, score_x), table, found, denoiser)
    white = isinstance(denoiser, Prior)
    cell = (table.table, 0, 0, table.stride)
    prior = denoiser.cell if isinstance(denoiser, Prior) else 1.0
    step_kernels._launch(
        signals, (sample,) * 4, (score_h, score_h, score_x), found.scratch, None,
        ChannelLevels(cell, cell, 0.0, 1.0, None, prior), size, (None, 0, 0, 0), table, SCORE=True, DENOISED=not white,
        MODE=NO_DRAW, DEFAULT_NEXT=True,
    )  # fmt: skip
    _finish(found, size, table, signals[2] is not None, denoiser)


def _check(
    signals: Signals, states: tuple[Tensor, ...], out: tuple[Tensor, ...], table: PvdTable, found: Calibration,
    denoiser: Prior | Tensor,
) -> tuple[int, ...]:  # fmt: skip
    mean, anchor, sample = states
    size = step_kernels._check(*signals, mean, anchor, sample, None, out)
    b, u, k = size[:3]
    table.check(_NAME, mean, u)
    for name in ("energy", "score_var"):
        t = getattr(found, name)
        if t.shape != (b,) or t.dtype != mean.dtype or t.device != mean.device or not t.is_contiguous():
            raise ValueError(f"{_NAME}: {name} must be contiguous {mean.dtype} [{b}] on {mean.device}")
    given = found.per_score
    if given.shape != (2, b) or given.dtype != torch.float64 or not given.is_contiguous():
        raise ValueError(
            f"{_NAME}: per_score must be contiguous float64 [2,{b}], got {given.dtype} {tuple(given.shape)}"
        )
    if found.scratch.shape != (b * k, 2 + u) or not found.scratch.is_contiguous():
        raise ValueError(f"{_NAME}: scratch must be contiguous [{b * k},{2 + u}], got {tuple(found.scratch.shape)}")
    if isinstance(denoiser, Tensor) and denoiser.shape != (b, u):
        raise ValueError(f"{_NAME}: the denoiser's variance must be [{b},{u}], got {tuple(denoiser.shape)}")
    if found.noise_var.shape not in ((), (1,), (b,)):
        raise ValueError(f"{_NAME}: noise_var must be 0-d or [{b}], got {tuple(found.noise_var.shape)}")
    return size


def _finish(found: Calibration, size: tuple[int, ...], table: PvdTable, probed: bool, denoiser: Prior | Tensor) -> None:
    """The second launch: energies added and calibrated."""
    b, u, k, nr = size[:4]
    none = found.energy
    white = isinstance(denoiser, Prior)
    own = (none, 0, 0) if isinstance(denoiser, Prior) else (denoiser, denoiser.stride(0), denoiser.stride(1))
    prior = denoiser.cell[::3] if isinstance(denoiser, Prior) else (none, 0)
    noise_b = found.noise_var.stride(0) if found.noise_var.numel() > 1 else 0
    with step_kernels.on(none.device):
        step_kernels.finish_kernel[(b,)](
            found.scratch, found.energy, none, none, found.score_var, found.per_score, found.noise_var, noise_b,
            *own, *prior, table.table, table.counter, table.levels, table.last, float(found.x_energy), float(nr),
            1.0 / found.entries, u, k, PROBE=probed, CALIBRATE=True, WHITE=white,
            LAGGED=found.lagged, PER_USER=table.levels > 1, BLOCK=step_kernels._BLOCK, num_warps=1,
        )  # fmt: skip
