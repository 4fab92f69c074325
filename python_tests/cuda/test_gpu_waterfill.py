"""Water-filling on a device: the public ops on the Triton kernels against double precision; skipped without one."""

import pytest
import torch
import waterfill_bounds as wb

import semcom_fast as sf
from semcom_fast import reference
from semcom_fast._native import triton_version

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.skipif(triton_version() is None, reason="triton is not installed"),
]
DTYPES = [torch.float32, torch.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# short rows, broken quads, the authors' latent, more than one program per row, many items
SIZES = [(5, 64), (3, 10), (2, 4096), (3, 9000), (2, 1030), (70000, 8)]
DRAW = {"seed": -7, "step": 3, "first_item": 5}


@pytest.fixture(autouse=True)
def _triton_backend():
    """Forced, so that no other backend can answer in its place."""
    with sf.use_backend("triton"):
        yield


def _levels(c, dtype):
    return wb.as_state(c.high, dtype), wb.as_state(c.low, dtype)


def _guided(c):
    return {"x0_uncond": c.uncond, "guidance": c.w}


@dtypes
@pytest.mark.parametrize("per", ["symbol", "real"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_inject_and_step(size, per, dtype):
    c = wb.make(*size, dtype, per=per, device="cuda")
    n = size[1]
    high, low = _levels(c, dtype)
    own = wb.full(c.d, n)
    z, off = wb.normals(c, dtype, DRAW)
    drawn = wb.injection(c, own, low, z, off, dtype)
    want = reference.waterfill_inject(wb.wide(c.f), own, low[:, 0], noise=z)
    wb.within(sf.waterfill_inject(c.f, c.d, c.low, **DRAW), want, drawn, "gpu inject")
    got = sf.waterfill_step(c.g, c.x0, c.f, c.d, c.high, c.low, **_guided(c), **DRAW)
    wide = {k: wb.wide(v) for k, v in _guided(c).items()}
    state = (wb.wide(c.g), wb.wide(c.x0), wb.wide(c.f), own, high[:, 0], low[:, 0])
    moved = wb.movement(c.g, wb.prediction(c, True, False), high, low, dtype)
    bound = torch.where(own >= low, moved, drawn)
    wb.within(got, reference.waterfill_step(*state, **wide, noise=z), bound, "gpu step")


@dtypes
@pytest.mark.parametrize("size", SIZES[:4], ids=str)
@pytest.mark.parametrize("base", ["own", "common"])
def test_authors(size, base, dtype):
    c = wb.make(*size, dtype, device="cuda")
    state = (c.f, c.g, c.d, c.x0, c.high, c.low)
    f, g = sf.waterfill_step_authors(*state, base=base, noise=c.noise)
    high, low = _levels(c, dtype)
    wide = [wb.wide(t) for t in state[:4]]
    want = reference.waterfill_step_authors(*wide, high[:, 0], low[:, 0], base=base, noise=wb.wide(c.noise))
    own = torch.minimum(wb.full(c.d, size[1]), high)
    start, origin = (own, c.f) if base == "own" else (high.expand_as(own), c.g)
    moved = wb.movement(origin, wide[3].abs(), start, low, dtype)
    wb.within(f, want[0], torch.where(own >= low, moved, 0), f"gpu authors f, {base}")
    close = {"rtol": 64 * wb.UNIT[dtype], "atol": 256 * wb.UNIT[dtype]}
    torch.testing.assert_close(wb.wide(g), want[1], **close)


@dtypes
@pytest.mark.parametrize("channel", ["fast", "slow"])
@pytest.mark.parametrize("symbols", [1, 7, 64, 2048, 4100])
def test_equalise(symbols, channel, dtype):
    kind = dtype.to_complex()
    y, h = (torch.randn(5, symbols, dtype=kind, device="cuda") for _ in range(2))
    h = h if channel == "fast" else h[:, :1]
    h[0, 0] = 0
    noise_var = torch.tensor([0.5, 0.1, 1e-9, 0.0, 7.0], dtype=torch.float64, device="cuda")
    f, d = sf.waterfill_equalise(y, h, noise_var)
    wide = [t.cpu().to(torch.complex128) for t in (y, h)]
    want = reference.waterfill_equalise(*wide, noise_var.cpu())
    size = torch.complex(*want[0].chunk(2, -1)).abs().repeat(1, 2)
    growth = 2 if dtype == torch.float32 else 24
    wb.within(f, want[0], growth * wb.UNIT[dtype] * size, "gpu equalise f")
    wb.within(d, want[1], growth * wb.UNIT[dtype] * want[1], "gpu equalise d")


def test_strides_splits_and_empty_batches():
    c = wb.make(5, 24, device="cuda")
    want = sf.waterfill_step(c.g, c.x0, c.f, c.d, c.high, c.low, **_guided(c), **DRAW)
    again = sf.waterfill_step(c.g, c.x0, c.f, c.d, c.high, c.low, **_guided(c), **DRAW)
    strided = [t.T.contiguous().T for t in (c.g, c.x0, c.f, c.d)]
    assert torch.equal(want, again)
    assert torch.equal(want, sf.waterfill_step(*strided, c.high, c.low, **_guided(c), **DRAW))
    part = [t[2:] for t in (c.g, c.x0, c.f, c.d, c.high, c.low)]
    kept = {"x0_uncond": c.uncond[2:], "guidance": c.w[2:]}
    assert torch.equal(want[2:], sf.waterfill_step(*part, **kept, seed=-7, step=3, first_item=7))
    none = [t[:0] for t in (c.g, c.x0, c.f, c.d, c.high, c.low)]
    assert sf.waterfill_step(*none, seed=1).shape == (0, 24)
    assert sf.waterfill_inject(c.f[:0], c.d[:0], 0.5, seed=1).shape == (0, 24)


def test_captured_op_replays_with_other_levels():
    """Levels, seed and step live on the device: the public op in a graph follows them without a synchronisation."""
    c = wb.make(5, 4096, device="cuda")
    seed, step = (torch.tensor(v, device="cuda") for v in (4, 1))

    def call():
        return sf.waterfill_step(c.g, c.x0, c.f, c.d, c.high, c.low, **_guided(c), seed=seed, step=step)

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    for k in range(3):
        graph.replay()
        assert torch.equal(got, call())
        c.low.mul_(0.8)
        c.w.add_(0.1)
        seed.add_(1)
        step.fill_(k)


@pytest.mark.parametrize("authors", [False, True])
@pytest.mark.parametrize("size", [(3, 64), (4, 4096), (2, 9000), (512, 1024)], ids=str)
def test_captured_table_step(size, authors):
    """One captured update walks down the tables as plain steps do; the counter survives every launch shape."""
    from semcom_fast.triton import waterfill_step, waterfill_step_authors

    c, steps, batch = wb.make(*size, device="cuda"), 5, size[0]
    start = torch.linspace(0.95, 0.5, batch, dtype=torch.float64, device="cuda")
    levels = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cuda")[:, None] * start
    w = torch.linspace(1, 2, steps, dtype=torch.float64, device="cuda")[:, None].expand(steps, batch)
    counter, told = torch.zeros(2, dtype=torch.int64, device="cuda"), torch.zeros(batch, device="cuda")
    f, g = c.f.clone(), c.g.clone()

    def update():
        if authors:
            waterfill_step_authors.run_table(f, g, c.d, c.x0, levels, counter, seed=5, level_out=told)
        else:
            waterfill_step.run_table(g, c.x0, c.f, c.d, levels, counter, c.uncond, w, seed=5, level_out=told)

    def restart():
        f.copy_(c.f), g.copy_(c.g), counter.zero_()

    update()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    for scale in (1.0, 0.7):  # the second run replays with other levels
        levels.mul_(scale)
        restart()
        want = (c.f, c.g)
        for k in range(steps):
            graph.replay()
            plain = (levels[k].clone(), levels[k + 1].clone())
            if authors:
                want = sf.waterfill_step_authors(*want, c.d, c.x0, *plain, seed=5, step=k + 1)
            else:
                moved = sf.waterfill_step(
                    want[1], c.x0, c.f, c.d, *plain, x0_uncond=c.uncond, guidance=w[k].clone(), seed=5, step=k + 1
                )
                want = (c.f, moved)
            assert torch.equal(g, want[1]) and torch.equal(f, want[0])
            assert counter.tolist() == [k + 1, 0] and torch.equal(told, plain[1].float())
