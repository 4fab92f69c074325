"""Rows of the benchmark suite whose kernel is torch.neg, and runs over them that measure nothing worth quoting."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import cases, rows, runner

LIMITS = SimpleNamespace(cgemm_flops_per_s=1e11, zgemm_flops_per_s=5e10, copy_bytes_per_s=1e10, ns_per_normal=1.0)
BRIEF = rows.QUICK._replace(visits=2, rounds=2, target=1e-5, patience=1.0)


def made_up(size="8 entries", op="likelihood_score", wrong=False, ours=torch.neg, dtype="complex64", **more):
    """A row whose kernel is torch.neg; its peer multiplies by -1."""

    def check():
        x = torch.randn(8, dtype=torch.float64)
        return float((ours(x) + x).abs().max()) + wrong

    make = lambda i: (torch.full((8,), float(i), dtype=getattr(torch, dtype)),)  # noqa: E731
    peers = {"product": lambda x: x * -1, "difference": lambda x: 0 - x}
    return cases.Case(
        op, size, make, ours, peers, torch.negative, check, 1e-12, 64, flops=8, dtype=dtype, stem=op, **more
    )


def run(given, csv_path=None, json_path=None, caches=("hot", "rotated"), append=False, **more):
    shown = []
    files = runner.Files(csv_path, json_path, append)
    found = runner.Runner(BRIEF._replace(**more), LIMITS, files, shown.append, lambda case, cache: f"again {case.size}")
    return found.run(given, list(caches)), shown
