"""Multi-user downlink channels as impulse responses: stored sets, their frequency responses, a built-in generator.

An impulse response takes a few kilobytes per topology and gives the channel on any grid; the frequency response is
computed when it is needed. Sets drawn from 3GPP TR 38.901 come from `semcom_fast.data.tr38901`, which needs Sionna;
nothing in this file does.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..links.block_fading import hermitian_root
from ..ops import cir_to_ofdm, philox_normal
from .images import data_home

SCENARIOS = ("umi", "uma", "rma")
SPLITS = ("train", "eval", "shipped")
_STREAM = 0  # the user stream, of which the links' noise, pilots and channel errors take other steps
_GAIN_STEP, _DELAY_STEP, _USER_GAIN_STEP = 0, 6, 7


def subcarrier_frequencies(count: int, spacing: float, *, device: torch.device | str = "cpu") -> Tensor:
    """Baseband frequencies [count] in Hz, float32: (-count//2, ..., 0, ..., (count-1)//2) * spacing, as in Sionna."""
    return torch.arange(-(count // 2), count - count // 2, dtype=torch.float32, device=device) * spacing


@dataclass(frozen=True)
class ImpulseResponses:
    """A set of N multi-user channels, each K single-antenna users seen from an M-antenna base station.

    Signal model: h_km(f) = sum_p gains[k,m,p] exp(-j 2 pi f delays[k,p]).

    Attributes:
        gains: [N,K,M,P] complex, or [N,K,M,P,Nt] when they change from OFDM symbol to OFDM symbol.
        delays: [N,K,P] real, seconds, the same for all antennas.
        scenario: what was drawn: "umi", "uma", "rma", "tapped", ...
        pathloss: whether the gains hold each user's large-scale gain.
        symbol_rate: OFDM symbols per second of the last axis of time-varying gains; None for static channels.
        seed: the seed of the draw, when it is known.
    """

    gains: Tensor
    delays: Tensor
    scenario: str
    pathloss: bool = False
    symbol_rate: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        gains, delays = self.gains, self.delays
        if gains.ndim not in (4, 5) or not gains.is_complex():
            raise ValueError(f"gains must be complex [N,K,M,P] or [N,K,M,P,Nt], got {gains.dtype} {tuple(gains.shape)}")
        expected = (gains.shape[0], gains.shape[1], gains.shape[3])
        if tuple(delays.shape) != expected or delays.dtype != gains.real.dtype:
            raise ValueError(
                f"delays must be {gains.real.dtype} {expected} for gains {tuple(gains.shape)}, "
                f"got {delays.dtype} {tuple(delays.shape)}"
            )

    def __len__(self) -> int:
        return self.gains.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> "ImpulseResponses":
        """The chosen topologies, still as a set: an integer gives a set of one."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"topology {index} of {len(self)}")
            index = slice(index % len(self), index % len(self) + 1)
        return replace(self, gains=self.gains[index], delays=self.delays[index])

    def __iter__(self) -> Iterator["ImpulseResponses"]:
        return (self[i] for i in range(len(self)))

    @property
    def users(self) -> int:
        return self.gains.shape[1]

    @property
    def antennas(self) -> int:
        return self.gains.shape[2]

    @property
    def static(self) -> bool:
        """Whether the channel stays the same over the slot."""
        return self.gains.ndim == 4

    def to(self, device: torch.device | str) -> "ImpulseResponses":
        """The same set on another device."""
        return replace(self, gains=self.gains.to(device), delays=self.delays.to(device))

    def to_ofdm(self, frequencies: Tensor, *, pathloss: bool = False, normalise: bool = True) -> Tensor:
        """Frequency responses on an OFDM grid.

        Args:
            frequencies: [Nf] Hz, see `subcarrier_frequencies`.
            pathloss: False: mean |h|^2 over subcarriers, symbols and antennas is 1 for every user of every topology.
                True: it is 1 on average over the users of a topology, so users keep their imbalance.
            normalise: False returns the responses as drawn.

        Returns:
            h [N,Nf,Nt,K,M] complex, Nt = 1 for static channels (expand() it as far as needed).

        Raises:
            ValueError: `pathloss` asked of a set that was drawn without it.
        """
        if pathloss and normalise and not self.pathloss:
            raise ValueError(
                f"this {self.scenario!r} set was drawn without path loss: its users have no imbalance to keep"
            )
        gains = self.gains.unsqueeze(1) if self.static else self.gains.movedim(-1, 1)  # [N,Nt,K,M,P]
        h = cir_to_ofdm(gains, self.delays[:, None, :, None], frequencies.to(self.delays), frequency_dim=1)
        if not normalise:
            return h
        dims = (1, 2, 3, 4) if pathloss else (1, 2, 4)
        power = h.abs().square().mean(dims, keepdim=True, dtype=torch.float64)
        return h * torch.where(power > 0, power, 1.0).rsqrt().to(h.real.dtype)

    def save(self, path: Path | str, *, half: bool = False) -> None:
        """Write the set as an npz file; `half` keeps gains to 11 bits of their user's largest, delays to 11 bits."""
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"impulse responses are kept as .npz, not as {path.name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {key: getattr(self, key) for key in ("scenario", "pathloss", "symbol_rate", "seed")}
        planes = torch.view_as_real(self.gains.cpu().resolve_conj())
        nanoseconds = self.delays.cpu() * 1e9
        scale = planes.abs().amax(dim=tuple(range(2, planes.ndim)))
        if half:
            largest = scale.clamp_min(torch.finfo(scale.dtype).tiny)
            planes = (planes / largest.reshape(largest.shape + (1,) * (planes.ndim - 2))).half()
            nanoseconds = nanoseconds.half()
            if not nanoseconds.isfinite().all():
                raise ValueError("a delay of more than 65 microseconds does not fit half precision")
        np.savez_compressed(
            path,
            gains=planes.numpy(),
            scale=scale.numpy() if half else np.ones(scale.shape, np.float32),
            nanoseconds=nanoseconds.numpy(),
            facts=np.array(json.dumps(facts)),
        )

    @classmethod
    def load(cls, path: Path | str) -> "ImpulseResponses":
        """Read a set that `save` wrote; halves come back as float32."""
        with np.load(path, allow_pickle=False) as file:
            planes, scale, nanoseconds = (torch.from_numpy(file[key]) for key in ("gains", "scale", "nanoseconds"))
            facts = json.loads(str(file["facts"]))
        if planes.dtype == torch.float16:
            planes = planes.float() * scale.reshape(scale.shape + (1,) * (planes.ndim - 2))
            nanoseconds = nanoseconds.float()
        return cls(torch.view_as_complex(planes.contiguous()), nanoseconds * 1e-9, **facts)


def tapped_channels(
    batch: int,
    users: int = 4,
    antennas: int = 4,
    *,
    seed: int,
    delay_spread: float = 300e-9,
    paths: int = 16,
    correlation: float = 0.0,
    gain_spread_db: float = 0.0,
    first_item: int = 0,
    device: torch.device | str = "cpu",
) -> ImpulseResponses:
    """Static Rayleigh channels with an exponential power-delay profile, drawn without any channel library.

    Model: `paths` equally strong paths per user; delays i.i.d. exponential with mean `delay_spread`, hence
    E[h(f) h(f')^*] = R/(1 + j 2 pi (f-f') delay_spread); gains A g with g i.i.d. CN(0, 1/paths) over the antennas and
    A A^H = R, R_ij = correlation^|i-j|. Users are independent. Item b gets the draw of item `first_item + b`.

    Args:
        seed, first_item: counter-based draws of the user stream (docs/conventions.md), steps 0, 6 and 7.
        delay_spread: root-mean-square delay spread in seconds.
        correlation: between neighbouring antennas, 0 <= correlation < 1.
        gain_spread_db: standard deviation of the users' log-normal gains; 0 leaves all users equally strong.

    Returns:
        ImpulseResponses, gains complex64 [batch,users,antennas,paths].
    """
    if not 0 <= correlation < 1:
        raise ValueError(f"correlation must lie in [0, 1), got {correlation}")
    if delay_spread < 0 or paths < 1:
        raise ValueError(f"need delay_spread >= 0 and paths >= 1, got {delay_spread} and {paths}")

    def normal(shape: tuple[int, ...], step: int) -> Tensor:
        return philox_normal(
            shape, seed=seed, step=step, stream=_STREAM, first_item=first_item, dtype=torch.complex64, device=device
        )

    gains = normal((batch, users, antennas, paths), _GAIN_STEP) * paths**-0.5
    if correlation:
        index = torch.arange(antennas)
        cov = torch.tensor(correlation, dtype=torch.float64) ** (index[:, None] - index).abs()
        gains = hermitian_root(cov).to(gains) @ gains
    delays = delay_spread * normal((batch, users, paths), _DELAY_STEP).abs().square()  # |CN(0,1)|^2 is exponential
    if gain_spread_db:
        level = 2**0.5 * normal((batch, users), _USER_GAIN_STEP).real  # N(0,1)
        gains = gains * (10 ** (gain_spread_db * level / 20))[..., None, None]
    return ImpulseResponses(gains, delays, "tapped", pathloss=gain_spread_db > 0, seed=seed)


def cache_folder() -> Path:
    """Where generated sets are kept: `cir` in the folder of `images.data_home`."""
    return data_home() / "cir"


def set_path(scenario: str, split: str) -> Path:
    """The file of a stored set; see `load_channels` for the names."""
    if scenario not in SCENARIOS or split not in SPLITS:
        raise ValueError(f"scenario must be one of {SCENARIOS} and split one of {SPLITS}, got {scenario!r}, {split!r}")
    if split == "shipped":
        return Path(__file__).parent / f"cir_{scenario}.npz"
    return cache_folder() / f"{scenario}_{split}.npz"


def load_channels(scenario: str, split: str = "train") -> ImpulseResponses:
    """A stored set of TR 38.901 channels: 4 users, 4 base-station antennas, static, without path loss.

    Args:
        scenario: "umi", "uma" or "rma".
        split: "train" (4,096 topologies) and "eval" (2,048 others), generated once into `cache_folder()`; "shipped" (64
            others, half precision, card in cir.json) comes with the package.

    Raises:
        FileNotFoundError: the set was not generated; the message holds the command that does it.
    """
    path = set_path(scenario, split)
    if not path.exists():
        raise FileNotFoundError(
            f"no {path}: run  python -m semcom_fast.data.tr38901 --scenario {scenario} --split {split}"
        )
    return ImpulseResponses.load(path)
