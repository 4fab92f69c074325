"""Options of `pytest benchmarks/ --benchmark-only`; the plain test run collects python_tests alone."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package `benchmarks`, from any working directory

HAS_PLUGIN = importlib.util.find_spec("pytest_benchmark") is not None


def pytest_addoption(parser):
    """--quick and --stems; without pytest-benchmark its main switch is still known, so that a skip can say what to do."""
    group = parser.getgroup("semcom_fast benchmarks")
    group.addoption("--quick", action="store_true", help="small sizes (also SEMCOM_FAST_BENCH_QUICK=1)")
    group.addoption("--stems", default="", help="comma-separated ops (default: all)")
    if not HAS_PLUGIN:
        group.addoption("--benchmark-only", action="store_true", help="needs pytest-benchmark")


def is_quick(config) -> bool:
    """Whether the small sizes were asked for, by option or environment."""
    return config.getoption("--quick") or os.environ.get("SEMCOM_FAST_BENCH_QUICK", "0") not in ("", "0")


if not HAS_PLUGIN:

    @pytest.fixture
    def benchmark():
        """Stands in for the plugin's fixture, so that its absence is a skip and not an error."""
