"""The CUDA kernels' own phases, run thread by thread on the host: see csrc/tests/cuda_bodies.cpp for the bounds."""

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


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> subprocess.CompletedProcess:
    """Builds and runs the program once; about 20 seconds, most of them in the compiler."""
    folder, compiler = tmp_path_factory.mktemp("cuda_bodies"), _compiler()
    program, source = folder / "cuda_bodies", ROOT / "csrc/tests/cuda_bodies.cpp"
    command = [compiler, *PLAIN, *_sanitizers(compiler, folder), source, "-o", program]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[:4000]
    return subprocess.run([program], capture_output=True, text=True)


@pytest.mark.slow
def test_every_phase_matches_plain_loops(report):
    """Values within their rounding bounds, same bits in any thread order and for a split batch, no stray access."""
    assert report.returncode == 0, report.stdout[-4000:] + report.stderr[:4000]
    errors = [float(v) for v in re.findall(r"worst error / bound ([0-9.]+)", report.stdout)]
    assert errors and max(errors) < 1


@pytest.mark.slow
def test_every_compiled_kernel_was_run(report):
    """The names in the committed ptxas table are exactly the bodies that the host ran."""
    with (ROOT / "benchmarks/results/ptxas.csv").open() as file:
        compiled = {row["kernel"] for row in csv.DictReader(file)}
    run = set(re.findall(r"^sf::cuda::(.+>): worst", report.stdout, re.M))
    assert run == compiled
