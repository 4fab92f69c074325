"""Reference twin of :func:`semcom_fast.pvd_channel_step`."""

from typing import NamedTuple

from torch import Tensor

from .levels import Level, align_left
from .likelihood_score import likelihood_score
from .pvd_update import pvd_update


class PVDChannelStep(NamedTuple):
    """New mean and sample of the channels, and what their old sample says about the codeword: score and energies."""

    mean: Tensor
    sample: Tensor
    score_x: Tensor
    energy: Tensor
    probe_x: Tensor | None
    probe_y: Tensor | None


def pvd_channel_step(
    y: Tensor,
    x: Tensor,
    mean: Tensor,
    anchor: Tensor,
    sample: Tensor,
    *,
    sigma: Level,
    sigma_above: Level,
    zeta: Level,
    score_var: Level,
    var: Level = 1.0,
    next_var: Level | None = None,
    probe: Tensor | None = None,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    stream: int = 1,
    first_item: int = 0,
) -> PVDChannelStep:
    """The three ops it fuses: the closed-form denoiser w = v/(v + sigma^2), `likelihood_score`, `pvd_update`."""
    v, s = (align_left(level, mean.ndim, mean.device) for level in (var, sigma))
    weight = (v / (v + s**2)).to(mean.real.dtype)
    h0 = weight * sample
    score = likelihood_score(y, h0, x, probe=probe)
    moved = pvd_update(
        mean, anchor, sample, h0, weight * score.score_h, sigma=sigma, sigma_above=sigma_above, zeta=zeta,
        score_var=score_var, next_var=next_var, noise=noise, seed=seed, step=step, stream=stream, first_item=first_item,
    )  # fmt: skip
    return PVDChannelStep(*moved, score.score_x, score.energy, score.probe_x, score.probe_y)
