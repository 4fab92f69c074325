"""Likelihood scores of channel and codeword in one pass over the residual."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from ..reference import LikelihoodScore
from ..reference.levels import Level
from . import _blocks, _checks, _levels
from ._arrays import array_function
from ._register import Op, fold
from .blockdiag_adjoint import blockdiag_adjoint
from .blockdiag_apply import blockdiag_apply

if TYPE_CHECKING:
    from jaxtyping import Complex


def _outputs(y: Tensor, h: Tensor, x: Tensor, probe: Tensor | None) -> tuple[Tensor, ...]:
    b, u = _blocks.batch_size(y, h, x, probe), h.shape[1]
    energy = y.new_empty(b, dtype=_checks.real_dtype(y))
    return (
        y.new_empty((b, *h.shape[1:])),  # h may carry a lazy conjugate
        torch.empty_like(x) if x.shape[0] == b else x.new_empty((b, *x.shape[1:])),
        energy,
        energy.new_empty((0 if probe is None else b, u)),
        energy.new_empty(0) if probe is None else torch.empty_like(energy),
    )


def _native(y: Tensor, h: Tensor, x: Tensor, noise_var: Tensor | None, probe: Tensor | None, *, cuda: bool):
    y, x = _blocks.plain(y), _blocks.plain(x)
    # H^H stored is read as it lies: copying it first can take longer than the scores
    adjoint = not cuda and h.is_conj() and not h.is_neg() and h.mT.is_contiguous()
    h = h if adjoint else _blocks.plain(h)
    probe = None if probe is None else _blocks.plain(probe)
    noise_var = None if noise_var is None else _blocks.plain(noise_var)
    outs = _outputs(y, h, x, probe)
    u, k, nr, nt, t = *h.shape[1:], x.shape[-1]
    sizes = (outs[0].shape[0], u, k, nr, nt, t)
    if 0 in sizes:
        return _reference(y, h, x, noise_var, probe)
    given = (y, h, x, noise_var, probe)
    pointers = tuple(0 if v is None else v.data_ptr() for v in given)
    strides = tuple(0 if v is None else _blocks.batch_stride(v) for v in given)
    scratch = torch.empty((sizes[0] * k, 2 + u), dtype=torch.float64, device=y.device) if cuda else None
    _blocks.launch(
        _NAME,
        cuda,
        y.device,
        _blocks.is_double(y),
        pointers,
        strides,
        (outs[0].data_ptr(), outs[1].data_ptr(), 0 if scratch is None else scratch.data_ptr()),
        *(o.data_ptr() for o in outs[2:]),
        *(() if cuda else (adjoint,)),
        sizes,
    )
    return outs


def _reference(y: Tensor, h: Tensor, x: Tensor, noise_var: Tensor | None, probe: Tensor | None):
    out = reference.likelihood_score(y, h, x, 1.0 if noise_var is None else noise_var, probe=probe)
    for t in out:
        if t is not None:
            _checks.require_finite(_NAME, "batch item", t)
    none = out.energy.new_empty(0)
    return (*out[:3], none.reshape(0, h.shape[1]), none) if probe is None else tuple(out)


def _fake(y: Tensor, h: Tensor, x: Tensor, noise_var: Tensor | None, probe: Tensor | None):
    b = next((t.shape[0] for t in (y, h, x, probe) if t is not None and t.shape[0] != 1), 1)
    real, u, probed = y.real.dtype, h.shape[1], 0 if probe is None else b
    return (
        h.new_empty((b, *h.shape[1:])),
        x.new_empty((b, *x.shape[1:])),
        y.new_empty(b, dtype=real),
        y.new_empty((probed, u), dtype=real),
        y.new_empty(probed, dtype=real),
    )


def _column(t: Tensor | None, ndim: int):
    """A real [B] factor against a batched tensor; None is 1."""
    return 1.0 if t is None else t.reshape(-1, *(1,) * (ndim - 1))


def _backward(needs, args, outs, grads):
    """Cotangents in torch's convention (real inner product Re<a, b>); R is formed again rather than kept."""
    y, h, x, noise_var, probe = args
    g_h, g_x = grads[0] / _column(noise_var, 5), grads[1] / _column(noise_var, 5)
    r = y - blockdiag_apply(h, x)
    g_r = blockdiag_apply(g_h, x) + blockdiag_apply(h, g_x) + 2 * grads[2].reshape(-1, 1, 1, 1) * r
    grad_h = r.unsqueeze(1) @ g_x.mH - g_r.unsqueeze(1) @ x.mH
    grad_x = blockdiag_adjoint(g_h, r) - blockdiag_adjoint(h, g_r)
    grad_probe = grad_noise = None
    if probe is not None:
        v = 2 * grads[4].reshape(-1, 1, 1, 1) * blockdiag_apply(h, probe)
        grad_h = grad_h + v.unsqueeze(1) @ probe.mH
        grad_probe = 2 * grads[3].reshape(*grads[3].shape, 1, 1, 1) * probe + blockdiag_adjoint(h, v)
        grad_probe = _blocks.sum_to_batch(grad_probe, probe)
    if noise_var is not None:
        inner = sum(
            (torch.view_as_real(g.conj() * o)[..., 0]).flatten(1).sum(1) for g, o in zip(grads, outs[:2], strict=False)
        )
        grad_noise = _blocks.sum_to_batch(-inner / noise_var, noise_var)
    grads_in = [_blocks.sum_to_batch(g, t) for g, t in ((g_r, y), (grad_h, h), (grad_x, x))]
    return *grads_in, grad_noise, grad_probe


def _jvp(args, outs, tangents):
    """Tangents of all five outputs; a missing tangent is zero."""
    y, h, x, noise_var, probe = args
    dy, dh, dx, dn, dp = (
        torch.zeros_like(a) if t is None and a is not None else t for a, t in zip(args, tangents, strict=True)
    )
    r = y - blockdiag_apply(h, x)
    dr = dy - blockdiag_apply(dh, x) - blockdiag_apply(h, dx)
    inv_h = 1.0 / _column(noise_var, 5)
    t_h = (dr.unsqueeze(1) @ x.mH + r.unsqueeze(1) @ dx.mH) * inv_h
    t_x = (blockdiag_adjoint(dh, r) + blockdiag_adjoint(h, dr)) * inv_h
    if noise_var is not None:
        rate = _column(dn / noise_var, 5)
        t_h, t_x = t_h - outs[0] * rate, t_x - outs[1] * rate
    t_e = 2 * torch.view_as_real(r.conj() * dr)[..., 0].flatten(1).sum(1)
    if probe is None:
        return t_h, t_x, t_e, torch.zeros_like(outs[3]), torch.zeros_like(outs[4])
    t_px = 2 * torch.view_as_real(probe.conj() * dp)[..., 0].flatten(2).sum(2)
    v, dv = blockdiag_apply(h, probe), blockdiag_apply(dh, probe) + blockdiag_apply(h, dp)
    t_py = 2 * torch.view_as_real(v.conj() * dv)[..., 0].flatten(1).sum(1)
    b = outs[2].shape[0]
    return t_h, t_x, t_e, t_px.expand(b, -1).clone(), t_py.expand(b).clone()


def _vmap(args, mapped, size):
    outs = _op(*fold(args, mapped, size, (True,) * 5))
    return tuple(o.reshape(size, -1, *o.shape[1:]) if o.shape[0] else o.reshape(size, *o.shape) for o in outs)


_NAME = "likelihood_score"
_op = Op(
    _NAME,
    "(Tensor y, Tensor h, Tensor x, Tensor? noise_var, Tensor? probe) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernels={
        "cpu": lambda *args: _native(*args, cuda=False),
        "cuda": lambda *args: _native(*args, cuda=True),
        "reference": _reference,
    },
    fake=_fake,
    backward=_backward,
    jvp=_jvp,
    vmap=_vmap,
)


def _noise_levels(noise_var: Level, y: Tensor, lead: torch.Size) -> Tensor | None:
    """None for the number 1, else a real [1] or [B] tensor; leading dims of a tensor align from the left."""
    noise_var = _levels.off_host(noise_var, y.device)
    if _levels.is_number(noise_var):
        noise_var = float(noise_var)
        _checks.positive_level(_NAME, "noise_var", noise_var)
        return None if noise_var == 1 else torch.full((1,), noise_var, dtype=_checks.real_dtype(y), device=y.device)
    _levels.check(_NAME, "noise_var", noise_var, tuple(lead), y.device)
    assert isinstance(noise_var, Tensor)
    level = noise_var.to(dtype=_checks.real_dtype(y), device=y.device)
    _levels.require_positive(_NAME, "noise_var", level)
    if level.ndim == 0:
        return level.reshape(1)
    return level.reshape(level.shape + (1,) * (len(lead) - level.ndim)).expand(lead).reshape(-1)


def _broadcast(y: Tensor, h: Tensor, x: Tensor, probe: Tensor | None) -> tuple[torch.Size, tuple[Tensor | None, ...]]:
    """The leading dims and the operands with one flat batch axis; errors name every shape."""
    _blocks.check_hx(_NAME, h, x)
    _blocks.check_hy(_NAME, h, y)
    if x.shape[-1] != y.shape[-1]:
        raise _checks.shape_error(_NAME, _blocks.NEED, y=y, h=h, x=x)
    if probe is not None and probe.shape[-4:] != x.shape[-4:]:
        raise _checks.shape_error(_NAME, "probe shaped like x", x=x, probe=probe)
    given = [("y", y, 3), ("h", h, 4), ("x", x, 4)] + ([] if probe is None else [("probe", probe, 4)])
    names = " ".join(n for n, _, _ in given)
    lead = _checks.lead_shape(_NAME, _blocks.NEED, names, *((t, n) for _, t, n in given))
    flat = [_checks.flatten_lead(t, lead, n) for _, t, n in given]
    return lead, (*flat, None) if probe is None else tuple(flat)


@array_function
def likelihood_score(
    y: "Complex[Tensor, '*batch blocks nr slots']",
    h: "Complex[Tensor, '*batch users blocks nr nt']",
    x: "Complex[Tensor, '*batch users blocks nt slots']",
    noise_var: Level = 1.0,
    *,
    probe: "Complex[Tensor, '*batch users blocks nt slots'] | None" = None,
) -> LikelihoodScore:
    r"""Scores of the Gaussian likelihood in channel and codeword, its energy and two probe energies, in one pass.

    Signal model: :math:`Y_k = \sum_u H_k^{(u)} X_k^{(u)} + N_k`, N ~ CN(0, noise_var) per complex entry. With the
    residual :math:`R = Y - \sum_u H^{(u)} X^{(u)}`, which is never written to memory,

    .. math:: \nabla_{H^*} \ln p = R X^H / \sigma^2, \qquad \nabla_{X^*} \ln p = H^H R / \sigma^2.

    These are Wirtinger derivatives; torch's ``.grad`` of the real log density is twice as large.

    Args:
        y: received blocks [..., K, Nr, T], complex64 or complex128.
        h: channels [..., U, K, Nr, Nt]. x: codewords [..., U, K, Nt, T].
        noise_var: E|n|^2 per complex entry; a number, or a tensor over the leading dims (aligned from the left).
        probe: optional dX [..., U, K, Nt, T], whose energies calibrate the effective noise (see `pvd_calibrate`).

    Returns:
        LikelihoodScore(score_h [...,U,K,Nr,Nt], score_x [...,U,K,Nt,T], energy [...] = |R|^2,
        probe_x [...,U] = |dX_u|^2, probe_y [...] = |sum_u H_u dX_u|^2). Energies are summed in float64; the last two
        are None without `probe`.

    Raises:
        ValueError: shapes disagree, noise_var <= 0, or on the CPU a result is not finite (batch item and block named).
        TypeError: a real or mixed dtype.

    Source: equations (36), (42) and (43) of "Blind MIMO Semantic Communication via Parallel Variational Diffusion".
    """
    _checks.same_kind(_NAME, _checks.COMPLEX, "y h x probe", y, h, x, probe, optional=1)
    ys, hs, xs = y.shape, h.shape, x.shape
    plain_batch = len(ys) == 4 and len(hs) == len(xs) == 5 and hs[:3] == xs[:3] and hs[4] == xs[3] and ys[3] == xs[4]
    lead: torch.Size
    flat: tuple[Tensor | None, ...]
    if plain_batch and ys[0] == hs[0] and ys[1:3] == hs[2:4] and (probe is None or probe.shape == xs):
        lead, flat = ys[:1], (y, h, x, probe)
    else:
        lead, flat = _broadcast(y, h, x, probe)
    score_h, score_x, energy, probe_x, probe_y = _op(*flat[:3], _noise_levels(noise_var, y, lead), flat[3])
    if len(lead) != 1:
        score_h, score_x = score_h.reshape(*lead, *score_h.shape[1:]), score_x.reshape(*lead, *score_x.shape[1:])
        energy = energy.reshape(lead)
        if probe is not None:
            probe_x, probe_y = probe_x.reshape(*lead, probe_x.shape[-1]), probe_y.reshape(lead)
    if probe is None:
        return LikelihoodScore(score_h, score_x, energy, None, None)
    return LikelihoodScore(score_h, score_x, energy, probe_x, probe_y)
