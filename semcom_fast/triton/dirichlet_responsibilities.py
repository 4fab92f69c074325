"""Responsibilities of the experts and their Dirichlet law: the kernel of :func:`semcom_fast.dirichlet_responsibilities`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import check_flag, on, real_dtype

_NAME = "dirichlet_responsibilities"
_ENTRIES = 256  # of one program: several rows where there are few experts


@triton.jit
def digamma(x):
    """psi of positive float64 numbers: the recurrence up to x >= 8, then the asymptotic series (error below 2e-15)."""
    below = tl.zeros_like(x)
    for _ in tl.static_range(8):
        low = x < 8.0
        below -= tl.where(low, 1.0 / x, 0.0)
        x = tl.where(low, x + 1.0, x)
    inverse = 1.0 / x
    square = inverse * inverse
    series = 691.0 / 32760.0 - square * (1.0 / 12.0)
    series = 1.0 / 132.0 - square * series
    series = 1.0 / 240.0 - square * series
    series = 1.0 / 252.0 - square * series
    series = 1.0 / 120.0 - square * series
    series = 1.0 / 12.0 - square * series
    return below + tl.log(x) - 0.5 * inverse - square * series


@triton.jit(do_not_specialize=["experts", "batch"])
def kernel(
    rho, gamma, bound, fit, prior, current, flag, eta: tl.float64, experts, batch, FLAG: tl.constexpr,
    ROWS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, EXPERTS)[None, :]
    mask = (b < batch)[:, None] & (k < experts)
    offset = b.to(tl.int64)[:, None] * experts + k
    evidence = tl.load(bound + offset, mask=mask, other=0.0).to(tl.float64)
    data = tl.load(fit + offset, mask=mask, other=0.0).to(tl.float64)
    counts = tl.load(current + offset, mask=mask, other=1.0).to(tl.float64)
    first = tl.load(prior + offset, mask=mask, other=1.0).to(tl.float64)
    total = tl.sum(tl.where(mask, counts, 0.0), axis=1)
    total = tl.where(b < batch, total, 1.0)
    value = evidence + digamma(counts) - digamma(total)[:, None] + eta * data
    value = tl.where(mask, value, float("-inf"))
    top = tl.max(value, axis=1)
    top = tl.where(b < batch, top, 0.0)[:, None]
    share = tl.where(mask, tl.exp(value - top), 0.0)
    norm = tl.where(b < batch, tl.sum(share, axis=1), 1.0)
    share = share / norm[:, None]
    tl.store(rho + offset, share.to(rho.dtype.element_ty), mask=mask)
    tl.store(gamma + offset, (first + share).to(gamma.dtype.element_ty), mask=mask)
    if FLAG:
        wrong = (((tl.abs(share) < float("inf")) & (counts > 0.0)) == 0) & mask
        bad = tl.max(wrong.to(tl.int32), axis=1)
        tl.atomic_min(flag + tl.zeros((ROWS,), tl.int32), b.to(flag.dtype.element_ty), mask=bad != 0, sem="relaxed")


def run(
    bound: Tensor,
    fit: Tensor,
    gamma0: Tensor,
    gamma: Tensor,
    eta: float = 1.0,
    *,
    flag: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """rho = softmax(L + psi(gamma) - psi(sum gamma) + eta D) over the experts, and gamma0 + rho; all [B,E], real.

    `bound` is L, `fit` is D, `gamma` the current Dirichlet parameters; everything inside is float64, rounded once.
    `out` receives (rho, gamma) and may be (any tensor, gamma). `flag` as in `power_normalise.run`: a row with a NaN,
    with no finite entry, or with a parameter that is not positive. Raises ValueError for shapes that do not agree.
    """
    if bound.ndim != 2:
        raise ValueError(f"{_NAME}: L must be [B,E], got {tuple(bound.shape)}")
    dtype = real_dtype(f"{_NAME}: L", bound)
    check_flag(flag)
    batch, experts = bound.shape
    results = (torch.empty_like(bound, memory_format=torch.contiguous_format) for _ in range(2)) if out is None else out
    rho, following = results
    for name, t in (("D", fit), ("gamma0", gamma0), ("gamma", gamma), ("out[0]", rho), ("out[1]", following)):
        if t.shape != bound.shape or t.dtype != dtype or t.device != bound.device:
            raise ValueError(f"{_NAME}: {name} must be {dtype} {tuple(bound.shape)}, got {t.dtype} {tuple(t.shape)}")
    if not rho.is_contiguous() or not following.is_contiguous():
        raise ValueError(f"{_NAME}: out must be contiguous")
    if bound.numel() == 0:
        return rho, following
    width = triton.next_power_of_2(experts)
    rows = max(1, _ENTRIES // width)
    with on(bound.device):
        kernel[(-(-batch // rows),)](
            rho, following, *(t.resolve_neg().contiguous() for t in (bound, fit, gamma0, gamma)),
            rho if flag is None else flag, float(eta), experts, batch, FLAG=flag is not None, ROWS=rows, EXPERTS=width,
            num_warps=max(1, min(8, rows * width // 128)),
        )  # fmt: skip
    return rho, following
