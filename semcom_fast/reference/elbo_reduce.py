"""Reference twin of :func:`semcom_fast.elbo_reduce`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .levels import Level, align_left
from .pilot_svd import PilotSVD
from .renoise import draw, table_entries


def energy(z: Tensor) -> Tensor:
    """Squared magnitude over the last two dims, summed in float64."""
    return torch.view_as_real(z.resolve_conj()).double().square().sum((-3, -2, -1))


def evidence(
    eps: Tensor,
    h: Tensor,
    noise: Tensor,
    alpha_bar: Tensor,
    w: Tensor,
    yv: Tensor,
    u: Tensor,
    s: Tensor,
    noise_var: Level,
    tau_index: int,
) -> tuple[Tensor, Tensor]:
    """L and D of given noise [B,S,Nr,Nt]; alpha_bar and w [S], and step `tau_index` of them is tau."""
    miss = noise.unsqueeze(2) - eps  # [B,S,E,Nr,Nt]
    likelihood = -(w.to(h.device)[:, None] * energy(miss)).sum(1)
    bar = alpha_bar[tau_index].to(h.device)
    denoised = h.unsqueeze(1) + ((1 - bar) / bar).sqrt().to(h.real.dtype) * miss[:, tau_index]
    u, s = (t if t.ndim == k else t.unsqueeze(1) for t, k in ((u, 2), (s, 1)))
    residual = yv.unsqueeze(1) - denoised @ u * s.unsqueeze(-2)
    data = -energy(residual) / align_left(noise_var, 2, h.device)
    return likelihood.to(h.real.dtype), data.to(h.real.dtype)


def elbo_reduce(
    eps: Tensor,
    h: Tensor,
    steps: Sequence[int] | Tensor,
    alpha_bar: Tensor | Sequence[float],
    w: Tensor | Sequence[float],
    yv: Tensor,
    svd: PilotSVD,
    *,
    noise_var: Level,
    tau: int,
    seed: int | Tensor | None = None,
    first_item: int = 0,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Equations (32), (33), (36), (37): what the responsibilities are made of."""
    steps = torch.as_tensor(steps, device=h.device)
    if noise is None:
        assert seed is not None
        noise = draw(h, steps, seed, first_item)
    at = int((steps == tau).nonzero()[0])
    tables = table_entries(alpha_bar, steps), table_entries(w, steps)
    return evidence(eps, h, noise, *tables, yv, svd.u, svd.s, noise_var, at)
