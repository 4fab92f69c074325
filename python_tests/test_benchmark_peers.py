"""What the benchmarks compare with computes the same quantities, and the limits they divide by are sane."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import peers, peers_compiled, peers_cupy, peers_mkl, peers_sionna, rivals, roofline, timing
from benchmarks.cases import STEMS, collect
from semcom_fast import reference

ALPHA, NOISE = 0.7, 0.3
LEVELS = {"sigma": 0.5, "sigma_above": 0.7, "zeta": 0.1, "score_var": 0.8}
BETAS = (0.3, 0.25)
BLOCKS = [(2, 1, 3, 4, 1, 5), (2, 1, 3, 5, 2, 4), (2, 2, 3, 4, 3, 5)]  # B, U, K, Nr, Nt, T
needs_mkl = pytest.mark.skipif(not peers_mkl.available(), reason=peers_mkl.MISSING)
needs_sionna = pytest.mark.skipif(not peers_sionna.installed(), reason=peers_sionna.MISSING)


def draw(*shapes, seed=0, dtype=torch.complex64):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(s, dtype=dtype, generator=g) for s in shapes)


def wide(values):
    return [v.to(torch.complex128 if v.is_complex() else torch.float64) if torch.is_tensor(v) else v for v in values]


def close(got, want, bound=2e-4):
    """Largest error of every output relative to its largest entry; float32 solves of condition about 100."""
    got, want = ((v,) if torch.is_tensor(v) else tuple(v) for v in (got, want))
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        assert float((g - w).abs().max() / w.abs().max()) < bound


def blocks(size, dtype=torch.complex64):
    b, u, k, nr, nt, t = size
    return draw((b, k, nr, t), (b, u, k, nr, nt), (b, u, k, nt, t), dtype=dtype)


def score(y, h, x):
    return reference.likelihood_score(y, h, x)[:3]


def precode(h, s):
    return reference.rzf_precode(h if s.ndim == 2 else h.unsqueeze(1), s, ALPHA)[0]


def matrix(h):
    return reference.rzf_matrix(h, ALPHA)[0]


def equalise(y, h):
    return reference.lmmse_equalise(y, h, NOISE)[:2]


@pytest.mark.parametrize("size", BLOCKS)
def test_block_peers(size):
    y, h, x = blocks(size)
    one_user = size[1] == 1
    for name in ("matmul", "einsum", "broadcast", *(["baddbmm"] if one_user else [])):
        close(getattr(peers, f"score_{name}")(y, h, x), score(*wide((y, h, x))))
    for name in ("matmul", "einsum", "broadcast"):
        close(getattr(peers, f"apply_{name}")(h, x), reference.blockdiag_apply(*wide((h, x))))
        close(getattr(peers, f"adjoint_{name}")(h, y), reference.blockdiag_adjoint(*wide((h, y))))


@pytest.mark.parametrize("shape", [(7, 2, 2), (7, 4, 4), (7, 3, 5)])
def test_solver_peers(shape):
    n, k, m = shape
    h, s, several, y = draw((n, k, m), (n, k), (n, 6, k), (n, k))
    for name in ("solve", "cholesky", "inverse", "eliminate"):
        fn = getattr(peers, f"rzf_{name}")
        close(fn(h, s, ALPHA), precode(*wide((h, s))))
        close(fn(h, several, ALPHA), precode(*wide((h, several))))
    tall = h.mT.contiguous() if m > k else h
    y = draw((n, tall.shape[1]), seed=1)[0]
    for name in ("solve", "cholesky", "inverse"):
        close(getattr(peers, f"equalise_{name}")(y, tall, NOISE), equalise(*wide((y, tall))))
    pilots, received = draw((n, 4, 6), (n, 3, 6), seed=2)
    close(peers.channel_solve(received, pilots, NOISE), reference.lmmse_channel(*wide((received, pilots)), NOISE))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float32])
def test_update_peers(dtype):
    """The new mean exactly; the new sample differs from it by noise of the reference's variance."""
    torch.manual_seed(0)
    state = draw(*[(4, 1, 3000)] * 5, dtype=dtype)
    mean, sample = reference.pvd_update(*wide(state), **LEVELS, seed=1)
    spread = float((sample - mean).abs().square().mean())
    for name in ("eager", "addcmul", "normal"):
        got, drawn = getattr(peers, f"update_{name}")(*state, *LEVELS.values())
        close(got, mean, 1e-5)
        assert float((drawn - got).abs().square().mean()) == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("beta", [0.9, 0.25, 0.02])
def test_waterfill_peers(beta):
    """Moving elements exactly; waiting ones have the reference's mean and variance."""
    torch.manual_seed(0)
    g, x0, f = draw(*[(8, 2000)] * 3, dtype=torch.float32)
    d = torch.rand(8, 1000, generator=torch.Generator().manual_seed(3)) * 0.98
    moving = torch.cat([d, d], -1) >= beta
    above = beta + 0.05
    step = reference.waterfill_step(*wide((g, x0, f, d)), above, beta, seed=1)
    inject = reference.waterfill_inject(*wide((f, d)), beta, seed=1)
    groups = [(step, lambda name: getattr(peers, f"waterfill_{name}")(g, x0, f, d, above, beta))]
    groups.append((inject, lambda name: getattr(peers, f"inject_{name}")(f, d, beta)))
    for want, peer in groups:
        for name in ("where", "masked"):
            got = peer(name)
            if moving.any():
                close(got[moving], want[moving], 1e-5)
            waiting = got[~moving]
            assert float(waiting.std()) == pytest.approx(float(want[~moving].std()), rel=0.2)
            assert float((waiting * f[~moving]).mean()) == pytest.approx(float((want * f)[~moving].mean()), abs=0.15)
    one = torch.ones(8, 1).expand(8, 1000)
    close(
        peers.waterfill_slow(g, x0, f, one, above, beta),
        reference.waterfill_step(*wide((g, x0, f, one)), above, beta, seed=1),
    )


RANDOM = {  # outputs that the peers draw with torch's generator
    "philox_normal": {0},
    "pvd_update": {1},
    "waterfill_inject": {0},
    "waterfill_step": {0},
    "waterfill_step_authors": {1},
    "renoise": {0},
    "elbo_reduce": {0, 1},
}


def flat(value):
    if torch.is_tensor(value):
        return [value]
    return [] if value is None else [t for v in value for t in flat(v)]


def test_every_row_has_right_peers(monkeypatch):
    """The groups of the benchmark files on their own inputs; a peer may leave off a last output or a dimension of one."""
    monkeypatch.setattr(peers_sionna, "installed", lambda: False)  # importing it takes four seconds
    checked = 0
    for case in collect(STEMS, quick=True):
        if case.min_bytes > 2e6:
            continue
        inputs = case.make(0)
        want = flat(case.reference(*inputs))
        for name, peer in case.peers.items():
            got = flat(peer(*inputs))
            random = RANDOM.get(case.op, {1} if (case.op, name) == ("pvd_channel_step", "eager") else set())
            for i, (g, w) in enumerate(zip(got, want, strict=False)):
                assert g.numel() == w.numel(), (case.op, name, i)
                if i not in random:
                    error = float((g.reshape(w.shape) - w).abs().max() / w.abs().max())
                    assert error < 2e-4, (case.op, case.size, name, i, error)
                    checked += 1
    assert checked > 40


MKL_ROWS = {  # formulation, shapes of its inputs, its twin; 37 matrices are no whole number of registers
    "mimo_matmul": (peers_mkl.mimo_matmul, [(37, 4, 3), (37, 3, 5)], lambda a, b: a @ b),
    "blockdiag_apply": (peers_mkl.blockdiag_apply, [(4, 1, 9, 4, 2), (4, 1, 9, 2, 5)], reference.blockdiag_apply),
    "rzf_precode": (lambda: peers_mkl.rzf_precode(ALPHA), [(37, 3, 5), (37, 3)], precode),
    "rzf_precode, samples": (lambda: peers_mkl.rzf_precode(ALPHA), [(37, 4, 4), (37, 6, 4)], precode),
    "rzf_matrix": (lambda: peers_mkl.rzf_matrix(ALPHA), [(37, 3, 5)], matrix),
    "lmmse_equalise": (lambda: peers_mkl.lmmse_equalise(NOISE), [(37, 5), (37, 5, 3)], equalise),
}


@needs_mkl
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("name", MKL_ROWS)
def test_mkl_compact(name, dtype, monkeypatch):
    """On torch tensors, in one piece and in several, and on operands packed before."""
    build, shapes, twin = MKL_ROWS[name]
    inputs = draw(*shapes, dtype=dtype)
    bound = 2e-4 if dtype is torch.complex64 else 1e-12
    want = twin(*wide(inputs))
    for piece in (peers_mkl.PIECE_BYTES, 1):
        monkeypatch.setattr(peers_mkl, "PIECE_BYTES", piece)
        run = peers_mkl.compact(build())
        for _ in range(2):  # kept workspaces
            close(run(*inputs), want, bound)
    formulation = build()
    packed = peers_mkl.Packed(formulation)
    given = packed.prepare(*inputs)
    for _ in range(2):
        results = []
        for result in packed(*given).values():
            results.append(torch.empty(result.number, result.rows, result.columns, dtype=dtype))
            peers_mkl.unpack(result, results[-1])
        close(formulation.finish(*inputs, *results), want, bound)


@needs_mkl
@pytest.mark.parametrize("adjoint", ["", "a", "b", "ab"])
def test_mkl_products(adjoint):
    """Operands that are lazy adjoints, square and not; a plain transpose and a conjugate are copied."""
    for m, k, n in ((4, 2, 5), (3, 3, 3)):
        a, b = draw((3, 7, k, m) if "a" in adjoint else (3, 7, m, k), (3, 7, n, k) if "b" in adjoint else (3, 7, k, n))
        a, b = a.mH if "a" in adjoint else a, b.mH if "b" in adjoint else b
        packed = peers_mkl.Packed(peers_mkl.mimo_matmul())
        (result,) = packed(*packed.prepare(a, b)).values()
        unpacked = torch.empty(21, m, n, dtype=a.dtype)
        peers_mkl.unpack(result, unpacked)
        for got in (peers_mkl.batch(a, b), peers_mkl.compact(peers_mkl.mimo_matmul())(a, b), unpacked.view(3, 7, m, n)):
            close(got, a @ b, 1e-5)
        close(peers_mkl.batch(a.mT, a.conj()), a.mT @ a.conj(), 1e-5)


def joined(value, last):
    """Planes back to complex tensors with the batch first."""
    if isinstance(value, tuple) and len(value) == 2 and torch.is_tensor(value[1]) and torch.is_tensor(value[0]):
        value = torch.complex(*value)
    return value.movedim(-1, 0) if last else value


def test_planes():
    """The formulations that torch.compile gets, uncompiled."""
    for inner in ((4, 3, 5), (4, 12, 5), (9, 12, 5)):
        m, k, n = inner
        left, right = draw((7, m, k), (7, k, n))
        planes = peers_compiled.Planes(peers_compiled.mimo_matmul)
        close(joined(planes.plain(*planes.prepare(left, right)), False), left @ right, 1e-5)
    close(joined(planes.plain(*planes.prepare(right.mH, left.mH)), False), (left @ right).mH, 1e-5)
    y, h, x = blocks(BLOCKS[2])
    ops = {"blockdiag_apply": (h, x), "blockdiag_adjoint": (h, y)}
    for name, inputs in ops.items():
        planes = peers_compiled.Planes(getattr(peers_compiled, name))
        close(joined(planes.plain(*planes.prepare(*inputs)), False), getattr(reference, name)(*wide(inputs)))
    planes = peers_compiled.Planes(peers_compiled.likelihood_score)
    gh, gx, energy = planes.plain(*planes.prepare(y, h, x))
    close((joined(gh, False), joined(gx, False), energy), score(*wide((y, h, x))))
    h, s, y = draw((7, 3, 5), (7, 3), (7, 5))
    planes = peers_compiled.Planes(peers_compiled.rzf_precode(ALPHA), last=True)
    close(joined(planes.plain(*planes.prepare(h, s)), True), precode(*wide((h, s))))
    tall = h.mT.contiguous()
    planes = peers_compiled.Planes(peers_compiled.lmmse_equalise(NOISE), last=True)
    symbols, noise = planes.plain(*planes.prepare(y, tall))
    close((joined(symbols, True), noise.mT), equalise(*wide((y, tall))))
    state = draw(*[(2, 50)] * 5)
    planes = peers_compiled.Planes(peers_compiled.pvd_update(LEVELS))
    mean, _ = planes.plain(*planes.prepare(*state))
    close(joined(mean, False), reference.pvd_update(*wide(state), **LEVELS, seed=1)[0], 1e-5)


def test_cupy_formulations():
    """NumPy stands in for CuPy: the same calls."""
    y, h, x = blocks(BLOCKS[1])
    channel, s, several = draw((7, 3, 5), (7, 3), (7, 6, 3))
    received, tall = draw((7, 5), (7, 5, 3), seed=1)
    rows = [
        (peers_cupy.mimo_matmul, (h, x), lambda a, b: a @ b),
        (peers_cupy.mimo_matmul, (h.mH, y.unsqueeze(1)), lambda a, b: a @ b),
        (peers_cupy.blockdiag_apply, (h, x), reference.blockdiag_apply),
        (peers_cupy.blockdiag_apply, blocks(BLOCKS[2])[1:], reference.blockdiag_apply),
        (peers_cupy.blockdiag_adjoint, (h, y), reference.blockdiag_adjoint),
        (peers_cupy.likelihood_score, (y, h, x), score),
        (peers_cupy.rzf_precode(ALPHA), (channel, s), precode),
        (peers_cupy.rzf_precode(ALPHA), (channel, several), precode),
        (peers_cupy.rzf_matrix(ALPHA), (channel,), matrix),
        (peers_cupy.lmmse_equalise(NOISE), (received, tall), equalise),
    ]
    for formulation, inputs, twin in rows:
        out = formulation(np, np.linalg.solve, *(peers_cupy.handed_over(np, v) for v in inputs))
        out = tuple(map(torch.from_numpy, out)) if isinstance(out, tuple) else torch.from_numpy(out)
        close(out, twin(*wide(inputs)))


@pytest.mark.slow  # importing Sionna takes four seconds
@needs_sionna
def test_sionna():
    """Its precoder has columns of unit norm; the rest is the same quantity."""
    for dtype, bound in ((torch.complex64, 2e-4), (torch.complex128, 1e-12)):
        h, s, y, tall = draw((7, 3, 5), (7, 3), (7, 5), (7, 5, 3), dtype=dtype)
        v = matrix(h.to(torch.complex128))
        v = v / v.norm(dim=-2, keepdim=True)
        close(peers_sionna.rzf_matrix(ALPHA)(h), v, bound)
        close(peers_sionna.rzf_precode(ALPHA)(h, s), (v @ s.to(v.dtype).unsqueeze(-1)).squeeze(-1), bound)
        close(peers_sionna.lmmse_equalise(5, NOISE, dtype)(y, tall), equalise(*wide((y, tall))), bound)
    gains, delays = draw((2, 3, 4, 6))[0], torch.rand(2, 3, 1, 6, generator=torch.Generator().manual_seed(1)) * 2e-6
    frequencies = (torch.arange(8) - 4) * 15e3
    want = reference.cir_to_ofdm(*wide((gains, delays, frequencies)), frequency_dim=1)  # [B,F,K,M]
    close(peers_sionna.cir_to_ofdm()(gains, delays, frequencies).reshape(2, 3, 4, 8).permute(0, 3, 1, 2), want)
    for name in ("einsum", "matmul"):
        close(getattr(peers, f"ofdm_{name}")(gains, delays, frequencies), want)


def test_missing_rivals_are_named(monkeypatch):
    monkeypatch.setattr(peers_mkl, "library", lambda: None)
    monkeypatch.setattr(peers_sionna, "installed", lambda: False)
    found = rivals.rivals_for("rzf_precode", n=7, k=4, m=4, t=0, alpha=ALPHA, dtype=torch.complex64)
    assert "pip install" in found["mkl compact"] and "pip install" in found["sionna"]
    assert "cupy" not in found and found["compiled planes"].slow_start
    with pytest.raises(ImportError, match="pip install"):
        peers_mkl.batch(*draw((2, 2, 2), (2, 2, 2)))
    monkeypatch.setattr(timing, "device", "cuda")
    monkeypatch.setattr(peers_cupy, "installed", lambda: False)
    found = rivals.rivals_for("mimo_matmul", batch=7, m=4, k=4, n=4)
    assert "mkl compact" not in found and "pip install" in found["cupy"]
    assert rivals.rivals_for("renoise", batch=1) == {}


def test_limits(monkeypatch):
    monkeypatch.setattr(timing, "last_cache_bytes", lambda: 1 << 20)
    found = roofline.limits(quick=True)
    assert 1e8 < found.copy_bytes_per_s < 1e13
    assert 1e8 < found.zgemm_flops_per_s < 1.5 * found.cgemm_flops_per_s < 1e15
    assert 0.01 < found.ns_per_normal < 1000 and found.staircase == ()


def row(op, flops, us, torch_us, nbytes, dtype="complex64", cache="rotated"):
    rate = flops / us * 1e-3
    return {
        "op": op, "size": "some size", "cache": cache, "dtype": dtype, "ours_us": str(us), "best_torch_us": str(torch_us),
        "min_bytes": str(nbytes), "gflop_per_s": str(rate), "cgemm_share": str(rate / 50), "copy_us": str(nbytes / 1e4),
        "device": "a processor", "threads": "2", "ratio": str(torch_us / us),
    }  # fmt: skip


def test_plot(tmp_path):
    """A PNG with every rotated row, numbers that do not cover each other, and the limits the rows were measured beside."""
    pytest.importorskip("matplotlib", reason="the plot needs the extra 'demo'")
    rows = [row(f"op{i}", 1e8 * (1 + i % 3), 1000 + 20 * i, 5000 + 100 * i, 2e7) for i in range(12)]
    rows += [row("double", 1e8, 900, 4000, 4e7, "complex128"), row("moves", 0, 1000, 3000, 2e7)]
    rows += [row("hot", 1e8, 10, 20, 2e7, cache="hot")]
    found = roofline.recorded(rows)
    assert found.copy_bytes_per_s == pytest.approx(1e10) and found.cgemm_flops_per_s == pytest.approx(5e10)
    assert list(roofline.by_device(rows)) == [("a processor", "2")]
    figure = roofline.plot(rows, found, tmp_path / "new" / "roofline.png")
    assert (tmp_path / "new" / "roofline.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    top, key, below = figure.axes[1], figure.axes[0], figure.axes[-1]
    texts = [t for axes in figure.axes for t in axes.texts]
    numbers = [t for t in texts if t.get_text().isdigit()]
    assert len(numbers) == 13
    assert "2 threads of a processor" in figure.get_suptitle()
    boxes = [t.get_window_extent().shrunk(0.8, 0.6) for t in numbers]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert any("double" in t.get_text() and "hot" not in t.get_text() for t in texts)
    assert {top, key, below} <= set(figure.axes)


def test_rows_from_files(tmp_path, monkeypatch, capsys):
    """A JSON file brings the limits of its run; a CSV file of another device implies them."""
    drawn = []
    monkeypatch.setattr(roofline, "plot", lambda rows, limits, path: drawn.append((len(rows), limits, path.name)))
    monkeypatch.setattr(roofline, "limits", lambda: pytest.fail("measured, though the file holds the limits"))
    machine = {"device": "a processor", "threads": "2"}
    own = {"copy_bytes_per_s": 1e10, "cgemm_flops_per_s": 5e10, "zgemm_flops_per_s": 2e10, "ns_per_normal": 1.0}
    text = {"machine": machine, "limits": own, "rows": [row("op", 1e8, 1000, 5000, 2e7)]}
    (tmp_path / "rows.json").write_text(json.dumps(text))
    rows, found = roofline.read(tmp_path / "rows.json")
    assert found == roofline.Limits(**own) and rows[0]["device"] == "a processor"
    assert roofline.main(["--rows", str(tmp_path / "rows.json"), "--png", str(tmp_path / "a.png")]) == 0
    assert "limits of their run" in capsys.readouterr().out
    monkeypatch.setattr(roofline, "limits", lambda: roofline.Limits(1.0, 1.0, 1.0, 1.0))
    with (tmp_path / "rows.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert roofline.main(["--rows", str(tmp_path / "rows.csv"), "--png", str(tmp_path / "b.png")]) == 0
    assert "limits implied by the rows" in capsys.readouterr().out
    both = [str(tmp_path / name) for name in ("rows.json", "rows.csv")]
    assert roofline.main(["--rows", *both, "--png", "c.png"]) == 0
    assert [d[::2] for d in drawn] == [(1, "a.png"), (1, "b.png"), (2, "c.png")]
    assert drawn[0][1] == drawn[2][1] == found and drawn[1][1].cgemm_flops_per_s == pytest.approx(5e10)
