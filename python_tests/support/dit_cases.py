"""Tiny denoisers, inputs for them and synthetic latents."""

import torch

from semcom_fast.systems.sgd_jscc.control import ControlBranch
from semcom_fast.systems.sgd_jscc.dit import DiT, DiTConfig
from semcom_fast.systems.sgd_jscc.latents import LatentSource

TINY = {"channels": 4, "side": 4, "width": 32, "heads": 2, "inside": 2, "decoder": 1, "text": 6}
SHAPE = (4, 4, 4)


def _parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def shaken(module, seed=0):
    """Every parameter at random: nothing is zero any more."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=random, dtype=parameter.dtype))
    return module


def pair(**changes):
    """A tiny denoiser and control branch in float64, all parameters at random."""
    config = DiTConfig(**{**TINY, **changes})
    return shaken(DiT(config).double()), shaken(ControlBranch(config).double(), 1)


def inputs(batch=3, dtype=torch.float64):
    random = torch.Generator().manual_seed(7)
    return (
        torch.randn(batch, *SHAPE, generator=random, dtype=dtype),
        torch.rand(batch, generator=random, dtype=dtype),
        torch.randn(batch, TINY["text"], generator=random, dtype=dtype),
        torch.randn(batch, *SHAPE, generator=random, dtype=dtype),
    )


def latents(count=256, seed=0):
    """Every token is a fixed vector with a random sign, plus a little noise: the posterior mean is far from linear."""
    vectors = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(99))
    random = torch.Generator().manual_seed(seed)
    signs = 1.0 - 2 * torch.randint(2, (count, 1, *SHAPE[1:]), generator=random)
    drawn = signs * vectors + 0.1 * torch.randn(count, *SHAPE, generator=random)
    return drawn / drawn.square().mean((1, 2, 3), keepdim=True).sqrt()


def source(count=256, guides=False, seed=0):
    drawn = latents(count, seed)
    versions = torch.stack((drawn, drawn.flip(-1)), 1).half() if guides else None
    text = torch.eye(TINY["text"])[:2]
    return LatentSource(drawn.half(), text, torch.arange(count) % 2, versions)
