"""tools/check_cuda.py: what it reads from ptxas, what it refuses, and (with nvcc) that every kernel passes."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "check_cuda.py"
PTXAS = """\
ptxas info    : Compiling entry function '_Z1aPf' for 'sm_90'
ptxas info    : Function properties for _Z1aPf
    8 bytes stack frame, 24 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 8 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Compiling entry function '_Z1bPf' for 'sm_90'
ptxas info    : Function properties for _Z1bPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers
"""


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("check_cuda", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _row(**changes):
    row = {"file": "f.cu", "arch": "sm_90", "kernel": "score_columns<float, 4, 4, 2>", "registers": 56, "stack": 0}
    return row | {"spill_stores": 0, "spill_loads": 0, "shared": 0} | changes


def _kernels(table: Path) -> set[str]:
    with table.open() as file:
        return {row["kernel"] for row in csv.DictReader(file)}


def test_reads_ptxas(tool):
    assert tool.parse_ptxas(PTXAS) == {
        "_Z1aPf": {"stack": 8, "spill_stores": 24, "spill_loads": 12, "registers": 64, "shared": 4096},
        "_Z1bPf": {"stack": 0, "spill_stores": 0, "spill_loads": 0, "registers": 30, "shared": 0},
    }


def test_refuses_local_memory_and_too_many_registers(tool):
    assert tool.faults(_row()) == []
    for field in ("stack", "spill_stores", "spill_loads"):
        assert len(tool.faults(_row(**{field: 8}))) == 1
    assert len(tool.faults(_row(registers=65))) == 1
    assert len(tool.faults(_row(registers=129, kernel="vjp_lanes<float, 4, 4>"))) == 1
    assert tool.faults(_row(registers=128, kernel="vjp_lanes<float, 4, 4>")) == []
    assert tool.faults(_row(registers=126, kernel="staged<double, 1, true>")) == []


def test_without_nvcc_it_says_so(tool, monkeypatch, capsys):
    monkeypatch.setattr(tool.shutil, "which", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["check_cuda.py"])
    assert tool.main() == 0
    assert "no nvcc" in capsys.readouterr().out


def test_committed_table_has_no_local_memory(tool):
    with (ROOT / "benchmarks/results/ptxas.csv").open() as file:
        rows = list(csv.DictReader(file))
    numbers = ("registers", "stack", "spill_stores", "spill_loads", "shared")
    assert {r["arch"] for r in rows} == {"sm_80", "sm_90"}
    assert [f for r in rows for f in tool.faults(r | {n: int(r[n]) for n in numbers})] == []


@pytest.mark.slow
def test_kernels_compile_without_local_memory(tool, tmp_path):
    """About two minutes; the names must be those of the committed table."""
    if tool.find_nvcc() is None:
        pytest.skip("no nvcc")
    table = tmp_path / "ptxas.csv"
    done = subprocess.run([sys.executable, TOOL, "--quick", "--csv", table], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [_kernels(p) for p in (table, ROOT / "benchmarks/results/ptxas.csv")]
    assert names[0] == names[1] and len(names[0]) > 40
