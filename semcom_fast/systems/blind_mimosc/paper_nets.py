"""Networks of the paper's full size: from the user's own checkpoints, or with random weights for timing."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import require_extra
from .measures import denoising_errors
from .paper_ncsnpp import NCSNpp, NCSNppConfig
from .paper_swin import SwinConfig, SwinDecoder, SwinEncoder
from .variance import VarianceTable

RANDOM = "random"
PIXEL_VARIANCE = 0.2  # of photographs on [-1,1]
SUFFIXES = (".safetensors", ".pth", ".pt")
SIZES = {
    "full": (SwinConfig(), NCSNppConfig()),
    "small": (
        SwinConfig(image_size=32, embed_dims=(16, 32), depths=(2, 2), num_heads=(2, 4), window_size=4, latent=12),
        NCSNppConfig(image_size=32, nf=16, ch_mult=(1, 2, 2), num_res_blocks=1),
    ),
}
_NAMED = 3  # how many faults of a checkpoint an error names
_DERIVED = ("sigmas", "attn_mask", "relative_position_index")  # buffers of the published modules, made here anew


class VEDenoiser(nn.Module):
    r"""A score or noise network as the denoiser that PVD takes: (x [B,U,...], sigma 0-d) -> (mean like x, var [B,U]).

    Definition, on the network's own scale of images: from F = sigma S, S the score,

    .. math:: E[x_0|x] = x + \sigma F(x, \sigma),

    which is the form c_skip x + c_out F with c_skip = 1 and c_out = sigma: the network's output is of unit scale and the
    score, 1/sigma^2 of the mean's scale, is never formed where F is at hand. The sum is taken in x's dtype. An error of F
    counts sigma times all the same, so the network runs in the precision of its weights, with autocast off.

    Args:
        network: (x [N,...], sigma 0-d) -> F (form "noise": with x = x0 + sigma z an estimate of -z) or S (form "score").
        form: "noise" or "score".
        variance: table of the error per entry at each sigma, on the scale [-1,1]; None: sigma^2 v/(sigma^2 + v) with v
            the variance of pixels, an upper bound.
        centered: the network takes images on [-1,1]; False: on [0,1], where noise is half as strong.

    Source: equations (38), (40) of "Blind MIMO Semantic Communication via Parallel Variational Diffusion"; T. Karras et
    al., "Elucidating the Design Space of Diffusion-Based Generative Models", table 1 (VE).
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        *,
        form: str = "noise",
        variance: VarianceTable | None = None,
        centered: bool = True,
    ) -> None:
        super().__init__()
        if form not in ("noise", "score"):
            raise ValueError(f"VEDenoiser: form must be 'noise' or 'score', got {form!r}")
        self.network, self.form, self.centered, self.variance = network, form, centered, variance

    def _output(self, x: Tensor, sigma: Tensor) -> Tensor:
        """sigma times F on the scale of x, which is [-1,1]."""
        kind = next(self.network.parameters()).dtype if isinstance(self.network, nn.Module) else x.dtype
        level = (sigma if self.centered else 0.5 * sigma).to(kind)
        image = (x if self.centered else 0.5 * (x + 1)).to(kind)
        with torch.autocast(x.device.type, enabled=False):
            out = self.network(image, level).to(x.dtype)
        # with S, sigma^2 S of the image's scale is twice as much on [-1,1], where sigma is twice the level
        return out * sigma if self.form == "noise" else out * (level.to(x.dtype) * sigma)

    def forward(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        mean = x + self._output(x.flatten(0, 1), sigma).view_as(x)
        if self.variance is not None:
            var = self.variance(sigma).to(x.dtype)
        else:
            power = sigma * sigma
            var = PIXEL_VARIANCE * power / (PIXEL_VARIANCE + power)
        return mean, var.expand(x.shape[:2])


class _NoiseOf(nn.Module):
    """F of an NCSN++, called like a network."""

    def __init__(self, score: NCSNpp) -> None:
        super().__init__()
        self.score = score

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.score.noise(x, sigma)


class PaperNetworks(NamedTuple):
    """What sends and receives; layout is K, Nt, T, `notes` what a reader of their results has to know."""

    encoder: SwinEncoder
    decoder: SwinDecoder | None
    denoiser: VEDenoiser
    layout: tuple[int, int, int]
    notes: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        c = self.encoder.config
        return c.num_channels, c.image_size, c.image_size

    def to(self, device: torch.device) -> "PaperNetworks":
        """All networks moved to `device`."""
        for part in (self.encoder, self.decoder, self.denoiser):
            if part is not None:
                part.to(device)
        return self


def layout_of(symbols: int, nt: int, slots: int) -> tuple[int, int, int]:
    """K, Nt, T of so many symbols; raises ValueError when blocks do not come out whole."""
    if symbols % (nt * slots):
        raise ValueError(f"{symbols} symbols do not fill blocks of Nt*T = {nt}*{slots}")
    return symbols // (nt * slots), nt, slots


def ncsnpp_denoiser(network: NCSNpp, variance: VarianceTable | None = None) -> VEDenoiser:
    """The denoiser of an NCSN++."""
    return VEDenoiser(_NoiseOf(network), variance=variance, centered=network.config.centered)


def _assembled(swin: SwinConfig, score: NCSNpp, nt: int, slots: int, users: int, notes: tuple[str, ...],
               variance: VarianceTable | None = None, decoder: bool = True) -> PaperNetworks:  # fmt: skip
    if (score.config.num_channels, score.config.image_size) != (swin.num_channels, swin.image_size):
        raise ValueError(
            f"the codec is for {swin.num_channels}x{swin.image_size}x{swin.image_size} images, the denoiser for "
            f"{score.config.num_channels}x{score.config.image_size}x{score.config.image_size}"
        )
    layout = layout_of(swin.symbols, nt, slots)
    built = SwinDecoder(swin, layout, users) if decoder else None
    return PaperNetworks(SwinEncoder(swin, layout, users), built, ncsnpp_denoiser(score, variance), layout, notes)


def _frozen(networks: PaperNetworks) -> PaperNetworks:
    for part in (networks.encoder, networks.decoder, networks.denoiser):
        if part is not None:
            part.requires_grad_(False).eval()
    return networks


def random_networks(size: str, nt: int, slots: int, users: int) -> PaperNetworks:
    """Untrained networks of the size "full" or "small", for timing: what they recover means nothing."""
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r} of networks: choose one of {', '.join(SIZES)}")
    swin, score = SIZES[size]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _frozen(_assembled(swin, NCSNpp(score), nt, slots, users, ("weights: random",), decoder=False))


def _json(folder: Path, part: str) -> dict[str, Any]:
    path = folder / f"{part}.json"
    if not path.exists():
        return {}
    values = json.loads(path.read_text())
    if not isinstance(values, dict):
        raise ValueError(f"{path}: need an object of settings")
    return values


def _averaged(state: dict[str, Any], network: nn.Module) -> dict[str, Any]:
    """The exponential average that a published training checkpoint holds beside its last weights."""
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    shadow = state["ema"].get("shadow_params") if isinstance(state.get("ema"), dict) else None
    if shadow is None or len(shadow) != len(names):
        return state["model"]
    prefix = "module." if any(key.startswith("module.") for key in state["model"]) else ""
    return {**state["model"], **{prefix + name: value for name, value in zip(names, shadow, strict=True)}}


def read_state(path: Path, network: nn.Module, part: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint by the network's names, in float32.

    Understands safetensors files and what `torch.save` writes of tensors (nothing else is unpickled): a state dict, one
    under "state_dict" or "model", with prefixes of `DataParallel` ("module.") and of a codec saved whole ("encoder.",
    "decoder."), and a published training checkpoint, of which the averaged weights are taken.
    """
    if path.suffix == ".safetensors":
        state: dict[str, Any] = require_extra("safetensors.torch", "demo").load_file(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as err:
            raise ValueError(f"{path} holds more than tensors and is not unpickled: save its state dict") from err
    if not isinstance(state, dict):
        raise ValueError(f"{path}: need a state dict, got {type(state).__name__}")
    if isinstance(state.get("model"), dict):
        state = _averaged(state, network)
    elif isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    for prefix in ("module.", f"{part}."):
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value.float() for key, value in state.items() if isinstance(value, Tensor)}


def _first(faults: list[str]) -> str:
    more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
    return ", ".join(faults[:_NAMED]) + more


def fill(network: nn.Module, state: dict[str, Tensor], path: Path, unused: tuple[str, ...] = ()) -> None:
    """Load `state` into `network`.

    Args:
        unused: beginnings of names that the checkpoint may hold and this network does not use.

    Raises:
        ValueError: missing, unexpected or wrongly shaped tensors; the first of each kind are named.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in state]
    shapes = [
        f"{name} {tuple(state[name].shape)} in place of {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    others = [
        n
        for n in state
        if n not in own and n.rpartition(".")[2] not in _DERIVED and not n.startswith(unused or ("\0",))
    ]
    faults = {"missing": missing, "of the wrong shape": shapes, "unexpected": others}
    if any(faults.values()):
        text = "; ".join(f"{kind}: {_first(found)}" for kind, found in faults.items() if found)
        raise ValueError(f"{path} does not fit {type(network).__name__} of these sizes: {text}")
    network.load_state_dict({name: state[name] for name in own})


def _checkpoint(folder: Path, part: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / f"{part}{suffix}").exists()), None)


def _load(folder: Path, part: str, network: nn.Module, unused: tuple[str, ...] = ()) -> None:
    path = _checkpoint(folder, part)
    if path is None:
        names = ", ".join(f"{part}{suffix}" for suffix in SUFFIXES)
        raise FileNotFoundError(f"no checkpoint of the {part} in {folder}: need one of {names}")
    fill(network, read_state(path, network, part), path, unused)


def variance_table(values: dict[str, Any]) -> VarianceTable:
    """The table of {"sigma": [...], "mse": [...]}, errors per entry on the scale [-1,1] at rising noise levels."""
    sigma, mse = (np.asarray(values[name], dtype=np.float64) for name in ("sigma", "mse"))
    if (
        sigma.shape != mse.shape
        or sigma.ndim != 1
        or len(sigma) < 2
        or (np.diff(sigma) <= 0).any()
        or not (mse > 0).all()
    ):
        raise ValueError("variance: need lists sigma (rising) and mse (positive) of one length, at least 2")
    table = VarianceTable(float(sigma[0]), float(sigma[-1]), max(54, len(sigma)))
    at = np.interp(table.log_sigma.double().numpy(), np.log(sigma), np.log(mse))
    table.set(torch.from_numpy(np.exp(at)).float())
    return table


def measured_variance(
    denoiser: VEDenoiser, images: Tensor, *, points: int = 54, repeats: int = 1
) -> dict[str, list[float]]:
    """What "variance" of denoiser.json should say: the denoiser's errors on held-out images [N,C,S,S] on [-1,1]."""
    levels = VarianceTable(points=points).levels
    errors = denoising_errors(denoiser, images.unsqueeze(1), levels, repeats)
    return {"sigma": levels.tolist(), "mse": errors.tolist()}


def load_networks(folder: Path, nt: int, slots: int, users: int) -> PaperNetworks:
    """The user's own networks from a folder.

    The folder holds `encoder` and `denoiser`, and optionally `decoder`, each as .safetensors, .pth or .pt, and optional
    settings beside them: encoder.json a `SwinConfig`, denoiser.json an `NCSNppConfig` or the published configuration
    ({"data": ..., "model": ...}), with "variance": {"sigma": [...], "mse": [...]} for a measured table. Without them the
    sizes are the published ones for 256x256 images, 4608 symbols.

    Raises:
        FileNotFoundError: no such folder or checkpoint. ValueError: sizes that do not fit, or a checkpoint that does not
        fit its sizes; the first faults are named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} with encoder, decoder and denoiser checkpoints")
    swin = SwinConfig.from_dict(_json(folder, "encoder"))
    settings = _json(folder, "denoiser")
    table = settings.pop("variance", None)
    score = NCSNpp(NCSNppConfig.from_dict(settings))
    notes = [f"weights: {folder}"]
    if table is None:
        notes.append(
            f"posterior variance of the source: that of white pixels of variance {PIXEL_VARIANCE}, no table being in "
            "denoiser.json (paper_nets.measured_variance makes one)"
        )
    has_decoder = _checkpoint(folder, "decoder") is not None
    networks = _assembled(swin, score, nt, slots, users, tuple(notes), table and variance_table(table), has_decoder)
    unused = ("sm_list", "bm_list") if swin.snr_db is None else ()
    _load(folder, "encoder", networks.encoder, unused)
    if networks.decoder is not None:
        _load(folder, "decoder", networks.decoder, unused)
    _load(folder, "denoiser", score)
    return _frozen(networks)


def parameters(networks: PaperNetworks) -> dict[str, int]:
    """Weights of each network."""
    parts = {"encoder": networks.encoder, "decoder": networks.decoder, "denoiser": networks.denoiser}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None}
