"""One call of the water-filling loop: its arguments checked, its tables, and where its noise comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ops._levels import check_draw
from ..ops.waterfill_step import waterfill_step
from .waterfill_config import WaterfillConfig

_NAME = "WaterfillDDIM.run"
Prediction = Tensor | tuple[Tensor, Tensor | None]
Predictor = Callable[[Tensor, Tensor], Prediction]


@dataclass
class Run:
    """One call of WaterfillDDIM.run: the flattened batch, its tables on its device, and where its noise comes from.

    f [B,N]; d [B,N/2] or [B,N], all ones where every image has one level (nothing then ever waits); levels [K+1,B] in
    the state's dtype; guidance and ratio [K,B] float64.
    """

    config: WaterfillConfig
    predictor: Predictor
    shape: torch.Size
    f: Tensor
    d: Tensor
    fading: bool
    levels: Tensor
    guidance: Tensor
    ratio: Tensor
    second_order: list[bool]
    seed: int | Tensor | None
    first_item: int
    noise: Tensor | str = "philox"
    x0_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        self.rows = [self.levels.unbind(0), self.guidance.unbind(0), self.ratio.unbind(0)]

    @property
    def updates(self) -> int:
        return len(self.levels) - 1

    @property
    def draws(self) -> int:
        """Levels 0..draws-1 are injected: all that the network sees, but for a final one on the un-topped-up state."""
        c = self.config
        return self.updates + (1 if self.fading and c.grid == "points" and not c.authors_step else 0)

    def draw(self, k: int) -> tuple[Tensor | None, int | Tensor | None, int, int]:
        """(noise, seed, step, first_item) of the injection at level k."""
        noise, seed = None, self.seed
        if k >= self.draws or not self.fading:
            seed = 0  # nothing waits there, or nobody looks at it
        elif isinstance(self.noise, Tensor):
            noise, seed = self.noise[k], None
        elif self.noise == "torch":
            noise, seed = torch.randn(self.shape, dtype=self.f.dtype, device=self.f.device).reshape(self.f.shape), None
        return noise, seed, k, self.first_item

    def predict(self, g: Tensor, level: Tensor) -> tuple[Tensor, Tensor | None]:
        """The predictor's x0 and x0_uncond (None when it is not guided), flattened; like one another in every call."""
        out = self.predictor(g.view(self.shape), level)
        x0, x0_uncond = out if isinstance(out, tuple) else (out, None)
        self._check("x0", x0)
        if x0_uncond is not None:
            self._check("x0_uncond", x0_uncond)
        flat = self.f.shape
        return x0.reshape(flat), None if x0_uncond is None else x0_uncond.reshape(flat)

    def _check(self, name: str, t: Any) -> None:
        """A prediction is a tensor like g, always of the same dtype."""
        if not isinstance(t, Tensor):
            raise TypeError(f"{_NAME}: the predictor's {name} must be a tensor, got {type(t).__name__}")
        if t.shape != self.shape:
            need = f"{tuple(self.shape)}, got {tuple(t.shape)}"
            raise ValueError(f"{_NAME}: the predictor's {name} must be like g, {need}")
        if t.dtype is not self.x0_dtype:
            if self.x0_dtype is not None:
                raise TypeError(f"{_NAME}: the predictor's {name} is {t.dtype} after {self.x0_dtype}")
            self.x0_dtype = t.dtype

    def guided(self, x0: Tensor, x0_uncond: Tensor | None, w: Tensor) -> Tensor:
        """Classifier-free guidance alone: the step from any level to level 0 returns the prediction itself."""
        if x0_uncond is None:
            return x0
        return waterfill_step(self.f, x0, self.f, self.d, 1.0, 0.0, x0_uncond=x0_uncond, guidance=w, seed=0)


def prepare(
    config: WaterfillConfig, predictor: Predictor, f: Any, d: Any, seed: Any, noise: Any, first_item: int, start: Any
) -> Run:
    """Everything that can be wrong with the arguments, and the tables: formed in float64, rounded once."""
    _check_latent(f, config)
    check_draw(_NAME, seed, first_item=first_item)
    flat = f.flatten(1)
    low, high, symbols = _levels_of(d, flat)
    begin = _start_of(start, high, flat, config)
    fading = symbols is not None or bool((begin > low).any())
    if config.solver == "dpmpp2m":
        unequal = np.flatnonzero(low < begin)
        if len(unequal):
            b = int(unequal[0])
            raise ValueError(
                f"{_NAME}: solver='dpmpp2m' needs one noise level per image, but image {b} has levels from {low[b]:.4g} up "
                f"to its start {begin[b]:.4g} (the state jumps where elements join); use solver='ddim'"
            )
        fading = False
    if config.one_level and len(set(begin.tolist())) > 1:
        raise ValueError(f"{_NAME}: one_level=True runs a batch at one level, but its images start at levels from "
                         f"{begin.min():.4g} to {begin.max():.4g}")  # fmt: skip
    if not fading:
        symbols = flat.new_ones(len(flat), 1)
    elif symbols is None:
        symbols = torch.from_numpy(high[:, None]).to(flat)
    if symbols.shape[-1] == 1:
        symbols = symbols.expand(-1, flat.shape[-1] // (1 if flat.shape[-1] % 2 else 2))
    tables = config.tables(begin, falling=fading)
    levels, guidance, ratio = (torch.from_numpy(np.ascontiguousarray(t)) for t in tables)
    run = Run(
        config=config, predictor=predictor, shape=f.shape, f=flat, d=symbols, fading=fading,
        levels=levels.to(flat.dtype).to(flat.device), guidance=guidance.to(flat.device), ratio=ratio.to(flat.device),
        second_order=np.isfinite(tables.ratio).any(1).tolist(), seed=seed, first_item=first_item,
    )  # fmt: skip
    run.noise = _noise_of(noise, run)
    return run


def _check_latent(f: Any, config: WaterfillConfig) -> None:
    if not isinstance(f, Tensor) or f.dtype not in (torch.float32, torch.float64):
        got = f.dtype if isinstance(f, Tensor) else type(f).__name__
        raise TypeError(f"{_NAME}: f must be a float32 or float64 tensor, got {got}")
    if f.ndim < 2:
        raise ValueError(f"{_NAME}: f must be [B,*latent], got shape {tuple(f.shape)}")
    channels = config.shift_channels
    if config.latent_shift and (f.ndim < 3 or any(not 0 <= c < f.shape[1] for c in channels)):
        raise ValueError(f"{_NAME}: latent_shift acts on channels {channels} of axis 1, which f {tuple(f.shape)} does not "
                         "have; set latent_shift=0")  # fmt: skip
    if f.device.type == "cpu":
        bad = ~torch.isfinite(f).flatten(1).all(1)
        if bool(bad.any()):
            raise ValueError(f"{_NAME}: f of image {int(bad.nonzero()[0])} holds NaN or Inf")


def _levels_of(d: Any, f: Tensor) -> tuple[np.ndarray, np.ndarray, Tensor | None]:
    """Smallest and largest level of each image as float64, and the levels per symbol (None: one level per image)."""
    images, n = f.shape
    if not isinstance(d, Tensor):
        d = torch.as_tensor(d, dtype=torch.float64, device="cpu")
    if not d.is_floating_point():
        raise TypeError(f"{_NAME}: d is a noise level and must be real floating point, got {d.dtype}")
    symbols = None
    if d.ndim == 0 or tuple(d.shape) in ((images,), (images, 1)):
        low = high = d.detach().double().cpu().reshape(-1).expand(images).numpy()
    else:
        symbols = d.flatten(1)
        if symbols.shape[0] != images or symbols.shape[1] not in (n, n // 2 if n % 2 == 0 else n):
            raise ValueError(f"{_NAME}: d must be a number, [B], [B,N/2] or [B,N] for f {tuple(f.shape)} with N = {n} reals "
                             f"per image; got {tuple(d.shape)}")  # fmt: skip
        if symbols.dtype is not f.dtype or symbols.device != f.device:
            raise TypeError(
                f"{_NAME}: f is {f.dtype} on {f.device} but d is {d.dtype} on {d.device}; nothing is cast silently"
            )
        if symbols.numel():
            low, high = torch.stack(symbols.aminmax(dim=1)).double().cpu().numpy()
        else:
            low = high = np.zeros(images)
    bad = np.flatnonzero(~((low >= 0) & (high <= 1)))
    if len(bad):
        b = int(bad[0])
        raise ValueError(
            f"{_NAME}: noise levels are variances in [0, 1], but d of image {b} runs from {low[b]} to {high[b]}"
        )
    return low, high, symbols


def _start_of(start: Any, high: np.ndarray, f: Tensor, config: WaterfillConfig) -> np.ndarray:
    """The level each image starts at."""
    if start is None:
        return high
    given = start if isinstance(start, Tensor) else torch.as_tensor(start, dtype=torch.float64, device="cpu")
    given = given.detach().double().cpu()
    if given.ndim > 1 or (given.ndim == 1 and len(given) not in (1, len(f))):
        raise ValueError(f"{_NAME}: start must be a number or [B] = [{len(f)}], got {tuple(given.shape)}")
    begin = given.expand(len(f)).numpy()
    if not ((begin >= 0) & (begin <= 1)).all():
        raise ValueError(f"{_NAME}: start is a noise variance in [0, 1], got {start}")
    above = np.flatnonzero(high > begin)
    if len(above) and not config.init_clip:
        b = int(above[0])
        raise ValueError(f"{_NAME}: image {b} has noise levels up to {high[b]:.4g}, above its start {begin[b]:.4g}; "
                         "init_clip=True would count them as the start")  # fmt: skip
    return begin


def _noise_of(noise: Any, run: Run) -> Tensor | str:
    """Where draws come from; given ones are flattened to [T,B,N]."""
    if noise is None or isinstance(noise, str):
        if noise not in (None, "philox", "torch"):
            raise ValueError(f"{_NAME}: noise must be None, 'philox', 'torch' or a tensor, got {noise!r}")
        if noise != "torch" and run.seed is None and run.fading:
            raise ValueError(f"{_NAME}: draws need an integer seed, or noise=")
        return noise or "philox"
    if not isinstance(noise, Tensor) or noise.dtype is not run.f.dtype or noise.device != run.f.device:
        raise TypeError(f"{_NAME}: noise must be {run.f.dtype} on {run.f.device}, like f")
    if not run.fading:
        return noise
    flat = noise.flatten(2) if noise.ndim > 2 else noise
    if flat.shape[1:] != run.f.shape or len(flat) < run.draws:
        raise ValueError(f"{_NAME}: noise must be [T,B,N] or [T,B,*latent] with T >= {run.draws} and "
                         f"B, N = {tuple(run.f.shape)}; got {tuple(noise.shape)}")  # fmt: skip
    return flat
