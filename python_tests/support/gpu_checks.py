"""Bodies of the checks that every registered op must pass on a device.

A body takes the op's name, the complex dtype of its samples and a `Place`; on a CPU the same bodies run with stand-ins for
streams and graphs, so that a mistake in them shows without a GPU.
"""

from collections.abc import Iterator
from typing import Any

import torch
from gpu_places import Place, counted_waits
from gpu_table import TABLE, Entry
from op_samples import packet_samples
from sf_testing import draw, same_bits, unit, within
from torch import Tensor

import semcom_fast as sf
from semcom_fast.ops._checks import tolerate_non_finite
from semcom_fast.ops._register import OPS

INTERPRETED = Place("cpu", "triton")  # Triton's interpreter, which no public call selects
NORMAL = 4e-6  # normals agree to 2e-6; the factors of the ops' samples stay below 2


def samples(name: str, dtype: torch.dtype, place: Place) -> list[tuple]:
    return [tuple(place.to(a) for a in args) for args in packet_samples(dtype)[name]]


def own_sample(name: str, dtype: torch.dtype, place: Place) -> tuple:
    """The one whose batch is cut and spoilt."""
    return samples(name, dtype, place)[TABLE[name].sample]


def call(name: str, args: tuple, place: Place) -> tuple:
    if place == INTERPRETED:
        out = OPS[name].kernels["triton"](*args)
    else:
        with sf.use_backend(place.backend):
            out = OPS[name](*args)
    return out if isinstance(out, tuple) else (out,)


def widened(value: Any) -> Any:
    """On the CPU and in double precision."""
    if isinstance(value, torch.device):
        return torch.device("cpu")
    if value in (torch.float32, torch.complex64) if isinstance(value, torch.dtype) else False:
        return torch.complex128 if value.is_complex else torch.float64
    if not isinstance(value, Tensor):
        return value
    kind = torch.complex128 if value.is_complex() else torch.float64 if value.is_floating_point() else value.dtype
    return value.detach().to("cpu", kind, copy=True)


def reference(name: str, args: tuple) -> tuple:
    """The definition in double precision."""
    out = OPS[name].kernels["reference"](*args)
    return out if isinstance(out, tuple) else (out,)


def close(got: Tensor, want: Tensor, entry: Entry, kind: torch.dtype, label: str, least: float = 0.0) -> None:
    if not got.is_floating_point() and not got.is_complex():
        assert torch.equal(got.cpu(), want), label
        return
    if not want.numel():
        assert got.shape == want.shape, label
        return
    scale = max(float(want.abs().max()), least)
    within(got.cpu(), want, entry.growth * unit(kind) * scale + (NORMAL if entry.draws else 0.0), label)


def against_float64(name: str, dtype: torch.dtype, place: Place) -> None:
    """Every sample, forward."""
    for args in samples(name, dtype, place):
        got, want = call(name, args, place), reference(name, tuple(map(widened, args)))
        for i, (g, w) in enumerate(zip(got, want, strict=True)):
            close(g, w, TABLE[name], dtype, f"{place.backend} {name}[{i}] {str(dtype)[6:]}")


def _leaves(name: str, args: tuple) -> tuple:
    """The arguments with gradients wanted where the op has any: floating-point tensors that are no levels or tables."""
    keep = TABLE[name].constant

    def leaf(i: int, a: Any) -> Any:
        wants = isinstance(a, Tensor) and (a.is_floating_point() or a.is_complex()) and a.ndim > 0 and i not in keep
        return a.detach().clone().requires_grad_() if wants else a

    return tuple(leaf(i, a) for i, a in enumerate(args))


def _pull(out: tuple, leaves: tuple) -> tuple[list[int], tuple]:
    """Gradients of a fixed real function of all outputs at the leaves that have one."""
    loss = 0.0
    for o in out:
        if isinstance(o, Tensor) and o.requires_grad:
            real = torch.view_as_real(o) if o.is_complex() else o
            ramp = torch.linspace(0.5, 1.5, real.numel(), dtype=torch.float64, device=o.device)
            loss = loss + (real * ramp.to(real.dtype).reshape(real.shape)).sum()
    which = [i for i, a in enumerate(leaves) if isinstance(a, Tensor) and a.requires_grad]
    return which, torch.autograd.grad(loss, [leaves[i] for i in which], allow_unused=True)


def gradients(name: str, dtype: torch.dtype, place: Place) -> None:
    """Every sample, backward, against autograd through the definition in double precision."""
    if OPS[name]._backward is None:
        return
    entry = TABLE[name]
    for args in samples(name, dtype, place):
        ours = _leaves(name, args)
        which, got = _pull(call(name, ours, place)[: entry.graded], ours)
        exact = _leaves(name, tuple(map(widened, args)))
        same, want = _pull(reference(name, exact)[: entry.graded], exact)
        assert which == same
        for i, g, w in zip(which, got, want, strict=True):
            if w is None or g is None:
                assert (g is None or not g.abs().max()) and (w is None or not w.abs().max()), f"{name} argument {i}"
                continue
            close(g, w, entry, dtype, f"{place.backend} {name} gradient {i} {str(dtype)[6:]}", least=1.0)


def numerical_gradients(name: str, place: Place) -> None:
    """gradcheck, fast mode, of the sample that is cut elsewhere."""
    if OPS[name]._backward is None or not TABLE[name].numerical:
        return
    args = own_sample(name, torch.complex128, place)
    leaves = _leaves(name, args)
    which = [i for i, a in enumerate(leaves) if isinstance(a, Tensor) and a.requires_grad]

    def of_leaves(*values: Tensor) -> tuple:
        full = list(leaves)
        for i, v in zip(which, values, strict=True):
            full[i] = v
        out = call(name, tuple(full), place)[: TABLE[name].graded]
        return tuple(o for o in out if o.requires_grad and o.numel())

    assert torch.autograd.gradcheck(of_leaves, [leaves[i] for i in which], fast_mode=True, rtol=1e-5, atol=1e-7)


def _views(t: Tensor) -> Iterator[Tensor]:
    """The same values with other strides, another alignment, a lazy conjugate and a lazy negation."""
    if t.ndim > 1:
        yield t.mT.contiguous().mT
    if t.ndim:
        yield torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)
        yield torch.stack([t, t], -1)[..., 1]
    if t.is_complex():
        yield t.conj().resolve_conj().conj()
    if t.ndim and (t.is_complex() or t.is_floating_point()):
        yield torch._neg_view(-t)


def strides(name: str, dtype: torch.dtype, place: Place) -> None:
    """A view of any argument gives what its contiguous copy gives; strides may choose another kernel, so to rounding."""
    args = own_sample(name, dtype, place)
    want = call(name, args, place)
    for i, a in enumerate(args):
        for view in _views(a) if isinstance(a, Tensor) else ():
            got = call(name, (*args[:i], view, *args[i + 1 :]), place)
            for g, w in zip(got, want, strict=True):
                close(g, w.cpu(), TABLE[name], dtype, f"{place.backend} {name}: views {str(dtype)[6:]}")


def _equal(a: Tensor, b: Tensor, what: str) -> None:
    if a.is_floating_point() or a.is_complex():
        same_bits(a, b, what)
    else:
        assert torch.equal(a, b), what


def batch(name: str, args: tuple) -> int:
    first, per = next(iter(TABLE[name].rows.items()))
    return (args[first][0] if isinstance(args[first], tuple) else len(args[first])) // per


def cut(name: str, args: tuple, start: int, stop: int) -> tuple:
    """Items start..stop of the batch, with their own draws."""
    entry, whole, out = TABLE[name], batch(name, args), list(args)
    for i, per in entry.rows.items():
        a = args[i]
        if isinstance(a, tuple):
            out[i] = (stop - start, *a[1:])
        elif a is not None and a.ndim and len(a) == whole * per:
            out[i] = a[start * per : stop * per]
    if entry.item is not None:
        out[entry.item] = args[entry.item] + start
    for i in entry.counts:
        out[i] = args[i] * (stop - start) // whole
    return tuple(out)


def splits(name: str, dtype: torch.dtype, place: Place) -> None:
    """A second run and a cut batch give the same bits."""
    args = own_sample(name, dtype, place)
    whole, again = (call(name, args, place) for _ in range(2))
    count = batch(name, args)
    parts = [call(name, cut(name, args, i, i + 1), place) for i in range(count)]
    for k, per in enumerate(TABLE[name].out):
        _equal(whole[k], again[k], f"{name}[{k}]: second run")
        if per:
            _equal(torch.cat([p[k] for p in parts]), whole[k], f"{name}[{k}]: cut batch")


def empty_batches(name: str, dtype: torch.dtype, place: Place) -> None:
    host = Place("cpu", "reference")
    full = call(name, own_sample(name, dtype, host), host)
    none = call(name, cut(name, own_sample(name, dtype, place), 0, 0), place)
    for k, per in enumerate(TABLE[name].out):
        if per:
            assert none[k].shape == (0, *full[k].shape[1:]) and none[k].dtype is full[k].dtype, f"{name}[{k}]"


def backward_pass(name: str, args: tuple, place: Place) -> tuple:
    """Outputs and gradients: all that may run between two waits."""
    if OPS[name]._backward is None or TABLE[name].waits:
        return call(name, args, place)
    leaves = _leaves(name, args)
    out = call(name, leaves, place)
    _, grads = _pull(out[: TABLE[name].graded], leaves)
    return (*(o.detach() for o in out), *(g for g in grads if g is not None))


def with_numbers(name: str, args: tuple) -> tuple | None:
    """The same arguments with numbers for 0-d tensors, where the op's eager calls may pass them."""
    if OPS[name]._packet_args is None:
        return None
    return tuple(a.item() if isinstance(a, Tensor) and a.ndim == 0 else a for a in args)


def without_waiting(name: str, dtype: torch.dtype, place: Place) -> None:
    """No synchronisation, forward or backward, for levels on the device and for plain numbers: the same bits."""
    for args in samples(name, dtype, place):
        numbers = with_numbers(name, args)
        want = backward_pass(name, args, place)  # compiles
        if numbers is not None:
            backward_pass(name, numbers, place)
        with place.without_waiting():
            backward_pass(name, args, place)
            got = want if numbers is None else backward_pass(name, numbers, place)
        for k, (g, w) in enumerate(zip(got, want, strict=False)):
            _equal(g, w, f"{name}[{k}]: numbers")


def graph_capture(name: str, dtype: torch.dtype, place: Place) -> None:
    """Captured, the op follows what is written into its operands, levels, seed and step."""
    for args in samples(name, dtype, place):
        call(name, args, place)
        out, replay = place.captured(lambda args=args: call(name, args, place))
        for factor in (1.0, 0.75):
            for a in args:
                if isinstance(a, Tensor) and (a.is_floating_point() or a.is_complex()):
                    a.mul_(factor)
            for o in out:
                o.fill_(-1)
            replay()
            for k, w in enumerate(call(name, args, place)):
                _equal(out[k], w, f"{name}[{k}]: replayed")


def side_stream(name: str, dtype: torch.dtype, place: Place) -> None:
    """On another stream the op waits for what was queued there, and for nothing else."""
    for args in samples(name, dtype, place):
        want = call(name, args, place)
        got = place.late(args, lambda given: call(name, given, place))
        for k, w in enumerate(want):
            _equal(got[k], w, f"{name}[{k}]: side stream")


def spoilt_items(name: str, dtype: torch.dtype, place: Place) -> None:
    """A NaN in item 1 shows there, or is flagged and zeroed there, and leaves the others alone; nothing waits."""
    entry, args = TABLE[name], own_sample(name, dtype, place)
    clean = call(name, args, place)
    for i in entry.rows if entry.spoilt is None else entry.spoilt:
        a, per = args[i], entry.rows[i]
        if not isinstance(a, Tensor) or len(a) != batch(name, args) * per:
            continue
        bad = a.clone()
        bad[per : 2 * per] = float("nan")
        with place.without_waiting(), tolerate_non_finite():
            got = call(name, (*args[:i], bad, *args[i + 1 :]), place)
        changed = False
        for k, width in enumerate(entry.out):
            if not width:
                continue
            rest = [r for r in range(len(got[k])) if not width <= r < 2 * width]
            _equal(got[k][rest], clean[k][rest], f"{name}[{k}]: beside a NaN in argument {i}")
            changed = changed or not torch.equal(got[k][width : 2 * width], clean[k][width : 2 * width])
        assert changed, f"{name}: a NaN in argument {i} does not show"


def large_sample(name: str, dtype: torch.dtype, place: Place) -> tuple:
    """Small items with one large operand: the fewest bytes for a batch whose offsets leave 32 bits."""
    h, x = draw(2, 1, 1, 8, 8, dtype=dtype), draw(2, 1, 1, 8, 1, seed=1, dtype=dtype)
    square, s = draw(6, 4, 4, dtype=dtype), draw(6, 4, 1, seed=1, dtype=dtype)
    alpha, norm = torch.rand(3, dtype=dtype.to_real()) + 0.5, torch.ones(6, dtype=torch.float64)
    own = {
        "blockdiag_apply": (h, x),
        "blockdiag_adjoint": (h, x[:, 0]),
        "likelihood_score": (x[:, 0], h, x, None, 2 * x),
        "rzf_precode": (square, s, alpha, False, False, 1, False, 0.0, 1, True, False),
        "rzf_precode_vjp": (square, s, alpha, s + 1, norm, s - 1, False, False, 1, False, 2.0, 6, True, True),
    }
    return tuple(place.to(a) for a in own[name]) if name in own else own_sample(name, dtype, place)


def large_bytes(name: str, dtype: torch.dtype, backend: str, elements: int) -> tuple[int, int]:
    """(items, bytes) of a batch whose largest operand or result exceeds `elements`; complex entries count twice for
    Triton, whose kernels see reals. The bytes are those of operands and results, a quarter more, and a gigabyte."""
    host = Place("cpu", "reference")
    args = large_sample(name, dtype, host)
    out, count = call(name, args, host), batch(name, args)
    tensors = [args[i] for i in TABLE[name].rows if isinstance(args[i], Tensor)]
    twice = backend == "triton"
    most = max(t.numel() * (2 if twice and t.is_complex() else 1) for t in (*tensors, *out))
    items = -(-elements * count // most) + 2 * count
    per_item = sum(t.numel() * t.element_size() for t in (*tensors, *out)) / count
    return items, int(1.25 * per_item * items) + (1 << 30)


def large_batch(name: str, dtype: torch.dtype, place: Place, elements: int) -> None:
    """The last items of a batch past `elements` elements have the bits they have alone."""
    items, _ = large_bytes(name, dtype, place.backend, elements)
    args, entry = large_sample(name, dtype, place), TABLE[name]
    count = batch(name, args)
    repeats = -(-items // count)
    big, own = list(args), list(args)
    for i, per in entry.rows.items():
        a = args[i]
        if isinstance(a, tuple):
            big[i] = (repeats * count, *a[1:])
        elif isinstance(a, Tensor) and a.ndim and len(a) == count * per:
            big[i] = a.repeat(repeats, *(1,) * (a.ndim - 1))
    for i in entry.counts:
        big[i] = args[i] * repeats
    if entry.item is not None:
        own[entry.item] = args[entry.item] + (repeats - 1) * count
    got, want = call(name, tuple(big), place), call(name, tuple(own), place)
    for k, per in enumerate(entry.out):
        if per:
            _equal(got[k][len(got[k]) - len(want[k]) :], want[k], f"{name}[{k}]: the end of a large batch")


def on_another_device(name: str, dtype: torch.dtype, place: Place, other: Place) -> None:
    """Tensors decide where the op runs, not the current device."""
    want = call(name, own_sample(name, dtype, place), place)
    got = call(name, own_sample(name, dtype, other), other)
    for k, w in enumerate(want):
        assert str(got[k].device) == other.device
        _equal(got[k].cpu(), w.cpu(), f"{name}[{k}]: on {other.device}")


def reads_nothing(name: str, dtype: torch.dtype) -> None:
    """Neither an op's own Python nor its gradient looks at a value; seen on the CPU, where reading costs nothing."""
    place = Place("cpu", "cpu")
    for args in samples(name, dtype, place):
        with counted_waits(place) as reads:
            backward_pass(name, args, place)
        assert not reads, f"{name}: {sorted(set(reads))}"
