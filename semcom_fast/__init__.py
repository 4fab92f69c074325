"""semcom_fast: fast, exact kernels for diffusion receivers and MIMO semantic communication.

Ops are torch functions of batched complex tensors; docs/conventions.md fixes shapes, units and random numbers.
"""

from ._backend import use_backend
from .errors import BackendUnavailable, MissingExtra, SingularChannelError
from .ops import (
    LikelihoodScore,
    blockdiag_adjoint,
    blockdiag_apply,
    cir_to_ofdm,
    likelihood_score,
    lmmse_channel,
    lmmse_equalise,
    philox_normal,
    power_normalise,
    pvd_calibrate,
    pvd_update,
    rzf_matrix,
    rzf_precode,
    waterfill_equalise,
    waterfill_inject,
    waterfill_step,
    waterfill_step_authors,
)
from .receivers import (
    PVD,
    DivergedError,
    GaussianChannelPrior,
    PVDConfig,
    PVDLevel,
    PVDResult,
    SigmoidSchedule,
    WaterfillConfig,
    WaterfillDDIM,
    WaterfillStep,
    WaterfillTables,
)

__version__ = "0.1.0"

__all__ = [
    "PVD",
    "BackendUnavailable",
    "DivergedError",
    "GaussianChannelPrior",
    "LikelihoodScore",
    "MissingExtra",
    "PVDConfig",
    "PVDLevel",
    "PVDResult",
    "SigmoidSchedule",
    "SingularChannelError",
    "WaterfillConfig",
    "WaterfillDDIM",
    "WaterfillStep",
    "WaterfillTables",
    "__version__",
    "blockdiag_adjoint",
    "blockdiag_apply",
    "cir_to_ofdm",
    "likelihood_score",
    "lmmse_channel",
    "lmmse_equalise",
    "philox_normal",
    "power_normalise",
    "pvd_calibrate",
    "pvd_update",
    "rzf_matrix",
    "rzf_precode",
    "use_backend",
    "waterfill_equalise",
    "waterfill_inject",
    "waterfill_step",
    "waterfill_step_authors",
]
