"""One inner iteration of parallel variational diffusion for i.i.d. Gaussian channels."""

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import _native, reference
from .._native import require_core
from ..reference import PVDChannelStep
from ..reference.levels import Level, align_left
from ..reference.pvd_update import coefficients
from . import _blocks, _checks, _levels
from ._arrays import array_function
from ._register import OPS, Op, reference_vjp, with_noise
from .likelihood_score import _backward as score_backward
from .pvd_update import _drawing, check_numbers, draws

if TYPE_CHECKING:
    from jaxtyping import Complex

_LEVELS = ("sigma", "sigma_above", "zeta", "score_var", "next_var", "var")
_NEED = "mean, anchor, sample, noise [B,U,K,Nr,Nt], x, probe [B,U,K,Nt,T], y [B,K,Nr,T]; B = 1 of x, probe, y is shared"
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _fake(y, x, mean, anchor, sample, probe, *rest) -> Outputs:
    real, (b, u) = _checks.real_dtype(y), mean.shape[:2]
    probed = 0 if probe is None else b
    return (
        mean.new_empty(mean.shape),
        mean.new_empty(mean.shape),
        mean.new_empty((b, *x.shape[1:])),
        mean.new_empty(b, dtype=real),
        mean.new_empty((probed, u), dtype=real),
        mean.new_empty(probed, dtype=real),
    )


def _cpu(y, x, mean, anchor, sample, probe, noise, *rest) -> Outputs:
    *levels, seed, step, stream, first_item = rest
    if not mean.numel() or not x.numel():
        return _reference(y, x, mean, anchor, sample, probe, noise, *rest)
    y, x, mean, anchor, sample = map(_blocks.plain, (y, x, mean, anchor, sample))
    probe, noise = (None if t is None else _blocks.plain(t) for t in (probe, noise))
    inputs = tuple(0 if t is None else t.data_ptr() for t in (y, x, probe, mean, anchor, sample, noise))
    strides = tuple(0 if t is None else _blocks.batch_stride(t) for t in (y, x, probe))
    b, u = mean.shape[:2]
    energy = mean.new_empty(b, dtype=_checks.real_dtype(mean))
    score_x = torch.empty_like(x) if x.shape[0] == b else x.new_empty((b, *x.shape[1:]))
    probed = energy.new_empty((0 if probe is None else b, u))
    received = energy.new_empty(0) if probe is None else torch.empty_like(energy)
    outs = (torch.empty_like(mean), torch.empty_like(mean), score_x, energy, probed, received)
    keep: list[Tensor] = []
    table = tuple(v if v is None or type(v) is float else _levels.cpu_level(v, False, keep) for v in levels)
    bad = require_core().cpu_pvd_channel_step(
        _blocks.is_double(mean), (*mean.shape, x.shape[-1]), inputs, strides, tuple(o.data_ptr() for o in outs), table,
        _drawing(noise, seed), math.sqrt(0.5),
        (_levels.to_int(seed), _levels.to_int(step) & 0xFFFFFFFF, stream, first_item),
    )  # fmt: skip
    if bad >= 0 and not _checks.tolerating_non_finite():
        raise ValueError(f"{_NAME}: item {bad} is not finite (NaN or Inf in the input, or overflow), or one of its levels "
                         "sigma, sigma_above, score_var, var is not positive")  # fmt: skip
    return outs


def _triton(y, x, mean, anchor, sample, probe, noise, *rest) -> Outputs:
    from ..triton import pvd_channel_step as kernel

    if not mean.numel() or not x.numel():
        return _reference(y, x, mean, anchor, sample, probe, noise, *rest)
    if not kernel.fits(mean.shape[3], mean.shape[4], x.shape[4]):
        return _in_three_ops(y, x, mean, anchor, sample, probe, noise, *rest)
    *levels, seed, step, stream, first_item = rest
    outs = _fake(y, x, mean, anchor, sample, probe)
    cells = [
        v if v is None or _levels.is_number(v) else _levels.device_level(v, False, mean.device) for v in levels
    ]  # a number stays one: it travels as an argument of the kernel
    y, x, mean, anchor, sample = (torch.view_as_real(_blocks.plain(t)) for t in (y, x, mean, anchor, sample))
    probe, noise = (None if t is None else torch.view_as_real(_blocks.plain(t)) for t in (probe, noise))
    kernel.run(
        y, x, probe, mean, anchor, sample, noise, kernel.ChannelLevels(*cells), seed, step, stream, first_item,
        out=tuple(torch.view_as_real(o) if o.is_complex() else o for o in outs),
    )  # fmt: skip
    return outs


def _in_three_ops(y, x, mean, anchor, sample, probe, noise, *rest) -> Outputs:
    """For blocks larger than the Triton kernel's tiles."""
    *levels, var, seed, step, stream, first_item = rest
    sigma, v = (
        lv.to(mean.device, torch.float64).reshape(lv.shape + (1,) * (5 - lv.ndim)) if isinstance(lv, Tensor) else lv
        for lv in (levels[0], var)
    )
    weight = v / (v + sigma * sigma)
    weight = weight.to(_checks.real_dtype(mean)) if isinstance(weight, Tensor) else weight
    h0 = sample * weight
    home = "cpu" if not mean.is_cuda else "cuda" if _native.cuda_runs_on(mean.device.index) else "reference"
    score_h, *scored = OPS["likelihood_score"].kernels[home](y, h0, x, None, probe)
    update = OPS["pvd_update"].kernels["triton"]
    moved = update(mean, anchor, sample, h0, score_h * weight, noise, *levels, seed, step, stream, first_item)
    return *moved, *scored


def _formula(y, x, mean, anchor, sample, probe, noise, *rest) -> Outputs:
    """The definition with the op's positional arguments."""
    *levels, seed, step, stream, first_item = rest
    if noise is None and seed is None:
        noise = torch.zeros_like(sample)
    out = reference.pvd_channel_step(
        y, x, mean, anchor, sample, probe=probe, noise=noise, seed=seed, step=step, stream=stream,
        first_item=first_item, **dict(zip(_LEVELS, levels, strict=True)),
    )  # fmt: skip
    if out.probe_x is not None and out.probe_y is not None:
        return *out[:4], out.probe_x.expand(mean.shape[:2]), out.probe_y
    none = out.energy.new_empty(0)
    return *out[:4], none.reshape(0, mean.shape[1]), none


def _reference(*args) -> Outputs:
    out = _formula(*args)
    for t in out:
        _checks.require_finite(_NAME, "item", t)
    return out


def _backward(needs, args, outs, grads):
    """Through the update, then the score at the denoised channel, then the denoiser; levels through the definition."""
    y, x, mean, _, sample, probe, _, *rest = args
    real = _checks.real_dtype(mean)
    z, rho, per_score, variance = (t.to(real) for t in coefficients(mean, sample, *rest[:5]))
    v, s = (align_left(level, mean.ndim, mean.device) for level in (rest[5], rest[0]))
    w = (v / (v + s**2)).to(real)
    total = grads[0] + grads[1]
    score_grads = (z * per_score * w * total, *grads[2:])
    g_y, g_h, g_x, _, g_probe = score_backward(needs, (y, w * sample, x, None, probe), None, score_grads)
    out = [
        g_y, g_x, total, z * total, w * (g_h + z * rho * total) - z * (1 + rho) * total, g_probe,
        variance.sqrt() * grads[1] if needs[6] else None,
    ]  # fmt: skip
    levels = [None] * 6
    if any(needs[7:13]):
        only = [False] * 7 + list(needs[7:13]) + [False] * 4
        levels = list(reference_vjp(_formula, with_noise(args, 6, 13, partial(draws, mean, sample)), only, grads)[7:13])
    return *out, *levels, None, None, None, None


def _packet(a):
    device = a[2].device
    levels = [_levels.as_tensor(v, device) for v in a[7:13]]
    return (*a[:7], *levels, _levels.int_tensor(a[13], device), _levels.int_tensor(a[14], device), *a[15:])


_NAME = "pvd_channel_step"
_op = Op(
    _NAME,
    "(Tensor y, Tensor x, Tensor mean, Tensor anchor, Tensor sample, Tensor? probe, Tensor? noise, Tensor sigma, "
    "Tensor sigma_above, Tensor zeta, Tensor score_var, Tensor? next_var, Tensor var, Tensor? seed, Tensor step, "
    "int stream, int first_item) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernels={"cpu": _cpu, "triton": _triton, "reference": _reference},
    fake=_fake,
    backward=_backward,
    vmap="rows",
    packet_args=_packet,
)


def _check(
    state: dict[str, Tensor | None], signals: dict[str, Tensor | None], levels: tuple[Level | None, ...]
) -> None:
    """Shapes of everything, and the sign of levels that are numbers; those of tensors are the kernel's to check."""
    mean, y, x = state["mean"], signals["y"], signals["x"]
    assert mean is not None and y is not None and x is not None
    ok = mean.ndim == x.ndim == 5 and y.ndim == 4 and all(t is None or t.shape == mean.shape for t in state.values())
    if ok:
        b, u, k, nr, nt = mean.shape
        ok = x.shape[1:4] == (u, k, nt) and y.shape[1:] == (k, nr, x.shape[-1])
        probe = signals["probe"]
        ok = ok and (probe is None or probe.shape[1:] == x.shape[1:])
        ok = ok and all(t is None or t.shape[0] in (1, b) for t in signals.values())
    if not ok:
        given = {name: t for name, t in (signals | state).items() if t is not None}
        raise _checks.shape_error(_NAME, _NEED, **given)
    check_numbers(_NAME, dict(zip(_LEVELS, levels, strict=True)))
    for name, level in zip(_LEVELS, levels, strict=True):
        if level is not None and not _levels.is_number(level):
            _levels.check(_NAME, name, level, tuple(mean.shape[:2]), mean.device)


@array_function
def pvd_channel_step(
    y: "Complex[Tensor, 'batch blocks nr slots']",
    x: "Complex[Tensor, 'batch users blocks nt slots']",
    mean: "Complex[Tensor, 'batch users blocks nr nt']",
    anchor: "Complex[Tensor, 'batch users blocks nr nt']",
    sample: "Complex[Tensor, 'batch users blocks nr nt']",
    *,
    sigma: Level,
    sigma_above: Level,
    zeta: Level,
    score_var: Level,
    var: Level = 1.0,
    next_var: Level | None = None,
    probe: "Complex[Tensor, 'batch users blocks nt slots'] | None" = None,
    noise: "Complex[Tensor, 'batch users blocks nr nt'] | None" = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    stream: int = 1,
    first_item: int = 0,
) -> PVDChannelStep:
    r"""The channel's half of an inner iteration where entries are i.i.d. CN(0, var): denoise, score, move, draw, fused.

    Signal model: :math:`Y_k = \sum_u H_k^{(u)} X_k^{(u)} + N_k`. With :math:`w = v/(v+s_j^2)`, the denoised channel
    :math:`\hat H = w\,\tilde H` of the sample, the residual :math:`R = Y - \sum_u \hat H^{(u)} X^{(u)}`,
    :math:`D = s_{j+1}^2 - s_j^2` and :math:`\rho = D/s_j^2`:

    .. math:: m' = m + \zeta\,[(a - \tilde H) + \rho\,(\hat H - \tilde H) + D\, w R X^H / s],
        \qquad \tilde H' = m' + \sqrt{\lambda}\, n, \qquad G_X = \hat H^H R.

    It is `likelihood_score` at :math:`\hat H`, then `pvd_update` with that score through the linear denoiser; neither
    R nor the channel score reaches memory. s must be known beforehand: what `pvd_calibrate` makes of the energies of
    the iteration before.

    Args:
        y: received blocks [B,K,Nr,T], complex64 or complex128. x: codewords [B,U,K,Nt,T]. Either may have B = 1.
        mean, anchor, sample: m, the mean of the level above and the current sample, [B,U,K,Nr,Nt].
        sigma, sigma_above: s_j and s_{j+1}. zeta: step size. score_var: s, the effective noise variance. var: v, of a
            channel entry. next_var: variance of the next draw per entry; default s_j^2 D/s_{j+1}^2; 0 draws nothing.
            Numbers, or tensors over [B] or [B,U] (aligned from the left).
        probe: optional dX like x, whose energies calibrate the effective noise.
        noise: explicit unit-variance n, like mean. Else Philox normals of (seed, step, stream, first_item): those
            `pvd_update` draws.

    Returns:
        PVDChannelStep(mean, sample, both like mean; score_x [B,U,K,Nt,T] = H^H R, not divided by s; energy [B] = |R|^2;
        probe_x [B,U] = |dX_u|^2 and probe_y [B] = |sum_u H_u dX_u|^2 at the denoised channel, None without `probe`).
        Energies are summed in float64.

    Raises:
        ValueError: shapes disagree; neither noise nor seed with a non-zero next_var; on the CPU an item whose result is
            not finite (it is named). TypeError: a real or mixed dtype.

    Differentiable in reverse mode in every operand and level.

    Source: equations (31)-(36), (38) and (43) of "Blind MIMO Semantic Communication via Parallel Variational Diffusion".
    """
    names = "mean y x anchor sample probe noise"
    _checks.same_kind(_NAME, _checks.COMPLEX, names, mean, y, x, anchor, sample, probe, noise, optional=2)
    levels = (sigma, sigma_above, zeta, score_var, next_var, var)
    state = {"mean": mean, "anchor": anchor, "sample": sample, "noise": noise}
    _check(state, {"y": y, "x": x, "probe": probe}, levels)
    _levels.check_draw(_NAME, seed, 0 if noise is not None else step, stream, first_item)
    if _levels.is_number(next_var) and next_var == 0:
        seed = noise = None
    elif noise is None and seed is None:
        raise ValueError(f"{_NAME} draws the next sample: pass noise= or seed=, or next_var=0 for no draw")
    outs = _op(y, x, mean, anchor, sample, probe, noise, *levels, seed, step, stream, first_item)
    return PVDChannelStep(*((*outs[:4], None, None) if probe is None else outs))
