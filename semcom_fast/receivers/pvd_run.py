"""The state of one run of parallel variational diffusion and its inner iteration."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..ops.likelihood_score import likelihood_score
from ..ops.pvd_update import pvd_update
from ..reference import default_next_var
from . import unchecked
from .exact_score import exact_channel_score
from .pvd_config import Level, per_user
from .pvd_results import PVDLevel
from .pvd_tables import Tables

if TYPE_CHECKING:
    from .pvd import PVD

STREAM_H, STREAM_D, STREAM_H0, STREAM_D0, STREAM_PROBE = 1, 2, 3, 4, 5
SAMPLE_STRIDE = 16


@dataclass
class State:
    """Mean, anchor and sample of one variable, and how it is updated."""

    mean: Tensor
    anchor: Tensor
    sample: Tensor
    zeta: float | Tensor
    stream: int


class _Move(NamedTuple):
    """Levels of one update, and the Philox step of the sample that it draws."""

    sigma: float | Tensor
    sigma_above: float | Tensor
    next_var: float | Tensor
    step: int


class Run:
    """One call of PVD.run: the batch of images x restarts, its levels and its counters."""

    def __init__(self, owner: "PVD", y: Tensor, noise_var: float | Tensor, seed: int | Tensor, first_item: int) -> None:
        self.owner, self.config, self.seed, self.first_item = owner, owner.config, seed, first_item
        c = self.config
        self.batch, self.blocks, self.nr, self.slots = y.shape
        self.real = y.real.dtype
        self.y = y if c.L == 1 else y.repeat(c.L, 1, 1, 1)
        self.noise_var = noise_var
        key = (c, y.device, self.real)
        self.tables = owner.tables.get(key) or owner.tables.setdefault(key, Tables(c, owner.denoiser_h, *key[1:]))
        self.schedule, self.sigmas, self.levels = self.tables.schedule, self.tables.sigmas, self.tables.levels
        self.h = self._start((c.users, self.blocks, self.nr, c.nt), y.dtype, c.zeta_h, STREAM_H, STREAM_H0)
        self.d = self._start((c.users, *c.source_shape), self.real, c.zeta_d, STREAM_D, STREAM_D0)
        self.energy = self.score_var = y.new_zeros(0, dtype=self.real)
        white = owner.denoiser_h.white_variance() if c.lagged_noise and c.L == 1 else None
        self.white: Any = None if white is None else self._over_users(white, 2, torch.float64)
        self._channel_var = self._white_var = -1, self.energy  # a level, and the channel's posterior variance there

    def _over_users(self, level: Level, ndim: int, dtype: torch.dtype) -> float | Tensor:
        """A number, or numbers per user [1,U,1,...] that broadcast over a state of `ndim` dimensions."""
        return self.tables.over_users(level, ndim, dtype)

    def _normal(self, shape: tuple[int, ...], dtype: torch.dtype, stream: int, step: int) -> Tensor:
        draw = unchecked.philox_normal
        if self.config.L == 1 or stream in (STREAM_H0, STREAM_D0):
            return draw(shape, self.seed, step, stream, self.first_item, dtype, self.y.device)
        streams = range(stream, stream + SAMPLE_STRIDE * self.config.L, SAMPLE_STRIDE)
        return torch.stack([draw(shape, self.seed, step, k, self.first_item, dtype, self.y.device) for k in streams])

    def _start(self, shape: tuple[int, ...], dtype: torch.dtype, zeta: Level, stream: int, first: int) -> State:
        """Independent draws: the anchor at s_J, the mean at s_{J-1}, then the first sample around the mean."""
        c, full = self.config, (self.batch, *shape)

        def scaled(normal: Tensor, level: Level) -> Tensor:
            return normal * self._over_users(level, len(full), self.real)

        anchor = scaled(self._normal(full, dtype, first, 0), self.schedule[-1])
        mean = scaled(self._normal(full, dtype, first, 1), self.schedule[-2])
        sample = mean.expand((c.L, *full) if c.L > 1 else full)
        if c.sample_noise:
            below, above = self.schedule[-2:]
            spread = per_user(lambda s, a: math.sqrt(default_next_var(s, a, c.v0)), below, above)
            sample = sample + scaled(self._normal(full, dtype, stream, 0), spread)
        else:
            sample = sample.clone()
        return State(mean, anchor, sample, self._over_users(zeta, 2, torch.float64), stream)

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
        c = self.config
        d0, var_d, x, pull_d = self.owner.decode_with_vjp(self._flat(self.d.sample), self.sigmas[j], clamp=False)
        var_d = self.tables.clamp(var_d, j)
        probe = self._probe(d0, var_d, x, n) if c.calibration == "secant" else None
        next_var = 0.0 if last else self.levels[j if n % c.Jin != c.Jin - 1 else j - 1][1]
        move = _Move(self.levels[j][0], self.levels[j + 1][0], next_var, n + 1)
        score_x, s = self._step_channel(j, n, move, d0, x, probe)
        # torch's cotangent of a real loss is twice the Wirtinger score: the 2 of G_X is taken out of s
        score_d = pull_d(score_x)
        if n == 0:
            pull_d.warn_if_lost(score_x, score_d, probe)
        self._move(self.d, d0, score_d, 0.5 * s, move)

    def _step_channel(
        self, j: int, n: int, move: _Move, d0: Tensor, x: Tensor, probe: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Denoise, score and move the channel; returns the unscaled score of the codeword and what divides it."""
        c = self.config
        if self.white is not None and n:
            return self._step_white_channel(j, move, x, probe)
        h0, var_h, pull_h = self._denoise_channel(j)
        if n == 0:
            self._check_networks(x, h0, d0)
        score_h, score_x, self.energy, probe_x, probe_y = unchecked.likelihood_score(self.y, h0, x, None, probe)
        s = self._effective_noise(self.energy, probe_x, probe_y, var_h)
        used = self.score_var if c.lagged_noise and n else s
        s_h, self.score_var = used, s
        if c.exact_covariance:
            rest = self._effective_noise(self.energy, probe_x, probe_y, var_h, channel=False)
            score_h, s_h = exact_channel_score(score_h, x, var_h, rest), torch.ones_like(s)
        self._move(self.h, h0, pull_h(score_h), s_h, move)
        return score_x, used

    def _denoise_channel(self, j: int) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """The channel's posterior mean, its variance [L*B,U], and the mean's vector-Jacobian product."""
        sample = self._flat(self.h.sample)
        if self.tables.channel is None:
            h0, var, pull = self.owner.denoiser_h.with_vjp(sample, self.sigmas[j], clamp=False)
            return h0, self.tables.clamp(var, j), pull
        weight, var_h = self.tables.channel[j]  # i.i.d. Gaussian: one number, and one variance for a whole level
        if self._channel_var[0] != j:
            self._channel_var = j, sample.new_full(sample.shape[:2], var_h, dtype=self.real)
        return sample * weight, self._channel_var[1], lambda g: g * weight

    def _step_white_channel(self, j: int, move: _Move, x: Tensor, probe: Tensor | None) -> tuple[Tensor, Tensor]:
        """`_step_channel` in one op: an i.i.d. Gaussian channel, and a divisor known from the iteration before."""
        used, h = self.score_var, self.h
        h.mean, h.sample, score_x, self.energy, probe_x, probe_y = unchecked.pvd_channel_step(
            self.y, x, h.mean, h.anchor, h.sample, probe, None,
            move.sigma, move.sigma_above, h.zeta, used, move.next_var, self.white,
            self.seed, move.step, h.stream, self.first_item,
        )  # fmt: skip
        self.score_var = self._effective_noise(self.energy, probe_x, probe_y, self._white_variance(j))
        return score_x, used

    def _white_variance(self, j: int) -> Tensor:
        """Posterior variance [B,U] of an i.i.d. Gaussian channel at level j; one level lasts many iterations."""
        if self._white_var[0] != j:
            noise = self.sigmas[j].square()
            var = (self.white * noise / (self.white + noise)).to(self.real)
            self._white_var = j, var.expand(self.batch, self.config.users)
        return self._white_var[1]

    def _move(self, state: State, denoised: Tensor, score: Tensor, score_var: Tensor, move: _Move) -> None:
        state.mean, state.sample = unchecked.pvd_update(
            state.mean, state.anchor, state.sample, self._unflat(denoised), self._unflat(score), None,
            move.sigma, move.sigma_above, state.zeta, self._unflat(score_var), move.next_var,
            self.seed, move.step, state.stream, self.first_item,
        )  # fmt: skip

    def end_level(self, j: int) -> PVDLevel:
        """The means of a level condition the next one; they also carry over."""
        self.h.anchor, self.d.anchor = self.h.mean, self.d.mean
        return PVDLevel(j, self.schedule[j], self.h.mean, self.d.mean, self.energy, self.score_var)

    def final_energy(self) -> Tensor:
        """|Y - sum_u H f(D)|^2 at the means."""
        with torch.no_grad():
            x = self.owner.encode(self.d.mean)
            return likelihood_score(self.y[: self.batch], self.h.mean, x).energy
