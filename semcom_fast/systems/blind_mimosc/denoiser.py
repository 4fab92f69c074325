"""Source denoisers of Blind-MIMOSC: a small learned one, and a Gaussian mixture in closed form."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .derived import KeepsDerived
from .variance import VarianceTable


class _Level(NamedTuple):
    """Everything a denoiser needs that depends on sigma alone."""

    skip: Tensor  # 0-d
    weight_in: Tensor  # [n,width], c_in folded in
    bias_in: Tensor  # [width]
    blocks: tuple[tuple[Tensor, Tensor, Tensor], ...]  # [width,width] and [width] of the first layer, [width,width]
    weight_out: Tensor  # [width,n], c_out folded in
    bias_out: Tensor  # [n]
    variance: Tensor  # 0-d


def _linear(layers: nn.ModuleList) -> list[nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


class DigitDenoiser(KeepsDerived):
    """E[d | d + sigma z] by a residual MLP in EDM form, with a table of its held-out error as posterior variance.

    Definition: den(x) = mu + c_skip (x - mu) + c_out F(c_in (x - mu), sigma), c_skip = s^2/(sigma^2 + s^2),
    c_out = sigma s/sqrt(sigma^2 + s^2), c_in = 1/sqrt(sigma^2 + s^2), with mu the mean image and s^2 the mean variance
    per pixel of the training set. F is a linear layer, `blocks` residual blocks h + W2 silu(W1 h + b(sigma)) and a
    linear layer; the noise level enters through the biases.

    With its weights frozen in evaluation mode, what depends on sigma alone is computed once per level and kept, so a
    call costs three small operations per block. Levels are told apart by value. On a CUDA device nothing is kept:
    reading the value would stop the device, and a captured graph must follow its input. Under `torch.autocast` F runs in
    the lower precision and everything else in x's.

    Shapes: x [..., n] real and sigma a 0-d tensor or a number -> mean [..., n], var [B,U] for x [B,U,n] (x.shape[:-1]
    in general), clamped to [0, sigma^2].
    """

    mean: Tensor
    scale: Tensor
    frequencies: Tensor

    def __init__(self, dim: int = 64, width: int = 256, blocks: int = 3, features: int = 32) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, width)
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(blocks))
        self.outer = nn.Linear(width, dim)
        # One vector of features of ln(sigma) shifts the bias of every layer but the last.
        self.embed = nn.Sequential(nn.Linear(2 * features, 64), nn.SiLU(), nn.Linear(64, width * (blocks + 1)))
        self.variance = VarianceTable()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("frequencies", torch.linspace(0.2, 6.0, features), persistent=False)
        for layer in _linear(self.second):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.outer.weight)

    def _shifts(self, sigma: Tensor) -> list[Tensor]:
        """Noise-level biases of the first layer and of each block, [..., width] for sigma [...]."""
        phase = sigma.log().unsqueeze(-1) * self.frequencies
        return list(self.embed(torch.cat((phase.sin(), phase.cos()), -1)).chunk(len(self.first) + 1, -1))

    def residual(self, x: Tensor, sigma: Tensor) -> Tensor:
        """F at noisy images x [B,n] with one level per item, sigma [B]: the form that training uses."""
        c_in = (sigma.square() + self.scale.square()).rsqrt().unsqueeze(-1)
        shifts = self._shifts(sigma)
        h = self.inner((x - self.mean) * c_in) + shifts[0]
        for first, second, shift in zip(self.first, self.second, shifts[1:], strict=True):
            h = h + second(functional.silu(first(h) + shift))
        return self.outer(h)

    def residual_target(self, x: Tensor, d: Tensor, sigma: Tensor) -> Tensor:
        """What F should be where x = d + sigma z: of unit scale at every level."""
        sigma = sigma.unsqueeze(-1)
        total = sigma.square() + self.scale.square()
        skip = self.scale.square() / total
        return (d - self.mean - skip * (x - self.mean)) * total.sqrt() / (sigma * self.scale)

    def _prepare(self, sigma: Tensor) -> _Level:
        total = sigma.square() + self.scale.square()
        skip = self.scale.square() / total
        c_in, c_out = total.rsqrt(), sigma * self.scale * total.rsqrt()
        shifts = self._shifts(sigma)
        weight_in = self.inner.weight.t() * c_in
        return _Level(
            skip=skip,
            weight_in=weight_in.contiguous(),
            bias_in=self.inner.bias + shifts[0] - self.mean @ weight_in,
            blocks=tuple(
                (first.weight.t(), first.bias + shift, second.weight.t())
                for first, second, shift in zip(_linear(self.first), _linear(self.second), shifts[1:], strict=True)
            ),
            weight_out=(self.outer.weight.t() * c_out).contiguous(),
            bias_out=self.outer.bias * c_out + self.mean * (1 - skip),
            variance=self.variance(sigma),
        )

    def _level(self, x: Tensor, sigma: Tensor | float) -> _Level:
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        if x.is_cuda or torch.compiler.is_compiling() or not self._frozen(self.inner.weight):
            return self._prepare(sigma)
        key = float(sigma)
        if len(self._derived) >= 256 and key not in self._derived:  # a schedule has about thirty levels
            self.forget()
        return self._kept(key, self.inner.weight, lambda: self._prepare(sigma))

    def _unfolded(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """The definition term by term: under autocast F alone is in bfloat16, and its rounding counts c_out times."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        total = sigma.square() + self.scale.square()
        residual = self.residual(x, sigma.reshape(1)).to(x.dtype)
        skip = torch.addcmul(self.mean, x - self.mean, self.scale.square() / total)
        mean = torch.addcmul(skip, residual, sigma * self.scale * total.rsqrt())
        return mean, self.variance(sigma).expand(x.shape[:-1])

    def tabulate(self, errors: Tensor) -> None:
        """Set the posterior variance to mean squared errors measured at `variance.levels`."""
        self.variance.set(errors)
        self.forget()

    def forward(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        if torch.is_autocast_enabled(x.device.type):
            return self._unfolded(x, sigma)
        level = self._level(x, sigma)
        flat = x.reshape(-1, x.shape[-1])
        h = torch.addmm(level.bias_in, flat, level.weight_in)
        for first, bias, second in level.blocks:
            h = torch.addmm(h, functional.silu(torch.addmm(bias, h, first)), second)
        out = torch.addmm(level.bias_out, h, level.weight_out).addcmul(flat, level.skip)
        return out.view_as(x), level.variance.expand(x.shape[:-1])
