"""Rows of mimo_matmul: products [B,M,K] @ [B,K,N], with the adjoints as the lazy views that a user passes."""

import torch
from torch import Tensor

import semcom_fast as sf
from semcom_fast import reference
from semcom_fast.ops._matmul_rule import ours

from . import timing
from .cases import Case, name_of, roundoff
from .likelihood_score import C64, C128, worst_error
from .rivals import rivals_for

SIZES = [
    (4096, 4, 4, 4, ""),
    (28672, 4, 4, 1, ""),
    (28672, 4, 4, 4, "a"),
    (4096, 2, 2, 2, ""),
    (4096, 8, 8, 8, ""),
    (4096, 8, 8, 8, "b"),
    (4096, 4, 4, 24, ""),
    (4096, 16, 16, 1, ""),
    (256, 64, 8, 24, ""),
    (256, 8, 64, 24, "a"),
    (256, 64, 64, 24, ""),
    (16, 64, 64, 64, "b"),
    (1, 4, 4, 4, ""),
]


def product_bmm(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b)


def product_baddbmm(a: Tensor, b: Tensor) -> Tensor:
    """The same GEMM by its other door: beta = 0 reads nothing of the addend."""
    return torch.baddbmm(a.new_empty(()).expand(a.shape[0], a.shape[1], b.shape[2]), a, b, beta=0)


def product_transposed(a: Tensor, b: Tensor) -> Tensor:
    """C^T = B^T A^T, views on both sides: another branch of torch's GEMM."""
    return (b.mT @ a.mT).mT


def product_einsum(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("bmk,bkn->bmn", a, b)


def product_broadcast(a: Tensor, b: Tensor) -> Tensor:
    """Broadcast and sum: no matrix product at all."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


PEERS = {
    "matmul": torch.matmul,
    "bmm": product_bmm,
    "baddbmm": product_baddbmm,
    "transposed": product_transposed,
    "einsum": product_einsum,
    "broadcast": product_broadcast,
}


def inputs(seed: int, b: int, m: int, k: int, n: int, adjoint: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """CN(0, 1) operands; the letters of `adjoint` name those that are stored as their adjoint."""
    g = torch.Generator().manual_seed(seed)
    left = torch.randn(b, *((k, m) if "a" in adjoint else (m, k)), dtype=dtype, generator=g)
    right = torch.randn(b, *((n, k) if "b" in adjoint else (k, n)), dtype=dtype, generator=g)
    return left.mH if "a" in adjoint else left, right.mH if "b" in adjoint else right


def cases(quick: bool) -> list[Case]:
    rows = [(s, C64) for s in (SIZES[:3] if quick else SIZES)] + ([] if quick else [(SIZES[0], C128), (SIZES[4], C128)])
    out = []
    for size, dtype in rows:
        b, m, k, n, adjoint = size
        make = lambda i, size=size, dtype=dtype: inputs(i, *size, dtype)  # noqa: E731
        out.append(
            Case(
                "mimo_matmul",
                f"B={b} M={m} K={k} N={n}" + (f" adjoint {adjoint}" if adjoint else ""),
                make,
                sf.mimo_matmul,
                PEERS,
                reference.mimo_matmul,
                lambda make=make: worst_error(sf.mimo_matmul, reference.mimo_matmul, make(0)),
                4 * (k + 2) * roundoff(dtype),
                dtype.itemsize * b * (m * k + k * n + m * n),
                flops=8 * b * m * k * n,
                target=">= 2x" if max(m, k, n) <= 8 and b >= 4096 else "",
                rivals=rivals_for("mimo_matmul", b=b, m=m, k=k, n=n, dtype=dtype),
                dtype=name_of(dtype),
                kernel="" if ours(m, k, n, b, timing.device != "cpu", adjoint == "") else "torch gemm",
            )
        )
    return out
