"""Water-filling DDIM: a diffusion receiver that starts from the channel output, for slow and fast fading alike."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..errors import require_extra
from ..ops.power_normalise import power_normalise
from ..ops.waterfill_inject import waterfill_inject
from ..ops.waterfill_step import waterfill_step
from . import graph as cuda_graph
from . import unchecked
from .waterfill_authors import AuthorsFading
from .waterfill_config import WaterfillConfig
from .waterfill_run import Predictor, Run, prepare

if TYPE_CHECKING:
    from jaxtyping import Float


class WaterfillStep(NamedTuple):
    """What `on_step` sees after update `step` (1, 2, ...): the levels [B] now reached, the state g [B,*latent] at them
    (the network's next input) and the prediction x0 [B,*latent] it was moved towards, as the predictor gave it."""

    step: int
    beta_bar: Tensor
    g: Tensor
    x0: Tensor


class Waterfill:
    """Algorithms 2 and 3 as one loop on one array: a waiting element still holds f, an active one the state."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.f = run.f
        self.previous: Tensor | None = None

    def begin(self) -> Tensor:
        """What the network sees first."""
        r = self.run
        if not r.fading:
            return r.f
        noise, seed, step, first_item = r.draw(0)
        return waterfill_inject(r.f, r.d, r.levels[0], noise=noise, seed=seed, step=step, first_item=first_item)

    def advance(self, k: int, g: Tensor, x0: Tensor, x0_uncond: Tensor | None) -> Tensor:
        """Update k: from level k to level k + 1, and the injection there."""
        r = self.run
        levels, guidance, ratios = r.rows
        previous = None
        if r.config.solver == "dpmpp2m":
            # a guided prediction is new memory; the predictor's own may be a buffer that it writes again
            x0 = x0.clone() if x0_uncond is None else r.guided(x0, x0_uncond, guidance[k])
            x0_uncond = None
            previous, self.previous = self.previous if r.second_order[k] else None, x0
        w = None if x0_uncond is None else guidance[k]
        ratio = None if previous is None else ratios[k]
        noise, seed, step, first_item = r.draw(k + 1)
        if k:  # the first call checked what stays as it is
            return unchecked.waterfill_step(
                g, x0, r.f, r.d, x0_uncond, previous, noise, levels[k], levels[k + 1], w, ratio, seed, step, first_item
            )
        return waterfill_step(
            g, x0, r.f, r.d, levels[0], levels[1], x0_uncond=x0_uncond, guidance=w, x0_prev=previous, ratio=ratio,
            noise=noise, seed=seed, step=step, first_item=first_item,
        )  # fmt: skip

    def state(self, g: Tensor) -> Tensor:
        """The state behind the network's input g."""
        return g


class WaterfillDDIM:
    r"""Denoise an equalised latent whose symbols have unequal noise levels, by a diffusion model.

    Signal model: :math:`f_i = \sqrt{1-d_i}\, f_{0,i} + \sqrt{d_i}\, n_i` (`waterfill_equalise`), E f_0^2 = 1 per real.
    The run starts at the level of the noisiest element. Before every network call, cleaner elements are topped up with
    noise to the level of the moment (`waterfill_inject`); after it, those that have been reached move with it
    (`waterfill_step`), the others keep what the channel gave. With equal levels nothing ever waits and this is
    deterministic DDIM from the matched level, bit for bit.

    Args:
        predictor: (g [B,*latent], beta_bar [B]) -> x0 like g, or (x0, x0_uncond) for classifier-free guidance. beta_bar
            is a noise variance, in g's dtype; g's elements all have it. x0 may be bfloat16 where g is float32.
        config: levels, solver and variants; see WaterfillConfig.

    Source: Algorithms 2 and 3 of "Semantics-Guided Diffusion for Deep Joint Source-Channel Coding in Wireless Image
    Transmission", corrected as WaterfillConfig says.
    """

    def __init__(self, predictor: Predictor, config: WaterfillConfig | None = None) -> None:
        if not callable(predictor):
            raise TypeError(f"WaterfillDDIM: predictor must be callable, got {type(predictor).__name__}")
        self.predictor, self.config = predictor, config or WaterfillConfig()

    def run(
        self,
        f: "Float[Tensor, 'B *latent']",
        d: "float | Float[Tensor, 'B *symbols']",
        *,
        seed: int | Tensor | None = 0,
        noise: "Float[Tensor, 'T B *latent'] | str | None" = None,
        first_item: int = 0,
        start: float | Tensor | None = None,
        on_step: Callable[[WaterfillStep], None] | None = None,
        progress: bool = False,
        graph: bool = False,
    ) -> Tensor:
        """Denoise a batch of latents.

        Args:
            f: [B,*latent] float32 or float64, the equalised latent; flattened, its halves are real and imaginary parts.
            d: noise level (variance) per image (a number, 0-d, [B] or [B,1]: slow fading), or per symbol [B,N/2] or per
                real [B,N] in f's dtype (fast fading), in [0, 1].
            seed: of the Philox draws; the injection at level k uses step k. first_item: index of image 0, so that a
                split batch draws the same numbers.
            noise: None or "philox"; "torch": one full draw of torch's global generator per level; or the draws
                themselves, [T,B,N] or [T,B,*latent], entry k for level k. With one level per image nothing is drawn.
            start: level to start at, a number or [B], in place of the largest d of each image.
            on_step: called after every update with a WaterfillStep. progress: show a bar (extra `demo`).
            graph: replay the updates as a CUDA graph; where that cannot be, a warning says why and the loop runs
                as usual. The predictor must then be capturable (fixed shapes, no host reads).

        Returns:
            The denoised latent, like f.

        Raises:
            ValueError: shapes, levels outside [0, 1], unequal levels for a solver that needs one, NaN or Inf in f or in
            the result (the image is named; on the CPU the op that met it first raises at once).
            TypeError: dtypes. Reading the largest d is the only wait for the device before the result's check.
        """
        with torch.no_grad():
            run = prepare(self.config, self.predictor, f, d, seed, noise, first_item, start)
            if not f.numel():
                return f.clone()
            fading = AuthorsFading(run) if run.fading and self.config.authors_step else Waterfill(run)
            why_not = cuda_graph.why_not(run.f, on_step is not None) if graph else None
            if why_not is not None:
                warnings.warn(f"WaterfillDDIM: no CUDA graph, because {why_not}; running without", stacklevel=2)
            bar: Any = nullcontext()
            if progress:
                bar = require_extra("tqdm.auto", "demo").tqdm(total=run.updates, desc="WaterfillDDIM", unit="step")
            with bar:
                tick = bar.update if progress else None
                if graph and why_not is None:
                    captured = cuda_graph.StepGraph(run, fading)  # lives until the result's check has waited for it
                    g = captured.replay(tick)
                else:
                    g = _updates(run, fading, on_step, tick)
            out = fading.state(g)
            if self.config.final_predict:
                x0, x0_uncond = run.predict(out, run.levels[-1])
                out = run.guided(x0, x0_uncond, run.guidance[-1]).to(run.f.dtype, copy=x0_uncond is None)
            return _finish(run, out)


def _updates(
    run: Run,
    fading: "Waterfill | AuthorsFading",
    on_step: Callable[[WaterfillStep], None] | None,
    tick: Callable[[], Any] | None,
) -> Tensor:
    """All updates of a run, one after another."""
    g = fading.begin()
    levels = run.rows[0]
    for k in range(run.updates):
        x0, x0_uncond = run.predict(g, levels[k])
        g = fading.advance(k, g, x0, x0_uncond)
        if on_step is not None:
            on_step(WaterfillStep(k + 1, levels[k + 1], g.reshape(run.shape), x0.reshape(run.shape)))
        if tick is not None:
            tick()
    return g


def _finish(run: Run, out: Tensor) -> Tensor:
    """The options that act on the final latent, and the only look at its values."""
    c = run.config
    if c.keep_clean and run.fading:
        last = torch.where(run.levels > 0, run.levels, 2).amin(0)  # levels fall: the smallest is the last one seen
        d = run.d if run.d.shape == run.f.shape else torch.cat([run.d, run.d], -1)
        out = torch.where(d < last[:, None], run.f * (1 - d).rsqrt(), out)
    out = out.reshape(run.shape)
    if out.data_ptr() == run.f.data_ptr() or c.latent_shift:
        out = out.clone()
    if c.latent_shift:
        out[:, list(c.shift_channels)] += c.latent_shift
    bad = ~torch.isfinite(out).flatten(1).all(1)
    if bool(bad.any()):
        raise ValueError(
            f"WaterfillDDIM.run: the latent of image {int(bad.nonzero()[0])} is not finite (NaN or Inf from the predictor?)"
        )
    return power_normalise(out, dims=out.ndim - 1)[0] if c.output_renorm else out
