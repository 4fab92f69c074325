"""Other packages on the inputs of a row: `rivals_for(op, **size)` gives a callable each, or why it is missing.

Besides being called, a rival may have
- `prepare(*inputs)`: input sets are converted once, before the clock starts, and it is called with what this returns;
- `slow_start`: its first call compiles, so that a quick run leaves it out.
"""

from collections.abc import Callable
from typing import Any

import torch

from . import peers_compiled, peers_cupy, peers_mkl, peers_sionna, timing

Rivals = dict[str, Callable[..., Any] | str]


def _sionna(build: Callable[[], Callable]) -> Rivals:
    return {"sionna": build() if peers_sionna.installed() else peers_sionna.MISSING}


def _compact(formulation: Callable[[], peers_mkl.Formulation]) -> Rivals:
    """MKL has no place on a GPU row, nor on machines it is not made for."""
    if timing.device != "cpu":
        return {}
    if not peers_mkl.available():
        return {"mkl compact": peers_mkl.MISSING}
    return {
        "mkl compact": peers_mkl.compact(formulation()),
        "mkl compact packed": peers_mkl.Packed(formulation()),
    }


def _batch(fn: Callable) -> Rivals:
    return {"mkl batch": fn} if timing.device == "cpu" and peers_mkl.available() else {}


def _planes(fn: Callable, last: bool = False) -> Rivals:
    return {"compiled planes": peers_compiled.Planes(fn, last)}


def _cupy(formulation: Callable, posv: bool = False) -> Rivals:
    if timing.device == "cpu":
        return {}
    return {"cupy": peers_cupy.on_torch(formulation, posv) if peers_cupy.installed() else peers_cupy.MISSING}


def _mimo_matmul(**_size) -> Rivals:
    products = _compact(peers_mkl.mimo_matmul) | _batch(peers_mkl.batch)
    return products | _planes(peers_compiled.mimo_matmul) | _cupy(peers_cupy.mimo_matmul)


def _blockdiag_apply(u: int, **_size) -> Rivals:
    """MKL's products know one user; a sum over users is another pass."""
    own = _compact(peers_mkl.blockdiag_apply) | _batch(lambda h, x: peers_mkl.batch(h, x)[:, 0]) if u == 1 else {}
    return own | _planes(peers_compiled.blockdiag_apply) | _cupy(peers_cupy.blockdiag_apply)


def _blockdiag_adjoint(**_size) -> Rivals:
    return _planes(peers_compiled.blockdiag_adjoint) | _cupy(peers_cupy.blockdiag_adjoint)


def _likelihood_score(**_size) -> Rivals:
    return _planes(peers_compiled.likelihood_score) | _cupy(peers_cupy.likelihood_score)


def _rzf_precode(k: int, alpha: float, t: int = 0, **_size) -> Rivals:
    """Sionna, and the unrolled planes, take one vector a channel."""
    own = _compact(lambda: peers_mkl.rzf_precode(alpha))
    if t == 0:
        own |= _sionna(lambda: peers_sionna.rzf_precode(alpha))
        if k <= 4:
            own |= _planes(peers_compiled.rzf_precode(alpha), last=True)
    return own | _cupy(peers_cupy.rzf_precode(alpha), posv=t == 0)


def _rzf_matrix(alpha: float, **_size) -> Rivals:
    own = _sionna(lambda: peers_sionna.rzf_matrix(alpha)) | _compact(lambda: peers_mkl.rzf_matrix(alpha))
    return own | _cupy(peers_cupy.rzf_matrix(alpha))


def _lmmse_equalise(nr: int, nt: int, noise_var: float, dtype: torch.dtype = torch.complex64, **_size) -> Rivals:
    own = _sionna(lambda: peers_sionna.lmmse_equalise(nr, noise_var, dtype))
    own |= _compact(lambda: peers_mkl.lmmse_equalise(noise_var))
    if nt <= 4:
        own |= _planes(peers_compiled.lmmse_equalise(noise_var), last=True)
    return own | _cupy(peers_cupy.lmmse_equalise(noise_var))


def _pvd_update(levels: dict[str, float], **_size) -> Rivals:
    return _planes(peers_compiled.pvd_update(levels))


def _waterfill_step(levels: tuple[float, float], fast: bool, guidance: float = 2.0, **_size) -> Rivals:
    return _planes(peers_compiled.waterfill_step(levels, guidance, fast))


_BUILDERS: dict[str, Callable[..., Rivals]] = {
    "mimo_matmul": _mimo_matmul,
    "blockdiag_apply": _blockdiag_apply,
    "blockdiag_adjoint": _blockdiag_adjoint,
    "likelihood_score": _likelihood_score,
    "rzf_precode": _rzf_precode,
    "rzf_matrix": _rzf_matrix,
    "lmmse_equalise": _lmmse_equalise,
    "pvd_update": _pvd_update,
    "waterfill_step": _waterfill_step,
    "cir_to_ofdm": lambda **_size: _sionna(peers_sionna.cir_to_ofdm),
    "cdl_draw": lambda **size: _sionna(lambda: peers_sionna.cdl_draw(**size)),
}


def rivals_for(op: str, **size: Any) -> Rivals:
    """Every other package that computes `op`; `size` holds the row's sizes, dtype and levels by their usual names."""
    return _BUILDERS[op](**size) if op in _BUILDERS else {}
