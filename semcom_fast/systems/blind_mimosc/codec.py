"""Encoders of Blind-MIMOSC: digits to power-normalised complex codewords, and the decoder used in training only."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...ops import philox_normal, power_normalise
from .derived import KeepsDerived

MASK_STEP = 3  # of the user stream: after channels, noise and pilots


class DigitEncoder(KeepsDerived):
    """Digits d [B,U,64] -> codewords x [B,U,K,Nt,T] with |x_u|^2 = K Nt T: an MLP, then the power normaliser.

    All users share one network. To be told apart (the receiver cannot re-sort them) user u > 0 then permutes its
    symbols and turns each by a fixed random phase; both are drawn from `mask_seed` and folded into the last layer, so
    they cost nothing. User 0 is the network as trained, whatever `users` is.

    Args:
        blocks, nt, slots: K, Nt and T; their product is the number of complex symbols, fixed by the weights.
        users: U.
        width: of the two hidden layers.
        mask_seed: of the users' masks and permutations.

    Source: f_u of "Blind MIMO Semantic Communication via Parallel Variational Diffusion", eqs. (12), (44).
    """

    def __init__(
        self,
        blocks: int = 8,
        nt: int = 1,
        slots: int = 8,
        *,
        users: int = 1,
        dim: int = 64,
        width: int = 256,
        mask_seed: int = 0,
    ) -> None:
        super().__init__()
        self.shape = (blocks, nt, slots)
        self.users = users
        self.mask_seed = mask_seed
        self.first = nn.Linear(dim, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, 2 * blocks * nt * slots)

    @property
    def symbols(self) -> int:
        """Complex symbols per user and image, m = K Nt T."""
        return self.last.out_features // 2

    def _distinct_last(self) -> tuple[Tensor, Tensor]:
        """Last layer of every user, weight [U,width,2m] and bias [U,1,2m]: permuted and turned."""
        m = self.symbols
        weight = torch.view_as_complex(self.last.weight.t().reshape(-1, m, 2).contiguous())
        bias = torch.view_as_complex(self.last.bias.reshape(1, m, 2).contiguous())
        weights, biases = [weight], [bias]
        for user in range(1, self.users):
            mine = partial(philox_normal, (m,), seed=self.mask_seed, first_item=user * m)
            draw = mine(step=MASK_STEP, dtype=weight.dtype)
            order = mine(step=MASK_STEP + 1).argsort().to(weight.device)
            turn = (draw / draw.abs()).to(weight.device)
            weights.append(weight[:, order] * turn)
            biases.append(bias[:, order] * turn)
        real = [torch.view_as_real(torch.stack(part)).flatten(2) for part in (weights, biases)]
        return real[0], real[1]

    def _prepare(self) -> tuple[Tensor, ...]:
        """Transposed weights and biases of the three layers."""
        last = (self.last.weight.t(), self.last.bias) if self.users == 1 else self._distinct_last()
        return self.first.weight.t(), self.first.bias, self.second.weight.t(), self.second.bias, *last

    def forward(self, d: Tensor) -> Tensor:
        if d.ndim != 3 or d.shape[1] != self.users:
            raise ValueError(
                f"this encoder serves {self.users} user(s): need d [B,{self.users},n], got {tuple(d.shape)}"
            )
        w1, b1, w2, b2, w3, b3 = self._kept("layers", self.last.weight, self._prepare)
        h = functional.silu(torch.addmm(b1, d.reshape(-1, d.shape[-1]), w1))
        h = functional.silu(torch.addmm(b2, h, w2))
        if self.users == 1:
            z = torch.addmm(b3, h, w3)
        else:
            z = torch.baddbmm(b3, h.view(-1, self.users, h.shape[-1]).transpose(0, 1), w3).transpose(0, 1)
        z = torch.view_as_complex(z.to(d.dtype).reshape(-1, self.users, *self.shape, 2))  # autocast leaves bfloat16
        return power_normalise(z)[0]


class DigitDecoder(nn.Module):
    """Noisy codewords of one user [B,1,K,Nt,T] -> digits [B,1,64]; only training and its metrics use it."""

    def __init__(self, symbols: int = 64, dim: int = 64, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * symbols, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.view_as_real(x).flatten(2).flatten(-1))


class RandomLinearEncoder:
    """A random complex matrix per user, then the power normaliser: a semantic encoder without any training.

    z_u = A_u d_u with A_u [m,n] of i.i.d. CN(0,1) entries, drawn from `seed`; x_u = z_u sqrt(m)/|z_u|. Acting on raw
    pixels in [-1,1], whose mean is far from zero, it is not odd about the mean image.
    """

    def __init__(
        self, blocks: int, nt: int, slots: int, *, users: int = 1, dim: int = 64, seed: int = 0, dtype=torch.complex64
    ) -> None:
        self.shape = (blocks, nt, slots)
        matrix = philox_normal((users, dim, blocks * nt * slots), seed=seed, step=MASK_STEP, dtype=dtype)
        self.matrix = torch.view_as_real(matrix).flatten(2)  # [U,n,2m] real

    def __call__(self, d: Tensor) -> Tensor:
        z = torch.matmul(d.unsqueeze(-2), self.matrix).squeeze(-2).to(d.dtype)  # [B,U,2m]
        return power_normalise(torch.view_as_complex(z.unflatten(-1, (*self.shape, 2))))[0]
