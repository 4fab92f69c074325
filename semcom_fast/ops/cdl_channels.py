"""Channels of the 38.901 clustered delay line between two uniform linear arrays."""

import math
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _backend, reference
from .._native import require_core
from . import _cdl_rays, _checks, _levels
from ._cdl_rays import CDLRays
from ._register import Op, fold

if TYPE_CHECKING:
    from jaxtyping import Complex

_NAME = "cdl_channels"


def _cpu(gains: Tensor, rx: Tensor, tx: Tensor, nr: int, nt: int) -> Tensor:
    h = gains.new_empty((gains.shape[0], nr, nt))
    if h.numel():
        gains, rx, tx = _checks.plain(gains), _checks.plain(rx), _checks.plain(tx)
        sizes = (*gains.shape, nr, nt)
        double = h.dtype is torch.complex128
        bad = require_core().cpu_cdl_channels(
            double, sizes, gains.data_ptr(), rx.data_ptr(), tx.data_ptr(), h.data_ptr()
        )
        if bad >= 0 and not _checks.tolerating_non_finite():
            raise _checks.non_finite(_NAME, "channel", bad)
    return h


def _reference(gains: Tensor, rx: Tensor, tx: Tensor, nr: int, nt: int) -> Tensor:
    h = reference.cdl_channels(gains, rx, tx, nr, nt)
    _checks.require_finite(_NAME, "channel", h)
    return h


def _fake(gains: Tensor, rx: Tensor, tx: Tensor, nr: int, nt: int) -> Tensor:
    return gains.new_empty((gains.shape[0], nr, nt))


def _triton(*args: Any) -> Tensor:
    from ..triton import cdl_channels as kernel

    return kernel.run(*args)


def _places(n: int, like: Tensor) -> Tensor:
    """j 2 pi times the position of every element from the array's middle."""
    return 2j * math.pi * (torch.arange(n, dtype=torch.float64, device=like.device) - (n - 1) / 2).to(like.dtype)


def _backward(needs, args, outs, grads):
    gains, rx, tx, nr, nt = args
    a, b = (reference.cdl_steering(t, n).to(gains.dtype).conj() for t, n in ((rx, nr), (tx, nt)))  # [B,R,n]
    right = (a @ grads[0]) * b  # [B,R,nt]: G pulled back to every column
    d_gains = right.sum(-1)
    d_rx = d_tx = None
    if needs[1]:
        moved = ((a * _places(nr, gains).conj()) @ grads[0]) * b
        d_rx = (gains.conj() * moved.sum(-1)).real
    if needs[2]:
        d_tx = (gains.conj() * (right @ _places(nt, gains).conj())).real
    return d_gains if needs[0] else None, d_rx, d_tx, None, None


def _jvp(args, outs, tangents):
    """The op is linear in the gains, and a position times H stands for the slope along an array."""
    gains, rx, tx, nr, nt = args
    d_gains, d_rx, d_tx = tangents[:3]
    total = torch.zeros_like(outs[0]) if d_gains is None else _op(d_gains, rx, tx, nr, nt)
    if d_rx is not None:
        total = total + _places(nr, gains).unsqueeze(-1) * _op(gains * d_rx, rx, tx, nr, nt)
    if d_tx is not None:
        total = total + _places(nt, gains) * _op(gains * d_tx, rx, tx, nr, nt)
    return total


def _vmap(args, mapped, size):
    h = _op(*fold(args, mapped, size, (True, True, True, False, False)))
    return h.reshape(size, -1, *h.shape[1:])


_op = Op(
    _NAME,
    "(Tensor gains, Tensor rx, Tensor tx, int nr, int nt) -> Tensor",
    kernels={"cpu": _cpu, "triton": _triton, "reference": _reference},
    fake=_fake,
    backward=_backward,
    jvp=_jvp,
    vmap=_vmap,
)


def _integer(name: str, value: int, low: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{_NAME}: {name} must be an integer, got {value!r}") from None
    if number < low:
        raise ValueError(f"{_NAME}: {name} must be at least {low}, got {number}")
    return number


def _number(name: str, value: float, *, positive: bool) -> float:
    value = _checks.number(_NAME, name, value)
    if not (value > 0 or (value == 0 and not positive)) or value == math.inf:
        raise ValueError(f"{_NAME}: {name} must be finite and {'>' if positive else '>='} 0, got {value}")
    return value


def _reals(name: str, value: float | Tensor, need: str, device: torch.device) -> Tensor:
    """A number or a vector as float64 on the device; on the CPU it must be finite."""
    t = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64, device=device)
    if t.is_complex() or t.ndim > 1:
        raise ValueError(f"{_NAME}: {name} must be a real number or {need}, got {t.dtype} {tuple(t.shape)}")
    if t.device.type == "cpu" and _checks.readable(t) and not bool(torch.isfinite(t).all()):
        raise ValueError(f"{_NAME}: {name} is not finite")
    return t.double()


def _yaw(name: str, value: float | Tensor, batch: int, device: torch.device) -> Tensor:
    """[] or [B,1]."""
    yaw = _reals(name, value, f"a tensor [{batch}]", device)
    if yaw.ndim and yaw.shape[0] != batch:
        raise ValueError(f"{_NAME}: {name} must be a number or a tensor [{batch}], got {tuple(yaw.shape)}")
    return yaw.unsqueeze(-1) if yaw.ndim else yaw


def _check_rays(rays: CDLRays, batch: int, device: torch.device) -> None:
    if not isinstance(rays, CDLRays):
        raise TypeError(f"{_NAME}: rays must be a CDLRays, got {type(rays).__name__}")
    for name, t in zip(rays._fields, rays, strict=True):
        if not isinstance(t, Tensor) or t.dtype not in _checks.REAL:
            raise TypeError(f"{_NAME}: rays.{name} must be a float32 or float64 tensor")
        if t.device.type != device.type:
            raise ValueError(f"{_NAME}: rays.{name} is on {t.device} but the channels go to {device}")
    try:
        shape = torch.broadcast_shapes(*(t.shape for t in rays), (batch, 1))
    except RuntimeError:
        shape = torch.Size()
    if len(shape) != 2 or shape[0] != batch:
        got = ", ".join(f"{name} {tuple(t.shape)}" for name, t in zip(rays._fields, rays, strict=True))
        raise ValueError(f"{_NAME}: rays must be [{batch},R] or broadcast to it; got {got}")


def cdl_channels(
    profile: str,
    batch: int,
    *,
    nr: int,
    nt: int,
    delay_spread: float = 30e-9,
    carrier_frequency: float = 40e9,
    frequency: "float | Tensor" = -2.25e6,
    array: str = "horizontal",
    spacing: float | None = None,
    los_phase: str = "fixed",
    tx_yaw: "float | Tensor" = 0.0,
    rx_yaw: "float | Tensor" = 0.0,
    seed: int | None = None,
    first_item: int = 0,
    dtype: torch.dtype = torch.complex64,
    device: torch.device | str = "cpu",
    rays: CDLRays | None = None,
) -> "Complex[Tensor, 'batch *frequencies nr nt']":
    r"""Channels of a 3GPP TR 38.901 clustered delay line (section 7.7.1) between two uniform linear arrays.

    Definition: with the rays r of all clusters (20 each) and of the specular path,
    :math:`H_{ij} = \sum_r g_r\, e^{j 2 \pi [\rho_r (i - (n_r-1)/2) + \tau_r (j - (n_t-1)/2)]}` and
    :math:`g_r = \sqrt{p_r}\, e^{j (\phi_r - 2 \pi f \, t_r)}`; :math:`\rho, \tau` are the cycles per element of its
    directions of arrival and departure. Omnidirectional, vertically polarised elements, no Doppler: E|H_ij|^2 = 1. A draw
    has uniform phases and couples the offset angles inside a cluster at random (step 8 of section 7.5); the clusters'
    angles, delays and powers are the tables'.

    Args:
        profile: "A" .. "E", or "CDL-A" .. "CDL-E". D and E have a specular path.
        batch: number of channels.
        nr, nt: antennas of the user (rows) and of the base station (columns); downlink.
        delay_spread: RMS delay spread in seconds, >= 0; 30 ns by default.
        carrier_frequency: Hz, 40 GHz by default; matters only with `spacing`.
        frequency: offset of the subcarrier from the carrier in Hz; by default that of the first of 300 subcarriers 15 kHz
            apart, -2.25 MHz, not the carrier itself. A tensor [F] gives [batch,F,nr,nt].
        array: "horizontal" (along y) or "vertical" (along z, first element on top).
        spacing: between elements in metres (default half a wavelength of the carrier).
        los_phase: phase of the specular path: "fixed" (0 in every channel) or "random".
        tx_yaw, rx_yaw: rotation of the base station and of the user about z in radians, a number or a tensor [batch].
            With both 0 the user looks the same way as the base station, not back at it.
        seed: of the Philox words (stream 9, step 0); needed unless `rays` are given.
        first_item: item index of channel 0: a split draw gives the same channels.
        dtype: complex64 or complex128.
        rays: the rays themselves instead of a draw; delay_spread, los_phase and seed are then not used.

    Returns:
        H [batch,nr,nt], or [batch,F,nr,nt]. Differentiable in the rays and the yaws.

    Raises:
        ValueError: an unknown profile, array or los_phase; sizes, delay spread, frequencies or yaws out of range or not
            finite; rays of other shapes; neither seed nor rays; on the CPU a channel that is not finite (named).
        TypeError: a dtype other than complex64 or complex128; rays that are no CDLRays of real tensors.
    """
    letter, _ = _cdl_rays.profile_of(profile)
    batch, nr, nt = _integer("batch", batch, 0), _integer("nr", nr, 1), _integer("nt", nt, 1)
    _cdl_rays.require_choice("array", array, _cdl_rays.ARRAYS)
    _cdl_rays.require_choice("los_phase", los_phase, _cdl_rays.LOS_PHASES)
    if dtype not in _checks.COMPLEX:
        raise TypeError(f"{_NAME}: dtype must be complex64 or complex128, got {dtype}")
    device = torch.device(device)
    delay_spread = _number("delay_spread", delay_spread, positive=False)
    carrier = _number("carrier_frequency", carrier_frequency, positive=True)
    wavelengths = 0.5 if spacing is None else _number("spacing", spacing, positive=True) * carrier / _cdl_rays.LIGHT
    yaws = _yaw("tx_yaw", tx_yaw, batch, device), _yaw("rx_yaw", rx_yaw, batch, device)
    grid = _reals("frequency", frequency, "a tensor [F]", device)
    link = _cdl_rays.Link(array, wavelengths, *yaws, grid.reshape(-1))
    if rays is not None:
        _check_rays(rays, batch, device)
        gains, rx, tx = _cdl_rays.paths(rays, link, dtype)
    elif seed is None:
        raise ValueError(f"{_NAME}: a draw needs a seed (or rays)")
    else:
        _levels.check_draw(_NAME, seed, first_item=first_item)
        if isinstance(seed, Tensor):
            raise TypeError(f"{_NAME}: seed must be an integer, got {seed!r}")
        seed, first_item = operator.index(seed), operator.index(first_item)
        gains, rx, tx = _drawn(letter, batch, seed, first_item, los_phase, delay_spread, link, dtype)
    f, r = gains.shape[-2:]
    r = max(r, rx.shape[-1], tx.shape[-1])
    gains = gains.expand(batch, f, r).reshape(batch * f, r)
    rx, tx = (t.unsqueeze(-2).expand(batch, f, r).reshape(batch * f, r) for t in (rx, tx))
    h = _op(gains, rx, tx, nr, nt)
    return h.reshape(batch, f, nr, nt) if grid.ndim else h


def _drawn(
    letter: str,
    batch: int,
    seed: int,
    first_item: int,
    los_phase: str,
    delay_spread: float,
    link: _cdl_rays.Link,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gains, rx and tx of a draw: from the CPU kernel where nothing is to be traced or differentiated."""
    given = (link.tx_yaw, link.rx_yaw, link.frequency)
    plain = all(_checks.readable(t) and not t.requires_grad for t in given)
    if plain and _backend.select(_NAME, _op.homes, link.frequency.device) == "cpu":
        return _cdl_rays.native_paths(letter, batch, seed, first_item, los_phase, delay_spread, link, dtype)
    drawn = _cdl_rays.draw(letter, batch, seed, first_item, los_phase, link.frequency.device)
    return _cdl_rays.paths(_cdl_rays.rays_of(letter, drawn, delay_spread), link, dtype)
