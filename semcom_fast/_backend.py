"""Which kernel runs: the native one of the tensor's device unless a caller or the environment says otherwise."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from contextvars import ContextVar

import torch

from . import _native
from .errors import BackendUnavailable

BACKENDS = ("cpu", "cuda", "triton", "reference")
_forced: ContextVar[str | None] = ContextVar("semcom_fast_backend", default=None)
_warned: set[tuple[str, str]] = set()


def _known(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")
    return name


_from_env = os.environ.get("SEMCOM_FAST_BACKEND")


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force a backend inside a `with` block: "cpu", "cuda", "triton" or "reference" (the plain torch definitions).

    An op raises :class:`BackendUnavailable` when the forced backend cannot run it on the tensors it is given. The
    environment variable SEMCOM_FAST_BACKEND does the same for a whole process.
    """
    token = _forced.set(_known(name))
    try:
        yield
    finally:
        _forced.reset(token)


def _why_unusable(name: str, op: str, homes: tuple[str, ...], device: torch.device) -> str | None:
    """None when backend `name` can run `op` on `device`, else what is missing and how to get it."""
    if name not in homes:
        return f"{op} has no {name} kernel (it has: {', '.join(homes)}, reference)"
    if name == "cpu":
        if device.type != "cpu":
            return f"the cpu backend was asked for but the tensors of {op} are on {device}"
        return None
    if device.type != "cuda":
        return f"the {name} backend was asked for but the tensors of {op} are on {device}; move them to a CUDA device"
    if name == "cuda" and not _native.cuda_built():
        return "semcom_fast was built without CUDA kernels; install nvcc and reinstall with SEMCOM_CUDA=ON"
    if name == "cuda" and not _native.cuda_usable():
        return "the CUDA kernels were built but their runtime sees no usable device (driver too old or absent?)"
    if name == "cuda" and device.index is not None and not _native.cuda_runs_on(device.index):
        return f"the CUDA kernels were built for {_native.core.cuda_archs} and {device} is another architecture"
    if name == "triton" and _native.triton_version() is None:
        return "triton is not installed: pip install -c constraints.txt 'semcom-fast[triton]'"
    return None


def forced() -> str | None:
    """What `use_backend` asks for here: the context of this thread, which others do not see."""
    return _forced.get()


def unforced() -> bool:
    """No caller and no environment variable asks for a backend: the tensor's device decides."""
    return _forced.get() is None and not _from_env


def select(op: str, homes: tuple[str, ...], device: torch.device) -> str:
    """The backend that runs `op` on `device`; `homes` lists the backends the op has kernels for."""
    name = _forced.get() or (_known(_from_env) if _from_env else None)
    if name is None:
        if device.type == "cpu" and "cpu" in homes:
            return "cpu"
        reasons = []
        for home in homes:
            if home != "cpu":
                why = _why_unusable(home, op, homes, device)
                if why is None:
                    return home
                reasons.append(why)
        if (op, device.type) not in _warned:
            _warned.add((op, device.type))
            why = "; ".join(reasons) or f"no kernel for device {device}"
            warnings.warn(f"{op}: running the plain torch definition on {device} because {why}", stacklevel=3)
        return "reference"
    if name == "reference":
        return name
    why = _why_unusable(name, op, homes, device)
    if why is not None:
        raise BackendUnavailable(f"backend {name!r}: {why}")
    return name
