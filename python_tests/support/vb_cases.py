"""Operands of the kernels of the expert mixture, and what their results may be off by."""

from types import SimpleNamespace

import numpy as np
import torch
import vb_math as vb
from sf_testing import DTYPES, dot_growth, draw, unit
from torch import Tensor

import semcom_fast as sf

NORMAL = {
    torch.complex64: 2e-6,
    torch.complex128: 2e-14,
}  # |kernel normal - reference normal|, the contract of the draws
FACTORS = 64  # roundoffs of float64 per unit of the largest singular value that LAPACK's SVD may be off by
__all__ = ["DTYPES", "FACTORS", "NORMAL"]


def pilots(nt: int, np_: int, *batch: int, dtype: torch.dtype = torch.complex128, seed: int = 3) -> Tensor:
    """QPSK pilots of unit modulus."""
    gen = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (*batch, nt, np_, 2), generator=gen).double() * 2 - 1
    return (torch.view_as_complex(signs) * 0.5**0.5).to(dtype)


def weights(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 5) -> Tensor:
    """Responsibilities: rows of a simplex, one of them one-hot."""
    w = torch.softmax(3 * draw(*shape, seed=seed, dtype=torch.float64), -1)
    if len(shape) > 1 and shape[0] > 1:
        w[1] = torch.eye(shape[-1], dtype=torch.float64)[shape[-1] // 2]
    return w.to(dtype)


def state(
    batch: int = 3, nr: int = 4, nt: int = 6, np_: int = 5, experts: int = 3, *, dtype=torch.complex128, shared=True,
    seed: int = 0,
) -> SimpleNamespace:  # fmt: skip
    """h, eps, w, y, p, svd, yv of a posterior step; the pilots are one for the batch or one per channel."""
    p = pilots(nt, np_, *(() if shared else (batch,)), dtype=dtype, seed=seed + 3)
    y = draw(batch, nr, np_, seed=seed + 2, dtype=dtype) * nt**0.5
    svd = sf.pilot_svd(p)
    return SimpleNamespace(
        h=draw(batch, nr, nt, seed=seed, dtype=dtype), eps=draw(batch, experts, nr, nt, seed=seed + 1, dtype=dtype),
        w=weights(batch, experts, dtype=dtype.to_real(), seed=seed + 5), y=y, p=p, svd=svd, yv=svd.project(y),
    )  # fmt: skip


def numpy(*tensors: Tensor) -> list[np.ndarray]:
    """The same values in double precision."""
    return [
        t.detach().resolve_conj().to(torch.complex128 if t.is_complex() else torch.float64).numpy() for t in tensors
    ]


def level(value) -> np.ndarray:
    return value.double().numpy() if isinstance(value, Tensor) else np.float64(value)


def call(c: SimpleNamespace, noise_var, alpha_bar, beta, lam=1.0, lik="dmps") -> Tensor:
    return sf.pilot_posterior_step(
        c.h, c.eps, c.w, c.yv, c.svd, noise_var=noise_var, alpha_bar=alpha_bar, beta=beta, lam=lam, lik=lik
    )


def expected(c: SimpleNamespace, noise_var, alpha_bar, beta, lam=1.0, lik="dmps") -> tuple[Tensor, Tensor]:
    """NumPy's step from the rounded factors, and its bound: roundings of each sum times the size of what is added.

    Likelihood terms pass through the mix (E products), the product with U (Nt), the gain, the product with U^H (r), and
    the last sum; two roundings per level and factor formed in float64.
    """
    args = numpy(c.h, c.eps, c.w, c.yv, c.svd.u, c.svd.s)
    got, prior, pull = vb.posterior_step_svd(*args, *(level(v) for v in (noise_var, alpha_bar, beta, lam)), lik)
    experts, (nt, r) = c.eps.shape[-3], c.svd.u.shape[-2:]
    growth = experts + 8 + dot_growth(nt) + dot_growth(r)
    wide = 2 if c.h.dtype is torch.complex128 else 1  # NumPy rounds as well
    bound = wide * unit(c.h) * ((experts + 8) * prior + growth * pull)
    return torch.from_numpy(got), torch.from_numpy(bound)


def elbo_state(batch=2, steps=3, experts=3, nr=4, nt=6, np_=5, *, dtype=torch.complex128, shared=True, seed=0):
    """Operands of elbo_reduce: eps [B,S,E,Nr,Nt], h, noise [B,S,Nr,Nt], pilots and what was received."""
    c = state(batch, nr, nt, np_, experts, dtype=dtype, shared=shared, seed=seed)
    c.eps = draw(batch, steps, experts, nr, nt, seed=seed + 11, dtype=dtype)
    c.noise = draw(batch, steps, nr, nt, seed=seed + 12, dtype=dtype)
    beta, c.alpha_bar = vb.schedule(100)
    c.steps = list(range(30, 101, 10))[:steps]
    c.table = torch.from_numpy(c.alpha_bar)
    c.weights = torch.from_numpy(vb.elbo_weights(beta, c.alpha_bar))
    return c


def elbo_expected(c: SimpleNamespace, noise_var, at: int, drawn: Tensor | None = None, off: float = 0.0):
    """NumPy's L and D with the rows of Y that no pilot sees dropped, and their bounds; `off` is the draws' own error.

    |a|^2 errs by 2 |a| times the error of a; the squares are summed in float64, whose roundings are counted too.
    """
    n = (c.noise if drawn is None else drawn).to(torch.complex128).numpy()
    eps, h, yv, u, s = numpy(c.eps, c.h, c.yv, c.svd.u, c.svd.s)
    bar, w, var = c.alpha_bar[c.steps], c.weights.numpy()[c.steps], level(noise_var)
    tilt = u * s[..., None, :]  # U S acts like pilots on the projected Y
    L, D = vb.elbo(eps, h, bar, w, n, yv, tilt, var, at)
    e = unit(c.h) * (2 if c.h.dtype is torch.complex128 else 1)
    count = eps[0, :, 0].size * 2.0**-52
    miss = np.abs(n)[:, :, None] + np.abs(eps)
    size = (2 * miss * (e * miss + off) + (2 * e + count) * miss**2).sum((-2, -1))
    bound_l = np.einsum("s,bse->be", w, size) + 2 * e * np.abs(L)
    ratio = np.sqrt((1 - bar[at]) / bar[at])
    tilde = np.abs(h)[:, None] + ratio * miss[:, at]
    across = np.abs(u)[..., None, :, :] if u.ndim == 3 else np.abs(u)
    values = s[..., None, None, :] if s.ndim == 2 else s
    rest = np.abs(yv)[:, None] + (tilde @ across) * values
    error = e * (dot_growth(c.h.shape[-1]) + 6) * rest + ratio * off * (np.ones_like(tilde) @ across) * values
    bound_d = (2 * rest * error + (4 * e + count) * rest**2).sum((-2, -1)) / vb.cast(var, 2)
    return [torch.from_numpy(v) for v in (L, D, bound_l, bound_d)]


def views(t: Tensor):
    """The same values with other strides, offsets and lazy bits."""
    yield torch.stack([t, t * 3], -1)[..., 0]
    yield torch.cat([t.new_zeros(1), t.reshape(-1)])[1:].view(t.shape)
    yield torch._neg_view(-t)
    if t.ndim > 1:
        yield t.mT.contiguous().mT
        yield torch.cat([t, t], 0)[: len(t)]
    if t.is_complex():
        yield t.conj().resolve_conj().conj()
        yield torch._neg_view(-t.conj().resolve_conj()).conj()
    else:
        yield torch.complex(torch.zeros_like(t), -t).conj().imag
