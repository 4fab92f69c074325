"""Rows of pvd_channel_step: the channel's half of an inner iteration in one op, against the ops it fuses.

The peers are what a loop would call instead: "our three ops" multiplies by w around likelihood_score and pvd_update, "our
two ops" folds w into score_var, and "eager" is plain torch around a matmul formulation of the score.
"""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case
from .rivals import rivals_for

LEVELS = {"sigma": 0.5, "sigma_above": 0.7, "zeta": 0.1, "score_var": 0.8}
DRAW = {"seed": 1, "step": 3, "stream": 1}
WEIGHT = 1 / (1 + LEVELS["sigma"] ** 2)
SIZES = [  # B, U, K, Nr, Nt, T
    (1, 4, 192, 4, 1, 24),
    (16, 4, 192, 4, 1, 24),
    (1, 1, 24, 64, 8, 24),
    (16, 1, 24, 64, 8, 24),
    (1, 1, 12, 128, 16, 24),
    (16, 1, 12, 128, 16, 24),
    (16, 1, 8, 8, 2, 16),
    (24, 1, 8, 4, 1, 8),
]


def _make(i: int, b: int, u: int, k: int, nr: int, nt: int, t: int):
    g = torch.Generator().manual_seed(i)
    state, codeword = (b, u, k, nr, nt), (b, u, k, nt, t)
    shapes = (b, k, nr, t), codeword, state, state, state, codeword
    return tuple(torch.randn(s, dtype=torch.complex64, generator=g) for s in shapes)


def _ours(y, x, mean, anchor, sample, probe):
    return sf.pvd_channel_step(y, x, mean, anchor, sample, probe=probe, **LEVELS, **DRAW)


def _three_ops(y, x, mean, anchor, sample, probe):
    h0 = sample * WEIGHT
    out = sf.likelihood_score(y, h0, x, probe=probe)
    return *sf.pvd_update(mean, anchor, sample, h0, out.score_h * WEIGHT, **LEVELS, **DRAW), *out[1:]


def _two_ops(y, x, mean, anchor, sample, probe):
    h0 = sample * WEIGHT
    out = sf.likelihood_score(y, h0, x, probe=probe)
    levels = LEVELS | {"score_var": LEVELS["score_var"] / WEIGHT}
    return *sf.pvd_update(mean, anchor, sample, h0, out.score_h, **levels, **DRAW), *out[1:]


def _eager(y, x, mean, anchor, sample, probe):
    h0 = sample * WEIGHT
    score_h, score_x, energy = peers.score_matmul(y, h0, x)
    received = (h0 @ probe).sum(1)
    probed = [torch.view_as_real(t).square().sum((-4, -3, -2, -1)) for t in (probe, received)]
    levels = (*LEVELS.values(), None)
    return *peers.update_eager(mean, anchor, sample, h0, score_h * WEIGHT, *levels[:4]), score_x, energy, *probed


def _reference(*args):
    *operands, probe = args
    return reference.pvd_channel_step(*operands, probe=probe, **LEVELS, **DRAW)


def _error(make) -> float:
    args = make(0)
    want = _reference(*(a.to(torch.complex128) for a in args))
    return max(
        float((a.cpu() - b).abs().max() / b.abs().max())
        for a, b in zip(_ours(*timing.to_device(args)), want, strict=True)
    )


def cases(quick: bool) -> list[Case]:
    """Least work: y, x, dX read, score_x written; mean, anchor, sample read, mean and sample written."""
    out = []
    for size in SIZES[-1:] if quick else SIZES:
        b, u, k, nr, nt, t = size
        m = u * nt
        make = lambda i, size=size: _make(i, *size)  # noqa: E731
        out.append(
            Case(
                "pvd_channel_step",
                f"B={b} U={u} K={k} Nr={nr} Nt={nt} T={t}",
                make,
                _ours,
                {"our three ops": _three_ops, "our two ops": _two_ops, "eager": _eager},
                _reference,
                lambda make=make: _error(make),
                4 * (nr + m + t) * 2.0**-24 + 2e-6,  # sums as in likelihood_score; the normals' own bound
                8 * b * k * (nr * t + 3 * m * t + 5 * nr * m) + 4 * b * (2 + u),
                flops=32 * b * k * nr * t * m,
                normals=2 * b * k * nr * m,
                rivals=rivals_for("pvd_channel_step", b=b, u=u, k=k, nr=nr, nt=nt, t=t, levels=LEVELS),
            )
        )
    return out
