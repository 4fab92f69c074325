"""The receivers' networks: what one user received becomes an image and class scores; light enough for a handset."""

import torch
from torch import Tensor, nn

from .encoder import unrounded


class Separable(nn.Sequential):
    """Depthwise 3x3 convolution without bias, then a pointwise one with bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1),
        )


class Attention(nn.Sequential):
    """Received grid and known pilots (2C channels) -> a mask in (0,1) of C channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            Separable(2 * channels, 64), nn.BatchNorm2d(64), nn.ReLU(),
            Separable(64, 64), nn.BatchNorm2d(64), nn.ReLU(),
            Separable(64, channels), nn.Sigmoid(),
        )  # fmt: skip


class Restoration(nn.Sequential):
    """Features [.,.,8,8] -> image [.,3,32,32] in (0,1)."""

    def __init__(self, inputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, 128, 1), nn.ReLU(), nn.Upsample(scale_factor=2),
            Separable(128, 64), nn.BatchNorm2d(64), nn.ReLU(), nn.Upsample(scale_factor=2),
            Separable(64, 32), nn.BatchNorm2d(32), nn.ReLU(),
            Separable(32, 16), nn.Conv2d(16, 3, 3, padding=1), nn.Sigmoid(),
        )  # fmt: skip


class Classifier(nn.Sequential):
    """Features [.,.,8,8] -> class scores (logits)."""

    def __init__(self, inputs: int, classes: int = 10) -> None:
        layers: list[nn.Module] = []
        for before, after in ((inputs, 16), (16, 32), (32, 64)):
            layers += [Separable(before, after), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, classes))
        self.inputs = inputs


class GuidedDecoder(nn.Module):
    """Received grid of one user -> image and class scores, weighted by an attention mask drawn from the pilots.

    The mask m sees the received grid y and the user's own pilots p; both heads see cat(m*y, p), or y alone without
    guidance. Grids arrive as cells [N,C,8,8], C = 2*Nf*Nt/64 (see `cells`).

    Source: pilot-guided decoder of the paper, eqs. (10)-(13) and Table I.
    """

    def __init__(self, channels: int, classes: int = 10, *, guided: bool = True) -> None:
        super().__init__()
        self.attention = Attention(channels) if guided else None
        inputs = 2 * channels if guided else channels
        self.restoration = Restoration(inputs)
        self.classifier = Classifier(inputs, classes)

    def features(self, y: Tensor, pilots: Tensor) -> Tensor:
        """What both heads see: [N,2C,8,8] with guidance, y itself without."""
        if self.attention is None:
            return y
        return torch.cat((y * self.attention(torch.cat((y, pilots), 1)), pilots), 1)

    def forward(self, y: Tensor, pilots: Tensor) -> tuple[Tensor, Tensor]:
        """y, pilots [N,C,8,8] -> (images [N,3,32,32], scores [N,classes])."""
        z = self.features(y, pilots)
        return unrounded(self.restoration(z)), unrounded(self.classifier(z))


def cells(grid: Tensor) -> Tensor:
    """A user's grid [...,Nf,Nt] complex as 8x8 cells [...,C,8,8] real: C = 2*Nf*Nt/64 neighbouring reals per cell.

    Row by row (subcarrier, symbol, Re/Im) the grid is cut into 64 equal pieces: with Nf = 32, 64, 128 a cell is half a
    subcarrier, one or two, and holds pilot elements in fixed channels.
    """
    flat = torch.view_as_real(grid.resolve_conj()).flatten(-3)
    return flat.unflatten(-1, (8, 8, -1)).movedim(-1, -3)
