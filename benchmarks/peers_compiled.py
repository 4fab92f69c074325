"""The ops on real-decomposed tensors under torch.compile: what is left to a user who wants a compiler to fuse them.

Inductor generates no code for complex arithmetic, so the caller keeps real and imaginary planes. They are split before the
clock starts (`prepare`) and the results stay split; small systems have the batch last, so that the generated loops run
over contiguous lanes. Every formulation is compiled once per shape, at its first call (20 to 60 s of a C++ compiler).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Plane = tuple[Tensor, Tensor]  # real part, imaginary part
UNROLLED = 8  # sums up to this length are written out for the compiler to fuse; larger products are batched real ones


class Planes:
    """A formulation on planes: `prepare` splits an input set, calling compiles and runs, `plain` runs it uncompiled."""

    slow_start = True

    def __init__(self, fn: Callable, last: bool = False) -> None:
        self.plain, self.last = fn, last
        self.compiled: Callable | None = None

    def prepare(self, *inputs) -> tuple:
        """Complex tensors as pairs of contiguous planes, batch (their first dimension) last if asked."""
        return tuple(self._split(v) for v in inputs)

    def _split(self, v: Any) -> Any:
        if not isinstance(v, Tensor) or not v.is_complex():
            return v
        v = v.detach().movedim(0, -1) if self.last else v.detach()
        v = v.resolve_conj()
        return v.real.contiguous(), v.imag.contiguous()

    def __call__(self, *planes):
        if self.compiled is None:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 128)
            # torch's own generator: Inductor's draws one scalar at a time on a CPU
            options: dict[str, Any] = {"fallback_random": True}
            self.compiled = torch.compile(self.plain, fullgraph=True, dynamic=False, options=options)
        return self.compiled(*planes)


def _times(a: Plane, b: Plane) -> Plane:
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def _dot(left: list[Plane], right: list[Plane]) -> Plane:
    terms = [_times(a, b) for a, b in zip(left, right, strict=True)]
    return sum((t[0] for t in terms[1:]), terms[0][0]), sum((t[1] for t in terms[1:]), terms[0][1])


def _product(a: Plane, b: Plane) -> Plane:
    """[...,M,K] @ [...,K,N]."""
    (ar, ai), (br, bi) = a, b
    if ar.shape[-1] > UNROLLED and max(ar.shape[-2], br.shape[-1]) > UNROLLED:
        return ar @ br - ai @ bi, ar @ bi + ai @ br
    if ar.shape[-1] > UNROLLED:  # few long dot products
        cr, ci, dr, di = (v.unsqueeze(d) for v, d in ((ar, -2), (ai, -2), (br.mT, -3), (bi.mT, -3)))
        return (cr * dr - ci * di).sum(-1), (cr * di + ci * dr).sum(-1)
    entry = lambda k: ((ar[..., k, None], ai[..., k, None]), (br[..., k, None, :], bi[..., k, None, :]))  # noqa: E731
    pairs = [entry(k) for k in range(ar.shape[-1])]
    return _dot([p[0] for p in pairs], [p[1] for p in pairs])


def _adjoint(a: Plane) -> Plane:
    return a[0].mT, -a[1].mT


def mimo_matmul(a: Plane, b: Plane) -> Plane:
    return _product(a, b)


def blockdiag_apply(h: Plane, x: Plane) -> Plane:
    real, imag = _product(h, x)
    return real.sum(1), imag.sum(1)


def blockdiag_adjoint(h: Plane, y: Plane) -> Plane:
    return _product(_adjoint(h), (y[0].unsqueeze(1), y[1].unsqueeze(1)))


def likelihood_score(y: Plane, h: Plane, x: Plane) -> tuple[Plane, Plane, Tensor]:
    ar, ai = blockdiag_apply(h, x)
    r = y[0] - ar, y[1] - ai
    energy = (r[0].square() + r[1].square()).sum((1, 2, 3))
    wide = r[0].unsqueeze(1), r[1].unsqueeze(1)
    return _product(wide, _adjoint(x)), _product(_adjoint(h), wide), energy


# Small systems, batch last: entries [i, j, batch] are read as lists of complex numbers, pairs of real vectors.
def _conj(a: Plane) -> Plane:
    return a[0], -a[1]


def _minus(a: Plane, left: list[Plane], right: list[Plane]) -> Plane:
    if not left:
        return a
    dot = _dot(left, right)
    return a[0] - dot[0], a[1] - dot[1]


def _entries(a: Plane) -> list[list[Plane]]:
    return [[(a[0][i, j], a[1][i, j]) for j in range(a[0].shape[1])] for i in range(a[0].shape[0])]


def _cholesky(h: list[list[Plane]], alpha: float) -> tuple[list[list[Plane]], list[Tensor]]:
    """Rows of L with L L^H = h h^H + alpha I, and the inverse diagonal."""
    factor: list[list[Plane]] = []
    inverse: list[Tensor] = []
    for i, row in enumerate(h):
        done: list[Plane] = []
        for j in range(i):
            gram = _dot(row, [_conj(v) for v in h[j]])
            real, imag = _minus(gram, done, [_conj(v) for v in factor[j]])
            done.append((real * inverse[j], imag * inverse[j]))
        energy = torch.full_like(row[0][0], alpha)
        for v in row:
            energy = energy + (v[0].square() + v[1].square())
        for v in done:
            energy = energy - (v[0].square() + v[1].square())
        inverse.append(torch.rsqrt(energy))
        factor.append(done)
    return factor, inverse


def _solve(factor: list[list[Plane]], inverse: list[Tensor], b: list[Plane]) -> list[Plane]:
    """(L L^H)^-1 b."""
    n = len(b)
    u: list[Plane] = []
    for i in range(n):
        real, imag = _minus(b[i], factor[i], u)
        u.append((real * inverse[i], imag * inverse[i]))
    for i in reversed(range(n)):
        below = range(i + 1, n)
        real, imag = _minus(u[i], [_conj(factor[j][i]) for j in below], [u[j] for j in below])
        u[i] = real * inverse[i], imag * inverse[i]
    return u


def _stack(values: list[Plane]) -> Plane:
    return torch.stack([v[0] for v in values]), torch.stack([v[1] for v in values])


def _columns(h: list[list[Plane]]) -> list[list[Plane]]:
    return [[_conj(row[j]) for row in h] for j in range(len(h[0]))]


def rzf_precode(alpha: float) -> Callable:
    """h [K,M,batch], s [K,batch] -> x [M,batch]."""

    def run(h: Plane, s: Plane) -> Plane:
        rows = _entries(h)
        u = _solve(*_cholesky(rows, alpha), [(s[0][i], s[1][i]) for i in range(len(rows))])
        return _stack([_dot(column, u) for column in _columns(rows)])

    return run


def lmmse_equalise(noise_var: float) -> Callable:
    """y [Nr,batch], h [Nr,Nt,batch] -> (s [Nt,batch], noise_eff [Nt,batch])."""

    def run(y: Plane, h: Plane) -> tuple[Plane, Tensor]:
        columns = _columns(_entries(h))  # rows of h^H
        factor, inverse = _cholesky(columns, noise_var)
        z = _solve(factor, inverse, [_dot(row, [(y[0][i], y[1][i]) for i in range(len(row))]) for row in columns])
        gains: list[Tensor] = []
        for row in columns:
            column = [_conj(v) for v in row]
            weights = _solve(factor, inverse, [_dot(r, column) for r in columns])
            gains.append(weights[len(gains)][0])
        real, imag = _stack(z)
        gain = torch.stack(gains)
        return (real / gain, imag / gain), 1 / gain - 1

    return run


def pvd_update(levels: dict[str, float]) -> Callable:
    """Linear in every argument: real and imaginary planes alike."""
    sigma, above, zeta, score_var = levels["sigma"], levels["sigma_above"], levels["zeta"], levels["score_var"]
    delta = above**2 - sigma**2
    deviation = math.sqrt(sigma**2 * delta / above**2)

    def one(mean, anchor, sample, denoised, score):
        pull = (anchor - sample) + (delta / sigma**2) * (denoised - sample) + score * (delta / score_var)
        return mean + zeta * pull

    def run(*state):
        if isinstance(state[0], Tensor):
            mean = one(*state)
            return mean, mean + deviation * torch.randn_like(mean)
        real, imag = (one(*(v[part] for v in state)) for part in (0, 1))
        noise = [torch.randn_like(real) for _ in range(2)]
        scale = deviation * math.sqrt(0.5)
        return (real, imag), (real + scale * noise[0], imag + scale * noise[1])

    return run


def waterfill_step(levels: tuple[float, float], guidance: float, fast: bool) -> Callable:
    """The step of `peers.waterfill_where` (`waterfill_slow` without fading), for the compiler to fuse."""
    from . import peers

    step = peers.waterfill_where if fast else peers.waterfill_slow

    def run(g, x0, f, d, other):
        return step(g, x0, f, d, *levels, other, guidance)

    return run
