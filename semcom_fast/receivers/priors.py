"""Closed-form channel priors: the exact denoiser of a Gaussian channel, where no network is needed."""

import torch
from torch import Tensor

from .._kept import Kept
from ..ops._checks import readable


def _eigen(cov: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a Hermitian, positive semi-definite covariance."""
    cov = torch.as_tensor(cov)
    if cov.ndim != 2 or cov.shape[0] != cov.shape[1]:
        raise ValueError(f"GaussianChannelPrior: {name} must be a square matrix, got shape {tuple(cov.shape)}")
    cov = cov.to(torch.complex128)
    if not bool(torch.isfinite(torch.view_as_real(cov.resolve_conj())).all()):
        raise ValueError(f"GaussianChannelPrior: {name} holds NaN or Inf")
    if not torch.allclose(cov, cov.mH, atol=1e-6 * float(cov.abs().max())):
        raise ValueError(f"GaussianChannelPrior: {name} is not Hermitian")
    values, vectors = torch.linalg.eigh(cov)
    if float(values[0]) < -1e-6 * float(values[-1]):
        raise ValueError(f"GaussianChannelPrior: {name} has the negative eigenvalue {float(values[0]):g}")
    return values.clamp_min(0), vectors


class GaussianChannelPrior:
    r"""Posterior mean and variance of a zero-mean Gaussian channel under noise of variance sigma^2, in closed form.

    Signal model: x = h + sigma z, z ~ CN(0, 1). For i.i.d. Rayleigh entries of variance `var`,

    .. math:: E[h|x] = \frac{v}{v+\sigma^2} x, \qquad \mathrm{Var}[h|x] = \frac{v\sigma^2}{v+\sigma^2}.

    For the Kronecker model :math:`E[h_{ij} h_{kl}^*] = R_{rx}[i,k] R_{tx}[j,l]` the same holds per pair of eigenmodes
    with :math:`v = \lambda_{rx} \lambda_{tx}`, and for any covariance of vec h per eigenmode; the reported variance is the
    mean over entries.

    Args:
        var: variance per channel entry; scales the Kronecker model too.
        cov_rx: receive covariance [Nr, Nr], cov_tx: transmit covariance [Nt, Nt]; identity when one is omitted.
        cov: instead of both, the covariance E[vec h vec h^H] [Nr Nt, Nr Nt] of the row-major vec h, index i*Nt + j.

    Calling it as a PVD denoiser: ``(x [...,K,Nr,Nt], sigma) -> (mean like x, var [...])``, with x [B,U,K,Nr,Nt] as the one
    denoiser of all users, with x [B,K,Nr,Nt] as one user's in a list. sigma is 0-d, or [U] with a level per user of
    x [B,U,K,Nr,Nt]. The map is linear and self-adjoint, so `vjp` needs no autograd.

    Source: section on Gaussian channels, equations (38) and (40) of "Blind MIMO Semantic Communication via Parallel
    Variational Diffusion".
    """

    per_user_sigma = True  # sigma may be [U]

    def __init__(
        self,
        var: float = 1.0,
        *,
        cov_rx: Tensor | None = None,
        cov_tx: Tensor | None = None,
        cov: Tensor | None = None,
    ) -> None:
        if not var > 0:
            raise ValueError(f"GaussianChannelPrior: var must be positive, got {var}")
        if cov is not None and (cov_rx is not None or cov_tx is not None):
            raise ValueError("GaussianChannelPrior: give cov, or cov_rx and cov_tx, not both")
        self.var = float(var)
        self._full = None if cov is None else _eigen(cov, "cov")
        self._rx = None if cov_rx is None else _eigen(cov_rx, "cov_rx")
        self._tx = None if cov_tx is None else _eigen(cov_tx, "cov_tx")
        self._modes = Kept()

    @property
    def white(self) -> bool:
        """Whether the entries are i.i.d., with no covariance given."""
        return self._full is None and self._rx is None and self._tx is None

    def _full_basis(self, x: Tensor) -> tuple[Tensor, ...]:
        """Eigenvalues [Nr Nt] (real) and eigenvectors of the covariance of vec h, on x's device and dtype, kept."""
        assert self._full is not None
        values, vectors = self._full
        if len(values) != x.shape[-2] * x.shape[-1]:
            raise ValueError(f"GaussianChannelPrior: cov is {len(values)}x{len(values)} but x is {tuple(x.shape)}")
        return self._modes.get(
            (x.dtype, x.device),
            x,
            lambda: ((self.var * values).to(x.device, x.real.dtype), vectors.to(x.device, x.dtype)),
        )

    def _basis(self, x: Tensor) -> tuple[Tensor, ...]:
        """Eigenvalue products [Nr,Nt] (real) and the two eigenvector matrices, on x's device and dtype, kept."""
        return self._modes.get((x.shape[-2:], x.dtype, x.device), x, lambda: self._sides(x))

    def _sides(self, x: Tensor) -> tuple[Tensor, ...]:
        sides = []
        for side, n, name in ((self._rx, x.shape[-2], "cov_rx"), (self._tx, x.shape[-1], "cov_tx")):
            values, vectors = side or (
                torch.ones(n, dtype=torch.float64, device="cpu"),
                torch.eye(n, dtype=torch.complex128, device="cpu"),
            )
            if len(values) != n:
                raise ValueError(
                    f"GaussianChannelPrior: {name} is {len(values)}x{len(values)} but x is {tuple(x.shape)}"
                )
            sides.append((values, vectors))
        (lr, ur), (lt, ut) = sides
        product = (self.var * lr[:, None] * lt[None, :]).to(x.device, x.real.dtype)
        return product, ur.to(x.device, x.dtype), ut.to(x.device, x.dtype)

    def _shrink(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor | float]:
        """The denoised x, and its variance per entry: 0-d, [U] where sigma is, or a number."""
        per_user = sigma.ndim == 1
        if self._full is not None:
            values, vectors = self._full_basis(x)
            level = sigma[:, None, None] if per_user else sigma
            kept = values / (values + level * level)
            whole = ((x.flatten(-2) @ vectors.conj()) * kept) @ vectors.mT
            return whole.view_as(x), self._average(kept * level * level, per_user)
        if self.white:
            if per_user:
                noise = sigma * sigma
                weights = self.var / (self.var + noise)
                return x * weights[:, None, None, None], weights * noise
            # a number costs one small op less than a tensor, but reading it from a GPU would synchronise
            power = float(sigma) ** 2 if sigma.is_cpu and readable(sigma) else sigma * sigma
            weight = self.var / (self.var + power)
            return x * weight, weight * power
        modes, ur, ut = self._basis(x)
        noise = (sigma * sigma)[:, None, None, None] if per_user else sigma * sigma
        weight = modes / (modes + noise)
        shrunk = ur @ ((ur.mH @ x @ ut.conj()) * weight) @ ut.mT
        return shrunk, self._average(weight * noise, per_user)

    @staticmethod
    def _average(var: Tensor, per_user: bool) -> Tensor:
        return var.flatten(1).mean(1) if per_user else var.mean()

    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = self._shrink(x, sigma)
        shape = x.shape[:-3]
        if isinstance(var, float):
            return mean, torch.full(shape, var, dtype=x.real.dtype, device=x.device)
        return mean, var.to(x.device, x.real.dtype).expand(shape)

    def vjp(self, cotangent: Tensor, sigma: Tensor) -> Tensor:
        """The (self-adjoint, linear) map applied to a cotangent."""
        return self._shrink(cotangent, sigma)[0]
