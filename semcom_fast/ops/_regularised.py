"""Operands, flags and errors shared by the ops over one Cholesky factor: rzf_precode, rzf_matrix, lmmse_equalise."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _native
from .._native import kernel
from ..errors import SingularChannelError
from ..reference.levels import Level
from ..reference.rzf_precode import refuses_zero
from . import _checks, _levels

RAISE, FLAG, PINV = range(3)
_CPU = torch.device("cpu")
_MODES = {"raise": RAISE, "flag": FLAG, "pinv": PINV}


class Call(NamedTuple):
    """Flattened operands of one call, and how its results map back."""

    op: str
    h: Tensor  # [n or 1,K,M]
    s: Tensor | None  # [n,K,T], or [n,T,K] with rows
    alpha: Tensor  # [A], n a multiple of A
    rows: bool
    m_form: bool
    mode: int
    refuse: bool
    power: float  # 0: x is not scaled
    items: int
    out_shape: tuple[int, ...]
    lead: torch.Size
    flags_each: int = 1  # right-hand sides with a flag of their own, per channel of `lead`
    shared: bool = False  # one channel and regulariser, whatever the batch: see `single`

    @property
    def operands(self) -> tuple[Any, ...]:
        return self[1:10]


def mode_of(op: str, on_singular: str | None, device: torch.device) -> int:
    if on_singular is None:
        return RAISE if device == _CPU else FLAG
    if on_singular not in _MODES:
        raise ValueError(f"{op}: on_singular must be one of {', '.join(map(repr, _MODES))}, got {on_singular!r}")
    return _MODES[on_singular]


@functools.lru_cache(maxsize=256)
def _kept(value: float, dtype: torch.dtype) -> Tensor:
    """[1] on the CPU, made once per value: nothing writes to it."""
    with torch.inference_mode(False):
        return torch.full((1,), value, dtype=dtype, device="cpu")


def flat_alpha(op: str, name: str, alpha: Level, lead: torch.Size, own: torch.Size, like: Tensor) -> Tensor:
    """[A] in the real dtype, A dividing the number of channels of `own`: consecutive channels share an entry.

    `lead` are the caller's leading dims; alpha is constant over those that `own` lacks.
    """
    real, alpha = _checks.real_dtype(like), _levels.off_host(alpha, like.device)
    if _levels.is_number(alpha):
        number = float(alpha) if isinstance(alpha, np.number) else alpha  # one that compares with any other
        if not 0 <= number <= torch.finfo(real).max:
            raise ValueError(f"{op}: {name} must be finite and >= 0 in {real}, got {alpha}")
        if like.is_cpu and _checks.readable(like):
            return _kept(float(number), real)
        return torch.full((1,), float(number), dtype=real, device=like.device)
    _levels.check(op, name, alpha, tuple(lead), like.device)
    if not isinstance(alpha, Tensor):
        raise TypeError(f"{op}: {name} must be a number or a tensor, got {type(alpha).__name__}")
    if (
        alpha.is_cpu
        and _checks.readable(alpha)
        and not (
            alpha.numel() == 1
            and 0 <= alpha.item() <= torch.finfo(real).max  # the common case without five torch calls
        )
    ):
        good = (alpha >= 0) & torch.isfinite(alpha) & (alpha.double() <= torch.finfo(real).max)
        if not bool(good.all()):
            bad = tuple((~good).nonzero()[0].tolist())
            raise ValueError(f"{op}: {name} must be finite and >= 0 in {real}, entry {bad} is {float(alpha[bad])}")
    kept = min(alpha.ndim, len(own))
    while kept and alpha.shape[kept - 1] == 1:
        kept -= 1
    alpha = alpha.reshape(alpha.shape[:kept])
    if alpha.shape != own[:kept]:
        alpha = alpha.expand(own[:kept])
    return alpha.to(like.device, real).reshape(-1)


def per_channel(alpha: Tensor, n: int) -> Tensor:
    """[n] from [A]: every entry repeated for its consecutive channels."""
    return alpha.unsqueeze(-1).expand(-1, n // max(alpha.shape[0], 1)).reshape(n)


def _constant(t: Tensor, dim: int, ndim: int) -> bool:
    """Does t, right-aligned against `ndim` dims, not change along `dim`? Stride 0 counts where no gradient is due."""
    own = dim - (ndim - t.ndim)
    return own < 0 or t.shape[own] == 1 or (t.stride(own) == 0 and not t.requires_grad)


def fold_of(h: Tensor, alpha: Level, lead: torch.Size, most: int) -> int:
    """How many trailing leading dims share channel and regulariser: they become right-hand sides of one factor."""
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None:
        return 0
    count = 0
    while count < min(most, len(lead) - 1):  # the batch stays: whether to fold must not depend on its size
        d = len(lead) - 1 - count
        if isinstance(alpha, Tensor) and alpha.ndim > d and alpha.shape[d] != 1:
            break
        if lead[d] == 0 or not _constant(h, d, len(lead) + 2):
            break
        count += 1
    return count


def single(h: Tensor, alpha: Level) -> bool:
    """Have channel and regulariser no leading dims? Then the batch is vectors of one channel, whatever its size."""
    return h.ndim == 2 and (_levels.is_number(alpha) or (isinstance(alpha, Tensor) and alpha.ndim == 0))


def without_last(h: Tensor, count: int) -> Tensor:
    """h without those of the last `count` (constant) leading dims that it has."""
    for _ in range(min(count, h.ndim - 2)):
        h = h.select(-3, 0)
    return h


def prepare(
    op: str,
    need: str,
    h: Tensor,
    s: Tensor | None,
    alpha: Level,
    on_singular: str | None,
    form: str | None,
    power: float | None = None,
    power_dims: int | None = None,
) -> Call:
    """Check the operands of a precoder and flatten their leading dimensions."""
    _checks.same_kind(op, _checks.COMPLEX, "h s", h, s, optional=1)
    hs = h.shape
    if len(hs) < 2 or 0 in hs[-2:]:
        raise _checks.shape_error(op, need + ", K and M at least 1", h=h)
    if form is not None and form not in ("K", "M"):
        raise ValueError(f"{op}: form must be 'K', 'M' or None, got {form!r}")
    k, m = hs[-2:]
    lead, vector = hs[:-2], False
    if s is not None:
        ss = s.shape
        vector = len(ss) == len(hs) - 1
        tail = 1 if vector else 2
        if len(ss) < tail or ss[-tail] != k:
            raise _checks.shape_error(op, need, h=h, s=s)
        if ss[:-tail] != lead:
            lead = _checks.lead_shape(op, need, "h s", (h, 2), (s, tail))
    fold, items, most = 0, 1, len(lead)
    if power is not None:
        most = max(len(lead) - 1, 0) if power_dims is None else power_dims
        if not 0 <= most <= len(lead):
            raise ValueError(f"{op}: power_dims={most} does not fit the leading dimensions {tuple(lead)}")
        power = _checks.positive_number(op, "power", power)
        items = math.prod(lead[: len(lead) - most])
    own = lead
    if vector and len(lead) > 1:
        fold = fold_of(h, alpha, lead, most)
        if fold:
            own, h = lead[: len(lead) - fold], without_last(h, fold)
    streams = k if s is None else math.prod(lead[len(own) :]) if vector else s.shape[-1]
    return Call(
        op,
        _checks.flatten_lead(h, own, 2),
        None if s is None else flatten_symbols(s, lead, own, vector),
        flat_alpha(op, "alpha", alpha, lead, own, h),
        vector,
        (m < k) if form is None else form == "M",
        mode_of(op, on_singular, h.device),
        refuses_zero(k, m, form, on_singular),
        0.0 if power is None else float(power),
        items,
        (*lead, m) if vector else (*lead, m, streams),
        lead,
    )


def flatten_symbols(s: Tensor, lead: torch.Size, own: torch.Size, vector: bool) -> Tensor:
    tail = s.shape[-1 if vector else -2 :]
    if len(lead) == 1 and len(own) == 1 and s.shape[: -len(tail)] == lead:
        return s.unsqueeze(1) if vector else s
    if s.shape[: -len(tail)] != lead:
        s = s.expand(*lead, *tail)
    n = math.prod(own)
    return s.reshape(n, math.prod(lead[len(own) :]), s.shape[-1]) if vector else s.reshape(n, *s.shape[-2:])


def sizes(h: Tensor, n: int, t: int, alpha: Tensor, items: int) -> tuple[int, ...]:
    """(n, K, M, T, stride of h, channels per alpha, power groups) as the bindings take them."""
    k, m = h.shape[1:]
    return n, k, m, t, 0 if h.shape[0] == 1 else k * m, n // alpha.shape[0], items


def flags(
    h: Tensor, rows: bool, m_form: bool, pinv: bool = False, refuse: bool = False, shared: bool = False
) -> tuple[bool, ...]:
    return h.dtype is torch.complex128, rows, m_form, pinv, refuse, shared


def launch(op: str, backend: str, device: torch.device, mode: int, problem: tuple[Any, ...], *addresses: int) -> None:
    """Call the CPU kernel and raise at its flags, or enqueue the CUDA kernel on torch's current stream."""
    if backend == "cuda":
        scratch = torch.empty(kernel("cuda_rzf_scratch")(op, *problem), dtype=torch.uint8, device=device)
        kernel(f"cuda_{op}")(*problem, *addresses, scratch.data_ptr(), *_native.stream_of(device))
        return
    count, singular, spoilt = kernel(f"cpu_{op}")(*problem, *addresses)
    if mode == FLAG:
        return
    if singular >= 0 and mode == RAISE:
        raise SingularChannelError("", count, (singular,))
    if spoilt >= 0 and not _checks.tolerating_non_finite():
        raise _NonFinite(spoilt)


class _NonFinite(ValueError):
    """A result that is not finite, by the flat index of its channel; `located` says it in the caller's dimensions."""


def raise_flagged(info: Tensor, mode: int) -> None:
    """The same errors from an `info` tensor: the plain torch path, or a GPU that was asked to raise (synchronises)."""
    if mode == FLAG or not info.numel() or not _checks.readable(info):
        return
    bad = info > 0
    if mode == RAISE and bool(bad.any()):
        raise SingularChannelError("", int(bad.sum()), (int(bad.nonzero()[0]),))
    if bool((info < 0).any()) and not _checks.tolerating_non_finite():
        raise _NonFinite(int((info < 0).nonzero()[0]))


FLAGGED = (SingularChannelError, _NonFinite)


def located(op: str, lead: torch.Size, err: Exception, rows: int = 1) -> Exception:
    """The error for a flagged entry in the caller's leading dimensions, from one with a flat index over them.

    `rows` flags belong to each channel.
    """
    flat = (err.index[0] if isinstance(err, SingularChannelError) else err.args[0]) // rows
    index: list[int] = []
    for size in reversed(lead):
        index.insert(0, flat % size)
        flat //= size
    at = tuple(index)
    if not isinstance(err, SingularChannelError):
        return ValueError(
            f"{op}: the result at index {at} is not finite (NaN or Inf in the right-hand side, or overflow)"
        )
    count = -(-err.count // rows)
    return SingularChannelError(
        f"{op}: {count} of {math.prod(lead)} channels are singular (or hold NaN or Inf), the first at index {at}; "
        f"{_ADVICE.get(op, _ADVICE[''])}",
        count,
        at,
    )


_ADVICE = {
    "": "raise alpha, or pass on_singular='flag' (zeros and info) or 'pinv' (dependent users dropped)",
    "lmmse_equalise": "raise noise_var, or pass on_singular='flag' (zeros and infinite noise)",
    "lmmse_channel": "raise noise_var, or send pilots of full rank",
}
