"""Rows of pilot_posterior_step: the 16 x 64 link with 38 shared pilots, one channel to many, one expert and four."""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case
from .rivals import rivals_for

NR, NT, NP = 16, 64, 38
SIZES = [(1, 4, "x0"), (64, 4, "x0"), (256, 4, "dmps"), (4096, 1, "x0")]  # channels, experts, likelihood
LEVELS = {"noise_var": 0.64, "alpha_bar": 0.4, "beta": 0.03, "lam": 2.0}


def svd() -> reference.PilotSVD:
    """Random QPSK pilots, decomposed."""
    signs = torch.randint(0, 2, (NT, NP, 2), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    return sf.pilot_svd(torch.view_as_complex(signs) * 0.5**0.5)


def gaussian(i: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(i))


def cases(quick: bool) -> list[Case]:
    """Bytes: state and received pilots once, every prediction, the new state; U stays in the cache."""
    out = []
    for batch, experts, lik in SIZES[:2] if quick else SIZES:

        def make(i: int, batch=batch, experts=experts):
            eps, weights = gaussian(i, batch, experts, NR, NT), torch.full((batch, experts), 1 / experts)
            return gaussian(i + 1, batch, NR, NT), eps, weights, gaussian(i + 2, batch, NR, NP), *svd()

        def ours(h, eps, weights, yv, u, s, v, lik=lik):
            return sf.pilot_posterior_step(h, eps, weights, yv, reference.PilotSVD(u, s, v), lik=lik, **LEVELS)

        def twin(h, eps, weights, yv, u, s, v, lik=lik):
            return reference.pilot_posterior_step(h, eps, weights, yv, reference.PilotSVD(u, s, v), lik=lik, **LEVELS)

        def error(make=make, ours=ours, twin=twin) -> float:
            given = make(0)
            wide = [t.to(torch.complex128 if t.is_complex() else torch.float64) for t in given]
            exact = twin(*wide)
            return float((ours(*timing.to_device(given)).cpu() - exact).abs().max() / exact.abs().max())

        out.append(
            Case(
                "pilot_posterior_step",
                f"B={batch} E={experts} {NR}x{NT} Np={NP} {lik}",
                make,
                ours,
                {
                    "matmul": lambda *a, lik=lik: peers.posterior_matmul(*a, lik=lik, **LEVELS),
                    "inverse": lambda *a, lik=lik: peers.posterior_inverse(*a, lik=lik, **LEVELS),
                },
                twin,
                error,
                1e-6,
                batch * 8 * (NR * NT * (2 + experts) + NR * NP),
                flops=batch * 16 * NR * NT * NP,
                target="no target",
                rivals=rivals_for(
                    "pilot_posterior_step",
                    batch=batch,
                    experts=experts,
                    nr=NR,
                    nt=NT,
                    pilots=NP,
                    lik=lik,
                    levels=LEVELS,
                ),
            )
        )
    return out
