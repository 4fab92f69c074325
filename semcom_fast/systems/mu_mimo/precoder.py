"""The network that refines the closed-form precoder's output."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .encoder import unrounded


class RefinementNet(nn.Module):
    """Coarse transmit grid and channel -> a correction of the transmit grid, a small CNN over (subcarrier, symbol).

    Input channels: Re and Im of the coarse x (2M), Re and Im of h (2KM). Of a static channel (size 1 in time) the
    response of the first 3x3 convolution depends on time only through its zero padding: it is computed as three
    convolutions over frequency (first, inner, last symbol), the same sums for a fraction of the work.

    The last convolution starts at zero, so that an untrained network is the closed form exactly.

    Source: "OFDM Map" rows of the paper's Table I and eq. (8).
    """

    def __init__(self, users: int = 4, antennas: int = 4, width: int = 64) -> None:
        super().__init__()
        self.antennas = antennas
        self.first = nn.Conv2d(2 * antennas * (1 + users), width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, 2 * antennas, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def _of_channel(self, h: Tensor, slots: int) -> Tensor:
        """What the first convolution makes of a static h [B,2KM,Nf], without bias -> [B,width,Nf,slots]."""
        taps = self.first.weight[:, 2 * self.antennas :].unbind(-1)  # over time: previous, this and next symbol
        sums = torch.cat((taps[1] + taps[2], taps[0] + taps[1] + taps[2], taps[0] + taps[1]))
        first, inner, last = functional.conv1d(h, sums, padding=1).unsqueeze(-1).chunk(3, 1)
        return torch.cat((first, inner.expand(-1, -1, -1, slots - 2), last), -1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """x [B,Nf,Nt,M], h [B,Nf,Nt or 1,K,M], complex -> correction [B,Nf,Nt,M], complex."""
        slots = x.shape[2]
        coarse = torch.view_as_real(x).flatten(3).permute(0, 3, 1, 2)
        csi = torch.view_as_real(h.resolve_conj()).flatten(3).permute(0, 3, 1, 2)
        if csi.shape[-1] == 1 and slots > 1:
            weight = self.first.weight[:, : 2 * self.antennas]
            z = functional.conv2d(coarse, weight, self.first.bias, padding=1)
            z = z + self._of_channel(csi.squeeze(-1), slots)
        else:
            z = self.first(torch.cat((coarse, csi.expand(-1, -1, -1, slots)), 1))
        z = functional.relu(self.norm1(z))
        z = self.last(functional.relu(self.norm2(self.second(z))))
        return torch.view_as_complex(unrounded(z).permute(0, 2, 3, 1).unflatten(-1, (-1, 2)).contiguous())
