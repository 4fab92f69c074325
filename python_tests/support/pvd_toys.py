"""Networks small enough to reason about, and the PVD loop written out by hand, for the tests of the receiver."""

import torch
from sf_testing import draw
from torch import Tensor

import semcom_fast as sf


class RollEncoder:
    """Affine, row-independent and free of reductions: neighbouring source entries become complex symbols.

    With only additions and products per entry, a codeword has the same bits in any batch.
    """

    def __init__(self, users: int, k: int, nt: int, t: int, dtype: torch.dtype) -> None:
        n = 2 * k * nt * t
        self.shape, self.n = (users, k, nt, t), n
        wide = torch.float64
        self.scale = draw(users, n, seed=50, dtype=wide).to(dtype)
        self.offset = 0.5 * draw(users, n, seed=51, dtype=wide).to(dtype)

    def __call__(self, d: Tensor) -> Tensor:
        z = d * self.scale + 0.4 * d.roll(1, -1) * d.roll(3, -1).clamp(-2, 2) + self.offset
        return sf.power_normalise(torch.view_as_complex(z.reshape(len(d), *self.shape, 2)))[0]


class LinearEncoder:
    """A random linear map per user, then the power constraint: distinct users, no training."""

    def __init__(self, users: int, n: int, k: int, nt: int, t: int, dtype: torch.dtype, normalise: bool = True) -> None:
        self.shape, self.normalise = (k, nt, t), normalise
        self.matrix = draw(users, k * nt * t, n, seed=60).to(dtype)

    def __call__(self, d: Tensor) -> Tensor:
        x = torch.einsum("umn,bun->bum", self.matrix, d.to(self.matrix.dtype)).unflatten(-1, self.shape)
        return sf.power_normalise(x)[0] if self.normalise else x


class GaussianSource:
    """Posterior mean and variance of d ~ N(mu, v I) under real noise of variance sigma^2."""

    def __init__(self, v: float = 1.0, mu: float = 0.0) -> None:
        self.v, self.mu = v, mu

    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        w = self.v / (self.v + sigma**2)
        return self.mu + w * (x - self.mu), (w * sigma**2).expand(x.shape[:2])


class KnownCodeword:
    """An encoder that ignores its source: the codeword of every image is known to the receiver."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __call__(self, d: Tensor) -> Tensor:
        return self.x + 0 * d.sum()


def link(batch: int, users: int, k: int, nr: int, x: Tensor, noise_var: float, seed: int = 70) -> tuple[Tensor, Tensor]:
    """Rayleigh channels and what the receiver sees, with torch's own generator rather than the package's."""
    h = draw(batch, users, k, nr, x.shape[-2], seed=seed).to(x.dtype)
    y = torch.matmul(h, x).sum(1)
    return h, y + noise_var**0.5 * draw(*y.shape, seed=seed + 1).to(x.dtype)


def pvd_by_hand(y, noise_var, encoder, denoiser_h, denoiser_d, c, *, seed, first_item=0):
    """The algorithm line by line with a Python loop over the L samples; scores by automatic differentiation of ln p.

    Draws follow the conventions: streams 1 and 2 (sample l adds 16 l) with the iteration as step, 3 and 4 for the
    start (step 0 anchor, 1 mean), 5 for the probe. Returns the means and the last effective noise variances.
    """
    b, k, nr, t = y.shape
    real, count = y.real.dtype, nr * k * t
    s = [c.sigma_min * (c.sigma_max / c.sigma_min) ** (j / c.J) for j in range(c.J + 1)]
    shapes = {"h": (b, c.users, k, nr, c.nt), "d": (b, c.users, *c.source_shape)}

    def normal(which, stream, step):
        kind = y.dtype if which == "h" else real
        return sf.philox_normal(shapes[which], seed=seed, step=step, stream=stream, first_item=first_item, dtype=kind)

    anchor = {w: s[c.J] * normal(w, stream, 0) for w, stream in (("h", 3), ("d", 4))}
    mean = {w: s[c.J - 1] * normal(w, stream, 1) for w, stream in (("h", 3), ("d", 4))}
    n, variances = 0, []
    for j in range(c.J - 1, -1, -1):
        delta = s[j + 1] ** 2 - s[j] ** 2
        lam = s[j] ** 2 * delta / s[j + 1] ** 2
        sigma = torch.tensor(s[j], dtype=real)
        for _ in range(c.Jin):
            step = {"h": 0, "d": 0}
            for i in range(c.L):
                spread = lam**0.5 if c.sample_noise else 0.0
                h = (mean["h"] + spread * normal("h", 1 + 16 * i, n)).requires_grad_(True)
                d = (mean["d"] + spread * normal("d", 2 + 16 * i, n)).requires_grad_(True)
                h0, var_h = denoiser_h(h, sigma)
                d0, var_d = denoiser_d(d, sigma)
                x = encoder(d0)
                residual = y - torch.matmul(h0, x).sum(1)
                energy = residual.abs().square().sum((1, 2, 3))
                if c.calibration == "secant":
                    z = normal("d", 5 + 16 * i, n)
                    spread_d = var_d.sqrt().reshape(b, c.users, *(1,) * len(c.source_shape))
                    dx = (encoder(d0 + spread_d * z) - x).detach()
                    gain = nr * var_h * (c.power * k * c.nt * t + dx.abs().square().sum((2, 3, 4)))
                    var = noise_var + (gain.sum(1) + torch.matmul(h0, dx).sum(1).abs().square().sum((1, 2, 3))) / count
                else:
                    var = torch.clamp_min(energy / count, noise_var)
                var = var.detach()
                log_density = -(energy / var).sum()
                g_h = torch.autograd.grad(log_density, h, retain_graph=True)[0] / 2  # torch gives d_re + i d_im
                g_d = torch.autograd.grad(log_density, d)[0]
                rho = delta / s[j] ** 2
                for w, at, den, g in (("h", h, h0, g_h), ("d", d, d0, g_d)):
                    step[w] = step[w] + ((anchor[w] - at) + rho * (den - at) + delta * g).detach() / c.L
            mean = {w: mean[w] + (c.zeta_h if w == "h" else c.zeta_d) * step[w] for w in mean}
            variances.append(var)
            n += 1
        anchor = dict(mean)
    return mean["h"], mean["d"], variances
