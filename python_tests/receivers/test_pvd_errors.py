"""What sf.PVD refuses, and how it names what is wrong."""

import copy
import pickle
import sys

import numpy as np
import pytest
import torch
from pvd_toys import GaussianSource, RollEncoder, link
from sf_testing import draw, same_bits

import semcom_fast as sf
from semcom_fast.receivers.pvd_results import DivergedError, PVDResult

SMALL = {"J": 3, "Jin": 3, "sigma_max": 5.0, "sigma_min": 0.1}
ENCODER = RollEncoder(1, 2, 1, 6, torch.float32)


def _signal(batch=4):
    return link(batch, 1, 2, 3, ENCODER(draw(batch, 1, ENCODER.n, seed=5, dtype=torch.float32)), 0.05)[1]


def _pvd(encoder=ENCODER, denoiser_h=None, denoiser_d=None, **config):
    c = sf.PVDConfig(source_shape=(ENCODER.n,), **(SMALL | config))
    return sf.PVD(encoder, denoiser_h or sf.GaussianChannelPrior(), denoiser_d or GaussianSource(), c)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"J": 0}, "J must be at least 1"),
        ({"users": 0}, "users"),
        ({"nt": 0}, "nt"),
        ({"Jin": 0}, "Jin"),
        ({"L": 0}, "L must"),
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"sigma_min": 200.0}, "sigma_min"),
        ({"power": 0.0}, "power"),
        ({"power": -1.0}, "power"),
        ({"calibration": "none"}, "'secant' or 'moment'"),
        ({"v0": -0.1}, "v0 must be finite and not negative"),
        ({"v0": float("nan")}, "v0"),
    ],
)
def test_config(wrong, message):
    """Sizes, schedule, power and calibration are checked when the configuration is made."""
    with pytest.raises(ValueError, match=message):
        sf.PVDConfig(**wrong)


@pytest.mark.parametrize("name", ["encoder", "denoiser_h", "denoiser_d"])
@pytest.mark.parametrize("count", [1, 3])
def test_lists_of_the_wrong_length(name, count):
    """A list must hold one callable per user; the argument is named."""
    parts = {"encoder": ENCODER, "denoiser_h": GaussianSource(), "denoiser_d": GaussianSource()}
    parts[name] = [parts[name]] * count
    with pytest.raises(ValueError, match=rf"{name}.*users=2.*got {count}"):
        sf.PVD(*parts.values(), sf.PVDConfig(users=2))


def test_received_signal():
    """y must be complex, [B,K,Nr,T] and finite; a NaN names its image."""
    y = _signal()
    with pytest.raises(TypeError, match=r"complex.*float32"):
        _pvd().run(y.real.clone(), 0.05)
    with pytest.raises(TypeError, match=r"complex.*ndarray"):
        _pvd().run(y.numpy(), 0.05)
    for wrong in (y[0], y[None]):
        with pytest.raises(ValueError, match=r"\[B,K,Nr,T\].*" + str(wrong.shape[1])):
            _pvd().run(wrong, 0.05)
    for bad in (complex(float("nan"), 0), complex(0, float("inf"))):
        broken = y.clone()
        broken[2, 1, 0, 3] = bad
        with pytest.raises(ValueError, match=r"image 2.*NaN or Inf"):
            _pvd().run(broken, 0.05)


@pytest.mark.parametrize(
    "noise_var",
    [
        0,
        0.0,
        -1.0,
        float("nan"),
        float("inf"),
        torch.tensor([0.1, 0.1, 0.0, 0.1]),
        torch.tensor([0.1, -0.1, 1, 1]),
        torch.tensor(0.0),
        torch.tensor([float("nan"), 1, 1, 1]),
    ],
    ids=str,
)
def test_noise_variance_must_be_positive(noise_var):
    """Numbers and tensors, zero, negative and non-finite."""
    with pytest.raises(ValueError, match="noise_var must be positive and finite"):
        _pvd().run(_signal(), noise_var)


@pytest.mark.parametrize("shape", [(3,), (4, 1), (2, 2)])
def test_noise_variance_shape(shape):
    """noise_var is a number or [B]; the shape is shown."""
    with pytest.raises(ValueError, match=r"noise_var must be a number or \[B\] = \[4\]"):
        _pvd().run(_signal(), torch.ones(shape))


@pytest.mark.parametrize("restarts", [0, -1])
def test_restarts(restarts):
    """At least one start."""
    with pytest.raises(ValueError, match="restarts must be at least 1"):
        _pvd().run(_signal(), 0.05, restarts=restarts)


@pytest.mark.parametrize("factor, fine", [(1.0004, True), (1.001, False), (0.9, False), (0.0, False)])
def test_power_constraint(factor, fine):
    """An encoder whose energy is off by more than 1e-3 is named with its ratio; within 1e-3 it passes."""
    scaled = _pvd(lambda d: ENCODER(d) * factor)
    if fine:
        scaled.run(_signal(), 0.05)
        return
    with pytest.raises(ValueError, match=r"power constraint.*item 0, user 0.*power_normalise"):
        scaled.run(_signal(), 0.05)


def test_encoders_that_give_no_tensor():
    """power_normalise gives the norms too: an encoder that passes both on is told so."""
    with pytest.raises(
        TypeError, match=r"an encoder must give a tensor, got tuple; sf.power_normalise gives \(x, \|x\|\)"
    ):
        _pvd(lambda d: sf.power_normalise(ENCODER(d))).run(_signal(), 0.05)


def test_power_constraint_names_the_item():
    """Only one image's codeword is wrong: that one is named, with its ratio of energies."""
    gains = torch.tensor([1.0, 1.0, 2.0, 1.0]).reshape(4, 1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"item 2, user 0 has 4 times"):
        _pvd(lambda d: ENCODER(d) * gains).run(_signal(), 0.05)
    with pytest.raises(ValueError, match=r"has 0\.5 times"):
        _pvd(power=2.0).run(_signal(), 0.05)


def test_encoder_shape_and_dtype():
    """Wrong shapes show both; a codeword of another precision is not cast."""
    with pytest.raises(ValueError, match=r"encoder.*\(4, 1, 2, 1, 6\).*\(4, 1, 2, 6, 1\)"):
        _pvd(lambda d: ENCODER(d).mT).run(_signal(), 0.05)
    with pytest.raises(TypeError, match=r"complex64.*complex128"):
        _pvd(lambda d: ENCODER(d).to(torch.complex128)).run(_signal(), 0.05)
    with pytest.raises(TypeError, match=r"complex64.*float32"):
        _pvd(lambda d: ENCODER(d).real).run(_signal(), 0.05)


def test_encoder_batch_size():
    """An encoder that loses images (or adds a batch) is refused, not broadcast."""
    with pytest.raises(ValueError, match=r"encoder.*\(1, 1, 2, 1, 6\)"):
        _pvd(lambda d: ENCODER(d)[:1]).run(_signal(), 0.05)


@pytest.mark.parametrize("which", ["denoiser_h", "denoiser_d"])
def test_denoiser_shapes(which):
    """The mean must be shaped like x and var [B,U] or [B]; the denoiser is named."""
    good = sf.GaussianChannelPrior() if which == "denoiser_h" else GaussianSource()

    def short(x, sigma):
        mean, var = good(x, sigma)
        return mean[..., :-1, :], var

    def scalar(x, sigma):
        return good(x, sigma)[0], torch.zeros(3, 3)

    with pytest.raises(ValueError, match=f"{which}.*mean"):
        _pvd(**{which: short}).run(_signal(), 0.05)
    with pytest.raises(ValueError, match=rf"{which}.*var \[B,U\] = \(4, 1\).*\(3, 3\)"):
        _pvd(**{which: scalar}).run(_signal(), 0.05)


class _Breaks:
    """A source denoiser that returns NaN for given rows of the batch."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, x, sigma):
        mean, var = GaussianSource()(x, sigma)
        bad = torch.zeros(len(x), 1, 1)
        bad[self.rows] = float("nan")
        return mean + bad, var


def test_diverged_image_is_named_and_the_others_kept():
    """One image's network output is NaN: the error names it and carries the other images' results unchanged."""
    y = _signal()
    good = _pvd().run(y, 0.05, seed=4)
    with pytest.raises(sf.DivergedError, match="image 2 diverged in all 1 restarts") as caught:
        _pvd(denoiser_d=_Breaks([2])).run(y, 0.05, seed=4)
    assert isinstance(caught.value, ValueError)
    out = caught.value.result
    assert torch.isinf(out.energy[2]) and torch.isinf(out.energy_all[2]).all()
    for b in (0, 1, 3):
        same_bits(out.h[b], good.h[b])
        same_bits(out.energy[b], good.energy[b])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_diverged_restart_is_passed_over(backend):
    """A restart that ends non-finite has infinite energy and is never chosen while another is finite."""
    y = _signal()
    with sf.use_backend(backend):
        plain = _pvd().run(y, 0.05, seed=4, restarts=3)
        rows = [3 * b + int(plain.chosen[b]) for b in (0, 2)]  # break the winners of images 0 and 2
        out = _pvd(denoiser_d=_Breaks(rows)).run(y, 0.05, seed=4, restarts=3)
    for b in range(4):
        broken = torch.isinf(out.energy_all[b])
        assert broken.sum() == (1 if b in (0, 2) else 0)
        assert not broken[out.chosen[b]] and torch.isfinite(out.h[b]).all()
    assert torch.equal(out.h[1], plain.h[1]) and not torch.equal(out.chosen, plain.chosen)
    with pytest.raises(sf.DivergedError, match="image 1 diverged in all 3 restarts"), sf.use_backend(backend):
        _pvd(denoiser_d=_Breaks([3, 4, 5, 9])).run(y, 0.05, seed=4, restarts=3)


def test_overflow_counts_as_divergence():
    """Step sizes far beyond stability overflow: DivergedError, not a silent NaN."""
    with pytest.raises(sf.DivergedError, match="image 0 diverged"):
        _pvd(zeta_h=1e6, zeta_d=1e6, J=10).run(_signal(), 0.05)


def test_missing_progress_bar_names_the_extra(monkeypatch):
    """progress=True without tqdm says which extra brings it; without progress nothing is needed."""
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    _pvd().run(_signal(), 0.05)
    with pytest.raises(sf.MissingExtra, match=r"tqdm.*semcom-fast\[demo\]"):
        _pvd().run(_signal(), 0.05, progress=True)


CONSTANT = {
    "encoder": lambda d: ENCODER(torch.ones_like(d)),
    "denoiser_h": lambda x, s: (torch.ones_like(x), torch.zeros(x.shape[:2])),
    "denoiser_d": lambda x, s: (x.detach(), s.square().expand(x.shape[:2])),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_constant_networks(name):
    """A network that does not depend on its input pulls back zeros, or is refused by name."""
    parts = {"encoder": ENCODER, "denoiser_h": None, "denoiser_d": None, name: CONSTANT[name]}
    try:
        out = _pvd(**parts).run(_signal(), 0.05)
    except (ValueError, RuntimeError) as err:
        assert name in str(err) and "PVD" in str(err), err
    else:
        assert torch.isfinite(out.h).all()


@pytest.mark.parametrize("level", [np.float32(0.05), np.full(4, 0.05), [0.05] * 4], ids=["float32", "array", "list"])
def test_noise_variance_of_other_kinds(level):
    """NumPy scalars, arrays and lists mean their values or are refused by name before the run starts."""
    want = _pvd().run(_signal(), 0.05, seed=1)
    try:
        got = _pvd().run(_signal(), level, seed=1)
    except TypeError as err:
        assert "PVD.run: noise_var" in str(err), err
    else:
        assert float((got.h - want.h).abs().max()) < 1e-4 * float(want.h.abs().max())


def test_seed_is_required_to_be_a_number():
    """seed=None is refused: every run is reproducible."""
    with pytest.raises((ValueError, TypeError), match="seed"):
        _pvd().run(_signal(), 0.05, seed=None)


def test_networks_on_another_device():
    """A codeword on another device is named with both devices."""
    with pytest.raises(TypeError, match=r"cpu.*meta"):
        _pvd(lambda d: ENCODER(d).to("meta")).run(_signal(), 0.05)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_half_precision_is_refused():
    """The kernels write float32 draws: complex32 memory would be too short for them."""
    with pytest.raises(TypeError, match=r"complex64 or complex128 tensor, got torch\.complex32"):
        _pvd().run(_signal().to(torch.complex32), 0.05)


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"noise_var": None}, TypeError, "noise_var must be a number or a tensor, got NoneType"),
        ({"noise_var": "0.1"}, TypeError, "noise_var must be a number or a tensor, got str"),
        ({"restarts": 1.5}, TypeError, "restarts must be an integer, got 1.5"),
        ({"seed": 1.5}, TypeError, "seed must be an integer, got 1.5"),
        ({"seed": 2**64}, ValueError, "seed must be at least .* less than 2.64"),
        ({"first_item": -1}, ValueError, "first_item must not be negative"),
        ({"first_item": 2**32}, ValueError, "first_item .* less than 2.32"),
    ],
)
def test_arguments_of_run(wrong, error, message):
    with pytest.raises(error, match=rf"^PVD\.run: {message}"):
        _pvd().run(_signal(), **({"noise_var": 0.05} | wrong))


@pytest.mark.parametrize("which", ["encoder", "denoiser"])
def test_detached_networks_are_noticed(which):
    """A source that moves the codeword and gets no gradient back cannot be found."""

    class Detached(GaussianSource):
        def __call__(self, x, sigma):
            mean, var = super().__call__(x, sigma)
            return mean.detach(), var

    encoder = (lambda d: ENCODER(d.detach())) if which == "encoder" else ENCODER
    with pytest.warns(UserWarning, match="exactly zero, .* One of them is detached or constant"):
        _pvd(encoder, denoiser_d=Detached() if which == "denoiser" else None).run(_signal(), 0.05)


def test_a_known_codeword_is_not_a_lost_gradient(recwarn):
    x = ENCODER(draw(4, 1, ENCODER.n, seed=5, dtype=torch.float32))
    _pvd(lambda d: x).run(_signal(), 0.05)
    assert not [w for w in recwarn if "exactly zero" in str(w.message)]


def test_diverged_error_travels():
    """Through pickle and copies, to another process or a log."""
    result = PVDResult(*(torch.ones(1) * k for k in range(5)))
    error = DivergedError("image 3 diverged", result)
    for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert str(twin) == "image 3 diverged" and torch.equal(twin.result.energy, result.energy)
