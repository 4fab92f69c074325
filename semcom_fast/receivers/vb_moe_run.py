"""One call of the mixture-of-experts channel estimator: its arguments checked, its schedules and its levels per row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops._checks import non_finite_row
from ..ops._levels import check_draw, level_tensor
from ..ops.pilot_svd import pilot_svd
from ..reference import PilotSVD
from . import unchecked
from .vb_moe_config import VBMoEConfig

_NAME = "VBMoE.run"
STREAM_START = 7
COMPLEX = (torch.complex64, torch.complex128)


@dataclass
class Run:
    """One call of VBMoE.run: the received pilots in the basis of the transmitted ones, schedules, levels per channel.

    start [B,Nr,Nt]: H_T; yv [B,Nr,r]; u [Nt,r] or [B,Nt,r], s likewise; noise_var and lam [B] float64 on the device; x0:
    per channel, whether the likelihood residual is taken at the denoised channel. tables: the schedules on the
    device.
    """

    config: VBMoEConfig
    start: Tensor
    yv: Tensor
    u: Tensor
    s: Tensor
    noise_var: Tensor
    lam: Tensor
    x0: list[bool]
    seed: int
    first_item: int
    schedules: "Schedules"
    tables: "DeviceTables"

    @property
    def rows(self) -> int:
        return self.start.shape[0]

    @property
    def own_pilots(self) -> bool:
        """Whether every channel has pilots of its own."""
        return self.u.ndim == 3


class DeviceTables(NamedTuple):
    """beta and alpha_bar, entry t of step t: floats on the CPU, 0-d float64 tensors elsewhere (there a float would be a
    kernel of its own); steps S of the evidence int64 and their alpha_bar and weights float64, on the device."""

    beta: Sequence[Any]
    alpha_bar: Sequence[Any]
    steps: Tensor
    elbo_alpha_bar: Tensor
    elbo_weights: Tensor


class Schedules:
    """The tables of one configuration where the ops read them; kept, for a captured graph holds their addresses."""

    def __init__(self, config: VBMoEConfig) -> None:
        assert config.elbo_steps is not None
        self.tables, self.steps = config.tables(), list(config.elbo_steps)
        self.tau_index = self.steps.index(config.tau_step)
        self.kept: dict[torch.device, DeviceTables] = {}

    def on(self, device: torch.device) -> DeviceTables:
        """The tables for ops on this device."""
        if device not in self.kept:
            beta, alpha_bar, weights = (torch.from_numpy(t).to(device) for t in self.tables)
            by_step = [t.tolist() if device.type == "cpu" else t.unbind(0) for t in (beta, alpha_bar)]
            at = torch.tensor(self.steps, device=device)
            self.kept[device] = DeviceTables(by_step[0], by_step[1], at, alpha_bar[at], weights[at])
        return self.kept[device]


def prepare(
    schedules: Schedules,
    config: VBMoEConfig,
    y: Any,
    pilots: Any,
    noise_var: Any,
    seed: int,
    first_item: int,
    start: Any,
) -> Run:
    """Everything that can be wrong with the arguments, and what the chains need; schedules are formed in float64."""
    _check_received(y)
    y = y.resolve_conj().resolve_neg()
    svd = _decomposition(y, pilots)
    batch, nr = y.shape[:2]
    nt = svd.u.shape[-2]
    levels = _noise_levels(noise_var, batch)
    snr_db = [10 * math.log10(nt / v) for v in levels]
    if seed is None or isinstance(seed, Tensor) or isinstance(first_item, Tensor):
        raise TypeError(f"{_NAME}: seed and first_item must be integers, got {seed!r}, {first_item!r}")
    check_draw(_NAME, seed, first_item=first_item)

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=y.device)

    return Run(
        config=config, start=_start_of(start, config, (batch, nr, nt), y, seed, first_item), yv=svd.project(y),
        u=svd.u.contiguous(), s=svd.s.contiguous(), noise_var=column(levels),
        lam=column([config.likelihood_scale(snr) for snr in snr_db]), x0=[config.residual_at_x0(snr) for snr in snr_db],
        seed=seed, first_item=first_item, schedules=schedules, tables=schedules.on(y.device),
    )  # fmt: skip


def _check_received(y: Any) -> None:
    if not isinstance(y, Tensor) or y.dtype not in COMPLEX:
        got = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"{_NAME}: y must be a complex64 or complex128 tensor, got {got}")
    if y.ndim != 3 or 0 in y.shape[1:]:
        raise ValueError(f"{_NAME}: y must be [B,Nr,Np], got shape {tuple(y.shape)}")
    item = non_finite_row(y)
    if item is not None:
        raise ValueError(f"{_NAME}: y of item {item} holds NaN or Inf")


def _decomposition(y: Tensor, pilots: Any) -> PilotSVD:
    """The pilots' decomposition, theirs or made here; [Nt,r] or [B,Nt,r], as y is."""
    svd = pilots if isinstance(pilots, PilotSVD) else None
    given = pilots if svd is None else svd.v
    if not isinstance(given, Tensor) or given.dtype is not y.dtype or given.device != y.device:
        got = f"{given.dtype} on {given.device}" if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"{_NAME}: pilots must be {y.dtype} on {y.device}, as y is; got {got}")
    used = given.shape[-1] if svd is None else given.shape[-2] if given.ndim > 1 else None
    if given.ndim not in (2, 3) or used != y.shape[2] or (given.ndim == 3 and given.shape[0] not in (1, y.shape[0])):
        kind = (
            "pilots must be [Nt,Np] or [B,Nt,Np]" if svd is None else "the decomposition's v must be [Np,r] or [B,Np,r]"
        )
        raise ValueError(f"{_NAME}: {kind} with B and Np of y {tuple(y.shape)}, got {tuple(given.shape)}")
    svd = pilot_svd(given.detach()) if svd is None else svd
    if given.ndim == 3 and given.shape[0] == 1 != y.shape[0]:
        svd = PilotSVD(*(part[0] for part in svd))
    return svd


def _noise_levels(noise_var: Any, batch: int) -> list[float]:
    """One positive float per channel, on the host: they choose the likelihood's form and its factor."""
    t = level_tensor(_NAME, "noise_var", noise_var).detach()
    if t.is_complex() or t.dtype is torch.bool:
        raise TypeError(f"{_NAME}: noise_var must be real, got {t.dtype}")
    if t.ndim > 1 or (t.ndim == 1 and t.shape[0] not in (1, batch)):
        raise ValueError(f"{_NAME}: noise_var must be a number or [B] = [{batch}], got {tuple(t.shape)}")
    levels: list[float] = t.double().cpu().expand(batch).tolist()
    for b, v in enumerate(levels):
        if not 0 < v < math.inf:
            where = f" of item {b}" if t.numel() > 1 else ""
            raise ValueError(f"{_NAME}: noise_var{where} must be positive and finite, got {v}")
    if not levels and not bool(((t > 0) & torch.isfinite(t)).all()):
        raise ValueError(f"{_NAME}: noise_var must be positive and finite, got {noise_var}")
    return levels


def _start_of(
    start: Any, config: VBMoEConfig, shape: tuple[int, int, int], y: Tensor, seed: int, first_item: int
) -> Tensor:
    """H_T: given, zero, or one CN(0, I) draw per channel that every chain starts from."""
    if start is None:
        if config.start == "zero":
            return torch.zeros(shape, dtype=y.dtype, device=y.device)
        return unchecked.philox_normal(shape, seed, 0, STREAM_START, first_item, y.dtype, y.device)
    if not isinstance(start, Tensor) or start.dtype is not y.dtype or start.device != y.device:
        raise TypeError(f"{_NAME}: start must be a {y.dtype} tensor on {y.device}, as y is")
    if tuple(start.shape) != shape:
        raise ValueError(f"{_NAME}: start must be [B,Nr,Nt] = {shape}, got {tuple(start.shape)}")
    item = non_finite_row(start)
    if item is not None:
        raise ValueError(f"{_NAME}: start of item {item} holds NaN or Inf")
    return start.detach().resolve_conj().resolve_neg().contiguous()
