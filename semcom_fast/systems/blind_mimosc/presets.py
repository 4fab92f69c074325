"""The antenna settings of the paper's tables as one command each, at any size of source and networks."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...baselines import oracle_lmmse_channel
from ...data.photos import PhotoCrops
from ...links import channel_nmse, draw_channel, noise_var_from_snr_db, psnr, ssim, transmit
from ...ops import cdl_channels, lmmse_equalise
from ...receivers import PVD, DivergedError, GaussianChannelPrior, PVDConfig, PVDResult, run_in_batches
from .channel_laws import ChannelLaw
from .experiment import SUCCESS_DB, Link
from .networks import load_photo_codec, load_photo_denoiser
from .paper_nets import RANDOM, PaperNetworks, layout_of, load_networks, parameters, random_networks
from .photo_images import SIDE, as_source, grey

SYMBOLS = 384  # of the shipped codec: K Nt T of every preset for T = 24
CROPS = 4
STEPS = 4
COVARIANCE_DRAWS = 1000
_COVARIANCE_SEED = 2**40  # evaluations use small seeds
_CROP_SCALES, _PAPER_SCALES = (1 / 8, 1 / 2), (1 / 8, 1.0)  # reductions of the photographs: 32x32, and larger sources
_PSNR_CAP_DB = 100.0


@dataclass(frozen=True)
class Preset:
    """Antennas, slots per block and SNR; `cdl`: channels of that 38.901 profile in place of Rayleigh fading."""

    nr: int
    users: int
    nt: int
    snr_db: float
    slots: int = 24
    cdl: str | None = None

    @property
    def what(self) -> str:
        """In words."""
        channel = "Rayleigh" if self.cdl is None else f"CDL-{self.cdl}"
        return f"(Nr,U,Nt) = ({self.nr},{self.users},{self.nt}), T = {self.slots}, {self.snr_db:g} dB, {channel}"


PRESETS = {
    "paper-441": Preset(nr=4, users=4, nt=1, snr_db=20.0),
    "paper-64x8": Preset(nr=64, users=1, nt=8, snr_db=0.0),
    "paper-cdl": Preset(nr=128, users=1, nt=16, snr_db=0.0, cdl="C"),
}


@dataclass(frozen=True)
class FixedCDL:
    """CDL channels between arrays that always point the same way, as the tables have them: cluster angles are then the
    same in every draw, and the law is Gaussian but for the profile's finite number of rays.

    A prior of this law knows where the user is; `ChannelLaw` turns both ends at random.
    """

    nr: int
    nt: int
    cdl: str

    def draw(self, batch: int, users: int, blocks: int, *, seed: int) -> Tensor:
        """Channels complex64 [B,U,K,Nr,Nt] of the uplink, every block independent."""
        down = cdl_channels(self.cdl, batch * users * blocks, nr=self.nt, nt=self.nr, los_phase="random", seed=seed)
        return down.mT.reshape(batch, users, blocks, self.nr, self.nt)


ORIENTATIONS = {"random": ChannelLaw, "fixed": FixedCDL}


@dataclass(frozen=True)
class PresetSettings:
    """What to run; see `semcom-fast run pvd --help`.

    Attributes:
        preset: one of PRESETS. snr_db: in place of the preset's.
        crops: transmissions; each user of each sends a crop of its own.
        starts: restarts per transmission, the best by residual energy kept.
        weights: folder of the small networks; nets: of full-size ones, or "random"; size: of random ones.
        steps: inner iterations timed, with random networks.
        limit: most starts at once; memory: gigabytes a part may take. Default: half of the free memory.
        orientation: of the arrays of CDL channels, "random" (yaws of base station and user drawn anew for every user) or
            "fixed" (those of the tables, always).
        schedule: J, Jin and such of the receiver where they are not the default ones.
    """

    preset: str = "paper-441"
    snr_db: float | None = None
    crops: int = CROPS
    starts: int = 1
    encoder: str = "penalised"
    photos: str = "all"
    weights: Path | None = None
    nets: str | None = None
    size: str = "full"
    steps: int = STEPS
    limit: int | None = None
    memory: float | None = None
    orientation: str = "random"
    seed: int = 0
    device: str = "cpu"
    progress: bool = True
    schedule: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            there = "; ".join(f"{name}: {preset.what}" for name, preset in PRESETS.items())
            raise ValueError(f"no preset named {self.preset!r}; there: {there}")
        if self.orientation not in ORIENTATIONS:
            raise ValueError(f"orientation must be one of {', '.join(ORIENTATIONS)}, got {self.orientation!r}")
        for name in ("crops", "starts", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.memory is not None and not self.memory > 0:
            raise ValueError(f"memory must be positive, got {self.memory} GB")
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device {self.device}: this torch sees no GPU")

    @property
    def link(self) -> Preset:
        return PRESETS[self.preset]

    @property
    def snr(self) -> float:
        return self.link.snr_db if self.snr_db is None else self.snr_db

    @property
    def law(self) -> ChannelLaw | FixedCDL | None:
        """Of CDL channels; None: Rayleigh."""
        p = self.link
        return None if p.cdl is None else ORIENTATIONS[self.orientation](nr=p.nr, nt=p.nt, cdl=p.cdl)

    @property
    def bytes(self) -> int | None:
        return None if self.memory is None else max(1, int(self.memory * 1e9))


class Transmission(NamedTuple):
    """Sources d [B,U,...], channels, codewords, what was received, and what the receiver knows."""

    d: Tensor
    h: Tensor
    x: Tensor
    y: Tensor
    noise_var: float
    receiver: PVD
    encoder: Callable[[Tensor], Tensor]
    denoiser: Callable
    decode: Callable[[Tensor, Tensor], Tensor] | None
    link: Link
    prior: str
    covariances: tuple[Tensor, Tensor] | None
    notes: tuple[str, ...]


def success_level(oracle: Tensor) -> float:
    """NMSE (linear) below which a transmission counts as received, from the oracle's NMSE [B] on the same channels.

    -6 dB, as elsewhere; where oracle LMMSE itself does not reach -12 dB, half of its decibels: at 0 dB SNR not even the
    known codeword gives -6 dB.
    """
    return max(10 ** (SUCCESS_DB / 10), float(oracle.double().mean()) ** 0.5)


class PresetOutcome(NamedTuple):
    """Per transmission: linear NMSE of the receiver and of oracle LMMSE [B]; PSNR and SSIM per source [B U], and PSNR of
    the codec's decoder with the channel known (None without a decoder); seconds and parts of the reception."""

    nmse: Tensor
    oracle: Tensor
    oracle_prior: Tensor | None
    psnr_db: Tensor
    ssim: Tensor
    psnr_decoder_db: Tensor | None
    diverged: int
    seconds: float
    parts: int
    result: PVDResult


def kronecker_covariances(law: ChannelLaw | FixedCDL, draws: int = COVARIANCE_DRAWS) -> tuple[Tensor, Tensor]:
    """Receive and transmit covariance of a channel law from `draws` channels, complex128 [Nr,Nr] and [Nt,Nt].

    R_rx = E[H H^H]/Nt and R_tx = E[H^T H^*]/Nr, scaled so that the entries of their Kronecker product have the mean
    variance of the channel's. That of 128x16 channels in full, 2048x2048, would need many more draws than it has rows.
    """
    h = law.draw(draws, 1, 1, seed=_COVARIANCE_SEED)[:, 0, 0].to(torch.complex128)
    rx = torch.einsum("bij,bkj->ik", h, h.conj()) / (draws * law.nt)
    tx = torch.einsum("bij,bil->jl", h, h.conj()) / (draws * law.nr)
    return rx, tx / (torch.trace(tx).real / law.nt)


def kronecker_lmmse(y: Tensor, x: Tensor, noise_var: float, rx: Tensor, tx: Tensor) -> Tensor:
    """LMMSE of one user's channel from its known codeword, E[h_ij h_kl^*] = rx[i,k] tx[j,l].

    In the eigenbasis of rx the rows are independent, of covariance lambda_i tx, and each is estimated from its own row
    of Y: h = y A, A = (X^H C X + noise_var I)^-1 X^H C with C = E[h^H h] = lambda_i tx^*.

    Args:
        y: [B,K,Nr,T]. x: [B,1,K,Nt,T].

    Returns:
        h [B,1,K,Nr,Nt].
    """
    values, vectors = torch.linalg.eigh(rx.to(torch.complex128))
    sent = x[:, 0].to(torch.complex128)
    weighted = tx.to(torch.complex128).conj() @ sent  # [B,K,Nt,T]
    spread, modes = torch.linalg.eigh(sent.mH @ weighted)  # X^H C X for lambda = 1
    rows = (vectors.mH @ y.to(torch.complex128)) @ modes  # [B,K,Nr,T]
    gain = values.clamp_min(0)[:, None]
    rows = rows * (gain / (gain * spread.unsqueeze(-2) + noise_var))
    return (vectors @ (rows @ (weighted @ modes).mH)).unsqueeze(1).to(y.dtype)


def _photo_networks(s: PresetSettings):
    preset = s.link
    layout = layout_of(SYMBOLS, preset.nt, preset.slots)
    codec = load_photo_codec(s.encoder, s.weights, symbols=SYMBOLS, layout=layout, users=preset.users)
    return codec, load_photo_denoiser(s.weights), layout


def _crops(s: PresetSettings, channels: int, side: int) -> Tensor:
    """Held-out crops, another one for every user of every transmission: [B,U,C,S,S] on [-1,1]."""
    scales = _CROP_SCALES if side == SIDE else _PAPER_SCALES
    images = PhotoCrops(size=side, photos=s.photos, scales=scales).load("test", s.crops * s.link.users).images
    return as_source(grey(images) if channels == 1 else images).view(s.crops, s.link.users, channels, side, side)


def _prior(s: PresetSettings) -> tuple[GaussianChannelPrior, tuple[Tensor, Tensor] | None, str]:
    if s.law is None:
        return GaussianChannelPrior(), None, "Rayleigh, exact"
    rx, tx = kronecker_covariances(s.law)
    what = f"Gaussian, Kronecker covariances of {COVARIANCE_DRAWS} drawn channels, {s.orientation} orientation (not learned)"
    return GaussianChannelPrior(cov_rx=rx, cov_tx=tx), (rx, tx), what


def prepare(s: PresetSettings) -> Transmission:
    """Networks, sources, channels and the received signal of a preset."""
    preset, device = s.link, torch.device(s.device)
    notes: tuple[str, ...] = ()
    decode: Callable[[Tensor, Tensor], Tensor] | None
    if s.nets is None:
        codec, denoiser, layout = _photo_networks(s)
        encoder, decode, denoiser = codec.encoder.to(device), codec.decoder.to(device), denoiser.to(device)
        shape: tuple[int, ...] = (1, SIDE, SIDE)
    else:
        nets = _paper_networks(s).to(device)
        encoder, denoiser, layout, shape = nets.encoder, nets.denoiser, nets.layout, nets.image_shape
        decoder = nets.decoder
        decode = None if decoder is None else lambda x, noise: decoder(x)
        counts = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in parameters(nets).items())
        notes = (*nets.notes, f"parameters: {counts}")
    if s.nets == RANDOM:
        d = torch.rand(s.crops, preset.users, *shape, generator=torch.Generator().manual_seed(s.seed)) * 2 - 1
    else:
        d = _crops(s, shape[0], shape[1])
    link = Link(layout[0], preset.nr, preset.nt, preset.slots, preset.users)
    if s.law is None:
        h = draw_channel(s.crops, link.users, link.blocks, link.nr, link.nt, seed=s.seed)
    else:
        h = s.law.draw(s.crops, link.users, link.blocks, seed=s.seed)
    prior, covariances, named = _prior(s)
    d, h = d.to(device), h.to(device)
    noise_var = noise_var_from_snr_db(float(s.snr), users=link.users, nt=link.nt)
    with torch.no_grad():
        x = encoder(d)
    config = PVDConfig(**({"users": link.users, "nt": link.nt, "source_shape": shape} | s.schedule))
    receiver = PVD(encoder, prior, denoiser, config)
    y = transmit(h, x, noise_var, s.seed)
    return Transmission(d, h, x, y, noise_var, receiver, encoder, denoiser, decode, link, named, covariances, notes)


def _paper_networks(s: PresetSettings) -> PaperNetworks:
    preset = s.link
    assert s.nets is not None
    if s.nets == RANDOM:
        return random_networks(s.size, preset.nt, preset.slots, preset.users)
    return load_networks(Path(s.nets), preset.nt, preset.slots, preset.users)


@torch.no_grad()
def decoded(sent: Transmission) -> Tensor | None:
    """Images of the codec's decoder from LMMSE equalisation of all users with the channel known (DJSCC, perfect CSI)."""
    if sent.decode is None:
        return None
    users, nt = sent.link.users, sent.link.nt
    h = sent.h.movedim(1, 3).flatten(3).unsqueeze(2)  # [B,K,1,Nr,U Nt]
    symbols, noise = lmmse_equalise(sent.y.mT, h, sent.noise_var)  # [B,K,T,U Nt]
    x = symbols.mT.unflatten(2, (users, nt)).movedim(2, 1)
    return sent.decode(x, noise.expand(symbols.shape).flatten(1).mean(1))


def receive(s: PresetSettings, sent: Transmission) -> PresetOutcome:
    """Blind reception in as many parts as memory asks for, and what it is compared with."""
    parts = [0]

    def count(done: int, of: int) -> None:
        parts[0] += 1

    began, diverged = time.perf_counter(), 0
    try:
        result = run_in_batches(
            sent.receiver, sent.y, sent.noise_var, limit=s.limit, memory=s.bytes, restarts=s.starts, seed=s.seed,
            on_part=count, progress=s.progress,
        )  # fmt: skip
    except DivergedError as err:
        result = err.result
        diverged = int(torch.isinf(result.energy).sum())
    if sent.y.is_cuda:
        torch.cuda.synchronize(sent.y.device)
    seconds = time.perf_counter() - began
    h, d = (torch.nan_to_num(t, nan=0.0, posinf=0.0, neginf=0.0).cpu() for t in (result.h, result.d))
    truth, y, x = (t.cpu() for t in (sent.h, sent.y, sent.x))
    images, recovered = sent.d.cpu().flatten(0, 1), d.flatten(0, 1)
    known = decoded(sent)
    exact = None
    if sent.covariances is not None:
        exact = channel_nmse(truth, kronecker_lmmse(y, x, sent.noise_var, *sent.covariances))
    return PresetOutcome(
        nmse=channel_nmse(truth, h),
        oracle=channel_nmse(truth, oracle_lmmse_channel(y, x, sent.noise_var)),
        oracle_prior=exact,
        psnr_db=psnr(images, recovered, cap_db=_PSNR_CAP_DB),
        ssim=ssim(images, recovered),
        psnr_decoder_db=None if known is None else psnr(images, known.cpu().flatten(0, 1), cap_db=_PSNR_CAP_DB),
        diverged=diverged,
        seconds=seconds,
        parts=parts[0],
        result=result,
    )
