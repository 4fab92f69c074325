"""Rows of philox_normal; also the measured nanoseconds per normal that other rows use as a floor."""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import timing
from .cases import Case
from .rivals import rivals_for


def ns_per_normal() -> float:
    """One thread, output small enough for the cache, so that arithmetic and not memory is timed; a whole GPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        n = 1 << 15 if timing.device == "cpu" else 1 << 24
        draw = {"normals": lambda i: sf.philox_normal((1, n), seed=i, device=timing.device)}
        t = timing.interleave(draw, rounds=31)["normals"].median
    finally:
        torch.set_num_threads(threads)
    return t / n * 1e9


def _error() -> float:
    got = sf.philox_normal((4, 100003), seed=7, step=2, stream=3, device=timing.device).cpu()
    want = reference.philox_normal((4, 100003), seed=7, step=2, stream=3, dtype=torch.float64)
    return float((got - want).abs().max())


def cases(quick: bool) -> list[Case]:
    """Against torch.randn's Mersenne Twister, which cannot be split or replayed."""
    sizes = [(16, 1 << 12)] if quick else [(16, 1 << 12), (64, 1 << 18)]
    return [
        Case(
            "philox_normal",
            f"{shape}",
            lambda i, shape=shape: (shape,),
            lambda shape: sf.philox_normal(shape, seed=1, device=timing.device),
            {"randn": lambda shape: torch.randn(shape, device=timing.device)},
            lambda shape: reference.philox_normal(shape, seed=1),
            _error,
            2e-6,
            4 * shape[0] * shape[1],
            normals=shape[0] * shape[1],
            rivals=rivals_for("philox_normal", shape=shape),
            dtype="float32",
        )
        for shape in sizes
    ]
