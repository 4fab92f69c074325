"""The fast-fading step as the authors' published code does it, for comparisons with the paper's."""

from typing import TYPE_CHECKING

from torch import Tensor

from ..ops.waterfill_step_authors import waterfill_step_authors
from . import unchecked

if TYPE_CHECKING:
    from .waterfill_run import Run


class AuthorsFading:
    """Two arrays: the state f, moved where its own level has been reached, and the network's input g, topped up anew.

    The variants are config.topup ("amplitude" adds standard deviations instead of variances), config.topup_renorm (unit
    RMS per image of what the network sees; the state stays as it is) and config.update_base ("own": each element steps
    from its own level, so that injected noise never enters the state; an element without noise is not active before
    level 0). A final prediction is made from the state, neither topped up nor scaled.

    Source: the fast-fading functions of the authors' published code of "Semantics-Guided Diffusion for Deep Joint
    Source-Channel Coding in Wireless Image Transmission"; nothing there calls them, so the start level is ours (max d).
    """

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.f = run.f

    def begin(self) -> Tensor:
        """What the network sees first: a step from the first level to itself moves nothing and tops up."""
        r, c = self.run, self.run.config
        noise, seed, step, first_item = r.draw(0)
        self.f, g = waterfill_step_authors(
            r.f, r.f, r.d, r.f, r.levels[0], r.levels[0], topup=c.topup, renorm=c.topup_renorm, base=c.update_base,
            noise=noise, seed=seed, step=step, first_item=first_item,
        )  # fmt: skip
        return g

    def advance(self, k: int, g: Tensor, x0: Tensor, x0_uncond: Tensor | None) -> Tensor:
        """Update k: from level k to level k + 1, and the top-up there."""
        r, c = self.run, self.run.config
        levels, guidance, _ = r.rows
        x0 = r.guided(x0, x0_uncond, guidance[k])
        noise, seed, step, first_item = r.draw(k + 1)
        if k:  # the first call checked what stays as it is
            self.f, g = unchecked.waterfill_step_authors(
                self.f, g, r.d, x0, noise, levels[k], levels[k + 1], c.topup, c.topup_renorm, c.update_base, seed, step,
                first_item,
            )  # fmt: skip
            return g
        self.f, g = waterfill_step_authors(
            self.f, g, r.d, x0, levels[0], levels[1], topup=c.topup, renorm=c.topup_renorm, base=c.update_base,
            noise=noise, seed=seed, step=step, first_item=first_item,
        )  # fmt: skip
        return g

    def state(self, g: Tensor) -> Tensor:
        """The state behind the network's input g."""
        return self.f
