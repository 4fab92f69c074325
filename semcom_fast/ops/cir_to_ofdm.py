"""Channel impulse responses to OFDM frequency responses."""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .. import _native, reference
from .._native import require_core
from . import _checks
from ._arrays import array_function
from ._register import Op

if TYPE_CHECKING:
    from jaxtyping import Complex, Real

_NAME = "cir_to_ofdm"
_NEED = "gains [...,P], delays [...,P] (leading dimensions 1 or equal) and frequencies [F]"


class _Plan(NamedTuple):
    """Leading dims split into those along which delays change and those that share them."""

    lead: tuple[int, ...]
    own: list[int]
    shared: list[int]

    def order(self, t: Tensor) -> Tensor:
        """Leading dims permuted to (own, shared); what follows stays."""
        return t.permute(*self.own, *self.shared, *range(len(self.lead), t.ndim))


def _plan(gains: Tensor, delays: Tensor) -> _Plan:
    """Delays padded to gains' dims; a dim of size 1, or of stride 0, is shared."""
    lead = tuple(gains.shape[:-1])
    own = [d for d, n in enumerate(lead) if n != 1 and delays.shape[d] != 1]
    return _Plan(lead, own, [d for d in range(len(lead)) if d not in own])


def _offsets(t: Tensor, plan: _Plan, count: int) -> Tensor:
    """Element offset of each of the first `count` leading dims (permuted) of t, row-major."""
    at = torch.zeros((), dtype=torch.int64, device=t.device)
    ordered = plan.order(t)
    for d in range(count):
        at = at.unsqueeze(-1) + torch.arange(ordered.shape[d], device=t.device) * ordered.stride(d)
    return at.reshape(-1)


def _launch(backend: str, gains: Tensor, delays: Tensor, frequencies: Tensor, frequency_dim: int) -> Tensor:
    plan = _plan(gains, delays)
    f, p = frequencies.shape[0], gains.shape[-1]
    shape = list(plan.lead)
    shape.insert(frequency_dim, f)
    h = gains.new_empty(shape)
    if not h.numel():
        return h
    if not p:
        return h.zero_()
    gains, delays, grid = gains.resolve_conj().resolve_neg(), delays.resolve_neg(), _checks.plain(frequencies).double()
    out = h.movedim(frequency_dim, -1)
    rows = math.prod(plan.lead)
    group = math.prod(plan.lead[d] for d in plan.shared)
    whole = len(plan.lead)
    at = [_offsets(gains, plan, whole), _offsets(delays, plan, len(plan.own)), _offsets(out, plan, whole)]
    args = (
        h.dtype is torch.complex128,
        (rows, group, p, f),
        gains.data_ptr(),
        delays.data_ptr(),
        grid.data_ptr(),
        (gains.stride(-1), delays.stride(-1), out.stride(-1)),
        tuple(t.data_ptr() for t in at),
        h.data_ptr(),
    )
    if backend == "cuda":
        require_core().cuda_cir_to_ofdm(*args, *_native.stream_of(h.device))
        return h
    bad = require_core().cpu_cir_to_ofdm(*args)
    if bad >= 0 and not _checks.tolerating_non_finite():
        order = torch.arange(rows, device="cpu").reshape(plan.lead).permute(*plan.own, *plan.shared).reshape(-1)
        raise _checks.non_finite(_NAME, "impulse response", int(order[bad]))
    return h


def _reference(gains: Tensor, delays: Tensor, frequencies: Tensor, frequency_dim: int) -> Tensor:
    h = reference.cir_to_ofdm(gains, delays, frequencies).contiguous()
    _checks.require_finite(_NAME, "impulse response", h.flatten(0, -2) if h.ndim > 1 else h.unsqueeze(0))
    return h.movedim(-1, frequency_dim).contiguous()


def _fake(gains: Tensor, delays: Tensor, frequencies: Tensor, frequency_dim: int) -> Tensor:
    shape = list(gains.shape[:-1])
    shape.insert(frequency_dim, frequencies.shape[0])
    return gains.new_empty(shape)


def _backward(needs, args, outs, grads):
    """Matrix products over the rows that share delays; the phases are never expanded over antennas."""
    gains, delays, frequencies, frequency_dim = args
    plan = _plan(gains, delays)
    p, f = gains.shape[-1], frequencies.shape[0]
    if not grads[0].numel() or not p:
        return *(t.new_zeros(t.shape) if need else None for t, need in zip(args[:3], needs[:3], strict=True)), None
    g = plan.order(grads[0].movedim(frequency_dim, -1))
    sizes = [plan.lead[d] for d in plan.own]
    g = g.reshape(*sizes, -1, f)
    tau = delays.permute(*plan.own, *plan.shared, -1).reshape(*sizes, p)
    turns = torch.remainder(frequencies.double() * tau.double().unsqueeze(-1), 1.0)
    back = torch.polar(torch.ones_like(turns), 2 * torch.pi * turns).to(gains.dtype)  # [own..., P, F], conj(phase)
    d_gains = d_delays = d_frequencies = None
    if needs[0]:
        rows = g @ back.mT
        inverse = [0] * len(plan.lead)
        for at, d in enumerate([*plan.own, *plan.shared]):
            inverse[d] = at
        rows = rows.reshape(*sizes, *(plan.lead[d] for d in plan.shared), p)
        d_gains = rows.permute(*inverse, len(plan.lead))
    if needs[1] or needs[2]:
        a = plan.order(gains).reshape(*sizes, -1, p)
        # dh/dtau_p = -j 2 pi f g_p e^{..}, and the real gradient is Re<G, dh>
        slope = (g.mT @ a.conj()).mT * back * (-2j * torch.pi)
        slope = -slope.real  # Re(conj(dh) G) = Re(j 2 pi f conj(g_p e) G)
        if needs[1]:
            d_delays = (slope * frequencies.to(slope.dtype)).sum(-1)
            d_delays = d_delays.reshape([n if d in plan.own else 1 for d, n in enumerate(plan.lead)] + [p])
            d_delays = d_delays.sum_to_size(delays.shape)
        if needs[2]:
            d_frequencies = (slope * tau.to(slope.dtype).unsqueeze(-1)).reshape(-1, f).sum(0).to(frequencies.dtype)
    return d_gains, d_delays, d_frequencies, None


_op = Op(
    _NAME,
    "(Tensor gains, Tensor delays, Tensor frequencies, int frequency_dim) -> Tensor",
    kernels={
        "cpu": lambda *args: _launch("cpu", *args),
        "cuda": lambda *args: _launch("cuda", *args),
        "reference": _reference,
    },
    fake=_fake,
    backward=_backward,
    vmap="rows",
)


@array_function
def cir_to_ofdm(
    gains: "Complex[Tensor, '*batch paths']",
    delays: "Real[Tensor, '*batch paths']",
    frequencies: Tensor,
    *,
    frequency_dim: int = -1,
) -> "Complex[Tensor, '*batch subcarriers']":
    r"""Frequency response of a channel given by its paths; no intermediate larger than a few kilobytes.

    Definition: :math:`h(f) = \sum_p g_p\, e^{-j 2 \pi f \tau_p}`.

    Args:
        gains: path gains [...,P], complex64 or complex128.
        delays: path delays [...,P] in seconds, real of the same precision. Leading dims of size 1 are shared, e.g.
            gains [B,K,M,P] with delays [B,K,1,P]: the phases are then formed once for all M antennas.
        frequencies: baseband subcarrier frequencies [F] in Hz.
        frequency_dim: where the frequency axis goes in the result (default last; 1 gives [B,F,K,M]).

    Returns:
        h [...,F] with its frequency axis moved, contiguous. Differentiable in gains, delays and frequencies.

    Raises:
        ValueError: shapes disagree, or on the CPU a response is not finite (named).
        TypeError: a dtype other than complex64 or complex128, or delays of another precision.

    Source: the tapped delay line to frequency domain step of 3GPP TR 38.901 channel models, as used for the channels
    of "Scenario-Adaptive MU-MIMO OFDM Semantic Communication With Asymmetric Neural Network".
    """
    _checks.same_kind(_NAME, _checks.COMPLEX, "gains", gains)
    if not isinstance(delays, Tensor) or delays.dtype is not _checks.real_dtype(gains):
        got = getattr(delays, "dtype", type(delays).__name__)
        raise TypeError(f"{_NAME}: delays are {got} but must be {_checks.real_dtype(gains)}, like gains {gains.dtype}")
    if not isinstance(frequencies, Tensor) or frequencies.is_complex() or frequencies.ndim != 1:
        raise TypeError(f"{_NAME}: frequencies must be a real tensor [F]")
    for name, t in (("delays", delays), ("frequencies", frequencies)):
        if t.device != gains.device:
            raise ValueError(f"{_NAME}: {name} on {t.device} but gains on {gains.device}")
    if gains.ndim < 1 or delays.ndim < 1 or gains.shape[-1] != delays.shape[-1]:
        raise _checks.shape_error(_NAME, _NEED, gains=gains, delays=delays)
    lead = _checks.lead_shape(_NAME, _NEED, "gains delays", (gains, 1), (delays, 1))
    if gains.shape[:-1] != lead:
        gains = gains.expand(*lead, gains.shape[-1])
    delays = delays.reshape(*(1,) * (gains.ndim - delays.ndim), *delays.shape)
    if not -gains.ndim <= frequency_dim < gains.ndim:
        raise ValueError(f"{_NAME}: frequency_dim={frequency_dim} does not fit a result of {gains.ndim} dimensions")
    return _op(gains, delays, frequencies, frequency_dim % gains.ndim)
