"""Threads, split batches and instruction-set levels: none of the first two may change a bit, the last only rounding."""

import glob
import os
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from isa_levels import BUILT, run_at, start_at
from sf_testing import block_bounds, draw, same_bits, unit, wide, within
from waterfill_calls import one_of_each, some_of_each

import semcom_fast as sf
from semcom_fast import reference

LEVELS = {"sigma": 0.5, "sigma_above": 0.7, "zeta": 0.1, "score_var": 0.9}
ROOT = Path(sf.__file__).parent.parent
BATCH = 4096  # enough blocks, at 20 us of work per thread, that two threads really share every case below


def _update(ops, first=0, **levels):
    return sf.pvd_update(*ops, **(LEVELS | levels), seed=7, step=2, stream=1, first_item=first)


def _per_item(t):
    return torch.linspace(0.3, 0.6, len(t), dtype=torch.float64)


def _vjp(z, g):
    leaf = z.clone().requires_grad_(True)
    return torch.autograd.grad(sf.power_normalise(leaf)[0], leaf, g)


def _score_vjp(y, h, x):
    leaves = [t.clone().requires_grad_(True) for t in (y, h, x)]
    out = sf.likelihood_score(*leaves)
    return torch.autograd.grad(out.score_h.abs().square().sum() + out.energy.sum(), leaves)


# name -> (function of (first_item, *operands), item shapes of the operands); results carry the batch on axis 0
CASES = {
    "blockdiag_apply": (lambda f, h, x: sf.blockdiag_apply(h, x), ((1, 2, 4, 2), (1, 2, 2, 8))),
    "blockdiag_apply users": (lambda f, h, x: sf.blockdiag_apply(h, x), ((3, 1, 5, 3), (3, 1, 3, 25))),
    "blockdiag_adjoint": (lambda f, h, y: sf.blockdiag_adjoint(h, y), ((2, 2, 3, 2), (2, 3, 7))),
    "likelihood_score": (
        lambda f, y, h, x: sf.likelihood_score(y, h, x, 0.5)[:3],
        ((1, 4, 24), (1, 1, 4, 4), (1, 1, 4, 24)),
    ),
    "likelihood_score probe": (
        lambda f, y, h, x, p: tuple(sf.likelihood_score(y, h, x, probe=p)),
        ((2, 3, 7), (2, 2, 3, 1), (2, 2, 1, 7), (2, 2, 1, 7)),
    ),
    "likelihood_score level": (
        lambda f, y, h, x: sf.likelihood_score(y, h, x, (y[:, 0, 0, 0].abs() + 1))[:3],
        ((1, 4, 8), (1, 1, 4, 2), (1, 1, 2, 8)),
    ),
    "power_normalise": (lambda f, z: sf.power_normalise(z), ((1, 2, 9),)),
    "power_normalise vjp": (lambda f, z, g: _vjp(z, g), ((1, 2, 9), (1, 2, 9))),
    "likelihood_score vjp": (lambda f, y, h, x: _score_vjp(y, h, x), ((1, 4, 8), (1, 1, 4, 2), (1, 1, 2, 8))),
    "pvd_update": (lambda f, *ops: _update(ops, f), ((2, 17),) * 5),
    "pvd_update long": (
        lambda f, *ops: _update([o[: max(len(o) // 512, 1)].expand(-1, 33, -1, -1).contiguous() for o in ops], f),
        ((1, 2, 19),) * 5,
    ),
    "pvd_calibrate": (
        lambda f, v: sf.pvd_calibrate(0.1, v.abs(), v.abs() + 1, v[:, 0].abs(), x_energy=3.0, nr=4, count=9),
        ((2,),),
    ),
    "philox_normal": (lambda f, v: sf.philox_normal((len(v), 21), seed=3, first_item=f, dtype=v.dtype), ((1,),)),
}


def _operands(name, dtype, batch=BATCH):
    kind = dtype.to_real() if name == "pvd_calibrate" else dtype
    return [draw(batch, *shape, seed=i, dtype=kind) for i, shape in enumerate(CASES[name][1])]


def _tuple(out):
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_one_and_two_threads(name, dtype):
    """The thread count changes no bit of any result."""
    fn, ops = CASES[name][0], _operands(name, dtype)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(_tuple(fn(0, *ops)))
    for a, b in zip(*results, strict=True):
        same_bits(a, b, name)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", [n for n in CASES if n not in ("pvd_update long", "likelihood_score vjp")])
def test_split_batch(name, dtype):
    """A batch cut anywhere gives the same bits, noise included: dispatch never looks at the batch."""
    fn, ops = CASES[name][0], _operands(name, dtype, 23)
    whole = _tuple(fn(0, *ops))
    for cuts in ((1, 23), (7, 8, 23), (16, 23), tuple(range(1, 24))):
        edges = (0, *cuts)
        parts = [_tuple(fn(a, *[o[a:b] for o in ops])) for a, b in pairwise(edges)]
        for k, want in enumerate(whole):
            same_bits(torch.cat([p[k] for p in parts]), want, f"{name} {cuts}")


def test_gradients_of_a_split_batch():
    """Backward passes hold products of torch, whose kernels depend on the batch: gradients agree to rounding."""
    fn, ops = CASES["likelihood_score vjp"][0], _operands("likelihood_score vjp", torch.complex64, 23)
    whole, parts = fn(0, *ops), [fn(0, *[o[a:b] for o in ops]) for a, b in ((0, 7), (7, 23))]
    for k, want in enumerate(whole):
        # two chained products of at most 8 terms: some ten roundings of the largest term
        within(torch.cat([p[k] for p in parts]), want, 10 * 2.0**-24 * want.abs().max(), "gradients of a split batch")


@pytest.mark.parametrize("samples", [1, 3])
def test_split_batch_of_samples_and_levels(samples):
    """pvd_update with a sample axis and per-item levels, split along the items."""
    mean, anchor = (draw(9, 2, 5, seed=i) for i in range(2))
    many = [draw(samples, 9, 2, 5, seed=i) for i in range(2, 5)]
    sigma, score_var = _per_item(mean), draw(samples, 9, dtype=torch.float64).abs() + 0.1

    def run(a, b):
        return _update(
            [mean[a:b], anchor[a:b], *(t[:, a:b] for t in many)], a, sigma=sigma[a:b], score_var=score_var[:, a:b]
        )

    whole, parts = run(0, 9), [run(0, 4), run(4, 9)]
    same_bits(torch.cat([p[0] for p in parts]), whole[0])
    same_bits(torch.cat([p[1] for p in parts], 1), whole[1])


def test_calls_repeat():
    """The same call twice gives the same bits, with threads."""
    torch.set_num_threads(2)
    fn, ops = CASES["likelihood_score probe"][0], _operands("likelihood_score probe", torch.complex64)
    first = fn(0, *ops)
    for _ in range(5):
        for a, b in zip(first, fn(0, *ops), strict=True):
            same_bits(a, b)


def test_inside_a_torch_parallel_region_or_thread():
    """Calls from several Python threads at once give the bits of a single call."""
    from concurrent.futures import ThreadPoolExecutor

    fn, ops = CASES["likelihood_score"][0], _operands("likelihood_score", torch.complex64, 512)
    want = fn(0, *ops)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: fn(0, *ops), range(8)):
            for a, b in zip(got, want, strict=True):
                same_bits(a, b)


ISA_CODE = """
import sys, torch, semcom_fast as sf
from waterfill_calls import one_of_each
data = torch.load(sys.argv[1])
out = {}
for dtype, d in data.items():
    out[dtype] = {
        "apply": sf.blockdiag_apply(d["h"], d["x"]), "adjoint": sf.blockdiag_adjoint(d["h"], d["y"]),
        "score": tuple(sf.likelihood_score(d["y"], d["h"], d["x"], probe=d["dx"])),
        "update": sf.pvd_update(*[d["mean"]] * 2, *d["h"], sigma=.5, sigma_above=.7, zeta=.1, seed=3),
        "normalise": sf.power_normalise(d["x"]), "normal": sf.philox_normal((3, 501), seed=9, dtype=d["x"].dtype),
        "calibrate": sf.pvd_calibrate(.1, d["v"], d["v"] + 1, d["v"][:, 0].contiguous(), x_energy=3., nr=4, count=9),
        "waterfill": one_of_each(sf, d["waterfill"]),
    }
torch.save(out, sys.argv[2])
"""


def _isa_data():
    data = {}
    for dtype in (torch.complex64, torch.complex128):
        h, x = draw(3, 2, 3, 5, 3, seed=1, dtype=dtype), draw(3, 2, 3, 3, 25, seed=2, dtype=dtype)
        data[dtype] = {
            "h": h,
            "x": x,
            "y": draw(3, 3, 5, 25, seed=3, dtype=dtype),
            "dx": draw(3, 2, 3, 3, 25, seed=4, dtype=dtype),
            "mean": draw(2, 3, 5, 3, seed=5, dtype=dtype),
            "v": draw(3, 2, seed=6, dtype=dtype.to_real()).abs(),
            "waterfill": some_of_each(dtype),
        }
    return data


def _check_isa(level, out, data):
    for dtype, d in data.items():
        eps, got = unit(dtype) * (2 if dtype is torch.complex128 else 1), out[dtype]
        label = f"ISA {level} {str(dtype)[6:]}"
        bounds = block_bounds(d["y"], d["h"], d["x"], d["dx"])
        y, h, x, dx = wide(d["y"], d["h"], d["x"], d["dx"])
        within(got["apply"], reference.blockdiag_apply(h, x), eps * bounds["residual"], f"{label} apply")
        want = reference.blockdiag_adjoint(h, y)
        within(got["adjoint"], want, eps * 20 * torch.matmul(h.abs().mT, y.abs().unsqueeze(1)), f"{label} adjoint")
        want = reference.likelihood_score(y, h, x, probe=dx)
        for name, a, b in zip(want._fields, got["score"], want, strict=True):
            within(a, b, eps * bounds[name], f"{label} {name}")
        (m,) = wide(d["mean"])
        want = reference.pvd_update(m, m, *h, sigma=0.5, sigma_above=0.7, zeta=0.1, seed=3)
        size = m.abs() + h.abs().sum(0)
        draws = 2e-6 if dtype is torch.complex64 else 1e-13
        within(got["update"][0], want[0], 10 * eps * size, f"{label} update")
        within(got["update"][1], want[1], 10 * eps * size + draws, f"{label} update")
        want = reference.power_normalise(x)
        within(got["normalise"][0], want[0], 8 * eps * want[0].abs(), f"{label} normalise")
        within(
            got["normal"], reference.philox_normal((3, 501), seed=9, dtype=torch.complex128), draws, f"{label} normal"
        )
        v = d["v"].double()
        want = reference.pvd_calibrate(0.1, v, v + 1, v[:, 0], x_energy=3.0, nr=4, count=9)
        within(got["calibrate"], want, 8 * eps * want, f"{label} calibrate")
        want = one_of_each(reference, {k: wide(t)[0] for k, t in d["waterfill"].items()}, dtype.to_real())
        for name, b in want.items():
            # rounding of terms that all lie below 16 (guidance 2.5 on normals), then the draws
            within(got["waterfill"][name], b, 16 * 16 * eps + draws, f"{label} {name}")


@pytest.mark.parametrize("level", BUILT)
def test_every_built_instruction_set(level, tmp_path):
    """Each level built for this machine, forced in a process of its own, agrees with the reference."""
    data = _isa_data()
    torch.save(data, tmp_path / "in.pt")
    run_at(level, ISA_CODE, tmp_path / "in.pt", tmp_path / "out.pt")
    _check_isa(level, torch.load(tmp_path / "out.pt"), data)


def test_unknown_instruction_set():
    """SEMCOM_FAST_ISA=v9 is refused with the list of what was built."""
    done = start_at("v9", "import semcom_fast")
    assert done.returncode != 0 and "SEMCOM_FAST_ISA=v9 is unknown" in done.stderr, done.stderr
    for level in BUILT:
        assert level in done.stderr.rsplit("built levels", 1)[-1]


def _objects():
    places = [ROOT / "build", ROOT.parent / "build"]
    if os.environ.get("SEMCOM_FAST_BUILD"):
        places.insert(0, Path(os.environ["SEMCOM_FAST_BUILD"]))
    found = [f for p in places for f in glob.glob(f"{p}/**/sf_cpu_*.dir/**/*.o", recursive=True)]
    return found


def test_instruction_set_objects_share_no_weak_symbol():
    """A weak symbol of an AVX-512 object could serve every level: all lie in their own level's namespace.

    SEMCOM_FAST_BUILD names the build folder; without it the usual places are searched.
    """
    objects = _objects()
    if not objects:
        pytest.skip("no object files found: set SEMCOM_FAST_BUILD to the build folder")
    seen = 0
    for path in objects:
        level = re.search(r"sf_cpu_(\w+)\.dir", path)[1]
        try:
            listing = subprocess.run(
                ["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True
            ).stdout
        except FileNotFoundError:
            pytest.skip("nm is not installed")
        weak = [m[1] for m in re.finditer(r"^[0-9a-f]+ [WVwvu] (.*)$", listing, re.M)]
        seen += len(weak)
        assert not (leaked := [w for w in weak if f"sf::isa_{level}::" not in w]), (path, leaked[:5])
    assert seen > 0  # templates of the kernels are weak, so an empty list would mean that nothing was read
