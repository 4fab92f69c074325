"""The textbook LMMSE equaliser in double precision, and bounds of what ours may differ from it."""

import torch
from rzf_cases import DOUBLE, columns
from sf_testing import dot_growth, unit, wide


def textbook(y, h, noise_var):
    """(s_hat, noise_eff) in double precision; gain and 1 - gain are sums of positive terms, so both are relatively exact.

    With h = U diag(sigma) V^H, diag(G h)_i = sum_j |V_ij|^2 sigma_j^2/(sigma_j^2 + v), and likewise 1 - diag(G h).
    """
    y, h = wide(y, h)
    lead = torch.broadcast_shapes(y.shape[:-1], h.shape[:-2])
    v = columns(noise_var, lead)[..., 0]
    nr, nt = h.shape[-2:]
    left, sigma, right = torch.linalg.svd(h.expand(*lead, nr, nt), full_matrices=True)
    n = min(nr, nt)
    power = right.mH.abs().square()  # [nt of symbols, nt of modes]
    square = torch.zeros(*lead, nt, dtype=torch.float64)
    square[..., :n] = sigma.square()
    filtered = sigma / (sigma.square() + v) * (left[..., :n].mH @ y.unsqueeze(-1)).squeeze(-1)
    biased = (right.mH[..., :n] @ filtered.unsqueeze(-1)).squeeze(-1)
    gain = (power @ (square / (square + v)).unsqueeze(-1)).squeeze(-1)
    rest = (power @ (v / (square + v)).unsqueeze(-1)).squeeze(-1)
    return biased / gain, rest / gain


def bounds(y, h, noise_var, dtype, difference=False):
    """Bounds of s_hat and noise_eff: float64 inside, one rounding to the result's dtype.

    With A the smaller Gram matrix plus v, dA at most u * growth * trace: the biased estimate moves by |A^-1| (dA |G y| +
    rounding of h^H y), gains by |A^-1| dA. The double-precision formula above is allowed as much. `difference`: noise_eff
    is formed as 1/gain - 1, which the reference does and the kernel does where Nr < Nt.
    """
    s_hat, noise_eff = textbook(y, h, noise_var)
    y, h = wide(y, h)
    v = columns(noise_var, s_hat.shape[:-1])[..., 0]
    nr, nt = h.shape[-2:]
    n, length = min(nr, nt), max(nr, nt)
    sigma = torch.linalg.svdvals(h)
    inverse = 1 / (sigma[..., -1:].square() + v)
    trace = sigma.square().sum(-1, keepdim=True) + n * v
    moved = 2 * DOUBLE * inverse * (dot_growth(length) + dot_growth(3 * n + 1)) * trace  # relative change of A^-1
    gain = 1 / (1 + noise_eff)
    biased = (s_hat.abs() * gain).norm(dim=-1, keepdim=True)
    size = sigma[..., :1] * y.norm(dim=-1, keepdim=True) * inverse
    d_biased = moved * (biased + size)
    d_gain = moved * (gain + sigma[..., :1].square() * inverse)
    d_rest = moved + 4 * DOUBLE if nt > nr or difference else moved * v * inverse
    return (
        d_biased / gain + s_hat.abs() * d_gain / gain + 2 * unit(dtype) * s_hat.abs(),
        d_rest / gain + noise_eff * d_gain / gain + 2 * unit(dtype) * noise_eff,
    )
