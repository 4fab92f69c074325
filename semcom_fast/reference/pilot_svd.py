"""Reference twin of :func:`semcom_fast.pilot_svd`, and the decomposition itself."""

from typing import NamedTuple

import torch
from torch import Tensor


class PilotSVD(NamedTuple):
    """P = U diag(s) V^H of pilots P [..., Nt, Np], r = min(Nt, Np): u [..., Nt, r], s [..., r] real, v [..., Np, r]."""

    u: Tensor
    s: Tensor
    v: Tensor

    def project(self, y: Tensor) -> Tensor:
        """Received pilots in the decomposition's basis: Y [..., Nr, Np] -> Y V [..., Nr, r].

        Formed in double precision by torch's own product and rounded once.
        """
        if y.ndim < 2 or y.shape[-1] != self.v.shape[-2]:
            raise ValueError(f"PilotSVD.project: need y [..., Nr, {self.v.shape[-2]}], got {tuple(y.shape)}")
        if not isinstance(y, Tensor):
            return y @ self.v
        return (y.to(torch.complex128) @ self.v.to(torch.complex128)).to(y.dtype)


def pilot_svd(pilots: Tensor) -> PilotSVD:
    """The decomposition in double precision, rounded once to the dtype of `pilots`."""
    u, s, vh = torch.linalg.svd(pilots.to(torch.complex128), full_matrices=False)
    real = torch.float32 if pilots.dtype is torch.complex64 else torch.float64
    return PilotSVD(u.to(pilots.dtype).contiguous(), s.to(real), vh.mH.to(pilots.dtype).resolve_conj().contiguous())
