"""Rows of rzf_precode: one symbol vector per channel, static channels, other sizes, and with gradients."""

import torch

import semcom_fast as sf
from semcom_fast import reference

from . import peers, timing
from .cases import Case, name_of, roundoff
from .rivals import rivals_for

ALPHA = 1.0
C64, C128 = torch.complex64, torch.complex128
SIZES = [  # channels, K, M, samples per channel, target
    (28672, 4, 4, 0, ">= 30x, >= 60 % of copy, >= 80x Sionna"),
    (114688, 4, 4, 0, ">= 30x, >= 60 % of copy, >= 80x Sionna"),
    (28672, 8, 8, 0, ">= 8x"),
    (8192, 16, 16, 0, ">= 4x"),
    (8192, 4, 4, 14, ">= 10x, static channel"),
    (28672, 4, 8, 0, "no target"),
    (28672, 2, 2, 0, "no target"),
]
WIDE = [(28672, 4, 4, 0, "no target"), (28672, 8, 8, 0, "no target")]  # complex128
GRADIENTS = [(28672, 4, 4, 0, ">= 20x"), (114688, 4, 4, 0, ">= 20x"), (28672, 8, 8, 0, "no target")]


def inputs(i: int, n: int, k: int, m: int, t: int, dtype: torch.dtype = C64):
    """h [n,K,M] and s [n,K] or [n,T,K]; a static channel is passed to ours as h [n,1,K,M]."""
    g = torch.Generator().manual_seed(i)
    s = (n, t, k) if t else (n, k)
    return tuple(torch.randn(shape, dtype=dtype, generator=g) for shape in ((n, k, m), s))


def ours(h, s):
    """The call a user makes."""
    return sf.rzf_precode(h if s.ndim == 2 else h.unsqueeze(1), s, ALPHA)


def worst_error(got, want) -> float:
    return max(float((a.cpu() - b).abs().max() / b.abs().max()) for a, b in zip(got, want, strict=True))


def forward_case(n: int, k: int, m: int, t: int, target: str, dtype: torch.dtype = C64) -> Case:
    def make(i: int):
        return inputs(i, n, k, m, t, dtype)

    def check() -> float:
        h, s = make(0)
        got = ours(*timing.to_device((h, s)))
        wide = h if s.ndim == 2 else h.unsqueeze(1)
        want, _ = reference.rzf_precode(wide.to(torch.complex128), s.to(torch.complex128), ALPHA)
        return worst_error((got,), (want,))

    samples = max(t, 1)
    return Case(
        "rzf_precode",
        f"{n} of {k}x{m}" + (f", {t} samples each" if t else ""),
        make,
        ours,
        {name: (lambda h, s, f=f: f(h, s, ALPHA)) for name, f in PEERS.items()},
        lambda h, s: reference.rzf_precode(h if s.ndim == 2 else h.unsqueeze(1), s, ALPHA)[0],
        check,
        # unit roundoff times the condition number that alpha = 1 allows, and the length of the sums
        roundoff(dtype) * 8 * (k + m),
        dtype.itemsize * n * (k * m + samples * (k + m)),
        flops=8 * n * (k * k * m // 2 + k**3 // 6 + samples * (k * k + k * m)),
        target=target,
        rivals=rivals_for("rzf_precode", n=n, k=k, m=m, t=t, alpha=ALPHA, dtype=dtype),
        dtype=name_of(dtype),
    )


def gradient_case(n: int, k: int, m: int, t: int, target: str, dtype: torch.dtype = C64) -> Case:
    def make(i: int):
        h, s = inputs(i, n, k, m, t, dtype)
        g = torch.randn(n, m, dtype=dtype, generator=torch.Generator().manual_seed(i + 1000))
        alpha = torch.tensor(ALPHA, dtype=dtype.to_real())
        return h.requires_grad_(), s.requires_grad_(), alpha.requires_grad_(), g

    run = peers.rzf_gradients(sf.rzf_precode)

    def check() -> float:
        h, s, alpha, g = make(0)
        got = run(*timing.to_device((h, s, alpha, g)))
        wide = [v.detach().to(torch.complex128 if v.is_complex() else torch.float64) for v in (h, s, alpha, g)]
        twin = peers.rzf_gradients(lambda *a: reference.rzf_precode(*a)[0])
        want = twin(*(v.requires_grad_() for v in wide[:3]), wide[3])
        return worst_error(got, want)

    def differentiable(solver):
        def forward(h, s, alpha):
            gram = h @ h.mH + alpha * torch.eye(k, dtype=h.dtype, device=h.device)
            return (h.mH @ solver(gram, s.unsqueeze(-1))).squeeze(-1)

        return peers.rzf_gradients(forward)

    return Case(
        "rzf_precode+grad",
        f"{n} of {k}x{m}",
        make,
        run,
        {
            "solve": differentiable(torch.linalg.solve),
            "cholesky": differentiable(lambda a, b: torch.cholesky_solve(b, torch.linalg.cholesky_ex(a)[0])),
            "inv": differentiable(lambda a, b: torch.linalg.inv_ex(a)[0] @ b),
        },
        peers.rzf_gradients(lambda *a: reference.rzf_precode(*a)[0]),
        check,
        roundoff(dtype) * 64 * (k + m),
        dtype.itemsize * n * (3 * k * m + 3 * k + 2 * m),
        flops=8 * n * (k * k * m + k**3 // 3 + 3 * k * k + 6 * k * m),
        target=target,
        rivals=rivals_for("rzf_precode+grad", n=n, k=k, m=m, t=t, alpha=ALPHA, dtype=dtype),
        dtype=name_of(dtype),
    )


PEERS = {
    "solve": peers.rzf_solve,
    "cholesky": peers.rzf_cholesky,
    "inv": peers.rzf_inverse,
    "eliminate": peers.rzf_eliminate,
}


def cases(quick: bool) -> list[Case]:
    """The sizes of the design targets."""
    if quick:
        size = (2048, 4, 4, 0, "quick, no target")
        return [forward_case(*size), forward_case(*size, C128), gradient_case(*size)]
    wide = [make(*size, C128) for make in (forward_case, gradient_case) for size in WIDE]
    return [forward_case(*size) for size in SIZES] + [gradient_case(*size) for size in GRADIENTS] + wide
