"""One transmission of photographs over a MIMO channel, received blindly and by every baseline."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...baselines.dps import dps_receive
from ...baselines.langevin import langevin_channel
from ...baselines.lmmse import gaussian_pilots, lmmse_pilot_channel, oracle_lmmse_channel
from ...links import channel_nmse, draw_channel, noise_var_from_snr_db, psnr, ssim, transmit
from ...ops import likelihood_score, lmmse_equalise
from ...receivers import PVD, DivergedError, GaussianChannelPrior, PVDConfig
from ..evaluation import Figures
from .bound import linearised_bound
from .codec import RandomLinearEncoder
from .experiment import Link
from .networks import PHOTO_SYMBOLS, load_photo_codec
from .photo_codec import PhotoCodec, PhotoCodecConfig
from .photo_denoiser import PhotoDenoiser

STARTS = 4
PSNR_CAP_DB = 100.0
LANGEVIN_LEVELS = tuple(10 * 1e-3 ** (j / 24) for j in range(25))  # 10 down to 0.01
KNOWN_SIGMA_MAX = 3.0
_PILOT_NOISE = 2**32  # added to the seed: pilots and data meet different noise


def shipped_plain_codec(symbols: int) -> PhotoCodec:
    """The codec trained for noise alone, with so many symbols."""
    return load_photo_codec("plain", symbols=symbols)


@dataclass(frozen=True)
class Networks:
    """What transmitter and receivers use.

    Attributes:
        codec: of blind reception. plain: the codec of its baselines by number of symbols, which spends no energy on being
            told from its reflection.
        prior: the sources' inverse covariance [n,n], for the bound.
    """

    codec: PhotoCodec
    denoiser: PhotoDenoiser
    prior: Tensor = field(repr=False)
    plain: Callable[[int], PhotoCodec] = shipped_plain_codec


class Estimate(NamedTuple):
    """A channel estimate, and the variance [N,K] that its error makes of unit-power symbols in a received entry."""

    h: Tensor
    error: Tensor | float


class KnownChannel:
    """The channel prior of a receiver that knows h [N,1,K,Nr,Nt]: denoised channels are h, without any doubt."""

    def __init__(self, h: Tensor) -> None:
        self.h = h

    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return self.h, self.h.real.new_zeros(self.h.shape[:2])

    def vjp(self, cotangent: Tensor, sigma: Tensor) -> Tensor:
        return torch.zeros_like(cotangent)


def photo_link(codec: PhotoCodec, nr: int = 8) -> Link:
    """The link a codec's symbols are laid out for."""
    c = codec.config
    return Link(c.blocks, nr, c.nt, c.slots)


class Reception:
    """Crops d [N,1,S,S] on [-1,1] sent at one SNR over one channel draw each, and every way to receive them.

    The channel is Rayleigh, one draw per crop from `seed`; noise and pilots come from it too, so that all receivers meet
    the same. PVD has the encoder, the closed-form channel prior and the source denoiser. Receivers with pilots or a known
    channel are sent codewords of a codec of their own, see `Receiver`.

    Args:
        networks, d, snr_db, seed: see above. nr: receive antennas.
        starts: of the blind receiver with several.
        config: of PVD; default its own with this link's sizes.
        dps_steps: network calls of diffusion posterior sampling; default as many as PVD makes.
    """

    def __init__(
        self,
        networks: Networks,
        d: Tensor,
        snr_db: float,
        *,
        seed: int = 0,
        nr: int = 8,
        starts: int = STARTS,
        config: PVDConfig | None = None,
        dps_steps: int | None = None,
    ) -> None:
        self.networks, self.seed, self.starts, self.snr_db = networks, seed, starts, snr_db
        self.link = photo_link(networks.codec, nr)
        self.d = d.unsqueeze(1)
        self._others: dict[int, Reception] = {}
        self.config = config or PVDConfig(nt=self.link.nt, source_shape=tuple(d.shape[1:]))
        self.dps_steps = dps_steps or self.config.J * self.config.Jin
        self.noise_var = noise_var_from_snr_db(float(snr_db), nt=self.link.nt)
        self.h = draw_channel(len(d), 1, self.link.blocks, self.link.nr, self.link.nt, seed=seed)
        with torch.no_grad():
            self.x = networks.codec.encoder(self.d)
        self.y = transmit(self.h, self.x, self.noise_var, seed)
        self._starts: tuple[Tensor, Tensor, Tensor] | None = None

    def receive(self, name: str) -> Figures:
        """What the receiver `name` of RECEIVERS makes of every crop.

        Per crop [N]: nmse (linear), psnr_db, ssim, energy (the residual energy over its expectation at the truth,
        noise_var Nr K T), psnr_known_db for the bound; and recovered, uint8 [N,S,S]. What a receiver does not give is
        left out.
        """
        receiver = RECEIVERS[name]
        with torch.no_grad():
            return receiver.receive(self._with(receiver.symbols))

    def _with(self, symbols: int | None) -> "Reception":
        """The same crops, SNR and channels with the plain codec of so many symbols; None: with this codec."""
        if symbols is None:
            return self
        if symbols not in self._others:
            networks = replace(self.networks, codec=self.networks.plain(symbols))
            self._others[symbols] = Reception(
                networks, self.d.squeeze(1), self.snr_db, seed=self.seed, nr=self.link.nr, starts=self.starts,
                config=self.config, dps_steps=self.dps_steps,
            )  # fmt: skip
        return self._others[symbols]

    def _figures(self, h: Tensor | None = None, d: Tensor | None = None) -> Figures:
        found: Figures = {}
        if h is not None:
            found["nmse"] = channel_nmse(self.h, h).double().numpy()
        if d is not None:
            sent, recovered = self.d.squeeze(1), d.squeeze(1).float()
            found["psnr_db"] = psnr(sent, recovered, cap_db=PSNR_CAP_DB).double().numpy()
            found["ssim"] = ssim(sent, recovered).double().numpy()
            pixels = ((recovered.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            found["recovered"] = pixels.squeeze(1).numpy()
        return found

    def _residual(self, h: Tensor, d: Tensor) -> Tensor:
        """|Y - H f(D)|^2 over noise_var Nr K T."""
        y = self.y.repeat_interleave(len(d) // len(self.y), 0)
        energy = likelihood_score(y, h, self.networks.codec.encoder(d)).energy
        return energy / (self.noise_var * self.y[0].numel())

    def _all_starts(self) -> tuple[Tensor, Tensor, Tensor]:
        """h, d and residual energy of every start, [N*R, ...]: the draws of PVD.run(restarts=R)."""
        if self._starts is None:
            net = self.networks
            receiver = PVD(net.codec.encoder, GaussianChannelPrior(), net.denoiser, self.config)
            self._starts = self._run(receiver, self.y.repeat_interleave(self.starts, 0))
        return self._starts

    def _run(self, receiver: PVD, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        try:
            result = receiver.run(y, self.noise_var, seed=self.seed)
        except DivergedError as err:
            result = err.result
        h, d = (torch.nan_to_num(t, nan=0.0, posinf=0.0, neginf=0.0) for t in (result.h, result.d))
        return h, d, self._residual(h, d)

    def _blind(self, several: bool) -> Figures:
        h, d, energy = (t.unflatten(0, (-1, self.starts)) for t in self._all_starts())
        best = energy.argmin(1) if several else torch.zeros(len(energy), dtype=torch.long)
        rows = torch.arange(len(energy))
        found = self._figures(h[rows, best], d[rows, best]) | {"energy": energy[rows, best].double().numpy()}
        if not several:  # every start counts in the success rate of one
            each = channel_nmse(self.h.repeat_interleave(self.starts, 0), h.flatten(0, 1)).view(-1, self.starts)
            found["nmse_starts"] = each.double().numpy()
            found["energy_starts"] = energy.double().numpy()
        return found

    def _pilots(self, multiple: int) -> tuple[Tensor, Tensor]:
        """Gaussian random pilots of `multiple` M slots per block [N,1,K,Nt,Np], and what was received of them."""
        k, _, nt = self.h.shape[2:]
        x = gaussian_pilots(
            len(self.h), 1, k, nt, multiple * self.link.streams, seed=self.seed, dtype=self.h.dtype
        )  # fmt: skip
        return x, transmit(self.h, x, self.noise_var, self.seed + _PILOT_NOISE)

    def _lmmse(self, multiple: int) -> Estimate:
        x, y = self._pilots(multiple)
        x1 = x.squeeze(1)
        precision = torch.eye(self.link.nt) + x1 @ x1.mH / self.noise_var
        error = torch.linalg.inv(precision).diagonal(dim1=-2, dim2=-1).real.sum(-1)
        return Estimate(lmmse_pilot_channel(y, x, self.noise_var), error)

    def _langevin(self, multiple: int) -> Estimate:
        """Annealed Langevin dynamics with the score of the Rayleigh prior; its error is taken to be LMMSE's."""
        x, y = self._pilots(multiple)
        h = langevin_channel(
            y.flatten(0, 1), x.flatten(0, 2), self.noise_var, lambda h, sigma: h / -(1 + sigma**2), LANGEVIN_LEVELS,
            rate=0.3, per_level=10, seed=self.seed,
        )  # fmt: skip
        return Estimate(h.view_as(self.h), self._lmmse(multiple).error)

    def _decode(self, estimate: Estimate) -> Tensor:
        """LMMSE equalisation, the estimate's error taken for more noise, then the decoder."""
        h = estimate.h.squeeze(1).unsqueeze(2)
        symbols, noise = lmmse_equalise(self.y.transpose(-1, -2), h, self.noise_var + estimate.error)
        x = symbols.transpose(-1, -2).unsqueeze(1)
        level = noise.expand(symbols.shape).flatten(1).mean(1)
        return self.networks.codec.decoder(x, level)

    def _dps(self, estimate: Estimate) -> Tensor:
        net, error, levels = self.networks, torch.as_tensor(estimate.error), self.config.schedule()
        return dps_receive(
            self.y, estimate.h, self.noise_var, net.codec.encoder, net.denoiser, steps=self.dps_steps,
            source_shape=self.config.source_shape, sigma_max=levels[-1], sigma_min=levels[0],
            channel_error=error.mean(-1) if error.ndim else error, seed=self.seed,
        )  # fmt: skip

    def _piloted(self, estimate: Estimate, receive: Callable[["Reception", Estimate], Tensor]) -> Figures:
        return self._figures(estimate.h, receive(self, estimate))

    def _known(self, receive: Callable[["Reception", Estimate], Tensor]) -> Figures:
        return self._figures(d=receive(self, Estimate(self.h, 0.0)))

    def _known_to_pvd(self, **changes: float) -> Figures:
        """PVD of the source alone.

        Blindly the channel's uncertainty keeps (42) large where the source is still vague. Without it the step on the
        source was mostly beyond its limit of stability at the middle levels (four crops, 15 dB), and many a source ends
        where its denoiser saturates. A schedule from KNOWN_SIGMA_MAX down avoids most of that, not all.
        """
        config = replace(self.config, **changes)  # type: ignore[arg-type]
        receiver = PVD(self.networks.codec.encoder, KnownChannel(self.h), self.networks.denoiser, config)
        return self._figures(d=self._run(receiver, self.y)[1])

    def _moment_matched(self) -> Figures:
        """One start with the effective noise taken from the residual's own energy instead of (42)'s probe."""
        net, config = self.networks, replace(self.config, calibration="moment")
        receiver = PVD(net.codec.encoder, GaussianChannelPrior(), net.denoiser, config)
        h, d, energy = self._run(receiver, self.y)
        return self._figures(h, d) | {"energy": energy.double().numpy()}

    def _oracle(self) -> Figures:
        return self._figures(oracle_lmmse_channel(self.y, self.x, self.noise_var))

    def _bound(self) -> Figures:
        codec = PhotoCodec(self.networks.codec.config).double().requires_grad_(False).eval()
        codec.load_state_dict(self.networks.codec.state_dict())
        return self._predicted(codec.encoder)

    def _bound_of_random_code(self) -> Figures:
        link, n = self.link, self.d[0].numel()
        linear = RandomLinearEncoder(link.blocks, link.nt, link.slots, dim=n, dtype=torch.complex128)
        return self._predicted(lambda d: linear(d.flatten(2)))

    def _predicted(self, encoder: Callable[[Tensor], Tensor]) -> Figures:
        predicted = [
            linearised_bound(encoder, h.to(torch.complex128), d.double(), self.noise_var, self.networks.prior)
            for h, d in zip(self.h, self.d, strict=True)
        ]
        nmse, mse, known = (torch.stack([getattr(p, name)[0] for p in predicted]) for name in predicted[0]._fields)
        return {
            "nmse": nmse.numpy(),
            "psnr_db": (-10 * (mse / 4).log10()).numpy(),
            "psnr_known_db": (-10 * (known / 4).log10()).numpy(),
        }


class Receiver(NamedTuple):
    """One way to receive.

    Attributes:
        symbols: of the plain codec that it is sent; None: it is sent the codec of blind reception.
        pilots: slots per block over M, the number of transmit antennas.
        equal_cbr: pilots are inside blocks of T slots and the codeword is shorter, instead of more blocks.
    """

    receive: Callable[[Reception], Figures]
    symbols: int | None = None
    pilots: int = 0
    equal_cbr: bool = False


def _with_pilots(multiple: int, symbols: int = PHOTO_SYMBOLS, estimate=Reception._lmmse, receive=Reception._decode):
    return Receiver(
        lambda reception: reception._piloted(estimate(reception, multiple), receive),
        symbols, multiple, symbols != PHOTO_SYMBOLS,
    )  # fmt: skip


_BLOCKS_NT = PHOTO_SYMBOLS // PhotoCodecConfig.slots
_LESS_M, _LESS_2M = (PHOTO_SYMBOLS - _BLOCKS_NT * PhotoCodecConfig.nt * multiple for multiple in (1, 2))

RECEIVERS: dict[str, Receiver] = {
    "pvd": Receiver(lambda reception: reception._blind(False)),
    "pvd-starts": Receiver(lambda reception: reception._blind(True)),
    "pvd-plain": Receiver(lambda reception: reception._blind(True), PHOTO_SYMBOLS),
    "pvd-moment": Receiver(Reception._moment_matched),
    "pvd-csi": Receiver(Reception._known_to_pvd),
    "pvd-csi-low": Receiver(lambda reception: reception._known_to_pvd(sigma_max=KNOWN_SIGMA_MAX)),
    "bound": Receiver(Reception._bound),
    "bound-random": Receiver(Reception._bound_of_random_code),
    "oracle": Receiver(Reception._oracle),
    "lmmse-m": _with_pilots(1),
    "lmmse-2m": _with_pilots(2),
    "lmmse-m-equal": _with_pilots(1, _LESS_M),
    "lmmse-2m-equal": _with_pilots(2, _LESS_2M),
    "langevin-m": _with_pilots(1, estimate=Reception._langevin),
    "dps-m": _with_pilots(1, receive=Reception._dps),
    "dps-m-equal": _with_pilots(1, _LESS_M, receive=Reception._dps),
    "dps-csi": Receiver(lambda reception: reception._known(Reception._dps), PHOTO_SYMBOLS),
    "djscc-csi": Receiver(lambda reception: reception._known(Reception._decode), PHOTO_SYMBOLS),
}


def cbr(name: str, codec: PhotoCodec) -> float:
    """Channel uses per pixel of a receiver.

    With Np pilots in every block of T slots a codeword as long as the blind one takes T/(T - Np) times as many blocks; at
    equal CBR the codeword is shorter. `codec` is that of blind reception.
    """
    link, receiver = photo_link(codec), RECEIVERS[name]
    pilots = 0 if receiver.equal_cbr else receiver.pilots * link.streams
    return link.cbr(pilots, math.prod((codec.config.side,) * 2))
