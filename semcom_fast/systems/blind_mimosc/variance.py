"""The posterior variance of a denoiser as a table of its error on held-out data."""

import torch
from torch import Tensor, nn


class VarianceTable(nn.Module):
    """v(sigma): mean squared error per entry at `points` levels spaced evenly in ln(sigma), interpolated in ln v.

    Outside the table the ends are held; the result never leaves [0, sigma^2], the range of a posterior variance under
    noise of variance sigma^2. Every step works on tensors, so that a captured graph follows its sigma.
    """

    log_sigma: Tensor
    log_error: Tensor

    def __init__(self, low: float = 0.005, high: float = 200.0, points: int = 54) -> None:
        super().__init__()
        self.register_buffer("log_sigma", torch.linspace(torch.tensor(low).log(), torch.tensor(high).log(), points))
        self.register_buffer("log_error", 2 * self.log_sigma.clone())

    @property
    def levels(self) -> Tensor:
        """The noise levels of the table, [points]."""
        return self.log_sigma.exp()

    def set(self, errors: Tensor) -> None:
        """Store measured mean squared errors [points], one per entry of `levels`."""
        if errors.shape != self.log_error.shape or not bool((errors > 0).all()):
            raise ValueError(f"need {self.log_error.numel()} positive errors, got shape {tuple(errors.shape)}")
        self.log_error.copy_(errors.log())

    def forward(self, sigma: Tensor) -> Tensor:
        last = self.log_sigma.numel() - 1
        spacing = (self.log_sigma[-1] - self.log_sigma[0]) / last
        place = ((sigma.log() - self.log_sigma[0]) / spacing).clamp(0, last)
        index = place.floor().clamp(max=last - 1).long()
        part = place - index
        # not [index]: under torch.compile a 0-d index is read back from the tensor, which breaks the graph
        below, above = (self.log_error.index_select(0, k.reshape(-1)).view_as(k) for k in (index, index + 1))
        log_error = torch.lerp(below, above, part)
        return torch.minimum(log_error.exp(), sigma.square())
