"""The fast-fading step as the authors' published code takes it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from ..reference.levels import Level
from ..reference.waterfill_inject import per_real
from ..reference.waterfill_step_authors import BASES, TOPUPS
from . import _checks, _levels, _waterfill
from ._arrays import array_function
from ._register import Op, reference_vjp

if TYPE_CHECKING:
    from jaxtyping import Float

_NAME = "waterfill_step_authors"


def _cpu(f, g, d, x0, noise, beta_t, beta_s, topup, renorm, base, seed, step, first_item):
    new_f, new_g = (torch.empty_like(f, memory_format=torch.contiguous_format) for _ in range(2))
    if f.numel():
        _waterfill.run_cpu(
            _NAME, f, d, (g, x0, None, None), (new_g, new_f), (beta_t, beta_s, None, None),
            (noise, seed, step, first_item), (topup == "variance", renorm, base == "common"),
        )  # fmt: skip
    return new_f, new_g


def _triton(f, g, d, x0, noise, beta_t, beta_s, topup, renorm, base, seed, step, first_item):
    from ..triton import waterfill_step_authors as kernel

    shape = f.shape
    levels: tuple = (beta_t, beta_s)
    if _waterfill.item_rows(f)[1] != 1:  # one image in several rows: one long row, each real with its own level
        if any(isinstance(v, Tensor) and v.ndim > 1 and v.shape[1:].numel() > 1 for v in levels):
            raise NotImplementedError(f"{_NAME}: the GPU kernel takes levels over [B] only")
        levels = tuple(v.flatten() if isinstance(v, Tensor) and v.ndim > 1 else v for v in levels)
        whole = (shape[0], shape[1:].numel())
        d = per_real(d, shape[-1]).expand(shape).reshape(whole)
        f, g, x0, noise = (None if t is None else t.reshape(whole) for t in (f, g, x0, noise))
    state, own, (g_, x_), (high, low), draw = _waterfill.triton_operands(
        f, d, (g, x0), levels, (noise, seed, step, first_item)
    )
    new_f, new_g = kernel.run(state, g_, own, x_, high, low, topup, renorm, base, *draw)
    return new_f.reshape(shape), new_g.reshape(shape)


def _formula(f, g, d, x0, noise, beta_t, beta_s, topup, renorm, base, seed, step, first_item):
    """The definition with the op's positional arguments."""
    return reference.waterfill_step_authors(
        f, g, d, x0, beta_t, beta_s, topup=topup, renorm=renorm, base=base, noise=noise, seed=seed, step=step,
        first_item=first_item,
    )  # fmt: skip


def _reference(*args):
    _waterfill.require_unit(_NAME, args[2], args[5])
    _waterfill.require_unit(_NAME, args[2], args[6])
    outs = _formula(*args)
    for t in outs:
        _checks.require_finite(_NAME, "item", t if t.ndim > 1 else t[None])
    return outs


def _backward(needs, args, outs, grads):
    return reference_vjp(_formula, _waterfill.with_noise(args, args[0], 4, 10), needs, grads)


def _packet(a):
    device = a[0].device
    levels = [_levels.as_tensor(v, device) for v in a[5:7]]
    return (*a[:5], *levels, *a[7:10], _levels.int_tensor(a[10], device), _levels.int_tensor(a[11], device), a[12])


_op = Op(
    _NAME,
    "(Tensor f, Tensor g, Tensor d, Tensor x0, Tensor? noise, Tensor beta_t, Tensor beta_s, str topup, bool renorm, "
    "str base, Tensor? seed, Tensor step, int first_item) -> (Tensor, Tensor)",
    kernels={"cpu": _cpu, "triton": _triton, "reference": _reference},
    fake=lambda f, *rest: (f.new_empty(f.shape), f.new_empty(f.shape)),
    backward=_backward,
    vmap="rows",
    packet_args=_packet,
)


@array_function
def waterfill_step_authors(
    f: "Float[Tensor, '*batch n']",
    g: "Float[Tensor, '*batch n']",
    d: "Float[Tensor, '*batch m']",
    x0: "Float[Tensor, '*batch n']",
    beta_t: Level,
    beta_s: Level,
    *,
    topup: str = "amplitude",
    renorm: bool = True,
    base: str = "own",
    noise: "Float[Tensor, '*batch n'] | None" = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    first_item: int = 0,
) -> tuple["Float[Tensor, '*batch n']", "Float[Tensor, '*batch n']"]:
    r"""Carry a fast-fading state from level t to level s as the authors' published code does, for equal numbers.

    It keeps two arrays: f, the un-normalised state, and g, which the network sees. With each element's own level
    :math:`b_i = \min(d_i, \beta_t)`: where :math:`b_i \ge \beta_s`,

    .. math:: f'_i = A_i o_i + B_i \hat x_{0,i}, \quad A_i = \sqrt{\beta_s/\beta_i'},
       \quad B_i = \sqrt{1-\beta_s} - A_i\sqrt{1-\beta_i'},

    from the origin :math:`o = f, \beta_i' = b_i` (``base="own"``) or :math:`o = g, \beta_i' = \beta_t` ("common"); the
    others keep f. Then every element cleaner than s is topped up, :math:`g'_i = \sqrt{r_i} f'_i + c_i \varepsilon_i` with
    :math:`c_i = \sqrt{\beta_s} - \sqrt{r_i b'_i}` (``topup="amplitude"``: standard deviations are added like amplitudes,
    which leaves up to 3 dB too little noise) or :math:`\sqrt{1-r_i}` ("variance", as the paper derives), and with
    ``renorm`` g' is scaled to unit mean square per item. Use :func:`waterfill_step` for the paper's algorithm.

    Args:
        f, g: state and network input, [..., N]; d: the channel's noise levels as in :func:`waterfill_step`, constant over
            a run. x0: prediction from g, like f, or bfloat16 beside a float32 state. beta_t, beta_s: levels; equal ones
            only top up, which starts a run.
        noise, seed, step, first_item: as in :func:`waterfill_step`.

    Returns:
        (f', g'). A noise-free element (d = 0) stays as received; the published code divides by its root and gives NaN.

    Raises:
        ValueError: shapes disagree, an unknown topup or base, a level outside [0, 1], no noise and no seed; on the CPU
            an item that is not finite (it is named). TypeError: mixed dtypes.

    Source: the authors' published code for "Semantics-Guided Diffusion for Deep Joint Source-Channel Coding in Wireless
    Image Transmission"; it departs from Algorithm 3 as said above.
    """
    _checks.require_tensors(_NAME, f=f, g=g, d=d, x0=x0)
    _checks.same_kind(_NAME, _checks.REAL, "f g d noise", f, g, d, noise, optional=1)
    _waterfill.check_predictions(_NAME, f, x0=x0)
    _waterfill.check_state(_NAME, f, d, g=g, x0=x0, noise=noise)
    for name, value, known in (("topup", topup, TOPUPS), ("base", base, BASES)):
        if value not in known:
            raise ValueError(f"{_NAME}: {name} must be one of {', '.join(known)}, got {value!r}")
    _waterfill.check_level(_NAME, "beta_t", beta_t, f)
    _waterfill.check_level(_NAME, "beta_s", beta_s, f)
    _waterfill.check_draw(_NAME, noise, beta_s, seed, step, first_item)
    levels = map(_levels.plain_number, (beta_t, beta_s))
    return _op(f, g, d, x0, noise, *levels, topup, renorm, base, seed, step, first_item)
