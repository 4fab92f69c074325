"""Words and normals against the definition: known answers, every 24-bit uniform, a million draws."""

import functools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")
import triton.language as tl  # noqa: E402

from semcom_fast import reference  # noqa: E402
from semcom_fast.triton import philox, philox_normal  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
WITHIN = 2e-6  # the contract for float32 normals, docs/conventions.md
UNIT32, UNIT64 = 2.0**-24, 2.0**-53
LARGEST = math.sqrt(2 * 25 * math.log(2))  # |normal| at the smallest uniform 2^-25
# The float64 reference rounds 2 pi, its product with u and the cosine: 3 units of 2 pi; 8 more for logarithm, root,
# products and our polynomials.
WITHIN64 = LARGEST * UNIT64 * (2 * math.pi * 3 + 8)
DTYPES = [torch.float32, torch.float64]
# A program costs the interpreter the same whatever its size; a compiler takes hours over such a large one.
UNIFORMS, QUADS = {"cpu": 2**19, "cuda": 2**10}, {"cpu": 2**16, "cuda": 2**8}
COMPILE = """
import runpy, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
found = runpy.run_path(sys.argv[1])
for name, block in (("uniform_kernel", found["UNIFORMS"]["cuda"]), ("block_kernel", found["QUADS"]["cuda"])):
    for double in (False, True):
        given, real = {"DOUBLE": double, "BLOCK": block}, "*fp64" if double else "*fp32"
        kind = lambda n: "constexpr" if n in given else real if n in ("radius", "cos", "sin", "out") else "i32"
        source = ASTSource(found[name], {n: kind(n) for n in found[name].arg_names}, given)
        print(name, len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))
"""


@triton.jit
def words_kernel(counters, out):
    c0, c1, c2, c3 = tl.load(counters), tl.load(counters + 1), tl.load(counters + 2), tl.load(counters + 3)
    k0, k1 = tl.load(counters + 4), tl.load(counters + 5)
    w0, w1, w2, w3 = philox.words(
        c0.to(tl.uint32), c1.to(tl.uint32), c2.to(tl.uint32), c3.to(tl.uint32), k0.to(tl.uint32), k1.to(tl.uint32)
    )
    tl.store(out, w0.to(tl.int64))
    tl.store(out + 1, w1.to(tl.int64))
    tl.store(out + 2, w2.to(tl.int64))
    tl.store(out + 3, w3.to(tl.int64))


@triton.jit
def uniform_kernel(radius, cos, sin, DOUBLE: tl.constexpr, BLOCK: tl.constexpr):
    """Radius and angle of BLOCK consecutive 24-bit uniforms."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = index.to(tl.uint32) << 8
    if DOUBLE:
        r = philox.radius64(word)
        c, s = philox.angle64(word)
    else:
        r = philox.radius32(word)
        c, s = philox.angle32(word)
    tl.store(radius + index, r)
    tl.store(cos + index, c)
    tl.store(sin + index, s)


@triton.jit
def block_kernel(out, step, item, stream, k0, k1, DOUBLE: tl.constexpr, BLOCK: tl.constexpr):
    quad = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = philox.normals(
        quad.to(tl.uint32), step.to(tl.uint32), item.to(tl.uint32), stream.to(tl.uint32), k0.to(tl.uint32),
        k1.to(tl.uint32), DOUBLE,
    )  # fmt: skip
    tl.store(out + quad[:, None] * 4 + tl.arange(0, 4)[None, :], z)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_words(counter, key, words, device):
    out = torch.zeros(4, dtype=torch.int64, device=device)
    words_kernel[(1,)](torch.tensor([*counter, *key], device=device), out)
    assert [int(w) & 0xFFFFFFFF for w in out] == list(words)


def _all_uniforms(dtype, device):
    n, block = 2**24, UNIFORMS[device.type]
    radius, cos, sin = (torch.empty(n, dtype=dtype, device=device) for _ in range(3))
    uniform_kernel[(n // block,)](radius, cos, sin, DOUBLE=dtype == torch.float64, BLOCK=block)
    return radius, cos, sin


def test_a_gpu_gets_blocks_that_compile(tmp_path):
    """For sm_90, with the compiler alone: seconds, where a block for the interpreter would outlast every test."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")]), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE, __file__]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["uniform_kernel"] * 2 + ["block_kernel"] * 2


@functools.cache
def _exact():
    u = (np.arange(2**24, dtype=np.float64) + 0.5) * 2.0**-24
    return np.sqrt(-2 * np.log(u)), np.cos(2 * np.pi * u), np.sin(2 * np.pi * u)


def _worst_over_all_pairs(dtype, device):
    """Largest |computed - exact| over all 2^48 pairs of uniforms, bounded by the worst radius and the worst angle.

    |r'c' - rc| <= |r' - r| + r |c' - c| + one rounding of the product.
    """
    radius, cos, sin = (t.cpu().double().numpy() for t in _all_uniforms(dtype, device))
    exact, exact_cos, exact_sin = _exact()
    unit = UNIT64 if dtype == torch.float64 else UNIT32
    off_radius = np.abs(radius - exact)
    off_angle = max(np.abs(cos - exact_cos).max(), np.abs(sin - exact_sin).max())
    assert (cos**2 + sin**2 > 0.9).all() and np.isfinite(radius).all()
    return float((off_radius + exact * (off_angle + unit)).max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_uniform(dtype, device):
    bound = WITHIN if dtype == torch.float32 else WITHIN64
    worst = _worst_over_all_pairs(dtype, device)
    print(f"{dtype}: worst over all pairs {worst:.3e}, bound {bound:.3e}, ratio {worst / bound:.3f}")
    assert worst <= bound


def test_every_uniform_with_gpu_arithmetic(device, interpreter, monkeypatch):
    """The GPU fuses multiply-adds and its reciprocal root errs by up to 2^-22.9; the bound must hold there too."""
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle

    def fused(self, x, y, z):
        assert z.data.dtype == np.float32
        return handle((x.data.astype(np.float64) * y.data + z.data).astype(np.float32), z.dtype.scalar)

    def approximate(self, arg):
        root = 1 / np.sqrt(arg.data.astype(np.float64)) * (1 + 2.0**-22.9)
        return handle(root.astype(np.float32), arg.dtype.scalar)

    monkeypatch.setattr(builder, "create_fma", fused)
    monkeypatch.setattr(builder, "create_rsqrt", approximate)
    worst = _worst_over_all_pairs(torch.float32, device)
    print(f"fused, reciprocal root off by 2^-22.9: worst {worst:.3e}, bound {WITHIN:.3e}")
    assert worst <= WITHIN


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_million_draws(dtype, device):
    quads, block = 2**18, QUADS[device.type]
    out = torch.empty(4 * quads, dtype=dtype, device=device)
    block_kernel[(quads // block,)](out, 5, 11, 2, 77, 3, DOUBLE=dtype == torch.float64, BLOCK=block)
    seed = (3 << 32) + 77
    want = reference.philox_normal(
        (1, 4 * quads), seed=seed, step=5, stream=2, first_item=11, dtype=torch.float64
    ).flatten()
    bound = WITHIN if dtype == torch.float32 else WITHIN64
    worst = float((out.cpu().double() - want).abs().max())
    print(f"{out.numel()} draws {dtype}: worst {worst:.3e}, bound {bound:.3e}, ratio {worst / bound:.3f}")
    assert worst <= bound
    assert abs(float(want.std()) - 1) < 5 / math.sqrt(2 * want.numel())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("items", "reals"), [(5, 7), (3, 1030), (33, 12), (2, 2048), (1, 1), (2, 513), (4, 256)])
def test_layout_of_run(items, reals, dtype, device):
    seed, step, stream, first = 2**63 + 2**40 + 9, 2**32 - 2, 6, 2**32 - 1  # items wrap around 2^32
    got = philox_normal.run(items, reals, seed, step, stream, first, dtype, device)
    counter = {"seed": seed, "step": step, "stream": stream, "dtype": torch.float64}
    rows = [reference.philox_normal((1, reals), first_item=(first + i) % 2**32, **counter) for i in range(items)]
    want = torch.cat(rows)
    bound = WITHIN if dtype == torch.float32 else WITHIN64
    worst = float((got.cpu().double() - want).abs().max())
    print(f"{items}x{reals} {dtype}: worst {worst:.3e}, bound {bound:.3e}")
    assert got.shape == (items, reals) and got.dtype == dtype and worst <= bound


@pytest.mark.parametrize("reals", [6, 64, 1030])
def test_a_split_batch_draws_the_same_bits(reals, device):
    whole = philox_normal.run(5, reals, 3, 1, 2, 10, torch.float32, device)
    parts = [philox_normal.run(n, reals, 3, 1, 2, 10 + at, torch.float32, device) for at, n in ((0, 2), (2, 3))]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 123456789123])
def test_seed_and_step_cells(seed, device):
    plain = philox_normal.run(2, 9, seed, 2**31 + 5, 1, 0, torch.float32, device)
    cells = philox_normal.run(
        2, 9, torch.tensor(seed, device=device), torch.tensor([2**31 + 5], device=device), 1, 0, torch.float32, device
    )
    small = torch.tensor(7, dtype=torch.int32, device=device)
    assert torch.equal(plain, cells)
    assert torch.equal(
        philox_normal.run(2, 9, seed, small, device=device), philox_normal.run(2, 9, seed, 7, device=device)
    )


def test_scale_and_empty(device):
    half = math.sqrt(0.5)
    one = philox_normal.run(2, 9, 4, dtype=torch.float64, device=device)
    scaled = philox_normal.run(2, 9, 4, dtype=torch.float64, device=device, scale=half)
    assert torch.equal(scaled, one * half)
    assert philox_normal.run(0, 9, 4, device=device).shape == (0, 9)
    assert philox_normal.run(3, 0, 4, device=device).shape == (3, 0)


def test_wrong_arguments(device):
    with pytest.raises(TypeError, match="float32 or float64"):
        philox_normal.run(1, 1, 0, dtype=torch.complex64, device=device)
    with pytest.raises(TypeError, match="seed must be an int"):
        philox_normal.run(1, 1, torch.zeros(2, dtype=torch.int64, device=device), device=device)
    with pytest.raises(ValueError, match="index at most"):
        philox_normal.run(0, 2**31, 0, device=device)
