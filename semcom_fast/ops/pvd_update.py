"""One inner iteration of parallel variational diffusion."""

import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from .._native import kernel
from ..reference.levels import Level
from ..reference.pvd_update import coefficients
from . import _blocks, _checks, _levels
from ._arrays import array_function
from ._register import Op, reference_vjp, with_noise

if TYPE_CHECKING:
    from jaxtyping import Inexact

_LEVELS = ("sigma", "sigma_above", "zeta", "score_var", "next_var")
_ROOT_HALF = math.sqrt(0.5)  # of the normals that make a complex entry of unit variance


class LevelTable(NamedTuple):
    """The five levels as (tensor, strides over sample, item, group); next_var None means the default."""

    sigma: tuple[Tensor, int, int, int]
    sigma_above: tuple[Tensor, int, int, int]
    zeta: tuple[Tensor, int, int, int]
    score_var: tuple[Tensor, int, int, int]
    next_var: tuple[Tensor, int, int, int] | None


def _layout(mean: Tensor, sample: Tensor, levels: tuple[Any, ...]) -> tuple[int, int, int, int, bool]:
    """(L, B, G, reals per group, score_var has the sample axis); groups exist only where a level has two dims."""
    samples = sample.ndim > mean.ndim
    stacked = samples and isinstance(levels[3], Tensor) and levels[3].ndim == 2
    b, g = (mean.shape[0] if mean.ndim else 1), 1
    for i, v in enumerate(levels):
        if isinstance(v, Tensor) and v.ndim == 2 and not (i == 3 and stacked):
            g = mean.shape[1]
    reals = mean.numel() * (2 if mean.is_complex() else 1)
    return (sample.shape[0] if samples else 1), b, g, reals // max(b * g, 1), stacked


def _real(t: Tensor) -> Tensor:
    t = _blocks.plain(t)
    return torch.view_as_real(t) if t.is_complex() else t


def _drawing(noise: Tensor | None, seed: Any) -> int:
    return 1 if noise is not None else (0 if seed is None else 2)


def _all_numbers(sigma, sigma_above, zeta, score_var, next_var) -> bool:
    """Five Python floats (or the default): what short calls pass, and what needs no look at shapes."""
    same = type(sigma) is type(sigma_above) is type(zeta) is type(score_var) is float
    return same and (next_var is None or type(next_var) is float)


def _cpu(mean, anchor, sample, denoised, score, noise, *rest):
    """Small states take a few microseconds: common cases come first and every look counts."""
    levels, (seed, step, stream, first_item) = rest[:5], rest[5:]
    mean, anchor, sample, denoised, score = _checks.all_plain(mean, anchor, sample, denoised, score)
    new_mean, new_sample = torch.empty_like(mean), torch.empty_like(sample)
    reals = new_sample.numel()
    if not reals:
        return new_mean.copy_(mean), new_sample
    dtype, given, scale = mean.dtype, None if noise is None else _checks.plain(noise), 1.0
    if dtype.is_complex:
        reals, scale = 2 * reals, _ROOT_HALF
    keep: list[Tensor] = []
    if mean.ndim and sample.ndim == mean.ndim and _all_numbers(*levels):
        b = mean.shape[0]
        sizes, table = (1, b, 1, reals // b), levels
    else:
        n_l, b, g, e, stacked = _layout(mean, sample, levels)
        sizes = n_l, b, g, e
        table = tuple(
            None if v is None else _levels.cpu_level(v, i == 3 and stacked, keep) for i, v in enumerate(levels)
        )
    pointers = mean.data_ptr(), anchor.data_ptr(), sample.data_ptr(), denoised.data_ptr(), score.data_ptr()
    bad = kernel("cpu_pvd_update")(
        dtype is torch.complex128 or dtype is torch.float64, sizes,
        (*pointers, 0 if given is None else given.data_ptr()), new_mean.data_ptr(), new_sample.data_ptr(), *table,
        _drawing(noise, seed), scale,
        _levels.to_int(seed), _levels.to_int(step) & 0xFFFFFFFF, stream, first_item,
    )  # fmt: skip
    if bad >= 0 and not _checks.tolerating_non_finite():
        raise ValueError(f"{_NAME}: item {bad} is not finite (NaN or Inf in the input, or overflow), or one of its levels "
                         "sigma, sigma_above, score_var is not positive")  # fmt: skip
    return new_mean, new_sample


def _triton(mean, anchor, sample, denoised, score, noise, *rest):
    from ..triton import pvd_update as triton

    *levels, seed, step, stream, first_item = rest
    n_l, b, g, e, stacked = _layout(mean, sample, tuple(levels))
    sigma, above, zeta, score_var, next_var = levels

    def level(value: Level, sample_axis: bool = False) -> tuple[Tensor, int, int, int]:
        return _levels.device_level(value, sample_axis, mean.device)

    table = LevelTable(
        level(sigma),
        level(above),
        level(zeta),
        level(score_var, stacked),
        None if next_var is None else level(next_var),
    )
    one, many = (b, g, e), (n_l, b, g, e)
    new_mean, new_sample = triton.run(
        _real(mean).reshape(one),
        _real(anchor).reshape(one),
        _real(sample).reshape(many),
        _real(denoised).reshape(many),
        _real(score).reshape(many),
        None if noise is None else _real(noise).reshape(many),
        table,
        seed,
        step,
        stream,
        first_item,
        complex_draw=mean.is_complex(),
    )

    def back(t: Tensor, like: Tensor) -> Tensor:
        return torch.view_as_complex(t.reshape(*like.shape, 2)) if like.is_complex() else t.reshape(like.shape)

    return back(new_mean, mean), back(new_sample, sample)


def _formula(mean, anchor, sample, denoised, score, noise, *rest):
    """The definition with the op's positional arguments."""
    *levels, seed, step, stream, first_item = rest
    if noise is None and seed is None:
        noise = torch.zeros_like(sample)
    return reference.pvd_update(
        mean, anchor, sample, denoised, score, noise=noise, seed=seed, step=step, stream=stream, first_item=first_item,
        **dict(zip(_LEVELS, levels, strict=True)),
    )  # fmt: skip


def draws(mean: Tensor, sample: Tensor, seed: Any, step: Any, stream: int, first_item: int) -> Tensor:
    """The normals a kernel draws for the next sample, [L, ...] where samples are stacked."""
    from .philox_normal import philox_normal

    stacked = sample.ndim > mean.ndim
    address = {"seed": seed, "step": step, "first_item": first_item, "dtype": mean.dtype, "device": mean.device}
    many = [
        philox_normal(mean.shape, stream=stream + 16 * k, **address) for k in range(sample.shape[0] if stacked else 1)
    ]
    return torch.stack(many) if stacked else many[0]


def _reference(*args):
    new_mean, new_sample = _formula(*args)
    stacked = new_sample.ndim > new_mean.ndim
    for t in (new_mean, *(new_sample if stacked else (new_sample,))):
        _checks.require_finite(_NAME, "item", t if t.ndim else t.reshape(1))
    return new_mean, new_sample


def _weights(args) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """zeta, zeta*rho, zeta*D/score_var (each over L) and sqrt(next_var), broadcastable, in the real dtype."""
    mean, sample = args[0], args[2]
    z, rho, per_score, variance = coefficients(mean, sample, *args[6:11])
    z = z / (sample.shape[0] if sample.ndim > mean.ndim else 1)
    real = _checks.real_dtype(mean)
    return z.to(real), (z * rho).to(real), (z * per_score).to(real), variance.sqrt().to(real)


def _backward(needs, args, outs, grads):
    mean, sample = args[0], args[2]
    g_mean, g_sample = grads
    stacked = sample.ndim > mean.ndim
    total = g_mean + (g_sample.sum(0) if stacked else g_sample)
    pull, rho, score, amp = _weights(args)
    many = total.expand(sample.shape) if stacked else total
    n_l = sample.shape[0] if stacked else 1
    out = [
        total,
        pull * n_l * total,
        -(pull + rho) * many,
        rho * many,
        score * many,
        amp * g_sample if needs[5] else None,
    ]
    levels = [None] * 5
    if any(needs[6:11]):
        only = [False] * 6 + list(needs[6:11]) + [False] * 4
        levels = list(reference_vjp(_formula, with_noise(args, 5, 11, partial(draws, mean, sample)), only, grads)[6:11])
    return *out, *levels, None, None, None, None


def _jvp(args, outs, tangents):
    mean, sample = args[0], args[2]
    if any(t is not None for t in tangents[6:11]):
        return NotImplemented  # levels
    pull, rho, score, amp = _weights(args)
    like = (mean, mean, sample, sample, sample, sample)
    dm, da, ds, dd, dg, dn = (torch.zeros_like(k) if t is None else t for k, t in zip(like, tangents[:6], strict=True))
    step = pull * (da - ds) + rho * (dd - ds) + score * dg
    new_mean = dm + (step.sum(0) if sample.ndim > mean.ndim else step)
    return new_mean, new_mean + amp * dn


def _vmap(args, mapped, size):
    """One call per mapped row, so that Philox draws are the same for every row, as a loop over rows would make them."""
    rows = [[a[i] if m else a for a, m in zip(args, mapped, strict=True)] for i in range(size)]
    outs = [_op(*r) for r in rows]
    return torch.stack([o[0] for o in outs]), torch.stack([o[1] for o in outs])


def _packet(a):
    device = a[0].device
    levels = [_levels.as_tensor(v, device) for v in a[6:11]]
    return (*a[:6], *levels, _levels.int_tensor(a[11], device), _levels.int_tensor(a[12], device), *a[13:])


_NAME = "pvd_update"
_op = Op(
    _NAME,
    "(Tensor mean, Tensor anchor, Tensor sample, Tensor denoised, Tensor score, Tensor? noise, Tensor sigma, "
    "Tensor sigma_above, Tensor zeta, Tensor score_var, Tensor? next_var, Tensor? seed, Tensor step, int stream, "
    "int first_item) -> (Tensor, Tensor)",
    kernels={"cpu": _cpu, "triton": _triton, "reference": _reference},
    fake=lambda mean, anchor, sample, *rest: (mean.new_empty(mean.shape), sample.new_empty(sample.shape)),
    backward=_backward,
    jvp=_jvp,
    vmap=_vmap,
    packet_args=_packet,
)


def _check_shapes(mean: Tensor, many: dict[str, Tensor | None], anchor: Tensor) -> None:
    sample = many["sample"]
    assert sample is not None
    ok = anchor.shape == mean.shape and sample.shape[sample.ndim - mean.ndim :] == mean.shape
    ok = ok and sample.ndim - mean.ndim in (0, 1)
    ok = ok and all(t is None or t.shape == sample.shape for t in many.values())
    if not ok:
        given = {k: t for k, t in many.items() if t is not None}
        need = "anchor like mean; sample, denoised, score and noise all like mean or all [L, *mean.shape]"
        raise _checks.shape_error(_NAME, need, mean=mean, anchor=anchor, **given)


def check_numbers(op: str, levels: dict[str, Level | None]) -> None:
    """Levels that are numbers mean something, alone and together; entries of tensors are the kernel's to check."""
    for name, level in levels.items():
        if not _levels.is_number(level):
            continue
        if name == "zeta" and not math.isfinite(level):  # type: ignore[arg-type]
            raise ValueError(f"{op}: zeta must be finite, got {level}")
        if name == "next_var" and not 0 <= level < math.inf:  # type: ignore[operator]
            raise ValueError(f"{op}: next_var must be finite and >= 0, got {level}")
        if name not in ("zeta", "next_var"):
            _checks.positive_level(op, name, level)
    sigma, above = levels["sigma"], levels["sigma_above"]
    if _levels.is_number(sigma) and _levels.is_number(above) and sigma > above:  # type: ignore[operator]
        raise ValueError(f"{op}: sigma must not be above sigma_above, got {sigma} and {above}")


def _check_levels(mean: Tensor, sample: Tensor, levels: tuple[Level | None, ...]) -> None:
    """Numbers mean something; tensors align with the leading dims."""
    check_numbers(_NAME, dict(zip(_LEVELS, levels, strict=True)))
    for name, level in zip(_LEVELS, levels, strict=True):
        if level is not None and not _levels.is_number(level):
            stacked = name == "score_var" and sample.ndim > mean.ndim and getattr(level, "ndim", 0) == 2
            lead = tuple((sample if stacked else mean).shape[:2])
            _levels.check(_NAME, name, level, lead, mean.device)


@array_function
def pvd_update(
    mean: "Inexact[Tensor, '*state']",
    anchor: "Inexact[Tensor, '*state']",
    sample: "Inexact[Tensor, '*samples_state']",
    denoised: "Inexact[Tensor, '*samples_state']",
    score: "Inexact[Tensor, '*samples_state']",
    *,
    sigma: Level,
    sigma_above: Level,
    zeta: Level,
    score_var: Level = 1.0,
    next_var: Level | None = None,
    noise: "Inexact[Tensor, '*samples_state'] | None" = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    stream: int = 0,
    first_item: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""Move the variational mean one inner iteration and draw the next sample, fused, with Philox in the kernel.

    Definition, with :math:`D = s_{j+1}^2 - s_j^2`, :math:`\rho = D/s_j^2`:

    .. math:: m' = m + \zeta\,[(a - x) + \rho\,(\hat x_0 - x) + D\, g / s], \qquad x' = m' + \sqrt{\lambda}\, n.

    The sign is plus: with the printed minus the iteration diverges (the expectation is taken over the variational
    density while the score belongs to the posterior).

    Args:
        mean, anchor: m and a = the mean of the level above, [B, ...], real or complex.
        sample, denoised, score: x, E[x_0|x] and the likelihood score g of x, like mean, or [L, *mean.shape]: then the
            update averages over the L samples. For a complex state g is the Wirtinger score d/dx* ln p.
        sigma, sigma_above: s_j and s_{j+1}. zeta: step size. score_var: s, divides the score; may be [L, B].
        next_var: variance of the next draw per (complex) entry; default lambda_j = s_j^2 D/s_{j+1}^2; 0 draws nothing.
        noise: explicit unit-variance n, like sample. Else Philox normals of (seed, step, stream + 16*l, first_item).
        Levels, seed and step may be numbers or tensors over the leading dims ([B] or [B,U], aligned from the left).

    Returns:
        (new_mean like mean, new_sample like sample).

    Raises:
        ValueError: shapes disagree; neither noise nor seed with a non-zero next_var; on the CPU an item whose result is
            not finite (it is named). TypeError: mixed dtypes.

    Source: equations (31)-(36) of "Blind MIMO Semantic Communication via Parallel Variational Diffusion".
    """
    names = "mean anchor sample denoised score noise"
    _checks.same_kind(_NAME, _checks.ANY, names, mean, anchor, sample, denoised, score, noise, optional=1)
    if not (anchor.shape == mean.shape == sample.shape == denoised.shape == score.shape and noise is None):
        _check_shapes(mean, {"sample": sample, "denoised": denoised, "score": score, "noise": noise}, anchor)
    levels = (sigma, sigma_above, zeta, score_var, next_var)
    if not (
        _all_numbers(*levels)
        and 0 < sigma <= sigma_above < math.inf
        and 0 < score_var < math.inf
        and math.isfinite(zeta)
        and (next_var is None or 0 <= next_var < math.inf)
    ):
        _check_levels(mean, sample, levels)
    _levels.check_draw(_NAME, seed, 0 if noise is not None else step, stream, first_item)
    if next_var is not None and _levels.is_number(next_var) and next_var == 0:
        seed = noise = None
    elif noise is None and seed is None:
        raise ValueError(f"{_NAME} draws the next sample: pass noise= or seed=, or next_var=0 for no draw")
    return _op(mean, anchor, sample, denoised, score, noise, *levels, seed, step, stream, first_item)
