"""The CUDA kernels' own phases, run thread by thread on the host: see csrc/tests/cuda_*.cpp for the bounds."""

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAIN = ["-std=c++17", "-O0", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-pragmas"]
# Shared memory and arrays are allocated to the byte, so a stray access of any thread is reported. Sizes of shared
# memory are measured from a null base, hence the two exceptions.
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize=pointer-overflow,null", "-fno-sanitize-recover=all"]


def _compiler() -> str:
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no host C++ compiler (g++ or clang++)")
    return found


def _sanitizers(compiler: str, folder: Path) -> list[str]:
    """The sanitizer flags where their libraries are installed, else none."""
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }")
    command = [compiler, *SANITIZE, str(probe), "-o", str(folder / "probe")]
    built = subprocess.run(command, capture_output=True).returncode == 0
    return SANITIZE if built and subprocess.run([folder / "probe"], capture_output=True).returncode == 0 else []


PROGRAMS = ("cuda_bodies", "cuda_rzf", "cuda_paths", "cuda_matmul")


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, subprocess.CompletedProcess]:
    """Builds and runs each program once; about a minute and a half, half of it in the compiler."""
    folder, compiler = tmp_path_factory.mktemp("cuda_bodies"), _compiler()
    flags, done = [*PLAIN, *_sanitizers(compiler, folder)], {}
    for name in PROGRAMS:
        command = [compiler, *flags, ROOT / f"csrc/tests/{name}.cpp", "-o", folder / name]
        built = subprocess.run(command, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr[:4000]
        done[name] = subprocess.run([folder / name], capture_output=True, text=True)
    return done


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_phase_matches_plain_loops(reports, program):
    """Values within their rounding bounds, same bits in any thread order and for a split batch, no stray access."""
    report = reports[program]
    assert report.returncode == 0, report.stdout[-4000:] + report.stderr[:4000]
    errors = [float(v) for v in re.findall(r"worst error / bound (\S+)", report.stdout)]
    assert errors and max(errors) < 1


@pytest.mark.slow
def test_every_compiled_kernel_was_run(reports):
    """The names in the committed ptxas table are exactly the bodies that the host ran."""
    with (ROOT / "benchmarks/results/ptxas.csv").open() as file:
        compiled = {row["kernel"] for row in csv.DictReader(file)}
    run = {name for r in reports.values() for name in re.findall(r"^sf::cuda::(.+>): worst", r.stdout, re.M)}
    assert run == compiled
