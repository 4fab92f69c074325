"""Water-filling written out once more in NumPy, double precision: schedule, steps, whole runs, exact predictors.

Nothing here calls the package. Levels and d are variances after unit-power normalisation; f = [Re | Im] halves.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[np.float64]
Predictor = Callable[[Array, Array], Array]
KAPPA = 3.0 / (2 * 0.7)  # e/(2 tau) of (17) with g = 0


def schedule(t: ArrayLike) -> Array:
    """S(t) of (17), e = 3, g = 0, tau = 0.7."""
    return np.tanh(KAPPA * np.asarray(t)) / np.tanh(KAPPA)


def schedule_time(level: ArrayLike) -> Array:
    return np.arctanh(np.asarray(level) * np.tanh(KAPPA)) / KAPPA


def span_levels(start: ArrayLike, steps: int) -> Array:
    """[steps+1, B]: beta_k = S(m(1-k/T)), the first one `start` itself, the last one 0."""
    start = np.atleast_1d(np.asarray(start, dtype=np.float64))
    m = schedule_time(start)
    table = np.stack([schedule(m * (1 - k / steps)) for k in range(steps + 1)])
    table[0], table[-1] = start, 0.0
    return table


def column(level: ArrayLike, ndim: int = 2) -> Array:
    """A number or [B] against a state [B, ...]."""
    a = np.asarray(level, dtype=np.float64)
    return a.reshape(a.shape + (1,) * (ndim - a.ndim))


def rounded(level: ArrayLike | Tensor, dtype: torch.dtype) -> Array:
    """The level as the ops see it: rounded once to the state's dtype."""
    return torch.as_tensor(level, dtype=torch.float64).to(dtype).double().numpy()


def per_real(d: Array, n: int) -> Array:
    return d if d.shape[-1] == n else np.concatenate([d, d], -1)


def equalise(y: NDArray, h: NDArray, noise_var: ArrayLike) -> tuple[Array, Array]:
    """w = h*/(|h| sqrt(|h|^2 + sigma^2)), sigma^2 = noise_var/2; phase 1 where h = 0."""
    y, h = np.broadcast_arrays(y, h)
    sigma2 = column(noise_var, y.ndim) / 2
    size = np.hypot(h.real, h.imag)
    phase = np.where(size > 0, h.conj() / np.where(size > 0, size, 1), 1)
    z = phase * y / np.sqrt(size**2 + sigma2)
    return np.concatenate([z.real, z.imag], -1), sigma2 / (size**2 + sigma2)


def inject(f: Array, d: Array, level: ArrayLike, noise: Array) -> Array:
    """(23): b = min(d, level) is brought to `level`; a copy where nothing is missing."""
    d, level = per_real(d, f.shape[-1]), column(level, f.ndim)
    short = d < level
    room = np.where(short, 1 - d, 1)
    r = np.where(short, (1 - level) / room, 1)
    q = np.where(short, (level - d) / room, 0)
    return np.sqrt(r) * f + np.sqrt(q) * noise


def ddim(beta_t: ArrayLike, beta_s: ArrayLike) -> tuple[Array, Array]:
    """A and B of g_s = A g_t + B x0; beta_t = 0 moves nothing."""
    t, s = np.asarray(beta_t, dtype=np.float64), np.asarray(beta_s, dtype=np.float64)
    a = np.sqrt(s / np.where(t > 0, t, 1))
    return np.where(t > 0, a, 1), np.where(t > 0, np.sqrt(1 - s) - a * np.sqrt(1 - t), 0)


def step(
    g: Array, x0: Array, f: Array, d: Array, beta_t: ArrayLike, beta_s: ArrayLike, noise: Array
) -> tuple[Array, Array]:
    """The one-array step, and which elements are active: d >= beta_s moves, the rest is injected afresh from f."""
    a, b = ddim(column(beta_t, g.ndim), column(beta_s, g.ndim))
    active = np.broadcast_to(per_real(d, g.shape[-1]) >= column(beta_s, g.ndim), g.shape)
    out = np.where(active, a * g + b * x0, inject(f, d, beta_s, noise))
    return np.where(column(beta_t, g.ndim) == 0, g, out), active


def step_authors(f, g, d, x0, beta_t, beta_s, noise, *, topup="amplitude", renorm=True, base="own"):
    """The published code's step with b = min(d, beta_t): masked update of f, then top-up to beta_s, then unit RMS."""
    t, s = column(beta_t, f.ndim), column(beta_s, f.ndim)
    own = np.minimum(per_real(d, f.shape[-1]), t)
    start, origin = (own, f) if base == "own" else (np.broadcast_to(t, own.shape), g)
    with np.errstate(divide="ignore", invalid="ignore"):
        a = np.sqrt(s / start)
        moved = a * origin + (np.sqrt(1 - s) - a * np.sqrt(1 - start)) * x0
    active = (own >= s) & (own > 0)
    f = np.where(active, moved, f)
    own = np.minimum(own, s)
    short = own < s
    room = np.where(short, 1 - own, 1)
    r = np.where(short, (1 - s) / room, 1)
    if topup == "amplitude":
        add = np.where(short, np.sqrt(s) - np.sqrt(r * own), 0)
    else:
        add = np.sqrt(np.where(short, (s - own) / room, 0))
    g = np.sqrt(r) * f + add * noise
    if renorm:
        g = g / np.sqrt((g**2).mean(tuple(range(1, g.ndim)), keepdims=True))
    return f, g


def algorithm2(f: Array, levels: Array, predict: Predictor) -> Array:
    for t, s in pairwise(levels):
        a, b = ddim(t, s)
        f = column(a) * f + column(b) * predict(f, t)
    return f


def algorithm3(f: Array, d: Array, levels: Array, noise: Array, predict: Predictor) -> Array:
    """Line by line with the state f, the levels b per element and a noise row per level; noise [T,B,N]."""
    b = per_real(d, f.shape[-1]).copy()
    for k, (t, s) in enumerate(pairwise(levels)):
        r = (1 - column(t)) / np.where(b < 1, 1 - b, 1)
        missing = np.maximum(column(t) - b, 0) / np.where(b < 1, 1 - b, 1)
        g = np.where(b >= column(t), f, np.sqrt(np.minimum(r, 1)) * f + np.sqrt(missing) * noise[k])
        x0 = predict(g, t)
        a, c = ddim(column(t), column(s))
        active = b >= column(s)
        f, b = np.where(active, a * g + c * x0, f), np.where(active, np.broadcast_to(column(s), b.shape), b)
    return f


class GaussianRows:
    """x0 = posterior mean of f0 ~ N(0, cov) in the eigenbasis, any level per row; NumPy and torch versions."""

    def __init__(self, cov: Array) -> None:
        self.cov = cov
        self.values, self.vectors = np.linalg.eigh(cov)

    def __call__(self, g: Array, level: Array) -> Array:
        level = np.broadcast_to(level, (len(g),))[:, None]
        weights = np.sqrt(1 - level) * self.values / ((1 - level) * self.values + level)
        return ((g @ self.vectors) * weights) @ self.vectors.T

    def torch(self, dtype: torch.dtype = torch.float64) -> Callable[[Tensor, Tensor], Tensor]:
        values, vectors = torch.from_numpy(self.values).to(dtype), torch.from_numpy(self.vectors).to(dtype)

        def predict(g: Tensor, level: Tensor) -> Tensor:
            flat, level = g.flatten(1), level.to(dtype).reshape(-1, 1)
            weights = (1 - level).sqrt() * values / ((1 - level) * values + level)
            return (((flat @ vectors) * weights) @ vectors.T).reshape(g.shape)

        return predict


def mixture_mean(g: Array, level: ArrayLike, centre: float = 0.9, spread: float = 0.43) -> Array:
    """E[f0 | g] for f0 ~ (N(-c, s^2) + N(c, s^2))/2 element by element, g = sqrt(1-level) f0 + sqrt(level) n."""
    level = column(level, np.ndim(g))
    c = np.sqrt(1 - level)
    var = c**2 * spread**2 + level
    means = [sign * centre + c * spread**2 / var * (g - c * sign * centre) for sign in (1, -1)]
    plus = 1 / (1 + np.exp(-2 * g * c * centre / var))  # the posterior weight of the positive component
    return plus * means[0] + (1 - plus) * means[1]


def ar1(n: int, rho: float = 0.9) -> Array:
    """Covariance rho^|i-j| of a unit-power AR(1) row."""
    index = np.arange(n)
    return rho ** np.abs(index[:, None] - index)


def golden() -> dict[str, Array]:
    """Inputs and whole runs of an independent program in double precision."""
    with np.load(Path(__file__).parent.parent / "golden" / "sgd_jscc.npz") as file:
        return {k: file[k] for k in file.files if file[k].dtype.kind in "fic"}
