"""The definition of every op in plain torch: slow, obvious, float64-capable.

Each module mirrors one op stem and takes the arguments of the public function of that name. The twins are what the
tests compare with and what `use_backend("reference")` runs; they are never a silent fallback.
"""

from .blockdiag_adjoint import blockdiag_adjoint
from .blockdiag_apply import blockdiag_apply
from .cdl_channels import cdl_channels, cdl_steering
from .cir_to_ofdm import cir_to_ofdm
from .dirichlet_responsibilities import dirichlet_responsibilities
from .elbo_reduce import elbo_reduce
from .likelihood_score import LikelihoodScore, likelihood_score
from .lmmse_channel import lmmse_channel
from .lmmse_equalise import lmmse_equalise
from .mimo_matmul import mimo_matmul
from .philox_normal import philox_normal, philox_words
from .pilot_posterior_step import pilot_posterior_step
from .pilot_svd import PilotSVD, pilot_svd
from .power_normalise import power_normalise
from .pvd_calibrate import pvd_calibrate
from .pvd_channel_step import PVDChannelStep, pvd_channel_step
from .pvd_update import default_next_var, pvd_update
from .renoise import renoise
from .rzf_matrix import rzf_matrix
from .rzf_precode import rzf_precode
from .waterfill_equalise import waterfill_equalise
from .waterfill_inject import waterfill_inject
from .waterfill_step import waterfill_step
from .waterfill_step_authors import waterfill_step_authors

__all__ = [
    "LikelihoodScore",
    "PVDChannelStep",
    "PilotSVD",
    "blockdiag_adjoint",
    "blockdiag_apply",
    "cdl_channels",
    "cdl_steering",
    "cir_to_ofdm",
    "default_next_var",
    "dirichlet_responsibilities",
    "elbo_reduce",
    "likelihood_score",
    "lmmse_channel",
    "lmmse_equalise",
    "mimo_matmul",
    "philox_normal",
    "philox_words",
    "pilot_posterior_step",
    "pilot_svd",
    "power_normalise",
    "pvd_calibrate",
    "pvd_channel_step",
    "pvd_update",
    "renoise",
    "rzf_matrix",
    "rzf_precode",
    "waterfill_equalise",
    "waterfill_inject",
    "waterfill_step",
    "waterfill_step_authors",
]
