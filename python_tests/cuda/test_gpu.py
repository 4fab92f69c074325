"""The CUDA kernels on a device against the reference in double precision; skipped, with the reason, without one."""

import pytest
import torch
from sf_testing import DTYPES, block_bounds, dot_growth, draw, same_bits, unit, wide, within

import semcom_fast as sf
from semcom_fast import reference
from semcom_fast._native import cuda_built, cuda_usable

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.skipif(not cuda_built(), reason="the extension was built without CUDA kernels"),
    pytest.mark.skipif(cuda_built() and not cuda_usable(), reason="the extension's CUDA runtime sees no device"),
]
# B, U, K, Nr, Nt, T: every kernel of csrc/cuda/plan.hpp: one tile, many tiles, staged in one chunk and in several
SHAPES = [
    (3, 1, 4, 4, 4, 24), (3, 4, 5, 4, 1, 24), (2, 2, 3, 3, 2, 7), (2, 1, 2, 8, 8, 24), (2, 1, 3, 5, 3, 8),
    (1, 3, 2, 1, 1, 1), (2, 1, 2, 64, 8, 24), (1, 1, 1, 128, 16, 24), (1, 1, 1, 70, 40, 51), (1, 2, 1, 33, 50, 70),
    (2, 1, 1, 4, 4, 600), (1, 1, 300, 2, 2, 2), (70000, 1, 1, 1, 1, 2),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _cuda_backend():
    """Forced, so that no other backend can answer in its place."""
    with sf.use_backend("cuda"):
        yield


def _operands(shape, dtype, seed=0):
    b, u, k, nr, nt, t = shape
    y, h = draw(b, k, nr, t, seed=seed, dtype=dtype), draw(b, u, k, nr, nt, seed=seed + 1, dtype=dtype)
    x, dx = (draw(b, u, k, nt, t, seed=seed + s, dtype=dtype) for s in (2, 3))
    return y, h, x, dx


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference(shape, dtype):
    y, h, x, dx = _operands(shape, dtype)
    yd, hd, xd, dd = wide(y, h, x, dx)
    yg, hg, xg, dg = (v.cuda() for v in (y, h, x, dx))
    eps, twin = unit(y), 2.0 if dtype is torch.complex128 else 1.0  # in double the reference itself rounds
    size = torch.matmul(hd.abs(), xd.abs()).sum(-4)
    grow = eps * twin * dot_growth(shape[1] * shape[4])
    within(sf.blockdiag_apply(hg, xg).cpu(), reference.blockdiag_apply(hd, xd), grow * size, "cuda blockdiag_apply")
    size = torch.matmul(hd.abs().mT, yd.abs().unsqueeze(-4))
    grow = eps * twin * dot_growth(shape[3])
    want = reference.blockdiag_adjoint(hd, yd)
    within(sf.blockdiag_adjoint(hg, yg).cpu(), want, grow * size, "cuda blockdiag_adjoint")
    bounds = block_bounds(y, h, x, dx)
    got, want = sf.likelihood_score(yg, hg, xg, probe=dg), reference.likelihood_score(yd, hd, xd, probe=dd)
    for name in got._fields:
        within(getattr(got, name).cpu(), getattr(want, name), eps * twin * bounds[name], f"cuda {name}")


@pytest.mark.parametrize("shape", SHAPES[:8], ids=str)
def test_runs_and_batch_splits_give_the_same_bits(shape):
    y, h, x, dx = (v.cuda() for v in _operands(shape, torch.complex64))
    noise_var = torch.rand(shape[0], device="cuda") + 0.1
    whole, again = (sf.likelihood_score(y, h, x, noise_var, probe=dx) for _ in range(2))
    last = sf.likelihood_score(y[-1:], h[-1:], x[-1:], noise_var[-1:], probe=dx[-1:])
    for name in whole._fields:
        same_bits(getattr(whole, name), getattr(again, name), f"second run, {name}")
        same_bits(getattr(whole, name)[-1:], getattr(last, name), f"split batch, {name}")


def test_shared_operands_and_noise_var():
    """Batch stride 0 for one operand at a time; noise_var per item scales both scores."""
    y, h, x, _ = (v.cuda() for v in _operands((3, 2, 3, 4, 2, 24), torch.complex128))
    noise_var = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64, device="cuda")
    for operands in ((y[:1], h, x), (y, h[:1], x), (y, h, x[:1])):
        got = sf.likelihood_score(*operands, noise_var)
        full = [v.expand(3, *v.shape[1:]) for v in operands]
        want = reference.likelihood_score(*full, noise_var)
        for name in ("score_h", "score_x", "energy"):
            torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=1e-12, atol=1e-12)


def test_captured_in_a_graph():
    """No synchronisation and no allocation outside torch's allocator: the ops replay from a CUDA graph."""
    y, h, x, dx = (v.cuda() for v in _operands((4, 1, 6, 4, 4, 24), torch.complex64))
    want = sf.likelihood_score(y, h, x, probe=dx)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = sf.likelihood_score(y, h, x, probe=dx)
    for v in got:
        v.fill_(float("nan"))
    graph.replay()
    for name in want._fields:
        same_bits(getattr(got, name), getattr(want, name), name)
