"""Parallel variational diffusion: blind recovery of channel and source from one received block-fading signal."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import require_extra
from ..ops._checks import tolerate_non_finite
from ..ops.likelihood_score import likelihood_score
from ..ops.pvd_update import pvd_update
from ..reference import default_next_var
from . import unchecked
from .exact_score import exact_channel_score
from .users import Denoiser, Encoder, ParallelDenoiser, ParallelEncoder, pullback

STREAM_H, STREAM_D, STREAM_H0, STREAM_D0, STREAM_PROBE = 1, 2, 3, 4, 5
SAMPLE_STRIDE = 16


@dataclass(frozen=True)
class PVDConfig:
    """Sizes and schedule of a PVD run.

    users U and nt Nt: transmitters and their antennas; source_shape: one source; power P: E|x|^2 per symbol, met with
    equality over a codeword. J levels of Jin inner iterations, L samples each, noise levels from sigma_max down to
    sigma_min geometrically; zeta_h, zeta_d: step sizes. calibration: "secant" (probe of the encoder) or "moment"
    (match the residual energy). sample_noise=False evaluates at the means: deterministic given the initial draws.
    exact_covariance: the channel's score with the covariance of the residual that its own uncertainty makes, instead of
    (42)'s white one; needs "secant". It reaches LMMSE where the codeword is known; blindly it is not always better.
    """

    users: int = 1
    nt: int = 1
    source_shape: tuple[int, ...] = (64,)
    power: float = 1.0
    J: int = 30
    Jin: int = 20
    L: int = 1
    sigma_max: float = 100.0
    sigma_min: float = 0.01
    zeta_h: float = 0.1
    zeta_d: float = 0.1
    calibration: str = "secant"
    sample_noise: bool = True
    exact_covariance: bool = False

    def __post_init__(self) -> None:
        for name in ("users", "nt", "J", "Jin", "L"):
            if getattr(self, name) < 1:
                raise ValueError(f"PVDConfig: {name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"PVDConfig: need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")
        if not self.power > 0:
            raise ValueError(f"PVDConfig: power must be positive, got {self.power}")
        if self.calibration not in ("secant", "moment"):
            raise ValueError(f"PVDConfig: calibration must be 'secant' or 'moment', got {self.calibration!r}")
        if self.exact_covariance and self.calibration != "secant":
            raise ValueError("PVDConfig: exact_covariance needs calibration 'secant'")
        object.__setattr__(self, "source_shape", tuple(self.source_shape))

    def schedule(self) -> list[float]:
        """sigma_j = sigma_min (sigma_max/sigma_min)^(j/J), j = 0..J: nothing is ever evaluated at sigma = 0."""
        ratio = self.sigma_max / self.sigma_min
        return [self.sigma_min * ratio ** (j / self.J) for j in range(self.J + 1)]


class PVDLevel(NamedTuple):
    """What `on_level` sees after level j: the means, the last residual energy and effective noise variance [B*R]."""

    level: int
    sigma: float
    h: Tensor
    d: Tensor
    energy: Tensor
    score_var: Tensor


class PVDResult(NamedTuple):
    """h [B,U,K,Nr,Nt], d [B,U,*source_shape], energy [B] = |Y - sum_u H f(D)|^2 of the chosen restart (unnormalised),
    energy_all [B,R] of every restart (infinite where it diverged), chosen [B]."""

    h: Tensor
    d: Tensor
    energy: Tensor
    energy_all: Tensor
    chosen: Tensor


class DivergedError(ValueError):
    """Every restart of some image ended non-finite; `result` holds what the other images got."""

    def __init__(self, message: str, result: PVDResult) -> None:
        super().__init__(message)
        self.result = result


@dataclass
class _State:
    """Mean, anchor and sample of one variable, and how it is updated."""

    mean: Tensor
    anchor: Tensor
    sample: Tensor
    zeta: float
    stream: int


class _Run:
    """One call of PVD.run: the batch of images x restarts, its levels and its counters."""

    def __init__(self, owner: "PVD", y: Tensor, noise_var: float | Tensor, seed: int | Tensor, first_item: int) -> None:
        self.owner, self.config, self.seed, self.first_item = owner, owner.config, seed, first_item
        c = self.config
        self.batch, self.blocks, self.nr, self.slots = y.shape
        self.real = y.real.dtype
        self.y = y if c.L == 1 else y.repeat(c.L, 1, 1, 1)
        self.noise_var = noise_var
        sigmas = torch.tensor(c.schedule(), dtype=torch.float64)
        self.sigmas = sigmas.to(y.device, self.real)
        next_var = [default_next_var(s, a) if c.sample_noise else 0.0 for s, a in pairwise(sigmas)]
        self.levels: Any = [(float(s), float(v)) for s, v in zip(sigmas, [*next_var, 0.0], strict=True)]
        if y.device.type != "cpu":  # one table on the device instead of a fill per level argument
            table = torch.tensor(self.levels, dtype=torch.float64, device=y.device)
            self.levels = [(row[0], row[1]) for row in table]
        self.h = self._start((c.users, self.blocks, self.nr, c.nt), y.dtype, c.zeta_h, STREAM_H, STREAM_H0)
        self.d = self._start((c.users, *c.source_shape), self.real, c.zeta_d, STREAM_D, STREAM_D0)
        self.energy = self.score_var = y.new_zeros(0, dtype=self.real)

    def _normal(self, shape: tuple[int, ...], dtype: torch.dtype, stream: int, step: int) -> Tensor:
        draw = unchecked.philox_normal
        if self.config.L == 1 or stream in (STREAM_H0, STREAM_D0):
            return draw(shape, self.seed, step, stream, self.first_item, dtype, self.y.device)
        streams = range(stream, stream + SAMPLE_STRIDE * self.config.L, SAMPLE_STRIDE)
        return torch.stack([draw(shape, self.seed, step, k, self.first_item, dtype, self.y.device) for k in streams])

    def _start(self, shape: tuple[int, ...], dtype: torch.dtype, zeta: float, stream: int, first: int) -> _State:
        """Independent draws: the anchor at s_J, the mean at s_{J-1}, then the first sample around the mean."""
        sigmas, c = self.config.schedule(), self.config
        full = (self.batch, *shape)
        anchor = self._normal(full, dtype, first, 0) * sigmas[-1]
        mean = self._normal(full, dtype, first, 1) * sigmas[-2]
        spread = math.sqrt(default_next_var(sigmas[-2], sigmas[-1])) if c.sample_noise else 0.0
        sample = mean.expand((c.L, *full) if c.L > 1 else full)
        sample = sample + spread * self._normal(full, dtype, stream, 0) if spread else sample.clone()
        return _State(mean, anchor, sample, zeta, stream)

    def _flat(self, t: Tensor) -> Tensor:
        """[L,B,...] -> [L*B,...] for networks and scores."""
        return t.flatten(0, 1) if self.config.L > 1 else t

    def _unflat(self, t: Tensor) -> Tensor:
        return t.unflatten(0, (self.config.L, self.batch)) if self.config.L > 1 else t

    def _probe(self, d0: Tensor, var_d: Tensor, x: Tensor, n: int) -> Tensor:
        """Secant dX_u = f(d0 + sqrt(var_d) z) - f(d0). The probe point is a draw of `pvd_update` that moves nothing."""
        if self.config.L == 1:
            levels = 1.0, 2.0, 0.0, 1.0, var_d  # zeta = 0, next_var = var_d
            draw = self.seed, n, STREAM_PROBE, self.first_item
            point = unchecked.pvd_update(d0, d0, d0, d0, d0, None, *levels, *draw)[1]
        else:  # the samples' draws differ by stream, so they are made one by one
            z = self._flat(self._normal((self.batch, *d0.shape[1:]), self.real, STREAM_PROBE, n))
            point = torch.addcmul(d0, var_d.sqrt().reshape(*var_d.shape, *(1,) * (d0.ndim - 2)), z)
        return self.owner.encode(point) - x

    def _effective_noise(
        self, energy: Tensor, probe_x: Tensor, probe_y: Tensor, var_h: Tensor, *, channel: bool = True
    ) -> Tensor:
        """(42); channel=False leaves out what the channel's uncertainty makes of the denoised codeword."""
        c = self.config
        count = self.nr * self.blocks * self.slots
        if c.calibration == "moment":
            return torch.clamp_min(energy / count, self.noise_var)
        x_energy = c.power * self.blocks * c.nt * self.slots if channel else 0.0
        return unchecked.pvd_calibrate(self.noise_var, var_h, probe_x, probe_y, x_energy, self.nr, count)

    def _check_networks(self, x: Tensor, h0: Tensor, d0: Tensor) -> None:
        """Once per run, through the public ops: what the networks return fits the received signal."""
        self.owner.check_power(x, self.blocks, self.slots, self.y)
        likelihood_score(self.y, h0, x)
        for state, denoised in ((self.h, h0), (self.d, d0)):
            sample = self._unflat(denoised)
            pvd_update(
                state.mean, state.anchor, state.sample, sample, sample, sigma=1, sigma_above=2, zeta=0, next_var=0
            )

    def step(self, j: int, n: int, last: bool) -> None:
        """Inner iteration n at level j; the sample drawn at its end belongs to iteration n + 1."""
        owner, c, sigma = self.owner, self.config, self.sigmas[j]
        h0, var_h, pull_h = owner.denoiser_h.with_vjp(self._flat(self.h.sample), sigma)
        d_leaf = self._flat(self.d.sample)
        d0, var_d, x, pull_d = owner.decode_with_vjp(d_leaf, sigma)
        if n == 0:
            self._check_networks(x, h0, d0)
        probe = self._probe(d0, var_d, x, n) if c.calibration == "secant" else None
        score_h, score_x, energy, probe_x, probe_y = unchecked.likelihood_score(self.y, h0, x, None, probe)
        s = self._effective_noise(energy, probe_x, probe_y, var_h)
        s_h = s
        if c.exact_covariance:
            rest = self._effective_noise(energy, probe_x, probe_y, var_h, channel=False)
            score_h, s_h = exact_channel_score(score_h, x, var_h, rest), torch.ones_like(s)
        next_level = j if n % c.Jin != c.Jin - 1 else j - 1
        next_var = 0.0 if last else self.levels[next_level][1]
        # torch's cotangent of a real loss is twice the Wirtinger score: the 2 of G_X is taken out of s
        for state, denoised, score, var in (
            (self.h, h0, pull_h(score_h), s_h),
            (self.d, d0, pull_d(score_x), 0.5 * s),
        ):
            state.mean, state.sample = unchecked.pvd_update(
                state.mean, state.anchor, state.sample, self._unflat(denoised), self._unflat(score), None,
                self.levels[j][0], self.levels[j + 1][0], state.zeta, self._unflat(var), next_var,
                self.seed, n + 1, state.stream, self.first_item,
            )  # fmt: skip
        self.energy, self.score_var = energy, s

    def end_level(self, j: int) -> PVDLevel:
        """The means of a level condition the next one; they also carry over."""
        self.h.anchor, self.d.anchor = self.h.mean, self.d.mean
        return PVDLevel(j, self.config.schedule()[j], self.h.mean, self.d.mean, self.energy, self.score_var)

    def final_energy(self) -> Tensor:
        """|Y - sum_u H f(D)|^2 at the means."""
        with torch.no_grad():
            x = self.owner.encode(self.d.mean)
            return likelihood_score(self.y[: self.batch], self.h.mean, x).energy


class PVD:
    r"""Blind MIMO reception by parallel variational diffusion.

    Signal model: :math:`Y_k = \sum_u H_k^{(u)} X_k^{(u)} + N_k`, X_u = f_u(D_u), N ~ CN(0, noise_var); neither channel
    nor source nor any pilot is known. The variational means of H and D are annealed together through J noise levels; an
    inner iteration denoises a sample of each, takes the likelihood scores through the encoder and both denoisers, and
    moves the means (ops `likelihood_score`, `pvd_calibrate`, `pvd_update`).

    Args:
        encoder: d [B,U,*source_shape] -> x [B,U,K,Nt,T], power-normalised and differentiable, or a list of U
            callables [B,*source_shape] -> [B,K,Nt,T].
        denoiser_h, denoiser_d: (x, sigma) -> (mean like x, var [B,U] or [B]); one callable for [B,U,...] or a list of U
            callables for [B,...]. sigma is a 0-d real tensor on x's device; var is the posterior variance per entry
            and is clamped to [0, sigma^2]. A denoiser with a method ``vjp(cotangent, sigma)`` is differentiated by it.
        config: sizes and schedule.

    Source: Algorithm 1 of "Blind MIMO Semantic Communication via Parallel Variational Diffusion", with the sign of (34)
    corrected to plus, the posterior (not the variational) score in the update, and (42) evaluated at inference.
    """

    def __init__(
        self,
        encoder: Encoder | Sequence[Encoder],
        denoiser_h: Denoiser | Sequence[Denoiser],
        denoiser_d: Denoiser | Sequence[Denoiser],
        config: PVDConfig | None = None,
    ) -> None:
        self.config = config or PVDConfig()
        users = self.config.users
        self.encode = ParallelEncoder(encoder, users)
        self.denoiser_h = ParallelDenoiser(denoiser_h, users, "denoiser_h")
        self.denoiser_d = ParallelDenoiser(denoiser_d, users, "denoiser_d")

    def decode_with_vjp(self, d: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Denoised source, its variance, its codeword, and the VJP of both maps together."""
        with torch.enable_grad():
            leaf = d.detach().requires_grad_(True)
            d0, var = self.denoiser_d(leaf, sigma)
            x = self.encode(d0)
        return d0.detach(), var.detach(), x.detach(), pullback(x, leaf)

    def check_power(self, x: Tensor, blocks: int, slots: int, y: Tensor) -> None:
        """The encoder's shape, dtype and power, once per run."""
        c = self.config
        need = (y.shape[0], c.users, blocks, c.nt, slots)
        if tuple(x.shape) != need:
            raise ValueError(f"PVD: the encoder must give [B,U,K,Nt,T] = {need} for received blocks of shape "
                             f"{tuple(y.shape)}; it gave {tuple(x.shape)}")  # fmt: skip
        if x.dtype is not y.dtype or x.device != y.device:
            raise TypeError(f"PVD: y is {y.dtype} on {y.device} but the encoder gave {x.dtype} on {x.device}")
        if x.device.type != "cpu":
            return  # reading the energies would synchronise; the ops flag what matters
        energy = torch.linalg.vector_norm(x, dim=(-3, -2, -1)).square() / (c.power * math.prod(need[2:]))
        off = (energy - 1).abs() > 1e-3
        if bool(off.any()):
            b, u = (int(v) for v in off.nonzero()[0])
            raise ValueError(f"PVD: the encoder breaks the power constraint |x|^2 = P*K*Nt*T: item {b}, user {u} has "
                             f"{float(energy[b, u]):.4g} times that; end it with sf.power_normalise")  # fmt: skip

    def _check_input(self, y: Tensor, noise_var: float | Tensor, restarts: int) -> None:
        if not isinstance(y, Tensor) or not y.is_complex():
            got = y.dtype if isinstance(y, Tensor) else type(y).__name__
            raise TypeError(f"PVD.run: y must be a complex torch tensor, got {got}")
        if y.ndim != 4:
            raise ValueError(f"PVD.run: y must be [B,K,Nr,T], got shape {tuple(y.shape)}")
        if restarts < 1:
            raise ValueError(f"PVD.run: restarts must be at least 1, got {restarts}")
        level = torch.as_tensor(noise_var)
        if level.ndim > 1 or (level.ndim == 1 and level.shape[0] not in (1, y.shape[0])):
            raise ValueError(f"PVD.run: noise_var must be a number or [B] = [{y.shape[0]}], got {tuple(level.shape)}")
        if level.device.type == "cpu" and not bool((level > 0).all() and torch.isfinite(level).all()):
            raise ValueError(f"PVD.run: noise_var must be positive and finite, got {noise_var}")
        if y.device.type == "cpu":
            bad = ~torch.isfinite(torch.view_as_real(y.resolve_conj())).flatten(1).all(1)
            if bool(bad.any()):
                raise ValueError(f"PVD.run: y of image {int(bad.nonzero()[0])} holds NaN or Inf")

    def run(
        self,
        y: Tensor,
        noise_var: float | Tensor,
        *,
        restarts: int = 1,
        seed: int = 0,
        first_item: int = 0,
        on_level: Callable[[PVDLevel], None] | None = None,
        progress: bool = False,
    ) -> PVDResult:
        """Recover channels and sources of a batch of received signals.

        Args:
            y: [B,K,Nr,T], complex64 or complex128. noise_var: E|n|^2 per complex entry, a number or [B].
            restarts: R independent starts per image, run in the batch; the smallest residual energy wins.
            seed: of the Philox draws. first_item: index of image 0, so that a split batch draws the same numbers.
            on_level: called after every level. progress: show a bar (extra `demo`).

        Raises:
            ValueError: shapes, noise_var <= 0, NaN in y, an encoder that misses its power constraint by over 1e-3;
            DivergedError (a ValueError) when every restart of an image is non-finite: it names the image and keeps the
            others' results. TypeError: y is not complex or differs from the networks in dtype or device.
        """
        if not isinstance(noise_var, (int, float, Tensor)):
            noise_var = torch.as_tensor(noise_var)  # NumPy numbers and arrays
        if seed is None:
            raise ValueError("PVD.run: seed must be an integer")
        self._check_input(y, noise_var, restarts)
        c = self.config
        images = y.shape[0]
        if isinstance(noise_var, Tensor):
            noise_var = noise_var.to(y.device, y.real.dtype)
            noise_var = noise_var.repeat_interleave(restarts) if noise_var.ndim and restarts > 1 else noise_var
            noise_var = noise_var.repeat(c.L) if noise_var.ndim and noise_var.shape[0] > 1 and c.L > 1 else noise_var
        y = y.resolve_conj()
        levels = range(c.J - 1, -1, -1)
        bar = require_extra("tqdm.auto", "demo").tqdm(total=c.J * c.Jin, desc="PVD", unit="it") if progress else None
        # the networks' products need autograd, also for a caller in inference mode, whose tensors it cannot hold
        with torch.inference_mode(False), torch.no_grad(), tolerate_non_finite():
            many = y.clone() if y.is_inference() else y
            many = many.repeat_interleave(restarts, 0) if restarts > 1 else many
            run = _Run(self, many, noise_var, seed, first_item * restarts)
            n = 0
            for j in levels:
                for _ in range(c.Jin):
                    run.step(j, n, last=n == c.J * c.Jin - 1)
                    n += 1
                    if bar is not None:
                        bar.update()
                level = run.end_level(j)
                if on_level is not None:
                    on_level(level)
            energy = run.final_energy()
        if bar is not None:
            bar.close()
        return _choose(run.h.mean, run.d.mean, energy, images, restarts)


def _choose(h: Tensor, d: Tensor, energy: Tensor, images: int, restarts: int) -> PVDResult:
    """Keep the restart with the smallest residual energy; a non-finite one counts as infinite."""
    finite = torch.isfinite(energy)
    for t in (h, d):
        flat = torch.view_as_real(t) if t.is_complex() else t
        finite = finite & torch.isfinite(flat).flatten(1).all(1)
    all_energy = torch.where(finite, energy, torch.inf).reshape(images, restarts)
    best, chosen = all_energy.min(1) if images else (all_energy.new_zeros(0), all_energy.new_zeros(0, dtype=torch.long))
    rows = torch.arange(images, device=h.device) * restarts + chosen
    result = PVDResult(h[rows], d[rows], best, all_energy, chosen)
    lost = torch.isinf(best)
    if bool(lost.any()):
        index = int(lost.nonzero()[0])
        why = f"PVD.run: image {index} diverged in all {restarts} restarts (non-finite residual)"
        raise DivergedError(f"{why}; its results and those of the other images are in this error's .result", result)
    return result
