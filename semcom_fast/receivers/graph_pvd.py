"""The inner iteration of parallel variational diffusion as a CUDA graph, one replay each.

The networks with their products run on static inputs; around them are at most five launches of ours, which read the
levels of iteration n in a table at a counter on the device, work in place, copy the means to the anchors where a level
ends, and advance the counter: a run of N iterations is N - 1 replays and nothing else.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import _backend
from ..ops._blocks import plain
from ..ops._levels import wrapped
from ..ops._register import OPS
from .graph import record, warm_up
from .graph_identity import identity, precision
from .pvd_config import PVDConfig
from .pvd_run import SAMPLE_STRIDE, STREAM_PROBE, Run, State
from .pvd_tables import next_variances

if TYPE_CHECKING:
    from .pvd import PVD
    from .pvd_results import PVDLevel

LIMIT = 4  # graphs that a receiver keeps; each holds the memory of one iteration


class PVDKernels(NamedTuple):
    """What a captured iteration calls: `pvd_update.run_table`, `.run_probe_table`, `pvd_captured.run_step`, `.run_score`
    of the Triton kernels."""

    update: Callable[..., None]
    probe: Callable[..., None]
    step: Callable[..., None]
    score: Callable[..., None]


def triton_kernels() -> PVDKernels:
    """Imported on first use, for Triton is optional."""
    from ..triton import pvd_captured, pvd_update

    return PVDKernels(pvd_update.run_table, pvd_update.run_probe_table, pvd_captured.run_step, pvd_captured.run_score)


def why_not(y: Tensor, config: PVDConfig) -> str | None:
    """None where the inner iterations of a run on y [B,K,Nr,T] can be captured, else the reason."""
    if y.device.type != "cuda":
        return f"the received signal is on {y.device} and a CUDA graph needs a CUDA device"
    backend = _backend.select("pvd_update", OPS["pvd_update"].homes, y.device)
    if backend != "triton":
        return f"the {backend} backend is selected and only the triton kernels read tables"
    return why_not_sizes(y, config)


def why_not_sizes(y: Tensor, config: PVDConfig) -> str | None:
    """The part of `why_not` that does not depend on the device."""
    from ..triton.pvd_channel_step import fits

    if config.exact_covariance:
        return "exact_covariance=True solves a system per block, in a library that may wait for the host"
    if not fits(y.shape[2], config.nt, y.shape[3]):
        return f"blocks of Nr={y.shape[2]}, Nt={config.nt}, T={y.shape[3]} exceed the tile of the captured kernel"
    return None if y.numel() else "there is nothing to receive"


def level_table(config: PVDConfig) -> Tensor:
    """The captured kernels' table, float64 on the CPU: row n has the levels of iteration n and whether a level ends there;
    row N tells what sigma is after the last iteration."""
    from ..triton._pvd_table import with_coefficients

    sigmas = torch.tensor(config.schedule(), dtype=torch.float64, device="cpu").reshape(config.J + 1, -1)
    spread = next_variances(config, sigmas)
    level = torch.arange(config.J - 1, -1, -1, device="cpu").repeat_interleave(config.Jin)
    level = torch.cat((level, level[-1:]))
    following = torch.cat((spread[level[1:-1]], spread.new_zeros(2, spread.shape[1])))
    border = sigmas.new_zeros(len(level), 1)
    border[config.Jin - 1 : -1 : config.Jin] = 1
    return with_coefficients(torch.stack((sigmas[level], sigmas[level + 1], following, border.expand_as(following)), 1))


class PVDStepGraph:
    """One inner iteration on static buffers. Made from a run whose first iteration is done (which readied everything and
    checked what the networks return), it serves this run and others of the same sizes, configuration and networks.

    Args:
        run: gives sizes; `load` copies its state, and that of any later run, into the buffers.
        kernels, recorder, first: what is captured, the capture, and how the first iteration here runs; a machine without
            a GPU can pass stand-ins (a recorder that returns its argument, a plain call).
    """

    def __init__(
        self,
        run: Run,
        kernels: PVDKernels | None = None,
        recorder: Callable[[Callable[[], None]], Callable[[], None]] = record,
        first: Callable[[Callable[[], None]], None] = warm_up,
    ) -> None:
        from ..triton._pvd_table import Prior, PvdTable

        self.owner, self.config = run.owner, run.config
        self.kernels = kernels or triton_kernels()
        self.recorder, self.first = recorder, first
        self.replay: Callable[[], None] | None = None
        self.warm = False
        self.held: list[Any] = []  # what the networks hold: their memory must outlive the graph
        c, y, device = self.config, run.y, run.y.device
        self.batch, self.rows = run.batch, y.shape[0]
        table = level_table(c)
        cells = torch.zeros(4, dtype=torch.int64, device=device)
        self.counter, self.seed, self.first_item = cells[:2], cells[2], cells[3]
        self.table = PvdTable(table.to(device), self.counter)
        self.sigma = run.sigmas[-1].clone()
        self.y = torch.empty_like(y, memory_format=torch.contiguous_format)
        self.h, self.d = (self._like(s) for s in (run.h, run.d))
        self.zeta_h, self.zeta_d = (self._cell(s.zeta) for s in (run.h, run.d))
        white = self.owner.denoiser_h.white_variance()
        self.prior = None
        if white is not None:
            var = self._cell(run._over_users(white, 2, torch.float64))[0].reshape(-1)
            self.prior = Prior.of(var, self.table.table)
        self.one_op = self.prior is not None and c.lagged_noise and c.L == 1
        self._make_results(run)

    def _make_results(self, run: Run) -> None:
        """Buffers of what an iteration finds: scores, energies, effective noise variances, the probe point."""
        from ..triton.pvd_captured import Calibration

        c, u = self.config, self.config.users
        size = run.blocks, c.nt, run.slots
        self.score_x = self.y.new_empty((self.rows, u, *size))
        self.score_h = torch.empty_like(self._rows(self.h.sample)[: 0 if self.one_op else self.rows])
        self.point = torch.empty_like(self._rows(self.d.sample))
        energy, score_var = self.y.new_zeros((2, self.rows), dtype=run.real).unbind()
        scratch = self.y.new_empty((self.rows * run.blocks, 2 + u), dtype=torch.float64)
        per_item = isinstance(run.noise_var, Tensor) and run.noise_var.numel() > 1
        self.noise_var = scratch.new_empty(self.rows if per_item else 1)
        self.found = Calibration(
            noise_var=self.noise_var, x_energy=c.power * run.blocks * c.nt * run.slots,
            entries=run.nr * run.blocks * run.slots, energy=energy, score_var=score_var,
            per_score=scratch.new_empty(2, self.rows), scratch=scratch, lagged=c.lagged_noise,
        )  # fmt: skip

    @staticmethod
    def _like(state: State) -> State:
        mean, anchor, sample = (
            torch.empty_like(t, memory_format=torch.contiguous_format) for t in (state.mean, state.anchor, state.sample)
        )
        return State(mean, anchor, sample, state.zeta, state.stream)

    def _cell(self, level: float | Tensor) -> tuple[Tensor, int, int, int]:
        """A level as the kernels read it, at an address of its own; numbers per user are [1,U]."""
        if isinstance(level, Tensor):
            level = level.to(torch.float64).contiguous()
            return level, 0, 0, int(level.numel() > 1)
        return torch.full((), level, dtype=torch.float64, device=self.counter.device), 0, 0, 0

    def _rows(self, t: Tensor) -> Tensor:
        return t.flatten(0, 1) if self.config.L > 1 else t

    def load(self, run: Run) -> None:
        """Take over a run after its first iteration; copies on the device alone."""
        self.y.copy_(run.y)
        for mine, its in ((self.h, run.h), (self.d, run.d)):
            for name in ("mean", "anchor", "sample"):
                getattr(mine, name).copy_(getattr(its, name))
        for cell, value in ((self.noise_var, run.noise_var), (self.seed, run.seed), (self.first_item, run.first_item)):
            _set(cell, value)
        self.counter.zero_()
        self.counter[:1] += 1
        self.found.energy.copy_(run.energy)
        self.found.score_var.copy_(run.score_var)
        self.sigma.copy_(run.sigmas[self.config.J - 1 - 1 // self.config.Jin])

    def step(self) -> None:
        """The next inner iteration: the first one runs as it is, the second is captured."""
        if self.replay is None:
            if not self.warm:
                self.warm = True
                return self.first(self._update)
            self.replay = self.recorder(self._update)
        self.replay()
        return None

    def _update(self) -> None:
        """The body of the graph."""
        c, draw = self.config, {"seed": self.seed, "first_item": self.first_item}
        d0, var_d, x, pull_d = self.owner.decode_with_vjp(self._rows(self.d.sample), self.sigma, clamp=False)
        probe = self._probe(d0, var_d, draw) if c.calibration == "secant" else None
        signals = _real(self.y), _real(x), None if probe is None else _real(probe)
        moving = draw if c.sample_noise else draw | {"seed": None}
        if self.one_op:
            states = tuple(map(_real, (self.h.mean, self.h.anchor, self.h.sample)))
            self.kernels.step(
                signals, states, _real(self.score_x), self.zeta_h, self.prior, self.table, self.found,
                stream=self.h.stream, **moving,
            )  # fmt: skip
        else:
            self._move(self.h, self.zeta_h, *self._score(signals), self.found.per_score[0], moving)
        score_d = pull_d(self.score_x)
        self._move(self.d, self.zeta_d, d0, score_d, self.found.per_score[1], moving, last=True)

    def _probe(self, d0: Tensor, var_d: Tensor, draw: dict[str, Any]) -> Tensor:
        """The codeword at the probe point, sample by sample of L: their draws differ by stream."""
        d0, b, u = plain(d0), self.batch, self.config.users
        for i in range(self.config.L):
            mine = slice(i * b, (i + 1) * b)
            var = var_d[mine]
            self.kernels.probe(
                d0[mine].reshape(b, u, -1), (var, 0, *var.stride()), self.point[mine].view(b, u, -1), self.table,
                stream=STREAM_PROBE + SAMPLE_STRIDE * i, **draw,
            )  # fmt: skip
        return self.owner.encode(self.point)

    def _score(self, signals: tuple[Tensor, Tensor, Tensor | None]) -> tuple[Tensor | None, Tensor]:
        """The denoised channel (None where the update denoises itself) and its score, pulled back where it is not."""
        sample = self._rows(self.h.sample)
        outs = _real(self.score_h), _real(self.score_x)
        if self.prior is not None:
            self.kernels.score(signals, _real(sample), *outs, self.prior, self.table, self.found)
            return None, self.score_h
        h0, var_h, pull_h = self.owner.denoiser_h.with_vjp(sample, self.sigma, clamp=False)
        self.kernels.score(signals, _real(h0), *outs, var_h, self.table, self.found)
        return h0, pull_h(self.score_h)

    def _move(
        self, state: State, zeta: tuple, denoised: Tensor | None, score: Tensor, per_score: Tensor, draw: dict[str, Any],
        last: bool = False,
    ) -> None:  # fmt: skip
        many, b = self.config.L, self.batch
        prior = self.prior if denoised is None else None
        shared = zeta[3] == 0 and self.table.levels == 1 and (prior is None or prior.stride == 0)
        groups = 1 if shared else self.config.users

        def view(t: Tensor, lead: tuple[int, ...]) -> Tensor:
            return _real(t).reshape(*lead, groups, -1)

        samples = (None if t is None else view(t, (many, b)) for t in (state.sample, denoised, score))
        self.kernels.update(
            view(state.mean, (b,)), view(state.anchor, (b,)), *samples, zeta, (per_score, b if many > 1 else 0, 1, 0),
            self.table, prior=prior, stream=state.stream, complex_draw=state.mean.is_complex(),
            level_out=self.sigma.view(-1) if last else None, **draw,
        )  # fmt: skip

    def loop(
        self, run: Run, on_level: "Callable[[PVDLevel], None] | None", tick: Callable[[], Any] | None = None
    ) -> None:
        """All iterations after the first one; leaves the means with the run."""
        c = self.config
        device = self.y.device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.load(run)
            for n in range(1, c.J * c.Jin):
                self.step()
                if tick is not None:
                    tick()
                if on_level is not None and n % c.Jin == c.Jin - 1:
                    self._give(run, copies=True)
                    on_level(run.end_level(c.J - 1 - n // c.Jin))
        self._give(run, copies=False)

    def _give(self, run: Run, copies: bool) -> None:
        """Means, energies and noise variances; as copies where the buffers go on changing."""
        found = self.h.mean, self.d.mean, self.found.energy, self.found.score_var
        run.h.mean, run.d.mean, run.energy, run.score_var = (t.clone() for t in found) if copies else found


def _set(cell: Tensor, value: float | Tensor) -> None:
    """A number by a fill, which copies nothing from the host."""
    if isinstance(value, Tensor):
        cell.copy_(value)
    else:
        cell.fill_(value if cell.is_floating_point() else wrapped(value))  # type: ignore[arg-type]


def _real(t: Tensor) -> Tensor:
    t = plain(t)
    return torch.view_as_real(t) if t.is_complex() else t


class PVDGraphs:
    """The graphs of one receiver, kept from run to run as long as sizes, configuration and networks are the same."""

    def __init__(self, limit: int = LIMIT, make: Callable[[Run], PVDStepGraph] = PVDStepGraph) -> None:
        self.limit, self.make = limit, make
        self.kept: dict[Any, PVDStepGraph] = {}

    def of(self, run: Run) -> PVDStepGraph:
        """The graph for a run whose first iteration is done; where the networks may hide what they read, a new one."""
        owner: PVD = run.owner
        known = identity([*owner.encode.callables, *owner.denoiser_h.callables, *owner.denoiser_d.callables])
        # autocast drops its casts of weights on leaving, so that the graph would outlive them
        if known is None or torch.is_autocast_enabled(run.y.device.type):
            return self.make(run)
        per_item = isinstance(run.noise_var, Tensor) and run.noise_var.numel() > 1
        key = (run.config, run.y.shape, run.y.dtype, run.y.device, per_item, precision(), known[0])
        graph = self.kept.pop(key, None) or self.make(run)
        graph.held = known[1]
        self.kept[key] = graph
        while len(self.kept) > self.limit:
            del self.kept[next(iter(self.kept))]
        return graph
