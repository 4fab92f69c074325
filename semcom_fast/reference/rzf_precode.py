"""Reference twin of :func:`semcom_fast.rzf_precode`."""

import math

import torch
from torch import Tensor

from .levels import Level, align_left
from .regularised import system


def rzf_rows(
    h: Tensor, s: Tensor, alpha: Tensor, *, m_form: bool, drop: bool, refuse_zero: bool, apart: bool = False
) -> tuple[Tensor, Tensor]:
    """x = h^H (h h^H + alpha I)^-1 s for h [N,K,M], s [N,K,T], alpha [N]; also info [N]. Inside: complex128.

    `apart`: the columns of s are samples of their own (info [N,T]); else they are streams that share one fate.

    The M-form is (h^H h + alpha I)^-1 h^H s. A singular system gives x = 0, or with `drop` the solution of the rows
    that have a pivot. alpha = 0 with M < K has no K-form.
    """
    m = h.shape[-1]
    real = _finite(h).squeeze(1)
    heard = _finite(s, apart)
    # Zeros in place of NaN and Inf: their gradients are zero too, and the neighbours' stay clean.
    wide = torch.where(real.reshape(-1, 1, 1), h, 0).to(torch.complex128)
    rhs = torch.where(heard.unsqueeze(1), s, 0).to(torch.complex128)
    reg = alpha.double()
    v = wide.mH if m_form else wide
    a, kept, info = system(v, reg, h.dtype)
    info = torch.where(real, info, 1).to(torch.int32)
    if refuse_zero:
        info = torch.where((info == 0) & (reg == 0), m + 1, info).to(torch.int32)
    u = v @ rhs if m_form else rhs
    w = torch.linalg.solve_ex(a, torch.where(kept.unsqueeze(-1), u, 0))[0]  # checked above: never singular
    x = w if m_form else wide.mH @ w
    good = _finite(x.to(h.dtype), apart) & heard
    dead = (((info != 0) & (not drop)) | ~real).unsqueeze(1)
    x = torch.where((dead | ~good).unsqueeze(1), 0, x)
    info = info.unsqueeze(1)
    info = torch.where((info == 0) & ~good, -1, info).to(torch.int32)
    return x.to(h.dtype), info if apart else info[:, 0]


def _finite(t: Tensor, apart: bool = False) -> Tensor:
    """No NaN or Inf in the item [N,1], or with `apart` in each of its columns [N,T]."""
    good = torch.isfinite(torch.view_as_real(t.resolve_conj())).all(-1).all(1)
    return good if apart else good.all(1, keepdim=True)


def rzf_precode(
    h: Tensor,
    s: Tensor,
    alpha: Level,
    *,
    power: float | None = None,
    power_dims: int | None = None,
    on_singular: str = "flag",
    form: str | None = None,
) -> tuple[Tensor, Tensor]:
    """x = h^H (h h^H + alpha I)^-1 s with its total-power normalisation; returns (x, info)."""
    vector = s.ndim == h.ndim - 1
    rhs = s.unsqueeze(-1) if vector else s
    lead = torch.broadcast_shapes(h.shape[:-2], rhs.shape[:-2])
    k, m = h.shape[-2:]
    reg = align_left(alpha, len(lead), h.device).expand(lead).reshape(-1)
    x, info = rzf_rows(
        h.expand(*lead, k, m).reshape(-1, k, m),
        rhs.expand(*lead, *rhs.shape[-2:]).reshape(-1, *rhs.shape[-2:]),
        reg,
        m_form=(m < k) if form is None else form == "M",
        drop=on_singular == "pinv",
        refuse_zero=refuses_zero(k, m, form, on_singular),
    )
    x = x.reshape(*lead, *x.shape[-2:])
    if power is not None:
        dims = max(len(lead) - 1, 0) if power_dims is None else power_dims
        x = scale_power(x, power, tuple(range(-2 - dims, 0)))
    return (x.squeeze(-1) if vector else x), info.reshape(lead)


def refuses_zero(k: int, m: int, form: str | None, on_singular: str | None) -> bool:
    """Zero forcing to more users than antennas has no solution; least squares has to be asked for."""
    return m < k and form != "M" and on_singular != "pinv"


def scale_power(x: Tensor, power: float, dims: tuple[int, ...]) -> Tensor:
    """x sqrt(power*count/|x|^2) over `dims`, in float64; zero stays zero, an energy beyond float64 gives NaN."""
    wide = x.to(torch.complex128)
    energy = torch.view_as_real(wide).square().sum(-1).sum(dims, keepdim=True)
    count = math.prod(x.shape[d] for d in dims)
    factor = torch.where(energy > 0, power * count / torch.where(energy > 0, energy, 1.0), 0.0).sqrt()
    return (wide * torch.where(energy == torch.inf, torch.nan, factor)).to(x.dtype)
