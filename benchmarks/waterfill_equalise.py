"""Rows of waterfill_equalise: a channel per symbol and one per image, at the latent size of the published networks."""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case
from .rivals import rivals_for

NOISE_VAR = 0.6
SIZES = [(512, 2048, True), (512, 2048, False), (16, 512, True)]  # images, symbols, fast fading


def cases(quick: bool) -> list[Case]:
    """No target; bytes are y, h, f and d, once each."""
    out = []
    for batch, symbols, fast in SIZES[-1:] if quick else SIZES:

        def make(i: int, batch=batch, symbols=symbols, fast=fast):
            g = torch.Generator().manual_seed(i)
            h = torch.randn(batch, symbols if fast else 1, dtype=torch.complex64, generator=g)
            return torch.randn(batch, symbols, dtype=torch.complex64, generator=g), h

        def error(make=make) -> float:
            y, h = make(0)
            wide = reference.waterfill_equalise(y.to(torch.complex128), h.to(torch.complex128), NOISE_VAR)
            got = sf.waterfill_equalise(*timing.to_device((y, h)), NOISE_VAR)
            return max(float((a.cpu() - b).abs().max() / b.abs().max()) for a, b in zip(got, wide, strict=True))

        out.append(
            Case(
                "waterfill_equalise",
                f"B={batch} M={symbols} {'fast' if fast else 'slow'} fading",
                make,
                lambda y, h: sf.waterfill_equalise(y, h, NOISE_VAR),
                {"eager": lambda y, h: peers.waterfill_equalise_eager(y, h, NOISE_VAR)},
                lambda y, h: reference.waterfill_equalise(y, h, NOISE_VAR),
                error,
                2e-6,
                batch * symbols * (8 + 8 * fast + 8 + 4),
                target="no target",
                rivals=rivals_for("waterfill_equalise", batch=batch, symbols=symbols, fast=fast, noise_var=NOISE_VAR),
            )
        )
    return out
