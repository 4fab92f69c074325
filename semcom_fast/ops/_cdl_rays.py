"""Rays of the 38.901 clustered delay line: drawn from Philox words, and turned into phase progressions of arrays."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._native import require_core
from ..reference import philox_words
from . import _checks
from ._cdl_profiles import OFFSETS, PROFILES, RAYS, Profile

STREAM = 9  # Philox stream of the rays (step 0) and of what else a channel set draws (steps 1, 2, ...)
ARRAYS = ("horizontal", "vertical")
LOS_PHASES = ("fixed", "random")
LIGHT = 299792458.0  # m/s
_MASK = 0xFFFFFFFF


class CDLRays(NamedTuple):
    """The rays of B channels, all real and [B,R] or broadcasting to it; angles in the global frame, in radians.

    Attributes:
        amplitude: their squares sum to one over R for a channel of unit mean power.
        delay: seconds.
        phase: initial phase, radians.
        aod, zod: azimuth and zenith of departure.
        aoa, zoa: azimuth and zenith of arrival.
    """

    amplitude: Tensor
    delay: Tensor
    phase: Tensor
    aod: Tensor
    zod: Tensor
    aoa: Tensor
    zoa: Tensor


def profile_of(name: str) -> tuple[str, Profile]:
    """The letter and the table of "A".."E" or "CDL-A".."CDL-E"."""
    letter = name.upper().removeprefix("CDL-") if isinstance(name, str) else name
    if letter not in PROFILES:
        raise ValueError(f"cdl_channels: unknown profile {name!r}; choose one of {', '.join(PROFILES)} (or CDL-A ...)")
    return letter, PROFILES[letter]


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"cdl_channels: {name} must be one of {', '.join(choices)}, got {value!r}")


class Clusters(NamedTuple):
    """Constants of a profile, float64: powers [C] and normalised delays [C] of the scattered clusters, their ray angles
    (AoD, AoA, ZoD, ZoA) [4,C,20] in radians; power and angles (same order) of the specular path, power 0 without one."""

    powers: Tensor
    delays: Tensor
    angles: Tensor
    los_power: float
    los_angles: tuple[float, ...]


def _clusters(letter: str) -> Clusters:
    profile = PROFILES[letter]
    rows = torch.tensor(profile.rows, dtype=torch.float64, device="cpu")
    power = 10 ** (rows[:, 1] / 10)
    power = power / power.sum()
    angles = torch.deg2rad(rows[:, 2:])  # AoD, AoA, ZoD, ZoA
    first = int(profile.los)
    spread = torch.deg2rad(torch.tensor(profile.spreads, dtype=torch.float64, device="cpu"))
    offsets = torch.tensor(OFFSETS, dtype=torch.float64, device="cpu")
    rays = angles[first:].T.unsqueeze(-1) + spread[:, None, None] * offsets
    los: tuple[float, tuple[float, ...]] = (0.0, (0.0, 0.0, 0.0, 0.0))
    if profile.los:  # in plain numbers, which torch.compile can read
        total = sum(10 ** (row[1] / 10) for row in profile.rows)
        los = (10 ** (profile.rows[0][1] / 10) / total, tuple(math.radians(v) for v in profile.rows[0][2:]))
    return Clusters(power[first:], rows[first:, 0], rays, *los)


with torch.inference_mode(False):
    _CLUSTERS = {letter: _clusters(letter) for letter in PROFILES}


def clusters(letter: str) -> Clusters:
    """The table of a profile with its powers normalised to a sum of one and its rays spread (eq. 7.7-0a)."""
    if not torch.compiler.is_dynamo_compiling() and torch._C._len_torch_dispatch_stack():
        return _clusters(letter)  # fake tensors, say, do not mix with others
    return _CLUSTERS[letter]


def words_of(batch: int, count: int, seed: int, first_item: int, step: int, device: torch.device | str) -> Tensor:
    """The first `count` Philox words of items first_item .. first_item + batch - 1, int64 [batch,count]."""
    item = torch.arange(first_item, first_item + batch, device=device).unsqueeze(-1)
    quad = torch.arange((count + 3) // 4, device=device).unsqueeze(0)
    at, stream = (torch.full((), v, dtype=torch.int64, device=device) for v in (step, STREAM))
    words = philox_words((quad, at, item, stream), (seed & _MASK, (seed >> 32) & _MASK))
    return torch.stack(words, -1).flatten(1)[:, :count]


def uniform(words: Tensor) -> Tensor:
    """Uniform on (0, 1), float64."""
    return ((words >> 8).double() + 0.5) * 2.0**-24


class Draw(NamedTuple):
    """turns [B,C,20]: initial phases in cycles. order [B,C,3,20]: which offset of ZoD, AoA and ZoA goes with each AoD.
    los [B]: phase of the specular path in cycles."""

    turns: Tensor
    order: Tensor
    los: Tensor


def draw(letter: str, batch: int, seed: int, first_item: int, los_phase: str, device: torch.device | str) -> Draw:
    """Phases and coupling. A cluster takes 80 words: 20 phases, then 20 keys for each of three orders; the word after
    the last cluster is the phase of the specular path."""
    count = len(clusters(letter).powers)
    words = words_of(batch, count * 4 * RAYS + 1, seed, first_item, 0, device)
    own = words[:, :-1].reshape(batch, count, 4, RAYS)
    # Ties between 32-bit keys fall to the lower index on every device.
    order = torch.argsort(own[:, :, 1:], dim=-1, stable=True)
    los = uniform(words[:, -1]) if los_phase == "random" else words.new_zeros(batch, dtype=torch.float64)
    return Draw(uniform(own[:, :, 0]), order, los)


def rays_of(letter: str, drawn: Draw, delay_spread: float) -> CDLRays:
    """The rays of a draw, scattered clusters first, the specular path last."""
    device = drawn.turns.device
    powers, delays, angles, los_power, los_angles = clusters(letter)
    powers, delays, angles = powers.to(device), delays.to(device) * delay_spread, angles.to(device)
    batch = drawn.turns.shape[0]
    aod = angles[0].expand(batch, -1, -1)
    spread = [angles[which].expand(batch, -1, -1).gather(-1, drawn.order[:, :, k]) for k, which in enumerate((2, 1, 3))]
    fields = [
        (powers / RAYS).sqrt().repeat_interleave(RAYS).unsqueeze(0),
        delays.repeat_interleave(RAYS).unsqueeze(0),
        2 * math.pi * drawn.turns.flatten(1),
        *(t.flatten(1) for t in (aod, *spread)),
    ]
    if los_power:
        at = los_angles[0], los_angles[2], los_angles[1], los_angles[3]
        last = [math.sqrt(los_power), 0.0, 2 * math.pi * drawn.los.unsqueeze(-1), *at]
        fields = [
            torch.cat([t, torch.as_tensor(v, dtype=t.dtype, device=device).expand(t.shape[0], 1)], 1)
            for t, v in zip(fields, last, strict=True)
        ]
    return CDLRays(*fields)


class Link(NamedTuple):
    """What turns drawn rays into paths: uniform linear arrays with elements `wavelengths` apart, their yaws ([] or
    [B,1], float64), and the baseband frequencies [F]."""

    array: str
    wavelengths: float
    tx_yaw: Tensor
    rx_yaw: Tensor
    frequency: Tensor


def progression(azimuth: Tensor, zenith: Tensor, yaw: Tensor, array: str, wavelengths: float) -> Tensor:
    """Cycles per element of plane waves along an array. Horizontal: elements along +y turned by the yaw about z.
    Vertical: the first element on top, so that the phase falls with cos(zenith)."""
    if array == "vertical":
        return -wavelengths * zenith.cos()
    return wavelengths * zenith.sin() * (azimuth - yaw).sin()


def path_gains(rays: CDLRays, frequency: Tensor) -> Tensor:
    """amplitude exp(j (phase - 2 pi f delay)), complex128 [B,F,R]; frequency [F]."""
    turns = torch.remainder(frequency.unsqueeze(-1) * rays.delay.double().unsqueeze(-2), 1.0)
    phase = rays.phase.double().unsqueeze(-2) - 2 * math.pi * turns
    return torch.polar(rays.amplitude.double().unsqueeze(-2).expand_as(phase).contiguous(), phase)


def paths(rays: CDLRays, link: Link, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Gains [.,F,R] of `dtype` and progressions rx, tx [.,R] of its real dtype; . is B or 1."""
    gains = path_gains(rays, link.frequency).to(dtype)
    tx = progression(rays.aod, rays.zod, link.tx_yaw, link.array, link.wavelengths)
    rx = progression(rays.aoa, rays.zoa, link.rx_yaw, link.array, link.wavelengths)
    real = _checks.real_dtype(gains)
    return gains, rx.to(real), tx.to(real)


@functools.lru_cache(maxsize=32)
def _ends(letter: str, array: str, wavelengths: float) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """Of the receiver and of the transmitter: tables zenith, sine, cosine (flat, specular path last) with
    progression = zenith (sine cos(yaw) - cosine sin(yaw))."""
    table = clusters(letter)
    ends = []
    for azimuth, zenith in ((1, 3), (0, 2)):
        last = [torch.tensor([table.los_angles[k]], dtype=torch.float64, device="cpu") for k in (azimuth, zenith)]
        az, zen = (torch.cat([table.angles[k].flatten(), v]) for k, v in zip((azimuth, zenith), last, strict=True))
        if array == "vertical":
            ends.append((-wavelengths * zen.cos(), torch.ones_like(az), torch.zeros_like(az)))
        else:
            ends.append((wavelengths * zen.sin(), az.sin(), az.cos()))
    return tuple(ends)


def native_paths(
    letter: str,
    batch: int,
    seed: int,
    first_item: int,
    los_phase: str,
    delay_spread: float,
    link: Link,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `draw`, `rays_of` and `paths` give, from the CPU kernel."""
    table = clusters(letter)
    los, f = int(table.los_power > 0), link.frequency.shape[0]
    rays = len(table.powers) * RAYS + los
    delays, amplitude = table.delays * delay_spread, (table.powers / RAYS).sqrt()
    if los:
        delays = torch.cat([delays, delays.new_zeros(1)])
        amplitude = torch.cat([amplitude, amplitude.new_full((1,), math.sqrt(table.los_power))])
    turns = torch.remainder(link.frequency.unsqueeze(-1) * delays, 1.0)
    factors = torch.polar(amplitude.expand_as(turns).contiguous(), -2 * math.pi * turns)
    # A vertical array does not feel the yaw.
    still = torch.zeros((), dtype=torch.float64, device="cpu")
    yaws = [still if link.array == "vertical" else yaw for yaw in (link.rx_yaw, link.tx_yaw)]
    turned = [torch.stack([yaw.cos(), yaw.sin()], -1).contiguous() for yaw in yaws]
    tables = _ends(letter, link.array, link.wavelengths)
    ends = [
        (*(t.data_ptr() for t in end), at.data_ptr(), yaw.ndim > 0)
        for end, at, yaw in zip(tables, turned, yaws, strict=True)
    ]
    gains = torch.empty(batch, f, rays, dtype=dtype, device="cpu")
    rx, tx = torch.empty(2, batch, rays, dtype=_checks.real_dtype(gains), device="cpu").unbind(0)
    require_core().cpu_cdl_rays(
        dtype is torch.complex128,
        (batch, len(table.powers), f),
        bool(los),
        los_phase == "random",
        factors.data_ptr(),
        *ends,
        seed & (2**64 - 1),
        STREAM,
        first_item,
        tuple(t.data_ptr() for t in (gains, rx, tx)),
    )
    return gains, rx, tx
