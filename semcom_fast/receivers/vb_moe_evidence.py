"""The update of q(z): every expert's evidence for a channel estimate, from a few noisings of it."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..ops._checks import non_finite_row
from . import unchecked
from .vb_moe_experts import Experts
from .vb_moe_run import DeviceTables, Run, Schedules

# Rows noised at once: 8 steps and 4 experts of 16 x 64 channels are 20 MB of complex64 on the CPU.
BLOCK_CPU, BLOCK_GPU = 64, 512


class EvidenceInputs(NamedTuple):
    """Tensors of one pass over N consecutive channels; rows [n]: those whose evidence is wanted (None: all)."""

    h: Tensor
    yv: Tensor
    u: Tensor
    s: Tensor
    noise_var: Tensor
    rows: Tensor | None = None


def evidence(
    schedules: Schedules,
    tables: DeviceTables,
    experts: Experts,
    chosen: Sequence[int],
    inputs: EvidenceInputs,
    seed: int | Tensor,
    first_item: int | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """L and D [N,E] of the chosen experts (rows that were not asked for hold no meaning), and eps [N,S,E,Nr,Nt].

    seed and first_item of the Philox draws are numbers, or one-element tensors that a captured graph reads.
    """
    h, yv, u, s, noise_var, rows = inputs
    _, _, steps, alpha_bar, w = tables
    noised = unchecked.renoise(h, steps, alpha_bar, seed, first_item, None)
    asked = noised if rows is None else noised.index_select(0, rows)
    by_step = asked.transpose(0, 1).contiguous()
    shape = (h.shape[0], len(steps), len(chosen), *h.shape[1:])
    eps = h.new_empty(shape) if rows is None else h.new_zeros(shape)
    together = experts.bank is not None and len(chosen) == len(experts)
    for i, t in enumerate(schedules.steps):
        if together:
            _put(eps[:, i], rows, experts.all(by_step[i], t))
            continue
        for e, k in enumerate(chosen):
            _put(eps[:, i, e], rows, experts.one(k, by_step[i], t))
    likelihood, data = unchecked.elbo_reduce(
        eps, h, steps, alpha_bar, w, yv, u, s, noise_var, schedules.tau_index, seed, first_item, None
    )
    return likelihood, data, eps


def _put(out: Tensor, rows: Tensor | None, eps: Tensor) -> None:
    if rows is None:
        out.copy_(eps)
    else:
        out.index_copy_(0, rows, eps)


def block_inputs(run: Run, h: Tensor, lo: int, hi: int, rows: Tensor | None) -> EvidenceInputs:
    """The tensors of channels lo..hi-1; rows count from lo."""
    own = run.own_pilots
    return EvidenceInputs(
        h[lo:hi], run.yv[lo:hi], run.u[lo:hi] if own else run.u, run.s[lo:hi] if own else run.s, run.noise_var[lo:hi],
        rows,
    )  # fmt: skip


def check_evidence(
    schedules: Schedules, chosen: Sequence[int], inputs: EvidenceInputs, both: Tensor, eps: Tensor, lo: int
) -> None:
    """Raise, naming expert, step and item, where L or D (both [2,N,E]) of a row that was asked for is not finite."""
    asked = both.transpose(0, 1)
    row = non_finite_row(asked if inputs.rows is None else asked.index_select(0, inputs.rows))
    if row is None:
        return
    row = row if inputs.rows is None else int(inputs.rows[row])
    for i, t in enumerate(schedules.steps):
        for e, k in enumerate(chosen):
            if non_finite_row(eps[row : row + 1, i, e]) is not None:
                where = f"diffusion step {t} for item {lo + row}, in the evidence pass"
                raise ValueError(f"VBMoE.run: expert {k} returned NaN or Inf at {where}")
    raise ValueError(f"VBMoE.run: the evidence of item {lo + row} overflowed")
