"""Separate source and channel coding over the multi-user MIMO OFDM downlink: the classical link to compare with.

Image codec, 5G LDPC code, QAM, regularised zero-forcing at the base station, least-squares channel estimates from comb
pilots and scalar LMMSE equalisation at every user. LDPC and QAM are Sionna's, so this needs the extra `sionna`.

Source: the SSCC baseline of "Scenario-Adaptive MU-MIMO OFDM Semantic Communication With Asymmetric Neural Network".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import require_extra
from ..links import psnr
from ..links.mu_mimo_ofdm import ResourceGrid, estimated_channel, precode, receive
from ..ops import philox_normal
from .sscc_codecs import CODECS, Codec, best_fit, from_pixels, to_pixels

_SCRAMBLER_STEP = 8  # of the user stream; the link draws with smaller ones
_SMALLEST_NOISE = 1e-4  # the LDPC decoder clips its input at 20 anyway
PSNR_CAP = 100.0  # dB, for images recovered without any error


@dataclass(frozen=True)
class Mode:
    """A modulation and code rate: `bits` per QAM symbol, an exact fraction of which is information."""

    bits: int
    rate: Fraction

    def budget_bits(self, grid: ResourceGrid) -> int:
        """B_max = floor(Nst Nf m r): information bits one user gets in a slot."""
        return int(grid.data_elements * self.bits * self.rate)

    def coded_bits(self, grid: ResourceGrid) -> int:
        """n = Nst Nf m: coded bits of one user in a slot."""
        return grid.data_elements * self.bits

    def __str__(self) -> str:
        return f"{2**self.bits}QAM r={self.rate}"


MODES = tuple(Mode(bits, rate) for bits in (2, 4) for rate in (Fraction(1, 2), Fraction(2, 3)))


class SourceCoded(NamedTuple):
    """Images after the source codec.

    Attributes:
        bits: [N,k] 0. and 1., zero padded; all zero for an image over budget.
        sizes: [N] bytes of each payload; 0 over budget.
        psnr: [N] dB that the codec alone reaches; 0 over budget.
        images: [N,3,H,W] what a receiver without bit errors shows; black over budget.
    """

    bits: Tensor
    sizes: Tensor
    psnr: Tensor
    images: Tensor


class SSCCResult(NamedTuple):
    """What B slots brought to K users.

    Attributes:
        psnr: [B,K] dB; 0 over budget and after a block error.
        images: [B,K,3,H,W] recovered; black where psnr is 0.
        block_error: [B,K] whether the information bits came out wrong, whatever they stood for.
        over_budget: [B,K] whether no quality of the codec fits the slot.
        source_psnr: [B,K] dB without transmission; 0 over budget.
    """

    psnr: Tensor
    images: Tensor
    block_error: Tensor
    over_budget: Tensor
    source_psnr: Tensor


class SSCC:
    """The classical link in one mode.

    Args:
        grid: resource grid; every user's slot is one LDPC code block.
        mode: modulation and rate, one of `MODES` or another.
        codec: "jpeg" (payload JPEG), "webp", "bpg", or an object like those of `sscc_codecs`.
        iterations: of the LDPC decoder.
        device: where the link runs.

    Raises:
        MissingExtra: Sionna or Pillow is not installed; the message names the extra `sionna`.
    """

    def __init__(
        self,
        grid: ResourceGrid,
        mode: Mode,
        codec: str | Codec = "jpeg",
        *,
        iterations: int = 20,
        device: torch.device | str = "cpu",
    ) -> None:
        if isinstance(codec, str) and codec not in CODECS:
            raise ValueError(f"codec must be one of {', '.join(CODECS)}, got {codec!r}")
        self.grid, self.mode = grid, mode
        self.codec: Codec = CODECS[codec]() if isinstance(codec, str) else codec
        self._device = torch.device(device)
        ldpc: Any = require_extra("sionna.phy.fec.ldpc", "sionna")
        mapping: Any = require_extra("sionna.phy.mapping", "sionna")
        single = {"precision": "single", "device": str(self._device)}
        self._encoder = ldpc.LDPC5GEncoder(
            mode.budget_bits(grid), mode.coded_bits(grid), num_bits_per_symbol=mode.bits, **single
        )
        self._decoder = ldpc.LDPC5GDecoder(self._encoder, num_iter=iterations, **single)
        self._mapper = mapping.Mapper("qam", mode.bits, **single)
        self._demapper = mapping.Demapper("app", "qam", mode.bits, **single)

    @property
    def budget_bytes(self) -> int:
        """Whole bytes of information one user gets in a slot."""
        return self.mode.budget_bits(self.grid) // 8

    @cached_property
    def _scrambling(self) -> Tensor:
        """Fixed random bits [n] added to every codeword: zero padding must not shape the transmitted power."""
        draw = philox_normal((1, self.mode.coded_bits(self.grid)), seed=0, step=_SCRAMBLER_STEP, device=self._device)
        return (draw[0] < 0).float()

    def source_code(self, images: Tensor) -> SourceCoded:
        """Each image [N,3,H,W] on [0,1] at the highest quality that fits the slot."""
        size = (images.shape[-2], images.shape[-1])
        bits = torch.zeros(len(images), self.mode.budget_bits(self.grid))
        sizes = torch.zeros(len(images), dtype=torch.long)
        shown = torch.zeros(images.shape)
        for i, image in enumerate(images):
            payload = best_fit(self.codec, to_pixels(image), self.budget_bytes)
            if payload is not None:
                padded = payload.ljust(self.budget_bytes, b"\0")
                bits[i, : 8 * len(padded)] = _to_bits(padded)
                sizes[i] = len(payload)
                shown[i] = from_pixels(self.codec.decode(padded, size))
        quality = psnr(images.cpu(), shown, low=0.0, high=1.0, cap_db=PSNR_CAP)
        quality = torch.where(sizes > 0, quality, 0.0)
        return SourceCoded(*(t.to(images.device) for t in (bits, sizes, quality, shown)))

    def transmit_bits(
        self,
        bits: Tensor,
        h: Tensor,
        noise_var: float | Tensor,
        *,
        seed: int,
        first_item: int = 0,
        csi_error_var: float = 0.0,
    ) -> Tensor:
        """Information bits [B,K,k] through code, link and decoder.

        Args:
            bits: 0. and 1.
            h: [B,Nf,Nt or 1,K,M] complex64, known to the base station and to nobody else.
            noise_var: E|n|^2; a number or [B]. The base station regularises with it; users know it.
            seed, first_item: of the noise, as in `semcom_fast.links.mu_mimo_ofdm.receive`.
            csi_error_var: variance per entry of what the base station's h is off by; 0 is the paper's perfect knowledge.

        Returns:
            decoded bits [B,K,k].
        """
        coded = (self._encoder(bits) - self._scrambling).abs()
        data = self._mapper(coded).unflatten(-1, (self.grid.subcarriers, -1))  # [B,K,Nf,Nst]
        known = estimated_channel(h, csi_error_var, seed=seed, first_item=first_item)
        x = precode(known, self.grid.insert(data.permute(0, 2, 3, 1)), noise_var)
        y = receive(h, x, noise_var, seed=seed, first_item=first_item)
        s_hat, noise_eff = self._equalise(y, noise_var, static=h.shape[2] == 1)
        llr = self._demapper(s_hat.flatten(2), noise_eff.flatten(2))  # [B,K,n]
        return self._decoder(llr * (1 - 2 * self._scrambling))

    def _equalise(self, y: Tensor, noise_var: float | Tensor, *, static: bool) -> tuple[Tensor, Tensor]:
        """Unbiased data symbols [B,K,Nf,Nst] of y [B,Nf,Nt,K], and their noise variances."""
        noise = torch.as_tensor(noise_var, device=y.device, dtype=y.real.dtype)
        noise = noise.reshape(-1, 1, 1, 1) + self._interference(y, noise.reshape(-1, 1))[:, None, None]
        gain = self.grid.extract(estimate_gain(self.grid, y, static=static))
        # For one stream per user diag(G h)^-1 G y is y/h, with noise_eff = noise/|h|^2.
        power = gain.abs().square().clamp_min(torch.finfo(y.real.dtype).tiny)
        s_hat = self.grid.extract(y) * gain.conj() / power
        noise_eff = (noise / power).clamp_min(_SMALLEST_NOISE)
        return s_hat.permute(0, 3, 1, 2), noise_eff.permute(0, 3, 1, 2)

    def _interference(self, y: Tensor, noise_var: Tensor) -> Tensor:
        """Power [B,K] that the other users' data leave at each user, measured on the pilot elements it leaves empty.

        There one other user sends with power K. Averaged over those elements that is K/(K-1) times the sum over the
        other users of |h_k v_j|^2, the interference of data of power 1.
        """
        users = self.grid.users
        if users == 1:
            return torch.zeros(len(y), 1, device=y.device)
        mask = self.grid.pilot_mask.to(y.device)
        empty = (mask.any(-1, keepdim=True) & ~mask).to(y.real.dtype)
        heard = (y.abs().square() * empty).sum((1, 2)) / empty.sum((0, 1))
        return (heard - noise_var).clamp_min(0) * (users - 1) / users

    def run(self, images: Tensor, h: Tensor, noise_var: float | Tensor, **options: Any) -> SSCCResult:
        """Send images [B,K,3,H,W] on [0,1], one per user, over channels h [B,Nf,Nt or 1,K,M]; options are those of
        `transmit_bits`."""
        coded = self.source_code(images.flatten(0, 1))
        return self.deliver(
            SourceCoded(*(part.unflatten(0, images.shape[:2]) for part in coded)), h, noise_var, **options
        )

    def deliver(self, coded: SourceCoded, h: Tensor, noise_var: float | Tensor, **options: Any) -> SSCCResult:
        """Send what `source_code` made, its parts as [B,K,...]: a codec's work is done once for many channels."""
        wrong = (self.transmit_bits(coded.bits, h, noise_var, **options) != coded.bits).any(-1)
        over = coded.sizes == 0
        lost = wrong | over
        return SSCCResult(
            psnr=coded.psnr.masked_fill(lost, 0.0),
            images=coded.images.masked_fill(lost[..., None, None, None], 0.0),
            block_error=wrong,
            over_budget=over,
            source_psnr=coded.psnr,
        )


def estimate_gain(grid: ResourceGrid, y: Tensor, *, static: bool) -> Tensor:
    """Least-squares estimates of every user's effective channel, h_k v_k, from its own pilots.

    y/p on the user's comb, linear interpolation over subcarriers, held beyond the outermost pilots. Over symbols: the
    mean of the pilot symbols for a static channel, else linear interpolation, held outside.

    Args:
        y: [B,Nf,Nt,K].

    Returns:
        [B,Nf,Nt,K].
    """
    pilots = grid.pilots.to(y)
    times = list(grid.pilot_symbols)
    over_time = torch.full((grid.symbols, len(times)), 1 / len(times)) if static else _linear(times, grid.symbols)
    gains = []
    for user in range(grid.users):
        comb = list(range(user, grid.subcarriers, grid.users))
        sent = pilots[user :: grid.users, times, user]
        measured = y[:, user :: grid.users, :, user][:, :, times] / sent  # [B, comb, pilot symbols]
        over_frequency = _linear(comb, grid.subcarriers)
        gains.append(over_frequency.to(y) @ measured @ over_time.to(y).mT)
    return torch.stack(gains, dim=-1)


def _linear(known: Sequence[int], count: int) -> Tensor:
    """Weights [count,len(known)] of linear interpolation from positions `known` (held outside) to 0..count-1."""
    order = np.argsort(known)
    columns = [np.interp(np.arange(count), np.asarray(known)[order], row[order]) for row in np.eye(len(known))]
    return torch.from_numpy(np.stack(columns, axis=1)).float()


def _to_bits(data: bytes) -> Tensor:
    return torch.from_numpy(np.unpackbits(np.frombuffer(data, np.uint8))).float()
