"""Helpers of the tests: random operands, stated error bounds, and the record of worst errors printed at the end.

`conftest.py` puts this folder on the path, so a test writes ``from sf_testing import within``.
"""

import math

import torch
from torch import Tensor

UNIT = {torch.float32: 2.0**-24, torch.complex64: 2.0**-24, torch.float64: 2.0**-53, torch.complex128: 2.0**-53}
DTYPES = (torch.complex64, torch.complex128)
worst: dict[str, tuple[float, float, float]] = {}  # label -> (error/bound, error, bound) of the worst entry seen


def unit(t: Tensor | torch.dtype) -> float:
    """The unit roundoff of a dtype: half the distance from 1 to the next number."""
    return UNIT[t if isinstance(t, torch.dtype) else t.dtype]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    """Standard normals, CN(0, 1) for a complex dtype, drawn in double precision and rounded once."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, dtype=wide, generator=torch.Generator().manual_seed(seed)).to(dtype)


def wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same values in double precision."""
    return tuple(t.to(torch.complex128 if t.is_complex() else torch.float64) for t in tensors)


def dot_growth(n: int) -> float:
    """Error of a complex dot product of n terms, in unit roundoffs of sum |a_i||b_i|.

    Each part is a real dot product of 2n terms, so its error is at most gamma_2n times the sum of |products|; the two
    parts together give the square root of two. One more rounding covers a final subtraction or scaling.
    """
    return math.sqrt(2) * (2 * n + 1) + 1


def within(got: Tensor, want: Tensor, bound: Tensor | float, label: str) -> None:
    """Assert |got - want| <= bound entry by entry; remembers the worst error against its bound."""
    assert got.shape == want.shape, f"{label}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if not got.numel():
        return
    error = (wide(got.detach().resolve_conj())[0] - wide(want.detach().resolve_conj())[0]).abs()
    limit = torch.as_tensor(bound, dtype=torch.float64).detach().expand(error.shape)
    ratio = torch.where(error == 0, 0.0, error / limit)
    ratio = torch.where(ratio.isnan(), torch.inf, ratio)
    at = int(ratio.argmax())
    entry = (float(ratio.flatten()[at]), float(error.flatten()[at]), float(limit.flatten()[at]))
    worst[label] = max(worst.get(label, (-1.0, 0.0, 0.0)), entry)
    assert entry[0] <= 1, f"{label}: worst error {entry[1]:.3e} exceeds its bound {entry[2]:.3e}"


def same_bits(a: Tensor | None, b: Tensor | None, what: str = "") -> None:
    """Assert equality of every bit (and of NaN patterns), not merely of value."""
    if a is None or b is None:
        assert a is b, what
        return
    assert a.dtype is b.dtype and a.shape == b.shape, what
    raw = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (a, b)]
    ints = torch.int32 if raw[0].dtype is torch.float32 else torch.int64
    p, q = (t.contiguous().view(ints) for t in raw)
    assert torch.equal(p, q), f"{what}: {int((p != q).sum())} of {p.numel()} words differ"


def shadow_memory(*sizes: int) -> None:
    """Leave NaN in freed blocks of these many bytes, so that an output a kernel forgot to write shows as NaN."""
    for size in sizes:
        blocks = [torch.full((max(size // 8, 1),), math.nan, dtype=torch.float64) for _ in range(4)]
        del blocks


def block_bounds(
    y: Tensor, h: Tensor, x: Tensor, probe: Tensor | None = None, inputs_rounded: bool = False
) -> dict[str, Tensor]:
    """Entry-wise error bounds of likelihood_score with noise_var = 1, in unit roundoffs (multiply by `unit`).

    First-order propagation of the rounding of each product, with absolute values for every operand. `inputs_rounded`
    adds the half ulp by which each operand was rounded beforehand.
    """
    dtype = y.dtype
    y, h, x = (t.abs().double() for t in (y, h, x))
    extra = 2.0 if inputs_rounded else 0.0
    m, t, nr = h.shape[-4] * h.shape[-1], x.shape[-1], h.shape[-2]
    size_r = y + torch.matmul(h, x).sum(-4)
    err_r = (dot_growth(m) + extra) * size_r
    true_r, ru = size_r.unsqueeze(-4), err_r.unsqueeze(-4)
    grow_h, grow_x = dot_growth(t) + extra, dot_growth(nr) + extra
    # a sum of n doubles in eight partial sums: n/8 roundings, invisible in single precision
    summed = y.shape[-3:].numel() / 4 * 2.0**-53 / unit(dtype)
    bounds = {
        "score_h": torch.matmul(ru + grow_h * true_r, x.mT),
        "score_x": torch.matmul(h.mT, ru + grow_x * true_r),
        # d|R|^2 = 2 |R| |dR|; squares are summed in double, then rounded once
        "energy": (2 * size_r * err_r + (2 + summed) * size_r**2).sum((-3, -2, -1)),
        "residual": err_r,
    }
    if probe is not None:
        p = probe.abs().double()
        v = torch.matmul(h, p).sum(-4)
        summed_p = p.shape[-3:].numel() / 4 * 2.0**-53 / unit(dtype)
        bounds["probe_x"] = (2 + extra + summed_p) * (p**2).sum((-3, -2, -1))
        bounds["probe_y"] = ((2 * (dot_growth(m) + extra) + 2 + summed) * v**2).sum((-3, -2, -1))
    return bounds
