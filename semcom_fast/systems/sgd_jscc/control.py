"""The control branch: copies of the in- and out-blocks that see a guide and correct the trunk between its blocks."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import Block, Modulation, zero
from .dit import DiT, DiTConfig


class ControlBranch(nn.Module):
    """Copies of the in- and out-blocks with zero-initialised linear layers at the entry and after every block.

    Block 0 takes the trunk's tokens after its first in-block plus the embedded guide through the entry layer. What
    block i puts out goes on to block i+1 and, through its own zero layer and times `control_scale`, is added to the
    trunk's tokens after trunk block i. Out-blocks take back what the branch's own in-blocks pushed.

    A new branch corrects nothing. `ControlBranch.of(dit)` starts from the trunk's weights, as training does.
    """

    def __init__(self, config: DiTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiTConfig()
        self.inner = nn.ModuleList(
            [config.block(skip=False) for _ in range(config.inside)]
            + [config.block(skip=True) for _ in range(config.inside)]
        )
        self.entry = nn.Linear(config.width, config.width)
        self.exits = nn.ModuleList([nn.Linear(config.width, config.width) for _ in range(2 * config.inside)])
        zero(self.entry, *self.exits)

    @classmethod
    def of(cls, dit: DiT) -> "ControlBranch":
        """A branch whose blocks are copies of the trunk's."""
        with torch.device("meta"):
            branch = cls(dit.config)
        branch = branch.to_empty(device=dit.positions.device)
        branch.inner = copy.deepcopy(dit.inner).requires_grad_(True)
        zero(branch.entry, *branch.exits)
        return branch.to(dit.positions.dtype)

    def blocks(self) -> list[Block]:
        """The branch's blocks in the order they run."""
        return [*self.inner]

    def guided(self, guide: Tensor, control_scale: float | Tensor = 1.0) -> "Guided":
        """The branch with a guide [B,C,h,w], for `DiT.forward`.

        control_scale: a number, or [B], one for each image.
        """
        return Guided(self, guide, control_scale)


class Guided:
    """A control branch with its guide and scale."""

    def __init__(self, branch: ControlBranch, guide: Tensor, control_scale: float | Tensor = 1.0) -> None:
        self.branch, self.guide = branch, guide
        self.scale = control_scale[:, None, None] if isinstance(control_scale, Tensor) else control_scale

    def begin(self, dit: DiT, c: Tensor, y: Tensor) -> "ControlRun":
        shape = (c.shape[0], dit.config.channels, dit.config.side, dit.config.side)
        if tuple(self.guide.shape) != shape:
            raise ValueError(f"ControlBranch: the guide must be {list(shape)}, got {tuple(self.guide.shape)}")
        told = [block.modulation(c, y) for block in self.branch.blocks()]
        return ControlRun(self.branch, told, self.branch.entry(dit.embed(self.guide)), self.scale)


class ControlRun:
    """The branch during one pass through the trunk.

    Only the first `len(entry)` images are steered; any others pass unchanged.
    """

    def __init__(
        self, branch: ControlBranch, told: Sequence[Modulation], entry: Tensor, scale: float | Tensor = 1.0
    ) -> None:
        self.branch, self.told, self.scale = branch, told, scale
        self.state, self.pushed = entry, list[Tensor]()

    def after(self, index: int, x: Tensor) -> Tensor:
        inside, steered = self.branch.config.inside, self.state.shape[0]
        if index == 0:
            self.state = x[:steered] + self.state
        skip = self.pushed.pop() if index >= inside else None
        self.state = self.branch.inner[index](self.state, self.told[index], skip)
        if index < inside:
            self.pushed.append(self.state)
        corrected = x[:steered] + self.scale * self.branch.exits[index](self.state)
        return corrected if steered == x.shape[0] else torch.cat((corrected, x[steered:]))
