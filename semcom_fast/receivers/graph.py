"""Diffusion loops as CUDA graphs, replayed: no Python, no launch overhead, no wait for the host.

StepGraph holds one update of water-filling and replays it once per step; Replays keeps whole chains of a receiver that is
called again and again. In a StepGraph, what changes from update to update (levels, guidance weights, solver ratios, noise,
the Philox step) is read from device tables at a counter on the device, which the update's last kernel advances; everything
else has a fixed address.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import _backend
from ..ops._register import OPS

if TYPE_CHECKING:
    from .waterfill_authors import AuthorsFading
    from .waterfill_ddim import Waterfill
    from .waterfill_run import Run


class TableKernels(NamedTuple):
    """Updates that work in place on (g) or (f, g), read row counter[0] of their tables, write the next level for the
    network and advance the counter: `run_table` of the Triton kernels."""

    step: Callable[..., Any]
    step_authors: Callable[..., Any]


def triton_kernels() -> TableKernels:
    """The kernels a captured graph calls; imported on first use, for Triton is optional."""
    from ..triton import waterfill_step, waterfill_step_authors

    return TableKernels(waterfill_step.run_table, waterfill_step_authors.run_table)


def why_not(f: Tensor, watched: bool) -> str | None:
    """None where the updates of a run on f can be captured, else the reason. watched: somebody looks at every update."""
    if f.device.type != "cuda":
        return f"the latent is on {f.device} and a CUDA graph needs a CUDA device"
    if watched:
        return "on_step looks at every update"
    backend = _backend.select("waterfill_step", OPS["waterfill_step"].homes, f.device)
    return None if backend == "triton" else f"the {backend} backend is selected and only the triton kernels read tables"


@functools.cache
def _side(device: int) -> torch.cuda.Stream:
    """Where captures and their warm-ups run: one stream a device. Torch's own default is on whichever device captured
    first, and a new one each time would leave a workspace of cuBLAS behind with every capture."""
    return torch.cuda.Stream(device)


def record(update: Callable[[], None]) -> Callable[[], None]:
    """Capture `update`, which has run before (so that nothing is compiled or first set up now); returns its replay."""
    graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=_side(here.device_index)):
            update()
    except BaseException:
        torch.cuda.set_stream(here)  # a capture that fails at its end leaves its own stream current
        raise
    return graph.replay


def warm_up(update: Callable[[], None]) -> None:
    """Run `update` once beside the current stream, as a capture wants it."""
    here = torch.cuda.current_stream()
    side = _side(here.device_index)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        update()
    here.wait_stream(side)


class StepGraph:
    """One update (network, then one kernel of ours) on static buffers, for the run it is made from.

    A graph lives for one run: it holds addresses of the predictor's tensors, which may be others in the next one. The
    first update runs as it is and readies everything; capturing costs about one more, and the rest are replays.

    Args:
        run, fading: the run and its way of stepping, as the plain loop uses them.
        kernels, recorder, first: what is captured, the capture, and how the first update runs; a machine without a GPU
            can pass stand-ins (kernels of the same contract, a recorder that returns its argument, a plain call).
    """

    def __init__(
        self,
        run: "Run",
        fading: "Waterfill | AuthorsFading",
        kernels: TableKernels | None = None,
        recorder: Callable[[Callable[[], None]], Callable[[], None]] = record,
        first: Callable[[Callable[[], None]], None] = warm_up,
    ) -> None:
        self.run, self.fading = run, fading
        self.kernels = kernels or triton_kernels()
        self.recorder, self.first = recorder, first
        self.g = fading.begin().clone()
        self.state = fading.state(self.g).clone() if run.fading and run.config.authors_step else self.g
        self.level = run.levels[0].clone()
        self.counter = torch.zeros(2, dtype=torch.int64, device=run.f.device)
        self.recorded: Callable[[], None] = self._update  # the graph, which must outlive the replays under way
        self.previous = torch.zeros_like(run.f) if run.config.solver == "dpmpp2m" else None
        self.noise = self._noise_table()

    def _noise_table(self) -> Tensor | None:
        """Row k: the draw of level k. Row 0 has been used; torch's generator is asked for the others in order."""
        run = self.run
        if not run.fading or run.noise == "philox":
            return None
        if isinstance(run.noise, Tensor):
            return run.noise.contiguous()
        table = run.f.new_zeros(run.draws, *run.f.shape)
        for k in range(1, run.draws):
            draw = run.draw(k)[0]
            assert draw is not None
            table[k] = draw
        return table

    def _update(self) -> None:
        """The body of the graph; `level` and the tables' row are those of counter[0] on the device."""
        run, c = self.run, self.run.config
        x0, x0_uncond = run.predict(self.g, self.level)
        draw = {"noise": self.noise, "seed": 0 if run.seed is None else run.seed, "first_item": run.first_item}
        if self.state is not self.g:
            if x0_uncond is not None:  # this kernel has no guidance of its own
                x0 = run.guided(x0, x0_uncond, run.guidance.index_select(0, self.counter[:1])[0])
            self.kernels.step_authors(
                self.state, self.g, run.d, x0, run.levels, self.counter, topup=c.topup, renorm=c.topup_renorm,
                base=c.update_base, level_out=self.level, **draw,
            )  # fmt: skip
            return
        self.kernels.step(
            self.g, x0, run.f, run.d, run.levels, self.counter, x0_uncond=x0_uncond,
            guidance=None if x0_uncond is None else run.guidance, x0_prev=self.previous,
            ratio=None if self.previous is None else run.ratio, x0_out=self.previous, level_out=self.level, **draw,
        )  # fmt: skip

    def replay(self, tick: Callable[[], Any] | None = None) -> Tensor:
        """All updates; returns what the network would see next, and leaves the state with `fading`."""
        device = self.run.f.device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.first(self._update)
            if self.run.updates > 1:
                self.recorded = self.recorder(self._update)
            for k in range(self.run.updates):
                if k:
                    self.recorded()
                if tick is not None:
                    tick()
        self.fading.f = self.state
        return self.g


def why_not_chain(state: Tensor) -> str | None:
    """None where a chain of `pilot_posterior_step` on this state can be captured, else the reason."""
    if state.device.type != "cuda":
        return f"the channels are on {state.device} and a CUDA graph needs a CUDA device"
    backend = _backend.select("pilot_posterior_step", OPS["pilot_posterior_step"].homes, state.device)
    return (
        None if backend in ("triton", "cuda") else f"the {backend} backend is selected, whose ops may wait for the host"
    )


class _Replay:
    """One function of tensors on static inputs, recorded; keeps alive what else the function reads."""

    def __init__(
        self,
        body: Callable[..., tuple[Tensor, ...]],
        inputs: Sequence[Tensor],
        owner: "Replays",
        held: Sequence[Any],
    ) -> None:
        self.held = held
        self.inputs = [t.clone(memory_format=torch.contiguous_format) for t in inputs]
        self.out: tuple[Tensor, ...] = ()

        def update() -> None:
            self.out = body(*self.inputs)

        owner.first(update)  # other addresses than the first use had: other variants of kernels, other workspaces
        self.replay = owner.recorder(update)

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for static, given in zip(self.inputs, inputs, strict=True):
            static.copy_(given)
        self.replay()
        return tuple(t.clone() for t in self.out)


class Replays:
    """Functions of tensors as CUDA graphs: recorded at the second use of a key, replayed from then on.

    The first use runs as it is, which spares a capture for what comes only once. A graph holds the addresses of whatever
    else its body reads (networks, tables): the key must tell when those change.

    Args:
        limit: graphs kept; the one unused for longest goes first.
        recorder, first: the capture, and what runs before it; a machine without a GPU can pass stand-ins (one that
            returns its argument, a plain call).
    """

    def __init__(
        self,
        limit: int = 32,
        recorder: Callable[[Callable[[], None]], Callable[[], None]] = record,
        first: Callable[[Callable[[], None]], None] = warm_up,
    ) -> None:
        self.limit, self.recorder, self.first = limit, recorder, first
        self.kept: dict[Any, _Replay | None] = {}

    def alike(self) -> "Replays":
        """Another one, empty."""
        return Replays(self.limit, self.recorder, self.first)

    def __call__(
        self, key: Any, body: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], held: Sequence[Any] = ()
    ) -> tuple[Tensor, ...]:
        """body(*inputs), where body depends on nothing but `key` and the inputs; `held` is what else it reads."""
        key = (key, tuple((t.shape, t.dtype, t.device) for t in inputs))
        device = inputs[0].device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            if key not in self.kept:
                self._keep(key, None)
                return body(*inputs)
            found = self.kept.pop(key)
            if found is None:
                found = _Replay(body, inputs, self, held)
            self._keep(key, found)
            return found(inputs)

    def _keep(self, key: Any, found: "_Replay | None") -> None:
        """As the latest; drops the oldest beyond `limit`."""
        self.kept[key] = found
        while len(self.kept) > self.limit:
            del self.kept[next(iter(self.kept))]
