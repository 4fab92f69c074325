"""The Triton kernels run on a GPU where there is one, else in Triton's interpreter, in a pytest process of their own.

    TRITON_INTERPRET=1 pytest python_tests/triton
"""

import importlib.util
import os
import sys

import pytest
import torch

HAVE_TRITON = importlib.util.find_spec("triton") is not None
HAVE_GPU = torch.cuda.is_available()
if not HAVE_GPU and "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # has no effect once triton is imported


def _missing() -> str | None:
    if not HAVE_TRITON:
        return "triton is not installed: pip install 'semcom-fast[triton]'"
    import triton

    if not HAVE_GPU and not triton.knobs.runtime.interpret:
        return "no GPU, and triton was imported without TRITON_INTERPRET=1: run these tests in their own process"
    return None


WHY_NOT = _missing()
collect_ignore_glob = [] if WHY_NOT is None else ["test_*.py"]


def pytest_report_header() -> str | None:
    return None if WHY_NOT is None else f"python_tests/triton skipped: {WHY_NOT}"


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if HAVE_GPU else "cpu")


@pytest.fixture
def interpreted() -> None:
    if HAVE_GPU:
        pytest.skip("replaces arithmetic of the interpreter; on a GPU the kernels are compiled")
