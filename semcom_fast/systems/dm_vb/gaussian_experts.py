"""The noise predictor of a Gaussian channel law in closed form: an expert without a network."""

import numpy as np
import torch
from torch import Tensor

from ..._kept import Kept


class GaussianExpert:
    r"""The best noise predictor for channels h ~ CN(mean, cov).

    .. math:: \epsilon(H_t, t) = \sqrt{1-\bar\alpha}\,(\bar\alpha C + (1-\bar\alpha) I)^{-1}(h_t - \sqrt{\bar\alpha}\,\mu)

    formed in the eigenbasis of C, so that a step costs two products with it.

    Args:
        mean: [N], row-major channel vectors h = H.flatten().
        cov: [N,N], Hermitian positive semi-definite.
        alpha_bar: [T+1] by diffusion step, entry 0 is 1.
    """

    def __init__(self, mean: Tensor, cov: Tensor, alpha_bar: np.ndarray) -> None:
        values, vectors = torch.linalg.eigh(cov.to(torch.complex128))
        self.values, self.vectors = values.clamp_min(0), vectors
        self.mean = mean.flatten().to(torch.complex128)
        self.alpha_bar = [float(a) for a in alpha_bar]
        self._cast = Kept()

    def __call__(self, h_t: Tensor, t: int) -> Tensor:
        """eps [B,Nr,Nt] of h_t [B,Nr,Nt], both complex, at step t in 1..T."""
        mean, to_basis, back = self._cast.get((h_t.dtype, h_t.device), h_t, lambda: self._like(h_t))
        a = self.alpha_bar[t]
        gain = ((1 - a) ** 0.5 / (a * self.values + 1 - a)).to(h_t)
        rotated = (h_t.flatten(1) - a**0.5 * mean) @ to_basis
        return ((rotated * gain) @ back).reshape(h_t.shape)

    def _like(self, h_t: Tensor) -> tuple[Tensor, ...]:
        """The mean, and the ways into the eigenbasis and back, on h_t's device and in its dtype."""
        basis = self.vectors.to(h_t)
        return self.mean.to(h_t), basis.conj().resolve_conj(), basis.mT.contiguous()
