"""Parallel variational diffusion: blind recovery of channel and source from one received block-fading signal."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import require_extra
from ..ops._checks import COMPLEX, non_finite_row, tolerate_non_finite
from ..ops._levels import check_draw, level_tensor
from . import graph_pvd as cuda_graph
from .pvd_config import PVDConfig
from .pvd_results import DivergedError, PVDLevel, PVDResult, choose
from .pvd_run import Run
from .pvd_tables import Tables
from .users import Denoiser, Encoder, ParallelDenoiser, ParallelEncoder, Pullback

__all__ = ["PVD", "DivergedError", "PVDConfig", "PVDLevel", "PVDResult"]


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
            and is clamped to [0, sigma^2]. A denoiser with a method ``vjp(cotangent, sigma)`` is differentiated by it,
            alone or in a list. Where the users' noise levels differ, each callable of a list gets the sigma of its
            user; one callable must take sigma [U] and say so by an attribute ``per_user_sigma = True``, as
            :class:`GaussianChannelPrior` does.
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
        users, apart = self.config.users, self.config.sigma_per_user
        self.encode = ParallelEncoder(encoder, users)
        self.denoiser_h = ParallelDenoiser(denoiser_h, users, "denoiser_h", sigma_per_user=apart)
        self.denoiser_d = ParallelDenoiser(denoiser_d, users, "denoiser_d", sigma_per_user=apart)
        self.tables: dict[tuple, Tables] = {}  # by configuration, device and dtype
        self.graphs = cuda_graph.PVDGraphs()

    def decode_with_vjp(
        self, d: Tensor, sigma: Tensor, *, clamp: bool = True
    ) -> tuple[Tensor, Tensor, Tensor, Pullback]:
        """Denoised source, its variance (clamp=False: as the denoiser gave it), its codeword, the VJP of both maps."""
        if self.denoiser_d.has_vjp:
            d0, var, pull = self.denoiser_d.with_vjp(d, sigma, clamp=clamp)
            with torch.enable_grad():
                leaf = d0.detach().requires_grad_(True)
                x = self.encode(leaf)
            return d0, var, x.detach(), Pullback(x, leaf, then=pull)
        with torch.enable_grad():
            leaf = d.detach().requires_grad_(True)
            d0, var = self.denoiser_d(leaf, sigma, clamp=clamp)
            x = self.encode(d0)
        return d0.detach(), var.detach(), x.detach(), Pullback(x, leaf)

    def check_power(self, x: Tensor, blocks: int, slots: int, y: Tensor) -> None:
        """The encoder's shape, dtype and power, once per run."""
        c = self.config
        need = (y.shape[0], c.users, blocks, c.nt, slots)
        if tuple(x.shape) != need:
            raise ValueError(f"PVD: the encoder must give [B,U,K,Nt,T] = {need} for received blocks of shape "
                             f"{tuple(y.shape)}; it gave {tuple(x.shape)}")  # fmt: skip
        if x.dtype is not y.dtype or x.device != y.device:
            low = x.dtype in (torch.complex32, torch.bfloat16, torch.float16)
            hint = "; end it with .to(torch.float32) and sf.power_normalise(x)[0]" if low else ""
            raise TypeError(f"PVD: y is {y.dtype} on {y.device} but the encoder gave {x.dtype} on {x.device}{hint}")
        if x.device.type != "cpu":
            return  # reading the energies would synchronise; the ops flag what matters
        energy = torch.linalg.vector_norm(x, dim=(-3, -2, -1)).square() / (c.power * math.prod(need[2:]))
        off = (energy - 1).abs() > 1e-3
        if bool(off.any()):
            b, u = (int(v) for v in off.nonzero()[0])
            raise ValueError(f"PVD: the encoder breaks the power constraint |x|^2 = P*K*Nt*T: item {b}, user {u} has "
                             f"{float(energy[b, u]):.4g} times that; end it with sf.power_normalise(x)[0]")  # fmt: skip

    def _check_input(self, y: Tensor, noise_var: float | Tensor, restarts: int) -> None:
        if not isinstance(y, Tensor) or y.dtype not in COMPLEX:
            got = y.dtype if isinstance(y, Tensor) else type(y).__name__
            raise TypeError(f"PVD.run: y must be a complex64 or complex128 tensor, got {got}")
        if y.ndim != 4:
            raise ValueError(f"PVD.run: y must be [B,K,Nr,T], got shape {tuple(y.shape)}")
        if not hasattr(restarts, "__index__"):
            raise TypeError(f"PVD.run: restarts must be an integer, got {restarts!r}")
        if restarts < 1:
            raise ValueError(f"PVD.run: restarts must be at least 1, got {restarts}")
        level = level_tensor("PVD.run", "noise_var", noise_var)
        if level.ndim > 1 or (level.ndim == 1 and level.shape[0] not in (1, y.shape[0])):
            raise ValueError(f"PVD.run: noise_var must be a number or [B] = [{y.shape[0]}], got {tuple(level.shape)}")
        if level.device.type == "cpu" and not bool((level > 0).all() and torch.isfinite(level).all()):
            raise ValueError(f"PVD.run: noise_var must be positive and finite, got {noise_var}")
        if y.device.type == "cpu":
            image = non_finite_row(y)
            if image is not None:
                raise ValueError(f"PVD.run: y of image {image} holds NaN or Inf")

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
        graph: bool = False,
    ) -> PVDResult:
        """Recover channels and sources of a batch of received signals.

        Batches larger than memory: :func:`semcom_fast.receivers.run_in_batches`, with the same draws.

        Args:
            y: [B,K,Nr,T], complex64 or complex128. noise_var: E|n|^2 per complex entry, a number or [B].
            restarts: R independent starts per image, run in the batch; the smallest residual energy wins.
            seed: of the Philox draws. first_item: index of image 0, so that a split batch draws the same numbers.
            on_level: called after every level. progress: show a bar (extra `demo`).
            graph: replay the inner iterations as a CUDA graph; where that cannot be, a warning says why and the loop
                runs as usual. The networks must then be capturable (fixed shapes, no host reads). The graph is kept
                for later runs of the same sizes while the networks' weights stay where they are.

        Raises:
            ValueError: shapes, noise_var <= 0, NaN in y, an encoder that misses its power constraint by over 1e-3;
            DivergedError (a ValueError) when every restart of an image is non-finite: it names the image and keeps the
            others' results. TypeError: y is not complex or differs from the networks in dtype or device.
        """
        if not isinstance(noise_var, (int, float, Tensor)):
            noise_var = level_tensor("PVD.run", "noise_var", noise_var)  # NumPy numbers and arrays
        if seed is None:
            raise ValueError("PVD.run: seed must be an integer")
        check_draw("PVD.run", seed, first_item=first_item)
        self._check_input(y, noise_var, restarts)
        c = self.config
        images = y.shape[0]
        if isinstance(noise_var, Tensor):
            noise_var = noise_var.to(y.device, y.real.dtype)
            noise_var = noise_var.repeat_interleave(restarts) if noise_var.ndim and restarts > 1 else noise_var
            noise_var = noise_var.repeat(c.L) if noise_var.ndim and noise_var.shape[0] > 1 and c.L > 1 else noise_var
        y = y.resolve_conj()
        why_not = cuda_graph.why_not(y, c) if graph else None
        if why_not is not None:
            warnings.warn(f"PVD: no CUDA graph, because {why_not}; running without", stacklevel=2)
        bar = require_extra("tqdm.auto", "demo").tqdm(total=c.J * c.Jin, desc="PVD", unit="it") if progress else None
        tick = None if bar is None else bar.update
        # the networks' products need autograd, also for a caller in inference mode, whose tensors it cannot hold
        with torch.inference_mode(False), torch.no_grad(), tolerate_non_finite():
            many = y.clone() if y.is_inference() else y
            many = many.repeat_interleave(restarts, 0) if restarts > 1 else many
            run = Run(self, many, noise_var, seed, first_item * restarts)
            if graph and why_not is None:
                self._iterate(run, 1, on_level, tick)
                captured = self.graphs.of(run)  # lives until the result's check has waited for it
                captured.loop(run, on_level, tick)
            else:
                self._iterate(run, c.J * c.Jin, on_level, tick)
            energy = run.final_energy()
        if bar is not None:
            bar.close()
        return choose(run.h.mean, run.d.mean, energy, images, restarts)

    def _iterate(
        self, run: Run, count: int, on_level: Callable[[PVDLevel], None] | None, tick: Callable[[], Any] | None
    ) -> None:
        """The first `count` inner iterations, with the ends of their levels."""
        c = self.config
        for n in range(count):
            j = c.J - 1 - n // c.Jin
            run.step(j, n, last=n == c.J * c.Jin - 1)
            if tick is not None:
                tick()
            if n % c.Jin == c.Jin - 1:
                level = run.end_level(j)
                if on_level is not None:
                    on_level(level)
