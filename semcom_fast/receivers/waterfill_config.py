"""Options of the water-filling diffusion receiver, and the level tables they stand for."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from .schedules import SigmoidSchedule

CHOICES = {
    "step_rule": ("span", "fixed"),
    "grid": ("to_zero", "points"),
    "solver": ("ddim", "dpmpp2m"),
    "dpm_log_snr": ("vp", "linear"),
    "dpm_ratio": ("two_step", "lagged"),
    "cfg_floor": ("zero", "one"),
    "topup": ("variance", "amplitude"),
    "update_base": ("common", "own"),
}
_AUTHORS: dict[str, Any] = dict(
    grid="points", final_predict=True, level_clip=1e-6, solver="dpmpp2m", dpm_log_snr="linear", guidance=4.0,
    cfg_schedule="pcs_1.0", topup="amplitude", topup_renorm=True, update_base="own", init_clip=True, latent_shift=0.1,
    output_renorm=True,
)  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "authors_scalar": {**_AUTHORS, "dpm_ratio": "two_step", "one_level": True},
    "authors_per_sample": {**_AUTHORS, "dpm_ratio": "lagged"},
}


class WaterfillTables(NamedTuple):
    """Float64 tables of one run: level k of image b, K updates between K + 1 levels.

    levels [K+1,B]; guidance [K,B]: weight of the conditional prediction at update k; ratio [K,B]: r of
    DPM-Solver++(2M), infinite where the update is a plain DDIM step.
    """

    levels: np.ndarray
    guidance: np.ndarray
    ratio: np.ndarray


@dataclass(frozen=True)
class WaterfillConfig:
    """Sizes, schedule and variants of a water-filling diffusion run. The defaults are the paper's algorithm.

    Levels: steps T; `schedule` maps time to level. The run starts at the noisiest element's level beta_0 itself, at
    time m = S^-1(beta_0).
        step_rule: "span" divides [0, m] into T equal steps; "fixed" takes steps of 1/T, ceil(m T) of them.
        grid: "to_zero" ends at level 0 exactly; "points" has T points from m to the time `t_end` (T - 1 updates, upward
        where m < t_end; elements with unequal levels stay at m there). final_predict: one more prediction, at the last
        level, is the output. level_clip: levels are kept in [level_clip, 1 - level_clip], but for an end at 0.
        one_level: refuse a batch whose images start at different levels.
    Solver: "ddim", or "dpmpp2m" (second order, D = (1 + 1/2r) x0 - x0_prev/2r), which needs one level per image.
        dpm_log_snr: half log-SNR "vp" log(sqrt(1-beta)/sqrt(beta)) or "linear" log((1-sqrt(beta))/sqrt(beta)).
        dpm_ratio: r = h_{k-1}/h_k of two consecutive steps ("two_step"), or two steps late in a difference array that
        wraps around ("lagged"). The first update, and one that ends at level 0, is DDIM.
    Guidance, where the predictor returns (x0, x0_uncond): x0 <- w x0 + (1-w) x0_uncond, w from guidance = w0 and the
    time t of the level by cfg_schedule:
        "const" w0; "pcs_s" w0 (1 - cos(pi t^s))/2; "clamp_linear_s" clip(2 t w0, s, 2 w0), s a number ("pcs_1.0").
        cfg_floor "one" replaces w0 ramp by 1 + (w0-1) ramp (const and pcs). A final prediction uses the last update's w.
    Fast-fading step, where d has one level per symbol: topup "variance" (23) or "amplitude" (standard deviations are
    added), topup_renorm: unit RMS per image before the network, update_base "common" (24) or "own" (from each
    element's own level). The last three but for the paper's choice are the authors' published code.
        init_clip: levels above the start count as the start; without it they are refused.
    Output: keep_clean returns f/sqrt(1-d) where d is below the last level the network saw (it never learnt anything
    about them); latent_shift is added to channels shift_channels (axis 1); output_renorm: unit RMS per image.

    Raises ValueError for values that mean nothing, or nothing together.

    Source: Algorithms 2 and 3, (17)-(19), (23), (24) of "Semantics-Guided Diffusion for Deep Joint Source-Channel Coding
    in Wireless Image Transmission", with b >= beta_s in line 11 of Algorithm 3 and sqrt(1 - beta_s) in (18); the
    variants are those of the authors' published code.
    """

    steps: int = 50
    schedule: SigmoidSchedule = field(default_factory=SigmoidSchedule)
    step_rule: str = "span"
    grid: str = "to_zero"
    t_end: float = 1e-3
    final_predict: bool = False
    level_clip: float = 0.0
    one_level: bool = False
    solver: str = "ddim"
    dpm_log_snr: str = "vp"
    dpm_ratio: str = "two_step"
    guidance: float = 1.0
    cfg_schedule: str = "const"
    cfg_floor: str = "zero"
    topup: str = "variance"
    topup_renorm: bool = False
    update_base: str = "common"
    init_clip: bool = False
    keep_clean: bool = False
    latent_shift: float = 0.0
    shift_channels: tuple[int, ...] = (0, 3)
    output_renorm: bool = False

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                allowed = " or ".join(repr(c) for c in choices)
                raise ValueError(f"WaterfillConfig: {name} must be {allowed}, got {getattr(self, name)!r}")
        least = 2 if self.grid == "points" else 1
        if not isinstance(self.steps, int) or self.steps < least:
            raise ValueError(
                f"WaterfillConfig: steps must be an integer >= {least} (grid={self.grid!r}), got {self.steps}"
            )
        for name in ("guidance", "latent_shift"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"WaterfillConfig: {name} must be finite, got {getattr(self, name)}")
        if not 0 < self.t_end < 1:
            raise ValueError(f"WaterfillConfig: t_end must lie inside (0, 1), got {self.t_end}")
        if not 0 <= self.level_clip < 0.5:
            raise ValueError(f"WaterfillConfig: level_clip must lie in [0, 0.5), got {self.level_clip}")
        if self.step_rule == "fixed" and self.grid == "points":
            raise ValueError(
                "WaterfillConfig: step_rule='fixed' steps down to level 0 and means nothing with grid='points'"
            )
        kind, _ = self._cfg()
        if kind == "clamp_linear" and self.cfg_floor == "one":
            raise ValueError(
                "WaterfillConfig: cfg_floor='one' needs const or pcs_s; clamp_linear_s has its own floor s"
            )
        object.__setattr__(self, "shift_channels", tuple(self.shift_channels))

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "WaterfillConfig":
        """A named set of options, with some replaced: "paper", "authors_scalar" (the published sampler with one level
        per batch) or "authors_per_sample" (the one its inference script uses). Both authors_* need one level per image;
        for their fast-fading step override solver="ddim" (and one_level=False in "authors_scalar")."""
        if name not in PRESETS:
            raise ValueError(f"WaterfillConfig: unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
        return replace(cls(**PRESETS[name]), **overrides)

    @property
    def authors_step(self) -> bool:
        """Whether the fast-fading step is one of the published code's variants instead of (23) and (24)."""
        return (self.topup, self.topup_renorm, self.update_base) != ("variance", False, "common")

    def _cfg(self) -> tuple[str, float]:
        """Kind and parameter s of the guidance schedule."""
        text = self.cfg_schedule
        if text == "const":
            return text, 1.0
        kind, _, tail = str(text).rpartition("_")
        try:
            s = float(tail)
        except ValueError:
            kind, s = "", math.nan
        if kind not in ("pcs", "clamp_linear") or not 0 < s < math.inf:
            raise ValueError("WaterfillConfig: cfg_schedule must be 'const', 'pcs_s' or 'clamp_linear_s' with a number "
                             f"s > 0 (such as 'pcs_1.0'), got {text!r}")  # fmt: skip
        return kind, s

    def guidance_at(self, t: np.ndarray) -> np.ndarray:
        """w at time t."""
        kind, s = self._cfg()
        w0 = self.guidance
        if kind == "clamp_linear":
            return np.minimum(np.maximum(2 * t * w0, s), 2 * w0)
        ramp = (1 - np.cos(np.pi * t**s)) / 2 if kind == "pcs" else np.ones_like(t)
        return 1 + (w0 - 1) * ramp if self.cfg_floor == "one" else w0 * ramp

    def times(self, start: np.ndarray, *, falling: bool = False) -> np.ndarray:
        """Times t_k [K+1,B] from the start levels [B]; `falling` keeps a "points" grid from running upward."""
        m = self.schedule.time(np.asarray(start, dtype=np.float64))
        n = self.steps
        if self.grid == "points":
            share = np.arange(n)[:, None] / (n - 1)
            return m + share * ((np.minimum(self.t_end, m) if falling else self.t_end) - m)
        if self.step_rule == "span":
            return m * (1 - np.arange(n + 1)[:, None] / n)
        count = np.maximum(np.ceil(m * n - 1e-9), 1)  # 1e-9: m a multiple of 1/T up to rounding
        k = np.arange(int(count.max(initial=1)) + 1)[:, None]
        return np.where(k < count, np.maximum(m - k / n, 0), 0)

    def tables(self, start: np.ndarray, *, falling: bool = False) -> WaterfillTables:
        """Levels, guidance weights and solver ratios of a run whose images start at the levels `start` [B].

        The first level is `start` itself (within level_clip) and, with grid="to_zero", the last is 0 exactly:
        S(S^-1(beta)) may fall a rounding short of beta.
        """
        start = np.asarray(start, dtype=np.float64)
        t = self.times(start, falling=falling)
        levels = self.schedule.level(t)
        levels[0] = start
        floor = np.where((t == 0) & (self.grid == "to_zero"), 0, self.level_clip)
        levels = np.clip(levels, floor, 1 - self.level_clip)
        return WaterfillTables(levels, self.guidance_at(t[:-1]), self._ratio(levels))

    def _ratio(self, levels: np.ndarray) -> np.ndarray:
        """r of the second-order solver; infinite, which makes it first order, where r has no finite non-zero value."""
        if self.solver != "dpmpp2m":
            return np.full_like(levels[1:], np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            root = np.sqrt(levels)
            signal = np.sqrt(1 - levels) if self.dpm_log_snr == "vp" else 1 - root
            snr = np.log(signal / root)
            if self.dpm_ratio == "lagged":
                h = snr - np.roll(snr, 1, axis=0)
                update = np.arange(len(levels) - 1)
                ratio = h[update - 2] / h[update - 1]
            else:
                h = snr[1:] - snr[:-1]
                ratio = np.concatenate([np.full_like(h[:1], np.inf), h[:-1] / h[1:]])
        ratio[0] = np.inf
        return np.where(np.isfinite(ratio) & (ratio != 0) & (levels[1:] > 0), ratio, np.inf)
