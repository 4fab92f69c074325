r"""Score and trace networks as the paper writes them, and how they relate to a denoiser with a posterior variance.

With x = x0 + sigma z, S = grad ln p(x) (for complex x the Wirtinger derivative d/dx^*, z ~ CN(0,1)) and `dim` entries
(complex ones for complex x), Tweedie's first and second formula are

.. math:: E[x_0|x] = x + \sigma^2 S(x), \qquad v(x) = \sigma^2 + \sigma^4\, \mathrm{tr}\,\partial S(x) / \mathrm{dim},

v the posterior variance per entry. A trace network and a variance head are therefore the same object,
tr = dim (v - sigma^2)/sigma^4, and so are their regression targets, sample by sample: with the error e = x0 - E[x0|x],

.. math:: |z + \sigma S|^2 = \frac{|e|^2}{\sigma^2}, \qquad
    \frac{|z + \sigma S|^2 - \mathrm{dim}}{\sigma^2} = \mathrm{dim}\,\frac{|e|^2/\mathrm{dim} - \sigma^2}{\sigma^4}.

They are not the same in floating point. At sigma = 100 and v = 1 the two terms of v cancel to one part in 10^4: a
relative error of 10^-3 in the trace gives v = -9, and float32 alone costs 6e-4. Predict v where you can choose.

Source: equations (19), (20), (38), (40) of "Blind MIMO Semantic Communication via Parallel Variational Diffusion", in the
denoising form that can be trained: (20) as printed needs the trace of the unknown density.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Level = Tensor | float


def _square(sigma: Level) -> Level:
    return sigma * sigma


def trace_of_variance(var: Tensor, sigma: Level, dim: int) -> Tensor:
    """dim (v - sigma^2)/sigma^4: the trace of the second-order score of `dim` entries with posterior variance `var`."""
    noise = _square(sigma)
    return dim * (var - noise) / (noise * noise)


def variance_of_trace(trace: Tensor, sigma: Level, dim: int) -> Tensor:
    """sigma^2 + sigma^4 trace/dim, equation (40), normalised by the number of entries `dim` (Nr Nt K, not Nr Nt K^2)."""
    noise = _square(sigma)
    return noise + noise * noise * trace / dim


def trace_loss(trace: Tensor, error: Tensor, sigma: Level, dim: int) -> Tensor:
    """Denoising loss of a trace network, whose optimum is the trace of the second-order score.

    Definition: mean over items of ((sigma^2 trace + dim - error/sigma^2)/dim)^2, which is (20) weighted by
    sigma^4/dim^2, up to a constant. For a given x the best trace is (E[error|x]/sigma^2 - dim)/sigma^2
    = dim (v - sigma^2)/sigma^4, v = E[error|x]/dim.

    Args:
        trace: [N] of the network.
        error: |x0 - den(x)|^2 [N] summed over the item's entries, = sigma^2 |z + sigma S|^2; not to be differentiated.
        sigma: [N] or a number. dim: entries of an item; complex ones count once.
    """
    noise = _square(sigma)
    return ((noise * trace + dim - error / noise) / dim).square().mean()


def variance_loss(var: Tensor, error: Tensor, dim: int) -> Tensor:
    """Itakura-Saito divergence of error/dim from the predicted variance, whose optimum is v = E[error|x]/dim.

    Definition: mean over items of r/v - ln(r/v) - 1, r = error/dim; blind to the scale of v, so that every noise level
    counts the same. Args as of `trace_loss`; var [N] positive.
    """
    ratio = error / dim / var
    return (ratio - ratio.log() - 1).mean()


class ScoreDenoiser:
    """A score network and a trace network in the paper's form, as the denoiser that :class:`PVD` takes.

    Definition: mean = x + sigma^2 S(x, sigma), var = sigma^2 + sigma^4 trace(x, sigma)/dim, equations (38) and (40).

    Args:
        score: (x, sigma) -> S like x, the Wirtinger derivative d/dx^* for complex x (half of what `torch.autograd.grad`
            of a real log density gives).
        trace: (x, sigma) -> [B,U], or [B] as one user's in a list: the trace over all entries of x[b,u]; complex:
            tr d^2 ln p/dx dx^* (a quarter of the Laplacian over real and imaginary parts).

    For networks that come in this form. Both sums cancel at large sigma; the mean then errs by sigma^2 times the error
    of the score, so never let S pass through half precision. The loop clamps var to [0, sigma^2].
    """

    def __init__(self, score: Callable[[Tensor, Tensor], Tensor], trace: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.score, self.trace = score, trace

    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        noise = sigma * sigma
        mean = torch.add(x, self.score(x, sigma) * noise)
        trace = self.trace(x, sigma)
        return mean, variance_of_trace(trace, sigma, x.numel() // max(trace.numel(), 1) or 1)
