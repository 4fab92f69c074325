"""Error bounds, ill-conditioned and singular channels for the tests of RZF precoding and LMMSE equalisation."""

import torch
from sf_testing import dot_growth, draw, unit, wide
from torch import Tensor

DOUBLE = 2.0**-53
SWITCH = 1e-3  # complex64 is solved in float64 below this multiple of the Gram matrix' mean diagonal


def smaller_form(k: int, m: int) -> str:
    return "M" if m < k else "K"


def columns(level: float | Tensor, lead: torch.Size) -> Tensor:
    """A regulariser, aligned from the left, as [*lead,1,1] in float64."""
    t = torch.as_tensor(level, dtype=torch.float64)
    return t.reshape(t.shape + (1,) * (len(lead) - t.ndim)).expand(lead)[..., None, None]


def textbook(h: Tensor, s: Tensor, alpha: float | Tensor) -> Tensor:
    """h^H (h h^H + alpha I)^-1 s for s [...,K,T] in double precision.

    By the singular values of h, sum_i v_i sigma_i/(sigma_i^2 + alpha) u_i^H s: forming neither Gram matrix, it errs less
    than the K-form and the M-form do.
    """
    h, s = wide(h, s)
    lead = torch.broadcast_shapes(h.shape[:-2], s.shape[:-2])
    left, sigma, right = torch.linalg.svd(h, full_matrices=False)
    gain = sigma.unsqueeze(-1) / (sigma.unsqueeze(-1) ** 2 + columns(alpha, lead))
    return right.mH @ (gain * (left.mH @ s))


def inner_unit(h: Tensor, alpha: Tensor, dtype: torch.dtype, form: str) -> Tensor:
    """[...,1,1] unit roundoff of the arithmetic that is promised: float64 for complex64 with a small regulariser."""
    if dtype is torch.complex128:
        return torch.full_like(alpha, DOUBLE)
    mean = h.abs().square().sum((-2, -1), keepdim=True) / h.shape[-2 if form == "K" else -1]
    return torch.where(alpha < SWITCH * (1 - 1e-4) * mean, DOUBLE, unit(dtype))


def _norm(t: Tensor) -> Tensor:
    """Euclidean norm of each right-hand side, [...,1,T]."""
    return torch.linalg.vector_norm(t, dim=-2, keepdim=True)


def _parts(h: Tensor, s: Tensor, alpha: float | Tensor, dtype: torch.dtype, form: str) -> tuple[Tensor, ...]:
    h, s = wide(h, s)
    lead = torch.broadcast_shapes(h.shape[:-2], s.shape[:-2])
    h, reg = h.expand(*lead, *h.shape[-2:]), columns(alpha, lead)
    v = h if form == "K" else h.mH
    n, length = v.shape[-2:]
    a = v @ v.mH + reg * torch.eye(n, dtype=h.dtype)
    trace = a.diagonal(dim1=-2, dim2=-1).real.sum(-1)[..., None, None]
    # Gram rows are dot products of `length` terms; factor and two solves err by gamma_(3n+1) |L||L^H| (Higham 10.4);
    # both are at most their growth times the trace, in the Frobenius norm
    error = (dot_growth(length) + dot_growth(3 * n + 1)) * trace
    return h, s, v, torch.linalg.inv(a), error, inner_unit(h, reg, dtype, form)


def precode_bound(h: Tensor, s: Tensor, alpha: float | Tensor, dtype: torch.dtype, form: str) -> Tensor:
    """[...,1,T] bound of the entries of |x_computed - x|, to first order: A is perturbed by at most u * error.

    K-form: dx = -h^H A^-1 dA u + rounding of h^H u. M-form: dx = A^-1 (rounding of h^H s - dA x). Then one rounding
    of the result to its dtype. The double-precision definition that it is compared with may err as much.
    """
    h, s, _, inverse, error, u = _parts(h, s, alpha, dtype, form)
    size = torch.linalg.matrix_norm(h)[..., None, None]
    if form == "K":
        solved = inverse @ s
        x = h.mH @ solved
        spread = torch.linalg.matrix_norm(h.mH @ inverse, 2)[..., None, None]
        grown = spread * error * _norm(solved) + dot_growth(h.shape[-2]) * size * _norm(solved)
    else:
        x = inverse @ h.mH @ s
        spread = torch.linalg.matrix_norm(inverse, 2)[..., None, None]
        grown = spread * (error * _norm(x) + dot_growth(h.shape[-2]) * size * _norm(s))
    return (u + DOUBLE) * grown + unit(dtype) * _norm(x)


def vjp_bounds(
    h: Tensor, s: Tensor, g: Tensor, alpha: float | Tensor, dtype: torch.dtype, form: str
) -> dict[str, Tensor]:
    """Bounds of the gradients dh [...,1,1], ds [...,1,T], da [...] for a cotangent g [...,M,T], as in `precode_bound`.

    With p the narrow and q the wide right-hand side: u = A^-1 p, w = A^-1 V q, x = V^H u, r = q - V^H w,
    dV = u r^H - w x^H, da = -Re w^H u; every product adds its dot-product growth.
    """
    h, s, v, inverse, error, unit_in = _parts(h, s, alpha, dtype, form)
    g = wide(g)[0]
    n, length = v.shape[-2:]
    p, q = (s, g) if form == "K" else (g, s)
    u, w = inverse @ p, inverse @ v @ q
    x, r = v.mH @ u, q - v.mH @ w
    nu, nw, nx, nr, nq = (_norm(t) for t in (u, w, x, r, q))
    spread, size = torch.linalg.matrix_norm(inverse, 2)[..., None, None], torch.linalg.matrix_norm(v)[..., None, None]
    du = spread * error * nu
    dw = spread * (error * nw + dot_growth(length) * size * nq)
    dx = size * du + dot_growth(n) * size * nu
    dr = size * dw + dot_growth(n) * size * nw + nq
    streams = s.shape[-1]
    dv = (du * nr + nu * dr + dw * nx + nw * dx + dot_growth(2) * (nu * nr + nw * nx)).sum(-1, keepdim=True)
    # dh is accumulated over the streams in its own dtype
    summed = unit(dtype) * (streams + 1) * (nu * nr + nw * nx).sum(-1, keepdim=True)
    da = (dw * nu + nw * du + dot_growth(n) * nu * nw).sum((-2, -1))
    total = unit_in + DOUBLE
    ds, value = (dw, nw) if form == "K" else (dx, nx)
    return {
        "dh": total * dv + summed,
        "ds": total * ds + unit(dtype) * value,
        "da": total.squeeze(-1).squeeze(-1) * da + unit(dtype) * (nu * nw).sum((-2, -1)),
    }


def conditioned(batch: int, k: int, m: int, cond: float, seed: int = 0) -> Tensor:
    """[batch,k,m] complex128 with singular values from 2 down to 2/cond, evenly spread on a log scale."""
    n = min(k, m)
    left, right = torch.linalg.qr(draw(batch, k, n, seed=seed)).Q, torch.linalg.qr(draw(batch, m, n, seed=seed + 1)).Q
    return (left * torch.logspace(0, -torch.log10(torch.tensor(cond)).item(), n, dtype=torch.float64) * 2) @ right.mH


def singular(kind: str, h: Tensor, seed: int = 0) -> Tensor:
    """A copy of channels [B,K,M], K >= 2, all made singular in one way, by rounded arithmetic of their own dtype."""
    h = h.clone()
    batch, k, _ = h.shape
    generator = torch.Generator().manual_seed(seed)
    items = torch.arange(batch)
    order = torch.rand(batch, k, generator=generator).argsort(1)  # which users, at random
    i, j = order[:, 0], order[:, 1]
    if kind == "equal rows":
        h[items, i] = h[items, j]
    elif kind == "proportional rows":
        h[items, i] = h[items, j] * draw(batch, 1, seed=seed + 1, dtype=h.dtype)
    elif kind == "linear combination":
        others = h[items.unsqueeze(1), order[:, 1:]]
        h[items, i] = (draw(batch, k - 1, 1, seed=seed + 2, dtype=h.dtype) * others).sum(1)
    elif kind == "zero row":
        h[items, i] = 0
    elif kind == "all zero":
        h.zero_()
    elif kind in ("nan", "inf"):
        value = complex(float(kind), 0) if seed % 2 else complex(0, float(kind))
        h[items, i, j % h.shape[2]] = value
    else:
        raise KeyError(kind)
    return h


FINITE_KINDS = ("equal rows", "proportional rows", "linear combination", "zero row", "all zero")
KINDS = (*FINITE_KINDS, "nan", "inf")
