"""One transmission of photographs over a MIMO channel, received blindly and by every baseline."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...baselines.dps import dps_receive
from ...baselines.lmmse import gaussian_pilots, lmmse_pilot_channel, oracle_lmmse_channel
from ...links import channel_nmse, draw_channel, noise_var_from_snr_db, psnr, ssim, transmit
from ...ops import likelihood_score, lmmse_equalise
from ...receivers import PVD, DivergedError, GaussianChannelPrior, PVDConfig
from ..evaluation import Figures
from .bound import linearised_bound
from .codec import RandomLinearEncoder
from .experiment import Link
from .photo_codec import PhotoCodec
from .photo_denoiser import PhotoDenoiser

STARTS = 4
PSNR_CAP_DB = 100.0
_PILOT_NOISE = 2**32  # added to the seed: pilots and data meet different noise


@dataclass(frozen=True)
class Networks:
    """What transmitter and receivers use; `prior` is the sources' inverse covariance [n,n], for the bound."""

    codec: PhotoCodec
    denoiser: PhotoDenoiser
    prior: Tensor = field(repr=False)


def photo_link(codec: PhotoCodec, nr: int = 8) -> Link:
    """The link a codec's symbols are laid out for."""
    c = codec.config
    return Link(c.blocks, nr, c.nt, c.slots)


class Reception:
    """Crops d [N,1,S,S] on [-1,1] sent at one SNR over one channel draw each, and every way to receive them.

    The channel is Rayleigh, one draw per crop from `seed`; noise and pilots come from it too, so that all receivers meet
    the same. PVD has the encoder, the closed-form channel prior and the source denoiser.

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
        self.networks, self.seed, self.starts = networks, seed, starts
        self.link = photo_link(networks.codec, nr)
        self.d = d.unsqueeze(1)
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
        noise_var Nr K T), psnr_known_db for the bound; and recovered, uint8 [N,S,S]. What a receiver does not give is left out.
        """
        with torch.no_grad():
            return RECEIVERS[name](self)

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

    def _estimate(self, pilots: int) -> Tensor:
        """LMMSE channel estimate from Gaussian random pilots of `pilots` slots per block."""
        k, _, nt = self.h.shape[2:]
        x = gaussian_pilots(len(self.h), 1, k, nt, pilots, seed=self.seed, dtype=self.h.dtype)
        y = transmit(self.h, x, self.noise_var, self.seed + _PILOT_NOISE)
        return lmmse_pilot_channel(y, x, self.noise_var)

    def _decode(self, h: Tensor) -> Tensor:
        """LMMSE equalisation with h as if it were the channel, then the decoder."""
        symbols, noise = lmmse_equalise(self.y.transpose(-1, -2), h.squeeze(1).unsqueeze(2), self.noise_var)
        x = symbols.transpose(-1, -2).unsqueeze(1)
        level = noise.expand(symbols.shape).flatten(1).mean(1)
        return self.networks.codec.decoder(x, level)

    def _piloted(self, multiple: int) -> Figures:
        h = self._estimate(multiple * self.link.streams)
        return self._figures(h, self._decode(h))

    def _dps(self, h: Tensor) -> Tensor:
        net = self.networks
        return dps_receive(
            self.y, h, self.noise_var, net.codec.encoder, net.denoiser, source_shape=self.config.source_shape,
            steps=self.dps_steps, sigma_max=self.config.sigma_max, sigma_min=self.config.sigma_min, seed=self.seed,
        )  # fmt: skip

    def _dps_piloted(self) -> Figures:
        h = self._estimate(self.link.streams)
        return self._figures(h, self._dps(h))

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


RECEIVERS: dict[str, Callable[[Reception], Figures]] = {
    "pvd": lambda reception: reception._blind(False),
    "pvd-starts": lambda reception: reception._blind(True),
    "bound": Reception._bound,
    "bound-random": Reception._bound_of_random_code,
    "lmmse-m": lambda reception: reception._piloted(1),
    "lmmse-2m": lambda reception: reception._piloted(2),
    "dps-m": Reception._dps_piloted,
    "dps-csi": lambda reception: reception._figures(d=reception._dps(reception.h)),
    "oracle": lambda r: r._figures(oracle_lmmse_channel(r.y, r.x, r.noise_var)),
    "djscc-csi": lambda reception: reception._figures(d=reception._decode(reception.h)),
}
PILOTS = {"lmmse-m": 1, "lmmse-2m": 2, "dps-m": 1}  # multiples of M


def cbr(name: str, codec: PhotoCodec) -> float:
    """Channel uses per pixel with a receiver's pilots in every block of T slots."""
    link = photo_link(codec)
    return link.cbr(PILOTS.get(name, 0) * link.streams, math.prod((codec.config.side,) * 2))
