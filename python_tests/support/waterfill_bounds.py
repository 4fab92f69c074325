"""States for the water-filling kernels, and what their results may be off by: unit roundoffs of what is added up."""

from types import SimpleNamespace

import torch
from torch import Tensor

from semcom_fast import reference

UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
NORMAL = {torch.float32: 2e-6, torch.float64: 2e-14}  # |kernel normal - reference normal|, the contract of the draws
DOUBLE = 2.0**-53
# Roundings on the longest path of a drawn element: difference, division, root, product, two sums, and two units each
# for the approximate division and root of a GPU. In float64 the reference rounds as much again.
GROWTH = {torch.float32: 12, torch.float64: 24}
HIGH, LOW = (0.9, 0.7, 0.5, 0.35, 0.2), (0.6, 0.3, 0.45, 0.05, 0.0)  # levels per item, none of them a float32


def make(batch: int, n: int, dtype=torch.float32, *, per="symbol", net=None, device="cpu", seed=0) -> SimpleNamespace:
    """g, x0, uncond, prev, f, noise [B,N], d of the kind asked for, and levels high, low, w, ratio [B] in float64.

    d holds zeros, the levels themselves as `dtype` has them, and their lower neighbours: where the mask turns.
    """
    gen = torch.Generator().manual_seed(seed)
    g, f, noise, prev = (torch.randn(batch, n, dtype=dtype, generator=gen) for _ in range(4))
    x0, uncond = (torch.randn(batch, n, dtype=dtype, generator=gen).to(net or dtype) for _ in range(2))
    high, low = (torch.tensor(v, dtype=torch.float64).repeat(-(-batch // 5))[:batch] for v in (HIGH, LOW))
    entries = {"symbol": n // 2, "real": n, "item": 1}[per]
    d = torch.rand(batch, entries, dtype=dtype, generator=gen)
    if entries >= 3:
        d[:, 0], d[:, 1] = 0, low.to(dtype)
        d[:, 2] = torch.nextafter(low.to(dtype), torch.zeros((), dtype=dtype))
    w = torch.linspace(-0.5, 3.0, batch, dtype=torch.float64)
    ratio = torch.linspace(0.8, -0.6, batch, dtype=torch.float64)
    made = dict(g=g, x0=x0, uncond=uncond, prev=prev, f=f, noise=noise, d=d, high=high, low=low, w=w, ratio=ratio)
    return SimpleNamespace(**{k: v.to(device) for k, v in made.items()})


def wide(t: Tensor) -> Tensor:
    return t.cpu().double()


def full(d: Tensor, n: int) -> Tensor:
    """d per real, in float64."""
    d = wide(d)
    return d.expand(-1, n) if d.shape[1] in (1, n) else torch.cat([d, d], 1)


def as_state(level: Tensor, dtype: torch.dtype) -> Tensor:
    """The level as the state's dtype rounds it, a column of float64."""
    return wide(level.to(dtype))[:, None]


def normals(c: SimpleNamespace, dtype: torch.dtype, drawn: dict) -> tuple[Tensor, float]:
    """(float64 normals of stream 6 or the given noise, what the kernel's may be off by)."""
    if drawn.get("noise") is not None:
        return wide(drawn["noise"]), 0.0
    shape = tuple(c.g.shape)
    return reference.philox_normal(shape, stream=6, dtype=torch.float64, **drawn), NORMAL[dtype]


def injection(c: SimpleNamespace, own: Tensor, low: Tensor, z: Tensor, off: float, dtype: torch.dtype) -> Tensor:
    """Bound of (23): relative in each coefficient, as both are formed without cancellation from rounded levels."""
    room = torch.where(own < low, 1 - own, 1)
    keep, add = ((1 - low) / room).sqrt(), ((low - own).clamp(min=0) / room).sqrt()
    return GROWTH[dtype] * UNIT[dtype] * (keep * wide(c.f).abs() + add * z.abs()) + add * off


def prediction(c: SimpleNamespace, guided: bool, second: bool) -> Tensor:
    """The sum of the magnitudes of what becomes the prediction."""
    x = wide(c.x0).abs()
    if guided:
        w = wide(c.w)[:, None]
        x = w.abs() * x + (1 - w).abs() * wide(c.uncond).abs()
    if second:
        half = 0.5 / wide(c.ratio)[:, None]
        x = (1 + half).abs() * x + half.abs() * wide(c.prev).abs()
    return x


def movement(origin: Tensor, x: Tensor, start: Tensor, low: Tensor, dtype: torch.dtype) -> Tensor:
    """Bound of A origin + B x: relative in A and B; the reference's B cancels, which costs units of float64."""
    start = torch.where(start > 0, start, 1.0)
    a = (low / start).sqrt()
    b = ((1 - low).sqrt() - a * (1 - start).clamp(min=0).sqrt()).abs()
    slack = 8 * DOUBLE * ((1 - low).sqrt() + a)
    return GROWTH[dtype] * UNIT[dtype] * (a * wide(origin).abs() + b * x) + slack * x


def within(got: Tensor, want: Tensor, bound: Tensor, what: str) -> None:
    assert got.shape == want.shape, what
    error = (wide(got) - want).abs()
    ratio = float((error / bound.clamp(min=1e-300)).max()) if error.numel() else 0.0
    print(f"{what}: worst error/bound {ratio:.3f}")
    assert ratio <= 1, what
