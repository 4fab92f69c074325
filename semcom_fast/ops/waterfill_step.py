"""One step of water-filling denoising: guidance, DDIM, masked update and the next injection, fused."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from ..reference.levels import Level, align_left
from ..reference.waterfill_inject import per_real, root, rounded, shrink
from ..reference.waterfill_step import ddim
from . import _checks, _levels, _waterfill
from ._arrays import array_function
from ._register import Op, reference_vjp

if TYPE_CHECKING:
    from jaxtyping import Float

_NAME = "waterfill_step"
_TENSORS = 7  # g, x0, f, d, x0_uncond, x0_prev, noise; then four levels, seed, step, first_item


def _cpu(g, x0, f, d, x0_uncond, x0_prev, noise, *rest):
    *levels, seed, step, first_item = rest
    out = torch.empty_like(g, memory_format=torch.contiguous_format)
    if out.numel():
        inputs = (g, x0, x0_uncond, x0_prev)
        _waterfill.run_cpu(_NAME, f, d, inputs, (out, None), levels, (noise, seed, step, first_item))
    return out


def _triton(g, x0, f, d, x0_uncond, x0_prev, noise, *rest):
    from ..triton import waterfill_step as kernel

    *levels, seed, step, first_item = rest
    state, own, (g_, x_, uncond, prev), (beta_t, beta_s, guidance, ratio), draw = _waterfill.triton_operands(
        f, d, (g, x0, x0_uncond, x0_prev), levels, (noise, seed, step, first_item)
    )
    return kernel.run(g_, x_, state, own, beta_t, beta_s, uncond, guidance, prev, ratio, *draw).reshape(g.shape)


def _formula(g, x0, f, d, x0_uncond, x0_prev, noise, beta_t, beta_s, guidance, ratio, seed, step, first_item):
    """The definition with the op's positional arguments."""
    return reference.waterfill_step(
        g, x0, f, d, beta_t, beta_s, x0_uncond=x0_uncond, guidance=guidance, x0_prev=x0_prev, ratio=ratio, noise=noise,
        seed=seed, step=step, first_item=first_item,
    )  # fmt: skip


def _reference(*args):
    d, beta_t, beta_s = args[3], args[7], args[8]
    _waterfill.require_unit(_NAME, d, beta_t)
    _waterfill.require_unit(_NAME, d, beta_s)
    if args[5] is not None and d.device.type == "cpu" and _checks.readable(d):
        waits = d < rounded(beta_t, args[0])
        if bool(waits.any()):
            raise _waterfill.still_waiting(
                _NAME, int(waits.reshape(_waterfill.item_rows(args[0])[0], -1).any(1).nonzero()[0])
            )
    out = _formula(*args)
    _checks.require_finite(_NAME, "item", out if out.ndim > 1 else out[None])
    return out


def _weights(args) -> dict[int, Tensor]:
    """Factor of every tensor argument by its position, in the state's dtype: the step is linear in them."""
    g, _, _, d, x0_uncond, x0_prev, _, beta_t, beta_s, guidance, ratio = args[:11]
    high, low = rounded(beta_t, g), rounded(beta_s, g)
    own = per_real(d, g.shape[-1]).double()
    a, b = ddim(high, low)
    done, active = high == 0, own >= low
    a = torch.where(done, 1, torch.where(active, a, 0))
    b = torch.where(~done & active, b, 0)
    keep, add = shrink(low, own)
    waits = ~done & ~active
    factors = {0: a, 1: b, 2: torch.where(waits, keep.sqrt(), 0), 6: torch.where(waits, root(add), 0)}
    if x0_prev is not None:
        half = 0.5 / align_left(ratio, g.ndim, g.device)
        factors[5] = -half * b
        factors[1] = b = (1 + half) * b
    if x0_uncond is not None:
        w = align_left(guidance, g.ndim, g.device)
        factors[1], factors[4] = w * b, (1 - w) * b
    return {at: factor.to(g.dtype) for at, factor in factors.items() if args[at] is not None}


def _backward(needs, args, outs, grads):
    out: list[Tensor | None] = [None] * len(args)
    for at, factor in _weights(args).items():
        if needs[at]:
            out[at] = (factor * grads[0]).to(args[at].dtype)
    rest = [need and (at == 3 or _TENSORS <= at < _TENSORS + 4) for at, need in enumerate(needs)]
    if any(rest):
        drawn = _waterfill.with_noise(args, args[0], 6, 11)
        for at, value in enumerate(reference_vjp(_formula, drawn, rest, grads)):
            out[at] = value if rest[at] else out[at]
    return out


def _jvp(args, outs, tangents):
    if any(tangents[at] is not None for at in (3, *range(_TENSORS, _TENSORS + 4))):
        return NotImplemented  # levels
    out = torch.zeros_like(args[0])
    for at, factor in _weights(args).items():
        if tangents[at] is not None:
            out = out + factor * tangents[at].to(out.dtype)
    return out


def _packet(a):
    device = a[0].device
    levels = [_levels.as_tensor(v, device) for v in a[_TENSORS : _TENSORS + 4]]
    return (*a[:_TENSORS], *levels, _levels.int_tensor(a[11], device), _levels.int_tensor(a[12], device), a[13])


_op = Op(
    _NAME,
    "(Tensor g, Tensor x0, Tensor f, Tensor d, Tensor? x0_uncond, Tensor? x0_prev, Tensor? noise, Tensor beta_t, "
    "Tensor beta_s, Tensor? guidance, Tensor? ratio, Tensor? seed, Tensor step, int first_item) -> Tensor",
    kernels={"cpu": _cpu, "triton": _triton, "reference": _reference},
    fake=lambda g, *rest: g.new_empty(g.shape),
    backward=_backward,
    jvp=_jvp,
    vmap="rows",
    packet_args=_packet,
)


@array_function
def waterfill_step(
    g: "Float[Tensor, '*batch n']",
    x0: "Float[Tensor, '*batch n']",
    f: "Float[Tensor, '*batch n']",
    d: "Float[Tensor, '*batch m']",
    beta_t: Level,
    beta_s: Level,
    *,
    x0_uncond: "Float[Tensor, '*batch n'] | None" = None,
    guidance: Level | None = None,
    x0_prev: "Float[Tensor, '*batch n'] | None" = None,
    ratio: Level | None = None,
    noise: "Float[Tensor, '*batch n'] | None" = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    first_item: int = 0,
) -> "Float[Tensor, '*batch n']":
    r"""Carry a water-filling state from level t to level s, ready for the network: one pass, Philox in the kernel.

    Definition, with :math:`A = \sqrt{\beta_s/\beta_t}` and :math:`B = \sqrt{1-\beta_s} - A\sqrt{1-\beta_t}`:

    .. math:: g'_i = \begin{cases} A g_i + B \hat x_{0,i} & d_i \ge \beta_s \\
       \sqrt{r_i} f_i + \sqrt{1-r_i}\,\varepsilon_i & d_i < \beta_s, \end{cases}
       \qquad r_i = \frac{1-\beta_s}{1-d_i}.

    Elements noisier than s take the deterministic step; cleaner ones wait as received and get the noise that brings them
    to s (see :func:`waterfill_inject`). This one array is the whole state of the algorithm: an element's own level is
    always min(d, beta_t). beta_t = 0 returns g; beta_s = 0 returns the prediction itself.

    Args:
        g: state at level t as the network saw it, [..., N], float32 or float64.
        x0: prediction of the clean latent, like g; bfloat16 is read as it is beside a float32 state.
        f, d: what :func:`waterfill_equalise` gave (d [..., N/2] per symbol or [..., N]); constant over a run.
        beta_t, beta_s: noise variances in [0, 1], numbers or tensors over the leading dims ([B], aligned from the left),
            rounded once to the state's dtype.
        x0_uncond, guidance: classifier-free guidance, x0 <- w x0 + (1-w) x0_uncond.
        x0_prev, ratio: second-order multistep (DPM-Solver++ 2M), x0 <- (1 + 1/(2 ratio)) x0 - x0_prev/(2 ratio); defined
            only while no element waits. ratio = inf is the plain step.
        noise: explicit N(0, 1) like g; else Philox normals of (seed, step, stream 6, first_item + index on axis 0),
            drawn for waiting elements only; `step` is the index of level s.

    Returns:
        g' like g.

    Raises:
        ValueError: shapes disagree; a level outside [0, 1]; guidance or ratio without its prediction; neither noise nor
            seed while beta_s is not the number 0; on the CPU an item that is not finite, or x0_prev while an element
            waits (the item is named). TypeError: mixed dtypes.

    Source: Algorithms 2 and 3, equations (18), (23), (24) of "Semantics-Guided Diffusion for Deep Joint Source-Channel
    Coding in Wireless Image Transmission"; the first term of (18) is sqrt(1-beta_s), as (24) has it, and line 11 of
    Algorithm 3 compares variances.
    """
    _checks.require_tensors(_NAME, g=g, x0=x0, f=f, d=d)
    _checks.same_kind(_NAME, _checks.REAL, "g f d noise", g, f, d, noise, optional=1)
    _waterfill.check_predictions(_NAME, g, x0=x0, x0_uncond=x0_uncond, x0_prev=x0_prev)
    _waterfill.check_state(_NAME, f, d, g=g, x0=x0, x0_uncond=x0_uncond, x0_prev=x0_prev, noise=noise)
    _waterfill.check_level(_NAME, "beta_t", beta_t, g)
    _waterfill.check_level(_NAME, "beta_s", beta_s, g)
    if x0_uncond is not None or guidance is not None:
        _waterfill.check_weight(_NAME, "guidance", guidance, g, needs="x0_uncond", given=x0_uncond)
    if x0_prev is not None or ratio is not None:
        _waterfill.check_weight(_NAME, "ratio", ratio, g, needs="x0_prev", given=x0_prev)
    _waterfill.check_draw(_NAME, noise, beta_s, seed, step, first_item)
    levels = map(_levels.plain_number, (beta_t, beta_s, guidance, ratio))
    return _op(g, x0, f, d, x0_uncond, x0_prev, noise, *levels, seed, step, first_item)
