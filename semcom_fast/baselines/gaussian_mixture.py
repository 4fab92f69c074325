"""Channel estimates from a Gaussian or a mixture of Gaussians: LMMSE and the exact posterior mean of the mixture.

Vectors are row-major everywhere: h = H.flatten(), entry i Nt + j for receive antenna i and transmit antenna j; then
y = Y.flatten() = (I kron P^T) h + n.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .rls import check_pilot_link

_KEPT_FILTERS = 4  # one for each (pilots, noise_var): 8 MB in complex64 at 16x64 with 38 pilots
_BLOCK = 1024  # channels whose outer products are summed in the channels' own precision


class Moments(NamedTuple):
    """Mean [N] and covariance [N,N] of row-major channel vectors, complex128, and the shrinkage that was used."""

    mean: Tensor
    cov: Tensor
    shrinkage: float


def sample_moments(h: Tensor, shrinkage: float | None = None) -> Moments:
    r"""Mean and covariance of channels, the covariance shrunk towards a multiple of the identity.

    .. math:: C = (1 - \rho) S + \rho \frac{\mathrm{tr} S}{N} I

    with S the sample covariance (divided by the number of channels).

    Args:
        h: channels [n,Nr,Nt], complex.
        shrinkage: rho on [0, 1]. Default: 0 for n >= N = Nr Nt, else the estimate of Ledoit and Wolf of the value that
            minimises E|C - C_true|_F^2.

    Raises:
        ValueError: fewer than two channels, or rho outside [0, 1].

    Source: O. Ledoit and M. Wolf, "A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices", eq. (14).
    """
    if h.ndim != 3 or len(h) < 2 or not h.is_complex():
        raise ValueError(f"need at least two complex channels [n,Nr,Nt], got {tuple(h.shape)} of {h.dtype}")
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must lie on [0, 1], got {shrinkage}")
    x = h.flatten(1)
    count, size = x.shape
    mean = x.to(torch.complex128).mean(0)
    second = torch.zeros(size, size, dtype=torch.complex128, device=h.device)
    fourth = 0.0
    for block in x.split(_BLOCK):
        centred = block - mean.to(x.dtype)
        second += centred.mT @ centred.conj()
        fourth += float(centred.abs().double().square().sum(1).square().sum())
    cov = (second + second.mH) / (2 * count)
    scale = float(cov.diagonal().real.mean())
    if shrinkage is None:
        shrinkage = 0.0 if count >= size else _ledoit_wolf(cov, scale, fourth, count)
    cov *= 1 - shrinkage
    cov.diagonal().add_(shrinkage * scale)
    return Moments(mean, cov, shrinkage)


def _ledoit_wolf(cov: Tensor, scale: float, fourth: float, count: int) -> float:
    """min(1, sum |x x^H - S|^2/n^2 over |S - m I|^2); `fourth` is the sum of |x|^4."""
    energy = float(cov.abs().square().sum())
    spread = energy - scale**2 * len(cov)
    noise = (fourth / count - energy) / count
    return min(1.0, noise / spread) if spread > 0 else 1.0


def pooled_moments(parts: Sequence[Moments], weights: Sequence[float] | None = None) -> Moments:
    """Moments of the mixture of populations with these moments, in shares `weights` (default: equal)."""
    share = torch.tensor([1.0] * len(parts) if weights is None else list(weights), dtype=torch.float64)
    share = share / share.sum()
    mean = sum(float(w) * p.mean for w, p in zip(share, parts, strict=True))
    assert isinstance(mean, Tensor)
    cov = -torch.outer(mean, mean.conj())
    for w, p in zip(share, parts, strict=True):
        cov += float(w) * (p.cov + torch.outer(p.mean, p.mean.conj()))
    return Moments(mean, cov, 0.0)


class _Filter(NamedTuple):
    """What a Gaussian estimator keeps for a (pilots, noise_var), in the dtype of the received signal."""

    expected: Tensor  # A mu [M], M = Nr Np
    whitener: Tensor  # W^T [M,M], W = L^-1 with L L^H = A C A^H + noise_var I
    gain: Tensor  # (C A^H L^-H)^T [M,N]
    log_scale: float  # -log det(pi (A C A^H + noise_var I))


class GaussianEstimator:
    r"""LMMSE estimate of channels with known mean and covariance: the posterior mean for h ~ CN(mean, cov).

    .. math:: \hat h = \mu + C A^H (A C A^H + \sigma^2 I)^{-1} (y - A \mu), \qquad A = I \otimes P^T

    A is never built: P works on one index of C reshaped to [Nr,Nt,Nr,Nt]. The Cholesky factor and the gain are formed in
    float64 once for each (pilots, noise_var) and kept for the last four of them; then a batch costs two matrix products.

    Args:
        mean: [N] (or [Nr,Nt]), N = Nr Nt, row-major.
        cov: [N,N], Hermitian positive semi-definite.

    Raises:
        ValueError: shapes disagree or values are not finite.

    Source: "Mixture-of-Experts Diffusion Models for Adaptive Massive MIMO Channel Estimation via Variational Bayesian
    Inference", Section II (signal model); the Bayesian Gauss-Markov theorem.
    """

    def __init__(self, mean: Tensor, cov: Tensor) -> None:
        self.mean, self.cov = mean.flatten().to(torch.complex128), cov.to(torch.complex128)
        if self.cov.shape != (len(self.mean), len(self.mean)):
            raise ValueError(f"mean of {len(self.mean)} entries and cov {tuple(cov.shape)} disagree")
        if not bool(torch.isfinite(self.mean.abs()).all() and torch.isfinite(self.cov.abs()).all()):
            raise ValueError("mean and cov must be finite")
        self._filters: OrderedDict[tuple[object, ...], _Filter] = OrderedDict()

    @classmethod
    def of(cls, moments: Moments) -> "GaussianEstimator":
        return cls(moments.mean, moments.cov)

    def __call__(self, y: Tensor, pilots: Tensor, noise_var: float) -> Tensor:
        """Estimates [B,Nr,Nt] from y [B,Nr,Np] and pilots [Nt,Np]; noise_var > 0 is a number."""
        return self.estimate(y, pilots, noise_var)[0]

    def estimate(self, y: Tensor, pilots: Tensor, noise_var: float) -> tuple[Tensor, Tensor]:
        """Estimates [B,Nr,Nt], and log CN(y; A mean, A cov A^H + noise_var I) [B], float64."""
        check_pilot_link("GaussianEstimator", y, pilots)
        if pilots.ndim != 2:
            raise ValueError(f"GaussianEstimator takes the pilots [Nt,Np] of all channels, got {tuple(pilots.shape)}")
        if y.shape[1] * pilots.shape[0] != len(self.mean):
            raise ValueError(
                f"Nr = {y.shape[1]} and Nt = {pilots.shape[0]} do not make the {len(self.mean)} entries of the mean"
            )
        f = self._filter(pilots, float(noise_var), y.shape[1])
        white = (y.flatten(1) - f.expected) @ f.whitener
        h = self.mean.to(device=y.device, dtype=y.dtype) + white @ f.gain
        evidence = f.log_scale - white.abs().double().square().sum(1)
        return h.unflatten(1, (y.shape[1], pilots.shape[0])), evidence

    def _filter(self, pilots: Tensor, noise_var: float, nr: int) -> _Filter:
        if not (math.isfinite(noise_var) and noise_var > 0):
            raise ValueError(f"noise_var must be positive and finite, got {noise_var}")
        key = (noise_var, nr, pilots.dtype, pilots.device, pilots.cpu().resolve_conj().resolve_neg().numpy().tobytes())
        if key not in self._filters:
            while len(self._filters) >= _KEPT_FILTERS:
                self._filters.popitem(last=False)
            self._filters[key] = self._prepare(pilots, noise_var, nr)
        self._filters.move_to_end(key)
        return self._filters[key]

    def _prepare(self, pilots: Tensor, noise_var: float, nr: int) -> _Filter:
        nt, slots = pilots.shape
        p = pilots.to(device=self.cov.device, dtype=torch.complex128)
        cross = self.cov.reshape(-1, nt) @ p.conj()  # C A^H [N Nr, Np]
        seen = p.mT @ cross.reshape(nr, nt, nr * slots)  # A C A^H [Nr,Np,Nr Np]
        seen = seen.reshape(nr * slots, nr * slots)
        seen = (seen + seen.mH) / 2
        seen.diagonal().add_(noise_var)
        root, failed = torch.linalg.cholesky_ex(seen)
        if bool(failed):
            raise ValueError("cov is not positive semi-definite, or the pilots are not finite")
        whitener = torch.linalg.solve_triangular(
            root, torch.eye(len(seen), dtype=p.dtype, device=p.device), upper=False
        )
        gain = whitener.conj() @ cross.reshape(len(self.mean), nr * slots).mT
        log_scale = -len(seen) * math.log(math.pi) - 2 * float(root.diagonal().real.log().sum())
        expected = (self.mean.reshape(nr, nt) @ p).flatten()
        return _Filter(expected.to(pilots), whitener.mT.contiguous().to(pilots), gain.to(pilots), log_scale)


class GaussianMixtureEstimator:
    r"""The posterior mean for channels from a mixture of K Gaussians: MMSE for that prior, and its weights.

    .. math:: \hat h = \sum_k w_k \hat h_k, \qquad w_k \propto \pi_k\, CN(y; A\mu_k, A C_k A^H + \sigma^2 I)

    with the LMMSE estimates :math:`\hat h_k` of the components.

    Args:
        means: [K,N] or K of [N]; row-major, as for `GaussianEstimator`.
        covs: [K,N,N] or K of [N,N].
        log_weights: log pi [K], up to a constant; default: equal.

    Source: the closed form of the model of "Mixture-of-Experts Diffusion Models for Adaptive Massive MIMO Channel
    Estimation via Variational Bayesian Inference" when every expert is Gaussian.
    """

    def __init__(
        self, means: Sequence[Tensor] | Tensor, covs: Sequence[Tensor] | Tensor, log_weights: Tensor | None = None
    ) -> None:
        self.components = [GaussianEstimator(mean, cov) for mean, cov in zip(means, covs, strict=True)]
        if not self.components:
            raise ValueError("a mixture needs at least one component")
        self.log_weights = torch.zeros(len(self.components)) if log_weights is None else torch.as_tensor(log_weights)
        if self.log_weights.shape != (len(self.components),) or not bool(torch.isfinite(self.log_weights).all()):
            raise ValueError(f"log_weights must be {len(self.components)} finite numbers, got {log_weights}")

    @classmethod
    def of(cls, moments: Sequence[Moments]) -> "GaussianMixtureEstimator":
        return cls([m.mean for m in moments], [m.cov for m in moments])

    def __call__(self, y: Tensor, pilots: Tensor, noise_var: float) -> tuple[Tensor, Tensor]:
        """Estimates [B,Nr,Nt] and weights [B,K] from y [B,Nr,Np] and pilots [Nt,Np]; noise_var > 0 is a number."""
        parts = [component.estimate(y, pilots, noise_var) for component in self.components]
        evidence = torch.stack([part[1] for part in parts], 1) + self.log_weights.to(parts[0][1])
        weights = torch.softmax(evidence, 1).to(y.real.dtype)
        h = torch.einsum("bk,kbij->bij", weights.to(y.dtype), torch.stack([part[0] for part in parts]))
        return h, weights
