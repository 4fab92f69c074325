"""From two latents to complex symbols, over a fading channel, and back to equalised latents with known noise levels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ...links.snr import noise_var_from_snr_db
from ...ops.philox_normal import philox_normal
from ...ops.power_normalise import power_normalise
from ...ops.waterfill_equalise import waterfill_equalise

if TYPE_CHECKING:
    from jaxtyping import Float

CHANNELS = ("awgn", "slow", "fast")
MAPPINGS = ("separate", "concat")
EDGE_CHANNELS = ("joint", "own")
_USER_STREAM = 0
_CHANNEL_STEP, _NOISE_STEP, _EDGE_CHANNEL_STEP, _EDGE_NOISE_STEP = range(4)


@dataclass(frozen=True)
class LinkConfig:
    """The channel and how the latents are laid on its symbols.

    Attributes:
        channel: "awgn" (h = 1), "slow" (one Rayleigh h for an image) or "fast" (one for every symbol), E|h|^2 = 1.
        mapping: "separate": the image latent f on N/2 symbols of its own, so that its elements i and i + N/2 share one,
            and the edge latent o on K/2 more (what (22) and the authors' published code assume); or "concat": f and o in
            a row, 2M reals whose elements i and i + M share a symbol (Section III). The same thing where K = N.
        edge_channel: "joint": o shares the channel and the equaliser; "own": real symbols |h| o + n over a channel of
            their own without equalisation, elements i and i + K/2 sharing |h|, as in the published code.
        channel_renorm: as the published code, the measured power of the sent latent sets its noise, and in AWGN the
            received one is scaled to unit RMS instead of by the known levels; they differ by O(1/sqrt N).
    """

    channel: str = "awgn"
    mapping: str = "separate"
    edge_channel: str = "joint"
    channel_renorm: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("channel", CHANNELS), ("mapping", MAPPINGS), ("edge_channel", EDGE_CHANNELS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.mapping == "concat" and self.edge_channel == "own":
            raise ValueError(
                "mapping 'concat' puts the edge latent on the image's symbols: edge_channel must be 'joint'"
            )


class Received(NamedTuple):
    """What the receiver is given: symbols and their channel, of the latent alone and of the edge latent.

    y, h: [B,M] complex (h [B,1] where one fades all) and the noise variance E|n|^2 [B] of y.
    edges: what arrived of an own edge channel [B,K], real; None where the edge latent shares the symbols.
    shape: of the image latent without its batch. edge_reals: K.
    """

    y: Tensor
    h: Tensor
    noise_var: Tensor
    edges: Tensor | None
    shape: tuple[int, ...]
    edge_reals: int

    @property
    def reals(self) -> int:
        """N, the reals of the image latent."""
        count = 1
        for size in self.shape:
            count *= size
        return count


class Equalised(NamedTuple):
    """Latents of unit power with their noise levels.

    f [B,*latent]; d noise level of f: [B,1] where a channel is the same for an image's symbols, else [B,N/2] or, with
    mapping "concat", [B,N]. o [B,K]: the edge latent, up to scale. edge_level [B]: mean noise level of o.
    """

    f: Tensor
    d: Tensor
    o: Tensor
    edge_level: Tensor


def pack(f: "Float[Tensor, 'B *latent']", o: "Float[Tensor, 'B K']", mapping: str = "separate") -> Tensor:
    """Complex symbols [B,(N+K)/2] of the two latents; of power 2 where every real has power 1.

    Raises:
        ValueError: odd N or K with mapping "separate", an odd sum with "concat", or another mapping.

    Source: (1) and Section III of "Semantics-Guided Diffusion for Deep Joint Source-Channel Coding in Wireless Image
    Transmission", with z_i = z_r,i + j z_r,i+M.
    """
    flat, o = f.flatten(1), o.flatten(1)
    odd = flat.shape[1] % 2 or o.shape[1] % 2 if mapping == "separate" else (flat.shape[1] + o.shape[1]) % 2
    if mapping not in MAPPINGS or odd:
        raise ValueError(
            f"need mapping {' or '.join(MAPPINGS)} and pairs of reals, got {mapping!r}, {flat.shape[1]} and {o.shape[1]}"
        )
    if mapping == "concat":
        return torch.complex(*torch.cat([flat, o], 1).chunk(2, 1))
    return torch.cat([torch.complex(*part.chunk(2, 1)) for part in (flat, o)], 1)


def unpack(reals: Tensor, n: int, mapping: str = "separate") -> tuple[Tensor, Tensor]:
    """The inverse of `pack`: [B,2M] of real parts, then imaginary parts, to the latent [B,n] and the other [B,K]."""
    if mapping == "concat":
        return reals[:, :n], reals[:, n:]
    real, imaginary = reals.chunk(2, 1)
    parts = [torch.cat([real[:, cut], imaginary[:, cut]], 1) for cut in (slice(n // 2), slice(n // 2, None))]
    return parts[0], parts[1]


def _gains(config: LinkConfig, batch: int, symbols: int, like: Tensor, seed: int, step: int, first_item: int) -> Tensor:
    """h: [B,1] of ones, [B,1] or [B,symbols] of CN(0,1)."""
    dtype = torch.complex128 if like.dtype == torch.float64 else torch.complex64
    if config.channel == "awgn":
        return torch.ones(batch, 1, dtype=dtype, device=like.device)
    count = 1 if config.channel == "slow" else symbols
    return philox_normal(
        (batch, count),
        seed=seed,
        step=step,
        stream=_USER_STREAM,
        first_item=first_item,
        dtype=dtype,
        device=like.device,
    )


def send(
    f: "Float[Tensor, 'B *latent']",
    o: "Float[Tensor, 'B K']",
    snr_db: "float | Float[Tensor, '*batch']",
    config: LinkConfig,
    *,
    seed: int,
    first_item: int = 0,
) -> Received:
    """Send the latents: y_i = h_i z_i + n_i, n_i ~ CN(0, noise_var), noise_var = 2 * 10^(-snr_db/10).

    Args:
        f: image latents, mean power 1 per real.
        o: edge latents, mean power 1 per real; [B,0] sends none.
        snr_db: mean SNR E|h|^2/sigma^2 in dB, a number or one for each image.
        config: channel and mapping.
        seed, first_item: of channels and noise; image b draws as item first_item + b, so splitting a batch or trying
            other SNRs changes no draw.

    Raises:
        ValueError: shapes that cannot be paired.
    """
    batch = f.shape[0]
    snr = torch.as_tensor(snr_db, dtype=f.dtype, device=f.device).expand(batch)
    noise_var = noise_var_from_snr_db(snr, "sgd_jscc")
    own = config.edge_channel == "own"
    z = pack(f, o[:, :0] if own else o, config.mapping)
    h = _gains(config, batch, z.shape[1], f, seed, _CHANNEL_STEP, first_item)
    if config.channel_renorm:
        noise_var = noise_var * f.flatten(1).square().mean(1)
    noise = philox_normal(
        z.shape, seed=seed, step=_NOISE_STEP, stream=_USER_STREAM, first_item=first_item, dtype=z.dtype, device=z.device
    )
    y = h * z + noise_var.sqrt()[:, None] * noise
    edges = _own_edge_channel(o, noise_var, config, seed, first_item) if own else None
    return Received(y, h, noise_var, edges, tuple(f.shape[1:]), o.shape[1])


def _own_edge_channel(o: Tensor, noise_var: Tensor, config: LinkConfig, seed: int, first_item: int) -> Tensor:
    half = o.shape[1] // 2
    if o.shape[1] % 2:
        raise ValueError(f"the edge latent must have pairs of reals, got {o.shape[1]}")
    h = _gains(config, len(o), half, o, seed, _EDGE_CHANNEL_STEP, first_item).abs().expand(-1, half)
    noise = philox_normal(
        o.shape, seed=seed, step=_EDGE_NOISE_STEP, stream=_USER_STREAM, first_item=first_item, dtype=o.dtype,
        device=o.device,
    )  # fmt: skip
    return torch.cat([h, h], 1) * o + (noise_var / 2).sqrt()[:, None] * noise


def matched(received: Received, config: LinkConfig) -> "Float[Tensor, 'B *latent']":
    """The image latent with the channel's phases removed, |h| f + n: what an SNR estimator looks at."""
    one = torch.ones((), dtype=received.h.dtype, device=received.h.device)
    size = received.h.abs()
    phase = torch.where(size > 0, received.h.conj() / torch.where(size > 0, size, 1), one)
    turned = received.y * phase
    f, _ = unpack(torch.cat([turned.real, turned.imag], 1), received.reals, config.mapping)
    return f.unflatten(1, received.shape)


def noise_var_of_level(level: "Float[Tensor, '*batch']", h: Tensor) -> "Float[Tensor, '*batch']":
    """noise_var at which the mean noise level is `level` = 1/(1+gamma), gamma = mean |h|^2 / (noise_var/2)."""
    level = level.to(h.real.dtype).clamp(torch.finfo(h.real.dtype).eps, 1 - 1e-6)
    return 2 * h.abs().square().mean(1) * level / (1 - level)


def equalise(received: Received, config: LinkConfig, noise_var: Tensor | None = None) -> Equalised:
    """Equalise the symbols to unit power: f_i = sqrt(1-d_i) f0_i + sqrt(d_i) n_i.

    Args:
        received: of `send`.
        config: the same link.
        noise_var: what the receiver takes the noise for, [B]; None means the truth.

    The edge latent is scaled by sqrt(1-d_i) on top, which makes it the MMSE estimate of unit-power symbols.

    Source: (6), (7) and (22).
    """
    noise_var = received.noise_var if noise_var is None else noise_var
    n, k = received.reals, received.edge_reals
    reals, d = waterfill_equalise(received.y, received.h, noise_var)
    levels = torch.cat([d, d], 1)
    f, o = unpack(reals, n, config.mapping)
    d_f, d_o = unpack(levels, n, config.mapping)
    if config.channel != "fast":
        d_f = d[:, :1]
    elif config.mapping == "separate":
        d_f = d_f[:, : n // 2]
    if received.edges is not None:
        o, d_o = received.edges, (noise_var / (2 + noise_var))[:, None]
    else:
        o = o * (1 - d_o).sqrt()
    f = f.unflatten(1, received.shape)
    if config.channel_renorm and config.channel == "awgn":
        f = power_normalise(f, dims=len(received.shape))[0]
    edge_level = d_o.mean(1) if k else d_f.mean(1)
    return Equalised(f, d_f.contiguous(), o, edge_level)
