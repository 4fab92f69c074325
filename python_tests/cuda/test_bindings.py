"""The launches of the CUDA kernels as Python calls them, on a machine without a GPU: arguments as the extension wants
them get as far as the CUDA runtime's own error."""

import pytest
import torch
from op_samples import packet_samples

from semcom_fast import _native
from semcom_fast._native import cuda_built, cuda_usable
from semcom_fast.ops._register import OPS

pytestmark = [
    pytest.mark.skipif(not cuda_built(), reason="the extension was built without CUDA kernels"),
    pytest.mark.skipif(cuda_usable(), reason="a device would take the addresses of host memory for its own"),
]
NAMES = [name for name, op in OPS.items() if "cuda" in op.kernels]
ENTRIES = {"cuda_archs", "cuda_built", "cuda_device_count", "cuda_runs_on", "cuda_rzf_scratch"}


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_arguments_fit(name, dtype, monkeypatch):
    monkeypatch.setattr(_native, "stream_of", lambda device: (0, 0))
    launched = 0
    for args in packet_samples(dtype)[name]:
        try:
            OPS[name].kernels["cuda"](*args)  # a product that torch's GEMM takes succeeds
        except RuntimeError as error:
            assert "CUDA error" in str(error)
            launched += 1
    assert launched


def test_every_launch_is_tried():
    found = {name for name in dir(_native.core) if name.startswith("cuda_")} - ENTRIES
    assert found == {f"cuda_{name}" for name in NAMES}
