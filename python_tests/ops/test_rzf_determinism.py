"""rzf_precode: split batches, thread counts and instruction sets, forward and backward; neighbours of mixed arithmetic."""

from itertools import pairwise

import pytest
import torch
from isa_levels import BUILT, run_at
from rzf_cases import precode_bound, smaller_form, textbook, vjp_bounds
from sf_testing import DTYPES, draw, same_bits, wide, within

import semcom_fast as sf

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)

CASES = {
    "vector": ((4, 4), (4,), {}),
    "wide": ((3, 7), (3, 5), {}),
    "tall": ((7, 3), (7,), {}),
    "generic": ((5, 6), (5, 3), {}),
    "16x16": ((16, 16), (16,), {}),
    "power": ((6, 4, 4), (6, 4), {"power": 1.0}),
    "power static": ((6, 1, 4, 4), (6, 14, 4), {"power": 1.0}),
    "static": ((1, 4, 4), (14, 4), {}),
    "zero forcing": ((4, 4), (4,), {"alpha": 0.0}),
}


def _case(name, dtype, batch):
    h, s, kwargs = CASES[name]
    h, s = draw(batch, *h, seed=1, dtype=dtype), draw(batch, *s, seed=2, dtype=dtype)
    # neighbours in one pack of lanes ask for single, double and pivoted arithmetic
    alpha = torch.logspace(-5, 0, 7).repeat(batch // 7 + 1)[:batch].to(dtype.to_real())
    if "alpha" in kwargs:
        alpha = torch.zeros(batch, dtype=dtype.to_real())
    g = draw(*sf.rzf_precode(h, s, alpha).shape, seed=3, dtype=dtype)
    return (h, s, alpha, g), {k: v for k, v in kwargs.items() if k != "alpha"}


def _all(operands, kwargs):
    *leaves, g = operands
    leaves = [t.detach().clone().requires_grad_(True) for t in leaves]
    x, info = sf.rzf_precode(*leaves, **kwargs, return_info=True)
    return x.detach(), info.contiguous(), *torch.autograd.grad(x, leaves, g)


@dtypes
@pytest.mark.parametrize("name", CASES)
def test_split_batch(name, dtype):
    """A batch cut anywhere gives the same bits, forward and backward, whatever the neighbours' arithmetic."""
    operands, kwargs = _case(name, dtype, 37)
    whole = _all(operands, kwargs)
    for cuts in ((1, 37), (7, 8, 37), (16, 37), tuple(range(1, 38))):
        parts = [_all([t[a:b] for t in operands], kwargs) for a, b in pairwise((0, *cuts))]
        for k, want in enumerate(whole):
            got = torch.cat([p[k] for p in parts])
            if got.dtype is torch.int32:
                assert torch.equal(got, want)
            else:
                same_bits(got, want, f"{name} {cuts} output {k}")


@dtypes
@pytest.mark.parametrize("name", CASES)
def test_threads(name, dtype):
    """One, two and three threads give the same bits, forward and backward."""
    operands, kwargs = _case(name, dtype, 700 if name in ("16x16", "power static") else 3000)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(_all(operands, kwargs))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b), name


def test_few_large_groups_over_threads():
    """Fewer power groups than threads: the energies of one group come from several threads, in one fixed order."""
    h, s, results = draw(1, 20_000, 4, 4, seed=1), draw(1, 20_000, 4, seed=2), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(sf.rzf_precode(h, s, 0.3, power=1.0))
    same_bits(results[0], results[1])
    same_bits(results[0], results[2])


def test_python_threads_inference_and_autocast():
    """Calls from several Python threads at once, in inference mode and under autocast, give the bits of a single call."""
    from concurrent.futures import ThreadPoolExecutor

    operands, kwargs = _case("power", torch.complex64, 200)
    want = _all(operands, kwargs)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: _all(operands, kwargs), range(8)):
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    with torch.inference_mode():
        same_bits(sf.rzf_precode(*operands[:3], **kwargs), want[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same_bits(sf.rzf_precode(*operands[:3], **kwargs), want[0])


ISA = """
import sys, torch, semcom_fast as sf
out = {}
for key, (h, s, alpha, g) in torch.load(sys.argv[1]).items():
    leaves = [t.requires_grad_(True) for t in (h, s, alpha)]
    x = sf.rzf_precode(*leaves)
    out[key] = (x.detach(), torch.autograd.grad(x, leaves, g), sf.rzf_precode(h, s, alpha, power=1., power_dims=0).detach())
torch.save(out, sys.argv[2])
"""


@pytest.mark.parametrize("level", BUILT)
def test_every_instruction_set(level, tmp_path):
    """Each built level, in a process of its own, within the bounds of the forward and of the running level's gradients."""
    data = {}
    for dtype in DTYPES:
        for k, m in ((1, 3), (2, 2), (4, 4), (4, 6), (5, 7), (6, 3), (8, 8), (16, 16), (5, 40)):
            # single symbol vectors of 4x4 channels and many of wide ones have kernels of their own
            t = 1 if k == m == 4 else 24 if m == 40 else 3
            h, s, g = (draw(19, *shape, seed=m, dtype=dtype) for shape in ((k, m), (k, t), (m, t)))
            data[(dtype, k, m)] = (h, s, torch.logspace(-5, 1, 19).to(dtype.to_real()), g)
    torch.save(data, tmp_path / "in.pt")
    run_at(level, ISA, tmp_path / "in.pt", tmp_path / "out.pt")
    for (dtype, k, m), (x, grads, scaled) in torch.load(tmp_path / "out.pt").items():
        h, s, alpha, g = data[(dtype, k, m)]
        form, label = smaller_form(k, m), f"rzf ISA {level} {str(dtype)[6:]}"
        within(x, textbook(h, s, alpha), precode_bound(h, s, alpha, dtype, form), label)
        bounds = vjp_bounds(h, s, g, alpha, dtype, form)
        leaves = [t.clone().requires_grad_(True) for t in wide(h, s, alpha)]
        want = torch.autograd.grad(sf.rzf_precode(*leaves), leaves, wide(g)[0])
        for name, a, b in zip(("dh", "ds", "da"), grads, want, strict=True):
            within(a, b, bounds[name], f"{label} {name}")
        mean = wide(scaled)[0].abs().square().mean((-2, -1))
        within(mean, torch.ones_like(mean), 3e-7 if dtype is torch.complex64 else 1e-14, f"{label} power")
