"""Lazy import, the errors where Triton cannot run, warmup, and the compile check of tools/check_triton.py."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'semcom-fast[triton]'")

ROOT = Path(__file__).resolve().parents[2]


def _python(code: str, *args: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=env, timeout=300)


def test_package_imports_without_triton():
    done = _python(
        "import sys; sys.modules['triton'] = None\n"
        "import semcom_fast\n"
        "try: import semcom_fast.triton\n"
        "except semcom_fast.BackendUnavailable as err: print(err)\n"
        "else: raise SystemExit('no error')\n"
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'semcom-fast[triton]'" in done.stdout


def test_package_import_does_not_import_triton():
    done = _python("import sys, semcom_fast; sys.exit('semcom_fast.triton' in sys.modules or 'triton' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_host_tensors_need_the_interpreter():
    done = _python(
        "import torch, semcom_fast\n"
        "from semcom_fast.triton import philox_normal\n"
        "try: philox_normal.run(1, 4, 0, device='cpu')\n"
        "except semcom_fast.BackendUnavailable as err: print(err)\n"
    )
    assert done.returncode == 0, done.stderr
    assert "need CUDA tensors, got cpu" in done.stdout


def test_warmup(monkeypatch):
    from semcom_fast.triton import warmup

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in warmup()


@pytest.mark.gpu
@pytest.mark.slow
def test_warmup_on_a_device():
    """One variant after the other, some two hundred of them."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from semcom_fast.triton import warmup

    assert "variants of the Triton kernels are ready" in warmup()


def _compiled(folder, only):
    """Rows of the compile check for sm_90; the PTX lies in `folder`."""
    table = folder / "t.csv"
    code = "import runpy, sys; sys.argv[0] = 'check_triton.py'; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    script = str(ROOT / "tools" / "check_triton.py")
    done = _python(code, script, "--only", only, "--arch", "90", "--csv", str(table), "--dump", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    with table.open() as f:
        return list(csv.DictReader(f))


def test_compile_check_reports_resources(tmp_path):
    rows = _compiled(tmp_path, "pvd_update 2x1x1536 draw")
    assert [r["dtype"] for r in rows] == ["float32", "float32", "float64", "float64"]
    for row in rows:
        assert int(row["stack"]) == int(row["spills"]) == 0 < int(row["regs"])
        assert int(row["load"]) == int(row["store"]) == 16  # a thread owns whole quads


def test_masked_loads_of_the_water_filling_step_stay_wide(tmp_path):
    """The mask differs from element to element, the loads it guards must not: no 4-byte load, 16 bytes of g, f and d."""
    rows = _compiled(tmp_path, "waterfill_step 1536 guided, table")
    assert [r["dtype"] for r in rows] == ["float32", "float64"]
    assert all(int(r["load"]) == int(r["store"]) == 16 for r in rows)
    ptx = (tmp_path / "waterfill_step_1536_guided_table_float32_sm90.ptx").read_text()
    assert "ld.global.b32" not in ptx and ptx.count("ld.global.v4.b32") == 5  # with x0 and x0_uncond


def test_tiles_of_the_posterior_step_fit_the_registers(tmp_path):
    """The paper's antennas: the state's tile and both products without a spill, loads and stores 16 bytes wide."""
    rows = _compiled(tmp_path, "pilot_posterior_step 16x64x38 dmps")
    assert [r["dtype"] for r in rows] == ["float32", "float64"]
    for row in rows:
        assert int(row["stack"]) == int(row["spills"]) == 0 < int(row["regs"])
        assert int(row["load"]) == int(row["store"]) == 16
