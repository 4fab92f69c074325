"""Noise injection: the elements cleaner than a level are brought to it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from ..reference.levels import Level
from ..reference.waterfill_inject import per_real, root, rounded, shrink
from . import _checks, _levels, _waterfill
from ._arrays import array_function
from ._register import Op, reference_vjp

if TYPE_CHECKING:
    from jaxtyping import Float

_NAME = "waterfill_inject"


def _cpu(f, d, noise, beta_bar, seed, step, first_item):
    g = torch.empty_like(f, memory_format=torch.contiguous_format)
    if g.numel():
        levels = (None, beta_bar, None, None)
        _waterfill.run_cpu(_NAME, f, d, (None,) * 4, (g, None), levels, (noise, seed, step, first_item))
    return g


def _triton(f, d, noise, beta_bar, seed, step, first_item):
    from ..triton import waterfill_inject as kernel

    state, levels, _, (level,), draw = _waterfill.triton_operands(
        f, d, (), (beta_bar,), (noise, seed, step, first_item)
    )
    return kernel.run(state, levels, level, *draw).reshape(f.shape)


def _formula(f, d, noise, beta_bar, seed, step, first_item):
    """The definition with the op's positional arguments."""
    return reference.waterfill_inject(f, d, beta_bar, noise=noise, seed=seed, step=step, first_item=first_item)


def _reference(f, d, noise, beta_bar, *rest):
    _waterfill.require_unit(_NAME, d, beta_bar)
    g = _formula(f, d, noise, beta_bar, *rest)
    _checks.require_finite(_NAME, "item", g if g.ndim > 1 else g[None])
    return g


def _weights(args) -> tuple[Tensor, Tensor]:
    """Factors of f and of the noise, in the state's dtype."""
    f, d, _, beta_bar = args[:4]
    keep, add = shrink(rounded(beta_bar, f), per_real(d, f.shape[-1]).double())
    return keep.sqrt().to(f.dtype), root(add).to(f.dtype)


def _backward(needs, args, outs, grads):
    keep, add = _weights(args)
    rest = [None, None]
    if needs[1] or needs[3]:
        drawn = _waterfill.with_noise(args, args[0], 2, 4)
        found = reference_vjp(_formula, drawn, [False, needs[1], False, needs[3], False, False, False], grads)
        rest = [found[1], found[3]]
    return keep * grads[0], rest[0], add * grads[0] if needs[2] else None, rest[1], None, None, None


def _jvp(args, outs, tangents):
    if tangents[1] is not None or tangents[3] is not None:
        return NotImplemented  # levels
    keep, add = _weights(args)
    out = torch.zeros_like(args[0])
    for factor, t in ((keep, tangents[0]), (add, tangents[2])):
        out = out if t is None else out + factor * t
    return out


def _packet(a):
    device = a[0].device
    whole = _levels.int_tensor
    return (*a[:3], _levels.as_tensor(a[3], device), whole(a[4], device), whole(a[5], device), a[6])


_op = Op(
    _NAME,
    "(Tensor f, Tensor d, Tensor? noise, Tensor beta_bar, Tensor? seed, Tensor step, int first_item) -> Tensor",
    kernels={"cpu": _cpu, "triton": _triton, "reference": _reference},
    fake=lambda f, *rest: f.new_empty(f.shape),
    backward=_backward,
    jvp=_jvp,
    vmap="rows",
    packet_args=_packet,
)


@array_function
def waterfill_inject(
    f: "Float[Tensor, '*batch n']",
    d: "Float[Tensor, '*batch m']",
    beta_bar: Level,
    *,
    noise: "Float[Tensor, '*batch n'] | None" = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    first_item: int = 0,
) -> "Float[Tensor, '*batch n']":
    r"""Bring every element that is cleaner than a level to that level; copy the others. Philox in the kernel.

    Definition, for an element of unit power with noise variance :math:`d_i < \bar\beta`:

    .. math:: g_i = \sqrt{r_i} f_i + \sqrt{1-r_i}\,\varepsilon_i, \quad r_i = \frac{1-\bar\beta}{1-d_i},
       \quad 1-r_i = \frac{\bar\beta-d_i}{1-d_i},

    and :math:`g_i = f_i`, bit for bit, where :math:`d_i \ge \bar\beta`. Then :math:`\mathrm{Var}[g|z] = \bar\beta`.

    Args:
        f: unit-power state [..., N], real and imaginary halves, float32 or float64.
        d: noise levels in [0, 1]: [..., N/2], one per symbol (reals i and i + N/2 share it), or [..., N]. An expanded
            view (one level per image) costs no traffic.
        beta_bar: the level, a noise variance in [0, 1]; a number or a tensor over the leading dims. It is rounded once
            to the state's dtype and compared there.
        noise: explicit N(0, 1) like f; else Philox normals of (seed, step, stream 6, first_item + index on axis 0).

    Returns:
        g like f.

    Raises:
        ValueError: shapes disagree; a level outside [0, 1]; neither noise nor seed while beta_bar is not the number 0;
            on the CPU an item that is not finite (it is named). TypeError: mixed dtypes.

    Source: equation (23) of "Semantics-Guided Diffusion for Deep Joint Source-Channel Coding in Wireless Image
    Transmission", with the level of (17) under it.
    """
    _checks.same_kind(_NAME, _checks.REAL, "f d noise", f, d, noise, optional=1)
    _waterfill.check_state(_NAME, f, d, noise=noise)
    _waterfill.check_level(_NAME, "beta_bar", beta_bar, f)
    _waterfill.check_draw(_NAME, noise, beta_bar, seed, step, first_item)
    return _op(f, d, noise, _levels.plain_number(beta_bar), seed, step, first_item)
