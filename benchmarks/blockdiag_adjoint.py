"""Rows of blockdiag_adjoint."""

from . import peers
from .blockdiag_apply import block_cases
from .cases import Case


def cases(quick: bool) -> list[Case]:
    group = {"matmul": peers.adjoint_matmul, "einsum": peers.adjoint_einsum, "broadcast": peers.adjoint_broadcast}
    return block_cases("blockdiag_adjoint", group, slice(1, None, -1), quick)
