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
    """An encoder that ignores its source: the codeword of every image (and sample) is known to the receiver."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __call__(self, d: Tensor) -> Tensor:
        x = self.x if len(d) == len(self.x) else self.x.repeat(len(d) // len(self.x), 1, 1, 1, 1)
        return x + 0 * d.sum()


def link(batch: int, users: int, k: int, nr: int, x: Tensor, noise_var: float, seed: int = 70) -> tuple[Tensor, Tensor]:
    """Rayleigh channels and what the receiver sees, with torch's own generator rather than the package's."""
    h = draw(batch, users, k, nr, x.shape[-2], seed=seed).to(x.dtype)
    y = torch.matmul(h, x).sum(1)
    return h, y + noise_var**0.5 * draw(*y.shape, seed=seed + 1).to(x.dtype)


def _denoise(denoiser, x, sigma):
    """One callable (with one level for all), or one per user with the user's own level sigma[u]."""
    if not isinstance(denoiser, list):
        return denoiser(x, sigma[0] if bool((sigma == sigma[0]).all()) else sigma)
    pairs = [f(x[:, u], sigma[u]) for u, f in enumerate(denoiser)]
    return torch.stack([m for m, _ in pairs], 1), torch.stack([v for _, v in pairs], 1)


def explicit_channel_score(residual, x, var_h, noise_var):
    """R C^-1 X_u^H with the covariance C = noise_var I + sum_u v_u X_u^H X_u of a row of the residual written out."""
    spread = (var_h[..., None, None, None] * (x.mH @ x)).sum(1)
    covariance = spread + noise_var[:, None, None, None] * torch.eye(x.shape[-1], dtype=x.dtype)
    return (residual @ torch.linalg.inv(covariance)).unsqueeze(1) @ x.mH


def pvd_by_hand(y, noise_var, encoder, denoiser_h, denoiser_d, c, *, seed, first_item=0):
    """The algorithm line by line with a Python loop over the L samples; scores by automatic differentiation of ln p.

    Draws follow the conventions: streams 1 and 2 (sample l adds 16 l) with the iteration as step, 3 and 4 for the
    start (step 0 anchor, 1 mean), 5 for the probe. Returns the means and the last effective noise variances.
    """
    b, k, nr, t = y.shape
    real, count = y.real.dtype, nr * k * t
    shapes = {"h": (b, c.users, k, nr, c.nt), "d": (b, c.users, *c.source_shape)}
    per_user = {name: torch.tensor(getattr(c, name), dtype=torch.float64).expand(c.users).clone()
                for name in ("sigma_min", "sigma_max", "zeta_h", "zeta_d")}  # fmt: skip
    s = [per_user["sigma_min"] * (per_user["sigma_max"] / per_user["sigma_min"]) ** (j / c.J) for j in range(c.J + 1)]

    def of_users(level, which):  # [U] against a state [B,U,...]
        return level.reshape(-1, *(1,) * (len(shapes[which]) - 2)).to(real)

    def normal(which, stream, step):
        kind = y.dtype if which == "h" else real
        return sf.philox_normal(shapes[which], seed=seed, step=step, stream=stream, first_item=first_item, dtype=kind)

    anchor = {w: of_users(s[c.J], w) * normal(w, stream, 0) for w, stream in (("h", 3), ("d", 4))}
    mean = {w: of_users(s[c.J - 1], w) * normal(w, stream, 1) for w, stream in (("h", 3), ("d", 4))}
    n, variances, last = 0, [], [None] * c.L
    for j in range(c.J - 1, -1, -1):
        delta = s[j + 1] ** 2 - s[j] ** 2
        spread = ((s[j] ** 2 + c.v0) * delta / (s[j + 1] ** 2 + c.v0)).sqrt() * c.sample_noise
        sigma = s[j].to(real)
        for _ in range(c.Jin):
            step = {"h": 0, "d": 0}
            for i in range(c.L):
                h = (mean["h"] + of_users(spread, "h") * normal("h", 1 + 16 * i, n)).requires_grad_(True)
                d = (mean["d"] + of_users(spread, "d") * normal("d", 2 + 16 * i, n)).requires_grad_(True)
                h0, var_h = _denoise(denoiser_h, h, sigma)
                d0, var_d = _denoise(denoiser_d, d, sigma)
                x = encoder(d0)
                residual = y - torch.matmul(h0, x).sum(1)
                energy = residual.abs().square().sum((1, 2, 3))
                if c.calibration == "secant":
                    z = normal("d", 5 + 16 * i, n)
                    spread_d = var_d.sqrt().reshape(b, c.users, *(1,) * len(c.source_shape))
                    dx = (encoder(d0 + spread_d * z) - x).detach()
                    moved, received = dx.abs().square().sum((2, 3, 4)), torch.matmul(h0, dx).sum(1)
                    rest = noise_var + ((nr * var_h * moved).sum(1) + received.abs().square().sum((1, 2, 3))) / count
                    var = rest + (nr * var_h * c.power * k * c.nt * t).sum(1) / count
                else:
                    var = torch.clamp_min(energy / count, noise_var)
                var = var.detach()
                used, last[i] = (last[i] if c.lagged_noise and n else var), var
                log_density = -(energy / used).sum()
                if c.exact_covariance:
                    score = explicit_channel_score(residual, x, var_h, rest).detach()
                    g_h = torch.autograd.grad(h0, h, score, retain_graph=True)[0]
                else:
                    g_h = torch.autograd.grad(log_density, h, retain_graph=True)[0] / 2  # torch gives d_re + i d_im
                g_d = torch.autograd.grad(log_density, d)[0]
                for w, at, den, g in (("h", h, h0, g_h), ("d", d, d0, g_d)):
                    rho, gain = of_users(delta / s[j] ** 2, w), of_users(delta, w)
                    step[w] = step[w] + ((anchor[w] - at) + rho * (den - at) + gain * g).detach() / c.L
            mean = {w: mean[w] + of_users(per_user[f"zeta_{w}"], w) * step[w] for w in mean}
            variances.append(var)
            n += 1
        anchor = dict(mean)
    return mean["h"], mean["d"], variances
