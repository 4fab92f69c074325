"""The sigmoid noise schedule: landmarks, the printed logistic form in 60 digits, both ends, the inverse, monotony."""

import math
from decimal import Decimal, getcontext

import pytest
import torch
from sf_testing import within

from semcom_fast.receivers.schedules import SigmoidSchedule

getcontext().prec = 60
PARAMETERS = [(3.0, 0.0, 0.7), (3.0, 0.0, 1.0), (2.0, 0.0, 0.3), (3.0, -3.0, 1.1), (4.0, 1.0, 0.9), (1.0, -0.5, 0.2)]
TIMES = [0.0, 1e-12, 1e-9, 1e-5, 1e-3, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.9999, 1 - 1e-9, 1 - 2**-53, 1.0]
DEFAULT = SigmoidSchedule()
parameters = pytest.mark.parametrize("end, start, tau", PARAMETERS)
# tanh, cosh and the division err by a few units each; general start adds a second factor of the same kind
ULPS = 16 * 2.0**-53


def _logistic(x):
    return 1 / (1 + (-x).exp())


def _exact(t, end, start, tau):
    """(17) with the sigmoids spelled out: (s(u) - s(start/tau))/(s(end/tau) - s(start/tau)), and one minus it."""
    e, g, tau, t = (Decimal(v) for v in (end, start, tau, t))
    low, high, at = (_logistic(v / tau) for v in (g, e, g + t * (e - g)))
    return (at - low) / (high - low), (high - at) / (high - low)


def _exact_time(level, end, start, tau):
    e, g, tau, level = (Decimal(v) for v in (end, start, tau, level))
    low, high = (_logistic(v / tau) for v in (g, e))
    p = low + level * (high - low)
    return (tau * (p / (1 - p)).ln() - g) / (e - g)


@parameters
@pytest.mark.parametrize("t", TIMES)
def test_level_in_many_digits(t, end, start, tau):
    """Relative accuracy of S and of 1 - S at both ends, where the logistic form of float64 has lost its digits."""
    s = SigmoidSchedule(end=end, start=start, tau=tau)
    level, complement = _exact(t, end, start, tau)
    for got, want, name in ((s.level(t), level, "S"), (s.complement(t), complement, "1-S")):
        assert isinstance(got, float)
        want_float = torch.tensor(float(want), dtype=torch.float64)
        within(torch.tensor(got, dtype=torch.float64), want_float, ULPS * want_float, f"schedule {name}")


@parameters
@pytest.mark.parametrize("level", [1e-15, 1e-9, 1e-6, 1e-3, 0.05, 0.5, 0.9, 0.999, 1 - 1e-9, 1.0])
def test_time_in_many_digits(level, end, start, tau):
    """The inverse, relative to t: atanh amplifies the rounding of its argument near the end by its condition."""
    s = SigmoidSchedule(end=end, start=start, tau=tau)
    want = torch.tensor(float(_exact_time(level, end, start, tau)), dtype=torch.float64)
    # condition of the inverse at this level, by differences of the exact function
    step = Decimal("1e-20") * Decimal(level)
    slope = (_exact_time(Decimal(level) + step, end, start, tau) - _exact_time(Decimal(level), end, start, tau)) / step
    condition = max(1.0, float(slope) * level / float(want))
    # with start != 0 the argument is a quotient whose denominator cancels by up to 1/(1 - tanh)
    spread = 1 + math.cosh(end / (2 * tau)) ** 2 / math.cosh(start / (2 * tau)) ** 2 if start else 1.0
    got = torch.tensor(s.time(level), dtype=torch.float64)
    within(got, want, ULPS * condition * spread * want, "schedule inverse")


@parameters
def test_ends(end, start, tau):
    """S(0), 1 - S(1) and S^-1(0) are exactly 0, the other ends 1 to rounding; arguments outside [0, 1] are clipped."""
    s = SigmoidSchedule(end=end, start=start, tau=tau)
    assert s.level(0.0) == s.complement(1.0) == s.time(0.0) == 0.0
    ones = torch.tensor([s.level(1.0), s.complement(0.0), s.time(1.0)], dtype=torch.float64)
    assert float(ones.max()) <= 1
    within(ones, torch.ones(3).double(), ULPS, "ends of the schedule")
    assert s.level(-0.1) == 0.0 and s.level(1.1) == s.level(1.0) and s.complement(1.5) == 0.0
    assert s.complement(-3.0) == s.complement(0.0)
    assert s.time(-1e-9) == 0.0 and s.time(1 + 1e-9) == s.time(1.0)


def test_landmarks():
    """Printed figures: slope at 0, S(0.001) and its SNR, and the time of eight SNRs."""
    assert SigmoidSchedule(end=3.0, start=0.0, tau=0.7) == DEFAULT
    assert DEFAULT.level(1e-9) / 1e-9 == pytest.approx(2.203, abs=5e-4)
    assert DEFAULT.level(1e-3) == pytest.approx(0.0022027, abs=5e-8)
    assert 10 * math.log10(DEFAULT.complement(1e-3) / DEFAULT.level(1e-3)) == pytest.approx(26.56, abs=5e-3)
    times = {-15: 0.8235, -10: 0.6513, -5: 0.4426, 0: 0.2480, 5: 0.1111, 10: 0.0414, 15: 0.0139, 20: 0.0045}
    for snr, t in times.items():
        assert DEFAULT.time(1 / (1 + 10 ** (snr / 10))) == pytest.approx(t, abs=5e-5)


@parameters
def test_monotone_and_invertible(end, start, tau):
    """S rises, 1 - S falls, S + (1-S) = 1, and S^-1(S(t)) = t over the whole interval."""
    s = SigmoidSchedule(end=end, start=start, tau=tau)
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    level, complement = s.level(t), s.complement(t)
    assert bool((level.diff() >= 0).all()) and bool((complement.diff() <= 0).all())
    coarse = s.level(t[::10])
    assert bool((coarse.diff() > 0).all())
    within(level + complement, torch.ones_like(t), 2 * ULPS, "S + (1-S)")
    # rounding of S moves t by dt = 2^-53 S/S'; near saturation S' is small
    slope = torch.gradient(level, spacing=(t,))[0]
    worst = 64 * ULPS * (1 + level / slope)
    within(s.time(level), t, worst, "S^-1(S(t))")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tensors(dtype):
    """Tensors of any shape are computed in float64 and come back as float64, entry by entry the values of floats."""
    t = torch.tensor([[0.0, 1e-3, 0.25], [0.5, 0.75, 1.0]], dtype=dtype)
    for name in ("level", "complement", "time"):
        fn = getattr(DEFAULT, name)
        got = fn(t)
        assert got.dtype is torch.float64 and got.shape == t.shape
        want = torch.tensor([[fn(float(v)) for v in row] for row in t], dtype=torch.float64)
        within(got, want, 8 * 2.0**-53 * want, f"schedule tensor {name}")
        assert fn(torch.tensor(0.5, dtype=dtype)).shape == () and fn(t[:0]).shape == (0, 3)


def test_golden_schedule():
    """Values of an independent program."""
    from waterfill_cases import golden

    g = golden()
    got = DEFAULT.level(torch.from_numpy(g["schedule_t"]))
    want = torch.from_numpy(g["schedule"])
    within(got, want, ULPS * want, "golden schedule")


@pytest.mark.parametrize(
    "wrong", [{"tau": 0.0}, {"tau": -1.0}, {"end": 0.0}, {"start": 3.0}, {"tau": math.nan}, {"end": math.inf}]
)
def test_parameters(wrong):
    """tau must be positive, end and start must differ."""
    with pytest.raises(ValueError, match="SigmoidSchedule"):
        SigmoidSchedule(**wrong)


def test_mirrored_parameters():
    """The logistic function is odd around 1/2: changing the sign of both end and start changes nothing."""
    t = torch.tensor(TIMES, dtype=torch.float64)
    want = DEFAULT.level(t)
    within(SigmoidSchedule(end=-3.0).level(t), want, ULPS * want, "mirrored schedule")


def test_frozen():
    """A schedule is a value: hashable, comparable, unchangeable."""
    assert len({SigmoidSchedule(), SigmoidSchedule(3.0, 0.0, 0.7), SigmoidSchedule(tau=0.8)}) == 2
    with pytest.raises(AttributeError):
        SigmoidSchedule().tau = 1.0
