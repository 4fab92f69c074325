"""CuPy's batched cuBLAS and cuSOLVER on torch's CUDA tensors, handed over without a copy, on torch's current stream.

`matmul` is cublas?gemmStridedBatched, `posv` cusolverDn?potrfBatched and ?potrsBatched (one right-hand side), `solve`
cublas?getrfBatched and ?getrsBatched. The formulations take the array module as an argument, so that NumPy can check them.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

MISSING = "cupy is not installed: pip install -c constraints.txt 'semcom-fast[cupy13]' (cupy12 for CUDA 12)"


def installed() -> bool:
    """Whether CuPy is there; it is imported at the first call."""
    return importlib.util.find_spec("cupy") is not None


def handed_over(xp: Any, v: torch.Tensor) -> Any:
    """The same memory as an array; a lazy conjugate is one that the array module makes."""
    return xp.from_dlpack(v.conj()).conj() if v.is_conj() else xp.from_dlpack(v)


def on_torch(formulation: Callable, posv: bool = False) -> Callable:
    """The formulation on torch tensors; `posv` picks the Cholesky solver over LU."""

    def run(*inputs):
        cupy = importlib.import_module("cupy")
        solve = importlib.import_module("cupyx.lapack").posv if posv else cupy.linalg.solve
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            out = formulation(cupy, solve, *(handed_over(cupy, v) for v in inputs))
        return tuple(map(torch.from_dlpack, out)) if isinstance(out, tuple) else torch.from_dlpack(out)

    return run


def _adjoint(a: Any) -> Any:
    return a.conj().swapaxes(-2, -1)


def mimo_matmul(xp: Any, _solve: Callable, a: Any, b: Any) -> Any:
    return xp.matmul(a, b)


def blockdiag_apply(xp: Any, _solve: Callable, h: Any, x: Any) -> Any:
    """[B,U,K,Nr,Nt] and [B,U,K,Nt,T]."""
    product = xp.matmul(h, x)
    return product[:, 0] if h.shape[1] == 1 else product.sum(1)


def blockdiag_adjoint(xp: Any, _solve: Callable, h: Any, y: Any) -> Any:
    return xp.matmul(_adjoint(h), y[:, None])


def likelihood_score(xp: Any, solve: Callable, y: Any, h: Any, x: Any) -> tuple:
    r = y - blockdiag_apply(xp, solve, h, x)
    energy = (r.real**2 + r.imag**2).sum((1, 2, 3))
    return xp.matmul(r[:, None], _adjoint(x)), xp.matmul(_adjoint(h), r[:, None]), energy


def _regularised(xp: Any, gram: Any, alpha: float) -> Any:
    return gram + gram.dtype.type(alpha) * xp.eye(gram.shape[-1], dtype=gram.dtype)


def rzf_precode(alpha: float) -> Callable:
    """h [n,K,M], s [n,K] or [n,T,K]."""

    def run(xp: Any, solve: Callable, h: Any, s: Any) -> Any:
        gram = _regularised(xp, xp.matmul(h, _adjoint(h)), alpha)
        columns = s[..., None] if s.ndim == 2 else xp.ascontiguousarray(s.swapaxes(-2, -1))
        x = xp.matmul(_adjoint(h), solve(gram, columns))
        return x[..., 0] if s.ndim == 2 else x.swapaxes(-2, -1)

    return run


def rzf_matrix(alpha: float) -> Callable:
    def run(xp: Any, solve: Callable, h: Any) -> Any:
        return _adjoint(solve(_regularised(xp, xp.matmul(h, _adjoint(h)), alpha), h))

    return run


def lmmse_equalise(noise_var: float) -> Callable:
    """y [n,Nr], h [n,Nr,Nt] -> (s, noise_eff)."""

    def run(xp: Any, solve: Callable, y: Any, h: Any) -> tuple:
        gain = solve(_regularised(xp, xp.matmul(_adjoint(h), h), noise_var), _adjoint(h))
        diagonal = xp.ascontiguousarray(xp.einsum("nij,nji->ni", gain, h).real)
        return xp.matmul(gain, y[..., None])[..., 0] / diagonal, 1 / diagonal - 1

    return run
