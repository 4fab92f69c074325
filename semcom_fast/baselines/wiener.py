"""Linear denoising of a latent with known second moments: the best a receiver can do without a learned network."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

_SOLVES_AT_ONCE = 8


def sample_moments(latents: "Float[Tensor, 'n *latent']") -> tuple["Float[Tensor, '*n']", "Float[Tensor, 'n n']"]:
    """Mean and covariance (divided by n) of flattened latents, in float64.

    Raises:
        ValueError: fewer than two latents.
    """
    if len(latents) < 2:
        raise ValueError(f"a covariance needs at least two latents, got {len(latents)}")
    size = latents[0].numel()
    total, square = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for block in latents.split(2048):
        x = block.flatten(1).double()
        total += x.sum(0)
        square += x.T @ x
    mean = total / len(latents)
    return mean, square / len(latents) - torch.outer(mean, mean)


class WienerDenoiser:
    r"""E[f_0 | f] for a Gaussian latent, whose elements came with noise levels of their own.

    Signal model: :math:`f = S f_0 + D^{1/2} n`, :math:`S = \mathrm{diag}\sqrt{1-d_i}`, :math:`D = \mathrm{diag}\, d_i`,
    n of unit variance, and f_0 of mean m and covariance C. Then

    .. math:: \hat f_0 = m + C S (S C S + D)^{-1} (f - S m),

    which is the conditional mean where f_0 is Gaussian, and the linear estimate of least mean squared error whatever its
    distribution. No sampler of a Gaussian model has a smaller error.

    With one level per image the solve is a shrinkage :math:`\sqrt{1-d}\,\lambda/((1-d)\lambda + d)` of the coefficients
    in C's eigenbasis (N^2 operations an image); with unequal levels every image needs a solve of its own (N^3/3). Both
    are done in float64 and rounded to the type of f.

    Args:
        covariance: C [N,N], symmetric, positive semi-definite up to rounding (smaller eigenvalues count as zero).
        mean: m [N]; None means zero.

    Raises:
        ValueError: shapes, an asymmetric covariance, or a clearly negative eigenvalue.
    """

    def __init__(self, covariance: "Float[Tensor, 'n n']", mean: "Float[Tensor, '*n'] | None" = None) -> None:
        c = covariance.detach().double()
        if c.ndim != 2 or c.shape[0] != c.shape[1] or not c.numel():
            raise ValueError(f"the covariance must be [N,N], got {tuple(c.shape)}")
        if mean is not None and tuple(mean.shape) != (len(c),):
            raise ValueError(f"the mean must be [{len(c)}], got {tuple(mean.shape)}")
        size = float(c.abs().max())
        if not torch.isfinite(c).all() or float((c - c.T).abs().max()) > 1e-6 * size:
            raise ValueError("the covariance must be finite and symmetric")
        values, self.basis = torch.linalg.eigh((c + c.T) / 2)
        if float(values.min()) < -1e-6 * size * len(c):
            raise ValueError(f"the covariance must not have negative eigenvalues, got {float(values.min()):g}")
        self.variances = values.clamp_min(0)
        self.covariance = (self.basis * self.variances) @ self.basis.T
        self.mean = torch.zeros_like(self.variances) if mean is None else mean.detach().double()

    @classmethod
    def fit(cls, latents: "Float[Tensor, 'n *latent']") -> "WienerDenoiser":
        """The denoiser of the sample mean and covariance of clean latents; many more than N of them should be given."""
        mean, covariance = sample_moments(latents)
        return cls(covariance, mean)

    def denoise(self, f: "Float[Tensor, 'B *latent']", d: "float | Float[Tensor, 'B *symbols']") -> Tensor:
        """Estimates like f.

        Args:
            f: equalised latents, N reals each.
            d: noise levels in [0,1]: a number, [B] or [B,1] for one per image, [B,N/2] where elements i and i + N/2
                share one, or [B,N].

        Raises:
            ValueError: shapes, or levels outside [0,1].
        """
        flat, count = f.flatten(1).double(), len(self.mean)
        if flat.shape[1] != count:
            raise ValueError(f"f must have {count} reals per image, got {tuple(f.shape)}")
        d = torch.as_tensor(d, dtype=torch.float64, device=flat.device)
        if not bool(((d >= 0) & (d <= 1)).all()):
            raise ValueError("noise levels must lie in [0, 1]")
        if d.ndim <= 1 or d.shape[1] == 1:
            if d.ndim and len(d) != len(flat):
                raise ValueError(f"d must be a number, [{len(flat)}] or [{len(flat)},1], got {tuple(d.shape)}")
            estimate = self._one_level(flat, d.reshape(-1, 1))
        else:
            if 2 * d.shape[1] == count:
                d = torch.cat([d, d], 1)
            if d.shape != flat.shape:
                raise ValueError(f"d must be [{len(flat)},{count}] or half as wide, got {tuple(d.shape)}")
            parts = zip(flat.split(_SOLVES_AT_ONCE), d.split(_SOLVES_AT_ONCE), strict=True)
            solved = [self._many_levels(part, levels) for part, levels in parts]
            estimate = torch.cat(solved) if solved else flat
        return estimate.reshape(f.shape).to(f.dtype)

    def error(self, d: float) -> float:
        """Mean squared error per real, E|f_0 - estimate|^2/N, at one level d for all elements."""
        v = self.variances
        return float(torch.where(v > 0, v * d / ((1 - d) * v + d), 0.0).mean())

    def _one_level(self, f: Tensor, d: Tensor) -> Tensor:
        signal, v = (1 - d).sqrt(), self.variances
        spread = (1 - d) * v + d
        shrink = torch.where(spread > 0, signal * v / spread, 0.0)
        return self.mean + (((f - signal * self.mean) @ self.basis) * shrink) @ self.basis.T

    def _many_levels(self, f: Tensor, d: Tensor) -> Tensor:
        signal = (1 - d).sqrt()
        scaled = self.covariance * signal[:, None, :]  # C S
        gram = signal[:, :, None] * scaled
        gram.diagonal(dim1=1, dim2=2).add_(d)
        right = (f - signal * self.mean).unsqueeze(2)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if bool(failed.any()):  # noise-free elements of a covariance without full rank
            gram.diagonal(dim1=1, dim2=2).add_(1e-12 * float(self.variances.max()) * len(self.mean))
            factor = torch.linalg.cholesky(gram)
        return self.mean + (scaled @ torch.cholesky_solve(right, factor)).squeeze(2)
