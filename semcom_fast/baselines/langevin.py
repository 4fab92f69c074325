"""Annealed Langevin dynamics on the posterior of a channel, with a given prior score."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from ..ops import philox_normal
from ..ops.pilot_svd import pilot_svd
from .rls import check_pilot_link

_STREAM = 7  # as the diffusion estimator's start; there only step 0 is drawn
Score = Callable[[Tensor, float], Tensor]


def diffusion_score(expert: Callable[[Tensor, int], Tensor], alpha_bar: Sequence[float]) -> tuple[Score, list[float]]:
    """The prior score that a diffusion expert knows, and its noise levels, largest first.

    With sigma_t^2 = (1 - abar_t)/abar_t, H + sigma_t n is H_t/sqrt(abar_t), so its score is -eps(sqrt(abar_t) H, t)/sigma_t.

    Args:
        expert: (h_t [B,Nr,Nt], t) -> eps, as for `VBMoE`.
        alpha_bar: [T+1] by step, entry 0 is 1.
    """
    steps = {math.sqrt((1 - a) / a): t for t, a in enumerate(map(float, alpha_bar)) if t > 0}

    def score(h: Tensor, sigma: float) -> Tensor:
        t = steps[sigma]
        return expert(h * math.sqrt(float(alpha_bar[t])), t) / -sigma

    return score, sorted(steps, reverse=True)


def langevin_channel(
    y: Tensor,
    pilots: Tensor,
    noise_var: float,
    score: Score,
    levels: Sequence[float],
    *,
    rate: float = 0.1,
    per_level: int = 3,
    temperature: float = 0.01,
    start: Tensor | None = None,
    seed: int = 0,
    first_item: int = 0,
) -> Tensor:
    r"""Estimate channels by Langevin steps on the posterior of ever less noisy channels.

    Signal model: :math:`Y = H P + N`. At noise level :math:`\sigma`, `per_level` times

    .. math::
        H \leftarrow H + a \left[ s(H, \sigma) + (Y - H P)(\sigma_n^2 I + \sigma^2 P^H P)^{-1} P^H \right]
            + \sqrt{2 a \tau}\, Z, \qquad a = r \sigma^2

    with scores :math:`s = \partial \log p/\partial H^*` of the channel plus CN(0, sigma^2) noise. The bracket's second
    term is the likelihood score of that noisy channel, formed in the basis of `pilot_svd`: no step can overshoot for
    r < 1. Temperature 1 samples the posterior (twice the error of its mean); a small one stays near its mode.

    Args:
        y: received pilots [B,Nr,Np]; pilots: [Nt,Np] or [B,Nt,Np]; noise_var: E|n|^2, positive.
        score: s(h [B,Nr,Nt], sigma) -> like h; see `diffusion_score`.
        levels: sigma, from the largest to the smallest.
        rate, per_level, temperature: r, steps at a level, tau.
        start: H of the first step; default CN(0, I), scaled by the first level. seed, first_item: of the draws.

    Returns:
        h_hat [B,Nr,Nt].

    Raises:
        ValueError: shapes disagree; noise_var, rate or a level is not positive; temperature < 0; no steps.

    Source: M. Arvinte and J. Tamir, "MIMO Channel Estimation Using Score-Based Generative Models", Algorithm 1; its
    likelihood has sigma^2 I in place of sigma^2 P^H P, which needs some twenty times as many steps.
    """
    check_pilot_link("langevin_channel", y, pilots)
    if not (math.isfinite(noise_var) and noise_var > 0 and 0 < rate < 1 and temperature >= 0 and per_level >= 1):
        raise ValueError(
            "need noise_var > 0, 0 < rate < 1, temperature >= 0 and per_level >= 1, got "
            f"{noise_var}, {rate}, {temperature} and {per_level}"
        )
    if not len(levels) or not min(levels) > 0:
        raise ValueError("levels must be positive, at least one")
    svd = pilot_svd(pilots)
    yv, basis = svd.project(y), svd.u * svd.s.unsqueeze(-2)
    shape = (y.shape[0], y.shape[1], pilots.shape[-2])

    def draw(step: int) -> Tensor:
        return philox_normal(
            shape, seed=seed, step=step, stream=_STREAM, first_item=first_item, dtype=y.dtype, device=y.device
        )

    h = draw(0) * levels[0] if start is None else start
    step = 0
    for sigma in levels:
        a = rate * sigma**2
        weight = 1 / (noise_var + sigma**2 * svd.s.double().square())
        back = (basis * weight.to(svd.s.dtype).unsqueeze(-2)).mH
        for _ in range(per_level):
            step += 1
            h = h + a * (score(h, sigma) + (yv - h @ basis) @ back)
            if temperature > 0:
                h = h + math.sqrt(2 * a * temperature) * draw(step)
    return h
