"""Triton kernels of the elementwise work that draws random numbers; imported by the ops on first use only."""

import time

import torch

from ..errors import BackendUnavailable

try:
    import triton as _triton  # noqa: F401
except ImportError as err:
    raise BackendUnavailable(
        "the Triton kernels need triton, which is not installed: pip install 'semcom-fast[triton]' (Linux)"
    ) from err


def warmup(dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> str:
    """Compile the kernels' usual variants for the current CUDA device, and say in one sentence what was done.

    Triton compiles a variant at its first launch and keeps it in its cache; compiling may not happen inside a graph
    capture, so call this (or run one step) first. Without a CUDA device nothing is done, and the sentence says so.
    """
    if not torch.cuda.is_available():
        return "nothing was compiled: torch sees no CUDA device (torch.cuda.is_available() is False)"
    from ._variants import calls

    device = torch.device("cuda", torch.cuda.current_device())
    begin, count = time.perf_counter(), 0
    for _, launch in calls(device, dtypes):
        launch()
        count += 1
    spent = time.perf_counter() - begin
    return f"{count} variants of the Triton kernels are ready for {torch.cuda.get_device_name(device)} ({spent:.1f} s)"
