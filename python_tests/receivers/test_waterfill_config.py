"""WaterfillConfig: validation, presets, level tables, guidance weights."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import waterfill_cases as cases
from sf_testing import within

import semcom_fast as sf
from semcom_fast.receivers.schedules import SigmoidSchedule

NAN, INF = float("nan"), float("inf")
PRESETS = ("paper", "authors_scalar", "authors_per_sample")
WRONG = [
    ({"steps": 0}, "steps"),
    ({"steps": 2.5}, "steps"),
    ({"steps": 1, "grid": "points"}, "steps"),
    ({"solver": "euler"}, "solver"),
    ({"step_rule": "half"}, "step_rule"),
    ({"grid": "log"}, "grid"),
    ({"dpm_log_snr": "ve"}, "dpm_log_snr"),
    ({"dpm_ratio": "early"}, "dpm_ratio"),
    ({"topup": "power"}, "topup"),
    ({"update_base": "none"}, "update_base"),
    ({"cfg_floor": "two"}, "cfg_floor"),
    ({"cfg_schedule": "pcs"}, "cfg_schedule"),
    ({"cfg_schedule": "pcs_x"}, "cfg_schedule"),
    ({"cfg_schedule": "ramp_1.0"}, "cfg_schedule"),
    ({"cfg_schedule": "pcs_-1"}, "cfg_schedule"),
    ({"guidance": NAN}, "guidance"),
    ({"latent_shift": INF}, "latent_shift"),
    ({"t_end": 0.0}, "t_end"),
    ({"t_end": 1.0}, "t_end"),
    ({"level_clip": -0.1}, "level_clip"),
    ({"level_clip": 0.5}, "level_clip"),
    ({"step_rule": "fixed", "grid": "points"}, "step_rule"),
    ({"cfg_schedule": "clamp_linear_1.0", "cfg_floor": "one"}, "cfg_floor"),
]


@pytest.mark.parametrize("wrong, name", WRONG, ids=str)
def test_config(wrong, name):
    """Values that mean nothing are refused with the option's name."""
    with pytest.raises((ValueError, TypeError), match=f"^WaterfillConfig: .*{name}"):
        sf.WaterfillConfig(**wrong)


def test_config_is_a_value():
    """Frozen, and the defaults are the paper's choices."""
    config = sf.WaterfillConfig()
    assert config == sf.WaterfillConfig.preset("paper") and config.steps == 50 and config.schedule == SigmoidSchedule()
    assert (config.solver, config.topup, config.topup_renorm, config.update_base) == (
        "ddim",
        "variance",
        False,
        "common",
    )
    assert (config.latent_shift, config.output_renorm, config.keep_clean, config.level_clip) == (0.0, False, False, 0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 3


def test_presets():
    """The published code's options, one level per batch or per image; overrides replace; unknown names list the choices."""
    scalar, each = (sf.WaterfillConfig.preset(p) for p in PRESETS[1:])
    assert (scalar.dpm_ratio, each.dpm_ratio) == ("two_step", "lagged") and scalar.one_level and not each.one_level
    for c in (scalar, each):
        assert (c.solver, c.dpm_log_snr, c.grid, c.final_predict) == ("dpmpp2m", "linear", "points", True)
        assert (c.level_clip, c.t_end, c.latent_shift, c.shift_channels) == (1e-6, 1e-3, 0.1, (0, 3))
        assert (c.topup, c.topup_renorm, c.update_base, c.init_clip) == ("amplitude", True, "own", True)
        assert (c.guidance, c.cfg_schedule, c.output_renorm) == (4.0, "pcs_1.0", True)
    assert sf.WaterfillConfig.preset("authors_scalar", steps=7).steps == 7
    with pytest.raises(ValueError, match="authors_per_sample"):
        sf.WaterfillConfig.preset("author")
    with pytest.raises(TypeError):
        sf.WaterfillConfig.preset("paper", stpes=3)


@pytest.mark.parametrize("start", [0.05, 0.3, 0.97])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_level_table(steps, start):
    """beta_0 is the start itself, beta_T is 0 exactly, the rest S(m(1-k/T)), falling."""
    levels = sf.WaterfillConfig(steps=steps).tables(np.array([start])).levels
    want = cases.span_levels(start, steps)
    assert levels.shape == (steps + 1, 1) and levels[0, 0] == start and levels[-1, 0] == 0
    within(torch.from_numpy(levels), torch.from_numpy(want), 1e-14, "level table")
    assert (np.diff(levels[:, 0]) < 0).all()


def test_fixed_steps():
    """step_rule="fixed": steps of 1/T, ceil(m T) of them, the last one clamped at level 0."""
    schedule = SigmoidSchedule()
    start = np.array([0.8, 0.1, schedule.level(0.25)])
    levels = sf.WaterfillConfig(steps=20, step_rule="fixed").tables(start).levels
    for b, level in enumerate(start):
        m = schedule.time(float(level))
        count = math.ceil(m * 20 - 1e-9)
        want = [schedule.level(max(m - k / 20, 0.0)) for k in range(len(levels))]
        within(torch.from_numpy(levels[:, b]), torch.tensor(want, dtype=torch.float64), 1e-14, "fixed steps")
        assert levels[count, b] == 0 and levels[count - 1, b] > 0


@pytest.mark.parametrize(
    "schedule, at", [("const", lambda t: 4 + 0 * t), ("pcs_1.0", lambda t: 2 * (1 - np.cos(np.pi * t))),
                     ("pcs_2.0", lambda t: 2 * (1 - np.cos(np.pi * t**2))),
                     ("clamp_linear_1.0", lambda t: np.clip(8 * t, 1, 8))],
)  # fmt: skip
def test_guidance_weights(schedule, at):
    """w(t) of the published schedules; cfg_floor="one" ramps from 1 instead of from 0."""
    config = sf.WaterfillConfig(steps=9, guidance=4.0, cfg_schedule=schedule)
    start = np.array([0.9, 0.2])
    t = cases.schedule_time(start) * (1 - np.arange(9)[:, None] / 9)
    within(torch.from_numpy(config.tables(start).guidance), torch.from_numpy(at(t)), 1e-12, "guidance weights")
    if not schedule.startswith("clamp"):
        floor = sf.WaterfillConfig(steps=9, guidance=4.0, cfg_schedule=schedule, cfg_floor="one").tables(start).guidance
        within(torch.from_numpy(floor), torch.from_numpy(1 + 3 * at(t) / 4), 1e-12, "guidance weights from one")
