"""A Gaussian model of the latent whose linear estimate a small denoiser starts from."""

import torch
from torch import Tensor, nn

from ...baselines.wiener import sample_moments

_SMALLEST_VARIANCE = 1e-4


class LowRankPrior(nn.Module):
    """Latents as Gaussians: a mean, `rank` principal directions of variances v, and one variance for all the rest.

    From g = sqrt(1-beta) x0 + sqrt(beta) noise, the MMSE estimate of x0 under it moves from the mean by
    v sqrt(1-beta)/n times what g says in each direction, n = v (1-beta) + beta, and errs there with variance v beta/n.
    Until fitted: mean 0 and variance 1 everywhere, so that the estimate is sqrt(1-beta) g.
    """

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.eye(size)[:, :rank].contiguous())
        self.register_buffer("variance", torch.ones(rank))
        self.register_buffer("rest", torch.ones(()))

    @torch.no_grad()
    def fit(self, latents: Tensor) -> None:
        """Take mean and principal directions from clean latents [n,C,h,w], rounded as float16 will store them."""
        mean, covariance = sample_moments(latents)
        variances, basis = torch.linalg.eigh(covariance)
        cut = self.size - self.rank
        found = {"mean": mean, "basis": basis[:, cut:], "variance": variances[cut:]}
        found["rest"] = variances[:cut].mean() if cut else variances[0]
        for name in ("variance", "rest"):
            found[name] = found[name].clamp_min(_SMALLEST_VARIANCE)
        for name, value in found.items():
            self.get_buffer(name).copy_(value.half())

    def _scaled(self, x: Tensor, along: Tensor, else_: Tensor) -> Tensor:
        """[B,N] with coefficients times `along` [B,rank] in the principal directions and `else_` [B,1] in the others."""
        basis = self.get_buffer("basis").to(x)
        return else_ * x + ((along - else_) * (x @ basis)) @ basis.T

    def _variances(self, beta_bar: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        variance, rest = self.get_buffer("variance").to(x), self.get_buffer("rest").to(x)
        return beta_bar.to(x.dtype)[:, None], variance, rest

    def estimate(self, g: Tensor, beta_bar: Tensor) -> Tensor:
        """The linear MMSE estimate of x0 from g [B,C,h,w] at levels [B]; at beta = 0, g up to rounding."""
        beta, *variances = self._variances(beta_bar, g)
        mean = self.get_buffer("mean").to(g)
        along, else_ = (v * (1 - beta).sqrt() / (v * (1 - beta) + beta) for v in variances)
        with torch.autocast(g.device.type, enabled=False):
            moved = self._scaled(g.flatten(1) - (1 - beta).sqrt() * mean, along, else_)
        return (mean + moved).view_as(g)

    def spread(self, free: Tensor, beta_bar: Tensor) -> Tensor:
        """[B,C,h,w] scaled, in every direction, by the standard deviation of the estimate's error."""
        beta, *variances = self._variances(beta_bar, free)
        along, else_ = ((v * beta / (v * (1 - beta) + beta)).sqrt() for v in variances)
        with torch.autocast(free.device.type, enabled=False):
            return self._scaled(free.flatten(1), along, else_).view_as(free)

    def error(self, beta_bar: Tensor) -> Tensor:
        """Mean squared error of the estimate per entry, [B], if latents were as modelled."""
        beta, variance, rest = self._variances(beta_bar, self.get_buffer("mean"))
        along, else_ = (v * beta / (v * (1 - beta) + beta) for v in (variance, rest))
        return (along.sum(1) + (self.size - self.rank) * else_[:, 0]) / self.size
