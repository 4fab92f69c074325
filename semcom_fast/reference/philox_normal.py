"""Reference twin of :func:`semcom_fast.philox_normal`: Philox4x32-10 and Box-Muller in int64 and float64."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _mul_hi_lo(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    p = a * b  # wraps modulo 2^64, which keeps all the bits
    return (p >> 32) & _MASK, p & _MASK


def philox_words(counter: Sequence[Tensor | int], key: tuple[int, int]) -> list[Tensor]:
    """Four 32-bit output words (as int64) of Philox4x32-10 for a counter of four words and a key of two."""
    words = [v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.int64, device="cpu") for v in counter]
    c = list(torch.broadcast_tensors(*[w & _MASK for w in words]))
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = _mul_hi_lo(c[0], _MULTIPLIERS[0])
        hi1, lo1 = _mul_hi_lo(c[2], _MULTIPLIERS[1])
        c = [hi1 ^ c[1] ^ k0, lo1, hi0 ^ c[3] ^ k1, lo0]
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c


def _box_muller(words: list[Tensor]) -> Tensor:
    u = [((w >> 8).double() + 0.5) * 2.0**-24 for w in words]
    lanes = []
    for a, b in ((u[0], u[1]), (u[2], u[3])):
        radius, angle = (-2 * a.log()).sqrt(), 2 * math.pi * b
        lanes += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(lanes, -1)


def philox_normal(
    shape: Sequence[int],
    *,
    seed: int | Tensor,
    step: int | Tensor = 0,
    stream: int = 0,
    first_item: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normals (CN(0,1) for a complex dtype); item = first_item + index on axis 0, see docs/conventions.md."""
    shape = tuple(shape)
    items = shape[0] if shape else 1
    reals = math.prod(shape[1:]) * (2 if dtype.is_complex else 1)
    quads = (reals + 3) // 4
    item = torch.arange(first_item, first_item + items, device="cpu").unsqueeze(-1)
    seed = int(seed)
    words = philox_words(
        (torch.arange(quads, device="cpu").unsqueeze(0), int(step), item, stream), (seed & _MASK, (seed >> 32) & _MASK)
    )
    flat = _box_muller(words).reshape(items, 4 * quads)[:, :reals]
    if dtype.is_complex:
        flat = torch.view_as_complex((flat * math.sqrt(0.5)).reshape(items, reals // 2, 2).contiguous())
    return flat.reshape(shape).to(device=device, dtype=dtype)
