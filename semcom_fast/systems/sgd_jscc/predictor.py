"""The predictor of a receiver run: text and edges guide the network, and what does not change is formed once."""

import torch
from torch import Tensor
from torch.nn import functional

from .blocks import Block, Modulation
from .control import ControlBranch, ControlRun
from .dit import DiT


class GuidedPredictor:
    """`predictor(g, beta_bar) -> (x0, x0_uncond)` for one run of `WaterfillDDIM` over a batch of B images.

    With guidance the network sees 2B rows: first the images with text and control branch, then the same latents with
    the negative text and without the branch. Equal to `dit(g, beta_bar, text, control.guided(guide, control_scale))`
    and `dit(g, beta_bar, negative)`, with less work:

    - the control branch runs on the first B rows only; a scale of zero on the others would give the same;
    - cross-attention to one token is a vector per block and image, formed here, not in every step;
    - the latents are embedded once for both rows of a pair, and the guide once for the run;
    - the modulations of all blocks are one matrix product of B rows, not 2B;
    - relative biases are gathered here from their tables.

    Weights are read when the predictor is made; make a new one after changing them. No gradients are recorded.

    Args:
        dit: the network.
        control: its control branch, or None.
        text: [B,D] or [1,D] sentence vectors; None means no caption.
        negative: [D] vector of the unconditional rows; None means no caption.
        guide: [B,C,h,w] latents of the received edge maps; needed with, and only with, `control`.
        control_scale: weight of the branch, a number or [B].
        guided: False, or no text, negative or control to tell the rows of a pair apart: x0 alone is returned.

    Raises:
        ValueError: control without guide or the reverse, or a shape does not fit.

    Source: "Semantics-Guided Diffusion for Deep Joint Source-Channel Coding in Wireless Image Transmission", Section V.
    """

    @torch.no_grad()
    def __init__(
        self,
        dit: DiT,
        control: ControlBranch | None = None,
        text: Tensor | None = None,
        negative: Tensor | None = None,
        guide: Tensor | None = None,
        control_scale: float | Tensor = 1.0,
        guided: bool = True,
    ) -> None:
        if (control is None) != (guide is None):
            raise ValueError("GuidedPredictor: a control branch and a guide go together")
        size = dit.config.text
        if text is not None and (text.ndim != 2 or text.shape[1] != size):
            raise ValueError(f"GuidedPredictor: text must be [B,{size}], got {tuple(text.shape)}")
        if negative is not None and tuple(negative.shape) != (size,):
            raise ValueError(f"GuidedPredictor: negative must be [{size}], got {tuple(negative.shape)}")
        if isinstance(control_scale, Tensor) and control_scale.ndim > 1:
            raise ValueError(f"GuidedPredictor: control_scale must be [B], got {tuple(control_scale.shape)}")
        self.dit, self.control = dit, control
        self.pairs = guided and not (text is None and negative is None and control is None)
        self.scale: float | Tensor = control_scale
        if isinstance(control_scale, Tensor) and control_scale.ndim:
            self.scale = control_scale[:, None, None]
        nothing = dit.positions.new_zeros(1, size)
        self.y = dit.text(nothing if text is None else text.to(nothing))
        self.y_uncond = dit.text(nothing if negative is None else negative.to(nothing)[None])
        self.blocks: list[Block] = dit.blocks() + ([] if control is None else control.blocks())
        self.biases = [block.attention.bias() for block in self.blocks]
        layers = [block.shifts for block in self.blocks] + [dit.final.shifts]
        self.weight = torch.cat([layer.weight for layer in layers])
        self.offset = torch.cat([layer.bias for layer in layers])
        self.sizes = [layer.out_features for layer in layers]
        self.crosses = self._crosses()
        self.entry: Tensor | None = None
        if control is not None and guide is not None:
            shape = (dit.config.channels, dit.config.side, dit.config.side)
            if guide.ndim != 4 or tuple(guide.shape[1:]) != shape:
                raise ValueError(f"GuidedPredictor: the guide must be {['B', *shape]}, got {tuple(guide.shape)}")
            self.entry = control.entry(dit.embed(guide.to(nothing)))

    def _crosses(self) -> list[tuple[Tensor, Tensor]]:
        """Outcome of cross-attention for every block: with text [B or 1,D], without [1,D]."""
        return [(block.cross(self.y), block.cross(self.y_uncond)) for block in self.blocks]

    def _told(self, c: Tensor) -> tuple[list[Modulation], Tensor]:
        """What trunk and branch are told at conditioning vectors c [B,D], and the final layer's shifts."""
        batch, trunk = c.shape[0], len(self.dit.blocks())
        *shifts, final = functional.linear(functional.silu(c), self.weight, self.offset).split(self.sizes, 1)
        told = []
        for index, (part, cross, bias) in enumerate(zip(shifts, self.crosses, self.biases, strict=True)):
            vectors = cross[0].expand(batch, -1)
            if self.pairs and index < trunk:
                part = part.repeat(2, 1)
                vectors = torch.cat((vectors, cross[1].expand(batch, -1)))
            told.append(Modulation(part, vectors, bias))
        return told, final.repeat(2, 1) if self.pairs else final

    def _check(self, g: Tensor, beta_bar: Tensor) -> None:
        self.dit.check(g, beta_bar, None)
        rows = {"text": self.y.shape[0], "guide": 1 if self.entry is None else self.entry.shape[0]}
        if isinstance(self.scale, Tensor) and self.scale.ndim:
            rows["control_scale"] = self.scale.shape[0]
        for name, count in rows.items():
            if count not in (1, g.shape[0]):
                raise ValueError(f"GuidedPredictor: {name} is for {count} images, the latents are {g.shape[0]}")

    @torch.no_grad()
    def __call__(self, g: Tensor, beta_bar: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """x0 [B,C,h,w] of noisy latents g at levels beta_bar [B]; with guidance (x0, x0_uncond)."""
        self._check(g, beta_bar)
        dit, batch = self.dit, g.shape[0]
        told, shifts = self._told(dit.level_vector(beta_bar))
        trunk = len(dit.blocks())
        steering = None
        if self.control is not None and self.entry is not None:
            entry = self.entry.expand(batch, -1, -1)
            steering = ControlRun(self.control, told[trunk:], entry, self.scale)
        x, estimate = dit.start(g, beta_bar)
        if not self.pairs:
            return dit.output(dit.trunk(x, told[:trunk], steering), shifts, estimate, beta_bar)
        x = dit.trunk(x.repeat(2, 1, 1), told[:trunk], steering)
        doubled = None if estimate is None else estimate.repeat(2, 1, 1, 1)
        both = dit.output(x, shifts, doubled, beta_bar.repeat(2))
        return both[:batch], both[batch:]
