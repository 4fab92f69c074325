"""The grid's tables: their rules on made-up rows, and the committed crossover against the dispatch rules in the code."""

import csv
import dataclasses
import itertools
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import crossover, grid, grid_bench, timing  # noqa: E402
from benchmarks.grid_ops import BATCHES, BY_NAME, OPS, OWN_PRODUCT, Point  # noqa: E402
from semcom_fast.ops import _matmul_rule  # noqa: E402
from semcom_fast.ops._register import OPS as REGISTERED  # noqa: E402

TABLE = timing.RESULTS / "cpu_crossover.csv"


def row(batch, ratio, op="rzf_matrix", torch_us=100.0, kernel="cpu v4", threads=1):
    p = Point(op, "complex64", "contiguous", threads, 4, 4, 1, batch)
    return p, {
        k: str(v)
        for k, v in grid_bench.GridRow(p, kernel, torch_us / ratio, "solve", torch_us, ratio, 5).line().items()
    }


def test_rule():
    """0.95x where torch takes 20 us, four microseconds below; the bare kernel of mimo_matmul is held to nothing."""
    assert crossover.obeys(105, 100, 0.952) and not crossover.obeys(106, 100, 0.943)
    assert crossover.obeys(13.9, 10, 0.72) and not crossover.obeys(14.1, 10, 0.71)
    assert not crossover.passes(row(1, 0.5)[1])
    assert crossover.passes(row(1, 0.5, op=OWN_PRODUCT)[1])


@pytest.mark.parametrize(
    ("ratios", "first"),
    [([2, 2, 2], 1), ([0.5, 2, 2], 16), ([2, 0.5, 2], 256), ([2, 2, 0.5], None)],
)
def test_first_batch_that_wins(ratios, first):
    """From there on every measured batch wins."""
    assert crossover.wins_from(zip(BATCHES, ratios, strict=False)) == first


def test_tables(tmp_path):
    """One line a size, the backend by batch, the count below the rule; rows survive the file."""
    rows = dict([row(1, 0.5, "mimo_matmul", kernel="torch"), row(256, 3.0, "mimo_matmul"), row(1, 2.0, threads=2)])
    path = tmp_path / "cpu_grid.csv"
    grid.write(path, rows)
    with path.open("a") as f:
        f.write("rzf_matrix,complex64,contig")  # cut short
    assert grid.read(path) == rows
    crossover.summarise(rows, path)
    lines = list(csv.DictReader((tmp_path / "cpu_crossover.csv").open()))
    assert [(x["op"], x["backend"], x["wins_from"], x["wins_from_2_threads"]) for x in lines] == [
        ("mimo_matmul", "torch from 1, cpu v4 from 256", "256", ""),
        ("rzf_matrix", "cpu v4", "", "1"),
    ]
    summary = list(csv.DictReader((tmp_path / "cpu_grid_summary.csv").open()))
    assert [(x["op"], x["below_rule"]) for x in summary] == [("mimo_matmul", "1"), ("rzf_matrix", "0")]


def test_points_are_the_grid():
    """Every op, size, dtype, layout and thread count appears, nothing above the byte limit, nothing twice."""
    todo = list(grid.points(OPS, [1, 2], False, False))
    assert len(todo) == len(set(todo)) > 15000
    assert max(BY_NAME[p.op].bytes(p) for p in todo) <= 16 << 20
    for field in ("op", "dtype", "layout", "threads", "nr", "nt", "t", "batch"):
        whole = {getattr(p, field) for p in grid.points(OPS, [1, 2], False, True)}
        assert {getattr(p, field) for p in todo} == whole
    assert len(list(grid.points(OPS, [1], True, False))) < 2500


@pytest.fixture
def measured(monkeypatch):
    """The points that were measured, in order; their rows are made up."""
    points = []
    monkeypatch.setattr(
        grid.Bench, "row", lambda self, p: points.append(p) or grid_bench.GridRow(p, "cpu v4", 1, "a", 9, 9, 3)
    )
    return points


QUICK = ["--quick", "--ops", "rzf_matrix", "--threads", "1", "--csv"]


def test_resumes(tmp_path, measured):
    """A second run measures nothing that is in the file; --fresh does."""
    argv = [*QUICK, str(tmp_path / "cpu_grid.csv")]
    assert grid.main(argv) == 0
    first = len(measured)
    assert grid.main(argv) == 0 and len(measured) == first > 0
    assert grid.main([*argv, "--fresh"]) == 0 and len(measured) == 2 * first


def test_rows_say_where_they_come_from(tmp_path, measured, monkeypatch, capsys):
    """Device, driver, torch, commit and date; a file that has none of them goes on, keeps its rows and any other column."""
    path = tmp_path / "cpu_grid.csv"
    point, line = row(1, 0.2)
    assert grid.write(path, {point: line | {"note": "kept"}}) == [*grid.FIELDS, "note"]
    host = {"device": "a GPU", "driver": "580", "torch": "2.11", "commit": "abc", "date": "2026-01-01", "flags": "avx"}
    monkeypatch.setattr(timing, "machine", lambda: host)
    assert grid.main([*QUICK, str(path)]) == 0
    with path.open(newline="") as f:
        lines = list(csv.DictReader(f))
    assert len(lines) == 1 + len(measured) and len(lines[0]) == len(grid.FIELDS) + 6
    assert lines[0]["note"] == "kept" and lines[0]["device"] == lines[0]["commit"] == ""
    assert all(x["note"] == "" and [x[k] for k in grid.HOST] == [host[k] for k in grid.HOST] for x in lines[1:])
    assert "below: op=rzf_matrix" in capsys.readouterr().out
    measured.clear()
    assert grid.main(["--failures", str(path), "--threads", "1"]) == 0 and measured == [point]
    assert grid.read(path)[point]["commit"] == "abc"


def test_a_limit_and_a_broken_row(tmp_path, monkeypatch, capsys):
    """No row begins after the limit, and the same command goes on; a row that cannot be measured is named and left out."""
    seen = []

    def measure(self, p):
        seen.append(p)
        if len(seen) == 2:
            raise RuntimeError("no kernel for this size")
        return grid_bench.GridRow(p, "cpu v4", 1, "a", 9, 9, 3)

    monkeypatch.setattr(grid.Bench, "row", measure)
    monkeypatch.setattr(grid.time, "monotonic", lambda: 10.0 * len(seen))
    path = tmp_path / "cpu_grid.csv"
    assert grid.main([*QUICK, str(path), "--limit", "45"]) == 1
    out = capsys.readouterr().out
    assert len(seen) == 5 and len(grid.read(path)) == 4 and "rows left out after 45 s; the same command goes on" in out
    assert "not measured: Point(op='rzf_matrix'" in out and "RuntimeError: no kernel for this size" in out
    assert grid.main([*QUICK, str(path)]) == 0 and len(set(seen)) == len(seen) - 1 == len(grid.read(path))


def test_a_gpu_run_cut_short_has_seen_everything():
    """Its first tenth holds every op, dtype, layout and size, near their shares; batches ascend together."""
    todo = list(grid.points(OPS, [1], True, False, "cuda"))
    drawn = grid.spread(todo)
    assert sorted(drawn, key=str) == sorted(todo, key=str) and drawn == grid.spread(todo)
    for a, b in itertools.pairwise(drawn):
        assert a.batch < b.batch or dataclasses.replace(a, batch=0) != dataclasses.replace(b, batch=0)
    head = drawn[: len(drawn) // 10]
    for field in ("op", "dtype", "layout", "nr", "nt", "t"):
        assert {getattr(p, field) for p in head} == {getattr(p, field) for p in todo}
    assert 0.35 < sum(p.dtype == "complex64" for p in head) / len(head) < 0.65


class Machine:
    """A stand-in for a machine: sides take the seconds they are given; `queued` ones only once somebody waits."""

    def __init__(self, monkeypatch, us, queued=False):
        self.now, self.pending, self.calls, self.waits = 0.0, 0.0, [], 0
        self.us, self.queued = us, queued
        sides = {name: lambda *_, name=name: self.spend(name) for name in us}
        op = dataclasses.replace(BY_NAME["rzf_matrix"], ours=sides.pop("ours"), peers=sides)
        monkeypatch.setitem(BY_NAME, op.name, op)
        monkeypatch.setattr(timing, "last_cache_bytes", lambda: 1)
        monkeypatch.setattr(timing, "synchronise", self.wait)
        monkeypatch.setattr(grid_bench, "keep_freed_memory", lambda: None)
        arena = grid_bench.Arena(torch.complex64, 8 << 20, "cpu")
        monkeypatch.setattr(grid_bench, "Arena", lambda *_: arena)
        self.batch = 1

    def spend(self, name):
        self.calls.append(name)
        seconds = self.us[name](self.batch) * 1e-6
        if self.queued:
            self.now, self.pending = self.now + 5e-6, self.pending + seconds
        else:
            self.now += seconds

    def wait(self):
        self.waits += 1
        self.now, self.pending = self.now + self.pending, 0.0

    def row(self, bench, batch, **more):
        self.batch, self.calls, self.waits = batch, [], 0
        bench.clock = lambda: self.now
        return bench.row(Point("rzf_matrix", "complex64", "contiguous", 1, 4, 4, 1, batch, **more))


def test_work_goes_where_it_decides(monkeypatch):
    """Slow formulations are dropped from the next batch on; long clear calls run once; a failing row is repeated."""
    us = {
        "ours": lambda b: 2.0 + b,
        "solve": lambda b: 3.0 + 5 * b,
        "inv": lambda b: 30.0 + 9 * b,
        "slow": lambda b: 90 * b,
    }
    machine, bench = Machine(monkeypatch, us), grid_bench.Bench("wall")
    row = machine.row(bench, 1)
    assert (row.best_torch, row.ratio, row.rounds) == ("solve", pytest.approx(8 / 3), 5)
    assert machine.calls.count("slow") == machine.calls.count("inv") == 2 < machine.calls.count("ours")
    row = machine.row(bench, 16)
    assert (row.ratio, row.rounds) == (pytest.approx(83 / 18), 2) and "slow" not in machine.calls
    assert machine.row(bench, 256).rounds == 2 and sorted(set(machine.calls)) == ["inv", "ours", "solve"]
    row = machine.row(bench, 65536)
    assert (row.ours_us, row.rounds, machine.calls[0]) == (pytest.approx(65538), 1, "ours")
    assert sorted(machine.calls[1:]) == ["inv", "solve"]
    us["ours"] = lambda b: 6.0 * b
    row = machine.row(bench, 4096)
    assert not row.passes and row.rounds > 3 and machine.calls.count("ours") > 10
    assert grid_bench.GridRow(row.point, "cpu", 100, "solve", 100, 1.0, 5).passes and not row.clear


def test_a_gpu_is_waited_for(monkeypatch):
    """Calls that only queue work are timed with the work; the rows name the rule that chose their kernel."""
    monkeypatch.setattr(timing, "device", "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    us = {"ours": lambda b: 7.0, "solve": lambda b: 70.0}
    machine, bench = Machine(monkeypatch, us, queued=True), grid_bench.Bench("wall")
    row = machine.row(bench, 1)
    assert (row.kernel, row.ours_us, row.torch_us) == ("cuda sm_90", pytest.approx(12), pytest.approx(75))
    assert machine.waits >= 2 and machine.pending == 0
    for sides, kernel in (((16, 16, 8), "cuda sm_90"), ((16, 64, 8), "torch")):
        p = Point("mimo_matmul", "complex64", "contiguous", 1, *sides, 1)
        assert grid_bench.kernel_name(p, bench.level, True) == kernel


def test_arena_hands_out_fresh_strided_sets():
    """Each set has memory of its own; `.mH` marks the channel alone; a lap later the first comes round again."""
    arena = grid_bench.Arena(torch.complex64, 8 << 20, "cpu")
    operands = BY_NAME["rzf_precode"].operands(2, 3, 5, 8)
    sets = arena.take(operands, True, 7)
    assert len({t.data_ptr() for s in sets for t in s}) == 14
    for h, s in sets:
        assert h.shape == (2, 3, 5) and h.is_conj() and h.mH.is_contiguous() and s.shape == (2, 3, 8)
        assert not s.is_conj() and s.is_contiguous() and h.data_ptr() % 128 == arena.values.data_ptr() % 128
    arena.at = arena.values.numel() - 16
    assert arena.take(operands, False)[0][0].data_ptr() == arena.values.data_ptr()


def test_an_arena_too_small_for_so_many_sets():
    """Those that fit come round again; every entry lies inside, and operands that are shorter have sets of their own."""
    arena = grid_bench.Arena(torch.complex64, 8 << 20, "cpu")
    operands = [((5, 256, 256), True), ((5, 256, 3), False)]  # three large ones fit
    for adjoint in (False, True):
        sets = arena.take(operands, adjoint, 10)
        assert [len({t.data_ptr() for t in column}) for column in zip(*sets, strict=True)] == [3, 10]
        assert len(sets) == 10
        assert [h.data_ptr() for h, _ in sets[:3]] == [h.data_ptr() for h, _ in sets[3:6]]
        first, last = arena.values.data_ptr(), arena.values.data_ptr() + arena.values.nbytes
        assert all(first <= t.data_ptr() and t.data_ptr() + t.nbytes <= last for pair in sets for t in pair)
        assert float((sets[9][0] @ sets[9][1]).abs().sum()) > 0
    one = arena.take([((16, 256, 256), False)], False, 4)  # as large as the arena
    assert len({x.data_ptr() for (x,) in one}) == 1


def test_arenas_of_a_gpu_stay(monkeypatch):
    """Its rows change their dtype all the time; a CPU holds one arena."""
    monkeypatch.setattr(grid_bench, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(grid_bench, "Arena", lambda dtype, size, device: [dtype])
    bench = grid_bench.Bench("wall")
    for bench.cuda, kept in ((False, 1), (True, 2)):
        bench.arenas = {}
        first = bench._arena(torch.complex64)
        assert bench._arena(torch.complex128) == [torch.complex128] and len(bench.arenas) == kept
        assert (bench._arena(torch.complex64) is first) == bench.cuda


def test_cuda_needs_a_device(monkeypatch, capsys):
    """One line that says what is missing; with a device its name is the file's, and threads are refused."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for argv, text in (
        (["--device", "cuda"], "torch sees no CUDA device"),
        (["--device", "cuda", "--threads", "1"], "are a CPU's"),
    ):
        with pytest.raises(SystemExit) as err:
            grid.main(argv)
        assert err.value.code == 2 and text in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(grid, "cuda_usable", lambda: False)
    with pytest.raises(SystemExit):
        grid.main(["--device", "cuda"])
    assert "no CUDA kernels" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert grid.default_path("cuda").name == "nvidia_h100_80gb_hbm3_grid.csv"
    large = max(p.batch * BY_NAME[p.op].flops(p.nr, p.nt, p.t) for p in grid.points(OPS, [1], False, False, "cuda"))
    assert 1e10 < large <= 1e11


def test_the_product_rule_is_held_against_its_rows():
    """A product handed to the slower side is counted and named; the largest side that wins stands beside the limit."""
    rows = {}
    for side in (1, 8, 16, 64):
        p = Point(OWN_PRODUCT, "complex64", "contiguous", 1, side, side, 8, 4096)
        rows[p] = {"ours_us": "100", "torch_us": "200" if side != 16 else "50", "ratio": "2" if side != 16 else "0.5"}
    text = crossover.product_rule(rows, cuda=True)
    assert "the slower side in 2 of 4 products; 0.50x at B=4096 M=16" in text[0] and "M=64 K=64 N=8" in text[0]
    assert text[1] == f"its kernel keeps to the rule up to side 8; GPU_LARGEST is {_matmul_rule.GPU_LARGEST}"
    assert crossover.product_rule({}, cuda=True) == []


@pytest.mark.skipif(not TABLE.exists(), reason="no grid has been measured: semcom-fast bench grid")
def test_dispatch_agrees_with_the_measured_table():
    """Only mimo_matmul hands anything to torch; where its rule would choose otherwise now, the table is out of date."""
    with TABLE.open(newline="") as f:
        lines = list(csv.DictReader(f))
    assert {x["op"] for x in lines} == set(BY_NAME)
    for x in lines:
        named = [part.split(" from ") for part in x["backend"].split(", ")]
        by_batch = {
            int(first or 1): name for name, _, first in ((n[0], None, n[1] if len(n) > 1 else 0) for n in named)
        }
        if x["op"] not in ("mimo_matmul", OWN_PRODUCT):
            home = {"lmmse_channel": "rzf_precode", "rzf_matrix": "rzf_precode"}.get(x["op"], x["op"])
            assert set(by_batch.values()) != {"torch"} and "cpu" in REGISTERED[home].kernels
        if x["op"] == "mimo_matmul":
            for batch in BATCHES:
                ran = by_batch[max(b for b in by_batch if b <= batch)]
                own = _matmul_rule.ours(int(x["nr"]), int(x["nt"]), int(x["t"]), batch, False)
                assert (ran != "torch") == own, x
