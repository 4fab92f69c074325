"""Reference twin of :func:`semcom_fast.dirichlet_responsibilities`."""

import torch
from torch import Tensor


def dirichlet_responsibilities(
    L: Tensor,
    D: Tensor,
    gamma0: float | Tensor,
    *,
    gamma: Tensor | None = None,
    eta: float = 1.0,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """Equations (35), (38)-(40): responsibilities from evidence and the Dirichlet's mean log weights."""
    prior = torch.as_tensor(gamma0, dtype=torch.float64, device=L.device).expand(L.shape)
    now = prior if gamma is None else gamma.double().expand(L.shape)
    log_weight = torch.special.digamma(now) - torch.special.digamma(now.sum(-1, keepdim=True))
    rho = torch.softmax(L.double() + eta * D.double() + log_weight, -1)
    after = prior[0] + rho.sum(0) if shared else prior + rho
    return rho.to(L.dtype), after.to(L.dtype)
