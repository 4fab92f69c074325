"""The table of checks that GPU tests run for every op, with the Triton kernels in the interpreter: the cheap ones."""

import gpu_checks
import pytest
import torch
from gpu_checks import INTERPRETED, OPS
from gpu_table import TABLE

NAMES = [name for name in TABLE if "triton" in OPS[name].homes]
QUICK = ("power_normalise", "pvd_calibrate", "waterfill_equalise")  # the others take seconds each when interpreted

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="python_tests/cuda runs these on the device itself"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter computes discarded lanes
]


@pytest.mark.parametrize("name", NAMES)
def test_empty_batches(name):
    """No item: results of the right shapes, and no launch."""
    gpu_checks.empty_batches(name, torch.complex64, INTERPRETED)


@pytest.mark.parametrize("name", ["waterfill_step_authors", "philox_normal", *QUICK])
def test_against_float64(name):
    gpu_checks.against_float64(name, torch.complex64, INTERPRETED)


@pytest.mark.parametrize("name", NAMES)
def test_strides(name):
    gpu_checks.strides(name, torch.complex64, INTERPRETED)
