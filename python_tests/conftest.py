"""Shared fixtures: one thread per test, fresh golden values, and a summary of worst errors against their bounds."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's; before it is imported

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "support"))

import sf_testing  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    """Machines that test are shared; tests of threading set their own count."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """Exact inputs and outputs, computed by an independent program in double precision."""
    with np.load(HERE / "golden" / "pvd.npz") as file:
        return {k: torch.from_numpy(np.asarray(v)) for k, v in file.items() if v.dtype.kind in "fci"}


def pytest_sessionfinish(session):
    """A worker of pytest-xdist sends its errors home."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["worst"] = {k: tuple(map(float, v)) for k, v in sf_testing.worst.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    for label, found in getattr(node, "workeroutput", {}).get("worst", {}).items():
        sf_testing.worst[label] = max(sf_testing.worst.get(label, (0.0, 0.0, 0.0)), tuple(found))


def pytest_terminal_summary(terminalreporter, config):
    """The errors closest to their bounds; all of them with -v."""
    if not sf_testing.worst:
        return
    entries = sorted(sf_testing.worst.items(), key=lambda item: -item[1][0])
    shown = entries if config.option.verbose > 0 else entries[:12]
    terminalreporter.section("worst errors against their bounds")
    for label, (ratio, error, bound) in shown:
        terminalreporter.write_line(f"{label:<56} {error:9.2e} of {bound:9.2e}  ({100 * ratio:5.1f} %)")
    if len(shown) < len(entries):
        terminalreporter.write_line(f"... and {len(entries) - len(shown)} more below those; -v lists them")
