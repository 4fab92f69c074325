"""The update of q(H): T diffusion steps of a set of channels under fixed expert weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..ops._checks import non_finite_row
from . import unchecked
from .vb_moe_experts import Experts
from .vb_moe_run import DeviceTables, Run


@dataclass(frozen=True)
class Plan:
    """Which expert sees which rows of a chain.

    segments: (expert, first row, last row + 1), each row with one expert of weight 1; or else `columns`: the experts of
    eps [N,E,...], each on all rows or, where `partial`, on those its index tensor names. x0: the likelihood's residual.
    """

    x0: bool
    segments: tuple[tuple[int, int, int], ...] = ()
    columns: tuple[int, ...] = ()
    partial: tuple[bool, ...] = ()


class ChainInputs(NamedTuple):
    """Tensors of a chain over N rows: h [N,Nr,Nt] is H_T; weights [N,E]; one index [n] per partial column."""

    h: Tensor
    weights: Tensor
    yv: Tensor
    u: Tensor
    s: Tensor
    noise_var: Tensor
    lam: Tensor
    indices: tuple[Tensor, ...] = ()

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them in one row."""
        return (self.h, self.weights, self.yv, self.u, self.s, self.noise_var, self.lam, *self.indices)

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> "ChainInputs":
        """The inverse of `tensors`."""
        h, weights, yv, u, s, noise_var, lam, *indices = tensors
        return ChainInputs(h, weights, yv, u, s, noise_var, lam, tuple(indices))


class Chain(NamedTuple):
    """A chain to run: its plan, its tensors, and the item of each of its rows."""

    plan: Plan
    inputs: ChainInputs
    items: list[int]

    def forwards(self, experts: int) -> np.ndarray:
        """Rows that each expert sees in every step, [K]."""
        count = np.zeros(experts, dtype=np.int64)
        for k, lo, hi in self.plan.segments:
            count[k] += hi - lo
        indices = iter(self.inputs.indices)
        for k, some in zip(self.plan.columns, self.plan.partial, strict=True):
            count[k] += next(indices).numel() if some else len(self.items)
        return count


class Predictor:
    """eps [N,E,Nr,Nt] of a plan, in one buffer for the whole chain."""

    def __init__(self, experts: Experts, plan: Plan, inputs: ChainInputs) -> None:
        self.experts, self.plan = experts, plan
        h, weights = inputs.h, inputs.weights
        shape = (h.shape[0], weights.shape[1], *h.shape[1:])
        self.predict: Callable[[Tensor, int], Tensor] = self._alone
        if plan.segments:
            if len(plan.segments) > 1:
                self.eps = h.new_empty(shape)
                self.parts = [(k, lo, hi, self.eps[lo:hi, 0]) for k, lo, hi in plan.segments]
                self.predict = self._own if self._equal_shares() else self._segments
        elif experts.bank is not None and plan.columns == tuple(range(len(experts))) and not any(plan.partial):
            self.predict = experts.all
        else:
            self.eps = h.new_zeros(shape)  # weight 0 times what was never written must be 0
            indices = iter(inputs.indices)
            self.columns = [
                (k, next(indices) if some else None, self.eps[:, e])
                for e, (k, some) in enumerate(zip(plan.columns, plan.partial, strict=True))
            ]
            self.predict = self._dense

    def _equal_shares(self) -> bool:
        """Whether every expert has a segment of the same length, in order, and the bank takes them at once."""
        n = self.plan.segments[0][2]
        want = tuple((k, k * n, (k + 1) * n) for k in range(len(self.experts)))
        return self.experts.each is not None and self.plan.segments == want

    def _alone(self, h: Tensor, t: int) -> Tensor:
        return self.experts.one(self.plan.segments[0][0], h, t).unsqueeze(1)

    def _segments(self, h: Tensor, t: int) -> Tensor:
        for k, lo, hi, out in self.parts:
            out.copy_(self.experts.one(k, h[lo:hi], t))
        return self.eps

    def _own(self, h: Tensor, t: int) -> Tensor:
        count = len(self.experts)
        eps = self.experts.all_own(h.unflatten(0, (count, -1)).transpose(0, 1), t)
        self.eps.unflatten(0, (count, -1)).squeeze(2).copy_(eps.transpose(0, 1))
        return self.eps

    def _dense(self, h: Tensor, t: int) -> Tensor:
        for k, index, out in self.columns:
            if index is None:
                out.copy_(self.experts.one(k, h, t))
            else:
                out.index_copy_(0, index, self.experts.one(k, h.index_select(0, index), t))
        return self.eps

    def culprit(self, eps: Tensor, row: int) -> int | None:
        """The expert whose prediction for this row is not finite."""
        for e in range(eps.shape[1]):
            if non_finite_row(eps[row : row + 1, e]) is not None:
                if self.plan.segments:
                    return next(k for k, lo, hi in self.plan.segments if lo <= row < hi)
                return self.plan.columns[e]
        return None


def run_chain(
    tables: DeviceTables,
    experts: Experts,
    plan: Plan,
    inputs: ChainInputs,
    tick: Callable[[], Any] | None = None,
    look: Callable[[Predictor, int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """H_0 [N,Nr,Nt] from H_T. tick is called after every step; look(predictor, t,
    eps, h) sees every step."""
    beta, alpha_bar = tables.beta, tables.alpha_bar
    predictor = Predictor(experts, plan, inputs)
    predict, step = predictor.predict, unchecked.pilot_posterior_step
    h, weights, yv, u, s, noise_var, lam, _ = inputs
    for t in range(len(beta) - 1, 0, -1):
        eps = predict(h, t)
        h = step(h, eps, weights, yv, u, s, noise_var, alpha_bar[t], beta[t], lam, plan.x0)
        if tick is not None:
            tick()
        if look is not None:
            look(predictor, t, eps, h)
    return h


def explain(run: Run, experts: Experts, chain: Chain) -> None:
    """Run a chain that ended non-finite again, step by step, and raise at the first step that shows why."""

    def look(predictor: Predictor, t: int, eps: Tensor, h: Tensor) -> None:
        row = non_finite_row(eps)
        if row is not None:
            raise ValueError(f"VBMoE.run: expert {predictor.culprit(eps, row)} returned NaN or Inf at diffusion step {t} "
                             f"for item {chain.items[row]}")  # fmt: skip
        row = non_finite_row(h)
        if row is not None:
            raise ValueError(f"VBMoE.run: the channel of item {chain.items[row]} overflowed at diffusion step {t}")

    h = run_chain(run.tables, experts, chain.plan, chain.inputs, look=look)
    row = non_finite_row(h)
    raise ValueError("VBMoE.run: a chain ended with NaN or Inf, but not when it was run again: is an expert's result random?"
                     if row is None else f"VBMoE.run: the channel of item {chain.items[row]} is not finite")  # fmt: skip


def first_chain(run: Run, count: int) -> Chain:
    """One chain per expert for every channel, with the residual at H_t and an unscaled likelihood score."""

    def tiled(t: Tensor) -> Tensor:
        return t.repeat(count, *(1,) * (t.ndim - 1))

    rows, own = run.rows, run.own_pilots
    h = tiled(run.start)
    inputs = ChainInputs(
        h, run.s.new_ones(count * rows, 1), tiled(run.yv), tiled(run.u) if own else run.u, tiled(run.s) if own else run.s,
        tiled(run.noise_var), torch.ones_like(run.lam).repeat(count),
    )  # fmt: skip
    plan = Plan(x0=False, segments=tuple((k, k * rows, (k + 1) * rows) for k in range(count)))
    return Chain(plan, inputs, list(range(rows)) * count)


def chains(run: Run, weights: np.ndarray, used: np.ndarray, rows: np.ndarray) -> list[Chain]:
    """The chains of these rows under weights [B,K], evaluating the experts of used [B,K]: rows with one expert are sorted
    by it and run without gathers; the others mix. Rows whose likelihood differs in form run apart."""
    found = []
    x0 = np.asarray(run.x0, dtype=bool)
    for form in (True, False):
        mine = rows[x0[rows] == form]
        one = used[mine].sum(1) == 1
        if one.any():
            found.append(_sorted_chain(run, form, used.argmax(1), mine[one]))
        if not one.all():
            found.append(_mixed_chain(run, form, weights, used, mine[~one]))
    return found


def _sorted_chain(run: Run, x0: bool, best: np.ndarray, rows: np.ndarray) -> Chain:
    """Every row under its one expert."""
    rows = rows[np.argsort(best[rows], kind="stable")]
    best = best[rows]
    bounds = [0, *(np.flatnonzero(np.diff(best)) + 1).tolist(), len(rows)]
    segments = tuple((int(best[lo]), lo, hi) for lo, hi in pairwise(bounds))
    return _chain(run, Plan(x0, segments=segments), rows, np.ones((len(rows), 1)))


def _mixed_chain(run: Run, x0: bool, weights: np.ndarray, used: np.ndarray, rows: np.ndarray) -> Chain:
    """Rows under several experts, each expert on the rows that use it."""
    columns = np.flatnonzero(used[rows].any(0))
    partial = tuple(not bool(used[rows, k].all()) for k in columns)
    picked = [np.flatnonzero(used[rows, k]) for k, some in zip(columns, partial, strict=True) if some]
    indices = tuple(torch.from_numpy(index).to(run.start.device) for index in picked)
    return _chain(
        run, Plan(x0, columns=tuple(columns.tolist()), partial=partial), rows, weights[np.ix_(rows, columns)], indices
    )


def _chain(run: Run, plan: Plan, rows: np.ndarray, weights: np.ndarray, indices: tuple[Tensor, ...] = ()) -> Chain:
    pick = _picker(rows, run.rows, run.start.device)
    inputs = ChainInputs(
        pick(run.start), torch.from_numpy(weights).to(run.s), pick(run.yv), pick(run.u) if run.own_pilots else run.u,
        pick(run.s) if run.own_pilots else run.s, pick(run.noise_var), pick(run.lam), indices,
    )  # fmt: skip
    return Chain(plan, inputs, rows.tolist())


def _picker(rows: np.ndarray, count: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Rows of a tensor; the tensor itself where all are wanted in order."""
    if len(rows) == count and bool((rows == np.arange(count)).all()):
        return lambda t: t
    index = torch.from_numpy(rows).to(device)
    return lambda t: t.index_select(0, index)


def pruned(rho: np.ndarray, prune: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a chain and which experts it evaluates, [B,K]: responsibilities below `prune`, but for the largest,
    become 0 and the others sum to 1; prune = 0 keeps all as they are."""
    if prune == 0:
        return rho, np.ones_like(rho, dtype=bool)
    used = (rho >= prune) | (rho == rho.max(1, keepdims=True))
    kept = np.where(used, rho, 0)
    return kept / kept.sum(1, keepdims=True), used
