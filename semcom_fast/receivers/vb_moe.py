"""Channel estimation by a mixture of diffusion experts under variational Bayes."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import require_extra
from ..ops._checks import non_finite_row, tolerate_non_finite
from ..ops._levels import seed_cell
from ..ops.dirichlet_responsibilities import dirichlet_responsibilities
from ..reference import PilotSVD
from . import graph as cuda_graph
from .graph_identity import identity, precision
from .vb_moe_chain import Chain, ChainInputs, chains, explain, first_chain, pruned, run_chain
from .vb_moe_config import VBMoEConfig
from .vb_moe_evidence import BLOCK_CPU, BLOCK_GPU, EvidenceInputs, block_inputs, check_evidence, evidence
from .vb_moe_experts import Expert, ExpertBank, Experts
from .vb_moe_run import Run, Schedules, prepare

if TYPE_CHECKING:
    from jaxtyping import Complex

OnIteration = Callable[[int, Tensor, Tensor], Any]


class VBMoEResult(NamedTuple):
    """h [B,Nr,Nt]: estimated channels; responsibilities rho [B,K]; gamma: Dirichlet parameters [B,K], or [K] where pi is
    shared; iterations [B] int64: outer iterations of each channel; log_evidence L + eta D [B,K] in nats (NaN for K = 1,
    which needs none); calls [K] int64: rows that each expert was evaluated on, in all."""

    h: Tensor
    responsibilities: Tensor
    gamma: Tensor
    iterations: Tensor
    log_evidence: Tensor
    calls: Tensor


class VBMoE:
    r"""Estimate channels from pilots with K diffusion models, one per propagation environment, weighted by evidence.

    Signal model: Y = H P + N, N entries CN(0, noise_var), H [Nr,Nt] with E|h|^2 = 1 from one of K environments, P known.
    Every outer iteration runs one deterministic chain of T diffusion steps from H_T under the responsibilities of the
    moment (`pilot_posterior_step`), noises its end to a few steps, scores every expert there (`renoise`, `elbo_reduce`)
    and updates the responsibilities (`dirichlet_responsibilities`). With K = 1 it is the standard diffusion estimator: one
    chain. Not differentiable.

    Args:
        experts: K callables (h_t complex [N,Nr,Nt], t = 1..T) -> eps like h_t, the noise in h_t = sqrt(abar_t) h +
            sqrt(1 - abar_t) eps; or an ExpertBank, which takes all experts at once; or one callable.
        config: schedule and variants; see VBMoEConfig.

    Attributes:
        partial: VBMoEResult after the last finished iteration of a run that an exception or Ctrl-C cut short (None
            before its first iteration); after a whole run, its result.

    Source: equations (24)-(40) of "Mixture-of-Experts Diffusion Models for Adaptive Massive MIMO Channel
    Estimation via Variational Bayesian Inference".
    """

    def __init__(self, experts: "Sequence[Expert] | ExpertBank | Expert", config: VBMoEConfig | None = None) -> None:
        self.experts, self.config = Experts(experts), config or VBMoEConfig()
        prior = self.config.gamma0
        if np.ndim(prior) and len(prior) != len(self.experts):  # type: ignore[arg-type]
            raise ValueError(f"VBMoE: gamma0 has {len(prior)} entries for {len(self.experts)} experts")  # type: ignore[arg-type]
        self.schedules = Schedules(self.config)
        self.replays = cuda_graph.Replays()
        self.partial: VBMoEResult | None = None

    def run(
        self,
        y: "Complex[Tensor, 'B Nr Np']",
        pilots: "Complex[Tensor, '... Nt Np'] | PilotSVD",
        noise_var: float | Tensor,
        *,
        seed: int = 0,
        first_item: int = 0,
        start: "Complex[Tensor, 'B Nr Nt'] | None" = None,
        on_iteration: OnIteration | None = None,
        progress: bool = False,
    ) -> VBMoEResult:
        """Estimate a batch of channels.

        Args:
            y: received pilots [B,Nr,Np], complex64 or complex128. pilots: [Nt,Np], or [B,Nt,Np], or their `pilot_svd`
                (kept by a caller who uses the same pilots again). noise_var: E|n|^2 per entry, a number or [B].
            seed: of the Philox draws: H_T is stream 7, step 0; the noise of the evidence at step t is stream 8, step t.
            first_item: index of channel 0, so that a split batch draws the same numbers. start: H_T itself.
            on_iteration: called with (iteration 1.., rho [B,K], h [B,Nr,Nt]) after every outer iteration.
            progress: show a bar (extra `demo`).

        Raises:
            ValueError: shapes, noise_var <= 0, NaN in y, pilots that are NaN or all zero; an expert that returns NaN (it is
            named with step and item) or another shape. TypeError: dtypes and devices, also of what an expert returns.
            The values of a chain are looked at once, at its end; `partial` holds the iterations before.
        """
        self.partial = None
        with torch.no_grad(), tolerate_non_finite():
            run = prepare(self.schedules, self.config, y, pilots, noise_var, seed, first_item, start)
            bar: Any = nullcontext()
            if progress:
                bar = require_extra("tqdm.auto", "demo").tqdm(total=0, desc="VBMoE", unit="step")
            with bar:
                outer = _Outer(self, run, bar if progress else None)
                for iteration in outer.iterate():
                    self.partial = outer.result()
                    if on_iteration is not None:
                        on_iteration(iteration, outer.rho, outer.h)
            return outer.result()


class _Outer:
    """The outer iterations of one run: rho, gamma, evidence and channels of the whole batch, and what is still moving."""

    def __init__(self, owner: VBMoE, run: Run, bar: Any) -> None:
        self.owner, self.run, self.bar, self.config = owner, run, bar, owner.config
        self.experts, count = owner.experts, len(owner.experts)
        s, rows = run.s, run.rows
        prior = s.new_tensor(self.config.gamma0)
        self.gamma0 = prior.expand(count)
        self.gamma = self.gamma0 if self.config.shared else self.gamma0.expand(rows, count)
        self.rho = s.new_full((rows, count), 1 / count)
        # what the next iteration decides by, without a wait: the same number in float64
        self.rho_on_host = np.full((rows, count), torch.tensor(1 / count, dtype=s.dtype, device="cpu").item())
        self.likelihood = self.data = s.new_full((rows, count), torch.nan)
        self.h = run.start
        self.moving = np.ones(rows, dtype=bool)
        self.iterations = np.zeros(rows, dtype=np.int64)
        self.calls = np.zeros(count, dtype=np.int64)
        self.last: tuple[np.ndarray, np.ndarray] | None = None  # weights and experts of the chain behind each h
        self.who: tuple[Any, Sequence[Any]] = None, ()  # of the experts: what graphs take for granted, and read
        self.replays = self._graphs()

    def _graphs(self) -> cuda_graph.Replays | None:
        if not self.config.graph:
            return None
        why_not = cuda_graph.why_not_chain(self.run.start)
        if why_not is not None:
            warnings.warn(f"VBMoE: no CUDA graph, because {why_not}; running without", stacklevel=4)
            return None
        experts = self.experts.members if self.experts.bank is None else [self.experts.bank]
        known = identity(experts)
        # autocast drops its casts of weights on leaving, so that graphs would outlive them
        if known is None or torch.is_autocast_enabled(self.run.start.device.type):
            return self.owner.replays.alike()
        self.who = (known[0], precision()), known[1]
        return self.owner.replays

    def _replayed(self, what: Any, body: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> Any:
        """body(*inputs) as a graph, of these experts as they are."""
        assert self.replays is not None
        return self.replays((what, self.who[0]), body, inputs, self.who[1])

    def result(self) -> VBMoEResult:
        """Where things stand."""
        device = self.h.device
        return VBMoEResult(
            self.h, self.rho, self.gamma.contiguous(), torch.from_numpy(self.iterations.copy()).to(device),
            self.likelihood + self.config.eta * self.data, torch.from_numpy(self.calls.copy()),
        )  # fmt: skip

    def iterate(self) -> Iterator[int]:
        """Yields the number of every finished iteration."""
        iteration = 0
        if not self.run.rows:
            return
        if len(self.experts) == 1:
            self._standard()
            yield 1
            return
        if self.config.init == "per_expert":
            self._first_pass()
            iteration = 1
            yield 1
        while iteration < self.config.iterations and self.moving.any():
            iteration += 1
            self._update()
            yield iteration

    def _standard(self) -> None:
        """K = 1: rho = 1 whatever the evidence."""
        everything = np.ones((self.run.rows, 1))
        self._run_chains(everything, everything > 0, np.arange(self.run.rows))
        self.gamma = self.gamma0 + (self.run.rows if self.config.shared else self.rho)
        self.iterations[:] = 1

    def _first_pass(self) -> None:
        """One chain per expert, each scored by that expert; the best one's channel is the estimate so far."""
        run, count = self.run, len(self.experts)
        ends = self._end_of(first_chain(run, count)).unflatten(0, (count, run.rows))
        found = [self._evidence(ends[k], [k], None) for k in range(count)]
        self.likelihood, self.data = (torch.cat([pair[i] for pair in found], 1) for i in range(2))
        self.rho, self.gamma = self._responsibilities()
        self.rho_on_host = self.rho.numpy(force=True).astype(np.float64)
        self.h = ends[self.rho.argmax(1), torch.arange(run.rows, device=ends.device)]
        self.iterations[:] = 1

    def _update(self) -> None:
        """q(H), q(z) and q(pi), for the channels that still move."""
        weights, used = pruned(self.rho_on_host, self.config.prune)
        fresh = self.moving
        if self.last is not None and self.config.tolerance > 0:  # the same weights would give the same channel again
            fresh = fresh & ((weights != self.last[0]) | (used != self.last[1])).any(1)
        self.last = weights, used
        if fresh.any():
            rows = np.flatnonzero(fresh)
            self._run_chains(weights, used, rows)
            found = self._evidence(self.h, range(len(self.experts)), None if fresh.all() else fresh)
            keep = self._mask(fresh)
            self.likelihood, self.data = (
                torch.where(keep, new, old) for new, old in zip(found, (self.likelihood, self.data), strict=True)
            )
        rho, gamma = self._responsibilities()
        self.iterations[self.moving] += 1
        change = (rho - self.rho).abs().amax(1, keepdim=True)
        if not self.config.shared:
            keep = self._mask(self.moving)
            rho, gamma = torch.where(keep, rho, self.rho), torch.where(keep, gamma, self.gamma)
        self.rho, self.gamma = rho, gamma
        # one wait for both decisions: which channels go on, and which experts they take
        both = torch.cat((rho, change), 1).numpy(force=True)
        self.rho_on_host, still = both[:, :-1].astype(np.float64), both[:, -1] >= self.config.tolerance
        if self.config.shared:
            self.moving[:] = bool(still.any())
        else:
            self.moving &= still

    def _mask(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows)[:, None].to(self.h.device)

    def _responsibilities(self) -> tuple[Tensor, Tensor]:
        c = self.config
        return dirichlet_responsibilities(
            self.likelihood, self.data, self.gamma0, gamma=self.gamma, eta=c.eta, shared=c.shared
        )

    def _run_chains(self, weights: np.ndarray, used: np.ndarray, rows: np.ndarray) -> None:
        """New channels for these rows."""
        h = self.h
        for chain in chains(self.run, weights, used, rows):
            end = self._end_of(chain)
            whole = chain.items == list(range(self.run.rows))
            h = end if whole else h.index_copy(0, torch.tensor(chain.items, device=h.device), end)
        self.h = h

    def _end_of(self, chain: Chain) -> Tensor:
        """H_0 of a chain; the only look at its values."""
        run, experts, plan = self.run, self.experts, chain.plan
        steps = self.config.steps
        self.calls += chain.forwards(len(experts)) * steps
        tick = None
        if self.bar is not None:
            self.bar.total += steps
            tick = self.bar.update
        if self.replays is None:
            h = run_chain(run.tables, experts, plan, chain.inputs, tick)
        else:
            tables = run.tables

            def body(*tensors: Tensor) -> tuple[Tensor, ...]:
                return (run_chain(tables, experts, plan, ChainInputs.of(tensors)),)

            h = self._replayed(plan, body, chain.inputs.tensors())[0]
            if tick is not None:
                tick(steps)
        if non_finite_row(h) is not None:
            explain(run, experts, chain)
        return h

    def _evidence(self, h: Tensor, chosen: Sequence[int], fresh: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """L and D [B,E] of the chosen experts; for the rows of `fresh` alone, the others hold no meaning."""
        run, rows = self.run, self.run.rows
        size = BLOCK_CPU if h.device.type == "cpu" else BLOCK_GPU
        found = h.new_zeros((2, rows, len(chosen)), dtype=run.s.dtype)
        for lo in range(0, rows, size):
            hi = min(lo + size, rows)
            index = None
            if fresh is not None and not fresh[lo:hi].all():
                if not fresh[lo:hi].any():
                    continue
                index = torch.from_numpy(np.flatnonzero(fresh[lo:hi])).to(h.device)
            inputs = block_inputs(run, h, lo, hi, index)
            likelihood, data, eps = self._block_evidence(tuple(chosen), inputs, run.first_item + lo)
            found[0, lo:hi], found[1, lo:hi] = likelihood, data
            self.calls[list(chosen)] += (hi - lo if index is None else index.numel()) * len(run.schedules.steps)
            check_evidence(run.schedules, chosen, inputs, found[:, lo:hi], eps, lo)
        return found[0], found[1]

    def _block_evidence(
        self, chosen: tuple[int, ...], inputs: EvidenceInputs, first_item: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        run, experts = self.run, self.experts
        if self.replays is None:
            return evidence(run.schedules, run.tables, experts, chosen, inputs, run.seed, first_item)
        schedules, tables = run.schedules, run.tables

        def body(seed: Tensor, item: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            return evidence(schedules, tables, experts, chosen, EvidenceInputs(*tensors), seed, item)

        cells = [seed_cell(value, inputs.h.device) for value in (run.seed, first_item)]
        tensors = [t for t in inputs if t is not None]  # only the last may be missing
        return self._replayed(("evidence", chosen, len(tensors)), body, [*cells, *tensors])
