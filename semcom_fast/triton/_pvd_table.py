"""What the captured steps of parallel variational diffusion share: the table of levels and its row at the counter.

The table is [N+1, 7, S] float64: row n holds sigma, sigma_above, the variance of the next draw, and whether iteration n is
the last of its level, of S = 1 or one level per user; then what an update makes of them (`with_coefficients`), which
spares the kernels their divisions. Row N says what sigma is after the last iteration.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Cell
from ._waterfill import place
from ._waterfill_args import check_counter

LEVELS, COLUMNS = 4, 7


@triton.jit
def row_of(table, counter, last, levels):
    """(k, row k, the row after it): k = counter[0]."""
    k, following = place(counter, last)
    return k, table + k * (7 * levels), table + following * (7 * levels)


@triton.jit
def clamped(variance, sigma):
    """A denoiser's variance in [0, sigma^2]; NaN stays."""
    low = tl.maximum(variance, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(low, sigma * sigma, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def tell_level(level_out, row, levels, LEVELS: tl.constexpr):
    """The row's sigma, rounded once, for the networks of the next iteration; written by the first program."""
    u = tl.arange(0, LEVELS)
    value = tl.load(row + u, mask=u < levels, other=1.0)
    tl.store(level_out + u, value.to(level_out.dtype.element_ty), mask=(u < levels) & (tl.program_id(0) == 0))


def with_coefficients(table: Tensor) -> Tensor:
    """[N+1,4,S] levels -> [N+1,7,S]: D = sigma_above^2 - sigma^2, D/sigma^2 and the next draw's standard deviation."""
    sigma, above, following = table[:, 0], table[:, 1], table[:, 2]
    delta = above * above - sigma * sigma
    return torch.cat((table, torch.stack((delta, delta / (sigma * sigma), following.sqrt()), 1)), 1)


class PvdTable(NamedTuple):
    """The levels of all iterations on the device, and where the next one is read.

    table [N+1,7,S] contiguous float64; counter int64 [2]: the iteration k, and a ticket that is 0 between launches.
    """

    table: Tensor
    counter: Tensor

    @property
    def last(self) -> int:
        return self.table.shape[0] - 1

    @property
    def levels(self) -> int:
        return self.table.shape[2]

    @property
    def stride(self) -> int:
        """Over users, within a column."""
        return int(self.levels > 1)

    def check(self, op: str, like: Tensor, users: int) -> None:
        """On the state's device, with one level or as many as users."""
        check_counter(op, self.counter, like)
        t = self.table
        wrong = t.dtype != torch.float64 or t.device != like.device or not t.is_contiguous()
        if wrong or t.ndim != 3 or t.shape[0] < 2 or t.shape[1] != COLUMNS or t.shape[2] not in (1, users):
            raise ValueError(
                f"{op}: the table must be contiguous float64 [N+1,{COLUMNS},S] on {like.device}, S = 1 or {users}; "
                f"got {t.dtype} {tuple(t.shape)} on {t.device}"
            )


class Prior(NamedTuple):
    """An i.i.d. Gaussian channel prior: the variance per entry, float64 [1] or [U], and the denoiser's weights
    var/(var + sigma^2) of every row of the table, float64 [N+1,1] or [N+1,U]."""

    var: Tensor
    weights: Tensor

    @property
    def stride(self) -> int:
        """Over users."""
        return int(self.weights.shape[1] > 1)

    @property
    def cell(self) -> Cell:
        return self.var, 0, 0, int(self.var.numel() > 1)

    @staticmethod
    def of(var: Tensor, table: Tensor) -> "Prior":
        """From variances [1] or [U] and the table of levels."""
        return Prior(var, (var / (var + table[:, 0].square())).contiguous())
