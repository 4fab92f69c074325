r"""Networks in a lower precision: how to run them, what one call changes, and what that does to a whole run.

A denoiser in EDM form, mean = c_skip x + c_out F(c_in x, sigma), may compute F in bfloat16 at any noise level: if F
changes by eps in root mean square, the mean changes by c_out eps, c_out = sigma s/sqrt(sigma^2 + s^2) <= s for a source
of variance s^2 per entry. The sum stays in x's precision. A score rounded to bfloat16 instead, mean = x + sigma^2 S,
costs 2^-9 sigma: many times the source at sigma = 100. A mean rounded to bfloat16 costs 2^-9 s: many times c_out at
small sigma.

How a run of :class:`PVD` adds that up (first order; M the mean, A its anchor, kappa the likelihood's curvature in a
direction times Delta): with w = v/(v + sigma^2), a = 1 + Delta/(v + sigma^2), an inner iteration multiplies what has
been changed so far by 1 - zeta (a + kappa w^2) and adds zeta (e_A + rho c_out eps) from anchor and prior and zeta kappa
w c_out eps through the denoised source. A level therefore ends, for whatever kappa, within

.. math:: E_j = \max\Bigl(\frac{e_{j+1} + \rho_j c_j \epsilon_j}{a_j}, \frac{c_j \epsilon_j}{w_j}\Bigr),
    \qquad e_j = E_j + (1 - \zeta a_j)^{J_{in}} \max(e_{j+1} - E_j, 0):

directions that the prior tells carry the first term, directions that the data tell the second. A relative change eps' of
the pulled-back score moves the mean by at most eps' c_out(sigma_{j+1})/(4 w), which the second term has on top. See
docs/math.md, "Networks in other precisions".
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops.philox_normal import philox_normal
from .users import Denoiser

if TYPE_CHECKING:
    from .vb_moe_config import VBMoETables

_HALVES = (torch.bfloat16, torch.float16)
_PROBE_STEP = 6  # of the user stream: after channels, noise, pilots and the codecs' masks


class HalfPrecision(nn.Module):
    """What `half_precision` returns."""

    def __init__(self, network: Callable[..., Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.network: Callable[..., Any] = network
        self.dtype = dtype

    def forward(self, x: Tensor, *level: Tensor) -> Any:
        with torch.autocast(x.device.type, self.dtype):
            out = self.network(x, *level)
        if isinstance(out, Tensor):
            self._check(
                out, "the encoder's codeword", "cast the last layer's output to d.dtype, then sf.power_normalise"
            )
            return out
        mean, var = out
        self._check(mean, "the denoiser's mean", "it must be a sum in x's precision, c_skip*x + c_out*F.to(x.dtype)")
        return mean, var.to(x.real.dtype)

    def _check(self, out: Tensor, what: str, remedy: str) -> None:
        if out.dtype in (*_HALVES, torch.complex32):
            raise TypeError(f"half_precision: {what} came out in {out.dtype}: {remedy}")


def half_precision(network: Callable[..., Any], dtype: torch.dtype = torch.bfloat16) -> HalfPrecision:
    """A denoiser or an encoder of :class:`PVD` with its matrix products and convolutions in bfloat16 (or float16).

    The network runs under `torch.autocast`, forward and backward; additions, products with sigma and the power
    normaliser keep the dtype they have. Weights stay as they are. float64 networks are left alone, as autocast does.

    What the network has to do itself: a denoiser forms its mean as c_skip x + c_out F with x in its own precision, and
    no matrix product may touch the term with x; an encoder casts to float32 before the complex codeword and its power
    normaliser. The denoisers and encoders of this package do. A mean or a codeword that comes out rounded is refused;
    a rounded term inside the sum cannot be seen from outside: measure it once with `call_change`.

    Raises:
        TypeError: at the call, where mean or codeword come out in half precision; dtype is not a half type.
    """
    if dtype not in _HALVES:
        raise TypeError(f"half_precision: dtype must be torch.bfloat16 or torch.float16, got {dtype}")
    return HalfPrecision(network, dtype)


class CallChange(NamedTuple):
    """Of one call at each level [J]: forward, the mean's rms change over c_out; pullback, the relative rms change of
    the vector-Jacobian product of a random cotangent."""

    forward: Tensor
    pullback: Tensor


def _rms(t: Tensor) -> float:
    return float(t.abs().double().square().mean().sqrt())


def _mean_and_pullback(denoiser: Denoiser, x: Tensor, sigma: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        mean = denoiser(leaf, sigma)[0]
    return mean.detach(), torch.autograd.grad(mean, leaf, cotangent)[0]


def call_change(
    exact: Denoiser,
    other: Denoiser,
    clean: Tensor,
    sigmas: Sequence[float] | Tensor,
    *,
    var: float = 1.0,
    seed: int = 0,
) -> CallChange:
    """What one call of `other` in place of `exact` changes, at the noise levels a run meets.

    Args:
        exact, other: denoisers (x, sigma) -> (mean, var), differentiable. clean: sources or channels [B,U,...], real or
            complex; level by level they get noise of variance sigma^2. sigmas: [J]. var: s^2 per entry, in c_out.
        seed: of noise and cotangents.

    Values of `forward` near 2^-8 are what bfloat16 inside F makes. At small sigma they grow as s/sigma, for the noise is
    then a small part of F's rounded input; far larger ones, or growth with sigma, mean that the term with x is rounded.
    """
    found: tuple[list[float], list[float]] = ([], [])
    shape, kind, place = tuple(clean.shape), clean.dtype, clean.device
    for j, sigma in enumerate(torch.as_tensor(sigmas, dtype=torch.float64).to(place, clean.real.dtype)):
        noise, cotangent = (
            philox_normal(shape, seed=seed, step=_PROBE_STEP + i, first_item=j * len(clean), dtype=kind, device=place)
            for i in range(2)
        )
        x = clean + sigma * noise
        (mean, pulled), (other_mean, other_pulled) = (
            _mean_and_pullback(network, x, sigma, cotangent) for network in (exact, other)
        )
        c_out = float(sigma) * (var / (float(sigma) ** 2 + var)) ** 0.5
        found[0].append(_rms(other_mean - mean) / c_out)
        found[1].append(_rms(other_pulled - pulled) / max(_rms(pulled), torch.finfo(x.dtype).tiny))
    return CallChange(*(torch.tensor(values, dtype=torch.float64) for values in found))


def change_bound(
    sigmas: Sequence[float],
    forward: float | Tensor,
    pullback: float | Tensor = 0.0,
    *,
    var: float = 1.0,
    zeta: float = 0.1,
    steps: int = 20,
) -> float:
    """The most that a run's final mean changes, rms per entry, where every call changes by `forward` and `pullback`.

    Definition: the recursion of this module's description over the levels from the top down, with changes that always
    point the same way. About 3.5 eps sqrt(var) for the default schedule and a level-independent eps; roundings that are
    independent from call to call do less. First order: it says nothing of an image so ambiguous that a small change
    sends it to another solution.

    Args:
        sigmas: sigma_0..sigma_J of the run, `PVDConfig.schedule()`. forward, pullback: as in CallChange, a number or [J]
            for levels 0..J-1. var: v, the source's variance per entry. zeta, steps: the run's zeta_d (zeta_h) and Jin.
    """
    levels = len(sigmas) - 1
    eps, relative = (torch.as_tensor(e, dtype=torch.float64).expand(levels).tolist() for e in (forward, pullback))
    change = 0.0
    for j, (sigma, above) in reversed(list(enumerate(pairwise(float(s) for s in sigmas)))):
        total = var + sigma**2
        c_out, c_above = (s * (var / (var + s**2)) ** 0.5 for s in (sigma, above))
        delta = above**2 - sigma**2
        pull = 1 + delta / total
        told_by_prior = (change + delta / sigma**2 * c_out * eps[j]) / pull
        told_by_data = (c_out * eps[j] + c_above * relative[j] / 4) * total / var
        end = max(told_by_prior, told_by_data)
        change = end + abs(1 - zeta * pull) ** steps * max(change - end, 0.0)
    return change


def waterfill_change_bound(levels: Sequence[float] | Tensor, change: float | Tensor, *, gain: float = 1.0) -> float:
    r"""The most that the result of :class:`WaterfillDDIM` ("ddim") changes, rms per entry, where every prediction does.

    Definition: an update from level b to c multiplies what has been changed by at most
    :math:`a + q\,g\sqrt{1-b}` and adds q times the prediction's change, :math:`a = \sqrt{c/b}`,
    :math:`q = \sqrt{1-c} - a\sqrt{1-b}`. With g = 1 and b = sin^2 of an angle the factor is the cosine of the angle
    stepped: the loop does not amplify. Fast fading is within it too: elements that wait have not been changed.

    Args:
        levels: beta_0..beta_K of an image, ``WaterfillConfig.tables(start).levels[:, image]``. change: rms change of x0
            (guided, where guidance is used) over the entries, of unit variance, on the same input: a number or [K].
        gain: rms gain of the prediction to its input over that of a Gaussian source of unit variance, sqrt(1 - level);
            1 for a source no more sensitive than that.
    """
    b = [float(v) for v in levels]
    changes = torch.as_tensor(change, dtype=torch.float64).expand(len(b) - 1).tolist()
    total = 0.0
    for now, then, eps in zip(b, b[1:], changes, strict=False):
        if now > 0:
            a = (then / now) ** 0.5
            q = (1 - then) ** 0.5 - a * (1 - now) ** 0.5
            total = (a + abs(q) * gain * (1 - now) ** 0.5) * total + abs(q) * eps
    return total


def vb_change_bound(
    tables: "VBMoETables",
    change: float | Tensor,
    *,
    largest: float = 1.0,
    pilot_snr: float = 0.0,
    lam: float = 1.0,
    x0: bool = True,
) -> float:
    r"""The most that a chain of :class:`VBMoE` changes its channel, rms per entry, where every eps does.

    Definition: step t takes h to a h - b eps - l (p h - q eps) in a direction where the likelihood has strength l, with the
    coefficients of `pilot_posterior_step`; an expert of a Gaussian channel answers a change of h by
    sqrt(1 - abar) k, k = 1/(abar v + 1 - abar), v the channel's variance in that direction. The factor of an earlier
    change and that of eps's are linear in k and l, so their largest values are at the ends of 0 <= v <= largest and
    0 <= l <= l(pilot_snr). First order, for fixed responsibilities, and for directions that channel and pilots share
    (always so for a white channel).

    Args:
        tables: ``VBMoEConfig.tables()``. change: rms change of the (mixed) eps per entry on the same input, [T] for t = 1..T
            or a number. largest: the channel covariance's largest eigenvalue, at unit variance per entry.
        pilot_snr: largest squared singular value of the pilots over noise_var. lam, x0: the run's likelihood factor and
            form, ``config.likelihood_scale(snr_db)`` and ``config.residual_at_x0(snr_db)``.
    """
    steps = len(tables.beta) - 1
    changes = torch.as_tensor(change, dtype=torch.float64).expand(steps).tolist()
    total = 0.0
    for t in range(steps, 0, -1):
        bar, beta = float(tables.alpha_bar[t]), float(tables.beta[t])
        a, p = (1 - beta) ** -0.5, bar**-0.5
        b, q = a * beta * (1 - bar) ** -0.5, p * (1 - bar) ** 0.5 if x0 else 0.0
        answers = [(1 - bar) ** 0.5 / (bar * v + 1 - bar) for v in (0.0, largest)]
        strengths = [0.0, a * lam * beta * p * pilot_snr / (1 + (1 - bar) / bar * pilot_snr)]
        kept = max(abs(a - b * k - s * (p - q * k)) for k in answers for s in strengths)
        total = kept * total + max(abs(b - s * q) for s in strengths) * changes[t - 1]
    return total
