"""The compiled module `_core`, or a clear reason why it is not there.

torch is imported first: `_core` runs its loops on torch's own thread pool, which it looks up among loaded libraries.
"""

import functools
import importlib
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .errors import BackendUnavailable


def _load() -> tuple[Any, str]:
    try:
        return importlib.import_module("semcom_fast._core"), ""
    except ImportError as err:
        return None, str(err)


core, _why_not = _load()


def require_core() -> Any:
    """The compiled module; raises BackendUnavailable with the way to build it when it is missing."""
    if core is not None:
        return core
    source = (Path(__file__).parent.parent / "CMakeLists.txt").exists()
    where = "this source tree has no compiled extension" if source else "the compiled extension is missing"
    raise BackendUnavailable(
        f"semcom_fast: {where} ({_why_not}). Build it with: pip install -c constraints.txt -e . "
        "(needs a C++17 compiler), or run the plain torch definitions with sf.use_backend('reference')."
    )


@functools.cache
def kernel(name: str) -> Callable[..., Any]:
    """An entry of the compiled module, looked up once."""
    return getattr(require_core(), name)


def stream_of(device: torch.device) -> tuple[int, int]:
    """A CUDA device's index and the handle of torch's current stream on it: the last arguments of every launch."""
    return device.index, torch._C._cuda_getCurrentRawStream(device.index)


def cuda_built() -> bool:
    """True when the extension holds CUDA kernels."""
    return core is not None and bool(core.cuda_built)


def cuda_usable() -> bool:
    """True when CUDA kernels were built and both torch and the extension's own runtime see a device."""
    return cuda_built() and torch.cuda.is_available() and core.cuda_device_count() > 0


@functools.cache
def cuda_runs_on(index: int) -> bool:
    """True when the extension holds machine code for this device, or code that its driver can compile for it."""
    return cuda_usable() and bool(core.cuda_runs_on(index))


@functools.cache
def triton_version() -> str | None:
    """The installed Triton's version without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def info() -> dict[str, str]:
    """What a bug report needs: versions, CPU level, threads, what was built and what loaded."""
    from . import __version__

    lines = {
        "semcom_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version() or "not installed",
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
        "backend forced by environment": os.environ.get("SEMCOM_FAST_BACKEND", "no"),
    }
    if core is None:
        lines["extension"] = f"not built ({_why_not})"
        return lines
    lines["extension"] = "loaded"
    lines["compiler"] = core.compiler
    lines["cpu levels built"] = " ".join(core.isa_built())
    lines["cpu level running"] = core.isa()
    lines["thread pool"] = "torch" if core.has_torch_pool() else "none (serial)"
    lines["cuda kernels"] = (
        f"built for {core.cuda_archs}" if core.cuda_built else "not built (no nvcc, or SEMCOM_CUDA=OFF)"
    )
    lines["cuda device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return lines
