"""Diffusion posterior sampling of the source where the channel was estimated first."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..ops import likelihood_score, philox_normal, pvd_update
from ..receivers.users import Denoiser, Encoder, ParallelDenoiser, ParallelEncoder, Pullback

_STREAM, _START_STREAM, _PROBE_STREAM = 2, 4, 5  # those of the source in the blind receiver


def dps_receive(
    y: Tensor,
    h: Tensor,
    noise_var: float,
    encoder: Encoder | Sequence[Encoder],
    denoiser: Denoiser | Sequence[Denoiser],
    *,
    source_shape: tuple[int, ...],
    steps: int = 600,
    sigma_max: float = 100.0,
    sigma_min: float = 0.01,
    scale: float = 1.0,
    channel_error: float | Tensor = 0.0,
    seed: int = 0,
    first_item: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    r"""Sample sources from their diffusion prior, guided by the received signal through a fixed channel.

    Signal model: :math:`Y_k = \sum_u H_k^{(u)} X_k^{(u)} + N_k`, X_u = f_u(D_u); `h` stands for H. From
    d = sigma_max z down a geometric schedule s_N > ... > s_0, with D = s_{j+1}^2 - s_j^2,

    .. math::
        d \leftarrow d + \frac{D}{s_{j+1}^2} (\hat d_0(d) - d)
            - \zeta D \nabla_d \frac{|Y - \sum_u H_u f_u(\hat d_0(d))|^2}{s} + \sqrt{D s_j^2/s_{j+1}^2}\, z

    the ancestral step of a variance-exploding diffusion plus the likelihood gradient through denoiser and encoder. Its
    variance takes the place of the norm that diffusion posterior sampling divides by; it is the noise's, plus what the
    channel's error makes of the codeword, plus what is left of the source's uncertainty v at this level, in form of one
    secant of the encoder, averaged over the received entries:

    .. math:: s = \sigma_n^2 + e_H + \frac{1}{N_r K T} |\sum_u H_u \Delta X_u|^2, \quad
              \Delta X_u = f_u(\hat d_0 + \sqrt{v} z') - f_u(\hat d_0)

    A gradient term longer than :math:`\sqrt{D n}`, about the noise of the step, is cut to that length for n entries of a
    source: on the way down from large levels it can otherwise throw a source to where the denoiser saturates, the gradient
    vanishes and nothing brings it back. (Dividing by the residual's own energy did not prevent that.)

    Args:
        y: [B,K,Nr,T] complex; h: [B,U,K,Nr,Nt], estimated; noise_var: E|n|^2 per entry.
        encoder, denoiser: as of :class:`semcom_fast.PVD`, for U = h.shape[1] users.
        source_shape: of one source. steps: N, one denoiser and one encoder call each, with their gradients.
        scale: zeta. channel_error: e_H, the variance of (H - h) X per received entry, a number or [B].
        seed, first_item: of the draws. on_step: called after each step with the level left.

    Returns:
        d [B,U,*source_shape].

    Raises:
        ValueError: fewer than one step, sigma_max <= sigma_min, or shapes that disagree.

    Source: H. Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", Algorithm 1, as the
    baseline of "Blind MIMO Semantic Communication via Parallel Variational Diffusion"; s as in that paper's eq. (42).
    """
    if steps < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(f"need steps >= 1 and 0 < sigma_min < sigma_max, got {steps}, {sigma_min}, {sigma_max}")
    users, count, n = h.shape[1], y[0].numel(), math.prod(source_shape)
    encode, denoise = ParallelEncoder(encoder, users), ParallelDenoiser(denoiser, users, "denoiser")
    levels = [sigma_min * (sigma_max / sigma_min) ** (j / steps) for j in range(steps + 1)]
    d = philox_normal(
        (y.shape[0], users, *source_shape), seed=seed, stream=_START_STREAM, first_item=first_item,
        dtype=y.real.dtype, device=y.device,
    ) * sigma_max  # fmt: skip
    for j in range(steps - 1, -1, -1):
        above, sigma = levels[j + 1], levels[j]
        with torch.enable_grad():
            leaf = d.detach().requires_grad_(True)
            d0, var = denoise(leaf, torch.as_tensor(above, dtype=d.dtype, device=d.device))
            x = encode(d0)
        spread = var.detach().clamp(0, above**2).sqrt().reshape(*var.shape, *(1,) * len(source_shape))
        z = philox_normal(d.shape, seed=seed, step=steps - j, stream=_PROBE_STREAM, first_item=first_item,
                          dtype=d.dtype, device=d.device)  # fmt: skip
        probe = encode(d0.detach() + spread * z) - x.detach()
        found = likelihood_score(y, h, x.detach(), probe=probe)
        assert found.probe_y is not None
        variance = noise_var + channel_error + found.probe_y / count
        # torch's cotangent of a real loss is twice the Wirtinger score; the update's zeta turns its D/s_j^2 into the
        # D/s_{j+1}^2 of an ancestral step, and the gradient is freed of it again.
        gradient = Pullback(x, leaf)(2 * scale * found.score_x)
        variance = variance.unsqueeze(1) if variance.ndim else variance  # [B,1] over users
        length = (above**2 - sigma**2) ** 0.5 * gradient.flatten(2).norm(dim=2) / n**0.5  # in units of sqrt(D n) s
        variance = torch.maximum(variance.expand_as(length), length)
        share = sigma**2 / above**2
        d = pvd_update(
            d, d, d, d0.detach(), gradient, sigma=sigma, sigma_above=above, zeta=share,
            score_var=variance * share,
            next_var=None if j else 0.0, seed=seed, step=steps - j, stream=_STREAM, first_item=first_item,
        )[1]  # fmt: skip
        if on_step is not None:
            on_step(j)
    return d
