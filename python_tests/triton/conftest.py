"""The Triton kernels run on a GPU where there is one, else in Triton's interpreter, in a pytest process of their own.

TRITON_INTERPRET=1 pytest python_tests/triton
"""

import contextlib
import importlib.util
import os
import sys

import pytest
import torch

from semcom_fast import _backend

HAVE_GPU = torch.cuda.is_available()
if not HAVE_GPU and "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # has no effect once triton is imported


@pytest.fixture(autouse=True)
def _runnable() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: pip install 'semcom-fast[triton]'")
    import triton

    if not HAVE_GPU and not triton.knobs.runtime.interpret:
        pytest.skip("no GPU, and triton was imported without TRITON_INTERPRET=1: run these tests in their own process")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if HAVE_GPU else "cpu")


@pytest.fixture
def interpreter():
    """Triton's interpreter module, whose arithmetic a test may replace."""
    if HAVE_GPU:
        pytest.skip("on a GPU the kernels are compiled, not interpreted")
    from triton.runtime import interpreter

    return interpreter


@pytest.fixture
def triton_selected(monkeypatch):
    """A context in which public ops run their Triton kernels wherever the tensors are; those without one, `others`."""

    @contextlib.contextmanager
    def within(others: str = "reference"):
        with monkeypatch.context() as patch:
            patch.setattr(_backend, "unforced", lambda: False)  # or calls on the CPU take its kernels without asking
            patch.setattr(_backend, "select", lambda op, homes, device: "triton" if "triton" in homes else others)
            yield

    return within
