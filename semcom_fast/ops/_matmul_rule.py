"""Whose product :func:`semcom_fast.mimo_matmul` takes: the package's kernel, or torch's own GEMM (`torch.matmul`).

The one op whose choice may depend on the batch. `semcom-fast bench grid` measures both sides of every line below.
"""

CPU_SHORT = 16384  # multiply-adds times matrices up to which the call costs more than the product: torch.bmm's is short
CPU_SINGLE = 2048, 65536  # those of one product where torch's call is no shorter any more, and not yet on all threads
CPU_LONGEST = 128  # terms of a sum: beyond, a row of A and its columns of B no longer share the first-level cache
CPU_LANES = 16  # matrices that a pack of complex64 takes at once; fewer leave lanes empty
CPU_TALL = 256  # entries of A from which empty lanes cost more than torch's call
GPU_LARGEST = 16  # side of a matrix up to which one thread a tile beats the tiles of cuBLAS


def ours(m: int, k: int, n: int, batch: int, cuda: bool, plain: bool = True) -> bool:
    """True where the product [batch, m, k] @ [batch, k, n] goes through the package's own kernel.

    plain: neither operand is conjugated, so that torch need not copy it first.
    """
    if cuda:
        return max(m, k, n) <= GPU_LARGEST
    work, (short, long) = m * k * n, CPU_SINGLE
    if k > CPU_LONGEST or (plain and (not short < work <= long if batch == 1 else batch * batch * work <= CPU_SHORT)):
        return False
    return n > 4 or m * k < CPU_TALL or batch >= CPU_LANES
