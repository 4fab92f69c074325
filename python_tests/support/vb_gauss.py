"""Gaussian channels as experts with closed forms, and the whole algorithm in NumPy, double precision.

A channel law is CN(mean, cov) of vec(H), stacked by rows. Scenarios imitate propagation: a few narrow clusters, rich
scattering, wide clusters with a floor, and a strong line of sight; all have mean power 1.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import vb_math as vb
from torch import Tensor


@dataclass
class Gaussian:
    """CN(mean, cov) of the stacked rows, with what diffusion makes of it."""

    mean: vb.Complex
    cov: vb.Complex

    @cached_property
    def eigen(self) -> tuple[vb.Real, vb.Complex]:
        values, vectors = np.linalg.eigh(self.cov)
        return np.clip(values, 0, None), vectors

    def draw(self, count: int, nr: int, rng: np.random.Generator) -> vb.Complex:
        values, vectors = self.eigen
        z = complex_normal(rng, count, len(values))
        return (self.mean + (z * np.sqrt(values)) @ vectors.T).reshape(count, nr, -1)

    def eps(self, h_t: vb.Complex, alpha_bar: float) -> vb.Complex:
        """sqrt(1-ab)(ab C + (1-ab) I)^-1 (h_t - sqrt(ab) mean): the best possible network."""
        values, vectors = self.eigen
        at = (h_t.reshape(len(h_t), -1) - np.sqrt(alpha_bar) * self.mean) @ vectors.conj()
        return ((at * np.sqrt(1 - alpha_bar) / (alpha_bar * values + 1 - alpha_bar)) @ vectors.T).reshape(h_t.shape)


class TorchExpert:
    """The same expert as a torch callable (h_t [B,Nr,Nt], t) -> eps, with a matrix per step."""

    def __init__(self, law: Gaussian, alpha_bar: vb.Real, dtype: torch.dtype = torch.complex64) -> None:
        values, vectors = law.eigen
        ab = alpha_bar[1:, None]
        gain = np.sqrt(1 - ab) / (ab * values + 1 - ab)
        filters = (vectors.conj() * gain[:, None]) @ vectors.T  # transposed: rows times filter
        shift = (np.sqrt(ab)[:, None] * law.mean @ filters)[:, 0]
        self.filters, self.shift = torch.from_numpy(filters).to(dtype), torch.from_numpy(shift).to(dtype)
        self.calls: list[tuple[int, int]] = []

    def __call__(self, h_t: Tensor, t: int) -> Tensor:
        self.calls.append((len(h_t), int(t)))
        return (h_t.flatten(1) @ self.filters[t - 1] - self.shift[t - 1]).reshape(h_t.shape)


def complex_normal(rng: np.random.Generator, *shape: int) -> vb.Complex:
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) * np.sqrt(0.5)


def steering(angle: vb.Real, n: int) -> vb.Complex:
    """exp(j pi i sin(angle)) of half-wavelength arrays: [rays, n]."""
    return np.exp(1j * np.pi * np.sin(angle)[:, None] * np.arange(n))


def clusters(rng, nr, nt, count, spread, decay) -> vb.Complex:
    """Covariance of `count` clusters of 20 rays with exponentially decaying power and angular spread in radians."""
    cov = np.zeros((nr * nt, nr * nt), dtype=np.complex128)
    power = np.exp(-decay * np.arange(count))
    for share in power / power.sum():
        rx, tx = (centre + spread * rng.standard_normal(20) for centre in rng.uniform(-np.pi / 2, np.pi / 2, 2))
        rays = (steering(rx, nr)[:, :, None] * steering(tx, nt)[:, None, :]).reshape(20, -1)
        cov += share / 20 * rays.T @ rays.conj()
    return cov


def scenario(seed: int, nr: int = 4, nt: int = 16) -> list[Gaussian]:
    """Four laws of mean power 1: narrow clusters, rich scattering, wide clusters, line of sight (85 % of the power)."""
    rng = np.random.default_rng(seed)
    n = nr * nt
    floor = np.eye(n)
    covs = [
        clusters(rng, nr, nt, 3, 0.08, 0.5) * 0.999 + 0.001 * floor,
        clusters(rng, nr, nt, 30, 0.8, 0.0),
        clusters(rng, nr, nt, 8, 0.3, 0.2) * 0.999 + 0.001 * floor,
        0.15 * clusters(rng, nr, nt, 3, 0.1, 0.5),
    ]
    sight = (steering(rng.uniform(-1, 1, 1), nr)[0][:, None] * steering(rng.uniform(-1, 1, 1), nt)[0]).reshape(-1)
    means = [np.zeros(n, dtype=np.complex128)] * 3 + [np.sqrt(0.85) * sight]
    return [Gaussian(m, c) for m, c in zip(means, covs, strict=True)]


def similar(law: Gaussian, ratio: float = 0.03, count: int = 4) -> list[Gaussian]:
    """Laws that differ in power by a few percent: nobody can tell them apart for sure."""
    return [Gaussian(law.mean, law.cov * (1 + ratio * k)) for k in range(count)]


def golden_experts() -> list[Gaussian]:
    """The four experts of the golden file, whose vec stacks columns, reordered to rows (4 x 16)."""
    g = vb.golden()
    order = np.arange(64).reshape(16, 4).T.reshape(-1)  # place of entry (i, j) in the stack of columns
    return [Gaussian(m[order], c[np.ix_(order, order)]) for m, c in zip(g["expert_mean"], g["expert_cov"], strict=True)]


def qpsk(rng: np.random.Generator, *shape: int) -> vb.Complex:
    return (rng.choice([-1, 1], shape) + 1j * rng.choice([-1, 1], shape)) / np.sqrt(2)


def mixture_mmse(laws: list[Gaussian], y: vb.Complex, p: vb.Complex, noise_var: float) -> tuple[vb.Complex, vb.Real]:
    """The exact posterior mean under equal prior weights, and the posterior weights [B,K]."""
    flat, a = y.reshape(len(y), -1), np.kron(np.eye(y.shape[1]), p.T)
    means, logs = [], []
    for law in laws:
        cov_y = a @ law.cov @ a.conj().T + noise_var * np.eye(len(a))
        e = flat - law.mean @ a.T
        solved = np.linalg.solve(cov_y, e.T).T
        logs.append(-np.einsum("bi,bi->b", e.conj(), solved).real - np.linalg.slogdet(cov_y)[1])
        means.append(law.mean + solved @ (law.cov @ a.conj().T).T)
    weights = vb.softmax(np.stack(logs, -1))
    return np.einsum("bk,kbi->bi", weights, np.stack(means)).reshape(len(y), y.shape[1], -1), weights


def nmse(got: vb.Complex, h: vb.Complex) -> vb.Real:
    """|got - h|^2/|h|^2 per channel."""
    return (np.abs(got - h) ** 2).sum((-2, -1)) / (np.abs(h) ** 2).sum((-2, -1))


def decibel(x: vb.Real) -> float:
    return float(10 * np.log10(np.mean(x)))


@dataclass
class Plan:
    """The algorithm's options; the defaults are the recommended mode."""

    steps: int = 100
    elbo_steps: tuple[int, ...] = tuple(range(30, 101, 10))
    lik: str = "auto"
    lam: float | None = None  # None: clip(2^(SNR/10), 1, 4)
    init: str = "per_expert"
    iterations: int = 5
    tolerance: float = 1e-6
    gamma0: float = 1.0
    eta: float = 1.0
    prune: float = 0.0
    first: float = vb.BETA_1
    last: float = vb.BETA_T

    @cached_property
    def tables(self) -> tuple[vb.Real, vb.Real]:
        return vb.schedule(self.steps, self.first, self.last)


def chain(laws, rho, y, p, noise_var, start, plan, lik, lam) -> vb.Complex:
    """T steps from `start` with fixed responsibilities [B,K]."""
    beta, alpha_bar = plan.tables
    h = start
    for t in range(plan.steps, 0, -1):
        eps = np.stack([law.eps(h, alpha_bar[t]) for law in laws], 1)
        h = vb.posterior_step(h, eps, rho, y, p, noise_var, alpha_bar[t], beta[t], lam, lik)
    return h


def terms(laws, h, y, p, noise_var, noise, plan) -> tuple[vb.Real, vb.Real]:
    """L and D [B,K] of an estimate; noise [B,S,Nr,Nt]. D without the part of Y that no channel explains."""
    beta, alpha_bar = plan.tables
    steps = list(plan.elbo_steps)
    noisy = vb.renoise(h, alpha_bar[steps], noise)
    eps = np.stack([np.stack([law.eps(noisy[:, i], alpha_bar[t]) for law in laws], 1) for i, t in enumerate(steps)], 1)
    w = vb.elbo_weights(beta, alpha_bar)[steps]
    L, D = vb.elbo(eps, h, alpha_bar[steps], w, noise, y, p, noise_var, int(np.argmin(steps)))
    return L, D + vb.outside_rows(y, p)[:, None] / noise_var


def estimate(laws, y, p, noise_var, start, noise, plan) -> tuple[vb.Complex, vb.Real, vb.Real, vb.Real]:
    """(H, rho, log evidence, iterations [B]) row by row: every channel stops on its own."""
    rows = [_one(laws, y[b : b + 1], p, noise_var, start[b : b + 1], noise[b : b + 1], plan) for b in range(len(y))]
    return tuple(np.concatenate(part) for part in zip(*rows, strict=True))


def _first_pass(laws, y, p, noise_var, start, noise, plan):
    """A chain per expert, with the residual at H_t and lam = 1, each scored by its own evidence: ends, L, D."""
    ends, L, D = [], np.zeros((1, len(laws))), np.zeros((1, len(laws)))
    for k in range(len(laws)):
        ends.append(chain(laws, np.eye(len(laws))[k : k + 1], y, p, noise_var, start, plan, "dmps", 1.0))
        own = terms(laws[k : k + 1], ends[k], y, p, noise_var, noise, plan)
        L[:, k], D[:, k] = own[0][:, 0], own[1][:, 0]
    return ends, L, D


def _one(laws, y, p, noise_var, start, noise, plan):
    snr = 10 * np.log10(p.shape[-2] / noise_var)
    lik = plan.lik if plan.lik != "auto" else ("x0" if snr >= 0 else "dmps")
    lam = plan.lam if plan.lam is not None else float(np.clip(2 ** (snr / 10), 1, 4))
    count = len(laws)
    gamma0 = np.full((1, count), plan.gamma0)
    rho, gamma, used = np.full((1, count), 1 / count), gamma0, 0
    if plan.init == "per_expert":
        ends, L, D = _first_pass(laws, y, p, noise_var, start, noise, plan)
        rho, gamma = vb.responsibilities(L, D, gamma0, gamma, plan.eta)
        h, used = ends[int(rho.argmax())], 1
    while used < plan.iterations:
        kept = np.where(rho < plan.prune, 0, rho)
        h = chain(laws, kept / kept.sum(), y, p, noise_var, start, plan, lik, lam)
        used += 1
        before = rho
        L, D = terms(laws, h, y, p, noise_var, noise, plan)
        rho, gamma = vb.responsibilities(L, D, gamma0, gamma, plan.eta)
        if np.abs(rho - before).max() < plan.tolerance:
            break
    return h, rho, L + plan.eta * D, np.array([used])
