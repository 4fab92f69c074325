"""Every registered op on a device, one table of checks for all: python_tests/support/gpu_table.py and gpu_checks.py.

The same bodies run on the CPU's kernels, where they show their own mistakes and that each op has its line in the table.
"""

import gpu_checks
import pytest
import torch
from gpu_checks import OPS
from gpu_places import Place
from gpu_table import TABLE
from op_samples import public_calls
from sf_testing import DTYPES, within

import semcom_fast as sf
from semcom_fast import reference
from semcom_fast._native import cuda_built, cuda_usable, triton_version

MISSING = {
    "cuda": "the extension was built without CUDA kernels" if not cuda_built() else "its runtime sees no CUDA device",
    "triton": "triton is not installed",
}
USABLE = {"cuda": cuda_usable(), "triton": torch.cuda.is_available() and triton_version() is not None}
GPU = pytest.mark.skipif(not all(USABLE.values()), reason="needs a CUDA device, the CUDA kernels and triton")


def _on_gpu(name: str, backend: str, *more: object):
    """One case on a device, marked; skipped with the reason."""
    why = "torch sees no CUDA device" if not torch.cuda.is_available() else MISSING[backend]
    marks = [pytest.mark.gpu, pytest.mark.skipif(not USABLE[backend], reason=why)]
    return pytest.param(
        name, Place("cuda:0", backend), *more, marks=marks, id="-".join(map(str, (name, backend, *more)))
    )


ON_GPU = [(name, home) for name in TABLE for home in OPS[name].homes if home != "cpu"]
EVERYWHERE = [pytest.param(n, Place("cpu", "cpu"), torch.complex64, id=f"{n}-cpu") for n in TABLE]
EVERYWHERE += [_on_gpu(n, home, dtype) for n, home in ON_GPU for dtype in DTYPES]
everywhere = pytest.mark.parametrize("name, place, dtype", EVERYWHERE)
on_gpu = pytest.mark.parametrize("name, place, dtype", [_on_gpu(n, home, torch.complex64) for n, home in ON_GPU])


def test_every_registered_op_has_a_gpu_sample():
    """A new op needs a line in gpu_table.py, and a kernel for CUDA devices."""
    assert set(TABLE) == set(OPS)
    assert {name for name, _ in ON_GPU} == set(OPS)


@everywhere
def test_against_float64(name, place, dtype):
    gpu_checks.against_float64(name, dtype, place)


@everywhere
def test_gradients(name, place, dtype):
    gpu_checks.gradients(name, dtype, place)


@pytest.mark.parametrize(
    "name, place", [pytest.param("pvd_update", Place("cpu", "cpu"), id="cpu"), *(_on_gpu(*pair) for pair in ON_GPU)]
)
def test_numerical_gradients(name, place):
    gpu_checks.numerical_gradients(name, place)


@everywhere
def test_strides(name, place, dtype):
    gpu_checks.strides(name, dtype, place)


@everywhere
def test_runs_and_cut_batches_give_the_same_bits(name, place, dtype):
    gpu_checks.splits(name, dtype, place)


@everywhere
def test_empty_batches(name, place, dtype):
    gpu_checks.empty_batches(name, dtype, place)


@everywhere
def test_without_waiting(name, place, dtype):
    gpu_checks.without_waiting(name, dtype, place)


@pytest.mark.parametrize("name", TABLE)
def test_no_value_is_read(name):
    """What would make the host wait on a GPU, seen in the operations torch is asked for."""
    gpu_checks.reads_nothing(name, torch.complex64)


@everywhere
def test_graph_capture(name, place, dtype):
    gpu_checks.graph_capture(name, dtype, place)


@everywhere
def test_side_stream(name, place, dtype):
    gpu_checks.side_stream(name, dtype, place)


@everywhere
def test_spoilt_items(name, place, dtype):
    gpu_checks.spoilt_items(name, dtype, place)


@pytest.mark.parametrize("name", TABLE)
def test_end_of_a_large_batch(name):
    """The body of the test below, on a batch that fits a CPU's cache."""
    gpu_checks.large_batch(name, torch.complex64, Place("cpu", "cpu"), 2000)


@pytest.mark.slow
@on_gpu
def test_past_32_bit_offsets(name, place, dtype):
    """More than 2^31 elements in the largest operand or result: offsets do not wrap, the last items keep their bits."""
    elements = 2**31 + 4096
    need = gpu_checks.large_bytes(name, dtype, place.backend, elements)[1]
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(0)[0]
    if free < need:
        pytest.skip(f"needs {need / 2**30:.0f} GiB of device memory, {free / 2**30:.0f} GiB are free")
    try:
        gpu_checks.large_batch(name, dtype, place, elements)
    finally:
        torch.cuda.empty_cache()


@on_gpu
def test_second_device(name, place, dtype):
    """Tensors on cuda:1 while the current device is 0, and the other way round; the current device stays."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    other = place._replace(device="cuda:1")
    gpu_checks.on_another_device(name, dtype, place, other)
    assert torch.cuda.current_device() == 0
    with torch.cuda.device(1):
        gpu_checks.on_another_device(name, dtype, other, place)
        assert torch.cuda.current_device() == 1


BOTH = [name for name in TABLE if {"cuda", "triton"} <= set(OPS[name].homes)]


@pytest.mark.parametrize("name, place, dtype", [_on_gpu(n, "cuda", dtype) for n in BOTH for dtype in DTYPES])
def test_cuda_and_triton_agree(name, place, dtype):
    """Where an op has both kinds of kernels, each is within the table's bound of the other."""
    for args in gpu_checks.samples(name, dtype, place):
        both = [gpu_checks.call(name, args, place._replace(backend=b)) for b in ("cuda", "triton")]
        for i, (a, b) in enumerate(zip(*both, strict=True)):
            gpu_checks.close(a, b.cpu(), TABLE[name], dtype, f"cuda and triton {name}[{i}]")


@pytest.mark.parametrize("name", public_calls("cpu"))
@pytest.mark.parametrize(
    "device, elsewhere", [("cpu", "meta"), pytest.param("cuda:0", "cpu", marks=[pytest.mark.gpu, GPU])]
)
def test_mixed_devices_are_refused(name, device, elsewhere):
    """One operand elsewhere is an error before anything is launched."""
    fn, given = public_calls(device)[name]
    fn(**given)
    for key, t in given.items():
        if key != "v":  # of the decomposition: no op reads it
            with pytest.raises((ValueError, TypeError), match=r"\bon (meta|cpu|cuda)"):
                fn(**(given | {key: t.to(elsewhere)}))


@pytest.mark.parametrize(
    "place", [Place("cpu", "cpu"), pytest.param(Place("cuda:0", "triton"), marks=[pytest.mark.gpu, GPU])], ids=str
)
def test_words_and_normals(place):
    """Element by element those of the definition, for keys and counters of every kind; float64 fixes the words."""
    for seed, step, stream, first in ((0, 0, 0, 0), (2**63 + 5, 7, 16, 3), (-1, 2**32 - 1, 8, 2**31)):
        kind = {"seed": seed, "step": step, "stream": stream, "first_item": first}
        want = reference.philox_normal((3, 1031), **kind, dtype=torch.float64)
        for dtype, bound in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
            with sf.use_backend(place.backend):
                got = sf.philox_normal((3, 1031), **kind, dtype=dtype, device=place.device)
            within(got.cpu(), want, bound, f"{place.backend} normals {str(dtype)[6:]}")
