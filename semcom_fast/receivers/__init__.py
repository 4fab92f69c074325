"""The receiver loops: they order calls of ops and networks and hold no numerics of their own."""

from .priors import GaussianChannelPrior
from .pvd import PVD, DivergedError, PVDConfig, PVDLevel, PVDResult
from .schedules import SigmoidSchedule
from .waterfill_config import WaterfillConfig, WaterfillTables
from .waterfill_ddim import WaterfillDDIM, WaterfillStep

__all__ = [
    "PVD",
    "DivergedError",
    "GaussianChannelPrior",
    "PVDConfig",
    "PVDLevel",
    "PVDResult",
    "SigmoidSchedule",
    "WaterfillConfig",
    "WaterfillDDIM",
    "WaterfillStep",
    "WaterfillTables",
]
