"""What the grid measures: shapes, competing formulations and cost of every small-matrix op, as functions of a point.

A point's matrices are Nr x Nt (K x M for the precoders, M x K for a product), T columns beside them, B of them. `.mH`
means that the channel (the first factor of a product) is the lazily conjugated adjoint of a contiguous tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

import semcom_fast as sf
from semcom_fast._native import kernel
from semcom_fast.ops import _matmul_rule

from . import peers

ALPHA = 1.0
NOISE = 0.1
DTYPES = {"complex64": torch.complex64, "complex128": torch.complex128}
BATCHES = (1, 16, 256, 4096, 65536)
SIDES = (1, 2, 3, 4, 5, 8, 16, 64)
SLOTS = (1, 8, 24)
OWN_PRODUCT = "mimo_matmul kernel"  # held to no rule: mimo_matmul is, and takes the better side
Operand = tuple[tuple[int, ...], bool]  # shape, and whether `.mH` applies to it


@dataclass(frozen=True)
class Point:
    """One row's coordinates."""

    op: str
    dtype: str
    layout: str  # contiguous | mH
    threads: int
    nr: int
    nt: int
    t: int
    batch: int

    @classmethod
    def of(cls, row: dict[str, str]) -> "Point":
        """The point of a CSV line."""
        return cls(**{f.name: row[f.name] if f.type is str else int(row[f.name]) for f in fields(cls)})


@dataclass(frozen=True)
class GridOp:
    """`operands(b, r, c, t)` are the inputs' shapes; `entries` counts what is read and written, `flops` real ones."""

    name: str
    operands: Callable[[int, int, int, int], list[Operand]]
    ours: Callable[..., object]
    peers: dict[str, Callable[..., object]]
    result: Callable[[int, int, int], int]  # entries of a result per matrix
    flops: Callable[[int, int, int], int]  # per matrix
    slots: tuple[int, ...] = SLOTS

    def bytes(self, p: Point) -> int:
        """Least traffic of a call: every operand read and every result written once."""
        read = sum(torch.Size(shape).numel() for shape, _ in self.operands(p.batch, p.nr, p.nt, p.t))
        return (read + p.batch * self.result(p.nr, p.nt, p.t)) * DTYPES[p.dtype].itemsize


def _h(b: int, r: int, c: int) -> Operand:
    return (b, 1, 1, r, c), True


def _gram(h: Tensor) -> Tensor:
    gram = h @ h.mH
    gram.diagonal(dim1=-2, dim2=-1).add_(ALPHA)
    return gram


_SOLVERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "solve": torch.linalg.solve,
    "cholesky": lambda a, b: torch.cholesky_solve(b, torch.linalg.cholesky_ex(a)[0]),
    "inv": lambda a, b: torch.linalg.inv_ex(a)[0] @ b,
}


def _precoder(solver: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def run(h: Tensor, s: Tensor) -> Tensor:
        if s.ndim == h.ndim:
            return h.mH @ solver(_gram(h), s)
        return (h.mH @ solver(_gram(h), s.unsqueeze(-1))).squeeze(-1)

    return run


def _matrix(solver: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def run(h: Tensor) -> Tensor:
        unit = torch.eye(h.shape[-2], dtype=h.dtype, device=h.device).expand(*h.shape[:-1], h.shape[-2])
        return h.mH @ solver(_gram(h), unit)

    return run


def _solve_flops(k: int, m: int, columns: int) -> int:
    """Gram, Cholesky, two triangular solves and the product, on the smaller side."""
    side, other = min(k, m), max(k, m)
    return 4 * side * side * other + 4 * side**3 // 3 + 8 * columns * (side * side + k * m)


_PRECODERS = {name: _precoder(solver) for name, solver in _SOLVERS.items()}

OPS = [
    GridOp(
        "blockdiag_apply",
        lambda b, r, c, t: [_h(b, r, c), ((b, 1, 1, c, t), False)],
        sf.blockdiag_apply,
        {"matmul": peers.apply_matmul, "einsum": peers.apply_einsum, "broadcast": peers.apply_broadcast},
        lambda r, c, t: r * t,
        lambda r, c, t: 8 * r * c * t,
    ),
    GridOp(
        "blockdiag_adjoint",
        lambda b, r, c, t: [_h(b, r, c), ((b, 1, r, t), False)],
        sf.blockdiag_adjoint,
        {"matmul": peers.adjoint_matmul, "einsum": peers.adjoint_einsum, "broadcast": peers.adjoint_broadcast},
        lambda r, c, t: c * t,
        lambda r, c, t: 8 * r * c * t,
    ),
    GridOp(
        "likelihood_score",
        lambda b, r, c, t: [((b, 1, r, t), False), _h(b, r, c), ((b, 1, 1, c, t), False)],
        sf.likelihood_score,
        {
            "baddbmm": peers.score_baddbmm,
            "matmul": peers.score_matmul,
            "einsum": peers.score_einsum,
            "broadcast": peers.score_broadcast,
        },
        lambda r, c, t: r * c + c * t,
        lambda r, c, t: 24 * r * c * t,
    ),
    GridOp(
        "rzf_precode",
        lambda b, r, c, t: [((b, r, c), True), ((b, r) if t == 1 else (b, r, t), False)],
        lambda h, s: sf.rzf_precode(h, s, ALPHA),
        _PRECODERS,
        lambda r, c, t: c * t,
        _solve_flops,
    ),
    GridOp(
        "rzf_matrix",
        lambda b, r, c, t: [((b, r, c), True)],
        lambda h: sf.rzf_matrix(h, ALPHA),
        {name: _matrix(solver) for name, solver in _SOLVERS.items()},
        lambda r, c, t: r * c,
        lambda r, c, t: _solve_flops(r, c, r),
        (1,),
    ),
    GridOp(
        "lmmse_equalise",
        lambda b, r, c, t: (
            [((b, r), False), ((b, r, c), True)] if t == 1 else [((b, t, r), False), ((b, 1, r, c), True)]
        ),
        lambda y, h: sf.lmmse_equalise(y, h, NOISE),
        {
            "cholesky": lambda y, h: peers.equalise_cholesky(y, h, NOISE),
            "solve": lambda y, h: peers.equalise_solve(y, h, NOISE),
        },
        lambda r, c, t: 2 * c * t,
        lambda r, c, t: _solve_flops(r, c, c) + 8 * r * c * (t - 1),
    ),
    GridOp(
        "lmmse_channel",
        lambda b, r, c, t: [((b, r, t), False), ((b, c, t), True)],
        lambda y, p: sf.lmmse_channel(y, p, NOISE),
        {"solve": lambda y, p: peers.channel_solve(y, p, NOISE)},
        lambda r, c, t: r * c,
        lambda r, c, t: _solve_flops(c, t, r),
    ),
]
_PRODUCTS: dict[str, Callable[..., object]] = {
    "matmul": torch.matmul,
    "einsum": lambda a, b: torch.einsum("bij,bjk->bik", a, b),
    "broadcast": lambda a, b: (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2),
}


def _own_product(a: Tensor, b: Tensor) -> Tensor:
    """The kernel behind mimo_matmul whatever its rule says: the other side of the crossover."""
    out = torch.empty((*a.shape[:-1], b.shape[-1]), dtype=a.dtype, device=a.device)  # new_empty carries out a conjugate
    left, right = ((t.data_ptr(), t.shape, t.stride(), t.is_conj(), False) for t in (a, b))
    where = (a.device.index, torch._C._cuda_getCurrentRawStream(a.device.index)) if a.is_cuda else ()
    own = kernel("cuda_mimo_matmul" if a.is_cuda else "cpu_mimo_matmul")
    own(a.dtype is torch.complex128, left, right, out.data_ptr(), out.shape, *where)
    return out


OPS += [
    GridOp(
        name,
        lambda b, r, c, t: [((b, r, c), True), ((b, c, t), False)],
        ours,
        _PRODUCTS,
        lambda r, c, t: r * t,
        lambda r, c, t: 8 * r * c * t,
    )
    for name, ours in (("mimo_matmul", sf.mimo_matmul), (OWN_PRODUCT, _own_product))
]
BY_NAME = {op.name: op for op in OPS}


def kernel_name(p: Point, level: str, cuda: bool = False) -> str:
    """What runs: this package's kernel, or torch's product where mimo_matmul's rule hands it over."""
    own = p.op != "mimo_matmul" or _matmul_rule.ours(p.nr, p.nt, p.t, p.batch, cuda, p.layout != "mH")
    return level if own else "torch"
