"""The receiver loops: they order calls of ops and networks and hold no numerics of their own."""

from .priors import GaussianChannelPrior
from .pvd import PVD, DivergedError, PVDConfig, PVDLevel, PVDResult

__all__ = ["PVD", "DivergedError", "GaussianChannelPrior", "PVDConfig", "PVDLevel", "PVDResult"]
