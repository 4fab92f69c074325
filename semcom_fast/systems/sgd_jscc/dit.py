"""The diffusion transformer that predicts the clean latent from a noisy one, in the layout of the authors' network.

In-blocks push their outputs, out-blocks take them back, decoder blocks take the embedded input; every block hears the
noise level (AdaLN) and one text token. While training, a side block fills in masked tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import blocks
from .blocks import Block, FinalLayer, LevelEmbedding, Modulation, TextEmbedding
from .prior import LowRankPrior


@dataclass(frozen=True)
class DiTConfig:
    """Sizes and options; the defaults are the authors' network (77.6 M parameters).

    Attributes:
        channels, side: of the latent [channels, side, side]; each position is one token.
        width, heads, mlp_ratio: of a block.
        inside: in-blocks, and as many out-blocks. decoder: decoder blocks after them.
        text: size of a sentence vector.
        level_input: what the network hears of the level beta: "std" is sqrt(beta), "variance" is beta.
        output: "x0" returns the network's output F itself, as the authors do. "residual" returns the linear estimate of
            a Gaussian model of rank `rank` (`LowRankPrior`, fitted to clean latents) plus F scaled by that estimate's
            errors, and the network also sees the estimate: it then learns only what a linear receiver cannot know.
        side_block: keep the side block and mask token; only training uses them.
        inert: keep parameters of the authors' layout that no output depends on (queries and keys of cross-attention to
            one token, class rows of the bias tables).
    """

    channels: int = 16
    side: int = 16
    width: int = 512
    heads: int = 8
    inside: int = 4
    decoder: int = 4
    mlp_ratio: float = 4.0
    text: int = 768
    level_input: str = "std"
    output: str = "x0"
    rank: int = 384
    side_block: bool = True
    inert: bool = True

    def __post_init__(self) -> None:
        for name in ("channels", "side", "width", "heads", "inside", "decoder", "text", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"DiTConfig: {name} must be at least 1, got {getattr(self, name)}")
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"DiTConfig: width must be a multiple of 4 and of heads={self.heads}, got {self.width}")
        if self.output == "residual" and self.rank > self.channels * self.side**2:
            raise ValueError(f"DiTConfig: rank must be at most {self.channels * self.side**2}, got {self.rank}")
        if self.level_input not in ("std", "variance"):
            raise ValueError(f"DiTConfig: level_input must be 'std' or 'variance', got {self.level_input!r}")
        if self.output not in ("x0", "residual"):
            raise ValueError(f"DiTConfig: output must be 'x0' or 'residual', got {self.output!r}")

    @classmethod
    def authors(cls, **changes: Any) -> "DiTConfig":
        """256 tokens of a 16x16x16 latent, width 512, 4 + 4 + 4 blocks."""
        return cls(**changes)

    @classmethod
    def small(cls, **changes: Any) -> "DiTConfig":
        """64 tokens of a 16x8x8 latent, width 128, 2 + 2 + 2 blocks, on a linear estimate: trains on a CPU."""
        sizes: dict[str, Any] = {"side": 8, "width": 128, "heads": 4, "inside": 2, "decoder": 2, "mlp_ratio": 2.0}
        return cls(**{**sizes, "text": 64, "output": "residual", "inert": False, **changes})

    def block(self, *, skip: bool) -> Block:
        hidden = round(self.mlp_ratio * self.width)
        return Block(self.width, self.heads, hidden, self.side, skip=skip, inert=self.inert)


class Steering(Protocol):
    """What a control branch does inside the trunk: see the tokens after an in- or out-block and correct them."""

    def after(self, index: int, x: Tensor) -> Tensor:
        """Tokens after block `index` of the in- and out-blocks -> tokens for the next one."""


class Control(Protocol):
    """A control branch with its guide, before the level is known."""

    def begin(self, dit: "DiT", c: Tensor, y: Tensor) -> Steering:
        """Steering of one call at conditioning vectors c [B,D] and text tokens y [B,D]."""


class DiT(nn.Module):
    """x0 = DiT(g, beta_bar, text): the clean latent of g = sqrt(1-beta) x0 + sqrt(beta) noise, a prediction.

    `forward` forms everything a call needs; `embed`, `trunk` and `output` are its stages, for callers that share or
    reuse parts of the work.
    """

    def __init__(self, config: DiTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiTConfig()
        tokens = config.side**2
        self.level = LevelEmbedding(config.width)
        self.text = TextEmbedding(config.text, config.width)
        self.patch = nn.Linear(config.channels, config.width)
        self.positions = nn.Parameter(blocks.sincos_positions(config.width, config.side)[None])
        self.decoder_positions = nn.Parameter(blocks.sincos_positions(config.width, config.side)[None])
        self.inner = nn.ModuleList(
            [config.block(skip=False) for _ in range(config.inside)]
            + [config.block(skip=True) for _ in range(config.inside)]
        )
        self.decoder = nn.ModuleList([config.block(skip=True) for _ in range(config.decoder)])
        self.final = FinalLayer(config.width, config.channels)
        self.side = config.block(skip=False) if config.side_block else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.side_block else None
        self.prior = LowRankPrior(config.channels * tokens, config.rank) if config.output == "residual" else None
        self.hint = nn.Linear(config.channels, config.width) if config.output == "residual" else None
        blocks.start([module for module in self.children() if module is not self.level.layers[-1]])
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)

    def blocks(self) -> list[Block]:
        """In-, out- and decoder blocks in the order they run."""
        return [*self.inner, *self.decoder]

    def level_vector(self, beta_bar: Tensor) -> Tensor:
        """Conditioning vectors c [B,D] of levels [B]."""
        return self.level(beta_bar.sqrt() if self.config.level_input == "std" else beta_bar)

    def embed(self, latent: Tensor) -> Tensor:
        """[B,C,h,w] -> tokens [B,T,D] with their positions."""
        return self.patch(latent.flatten(2).transpose(1, 2)) + self.positions

    def start(self, g: Tensor, beta_bar: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embedded tokens of noisy latents, and the linear estimate where the output is a residual."""
        if self.prior is None or self.hint is None:
            return self.embed(g), None
        estimate = self.prior.estimate(g, beta_bar)
        return self.embed(g) + self.hint(estimate.flatten(2).transpose(1, 2)), estimate

    def trunk(
        self, x: Tensor, told: Sequence[Modulation], steering: Steering | None = None, kept: Tensor | None = None
    ) -> Tensor:
        """Embedded tokens [B,T,D] through all blocks; `told` has one entry for each of `blocks()`.

        kept: [B,t] indices of the tokens that are not masked; needs one more entry in `told`, for the side block.
        """
        embedded, pushed, inside = x, list[Tensor](), self.config.inside
        inner = list(told[: 2 * inside])
        if kept is not None:
            x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
            inner = [part._replace(bias=blocks.gathered(part.bias, kept)) for part in inner]
        for index, (block, part) in enumerate(zip(self.inner, inner, strict=True)):
            x = block(x, part, pushed.pop() if index >= inside else None)
            if index < inside:
                pushed.append(x)
            if steering is not None:
                x = steering.after(index, x)
        x = x + self.decoder_positions if kept is None else self._refilled(x, told[-1], kept)
        for block, part in zip(self.decoder, told[2 * inside :], strict=False):
            x = block(x, part, embedded)
        return x

    def _refilled(self, x: Tensor, told: Modulation, kept: Tensor) -> Tensor:
        """Mask tokens in the gaps, the side block over all; its outcome counts at the masked tokens only."""
        if self.side is None or self.mask_token is None:
            raise ValueError("DiT: masked tokens need side_block=True")
        everywhere = kept[..., None].expand_as(x)
        whole = self.mask_token.to(x.dtype).expand(x.shape[0], self.decoder_positions.shape[1], -1)
        whole = whole.scatter(1, everywhere, x) + self.decoder_positions
        masked = torch.ones_like(whole[..., :1]).scatter(1, kept[..., None], 0.0)
        return torch.lerp(whole, self.side(whole, told).to(whole.dtype), masked)

    def output(self, x: Tensor, shifts: Tensor, estimate: Tensor | None, beta_bar: Tensor) -> Tensor:
        """Tokens after the trunk, the final layer's shifts [B,2D] and the linear estimate -> x0 [B,C,h,w]."""
        side = self.config.side
        free = self.final(x, shifts).transpose(1, 2).unflatten(2, (side, side))
        if self.prior is None or estimate is None:
            return free
        return estimate + self.prior.spread(free.to(estimate.dtype), beta_bar)

    def check(self, g: Tensor, beta_bar: Tensor, text: Tensor | None) -> None:
        """Raise ValueError unless the arguments of a call fit."""
        shape = (self.config.channels, self.config.side, self.config.side)
        if g.ndim != 4 or tuple(g.shape[1:]) != shape:
            raise ValueError(f"DiT: latents must be [B,{','.join(map(str, shape))}], got {tuple(g.shape)}")
        if tuple(beta_bar.shape) != (g.shape[0],):
            raise ValueError(f"DiT: beta_bar must be [{g.shape[0]}], got {tuple(beta_bar.shape)}")
        if text is not None and tuple(text.shape) != (g.shape[0], self.config.text):
            raise ValueError(f"DiT: text must be [{g.shape[0]},{self.config.text}], got {tuple(text.shape)}")

    def forward(
        self,
        g: Tensor,
        beta_bar: Tensor,
        text: Tensor | None = None,
        control: Control | None = None,
        *,
        kept: Tensor | None = None,
    ) -> Tensor:
        """The clean latents [B,C,h,w] of noisy ones.

        Args:
            g: [B,C,h,w] = sqrt(1-beta) x0 + sqrt(beta) noise, x0 of unit mean square.
            beta_bar: [B] noise variances on [0, 1].
            text: [B,text] sentence vectors; zeros where there is none, as None means for all.
            control: a control branch with its guide.
            kept: [B,t] indices of the tokens left unmasked (training only).

        Raises:
            ValueError: a shape does not fit, or masking without a side block or with control.
        """
        self.check(g, beta_bar, text)
        if kept is not None and (control is not None or self.side is None):
            raise ValueError("DiT: masked tokens need side_block=True and no control branch")
        c = self.level_vector(beta_bar)
        y = self.text(torch.zeros_like(c[:, :1]).expand(-1, self.config.text) if text is None else text)
        told = [block.modulation(c, y) for block in self.blocks()]
        if kept is not None and self.side is not None:
            told.append(self.side.modulation(c, y))
        steering = None if control is None else control.begin(self, c, y)
        shifts = self.final.shifts(functional.silu(c))
        x, estimate = self.start(g, beta_bar)
        return self.output(self.trunk(x, told, steering, kept), shifts, estimate, beta_bar)
