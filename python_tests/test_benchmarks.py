"""The benchmark suite's machinery, on made-up kernels: nothing here measures anything worth quoting."""

import csv
import json
import math
import random
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark_rows import BRIEF, LIMITS, made_up, run

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import __main__ as main  # noqa: E402
from benchmarks import bands, cases, compare, report, roofline, rows, runner, timing  # noqa: E402
from semcom_fast import cli  # noqa: E402


@pytest.fixture(autouse=True)
def _small_cache(monkeypatch):
    """Buffers of megabytes, so that these tests do not fill memory."""
    monkeypatch.setattr(timing, "last_cache_bytes", lambda: 1 << 20)


# ---- bands

# (scatter of a round, scatter between visits), as standard deviations of the logarithm; a tenth of the rounds are disturbed
NOISES = [(0.03, 0.0), (0.03, 0.03), (0.01, 0.05)]


def noisy_run(rng, within, between, visits=BRIEF.visits, rounds=BRIEF.rounds, true=10.0):
    """Paired ratios of a run on a machine with that noise."""
    out = []
    for _ in range(visits):
        offset = rng.gauss(0, between)
        log = [offset + rng.gauss(0, within) for _ in range(rounds)]
        log = [v + rng.choice((-1, 1)) * rng.uniform(0.3, 1) * (rng.random() < 0.1) for v in log]
        out.append([true * math.exp(v) for v in log])
    return out


def disagreements(noise, visits, rounds, pairs=800):
    """Share of pairs of runs of the same program that `change` calls different."""
    rng = random.Random(1)
    settings = {"visits": visits, "rounds": rounds}
    found = [[bands.band(noisy_run(rng, *noise, **settings)) for _ in range(2)] for _ in range(pairs)]
    return sum(bands.change(a, b, least=0.0) != 0 for a, b in found) / pairs


@pytest.mark.parametrize("noise", NOISES)
def test_two_runs_of_the_same_program_agree_within_their_bands(noise):
    """Fewer than one pair in fifty, however small the difference; one long visit fails this where visits differ."""
    assert disagreements(noise, rows.QUICK.visits, rows.QUICK.rounds) < 0.02
    if noise[1]:
        assert disagreements(noise, 1, rows.QUICK.visits * rows.QUICK.rounds) > 0.2


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_real_change_is_seen(factor):
    rng = random.Random(2)
    size = {"visits": rows.QUICK.visits, "rounds": rows.QUICK.rounds}
    found = []
    for _ in range(400):
        before = bands.band(noisy_run(rng, 0.03, 0.02, **size))
        after = bands.band(noisy_run(rng, 0.03, 0.02, true=10 * factor, **size))
        found.append(bands.change(before, after))
    expected = 1 if factor > 1 else -1
    assert found.count(expected) > 390 and found.count(-expected) == 0


def test_band_holds_every_visit_and_a_small_change_is_none():
    found = bands.band([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [5.0, 5.0, 5.0]])
    assert found == (1.0, 1.0, 5.0)
    assert bands.band([[], [2.0], [4.0]]) == (3.0, 2.0, 4.0)
    assert bands.change(bands.Band(1, 1, 1), bands.Band(1.02, 1.02, 1.02)) == 0
    assert bands.change(bands.Band(1, 0.99, 1.01), bands.Band(0.9, 0.89, 0.91)) == -1
    with pytest.raises(ValueError, match="no measurement"):
        bands.band([[]])


def test_pairing_uses_the_rounds_both_took_part_in():
    visits = [[{"ours": 1.0, "torch": 3.0}, {"ours": 2.0}], [{"ours": 2.0, "torch": 8.0}]]
    assert bands.paired(visits, "torch", "ours") == [[3.0], [4.0]]


# ---- timing


def test_order_alternates_and_slow_sides_sit_out():
    order = []
    sides = [timing.Side(name, lambda i, name=name: order.append((name, i))) for name in "abc"]
    sides[2].every = 2
    found = timing.sample(sides, 3, start=0)
    assert [name for name, _ in order] == list("abc") + list("ba") + list("abc")
    assert [i for _, i in order] == list(range(8)) and timing.calls_of(sides, 3) == 8
    assert [sorted(r) for r in found] == [list("abc"), list("ab"), list("abc")]


def test_rotation_leaves_the_cache_and_keeps_values_strides_and_gradients():
    base = torch.randn(4, 1)
    given = lambda i: (base.expand(4, 3), torch.zeros(2, requires_grad=True), 7, (base,))  # noqa: E731
    sets = timing.rotation(given, 1 << 18, hot=False)
    assert len(sets) * (1 << 18) >= 4 * timing.last_cache_bytes()
    assert (
        len(timing.rotation(given, 1 << 18, hot=False, calls=5)) == 5 and len(timing.rotation(given, 8, hot=True)) == 1
    )
    wide, leaf, number, inner = sets[-1]
    assert wide.stride() == base.expand(4, 3).stride() and torch.equal(wide, base.expand(4, 3))
    assert leaf.requires_grad and leaf.is_leaf and number == 7 and inner[0].data_ptr() != base.data_ptr()
    assert wide.data_ptr() != base.data_ptr()


def test_the_commit_that_is_told_wins(monkeypatch):
    """A copy without its history may lie inside another repository, whose commit is none of ours."""
    found = timing._commit.__wrapped__
    monkeypatch.setenv("SEMCOM_FAST_COMMIT", "abc1234")
    assert found() == "abc1234"
    monkeypatch.setenv("SEMCOM_FAST_COMMIT", "")
    monkeypatch.setattr(timing.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout="def5678\n"))
    assert found() == "def5678"


# ---- rows and runs


def test_rows_say_everything_and_survive_csv_and_json(tmp_path):
    rivals = {"sionna": "sionna is not installed: pip install 'semcom-fast[sionna]'", "mkl compact": torch.neg}
    target = ">= 1000000x, >= 5x Sionna"
    out, shown = run([made_up(rivals=rivals, target=target)], tmp_path / "a.csv", tmp_path / "a.json")
    assert shown == out.rows and [r.cache for r in out.rows] == ["hot", "rotated"] and not out.refused
    with (tmp_path / "a.csv").open() as f:
        read = list(csv.DictReader(f))
    assert read == runner.read_rows(tmp_path / "a.json") == runner.read_rows(tmp_path / "a.csv")
    for row, text in zip(out.rows, read, strict=True):
        assert row.rounds == BRIEF.visits * BRIEF.rounds and row.best_torch in ("product", "difference")
        assert row.ratio_low <= row.ratio <= row.ratio_high and row.ours_low_us <= row.ours_us <= row.ours_high_us
        assert float(text["ratio"]) == row.ratio and float(text["mkl_compact_ratio"]) == row.peers["mkl compact"].ratio
        assert text["sionna_ratio"] == text["cupy_us"] == "" and "pip install" in text["missing"]
        assert text["command"] == "again 8 entries" and text["threads"] == str(torch.get_num_threads())
        assert all(text[k] for k in ("device", "isa", "torch", "commit", "date", "kernel", "roofline_bound"))
        line = report.line(row)
        assert "no sionna" in line and ">= 1000000x: MISSED" in line and ">= 5x Sionna: not measured" in line
        assert "again 8 entries" in report.details(row) and "pip install" in report.details(row)
    assert report.closing(out.rows)[0].startswith("missing in 2 rows - sionna: sionna is not installed")
    assert json.loads((tmp_path / "a.json").read_text())["machine"]["torch"] == torch.__version__


def test_roofline_share_is_the_slowest_limit_over_ours():
    m = rows.Measurement(made_up(), True, BRIEF)
    m.case.flops, m.case.normals = 10**6, 100
    m.sides = [timing.Side(name, torch.neg) for name in ("ours", "product", "copy", "reference")]
    m.visits = [[{"ours": 1e-4, "product": 3e-4, "copy": 4e-5, "reference": 1e-3}] * 4]
    row = m.row(LIMITS)
    assert row.ratio == pytest.approx(3) and row.copy_share == pytest.approx(0.4) and row.roofline_bound == "bytes"
    assert row.cgemm_share == pytest.approx(0.1) and row.gflop_per_s == pytest.approx(10)
    m.case.dtype, m.case.flops = "complex128", 4 * 10**6
    row = m.row(LIMITS)
    assert row.roofline_bound == "flops" and row.roofline_share == pytest.approx(0.8)


def test_a_wrong_kernel_is_refused_before_timing():
    calls = []
    bad = made_up("wrong", wrong=True, ours=lambda x: calls.append(1) or -x)
    nan = made_up("nan")
    nan.check = lambda: float("nan")
    out, shown = run([bad, nan, made_up("right")])
    assert len(calls) == 1 and [r.size for r in shown] == ["right", "right"]
    assert "wrong complex64: relative error 1.00e+00 exceeds 1.00e-12; not timed" in out.refused[0]
    assert len(out.refused) == 2


def test_a_rival_that_fails_is_missing_and_a_slow_start_waits_for_a_long_run():
    def broken(x):
        raise RuntimeError("no library\nfound")

    slow = lambda x: -x  # noqa: E731
    slow.slow_start = True
    out, _ = run([made_up(rivals={"cupy": broken, "compiled planes": slow})], caches=["hot"])
    assert "RuntimeError: no library found" in out.rows[0].peers["cupy"].missing
    assert "--quick" in out.rows[0].peers["compiled planes"].missing
    out, _ = run(
        [made_up(rivals={"compiled planes": slow, "sionna": slow})], caches=["hot"], quick=False, without=("sionna",)
    )
    assert list(out.rows[0].peers) == ["compiled planes"] and out.rows[0].peers["compiled planes"].ratio > 0
    with pytest.raises(ValueError, match="no column for rival 'numpy'"):
        made_up(rivals={"numpy": slow})


def test_formulations_that_do_not_run_here_are_missing():
    """A device may lack one of torch's, or the definition: the row does without; without any there is none."""

    def broken(x):
        raise NotImplementedError("not on this device")

    some, none = made_up("some"), made_up("none")
    some.peers["einsum"] = some.reference = broken
    none.peers = {"einsum": broken}
    out, _ = run([some, none], caches=["hot"])
    (row,) = out.rows
    assert row.size == "some" and row.best_torch in ("product", "difference") and math.isnan(row.reference_us)
    assert "einsum: failed on these inputs: NotImplementedError: not on this device" in row.record()["missing"]
    assert row.record()["reference_us"] == "" and "no einsum" in report.line(row) and report.details(row)
    assert len(out.refused) == 1 and "none complex64: RuntimeError: no torch formulation failed" in out.refused[0]


def test_a_row_that_fails_leaves_the_others(monkeypatch):
    """What it has measured so far is kept, and what went wrong is said."""
    plain, visits = timing.sample, []

    def failing(*args, **kwargs):
        visits.append(1)
        if len(visits) in (1, 5):  # the first row at its first visit, the third at its second
            raise torch.cuda.OutOfMemoryError("no room")
        return plain(*args, **kwargs)

    monkeypatch.setattr(timing, "sample", failing)
    out, shown = run([made_up("first"), made_up("second"), made_up("third")], caches=["hot"], visits=3)
    assert {r.size: r.rounds for r in shown} == {"second": 3 * BRIEF.rounds, "third": BRIEF.rounds}
    assert [text.split(": ")[-1] for text in out.refused] == [f"no room; left after {n} of 3 visits" for n in (0, 1)]


def test_prepared_rivals_get_prepared_inputs():
    class Packed:
        def prepare(self, x):
            return ("packed", x)

        def __call__(self, what, x):
            assert what == "packed"
            return -x

    out, _ = run([made_up(rivals={"mkl compact packed": Packed()})])
    assert all(r.peers["mkl compact packed"].ratio > 0 for r in out.rows)


def test_an_interrupted_run_keeps_its_rows(tmp_path, monkeypatch):
    visits = []
    plain = timing.sample

    def stopped(*args, **kwargs):
        visits.append(1)
        if len(visits) == 4:  # the first visit to both rows, the second to the first one, then Ctrl-C
            raise KeyboardInterrupt
        return plain(*args, **kwargs)

    monkeypatch.setattr(timing, "sample", stopped)
    out, shown = run([made_up("first"), made_up("second")], tmp_path / "a.csv", caches=["hot"])
    assert out.interrupted and [r.size for r in shown] == ["first", "second"]
    assert [int(r["rounds"]) for r in runner.read_rows(tmp_path / "a.csv")] == [2 * BRIEF.rounds, BRIEF.rounds]


def test_a_killed_run_has_its_rows_on_disk(tmp_path, monkeypatch):
    """The file is written while rows are still open, not only at the end."""
    seen = []
    plain = runner.Files.write

    def spy(self, given, last=True):
        plain(self, given, last=True)
        seen.append((last, len(runner.read_rows(tmp_path / "a.csv"))))

    monkeypatch.setattr(runner.Files, "write", spy)
    run([made_up("first"), made_up("second")], tmp_path / "a.csv", caches=["hot"])
    assert seen[0] == (False, 2)


def test_append_replaces_a_row_and_keeps_the_others(tmp_path):
    path = tmp_path / "a.csv"
    run([made_up("first"), made_up("second")], path, caches=["hot"])
    run([made_up("second"), made_up("third")], path, caches=["hot"], append=True)
    assert [r["size"] for r in runner.read_rows(path)] == ["first", "second", "third"]
    run([made_up("third")], path, caches=["hot"])
    assert [r["size"] for r in runner.read_rows(path)] == ["third"]


# ---- filters and the command line


def test_filters_choose_rows():
    given = [made_up("28 of 4x4"), made_up("28 of 4x4, 14 samples"), made_up("8 of 2x2 (K)", dtype="float64")]
    size = lambda **f: [c.size for c in cases.choose(given, **f)]  # noqa: E731
    assert size(size="28 of 4x4") == ["28 of 4x4"]  # exact before part
    assert size(size="of 4x4") == ["28 of 4x4", "28 of 4x4, 14 samples"]
    assert size(size=r"^\d of") == size(size="(K)") == size(dtype="float64") == ["8 of 2x2 (K)"]
    for wrong in ({"size": "9x9"}, {"size": "["}, {"op": "renoise"}, {"dtype": "float32"}):
        with pytest.raises(ValueError, match="matches no row; there: "):
            cases.choose(given, **wrong)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["no_such_op"], "unknown stem 'no_such_op'; there: ops, loops, mimo_matmul"),
        (["renoise", "--quick", "--size", "nothing"], "--size 'nothing' matches no row; there: B=1 16x64 S=8"),
        (["renoise", "--quick", "--dtype", "float64"], "--dtype 'float64' matches no row"),
        (["renoise", "--dtype", "bfloat16"], "invalid choice: 'bfloat16'"),
        (["pvd_loop", "--size", "4"], "a loop has none of them"),
        (["renoise", "--clock", "thread", "--threads", "2"], "give --threads 1"),
        (["renoise", "--graphs"], "--graphs needs --device cuda"),
        (["renoise", "--threads", "0"], "--threads must be at least 1"),
        (["renoise", "--quick", "--csv", "/proc/no/rows.csv"], "/proc/no"),
        (["compare", "one.csv"], "required: after"),
        (["compare", "/no/a.csv", "/no/b.csv"], "/no/a.csv"),
    ],
)
def test_errors_take_one_line_and_exit_with_2(argv, message, capsys):
    try:
        code = main.main(argv)
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1


def test_list_names_rows_without_measuring(capsys):
    assert main.main(["renoise", "likelihood_score", "--quick", "--list", "--dtype", "complex128"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["likelihood_score"]


def test_every_row_has_a_command_that_chooses_it_alone():
    for quick in (True, False):
        stems = ["likelihood_score", "blockdiag_apply", "pvd_update", "renoise", "waterfill_equalise", "elbo_reduce"]
        for case in cases.collect(stems, quick):
            args = main._arguments([case.stem, "--threads", "1", *["--quick"] * quick])
            words = shlex.split(main.reproduce(args, case, "rotated"))
            again = main._arguments(words[2:])
            found = cases.choose(cases.collect(again.ops, again.quick), again.size, again.op, again.dtype)
            assert [(c.op, c.size, c.dtype) for c in found] == [(case.op, case.size, case.dtype)]
            assert again.cache == "rotated" and again.threads == 1


def test_a_real_row_from_any_folder_into_a_relative_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(roofline, "limits", lambda quick: roofline.Limits(1e10, 1e11, 5e10, 1.0))
    words = ["pvd_calibrate", "--quick", "--cache", "hot", "--threads", "1", "--csv", "sub/rows.csv", "--verbose"]
    assert main.main(words) == 0
    (row,) = runner.read_rows(tmp_path / "sub" / "rows.csv")
    assert row["op"] == "pvd_calibrate" and row["kernel"].startswith("cpu") and row["threads"] == "1"
    assert row["command"] in capsys.readouterr().out
    assert float(row["worst_error"]) <= float(row["bound"])


def test_the_command_runs_where_it_was_called(tmp_path, monkeypatch):
    """A relative --csv belongs to the caller's folder, wherever the source tree lies; nothing there shadows the suite."""
    tree, here = tmp_path / "tree", tmp_path / "here"
    for folder, code in ((tree, "7 if os.getcwd() == sys.argv[1] else 1"), (here, "3")):
        (folder / "benchmarks").mkdir(parents=True)
        (folder / "benchmarks" / "__init__.py").touch()
        (folder / "benchmarks" / "__main__.py").write_text(f"import os, sys; sys.exit({code})")
    monkeypatch.setattr(cli, "SOURCE_TREE", tree)
    monkeypatch.chdir(here)
    assert cli.main(["bench", str(here)]) == 7


# ---- compare


def written(path, **changes):
    """A file of two rows; `changes` to the second one."""
    base = {
        "op": "renoise",
        "size": "a",
        "dtype": "complex64",
        "cache": "hot",
        "threads": "1",
        "torch": "2.13",
        "device": "x",
    }
    base |= {"ours_us": 10, "ours_low_us": 9, "ours_high_us": 11, "ratio": 5, "ratio_low": 4.8, "ratio_high": 5.2}
    timing.write_csv(path, [base, {**base, "size": "b", **changes}])
    return path


@pytest.mark.parametrize(
    ("changes", "word", "code"),
    [
        ({}, "2 rows: 0 faster, 0 slower, 2 within their bands", 0),
        ({"ratio": 4, "ratio_low": 3.9, "ratio_high": 4.1}, "slower   0.80x  renoise", 1),
        ({"ratio": 4, "ratio_low": 3.9, "ratio_high": 4.9}, "0 slower", 0),
        ({"ratio": 6, "ratio_low": 5.9, "ratio_high": 6.1, "ours_us": 20}, "faster   1.20x  renoise", 0),
        ({"size": "c"}, "only in", 0),
    ],
)
def test_compare_goes_by_bands(tmp_path, capsys, changes, word, code):
    before, after = written(tmp_path / "a.csv"), written(tmp_path / "b.csv", **changes)
    assert main.main(["compare", str(before), str(after), "--fail-on-slower"]) == code
    assert word in capsys.readouterr().out
    assert main.main(["compare", str(before), str(after)]) == 0


def test_compare_says_when_machines_differ_and_goes_by_time_with_another_torch(tmp_path, capsys):
    slow = {"ours_us": 20, "ours_low_us": 19, "ours_high_us": 21}
    before, after = written(tmp_path / "a.csv"), written(tmp_path / "b.csv", torch="2.14", device="y", **slow)
    assert main.main(["compare", str(before), str(after), "--fail-on-slower"]) == 1
    out = capsys.readouterr().out
    assert "note: device differs: x before, x, y after" in out and "10.0 us [9.00 11.0] -> 20.0 us [19.0 21.0]" in out
    assert compare.main([str(before), str(after), "--by", "ratio", "--fail-on-slower"]) == 0


def test_compare_refuses_other_files(tmp_path):
    (tmp_path / "a.csv").write_text("image,psnr_db\n1,20\n")
    with pytest.raises(ValueError, match="holds no rows"):
        compare.keyed(tmp_path / "a.csv")


# ---- pytest-benchmark


def test_plain_pytest_does_not_collect_the_rows():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'testpaths = ["python_tests"]' in text
