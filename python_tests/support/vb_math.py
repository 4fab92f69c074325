"""Channel estimation by a mixture of diffusion experts in NumPy, double precision; nothing here calls the package.

Y = H P + N with H [Nr,Nt], P [Nt,Np]; noise_var is E|n|^2 per complex entry, scores are d/d conj(H), step t runs from T
to 1, tables have T + 1 entries with beta_0 = 0, alpha_bar_0 = 1. vec(H) stacks rows: index i*Nt + j, y = kron(I, P^T) h.
"""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

Complex = NDArray[np.complex128]
Real = NDArray[np.float64]
BETA_1, BETA_T = 1 / (1 + 1e4), 0.1


def schedule(steps: int = 100, first: float = BETA_1, last: float = BETA_T) -> tuple[Real, Real]:
    """beta and alpha_bar [T+1] of the linear schedule."""
    beta = np.concatenate([[0.0], np.linspace(first, last, steps)])
    return beta, np.cumprod(1 - beta)


def elbo_weights(beta: Real, alpha_bar: Real) -> Real:
    """w_t = beta_t/(alpha_t (1 - alpha_bar_{t-1})), w_1 = 1/alpha_1 (the reconstruction term); entry 0 unused."""
    w = np.zeros_like(beta)
    w[1] = 1 / (1 - beta[1])
    w[2:] = beta[2:] / ((1 - beta[2:]) * (1 - alpha_bar[1:-1]))
    return w


def cast(value: ArrayLike, ndim: int) -> Real:
    """A number or [B] against [B, ...] of `ndim` dimensions."""
    a = np.asarray(value, dtype=np.float64)
    return a.reshape(a.shape + (1,) * (ndim - a.ndim))


def adjoint(a: Complex) -> Complex:
    return a.conj().swapaxes(-1, -2)


def score_direct(y: Complex, r: Complex, p: Complex, noise_var: ArrayLike, alpha_bar: ArrayLike) -> Complex:
    """(Y - R P)(noise_var I + (1-ab)/ab P^H P)^-1 P^H / sqrt(ab), by a solve of size Np."""
    ab, n = cast(alpha_bar, y.ndim), cast(noise_var, y.ndim)
    inner = n * np.eye(p.shape[-1]) + (1 - ab) / ab * (adjoint(p) @ p)
    return (
        np.linalg.solve(inner.swapaxes(-1, -2), (y - r @ p).swapaxes(-1, -2)).swapaxes(-1, -2)
        @ adjoint(p)
        / np.sqrt(ab)
    )


def score_kronecker(y: Complex, r: Complex, p: Complex, noise_var: float, alpha_bar: float) -> Complex:
    """The same for one channel with the matrix A = kron(I, P^T) of the stacked rows: A^H (...)^-1 (y - A r) / sqrt(ab)."""
    a = np.kron(np.eye(y.shape[-2]), p.T)
    inner = noise_var * np.eye(len(a)) + (1 - alpha_bar) / alpha_bar * (a @ a.conj().T)
    g = a.conj().T @ np.linalg.solve(inner, y.reshape(-1) - a @ r.reshape(-1))
    return g.reshape(r.shape) / np.sqrt(alpha_bar)


def score_svd(y: Complex, r: Complex, p: Complex, noise_var: float, alpha_bar: float) -> Complex:
    """The same in the basis of P = U diag(s) V^H."""
    u, s, vh = np.linalg.svd(p, full_matrices=False)
    gain = s / (noise_var + (1 - alpha_bar) / alpha_bar * s**2)
    return ((y @ vh.conj().T - r @ (u * s)) * gain) @ u.conj().T / np.sqrt(alpha_bar)


def log_likelihood(y: Complex, h_t: Complex, p: Complex, noise_var: float, alpha_bar: float) -> float:
    """log p(Y | H_t) up to a constant: rows of Y - H_t P/sqrt(ab) are CN(0, noise_var I + (1-ab)/ab P^H P)."""
    e = y - h_t @ p / np.sqrt(alpha_bar)
    inner = noise_var * np.eye(p.shape[1]) + (1 - alpha_bar) / alpha_bar * (p.conj().T @ p)
    return -float(np.einsum("ij,jk,ik->", e, np.linalg.inv(inner), e.conj()).real)


def mix(eps: Complex, weights: Real) -> Complex:
    """sum_e w_e eps_e: eps [...,E,Nr,Nt], weights [...,E]."""
    return np.einsum("...e,...eij->...ij", weights, eps)


def clean(h_t: Complex, mixed: Complex, ab: Real, lik: str) -> Complex:
    """The point R at which the residual is taken."""
    return (h_t - (np.sqrt(1 - ab) * mixed if lik == "x0" else 0)) / np.sqrt(ab)


def posterior_step(h_t, eps, weights, y, p, noise_var, alpha_bar, beta, lam=1.0, lik="dmps") -> Complex:
    """One step of (25): h_{t-1} = (h_t - beta/sqrt(1-ab) mix + lam beta g)/sqrt(1-beta)."""
    ab, b, scale = (cast(v, h_t.ndim) for v in (alpha_bar, beta, lam))
    mixed = mix(eps, weights)
    g = score_direct(y, clean(h_t, mixed, ab, lik), p, noise_var, alpha_bar)
    return (h_t - b / np.sqrt(1 - ab) * mixed + scale * b * g) / np.sqrt(1 - b)


def posterior_step_svd(h_t, eps, weights, yv, u, s, noise_var, alpha_bar, beta, lam=1.0, lik="dmps"):
    """The step from the factors as an op gets them, and the size of its terms: (h_{t-1}, prior terms, likelihood terms)."""
    ab, b, scale, n = (cast(v, h_t.ndim) for v in (alpha_bar, beta, lam, noise_var))
    s = s[..., None, :]
    gain = s / (n + (1 - ab) / ab * s**2)
    pull, push = b / np.sqrt(1 - ab), scale * b / np.sqrt(ab)
    mixed, size = mix(eps, weights), mix(np.abs(eps), np.abs(weights))
    r = clean(h_t, mixed, ab, lik)
    r_size = (np.abs(h_t) + (np.sqrt(1 - ab) * size if lik == "x0" else 0)) / np.sqrt(ab)
    step = ((yv - (r @ u) * s) * gain) @ adjoint(u)
    step_size = ((np.abs(yv) + (r_size @ np.abs(u)) * s) * gain) @ np.abs(u).swapaxes(-1, -2)
    alpha = np.sqrt(1 - b)
    prior = (np.abs(h_t) + pull * size) / alpha
    return (h_t - pull * mixed + push * step) / alpha, prior, np.abs(push) * step_size / alpha


def renoise(h: Complex, alpha_bar: ArrayLike, noise: Complex) -> Complex:
    """[B,S,Nr,Nt] from h [B,Nr,Nt], alpha_bar [S] of the steps and noise [B,S,Nr,Nt]."""
    ab = cast(alpha_bar, 3)
    return np.sqrt(ab) * h[:, None] + np.sqrt(1 - ab) * noise


def elbo(eps, h, alpha_bar, w, noise, y, p, noise_var, at) -> tuple[Real, Real]:
    """L and D [B,E] of (32)-(37), eps [B,S,E,Nr,Nt]; `at` is the place of tau among the steps; D of Y itself."""
    ab = np.asarray(alpha_bar)[at]
    total = -np.einsum("s,bseij->be", np.asarray(w), np.abs(noise[:, :, None] - eps) ** 2)
    tilde = h[:, None] + np.sqrt((1 - ab) / ab) * (noise[:, at, None] - eps[:, at])
    p = p[:, None] if p.ndim == 3 else p
    rest = (np.abs(y[:, None] - tilde @ p) ** 2).sum((-2, -1))
    return total, -rest / cast(noise_var, 2)


def outside_rows(y: Complex, p: Complex) -> Real:
    """|Y - Y V V^H|^2 [B]: the part of Y that no channel explains, the same for every expert."""
    _, s, vh = np.linalg.svd(p, full_matrices=False)
    keep = vh * (s > 1e-12 * s.max(-1, keepdims=True))[..., None]
    return (np.abs(y - y @ adjoint(keep) @ keep) ** 2).sum((-2, -1))


def digamma(x: ArrayLike) -> Real:
    """psi(x) for x > 0: recurrence up to 10, then the asymptotic series (error below 1e-16 there)."""
    x = np.array(x, dtype=np.float64)
    below = np.zeros_like(x)
    while (x < 10).any():
        below = below + np.where(x < 10, 1 / x, 0)
        x = np.where(x < 10, x + 1, x)
    i = 1 / x**2
    tail = i * (1 / 12 - i * (1 / 120 - i * (1 / 252 - i * (1 / 240 - i * (1 / 132 - i * (691 / 32760 - i / 12))))))
    return np.log(x) - 0.5 / x - tail - below


def softmax(x: Real) -> Real:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def responsibilities(L, D, gamma0, gamma=None, eta=1.0, shared=False) -> tuple[Real, Real]:
    """rho = softmax(L + psi(gamma) - psi(sum gamma) + eta D), gamma = gamma0 + rho, or + sum_b rho_b when shared."""
    gamma0 = np.broadcast_to(np.asarray(gamma0, dtype=np.float64), L.shape if np.ndim(gamma0) == 2 else L.shape[-1:])
    gamma = gamma0 if gamma is None else np.asarray(gamma)
    rho = softmax(L + digamma(gamma) - digamma(gamma.sum(-1, keepdims=True)) + eta * D)
    return rho, gamma0 + (rho.sum(0) if shared else rho)


def golden() -> dict[str, NDArray]:
    """Inputs and one step of an independent program in double precision."""
    with np.load(Path(__file__).parent.parent / "golden" / "dm_vb.npz") as file:
        return {k: file[k] for k in file.files if file[k].dtype.kind in "fic"}
