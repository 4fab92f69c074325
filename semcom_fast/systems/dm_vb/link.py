"""The pilot link: random QPSK pilots through a massive MIMO channel.

Source: "Mixture-of-Experts Diffusion Models for Adaptive Massive MIMO Channel Estimation via Variational Bayesian
Inference", eq. (1).
"""

import math

import torch
from torch import Tensor

from ...ops import philox_normal

_NOISE_STEP, _PILOT_STEP = 1, 2  # of the user stream, as in links/block_fading.py


def pilot_count(density: float, nt: int) -> int:
    """Np = floor(density Nt), the slots at a pilot density on (0, 1]."""
    count = math.floor(density * nt + 1e-9)  # 0.3 * 10 is 2.9999999999999996
    if not 0 < density <= 1 or count < 1:
        raise ValueError(f"the pilot density must lie on (0, 1] and leave a slot, got {density} for {nt} antennas")
    return count


def qpsk_pilots(nt: int, slots: int, *, seed: int) -> Tensor:
    """Pilots P [Nt,Np], complex64, i.i.d. (+-1 +-j)/sqrt 2; fewer slots of one seed are the first of more, up to Nt."""
    width = max(nt, slots)
    drawn = philox_normal((1, width, nt), seed=seed, step=_PILOT_STEP, dtype=torch.complex64)[0, :slots].mT
    return torch.complex(drawn.real.sign(), drawn.imag.sign()) * math.sqrt(0.5)


def transmit(h: Tensor, pilots: Tensor, noise_var: float, *, seed: int, first_item: int = 0) -> Tensor:
    """Y = H P + N [B,Nr,Np] for h [B,Nr,Nt]; entries of N are CN(0, noise_var), drawn for item first_item + b."""
    y = h @ pilots
    noise = philox_normal(y.shape, seed=seed, step=_NOISE_STEP, first_item=first_item, dtype=y.dtype)
    return y + noise * math.sqrt(noise_var)
