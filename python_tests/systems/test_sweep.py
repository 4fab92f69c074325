"""Sweeps: a table that was stopped anywhere, and by anything, ends up as the one that was not."""

import argparse
import json
import math
import os
import signal
from dataclasses import dataclass

import pytest

from semcom_fast.systems import journal, sweep
from semcom_fast.systems.journal import Journal
from semcom_fast.systems.settings import described
from semcom_fast.systems.sweep import Cell, Measured, Sweep, cells_of


@dataclass(frozen=True)
class Setting:
    size: int = 1
    step: float = 0.1
    step_d: float | None = None
    name: str = described("a", "of it")
    exact: bool = False

    def __post_init__(self):
        object.__setattr__(self, "step_d", self.step if self.step_d is None else self.step_d)


class Fake:
    """Figures that follow from the cell; says which cells were run."""

    kind = Setting
    figures = ("value", "gap_db")

    def __init__(self, made_with="networks"):
        self.run, self.made_with = [], made_with

    def fingerprint(self, setting):
        if setting.size < 1:
            raise ValueError(f"size must be at least 1, got {setting.size}")
        return f"{self.made_with}-{setting.name}"

    def measure(self, cell):
        self.run.append(cell)
        value = cell.seed + cell.snr_db / 7 + cell.setting.size * math.pi
        failed = cell.snr_db == 20
        return Measured(
            {"value": value, "gap_db": math.nan if failed else value}, 'diverged,\n "twice"' if failed else ""
        )


SETTINGS = (Setting(), Setting(2, 1e-7, name="b,c", exact=True))
CELLS = cells_of(range(2), (10.0, 20.0), SETTINGS)


@pytest.fixture(autouse=True)
def _same_place_and_time(monkeypatch):
    monkeypatch.setattr(sweep, "where", lambda: {"backend": "none"})
    monkeypatch.setattr(sweep, "_now", lambda: "now")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The bytes of the whole table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "where", lambda: {"backend": "none"})
        patch.setattr(sweep, "_now", lambda: "now")
        out = tmp_path_factory.mktemp("sweep") / "deep" / "table.csv"
        Sweep(Fake(), CELLS, out).run(progress=False)
        return out.read_bytes()


def _run(out, cells=CELLS, system=None, **options):
    system = system or Fake()
    Sweep(system, cells, out).run(progress=False, **options)
    return system.run


def test_table_has_a_row_for_every_cell_seed_by_seed(unbroken):
    header, *rows = unbroken.decode().splitlines()
    assert header == "seed,snr_db,size,step,step_d,name,exact,value,gap_db,failure,made_with,version,backend,finished"
    assert len(rows) == len(CELLS) == 8
    assert [row[:4] for row in rows] == ["0,10", "0,10", "0,20", "0,20", "1,10", "1,10", "1,20", "1,20"]
    assert rows[0].startswith("0,10,1,0.1,0.1,a,false,4.57016,4.57016,,networks-a,0.")
    assert rows[7].startswith('1,20,2,1e-07,1e-07,"b,c",true,10.1403,nan,"diverged, ""twice""","networks-b,c",')


def test_any_torn_table_is_mended(tmp_path, monkeypatch):
    """Cut after every byte, as a kill may leave it: just the cells without a whole row are run, the table is the same."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    out, cells = tmp_path / "table.csv", CELLS[2:4]  # with quoted values
    _run(out, cells)
    whole = out.read_bytes()
    for size in range(len(whole) + 1):
        out.write_bytes(whole[:size])
        finished = max(whole.count(b"\n", 0, size) - 1, 0)
        assert _run(out, cells) == cells[finished:], size
        assert out.read_bytes() == whole, size


def test_killed_in_mid_write(unbroken, tmp_path):
    """SIGKILL with half of the third row on the disk; the lock is gone with the process."""
    out = tmp_path / "table.csv"
    write, lines = Journal._write, []

    def torn(self, line):
        lines.append(line)
        if len(lines) == 4:  # the header is the first
            write(self, line[: len(line) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, line)

    child = os.fork()
    if not child:
        Journal._write = torn
        try:
            _run(out)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = out.read_bytes()
    assert left.count(b"\n") == 3 and unbroken.startswith(left) and not left.endswith(b"\n")
    assert _run(out) == CELLS[2:]
    assert out.read_bytes() == unbroken


def test_interrupted_says_how_to_go_on(unbroken, tmp_path, monkeypatch):
    out, stopping = tmp_path / "table.csv", Fake()
    measure = stopping.measure

    def stop(cell):
        if len(stopping.run) == 3:
            raise KeyboardInterrupt
        return measure(cell)

    monkeypatch.setattr(stopping, "measure", stop)
    with pytest.raises(KeyboardInterrupt, match=r"3 of 8 cells finished.*table\.csv; the same command goes on"):
        _run(out, system=stopping)
    assert _run(out) == CELLS[3:]
    assert out.read_bytes() == unbroken
    assert _run(out) == []
    stopping.run.clear()
    with pytest.raises(KeyboardInterrupt, match="the same command without --restart goes on"):
        _run(out, system=stopping, restart=True)


def test_more_cells_are_added_and_failures_are_results(tmp_path):
    out = tmp_path / "table.csv"
    _run(out, cells_of([1], [20], SETTINGS[:1]))
    assert _run(out) == [cell for cell in CELLS if cell != CELLS[6]]
    assert len(out.read_text().splitlines()) == 1 + len(CELLS)


def test_one_process_at_a_time(unbroken, tmp_path):
    out = tmp_path / "table.csv"
    table = sweep.Table(Fake())
    with (
        Journal(out, table.columns),
        pytest.raises(BlockingIOError, match=r"another process is writing to .*table\.csv"),
    ):
        _run(out)
    assert _run(out) == CELLS
    assert out.read_bytes() == unbroken


def test_a_file_moved_away_between_opening_and_locking_is_left_alone(tmp_path, monkeypatch):
    """Another process restarts just then: the lock has to be on the file that is at the path."""
    out, columns = tmp_path / "table.csv", ("a", "b")
    lock, moved = journal.fcntl.flock, []

    def slow(file, how):
        if not moved:
            moved.append(out.rename(tmp_path / "table.csv.bak"))
        lock(file, how)

    monkeypatch.setattr(journal.fcntl, "flock", slow)
    with Journal(out, columns) as rows:
        rows.append({"a": 1, "b": 2})
    assert out.read_text() == "a,b\n1,2\n" and moved[0].read_text() == ""


def test_rows_made_with_something_else_are_an_error(unbroken, tmp_path, monkeypatch):
    out = tmp_path / "table.csv"
    out.write_bytes(unbroken)
    with pytest.raises(
        ValueError, match=r"line 2 \(seed 0, 10 dB.*made_with = networks-a, but it is new-a now.*restart"
    ):
        _run(out, system=Fake("new"))
    other = cells_of(range(2), [10.0], [Setting(7)])  # none of the file's cells
    with pytest.raises(ValueError, match="made_with"):
        _run(out, other, Fake("new"))
    monkeypatch.setattr(sweep, "__version__", "9.9")
    with pytest.raises(ValueError, match=r"version = 0\S+, but it is 9.9"):
        _run(out)
    assert out.read_bytes() == unbroken


def test_restart_keeps_every_old_file(unbroken, tmp_path):
    out = tmp_path / "table.csv"
    assert _run(out, restart=True) == CELLS
    assert _run(out, CELLS[:1], Fake("new"), restart=True) == CELLS[:1]
    assert _run(out, CELLS[:2], restart=True) == CELLS[:2]
    assert (tmp_path / "table.csv.bak").read_bytes() == unbroken
    assert "new-a" in (tmp_path / "table.csv.bak2").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["table.csv", "table.csv.bak", "table.csv.bak2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b"notes", "is not a table of this sweep"),
        (lambda b: b.replace(b"step,", b"", 1), "other columns than this sweep: without step$"),
        (lambda b: b.replace(b"seed,snr_db", b"snr_db,seed", 1), "other columns than this sweep: in another order"),
        (lambda b: b.replace(b"4.57016", b"four", 1), "line 2: could not convert string to float: 'four'"),
        (lambda b: b.replace(b"4.57016,", b"", 1), "line 2: 13 values under 14 columns"),
        (lambda b: b + b.splitlines(True)[1], "lines 2 and 10 are about the same cell"),
        (lambda b: b.replace(b",false", b",no", 1), "line 2: setting exact: 'no' is neither true nor false"),
        (lambda b: b"\xff\n" + b, "is not a CSV file"),
    ],
)
def test_other_files_are_left_alone(unbroken, tmp_path, change, message):
    out = tmp_path / "table.csv"
    data = change(unbroken)
    assert data != unbroken
    out.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        _run(out)
    assert out.read_bytes() == data


def _settings(tmp_path, *line):
    parser = argparse.ArgumentParser(exit_on_error=False)
    sweep.add_sweep(parser, Setting, snrs_db=(0.0,), out=tmp_path / "t.csv")
    return sweep.settings_from(parser.parse_args(line), Setting)


def test_settings_of_options_and_files(tmp_path):
    assert _settings(tmp_path) == [Setting()]
    assert _settings(tmp_path, "--size", "1", "2", "--exact") == [Setting(1, exact=True), Setting(2, exact=True)]
    assert _settings(tmp_path, "--exact", "false", "true", "--step", "0.10", "1e-1") == [Setting(), Setting(exact=True)]
    assert _settings(tmp_path, "--name", " x  y", "x y") == [Setting(name="x y")]  # as the table has it
    single = ("--setting", "size=3,step-d=2", "--setting", "name=x", "--step", "1", "2")
    assert _settings(tmp_path, *single) == [
        Setting(3, 1.0, 2.0), Setting(3, 2.0, 2.0), Setting(1, 1.0, name="x"), Setting(1, 2.0, name="x"),
    ]  # fmt: skip
    toml, js = tmp_path / "s.toml", tmp_path / "s.json"
    toml.write_text("[[setting]]\nsize = [4, 5]\nexact = true\n[[setting]]\nstep_d = 3\n")
    js.write_text(json.dumps([{"size": [4, 5], "exact": True}, {"step-d": 3.0}]))
    want = [Setting(4, exact=True), Setting(5, exact=True), Setting(step_d=3.0)]
    assert _settings(tmp_path, "--settings", str(toml)) == _settings(tmp_path, "--settings", str(js)) == want


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--setting", "sise=3"], "no setting named 'sise'; there: size, step"),
        (["--setting", "size"], "is not KEY=VALUE,KEY=VALUE"),
        (["--setting", "size=x"], "setting size: invalid literal"),
        (["--step", "nan"], "nan is not a finite number"),
        (["--size", "2", "--setting", "size=3"], "size is given for all settings and for single ones too"),
        (["--snr", "inf"], "'inf' is not a finite number of dB"),
        (["--seeds", "0"], "'0' is neither a number of seeds nor FIRST:END"),
        (["--seeds", "3:3"], "FIRST:END"),
        (["--settings", "{tmp}/empty.json"], "holds no settings"),
        (["--settings", "{tmp}/null.json"], "null.json: setting size: None is no number"),
        (["--settings", "{tmp}/bad.toml"], "bad.toml: "),
    ],
)
def test_wrong_settings_are_named(tmp_path, line, message):
    for name, text in (("empty.json", "{}"), ("null.json", '[{"size": null}]'), ("bad.toml", "= 3")):
        (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, argparse.ArgumentError), match=message):
        _settings(tmp_path, *(part.format(tmp=tmp_path) for part in line))


def test_settings_that_cannot_be_run_are_refused_before_anything_runs(tmp_path):
    out = tmp_path / "table.csv"
    with pytest.raises(ValueError, match="size must be at least 1"):
        _run(out, cells_of([0], [0.0], [Setting(), Setting(0)]))
    assert not out.exists()
    with pytest.raises(ValueError, match="at least one seed"):
        cells_of([], [0.0], [Setting()])
    with pytest.raises(FileNotFoundError):
        sweep.summary(Fake(), out)


def test_summary_is_over_seeds(unbroken, tmp_path):
    """Seeds 0 and 1 are one apart: standard error 1/sqrt(2) * 1/sqrt(2); a row being written does not count."""
    out = tmp_path / "table.csv"
    out.write_bytes(unbroken + b"3,10,1")
    text = sweep.summary(Fake(), out)
    first, failed, _, *rest = text.splitlines()
    assert first == "8 cells, 2 seeds; mean ± standard error over seeds"
    assert failed == "4 cells with failures: see the column `failure`"
    assert [line.split() for line in rest[:4]] == [
        ["value"],
        ["size", "step", "step_d", "name", "exact", "10", "dB", "20", "dB"],
        ["1", "0.1", "0.1", "a", "false", "5.07", "±", "0.50", "6.50", "±", "0.50"],
        ["2", "1e-07", "1e-07", "b,c", "true", "8.21", "±", "0.50", "9.64", "±", "0.50"],
    ]
    assert len({len(line) for line in rest[1:4]}) == 1
    assert "nan (0 of 2)" in text
    out.write_bytes(unbroken[: unbroken.index(b"\n") + 1])
    assert sweep.summary(Fake(), out).endswith("holds no cells")


def test_spread():
    assert sweep.spread([1.0, 3.0]) == (2.0, 1.0, 2, 2) and str(sweep.spread([1.0, 3.0])) == "2.0 ± 1.0"
    assert str(sweep.spread([1.5])) == "1.5"
    assert str(sweep.spread([math.nan, 1.0, 3.0])) == "2.0 ± 1.0 (2 of 3)"
    assert str(sweep.spread([math.inf, 1.0])) == "inf"
    assert str(sweep.spread([-28.125, -28.0])) == "-28.062 ± 0.062"
    assert str(sweep.spread([500.0, 1000.0])) == "750 ± 250" and str(sweep.spread([1.0, 1.0])) == "1.0000 ± 0.0000"
    assert str(sweep.spread([1e15, 3e15])) == "2e+15 ± 1e+15"


def test_parsed_commands_run_and_summarise(tmp_path, capsys):
    parser, out = argparse.ArgumentParser(), tmp_path / "t.csv"
    sweep.add_sweep(parser, Setting, snrs_db=(0.0,), out=out)
    system = Fake()
    sweep.execute_sweep(parser.parse_args(["--seeds", "2:4", "--snr", "5", "--size", "1", "2", "--quiet"]), system)
    assert system.run == [Cell(seed, 5.0, Setting(size)) for seed in (2, 3) for size in (1, 2)]
    printed = capsys.readouterr().out
    sweep.execute_sweep(parser.parse_args(["--summary"]), system)
    assert capsys.readouterr().out == printed and "4 cells, 2 seeds" in printed and len(system.run) == 4
