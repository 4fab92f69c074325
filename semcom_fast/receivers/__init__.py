"""The receiver loops: they order calls of ops and networks and hold no numerics of their own."""

from .precision import (
    CallChange,
    call_change,
    change_bound,
    half_precision,
    vb_change_bound,
    waterfill_change_bound,
)
from .priors import GaussianChannelPrior
from .pvd import PVD, DivergedError, PVDConfig, PVDLevel, PVDResult
from .pvd_batches import run_in_batches
from .schedules import SigmoidSchedule
from .second_order import ScoreDenoiser
from .vb_moe import VBMoE, VBMoEResult
from .vb_moe_config import VBMoEConfig, VBMoETables, linear_schedule
from .vb_moe_experts import Expert, ExpertBank
from .waterfill_config import WaterfillConfig, WaterfillTables
from .waterfill_ddim import WaterfillDDIM, WaterfillStep

__all__ = [
    "PVD",
    "CallChange",
    "DivergedError",
    "Expert",
    "ExpertBank",
    "GaussianChannelPrior",
    "PVDConfig",
    "PVDLevel",
    "PVDResult",
    "ScoreDenoiser",
    "SigmoidSchedule",
    "VBMoE",
    "VBMoEConfig",
    "VBMoEResult",
    "VBMoETables",
    "WaterfillConfig",
    "WaterfillDDIM",
    "WaterfillStep",
    "WaterfillTables",
    "call_change",
    "change_bound",
    "half_precision",
    "linear_schedule",
    "run_in_batches",
    "vb_change_bound",
    "waterfill_change_bound",
]
