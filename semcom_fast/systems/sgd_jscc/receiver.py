"""The whole system: an image and its edges are sent; the receiver matches the noise level, denoises and decodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ...baselines.wiener import WienerDenoiser
from ...data.edges import soft_edges
from ...ops.power_normalise import power_normalise
from ...receivers.schedules import ScaledLinearSchedule
from ...receivers.waterfill_config import WaterfillConfig
from ...receivers.waterfill_ddim import WaterfillDDIM
from .autoencoder import Autoencoder
from .codec_networks import load_autoencoder, load_edge_codec, load_snr_estimator
from .control import ControlBranch
from .denoiser_networks import load_control, load_dit
from .dit import DiT
from .edge_codec import EdgeCodec
from .link import LinkConfig, Received, equalise, matched, noise_var_of_level, send
from .predictor import GuidedPredictor
from .snr_estimator import SnrEstimator
from .text import HashedBagOfWords, TextEncoder

if TYPE_CHECKING:
    from jaxtyping import Float

DENOISERS = ("diffusion", "wiener", "none")
SNR_KNOWLEDGE = ("known", "estimated")
EDGE_SNR_DB = (-15.0, 15.0)  # the edge codec is trained between these; fades beyond count as the end
_AUTHORS_SCALES = ((-12.5, 0.05), (-7.5, 0.10), (-2.5, 0.15), (float("inf"), 0.20))


@dataclass(frozen=True)
class ReceiverConfig:
    """What the receiver does with what arrived.

    Attributes:
        denoiser: "diffusion", "wiener" (linear, needs `SgdJscc.wiener`) or "none" (the codec alone).
        edges: steer the diffusion by the received edge map.
        text: steer it by the caption. Off by default: the shipped denoiser heard the captions of 18 photographs, and those
            of others make its estimates worse.
        snr: "known", or "estimated" from the received latent without pilots.
        waterfill: steps, solver and variants of the diffusion. Where its guidance is 1 throughout, the unconditional
            prediction is not computed. A second-order solver becomes DDIM over fast fading, where it is not defined.
        control_scale: weight of the control branch, a number, or "authors": 0.05 to 0.2 by SNR, and weak edges erased
            below -5 dB, as the published code has it for the authors' networks.
        negative: caption of the unconditional prediction.
        step_style: "continuous" starts at the channel's level itself; "discrete", one of the published code's variants,
            at the nearest of Stable Diffusion's thousand levels, averaged over the batch. Needs one level per image.
        rescale: bring the latent to unit RMS before it is decoded, as the authors' published code
            does (the paper does not; the shipped codec was trained with it); False after the linear denoiser,
            whose estimates are decoded better as they are.
        bf16: networks of the diffusion in bfloat16.
    """

    denoiser: str = "diffusion"
    edges: bool = True
    text: bool = False
    snr: str = "known"
    waterfill: WaterfillConfig = field(default_factory=lambda: WaterfillConfig(steps=10))
    control_scale: float | str = 1.0
    negative: str = ""
    step_style: str = "continuous"
    rescale: bool = True
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.denoiser not in DENOISERS:
            raise ValueError(f"denoiser must be one of {', '.join(DENOISERS)}, got {self.denoiser!r}")
        if self.snr not in SNR_KNOWLEDGE:
            raise ValueError(f"snr must be 'known' or 'estimated', got {self.snr!r}")
        if self.step_style not in ("continuous", "discrete"):
            raise ValueError(f"step_style must be 'continuous' or 'discrete', got {self.step_style!r}")
        if isinstance(self.control_scale, str) and self.control_scale != "authors":
            raise ValueError(f"control_scale must be a number or 'authors', got {self.control_scale!r}")

    @property
    def guided(self) -> bool:
        """Whether the unconditional prediction has any weight."""
        return self.waterfill.guidance != 1 or self.waterfill.cfg_schedule != "const"


class Sent(NamedTuple):
    """The latents of an image [B,*latent] and of its edge map [B,K] (mean power 1 per real), and the edge map."""

    f: Tensor
    o: Tensor
    edges: Tensor


class Reception(NamedTuple):
    """What the receiver made of it.

    images [B,3,H,W] on [0,1]'s scale, not clamped; f [B,*latent] the latent they were decoded from; edges [B,1,H,W] the
    received edge map, or None where it was not used; level [B] mean noise level of the latent as the receiver took it.
    """

    images: Tensor
    f: Tensor
    edges: Tensor | None
    level: Tensor


def snr_db_of_level(level: Tensor) -> Tensor:
    """SNR in dB of unit-power symbols with noise level 1/(1+gamma)."""
    tiny = torch.finfo(level.dtype).eps
    level = level.clamp(tiny, 1 - tiny)
    return 10 * torch.log10((1 - level) / level)


def authors_guidance(snr_db: Tensor) -> tuple[Tensor, Tensor]:
    """Control scale and edge threshold [B] of the published code at an SNR: 0.05, 0.10, 0.15, 0.20 at -15, -10, -5 and 0
    dB (the nearest; 0.20 above); edges below 0.35 are erased at -15 dB, below 0.25 up to -5 dB, none above."""
    scale, threshold = torch.full_like(snr_db, _AUTHORS_SCALES[-1][1]), torch.zeros_like(snr_db)
    for below, value in reversed(_AUTHORS_SCALES[:-1]):
        scale[snr_db < below] = value
    threshold[snr_db <= -5] = 0.25
    threshold[snr_db < _AUTHORS_SCALES[0][0]] = 0.35
    return scale, threshold


class SgdJscc:
    """Networks of both ends; see `load_system` for the trained ones.

    Args:
        autoencoder, edge_codec: codecs of the image and its edge map.
        snr_estimator: for `snr="estimated"`.
        dit, control: the denoiser, and its control branch for `edges=True`.
        text_encoder: must be the one the denoiser was trained with.
        wiener: for `denoiser="wiener"`.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        edge_codec: EdgeCodec,
        snr_estimator: SnrEstimator | None = None,
        dit: DiT | None = None,
        control: ControlBranch | None = None,
        text_encoder: TextEncoder | None = None,
        wiener: WienerDenoiser | None = None,
    ) -> None:
        self.autoencoder, self.edge_codec, self.snr_estimator = autoencoder, edge_codec, snr_estimator
        self.dit, self.control, self.wiener = dit, control, wiener
        self.text_encoder = text_encoder or HashedBagOfWords()

    @torch.no_grad()
    def transmit(
        self, images: "Float[Tensor, 'B 3 H W']", snr_db: float | Tensor = 10.0, edges: Tensor | None = None
    ) -> Sent:
        """Latents of images on [0,1]; `edges` [B,1,H,W] in place of their soft Canny edges; snr_db: what the edge codec
        is told of the channel, its mean SNR."""
        edges = soft_edges(images) if edges is None else edges
        snr = torch.as_tensor(snr_db, dtype=images.dtype).clamp(*EDGE_SNR_DB)
        return Sent(self.autoencoder.encode(images), self.edge_codec.encode(edges, snr), edges)

    @torch.no_grad()
    def receive(
        self, received: Received, link: LinkConfig, config: ReceiverConfig | None = None, *,
        captions: Sequence[str] | None = None, seed: int = 0, first_item: int = 0, progress: bool = False,
    ) -> Reception:  # fmt: skip
        """Recover the images.

        Args:
            received, link: of `send`, and its configuration.
            config: what the receiver does.
            captions: one for each image, received without errors; None means none.
            seed, first_item: of the noise that tops up clean symbols over fast fading.

        Raises:
            ValueError: a part that the configuration needs is missing, or captions do not match in number.
        """
        config = config or ReceiverConfig()
        self.parts(config)
        noise_var = self._noise_var(received, link) if config.snr == "estimated" else None
        f, d, o, edge_level = equalise(received, link, noise_var)
        edges = None
        if config.denoiser == "wiener":
            assert self.wiener is not None
            denoised = self.wiener.denoise(f, d)
        elif config.denoiser == "diffusion":
            edges = self._decode_edges(o, edge_level) if config.edges else None
            predictor = self._predictor(config, edges, edge_level, captions)
            waterfill, start = config.waterfill, d
            if link.channel == "fast" and waterfill.solver == "dpmpp2m":
                waterfill = replace(waterfill, solver="ddim", one_level=False)
            if config.step_style == "discrete":
                if link.channel == "fast":
                    raise ValueError("step_style 'discrete' needs one noise level per image: not for fast fading")
                start = torch.full_like(d, ScaledLinearSchedule().match(d))
            run = WaterfillDDIM(predictor, waterfill).run
            denoised = run(f, start, seed=seed, first_item=first_item, progress=progress)
        else:  # the MMSE equaliser's output, the better start for a decoder that nothing precedes
            weight = (1 - d).sqrt() if d.shape[1] != received.reals // 2 else (1 - torch.cat([d, d], 1)).sqrt()
            denoised = (weight * f.flatten(1)).reshape(f.shape)
        return Reception(self.autoencoder.decode(denoised, rescale=config.rescale), denoised, edges, d.mean(1))

    def send_and_receive(
        self, images: Tensor, snr_db: float, link: LinkConfig, config: ReceiverConfig | None = None, *,
        captions: Sequence[str] | None = None, seed: int = 0, first_item: int = 0,
    ) -> Reception:  # fmt: skip
        """`transmit`, `send` and `receive` at one SNR."""
        sent = self.transmit(images, snr_db)
        received = send(sent.f, sent.o, snr_db, link, seed=seed, first_item=first_item)
        return self.receive(received, link, config, captions=captions, seed=seed, first_item=first_item)

    def parts(self, config: ReceiverConfig) -> list[object]:
        """What a receiver needs beside the codecs.

        Raises:
            ValueError: something of it is missing.
        """
        needs = {
            "snr_estimator": config.snr == "estimated",
            "wiener": config.denoiser == "wiener",
            "dit": config.denoiser == "diffusion",
            "control": config.denoiser == "diffusion" and config.edges,
        }
        missing = [name for name, needed in needs.items() if needed and getattr(self, name) is None]
        if missing:
            raise ValueError(f"this receiver needs {missing[0]}, which this SgdJscc was made without")
        return [getattr(self, name) for name, needed in needs.items() if needed]

    def _noise_var(self, received: Received, link: LinkConfig) -> Tensor:
        """The noise variance [B] that the estimated level means."""
        assert self.snr_estimator is not None
        latent = matched(received, link)
        level = self.snr_estimator.level(power_normalise(latent)[0], rescale=False)
        return noise_var_of_level(level, received.h)

    def _decode_edges(self, o: Tensor, edge_level: Tensor) -> Tensor:
        return self.edge_codec.decode(o, snr_db_of_level(edge_level).clamp(*EDGE_SNR_DB))

    def _predictor(
        self, config: ReceiverConfig, edges: Tensor | None, edge_level: Tensor, captions: Sequence[str] | None
    ) -> Callable:
        assert self.dit is not None
        text = negative = guide = None
        if config.text and captions is not None:
            if len(captions) != len(edge_level):
                raise ValueError(f"{len(captions)} captions for {len(edge_level)} images")
            text = self.text_encoder.encode(captions)
        if config.guided and config.negative:
            negative = self.text_encoder.encode([config.negative])[0]
        scale: float | Tensor = 1.0
        if isinstance(config.control_scale, str):
            scale, threshold = authors_guidance(snr_db_of_level(edge_level))
            edges = None if edges is None else torch.where(edges < threshold[:, None, None, None], 0.0, edges)
        else:
            scale = float(config.control_scale)
        if edges is not None:
            guide = self.autoencoder.encode(edges.expand(-1, 3, -1, -1))
        control = self.control if edges is not None else None
        predictor = GuidedPredictor(
            self.dit, control, text, negative, guide=guide, control_scale=scale, guided=config.guided
        )
        if not config.bf16:
            return predictor

        def rounded(g: Tensor, beta_bar: Tensor):
            with torch.autocast(g.device.type, torch.bfloat16):
                return predictor(g, beta_bar)

        return rounded


def prior_denoiser(dit: DiT) -> WienerDenoiser:
    """The linear denoiser of the Gaussian model inside a denoiser with `output="residual"`: mean, principal directions
    and variances of the training latents, as stored with the weights.

    Raises:
        ValueError: the denoiser has no such model.
    """
    if dit.prior is None:
        raise ValueError("this denoiser has no Gaussian model (output='x0')")
    mean, basis, variance, rest = (
        dit.prior.get_buffer(name).double() for name in ("mean", "basis", "variance", "rest")
    )
    covariance = (basis * (variance - rest)) @ basis.T
    covariance.diagonal().add_(rest)
    return WienerDenoiser(covariance, mean)


def load_system(folder: Path | None = None, *, wiener: WienerDenoiser | None = None, control: bool = True) -> SgdJscc:
    """The trained system.

    Args:
        folder: weights of your own training; None means those shipped.
        wiener: linear denoiser to compare with; None means `prior_denoiser` of the loaded network.
        control: False leaves the control branch out: only receivers without edge guidance then work.

    Raises:
        FileNotFoundError: weights are missing; the message says what is there.
    """
    dit = load_dit(folder)
    linear = prior_denoiser(dit) if wiener is None and dit.prior is not None else wiener
    return SgdJscc(
        load_autoencoder(folder), load_edge_codec(folder), load_snr_estimator(folder), dit,
        load_control(folder) if control else None, wiener=linear,
    )  # fmt: skip
