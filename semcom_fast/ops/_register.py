"""One registration for every op: eager fast path, torch.library entry, autograd, forward mode, fake and vmap.

Eager calls go straight to the kernel (a few microseconds). Anything that traces - torch.compile, export, fake tensors,
dispatch modes - sees one opaque `torch.ops.semcom_fast.<stem>` node. torch.func transforms need an
`autograd.Function` with `setup_context`; plain autograd takes the cheaper `forward(ctx, ...)` style. All three share
the same kernel, backward and jvp. Forward mode is refused where torch would drop tangents: on the opaque node, and nested.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from threading import get_ident
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad as fwd_ad
from torch.compiler import is_compiling
from torch.nn import Parameter

from .. import _backend

OPS: dict[str, "Op"] = {}  # by name
_LIBRARY = torch.library.Library("semcom_fast", "DEF")
_NO_TENSOR = frozenset((type(None), int, float, bool, tuple, torch.dtype, torch.device))  # sooner than isinstance
_functorch_level = torch._C._functorch.maybe_current_level
_modes_active = torch._C._len_torch_dispatch_stack
_jit_trace = torch._C._get_tracing_state
_is_batched = torch._C._functorch.is_legacy_batchedtensor
_BATCHED: list[int] = []  # threads in a backward pass whose gradients are batched (`is_grads_batched`), to any depth


@contextmanager
def _batched() -> Iterator[None]:
    _BATCHED.append(get_ident())
    try:
        yield
    finally:
        _BATCHED.remove(get_ident())


def _save(ctx: Any, args: Sequence[Any], out: Any) -> None:
    outs = out if isinstance(out, tuple) else (out,)
    tensors = [a for a in (*args, *outs) if isinstance(a, Tensor)]
    ctx.n_args, ctx.backend = len(args), _backend.forced()
    ctx.rest = [None if isinstance(a, Tensor) else (a,) for a in (*args, *outs)]
    ctx.save_for_backward(*tensors)
    if hasattr(ctx, "save_for_forward"):
        ctx.save_for_forward(*tensors)


def _restore(ctx: Any) -> tuple[list[Any], tuple[Any, ...]]:
    saved = iter(ctx.saved_tensors)
    values = [next(saved) if r is None else r[0] for r in ctx.rest]
    return values[: ctx.n_args], tuple(values[ctx.n_args :])


def _forward_levels() -> int:
    """How many forward-mode transforms of torch.func are under way."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack)


class Op:
    """A named op and everything torch wants to know about it.

    kernels: backend name -> function of the schema's arguments ("reference" is required).
    fake: shapes and dtypes of the outputs. backward(needs, args, outs, grads) -> a gradient or None per argument; every
    output has its `grads`, zeros where nothing came back.
    jvp(args, outs, tangents) -> tangent(s) of the output(s); None, and where it returns NotImplemented: `backward`, which
    is linear in the gradients, transposed.
    vmap(args, mapped, size) -> outputs with the mapped axis first; "rows" makes one call per mapped row, so that Philox
    draws are those of a loop over rows; None when it is not supported.
    packet_args(args) -> the arguments as the schema wants them, where eager calls are freer (numbers as levels).
    """

    def __init__(
        self,
        name: str,
        schema: str,
        *,
        kernels: dict[str, Callable],
        fake: Callable,
        backward: Callable | None = None,
        jvp: Callable | None = None,
        vmap: Callable | Literal["rows"] | None = None,
        packet_args: Callable | None = None,
    ) -> None:
        OPS[name] = self
        self.name, self.kernels, self._fake = name, kernels, fake
        self._packet_args = packet_args
        self.homes = tuple(k for k in kernels if k != "reference")
        _LIBRARY.define(f"{name}{schema}")
        _LIBRARY.impl(name, self.run, "CompositeExplicitAutograd")
        qualified = f"semcom_fast::{name}"
        torch.library.register_fake(qualified, fake, lib=_LIBRARY)
        self.packet = getattr(torch.ops.semcom_fast, name).default
        self._backward, self._jvp = backward, jvp
        self._vmap = self._by_rows if vmap == "rows" else vmap
        if backward is not None:
            torch.library.register_autograd(
                qualified, self._backward_entry, setup_context=self._setup_entry, lib=_LIBRARY
            )
        if vmap is not None:
            torch.library.register_vmap(qualified, self._vmap_entry, lib=_LIBRARY)
        self._eager, self._functorch = self._functions()

    def run(self, *args: Any) -> Any:
        """The kernel of the selected backend, without autograd."""
        for a in args:
            if isinstance(a, Tensor):
                if a.is_cpu and _backend.unforced() and "cpu" in self.kernels:  # what `select` finds, sooner
                    return self.kernels["cpu"](*args)
                if a.device.type == "meta":
                    return self._fake(*args)
                return self.kernels[_backend.select(self.name, self.homes, a.device)](*args)
        raise TypeError(f"semcom_fast.{self.name} needs at least one tensor")

    def __call__(self, *args: Any) -> Any:
        """Route a call: see the module docstring."""
        if is_compiling() or _jit_trace() is not None:  # which records torch's own calls alone
            return self._traced(args)
        if _BATCHED and get_ident() in _BATCHED:  # torch cuts what it has batched for its own calls
            return self._traced(args)
        if _functorch_level() is not None:
            return self._functorch.apply(*args)
        grad = False
        for a in args:
            kind = type(a)
            if kind is Tensor or kind is Parameter:
                grad = grad or a.requires_grad
            elif kind not in _NO_TENSOR and isinstance(a, Tensor):  # a fake tensor or another subclass
                return self._traced(args)
        if _modes_active():
            return self._traced(args)
        if fwd_ad._current_level < 0 and not (grad and torch.is_grad_enabled()):
            if "cpu" in self.kernels and isinstance(args[0], Tensor) and args[0].is_cpu and _backend.unforced():
                return self.kernels["cpu"](*args)  # what `run` does, a look-up sooner
            return self.run(*args)
        return self._eager.apply(*args)

    def _traced(self, args: Any) -> Any:
        if fwd_ad._current_level >= 0:  # torch.library has no forward mode: tangents would be dropped
            raise NotImplementedError(
                f"semcom_fast.{self.name} has no forward mode under torch.compile, a dispatch mode or on a tensor subclass"
            )
        return self.packet(*(self._packet_args(args) if self._packet_args else args))

    @staticmethod
    def _setup_entry(ctx: Any, inputs: Any, output: Any) -> None:
        _save(ctx, inputs, output)

    def _backward_entry(self, ctx: Any, *grads: Any) -> Any:
        args, outs = _restore(ctx)
        grads = tuple(torch.zeros_like(o) if g is None else g for o, g in zip(outs, grads, strict=True))
        assert self._backward is not None
        # of CUDA tensors it runs in autograd's own thread, where the caller's `use_backend` is not known
        with (
            nullcontext() if ctx.backend is None else _backend.use_backend(ctx.backend),
            _batched() if any(map(_is_batched, grads)) else nullcontext(),
        ):
            return tuple(self._backward(ctx.needs_input_grad, args, outs, grads))

    def _transposed_backward(self, args: Sequence[Any], outs: Sequence[Any], tangents: Sequence[Any]) -> Any:
        """J t as the gradient of Re<J^H u, t> in u."""
        if self._backward is None:
            raise NotImplementedError(f"semcom_fast.{self.name} has no derivative")
        backward, needs = self._backward, [t is not None for t in tangents]
        smooth = [o.is_floating_point() or o.is_complex() for o in outs]

        def pull(*of_smooth: Tensor) -> tuple[Tensor, ...]:
            given = iter(of_smooth)
            grads = [next(given) if s else torch.zeros_like(o) for o, s in zip(outs, smooth, strict=True)]
            return tuple(g for g, need in zip(backward(needs, args, outs, grads), needs, strict=True) if need)

        transposed = torch.func.vjp(pull, *(torch.zeros_like(o) for o, s in zip(outs, smooth, strict=True) if s))[1]
        moved = iter(transposed(tuple(t for t in tangents if t is not None)))
        found = tuple(next(moved) if s else None for s in smooth)
        return found if len(found) > 1 else found[0]

    def _by_rows(self, args: Sequence[Any], mapped: Sequence[bool], size: int) -> Any:
        if not size:  # shapes alone
            row = self._fake(*(a.new_empty(a.shape[1:]) if m else a for a, m in zip(args, mapped, strict=True)))
            empty = tuple(o.new_empty((0, *o.shape)) for o in (row if isinstance(row, tuple) else (row,)))
            return empty if isinstance(row, tuple) else empty[0]
        outs = [self(*(a[i] if m else a for a, m in zip(args, mapped, strict=True))) for i in range(size)]
        return tuple(map(torch.stack, zip(*outs, strict=True))) if isinstance(outs[0], tuple) else torch.stack(outs)

    def _vmap_entry(self, info: Any, in_dims: Any, *args: Any) -> Any:
        assert self._vmap is not None
        moved = [
            a.movedim(d, 0) if d is not None and isinstance(a, Tensor) else a
            for a, d in zip(args, in_dims, strict=True)
        ]
        out = self._vmap(moved, [d is not None for d in in_dims], info.batch_size)
        return out, (tuple(0 for _ in out) if isinstance(out, tuple) else 0)

    def _functions(self) -> tuple[Any, Any]:
        op = self

        class Eager(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *args: Any) -> Any:
                out = op.run(*args)
                _save(ctx, args, out)
                ctx.set_materialize_grads(False)  # a forward-mode rule tells operands without a tangent from zeros
                return out

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                return op._backward_entry(ctx, *grads)

            @staticmethod
            def jvp(ctx: Any, *tangents: Any) -> Any:
                args, outs = _restore(ctx)
                if _forward_levels() > 1:  # torch loses the outer tangents inside a Function's jvp
                    raise NotImplementedError(
                        f"semcom_fast.{op.name} has no forward mode over forward mode: take one of the two in reverse"
                    )
                found = NotImplemented if op._jvp is None else op._jvp(args, outs, tangents)
                return op._transposed_backward(args, outs, tangents) if found is NotImplemented else found

        class Functorch(Eager):
            generate_vmap_rule = False

            @staticmethod
            def forward(*args: Any) -> Any:
                return op.run(*args)

            @staticmethod
            def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
                _save(ctx, inputs, output)
                ctx.set_materialize_grads(False)

            @staticmethod
            def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
                if op._vmap is None:
                    raise NotImplementedError(f"semcom_fast.{op.name} has no vmap rule; use its leading dimensions")
                return op._vmap_entry(info, in_dims, *args)

        Eager.__name__ = Functorch.__name__ = op.name
        return Eager, Functorch


def reference_vjp(fn: Callable, args: Sequence[Any], needs: Sequence[bool], grads: Sequence[Any]) -> tuple[Any, ...]:
    """Gradients of a plain torch definition: for derivatives that are not worth a kernel. Composes with any transform."""
    wanted = [i for i, need in enumerate(needs) if need]

    def of_wanted(*values: Tensor) -> tuple[Tensor, ...]:
        full = list(args)
        for i, v in zip(wanted, values, strict=True):
            full[i] = v
        out = fn(*full)
        return out if isinstance(out, tuple) else (out,)

    pull = torch.func.vjp(of_wanted, *(args[i] for i in wanted))[1]
    found = pull(tuple(grads))
    result: list[Any] = [None] * len(args)
    for i, g in zip(wanted, found, strict=True):
        result[i] = g
    return tuple(result)


def with_noise(args: Sequence[Any], noise: int, seed: int, draw: Callable[..., Tensor]) -> list[Any]:
    """The arguments with the Philox draw made explicit, for derivatives of the definition: positions of noise and seed;
    `draw` takes the seed and what follows it in every schema here (step, stream where there are several, first_item)."""
    made = list(args)
    if args[noise] is None and args[seed] is not None:
        made[noise], made[seed] = draw(*args[seed:]), None
    return made


def fold(args: Sequence[Any], mapped: Sequence[bool], size: int, folds: Sequence[bool]) -> list[Any]:
    """vmap helper: merge the mapped axis into axis 0 of the arguments marked in `folds` ([V,B,...] -> [V*B,...])."""
    batch = max(
        (a.shape[int(m)] for a, m, f in zip(args, mapped, folds, strict=True) if f and a is not None), default=1
    )
    out = []
    for a, m, f in zip(args, mapped, folds, strict=True):
        if f and isinstance(a, Tensor):
            a = a if m else a.unsqueeze(0)
            a = a.expand(size, batch, *a.shape[2:]).reshape(size * batch, *a.shape[2:])
        out.append(a)
    return out
