"""The water-filling ops with operands to call them with, for tests that treat all ops alike."""

import torch
from sf_testing import draw
from torch import Tensor

import semcom_fast as sf


def levels_between(*shape: int, low: float = 0.05, high: float = 0.95, seed: int = 9) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def calls(dtype: torch.dtype = torch.float64, batch: int = 3, n: int = 10) -> dict:
    """name -> (function of keyword tensors, those tensors); noise is explicit. `dtype` is real."""
    kind = dtype.to_complex()
    g, x0, f, noise, uncond, prev = (draw(batch, n, seed=i, dtype=dtype) for i in range(6))
    d = levels_between(batch, n // 2).to(dtype)
    own = levels_between(batch, n, seed=10).to(dtype)
    noisy = levels_between(batch, n // 2, low=0.62, high=0.7).to(dtype)
    state = {"f": f, "d": d, "noise": noise}
    step = {"g": g, "x0": x0, "f": f, "d": d, "noise": noise}
    return {
        "waterfill_equalise": (
            lambda **k: sf.waterfill_equalise(**k, noise_var=0.4),
            {"y": draw(batch, n // 2, seed=7, dtype=kind), "h": draw(batch, n // 2, seed=8, dtype=kind)},
        ),
        "waterfill_equalise slow": (
            lambda **k: sf.waterfill_equalise(**k, noise_var=0.4),
            {"y": draw(batch, n // 2, seed=7, dtype=kind), "h": draw(batch, 1, seed=8, dtype=kind)},
        ),
        "waterfill_inject": (lambda **k: sf.waterfill_inject(beta_bar=0.6, **k), state),
        "waterfill_inject per real": (lambda **k: sf.waterfill_inject(beta_bar=0.6, **k), state | {"d": own}),
        "waterfill_step": (lambda **k: sf.waterfill_step(beta_t=0.7, beta_s=0.5, **k), step),
        "waterfill_step per real": (lambda **k: sf.waterfill_step(beta_t=0.7, beta_s=0.5, **k), step | {"d": own}),
        "waterfill_step guided": (
            lambda **k: sf.waterfill_step(beta_t=0.7, beta_s=0.5, guidance=2.5, **k),
            step | {"x0_uncond": uncond},
        ),
        "waterfill_step 2M": (
            lambda **k: sf.waterfill_step(beta_t=0.6, beta_s=0.5, guidance=2.5, ratio=0.8, **k),
            step | {"d": noisy, "x0_uncond": uncond, "x0_prev": prev},
        ),
        "waterfill_step_authors": (lambda **k: sf.waterfill_step_authors(beta_t=0.7, beta_s=0.5, **k), step),
        "waterfill_step_authors plain": (
            lambda **k: sf.waterfill_step_authors(
                beta_t=0.7, beta_s=0.5, topup="variance", renorm=False, base="common", **k
            ),
            step,
        ),
    }


def outputs(result: Tensor | tuple) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def gradient_cases() -> dict:
    """name -> (function, positional tensors in double precision), every operand and level a tensor that may need one.

    d keeps its distance from the levels, where the step jumps, also when all operands grow by 1.3.
    """
    g, x0, f, noise, uncond, prev = (draw(2, 6, seed=i, dtype=torch.float64) for i in range(6))
    d = torch.tensor([[0.1, 0.52, 0.75], [0.3, 0.05, 0.65]], dtype=torch.float64)
    noisy = torch.tensor([[0.7, 0.62, 0.75], [0.66, 0.72, 0.65]], dtype=torch.float64)
    own = torch.cat([d, d.flip(1)], 1)
    beta_t, beta_s, two = (torch.tensor(v, dtype=torch.float64) for v in ([0.6, 0.55], [0.45, 0.4], [2.0, 0.7]))
    y, h = draw(2, 3, seed=7), draw(2, 3, seed=8)
    step = [g, x0, f, d, noise]

    def authors(options):
        return lambda f, g, d, x0, n, t, s: sf.waterfill_step_authors(f, g, d, x0, t, s, noise=n, **options)

    plain = {"topup": "variance", "renorm": False, "base": "common"}
    return {
        "waterfill_equalise": (lambda y, h, n: sf.waterfill_equalise(y, h, n), [y, h, two]),
        "waterfill_equalise slow": (lambda y, h: sf.waterfill_equalise(y, h, 0.4), [y, h[:, :1]]),
        "waterfill_equalise 0-d": (lambda y, h: sf.waterfill_equalise(y, h, 0.4), [y, h[0, 0]]),
        "waterfill_inject": (lambda f, d, n: sf.waterfill_inject(f, d, 0.45, noise=n), [f, d, noise]),
        "waterfill_inject level": (lambda f, d, n, b: sf.waterfill_inject(f, d, b, noise=n), [f, own, noise, beta_s]),
        "waterfill_inject seed": (lambda f, d: sf.waterfill_inject(f, d, 0.45, seed=3), [f, d]),
        "waterfill_step": (lambda g, x, f, d, n: sf.waterfill_step(g, x, f, d, 0.6, 0.45, noise=n), step),
        "waterfill_step seed": (lambda g, x, f, d: sf.waterfill_step(g, x, f, d, 0.6, 0.45, seed=3), step[:4]),
        "waterfill_step levels": (
            lambda g, x, f, d, n, t, s: sf.waterfill_step(g, x, f, d, t, s, noise=n),
            [*step, beta_t, beta_s],
        ),
        "waterfill_step guided": (
            lambda g, x, f, d, n, u, w: sf.waterfill_step(g, x, f, d, 0.6, 0.45, noise=n, x0_uncond=u, guidance=w),
            [g, x0, f, own, noise, uncond, two],
        ),
        "waterfill_step 2M": (
            lambda g, x, f, d, p, r, u: sf.waterfill_step(
                g, x, f, d, 0.6, 0.45, seed=1, x0_prev=p, ratio=r, x0_uncond=u, guidance=1.5
            ),
            [g, x0, f, noisy, prev, two, uncond],
        ),
        "waterfill_step last": (lambda g, x, f, d: sf.waterfill_step(g, x, f, d, 0.4, 0, seed=1), step[:4]),
        "waterfill_step_authors": (  # the own base never reads g
            lambda f, *rest: authors({})(f, g, *rest),
            [f, d, x0, noise, beta_t, beta_s],
        ),
        "waterfill_step_authors plain": (authors(plain), [f, g, own, x0, noise, beta_t, beta_s]),
    }


def some_of_each(dtype: torch.dtype) -> dict[str, Tensor]:
    """Operands of `one_of_each`; `dtype` is complex. 2 x 37 reals: packs and tails of every width."""
    real = dtype.to_real()
    values = {k: draw(3, 74, seed=i, dtype=real) for i, k in enumerate(("g", "x0", "f", "uncond"))}
    return values | {
        "d": levels_between(3, 37).to(real),
        "y": draw(3, 37, seed=7, dtype=dtype),
        "h": draw(3, 37, seed=8, dtype=dtype),
    }


def one_of_each(ops, t: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Every op of the module `ops` (the package or its reference), drawing from Philox; levels rounded to `dtype`."""
    high, low = torch.tensor([0.6, 0.45], dtype=dtype or t["f"].dtype).double().tolist()
    f, d = ops.waterfill_equalise(t["y"], t["h"], 0.4)
    state, g = ops.waterfill_step_authors(t["f"], t["g"], t["d"], t["x0"], high, low, seed=3, step=2)
    return {
        "equalised f": f,
        "equalised d": d,
        "inject": ops.waterfill_inject(t["f"], t["d"], low, seed=3),
        "step": ops.waterfill_step(
            t["g"], t["x0"], t["f"], t["d"], high, low, seed=3, step=2, x0_uncond=t["uncond"], guidance=2.5
        ),
        "authors f": state,
        "authors g": g,
    }


def samples(dtype: torch.dtype, seed: Tensor, step: Tensor) -> dict:
    """Positional arguments of the registered ops; `dtype` is complex."""
    g, x0, f, noise, uncond, prev = (draw(3, 2, 6, seed=i, dtype=dtype.to_real()) for i in range(6))
    d = draw(3, 2, 3, seed=7, dtype=dtype.to_real()).abs().clamp(max=1)
    levels = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    each = torch.tensor([0.7, 0.6, 0.5], dtype=torch.float64), torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64)
    noisy, weight = torch.full_like(d, 0.9), torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    return {
        "waterfill_equalise": [(draw(3, 2, 4, seed=8, dtype=dtype), draw(3, 2, 1, seed=9, dtype=dtype), weight)],
        "waterfill_inject": [(f, torch.cat([d, d / 2], -1), None, levels[0], seed, step, 5)],
        "waterfill_step": [
            (g, x0, f, d, uncond, None, noise, *each, weight, None, None, step, 5),
            (g, x0, f, noisy, uncond, prev, None, *levels, weight, weight, seed, step, 0),
        ],
        "waterfill_step_authors": [
            (f, g, d, x0, None, *levels, "amplitude", True, "own", seed, step, 5),
            (f, g, d, x0, noise, *each, "variance", False, "common", None, step, 0),
        ],
    }


def denoise(y: Tensor, h: Tensor) -> Tensor:
    """Equalise, inject, a guided step with a level per item and the published variant, beside complex arithmetic."""
    f, d = sf.waterfill_equalise(y, h, 0.3)
    x0, level = f * d.repeat(1, 1, 1, 2), d.detach().mean((1, 2, 3))
    g = sf.waterfill_inject(f, d, level, seed=3)
    g = sf.waterfill_step(g, x0, f, d, level, 0.5 * level, x0_uncond=0.5 * x0, guidance=3.0, seed=3, step=1)
    f, g = sf.waterfill_step_authors(f, g, d, x0, level, 0.5 * level, seed=3, step=2)
    return torch.complex(*(f + g).chunk(2, -1)) * d + y
