"""What kind of thing an argument may be: operands, numbers, levels, seeds and counters; every message names the argument."""

import math
import warnings

import numpy as np
import pytest
import torch
from op_samples import public_calls
from sf_testing import draw

import semcom_fast as sf

SAMPLES = public_calls("cpu")
OPTIONAL = ("noise", "probe", "x0_uncond", "x0_prev", "gamma", "v")
REQUIRED = [(name, k) for name, (_, given) in SAMPLES.items() for k in given if k not in OPTIONAL]


@pytest.mark.parametrize("name, operand", REQUIRED, ids=str)
def test_missing_operands_are_named(name, operand):
    """None for an operand that is needed."""
    function, given = SAMPLES[name]
    if name == "rzf_precode" and operand == "s":
        pytest.skip("without symbols it is rzf_matrix")
    with pytest.raises(TypeError, match=rf"^{name.split()[0]}: .*{operand} (are|must be)"):
        function(**(given | {operand: None}))


@pytest.mark.parametrize("value", [math.nan, np.float32("nan"), np.float64("inf"), 0, -1.0, np.int64(-2)])
def test_power_that_is_no_power(value):
    h, s = draw(3, 2, 2), draw(3, 2)
    with pytest.raises(ValueError, match="power must be positive and finite"):
        sf.rzf_precode(h, s, 0.1, power=value)
    with pytest.raises(ValueError, match="power must be positive and finite"):
        sf.power_normalise(h, power=value)


@pytest.mark.parametrize("value", ["2", None, torch.tensor(2.0), torch.tensor(2.0, requires_grad=True), 1 + 0j])
def test_numbers_that_no_tensor_can_stand_for(value):
    """They have no gradient, which nobody should miss in silence."""
    h, probe = draw(3, 2, 2), torch.ones(3, 1)
    calls = {
        "power": lambda: sf.power_normalise(h, power=value),
        "x_energy": lambda: sf.pvd_calibrate(0.1, probe, probe, probe[:, 0], x_energy=value, nr=2, count=4),
        "eta": lambda: sf.dirichlet_responsibilities(probe, probe, 1.0, eta=value),
        "delay_spread": lambda: sf.cdl_channels("A", 2, nr=1, nt=1, seed=0, delay_spread=value),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name} must be a number"):
            call()


@pytest.mark.parametrize("steps", [[2.7], [1.0, 2.0], ["1"]])
def test_steps_are_integers(steps):
    with pytest.raises(TypeError, match="renoise: steps must be integers"):
        sf.renoise(draw(2, 3, 4), steps, [0.9] * 4, seed=1)


@pytest.mark.parametrize("name", ["step", "stream", "first_item"])
@pytest.mark.parametrize("value", [-1, 2**32])
def test_counters_do_not_wrap(name, value):
    with pytest.raises(ValueError, match=rf"philox_normal: {name} must"):
        sf.philox_normal((2, 3), seed=1, **{name: value})


def test_seeds():
    """64 bits of either sign, and nothing else."""
    for value in (1.5, "1", torch.nn.Identity()):
        with pytest.raises(TypeError, match="seed must be an integer"):
            sf.philox_normal((2,), seed=value)
    for value in (-(2**63) - 1, 2**64):
        with pytest.raises(ValueError, match="seed must be at least"):
            sf.philox_normal((2,), seed=value)
    assert torch.equal(sf.philox_normal((2,), seed=-1), sf.philox_normal((2,), seed=np.uint64(2**64 - 1)))


@pytest.mark.parametrize("name, value", [("beta", -0.5), ("beta", 1.0), ("alpha_bar", 0.0), ("alpha_bar", 1.5)])
def test_posterior_levels_in_tensors(name, value):
    """Looked at like numbers where they lie in host memory."""
    h, eps, w, svd = draw(2, 3, 4), draw(2, 1, 3, 4), torch.ones(2, 1).double(), sf.pilot_svd(draw(4, 5))
    levels = {"noise_var": 0.1, "alpha_bar": 0.5, "beta": 0.1} | {name: torch.tensor([0.3, value]).double()}
    with pytest.raises(ValueError, match=f"pilot_posterior_step: {name} must lie in"):
        sf.pilot_posterior_step(h, eps, w, svd.project(draw(2, 3, 5)), svd, **levels)


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(2)])
def test_numpy_numbers_are_noise_levels(number):
    y, h, x = draw(2, 3, 4, 5), draw(2, 1, 3, 4, 2), draw(2, 1, 3, 2, 5)
    got = sf.likelihood_score(y, h, x, number)
    assert torch.equal(got.score_h, sf.likelihood_score(y, h, x, float(number)).score_h)


def test_decompositions_are_plain_memory():
    for dtype in (torch.complex64, torch.complex128):
        assert not any(t.is_conj() for t in sf.pilot_svd(draw(4, 5, dtype=dtype)))


LEVELS = {"sigma": 0.5, "sigma_above": 0.7, "zeta": 0.1, "score_var": 1.0}
WRONG = [
    ({"sigma": 2.0}, "sigma must not be above sigma_above, got 2.0 and 0.7"),
    ({"sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
    ({"zeta": math.nan}, "zeta must be finite, got nan"),
    ({"next_var": -1.0}, "next_var must be finite and >= 0, got -1.0"),
    ({"score_var": np.float32(-1)}, "score_var must be positive and finite, got -1.0"),
]


@pytest.mark.parametrize("wrong, message", WRONG)
def test_levels_of_an_inner_iteration(wrong, message):
    """Numbers are looked at alone and together, and named."""
    state, channel = SAMPLES["pvd_update"][1], SAMPLES["pvd_channel_step"][1]
    with pytest.raises(ValueError, match=f"pvd_update: {message}"):
        sf.pvd_update(**state, **(LEVELS | wrong))
    with pytest.raises(ValueError, match=f"pvd_channel_step: {message}"):
        sf.pvd_channel_step(**channel, **(LEVELS | wrong), seed=1)


def test_energies_that_single_precision_cannot_hold():
    """Each block's fits, their sum does not: the item and its largest block are named. Separate outputs do not add up."""
    for t in (24, 1):
        h, x = torch.zeros(1, 1, 2, 1, 1, dtype=torch.complex64), torch.zeros(1, 1, 2, 1, t, dtype=torch.complex64)
        y = torch.zeros(1, 2, 1, t, dtype=torch.complex64)
        y[0, 0, 0, 0], y[0, 1, 0, 0] = 1.4e19, 1.45e19
        with pytest.raises(ValueError, match="likelihood_score: batch item 0, block 1 is not finite"):
            sf.likelihood_score(y, h, x)
        y[0, 1] = 0
        probe = x.clone()
        probe[..., 0] = 1.2e19 / 2**0.5
        got = sf.likelihood_score(y, h, x, probe=probe)
        assert bool(torch.isfinite(got.energy).all() and torch.isfinite(got.probe_x).all())


def test_results_that_single_precision_cannot_hold():
    h, svd = draw(2, 3, 4, dtype=torch.complex64), sf.pilot_svd(draw(4, 5, dtype=torch.complex64))
    eps = draw(2, 1, 2, 3, 4, dtype=torch.complex64) * 1e20
    with pytest.raises(ValueError, match="elbo_reduce: channel 0, expert 0 is not finite"):
        sf.elbo_reduce(eps, h, [1], [0.5], [1.0], svd.project(draw(2, 3, 5, dtype=torch.complex64)), svd, noise_var=0.1,
                       tau=1, seed=0)  # fmt: skip
    one = torch.ones(2, 1)
    with pytest.raises(ValueError, match="pvd_calibrate: item 1"):
        sf.pvd_calibrate(0.1, torch.tensor([[1.0], [1e20]]), one, one[:, 0], x_energy=1e20, nr=4, count=4)
    with pytest.raises(ValueError, match="pvd_calibrate: item 0"):
        sf.pvd_calibrate(1e-50, 0 * one, one, 0 * one[:, 0], x_energy=1.0, nr=4, count=4)
    for bad in (3e38, 1e-41):
        with pytest.raises(ValueError, match="power_normalise: codeword 1"):
            sf.power_normalise(torch.tensor([[1.0] * 4, [bad] * 4])[:, None, None])


def test_other_kinds_of_counters():
    """Numbers of NumPy are integers; tensors are where only numbers can be."""
    assert torch.equal(
        sf.cdl_channels("A", 2, nr=1, nt=1, seed=np.int64(3)), sf.cdl_channels("A", 2, nr=1, nt=1, seed=3)
    )
    for name in ("first_item", "stream"):
        with pytest.raises(TypeError, match=f"philox_normal: {name} must be an integer"):
            sf.philox_normal((1, 2), seed=1, **{name: torch.tensor(3)})
    with pytest.raises(TypeError, match="seed must be an integer"):
        sf.philox_normal((2,), seed=np.array([3, 4]))


def test_numpy_numbers_as_levels():
    """NumPy's numbers are numbers in any precision, its complex ones are not; what float32 cannot hold is named."""
    h = draw(3, 2, 4)
    for number in (np.float16(0.5), np.float32(0.5), np.float64(0.5), np.longdouble(0.5)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(sf.rzf_matrix(h, number), sf.rzf_matrix(h, 0.5))
    for number in (np.float32("inf"), np.float16("inf"), 10**400, np.float64(-1)):
        with pytest.raises(ValueError, match="rzf_matrix: alpha must be finite and >= 0"):
            sf.rzf_matrix(h, number)
    flat = draw(2, 4)
    for number in (np.complex64(1 + 5j), np.complex128(1), 1 + 5j):
        with pytest.raises(TypeError, match="noise_var must be a number or a tensor"):
            sf.waterfill_equalise(flat, flat, number)
        with pytest.raises(TypeError, match="alpha must be a number or a tensor"):
            sf.rzf_matrix(h, number)
