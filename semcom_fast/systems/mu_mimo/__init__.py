"""MU-MIMO OFDM semantic downlink: four images in one slot, adapted to the channel, refined precoding, pilot guidance.

Networks, training, evaluation, latency and command line. Source: "Scenario-Adaptive MU-MIMO OFDM Semantic Communication
With Asymmetric Neural Network".
"""

from .networks import available_variants, load_system
from .system import VARIANTS, MuMimoSystem, Reception, SystemConfig, keras_count

__all__ = [
    "VARIANTS",
    "MuMimoSystem",
    "Reception",
    "SystemConfig",
    "available_variants",
    "keras_count",
    "load_system",
]
