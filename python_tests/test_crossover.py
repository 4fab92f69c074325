"""The grid's tables: their rules on made-up rows, and the committed crossover against the dispatch rules in the code."""

import csv
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import crossover, grid, timing  # noqa: E402
from benchmarks.grid_ops import BATCHES, BY_NAME, OPS, OWN_PRODUCT, Point  # noqa: E402
from semcom_fast.ops import _matmul_rule  # noqa: E402
from semcom_fast.ops._register import OPS as REGISTERED  # noqa: E402

TABLE = timing.RESULTS / "cpu_crossover.csv"


def row(batch, ratio, op="rzf_matrix", torch_us=100.0, kernel="cpu v4", threads=1):
    p = Point(op, "complex64", "contiguous", threads, 4, 4, 1, batch)
    return p, {
        k: str(v) for k, v in grid.GridRow(p, kernel, torch_us / ratio, "solve", torch_us, ratio, 5).line().items()
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


def test_resumes(tmp_path, monkeypatch):
    """A second run measures nothing that is in the file; --fresh does."""
    measured = []
    monkeypatch.setattr(
        grid.Bench, "row", lambda self, p: measured.append(p) or grid.GridRow(p, "cpu v4", 1, "a", 9, 9, 3)
    )
    argv = ["--quick", "--ops", "rzf_matrix", "--threads", "1", "--csv", str(tmp_path / "cpu_grid.csv")]
    assert grid.main(argv) == 0
    first = len(measured)
    assert grid.main(argv) == 0 and len(measured) == first > 0
    assert grid.main([*argv, "--fresh"]) == 0 and len(measured) == 2 * first


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
