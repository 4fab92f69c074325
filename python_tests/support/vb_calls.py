"""The ops of the expert mixture with operands to call them with, for tests that treat all ops alike."""

import torch
from sf_testing import draw
from torch import Tensor
from vb_cases import elbo_state, pilots, state, weights

import semcom_fast as sf

CONSTANT = {"pilot_posterior_step": range(4, 10), "renoise": (2,), "elbo_reduce": (3, 4, 6, 7, 8)}  # not differentiable
LEVELS = {"noise_var": 0.3, "alpha_bar": 0.42, "beta": 0.05, "lam": 1.3}


def _step(lik):
    def fn(u, s, v, h_t, eps, weights, yv):
        return sf.pilot_posterior_step(h_t, eps, weights, yv, sf.PilotSVD(u, s, v), **LEVELS, lik=lik)

    return fn


def calls(dtype: torch.dtype = torch.complex128, batch: int = 3) -> dict:
    """name -> (function of keyword tensors, those tensors); noise is explicit where the op draws. `dtype` is complex."""
    c = elbo_state(batch, 3, 2, dtype=dtype)
    own = state(batch, dtype=dtype, shared=False)
    real = dtype.to_real()
    L, D = -40 * draw(batch, 4, dtype=real).abs(), -8 * draw(batch, 4, seed=1, dtype=real).abs()

    def elbo(eps, h, yv, noise, u, s, v):
        svd = sf.PilotSVD(u, s, v)
        rest = {"noise_var": 0.3, "tau": 30, "noise": noise}
        return sf.elbo_reduce(eps, h, c.steps, c.table, c.weights, yv, svd, **rest)

    def operands(c):
        return {"h_t": c.h, "eps": c.eps, "weights": c.w, "yv": c.yv} | c.svd._asdict()

    reduce = {"eps": c.eps, "h": c.h, "yv": c.yv, "noise": c.noise} | c.svd._asdict()
    shared = state(batch, dtype=dtype)
    return {
        "pilot_svd": (lambda pilots: tuple(sf.pilot_svd(pilots)), {"pilots": own.p}),
        "pilot_posterior_step": (_step("dmps"), operands(shared)),
        "pilot_posterior_step x0": (_step("x0"), operands(own)),
        "renoise": (lambda h, noise: sf.renoise(h, c.steps, c.table, noise=noise), {"h": c.h, "noise": c.noise}),
        "elbo_reduce": (elbo, reduce),
        "dirichlet_responsibilities": (lambda L, D: sf.dirichlet_responsibilities(L, D, 0.7), {"L": L, "D": D}),
        "dirichlet_responsibilities gamma": (
            lambda L, D, gamma0, gamma: sf.dirichlet_responsibilities(L, D, gamma0, gamma=gamma, eta=0.5),
            {"L": L, "D": D, "gamma0": L[0].abs() + 0.1, "gamma": D.abs() + 0.1},
        ),
    }


def outputs(result: Tensor | tuple) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, tuple) else (result,)


def gradient_cases() -> dict:
    """name -> (function, positional tensors in double precision): the differentiable operands of each op."""
    c, own = state(2, 2, 3, 2, 2), state(2, 2, 3, 4, 2, shared=False, seed=7)
    e = elbo_state(2, 2, 2, 2, 3, 2)
    steps, table, w = e.steps, e.table, e.weights

    def step(svd, lik):
        return lambda h, eps, w, yv: sf.pilot_posterior_step(h, eps, w, yv, svd, **LEVELS, lik=lik)

    def elbo(**draws):
        return lambda eps, h, yv, *noise: sf.elbo_reduce(
            eps, h, steps, table, w, yv, e.svd, noise_var=0.3, tau=40, **(draws or {"noise": noise[0]})
        )

    L, D = (-3 * draw(2, 3, seed=s, dtype=torch.float64).abs() for s in (21, 22))
    return {
        "pilot_posterior_step": (step(c.svd, "dmps"), [c.h, c.eps, c.w, c.yv]),
        "pilot_posterior_step x0": (step(own.svd, "x0"), [own.h, own.eps, own.w, own.yv]),
        "renoise": (lambda h, n: sf.renoise(h, steps, table, noise=n), [e.h, e.noise]),
        "renoise seed": (lambda h: sf.renoise(h, steps, table, seed=3), [e.h]),
        "elbo_reduce": (elbo(), [e.eps, e.h, e.yv, e.noise]),
        "elbo_reduce seed": (elbo(seed=3), [e.eps, e.h, e.yv]),
        "dirichlet_responsibilities": (lambda L, D: sf.dirichlet_responsibilities(L, D, 0.7, eta=0.5), [L, D]),
    }


def samples(dtype: torch.dtype, seed: Tensor) -> dict:
    """Positional arguments of the registered ops: see docs/conventions.md for their meaning."""
    c, own = state(3, 2, 4, 3, 2, dtype=dtype), state(3, 2, 4, 5, 2, dtype=dtype, shared=False)
    e = elbo_state(3, 2, 2, dtype=dtype)
    steps = torch.tensor(e.steps)
    bar, w = e.table[steps], e.weights[steps]
    one = [torch.tensor(v, dtype=torch.float64) for v in LEVELS.values()]
    each = [v * torch.tensor([0.8, 1.0, 1.2], dtype=torch.float64) for v in one]
    L, D = (-draw(3, 4, seed=s, dtype=dtype.to_real()).abs() for s in (1, 2))
    prior = torch.full_like(L, 0.7)
    return {
        "pilot_posterior_step": [
            (c.h, c.eps, c.w, c.yv, c.svd.u, c.svd.s, *one, False),
            (own.h, own.eps, own.w, own.yv, own.svd.u, own.svd.s, *each, True),
        ],
        "renoise": [(e.h, steps, bar, seed, 5, None), (e.h, steps, bar, None, 0, e.noise)],
        "elbo_reduce": [
            (e.eps, e.h, steps, bar, w, e.yv, e.svd.u, e.svd.s, one[0], 1, seed, 5, None),
            (e.eps, e.h, steps, bar, w, e.yv, e.svd.u, e.svd.s, each[0], 0, None, 0, e.noise),
        ],
        "dirichlet_responsibilities": [(L, D, prior, prior + 1, 0.5)],
    }


def estimate(y: Tensor, eps: Tensor, x: Tensor) -> Tensor:
    """A posterior step, its noised versions and their evidence, beside complex arithmetic: y [B,4,3], eps [B,3,4,2]."""
    svd = sf.PilotSVD(torch.eye(2, dtype=y.dtype), torch.ones(2, dtype=y.real.dtype), torch.eye(2, dtype=y.dtype))
    noise_var, yv = y.detach().abs().square().mean((1, 2)), 2 * y[..., :2]
    weights = eps.detach().abs().square().mean((2, 3))
    h = sf.pilot_posterior_step(yv, eps, weights, yv, svd, noise_var=noise_var, alpha_bar=0.4, beta=0.1, lik="x0")
    noisy = sf.renoise(h, [30, 60], [0.5, 0.2], seed=3)
    terms = sf.elbo_reduce(
        noisy[:, :, None] * eps[:, None], h, [30, 60], [0.5, 0.2], [1, 2], yv, svd, noise_var=noise_var, tau=60, seed=3
    )
    rho, _ = sf.dirichlet_responsibilities(*terms, 1.0, eta=0.1)
    return h * rho.sum(-1)[:, None, None] + noisy.sum(1) + x.sum((1, 2, 4))[:, None]


__all__ = ["CONSTANT", "LEVELS", "calls", "estimate", "gradient_cases", "outputs", "pilots", "samples", "weights"]
