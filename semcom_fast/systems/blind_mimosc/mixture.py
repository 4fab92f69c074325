"""A Gaussian mixture as source prior: its denoiser and posterior variance in closed form, no training."""

import torch
from torch import Tensor

from ..._kept import Kept
from ...errors import require_extra


class GaussianMixturePrior:
    """E[d | d + sigma z] and its variance for d from a mixture of Gaussians, exactly.

    Definition: with weights w_k, means mu_k, covariances C_k and responsibilities r_k(x) ~ w_k N(x; mu_k, C_k + sigma^2 I),

        m_k  = mu_k + C_k (C_k + sigma^2 I)^-1 (x - mu_k)           mean of component k given x
        mean = sum_k r_k m_k
        var  = sum_k r_k (tr(sigma^2 C_k (C_k + sigma^2 I)^-1) + |m_k - mean|^2) / n

    which are x + sigma^2 score and sigma^2 + sigma^4 trace/n (Tweedie) without their cancellation at large sigma.

    Shapes: x [..., n] real, sigma a 0-d tensor or a number -> mean [..., n], var x.shape[:-1].

    Args:
        weights [k], means [k,n], covariances [k,n,n]: any float dtype; kept in it, used in x's.

    Source: eqs. (38), (40) of "Blind MIMO Semantic Communication via Parallel Variational Diffusion" for this prior.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        if means.ndim != 2 or covariances.shape != (*means.shape, means.shape[1]) or weights.shape != means.shape[:1]:
            raise ValueError(
                "need weights [k], means [k,n], covariances [k,n,n]; got "
                f"{tuple(weights.shape)}, {tuple(means.shape)}, {tuple(covariances.shape)}"
            )
        values, vectors = torch.linalg.eigh(covariances.double())
        self.log_weights, self.means, self.values, self.vectors = (
            weights.double().log(),
            means.double(),
            values,
            vectors,
        )
        self._cast_of, self._cast = (self.log_weights, self.means, self.values, self.vectors), Kept()

    @classmethod
    def fit(cls, images: Tensor, components: int = 20, reg: float = 5e-3, seed: int = 0) -> "GaussianMixturePrior":
        """Fit full covariances to images [count,n] with scikit-learn; `reg` is added to their diagonals."""
        mixture = require_extra("sklearn.mixture", "demo").GaussianMixture(
            components, covariance_type="full", reg_covar=reg, random_state=seed
        )
        mixture.fit(images.double().numpy())
        return cls(*(torch.from_numpy(a) for a in (mixture.weights_, mixture.means_, mixture.covariances_)))

    def _like(self, x: Tensor) -> tuple[Tensor, ...]:
        """Log weights, means, eigenvalues and eigenvectors on x's device and in its dtype, kept."""
        tables = self.log_weights, self.means, self.values, self.vectors
        if any(a is not b for a, b in zip(tables, self._cast_of, strict=True)):  # somebody set other ones
            self._cast_of, self._cast = tables, Kept()
        return self._cast.get((x.dtype, x.device), x, lambda: tuple(t.to(x.device, x.dtype) for t in tables))

    def __call__(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        noise = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).square()
        log_weights, means, values, vectors = self._like(x)
        total = values + noise  # [k,n]
        shrink = values / total
        # Everything below lives in each component's eigenbasis: [..., k, n].
        centred = torch.einsum("...kn,knm->...km", x.unsqueeze(-2) - means, vectors)
        log_r = log_weights - 0.5 * (total.log().sum(-1) + (centred.square() / total).sum(-1))
        r = log_r.softmax(-1)
        component = means + torch.einsum("...km,knm->...kn", shrink * centred, vectors)
        mean = (r.unsqueeze(-1) * component).sum(-2)
        inside = (noise * shrink).sum(-1)
        between = (component - mean.unsqueeze(-2)).square().sum(-1)
        return mean, ((r * (inside + between)).sum(-1) / x.shape[-1]).detach()
