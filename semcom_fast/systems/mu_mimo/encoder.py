"""The transmitters' networks: an image becomes a grid of complex symbols, adapted to the channel and to the noise."""

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 32  # image height and width
CELLS = 64  # the 8 x 8 spatial cells that encoder and decoder work on


def unrounded(x: Tensor) -> Tensor:
    """Leave reduced precision: what autocast made bfloat16 goes on as float32, float32 and float64 stay."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class ConvNorm(nn.Sequential):
    """A square convolution ("same" padding, with bias) and batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2),
            nn.BatchNorm2d(outputs),
        )


class ResBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus a skip, then ReLU; the skip is a 1x1 convolution with BN where it must change shape."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3, stride)
        self.second = ConvNorm(outputs, outputs, 3)
        self.skip = nn.Identity() if stride == 1 and inputs == outputs else ConvNorm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(functional.relu(self.first(x), inplace=True)) + self.skip(x), inplace=True)


class ScenarioNet(nn.Module):
    """Channel magnitudes -> 64 scale factors in (0,1) that tell the encoder what kind of channel it meets.

    |H| is read as [B, Nt*K*M, Nf]: convolutions run over the subcarriers, the rest are channels. A static channel
    (size 1 in time) has Nt equal copies of K*M channels; their weights are added up instead, the same sum at a
    fourteenth of the work.

    Source: scenario adaptation of "Scenario-Adaptive MU-MIMO OFDM Semantic Communication With Asymmetric Neural
    Network", Table I.
    """

    def __init__(self, slots: int, users: int, antennas: int) -> None:
        super().__init__()
        self.slots, self.pairs = slots, users * antennas
        self.first = nn.Conv1d(slots * self.pairs, 16, 5, 2, padding=2)
        self.second = nn.Conv1d(16, 32, 5, 2, padding=2)
        self.hidden = nn.Linear(32, 64)
        self.last = nn.Linear(64, 64)

    def forward(self, h: Tensor) -> Tensor:
        """h [B,Nf,Nt or 1,K,M] complex -> [B,64]."""
        magnitude = h.abs().flatten(3).permute(0, 2, 3, 1)  # [B, Nt or 1, K*M, Nf]
        weight = self.first.weight
        if magnitude.shape[1] == 1:
            weight = weight.unflatten(1, (self.slots, self.pairs)).sum(1)
        z = functional.conv1d(magnitude.flatten(1, 2), weight, self.first.bias, 2, 2)
        z = functional.relu(self.second(functional.relu(z))).mean(-1)
        return torch.sigmoid(self.last(functional.relu(self.hidden(z))))


class SemanticEncoder(nn.Module):
    """Images of all users -> symbols before normalisation; one network for all users.

    Args:
        reals: R = 2*Nf*Nst real numbers per user and image.
        slots, users, antennas: OFDM symbols, K and M, the size of the scenario network's input.
        adaptive: scale feature maps by scenario and by noise level; without it h and noise_var are not looked at.

    Source: semantic encoder of the paper's Table I and eqs. (4)-(6); the sites of the two scalings are the only places
    whose channel counts (64 and 128) fit.
    """

    def __init__(
        self, reals: int, slots: int = 14, users: int = 4, antennas: int = 4, *, adaptive: bool = True
    ) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 64, 3)
        self.block1 = ResBlock(64, 64, 2)
        self.block2 = ResBlock(64, 128, 2)
        self.block3 = ResBlock(128, 128, 1)
        self.scenario = ScenarioNet(slots, users, antennas) if adaptive else None
        self.noise = nn.Linear(1, 128) if adaptive else None
        self.filters = nn.Conv2d(128, reals // CELLS, 3, padding=1)
        self.dense = nn.Linear(reals, reals)

    def forward(self, images: Tensor, h: Tensor, noise_var: Tensor) -> Tensor:
        """images [B,K,3,32,32], h [B,Nf,Nt or 1,K,M], noise_var [B] -> [B,K,R] in (-1,1)."""
        users = images.shape[1]
        z = functional.relu(self.stem(images.flatten(0, 1)), inplace=True)
        z = self.block1(z)
        if self.scenario is not None:
            z = z * self.scenario(h).to(z.dtype).repeat_interleave(users, 0)[..., None, None]
        z = self.block3(self.block2(z))
        if self.noise is not None:
            scale = torch.sigmoid(self.noise(noise_var.unsqueeze(-1)))
            z = z * scale.to(z.dtype).repeat_interleave(users, 0)[..., None, None]
        z = self.filters(z).flatten(1)
        return torch.tanh(unrounded(self.dense(z))).unflatten(0, (-1, users))
