"""Multi-user MIMO OFDM downlink in the frequency domain: resource grid with pilots, precoding, channel, noise.

Shapes: B grids, Nf subcarriers, Nt OFDM symbols of which Nst carry data, K single-antenna users, M base-station
antennas. A channel is h [B,Nf,Nt,K,M], or [B,Nf,1,K,M] when it stays the same over the slot; either way may be a view.
Draws are counter-based (docs/conventions.md): grid b gets the numbers of item `first_item + b` of the user stream, step
1 for noise, step 2 for pilots, step 5 for the transmitter's channel error.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..ops import blockdiag_apply, philox_normal, power_normalise, rzf_precode

_USER_STREAM = 0
_NOISE_STEP = 1
_PILOT_STEP = 2
_CSI_ERROR_STEP = 5


@dataclass(frozen=True)
class ResourceGrid:
    """One slot of an OFDM downlink with a frequency comb of pilots for every user.

    On the pilot symbols user k owns subcarriers k, k + K, k + 2K, ... and sends nothing on the others, so users' pilots
    are orthogonal. Pilots are QPSK of amplitude sqrt(K), drawn once from `seed`: over the pilot symbols a user's mean
    energy is 1, as on its data. Nobody sends data there.

    Attributes:
        subcarriers: Nf, at least K so that everyone has a pilot.
        symbols: Nt.
        users: K.
        pilot_symbols: which OFDM symbols carry pilots.
        seed: of the pilots.

    Source: "Scenario-Adaptive MU-MIMO OFDM Semantic Communication With Asymmetric Neural Network", Table II.
    """

    subcarriers: int
    symbols: int = 14
    users: int = 4
    pilot_symbols: tuple[int, ...] = (2, 11)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.users < 1 or self.subcarriers < self.users:
            raise ValueError(f"{self.users} users need as many subcarriers or more, got {self.subcarriers}")
        inside = all(0 <= symbol < self.symbols for symbol in self.pilot_symbols)
        if not inside or len(set(self.pilot_symbols)) != len(self.pilot_symbols):
            raise ValueError(f"pilot symbols must be different ones of {self.symbols}, got {self.pilot_symbols}")

    @cached_property
    def data_symbols(self) -> tuple[int, ...]:
        """The OFDM symbols that carry data."""
        return tuple(symbol for symbol in range(self.symbols) if symbol not in self.pilot_symbols)

    @property
    def data_elements(self) -> int:
        """Data resource elements per user, Nf * Nst."""
        return self.subcarriers * len(self.data_symbols)

    @cached_property
    def pilot_mask(self) -> Tensor:
        """Who owns which pilot element [Nf,Nt,K], bool."""
        mask = torch.zeros(self.subcarriers, self.symbols, self.users, dtype=torch.bool)
        carrier = torch.arange(self.subcarriers)
        for symbol in self.pilot_symbols:
            mask[carrier, symbol, carrier % self.users] = True
        return mask

    @cached_property
    def pilots(self) -> Tensor:
        """Every user's pilots, zero elsewhere [Nf,Nt,K], complex64."""
        draw = philox_normal(
            self.pilot_mask.shape, seed=self.seed, step=_PILOT_STEP, stream=_USER_STREAM, dtype=torch.complex64
        )
        qpsk = torch.complex(draw.real.sign(), draw.imag.sign()) * (self.users / 2) ** 0.5
        return torch.where(self.pilot_mask, qpsk, torch.zeros(()))

    def insert(self, data: Tensor) -> Tensor:
        """Data [B,Nf,Nst,K] and the pilots -> the slot's symbols s [B,Nf,Nt,K]."""
        expected = (self.subcarriers, len(self.data_symbols), self.users)
        if data.ndim != 4 or tuple(data.shape[1:]) != expected:
            raise ValueError(f"this grid takes data [B,{','.join(map(str, expected))}], got {tuple(data.shape)}")
        s = self.pilots.to(data).expand(len(data), -1, -1, -1).clone()
        s[:, :, list(self.data_symbols)] = data
        return s

    def extract(self, grid: Tensor) -> Tensor:
        """The data symbols of a grid [B,Nf,Nt,...] -> [B,Nf,Nst,...]."""
        return grid[:, :, list(self.data_symbols)]


def normalise_symbols(data: Tensor) -> Tensor:
    """Every user's data symbols [B,K,Nf,Nst] scaled to mean |s|^2 = 1 over its Nf*Nst elements."""
    return power_normalise(data, dims=2)[0]


def normalise_power(x: Tensor, total_power: float | None = None) -> Tensor:
    """The transmit grid [B,Nf,Nt,M] scaled per batch item.

    Args:
        total_power: mean over (f,t) of sum_m |x|^2; None means M, that is power 1 per antenna.
    """
    return power_normalise(x, power=per_antenna(x.shape[-1], total_power), dims=3)[0]


def per_antenna(antennas: int, total_power: float | None) -> float:
    """Mean |x|^2 per antenna and element that a total power per element (None: 1 per antenna) stands for."""
    power = 1.0 if total_power is None else total_power / antennas
    if not power > 0:
        raise ValueError(f"the total power must be positive, got {total_power}")
    return power


def precode(
    h: Tensor,
    s: Tensor,
    alpha: float | Tensor,
    *,
    total_power: float | None = None,
    normalise: bool = True,
    on_singular: str | None = None,
) -> Tensor:
    """Regularised zero-forcing of a slot.

    Model: x = c h^H (h h^H + alpha I)^-1 s on every resource element; one c per batch item meets the power.

    Args:
        h: [B,Nf,Nt or 1,K,M] complex.
        s: [B,Nf,Nt,K] complex.
        alpha: the whole regulariser; a number or [B]. noise_var for the MMSE choice, 0 for zero-forcing.
        total_power: see `normalise_power`.
        normalise: False leaves x as the formula gives it (c = 1).
        on_singular: see `semcom_fast.rzf_precode`; matters for alpha = 0.

    Returns:
        x [B,Nf,Nt,M].

    Source: the paper's eqs. (3), (7).
    """
    if h.ndim != 5 or s.ndim != 4 or h.shape[2] not in (1, s.shape[2]):
        raise ValueError(f"need h [B,Nf,Nt or 1,K,M] and s [B,Nf,Nt,K], got {tuple(h.shape)} and {tuple(s.shape)}")
    power = per_antenna(h.shape[-1], total_power) if normalise else None
    x = rzf_precode(h, s, alpha, power=power, on_singular=on_singular)
    assert isinstance(x, Tensor)  # the pair is for return_info only
    return x


def apply_channel(h: Tensor, x: Tensor) -> Tensor:
    """Noiseless reception y_k = sum_m h_km x_m on every element: h [B,Nf,Nt or 1,K,M], x [B,Nf,Nt,M] -> [B,Nf,Nt,K]."""
    if h.ndim != 5 or x.ndim != 4 or h.shape[2] not in (1, x.shape[2]):
        raise ValueError(f"need h [B,Nf,Nt or 1,K,M] and x [B,Nf,Nt,M], got {tuple(h.shape)} and {tuple(x.shape)}")
    if h.shape[2] == 1:  # subcarriers are blocks, OFDM symbols their slots
        return blockdiag_apply(h[:, :, 0].unsqueeze(1), x.mT.unsqueeze(1)).mT
    y = blockdiag_apply(h.flatten(1, 2).unsqueeze(1), x.flatten(1, 2)[:, None, ..., None])
    return y.squeeze(-1).unflatten(1, tuple(x.shape[1:3]))


def _draw(shape: torch.Size, like: Tensor, seed: int, step: int, first_item: int) -> Tensor:
    return philox_normal(
        shape, seed=seed, step=step, stream=_USER_STREAM, first_item=first_item, dtype=like.dtype, device=like.device
    )


def receive(
    h: Tensor,
    x: Tensor,
    noise_var: float | Tensor,
    *,
    noise: Tensor | None = None,
    seed: int | None = None,
    first_item: int = 0,
) -> Tensor:
    """What the users get: y_k = sum_m h_km x_m + n_k, n_k ~ CN(0, noise_var).

    Args:
        h: [B,Nf,Nt or 1,K,M]; x: [B,Nf,Nt,M].
        noise_var: E|n|^2; a number or [B].
        noise: standard complex normals [B,Nf,Nt,K] to use; otherwise drawn from `seed`.

    Returns:
        y [B,Nf,Nt,K].

    Raises:
        ValueError: neither `noise` nor `seed`.

    Source: the paper's eq. (2), whose noise index should be the user's.
    """
    y = apply_channel(h, x)
    if noise is None:
        if seed is None:
            raise ValueError("a noisy reception needs noise= or seed=")
        noise = _draw(y.shape, y, seed, _NOISE_STEP, first_item)
    scale = torch.as_tensor(noise_var, device=y.device, dtype=y.real.dtype).sqrt()
    return y + noise * scale.reshape(scale.shape + (1,) * (y.ndim - scale.ndim))


def estimated_channel(h: Tensor, csi_error_var: float, *, seed: int, first_item: int = 0) -> Tensor:
    """What a transmitter with imperfect knowledge takes for h: h + e, e ~ CN(0, csi_error_var) per entry."""
    if csi_error_var < 0:
        raise ValueError(f"csi_error_var must not be negative, got {csi_error_var}")
    if csi_error_var == 0:
        return h
    return h + _draw(h.shape, h, seed, _CSI_ERROR_STEP, first_item) * csi_error_var**0.5
