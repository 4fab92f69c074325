"""What the receivers are compared with."""

from .dps import dps_receive
from .gaussian_mixture import GaussianEstimator, GaussianMixtureEstimator, Moments, pooled_moments, sample_moments
from .langevin import diffusion_score, langevin_channel
from .lasso import LassoInfo, lasso_channel
from .lmmse import gaussian_pilots, lmmse_pilot_channel, oracle_lmmse_channel, orthogonal_pilots, pilot_lmmse_nmse
from .marginal import log_marginal
from .rls import rls_channel
from .wiener import WienerDenoiser

__all__ = [
    "GaussianEstimator",
    "GaussianMixtureEstimator",
    "LassoInfo",
    "Moments",
    "WienerDenoiser",
    "diffusion_score",
    "dps_receive",
    "gaussian_pilots",
    "langevin_channel",
    "lasso_channel",
    "lmmse_pilot_channel",
    "log_marginal",
    "oracle_lmmse_channel",
    "orthogonal_pilots",
    "pilot_lmmse_nmse",
    "pooled_moments",
    "rls_channel",
    "sample_moments",
]
