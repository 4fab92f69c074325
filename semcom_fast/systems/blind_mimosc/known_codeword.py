r"""What PVD makes of a channel whose codeword is known: its transfer from received signal to estimate, in closed form.

With X known, Rayleigh channels of unit variance and the closed-form channel prior, every inner iteration is linear. In the
eigenbasis of X_k X_k^H an entry of H_k is seen as z = sqrt(lam) h + n, n ~ CN(0, noise_var), lam an eigenvalue. With
w = 1/(1+s^2), v = w s^2, D = s_above^2 - s^2 and e the effective noise variance, an iteration at the sample mean + q is

    mean <- (1-a) mean + zeta anchor + zeta D w sqrt(lam)/e z - a q,      a = zeta (1 + D w + D w^2 lam/e),

so mean = c z/sqrt(lam) + a part without z of variance V, whose c and V follow from lam, noise_var and the schedule alone:
:func:`response`. (42) makes e = noise_var + M v for all modes, M = U Nt; the exact covariance e = noise_var + v lam.

Continuous limit: for levels that are fine and iterated to their fixed point, at the means, t = s^2 runs down with
-dm/dt = w z sqrt(lam)/e - m (w + w^2 lam/e). For e = noise_var + mu v the integral has a closed form,

    c = 1 - (1 + mu/noise_var)^(-lam/mu),

which for mu = lam is LMMSE, 1 - 1/(1 + lam/noise_var), and for (42), mu = M, is not: modes with lam > M are shrunk too
little, modes with lam < M too much. With Gaussian codewords lam is around T, so that (42) costs most where lam/noise_var is
not large (low SNR, where it trusts the signal too much) and where some modes are weak (T near M at high SNR).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...receivers import PVDConfig
from ...reference import default_next_var


class Response(NamedTuple):
    """Of every mode: the gain c on the least-squares estimate and the variance V of what does not depend on the signal."""

    gain: Tensor
    spread: Tensor


def codeword_modes(x: Tensor) -> Tensor:
    """Eigenvalues [B,K,M] of X_k X_k^H, the users of x [B,U,K,Nt,T] stacked to M = U Nt rows; float64."""
    stacked = x.transpose(1, 2).flatten(2, 3).to(torch.complex128)
    return torch.linalg.eigvalsh(stacked @ stacked.mH)


def limit_gain(modes: Tensor, noise_var: float, pivot: Tensor | float) -> Tensor:
    """c of the continuous limit: pivot mu = M for (42), mu = modes for the exact covariance (then LMMSE's)."""
    ratio = torch.as_tensor(pivot, dtype=modes.dtype)
    return 1 - (1 + ratio / noise_var) ** (-modes / ratio)


def mode_errors(modes: Tensor, noise_var: float, response: Response) -> Tensor:
    """E|h - h_hat|^2 of every mode for a channel of unit variance."""
    gain, spread = response
    return (1 - gain).square() + gain.square() * noise_var / modes + spread


def lmmse_errors(modes: Tensor, noise_var: float) -> Tensor:
    """The same for LMMSE: noise_var/(lam + noise_var)."""
    return noise_var / (modes + noise_var)


def response(modes: Tensor, noise_var: float, config: PVDConfig, slots: int) -> Response:
    """c and V after a whole run of PVD with X known.

    Exact for (42) and for `exact_covariance`. With calibration "moment" the residual energy is replaced by its
    expectation over channel and noise, item by item, which many antennas, blocks and slots approach.

    Args:
        modes: eigenvalues [B,K,M] of the items' codewords, M = U Nt.
        noise_var: E|n|^2 per entry. config: of the run; users, nt and the channel's step size and schedule matter.
        slots: T.

    Returns:
        gain and spread, each [B,K,M] float64. With L samples the noise of the sampling is 1/L of one sample's.

    Raises:
        ValueError: step sizes or levels that differ between users, or lagged_noise.
    """
    if config.sigma_per_user or isinstance(config.zeta_h, tuple) or config.lagged_noise:
        raise ValueError("response: levels and step sizes must be the same for all users, and lagged_noise off")
    modes, sigmas, zeta = modes.double(), config.schedule(), config.zeta_h
    gain = held_gain = torch.zeros_like(modes)
    # variances of mean and anchor without z, and their covariance: they start as independent draws
    spread, held, both = (torch.full_like(modes, value) for value in (sigmas[-2] ** 2, sigmas[-1] ** 2, 0.0))
    for sigma, above in zip(sigmas[-2::-1], sigmas[:0:-1], strict=True):
        step, weight = above**2 - sigma**2, 1 / (1 + sigma**2)
        fresh = default_next_var(sigma, above, config.v0) if config.sample_noise else 0.0
        for _ in range(config.Jin):
            noise = _effective_noise(modes, noise_var, config, slots, weight, Response(gain, spread + fresh))
            drive = zeta * step * weight * modes / noise
            pull = zeta * (1 + step * weight) + weight * drive
            gain = (1 - pull) * gain + zeta * held_gain + drive
            spread = (1 - pull).square() * spread + zeta**2 * held + 2 * zeta * (1 - pull) * both
            spread = spread + pull.square() * fresh / config.L
            both = (1 - pull) * both + zeta * held
        held_gain, held, both = gain, spread, spread
    return Response(gain, spread)


def _effective_noise(
    modes: Tensor, noise_var: float, config: PVDConfig, slots: int, weight: float, sample: Response
) -> Tensor | float:
    """What the score is divided by: white by (42), the exact covariance's, or the residual's expected energy."""
    variance = 1 - weight  # v = w s^2
    if config.exact_covariance:
        return noise_var + variance * modes
    streams = config.users * config.nt
    if config.calibration == "secant":
        return noise_var + variance * streams * config.power
    gain, spread = sample
    seen = (modes + noise_var) * (1 - weight * gain).square() + modes * weight**2 * spread
    energy = streams * seen.mean((-2, -1), keepdim=True) + (slots - streams) * noise_var
    return (energy / slots).clamp_min(noise_var)
