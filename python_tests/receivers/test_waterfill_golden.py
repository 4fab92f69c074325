"""Whole runs against golden values of an independent program, in double precision and step by step in single."""

import numpy as np
import pytest
import torch
import waterfill_cases as cases
from sf_testing import within

import semcom_fast as sf
from semcom_fast.receivers.schedules import SigmoidSchedule

DTYPES = (torch.float32, torch.float64)
PER_STEP = 2e-6  # float32 kernels against the definition, relative to the terms of a step
AUTHORS = {"latent_shift": 0.0, "output_renorm": False, "guidance": 1.0, "cfg_schedule": "const"}


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with sf.use_backend(request.param):
        yield request.param


@pytest.fixture(scope="module")
def values():
    return cases.golden()


@pytest.fixture(scope="module")
def rows(values):
    return cases.GaussianRows(values["cov"])


def _t(a, dtype=torch.float64):
    return torch.from_numpy(a).to(dtype)


def _run(values, rows, config, *, row=None, start=None, d=None):
    f, noise = _t(values["f"]), _t(values["noise"])
    if row is not None:
        f, noise = f[row : row + 1], noise[:, row : row + 1]
    return sf.WaterfillDDIM(rows.torch(), config).run(f, d, noise=noise, start=start)


def test_algorithm_2(values, rows, backend):
    """Slow fading from beta_0 = 0.4."""
    level = float(values["alg2_beta0"])
    got = _run(
        values, rows, sf.WaterfillConfig(steps=int(values["steps"])), d=torch.full((3,), level, dtype=torch.float64)
    )
    within(got, _t(values["alg2"]), 1e-9, "golden Algorithm 2")


def test_algorithm_3(values, rows, backend):
    """Fast fading, image 0, and its levels."""
    d = _t(values["d"])[:1]
    config = sf.WaterfillConfig(steps=int(values["steps"]))
    want = _t(values["alg3_levels_row0"])
    within(_t(config.tables(d.amax(1).numpy()).levels)[:, 0], want, 1e-14 * want, "golden levels")
    within(_run(values, rows, config, row=0, d=d), _t(values["alg3_row0"]), 1e-9, "golden Algorithm 3")


@pytest.mark.parametrize("preset", ["authors_scalar", "authors_per_sample"])
def test_authors_slow(preset, values, rows, backend):
    """The second-order sampler with the published log-SNR, its ratio in step or two steps late."""
    config = sf.WaterfillConfig.preset(preset, steps=int(values["steps"]), **AUTHORS)
    d = torch.full((3,), float(values["alg2_beta0"]), dtype=torch.float64)
    got = _run(values, rows, config, d=d)
    within(got, _t(values[f"{preset}_dpmpp2m"]), 1e-9, f"golden {preset}")
    other = {"authors_scalar": "lagged", "authors_per_sample": "two_step"}[preset]
    wrong = _run(values, rows, sf.WaterfillConfig.preset(preset, steps=12, **(AUTHORS | {"dpm_ratio": other})), d=d)
    assert float((wrong - got).abs().max()) > 1e-3, "the ratio must matter"


def test_authors_fast(values, rows, backend):
    """Amplitude top-up, unit RMS, own base; the final prediction sees the state without either."""
    config = sf.WaterfillConfig.preset("authors_per_sample", steps=int(values["steps"]), solver="ddim", **AUTHORS)
    got = _run(values, rows, config, row=0, d=_t(values["d"])[:1])
    within(got, _t(values["authors_fading_row0"]), 1e-9, "golden authors, fast fading")


def _close_step(got, want, size, label):
    within(got, torch.from_numpy(want), PER_STEP * torch.from_numpy(size), label)


def test_single_precision_steps_of_algorithm_3(values, rows, backend):
    """Every float32 step from the float32 state it was given: 2e-6 of the terms; masks exactly those of float32 d."""
    f, d = (_t(values[k], torch.float32) for k in ("f", "d"))
    noise, steps = _t(values["noise"], torch.float32), int(values["steps"])
    table = torch.from_numpy(cases.span_levels(d.double().amax(1).numpy(), steps)).float()
    predict = rows.torch(torch.float32)
    g = sf.waterfill_inject(f, d, table[0], noise=noise[0])
    fn, dn = f.double().numpy(), d.double().numpy()
    size = cases.inject(np.abs(fn), dn, table[0].double().numpy(), np.abs(noise[0].double().numpy()))
    _close_step(g, cases.inject(fn, dn, table[0].double().numpy(), noise[0].double().numpy()), size, "golden inject")
    for k in range(steps):
        x0 = predict(g, table[k])
        after = noise[min(k + 1, steps - 1)]
        t, s, e = table[k].double().numpy(), table[k + 1].double().numpy(), after.double().numpy()
        gn, xn = g.double().numpy(), x0.double().numpy()
        want, active = cases.step(gn, xn, fn, dn, t, s, e)
        a, b = cases.ddim(cases.column(t), cases.column(s))
        size = np.where(active, abs(a * gn) + abs(b * xn), cases.inject(abs(fn), dn, s, abs(e)))
        got = sf.waterfill_step(g, x0, f, d, table[k], table[k + 1], noise=after)
        _close_step(got, want, size, "golden step float32")
        far = sf.waterfill_step(g, torch.full_like(x0, 1e6), f, d, table[k], table[k + 1], noise=after)
        if k < steps - 1:  # the last B is 1 and waits for nobody
            moved = (far - got).abs() > 1
            assert torch.equal(moved, torch.from_numpy(active)), f"mask of step {k}"
        g = got


@pytest.mark.parametrize("dtype", [torch.float32])
def test_single_precision_whole_run(dtype, values, rows, backend):
    """A whole float32 run stays within steps * 2e-6 of its own scale of the golden run (a contracting predictor)."""
    level = torch.full((3,), float(values["alg2_beta0"]))
    got = sf.WaterfillDDIM(rows.torch(dtype), sf.WaterfillConfig(steps=12)).run(_t(values["f"], dtype), level)
    want = _t(values["alg2"])
    within(got, want, 12 * PER_STEP * want.abs().max(), "golden Algorithm 2 in float32")


def test_golden_equaliser_feeds_the_loop(values):
    """The golden channel through the equaliser, then a run: shapes and levels fit without conversion."""
    f, d = sf.waterfill_equalise(_t_complex(values["y"]), _t_complex(values["h"]), float(values["noise_var"]))
    got = sf.WaterfillDDIM(lambda g, level: 0.5 * g, sf.WaterfillConfig(steps=3)).run(f.reshape(3, 4, 10), d, seed=1)
    assert got.shape == (3, 4, 10) and got.isfinite().all()


def _t_complex(a):
    return torch.from_numpy(a)


def test_schedule_at_golden_times(values):
    """The schedule of the golden program."""
    want = _t(values["schedule"])
    within(SigmoidSchedule().level(_t(values["schedule_t"])), want, 4e-15 * want, "golden schedule")
