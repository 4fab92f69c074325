"""NumPy in, NumPy out: every op takes arrays, whatever their strides and byte order, and returns the kind it was given."""

import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from sf_testing import draw, same_bits

import semcom_fast as sf

LEVELS = {"sigma": 0.5, "sigma_above": 0.7, "zeta": 0.1}


def _calls():
    y, h = draw(2, 3, 4, 8, seed=1), draw(2, 1, 3, 4, 2, seed=2)
    x, dx = draw(2, 1, 3, 2, 8, seed=3), draw(2, 1, 3, 2, 8, seed=4)
    v = draw(3, 2, seed=5, dtype=torch.float64).abs()
    return {
        "blockdiag_apply": (sf.blockdiag_apply, [h, x], {}),
        "blockdiag_adjoint": (sf.blockdiag_adjoint, [h, y], {}),
        "likelihood_score": (sf.likelihood_score, [y, h, x, 0.5], {"probe": dx}),
        "likelihood_score bare": (sf.likelihood_score, [y, h, x], {}),
        "pvd_update": (sf.pvd_update, [h] * 5, {**LEVELS, "noise": h}),
        "pvd_update real": (sf.pvd_update, [v] * 5, {**LEVELS, "seed": 3, "zeta": v[:, 0]}),
        "power_normalise": (sf.power_normalise, [x], {"power": 2.0}),
        "pvd_calibrate": (sf.pvd_calibrate, [v[:, 0], v, v, v[:, 1]], {"x_energy": 3.0, "nr": 4, "count": 10}),
    }


def _numpy(value, change=lambda a: a):
    return change(value.numpy()) if isinstance(value, torch.Tensor) else value


CHANGES = {
    "plain": lambda a: a,
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "reversed": lambda a: a[::-1].copy()[::-1],
    "fortran": np.asfortranarray,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "strided": lambda a: np.repeat(a, 2, -1)[..., ::2],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", _calls())
def test_numpy_in_numpy_out(name, change):
    """Same numbers as with tensors, as ndarrays of the same dtype and the same result type."""
    fn, args, kwargs = _calls()[name]
    want = fn(*args, **kwargs)
    got = fn(*[_numpy(a, CHANGES[change]) for a in args], **{k: _numpy(v, CHANGES[change]) for k, v in kwargs.items()})
    assert type(got) is (np.ndarray if isinstance(want, torch.Tensor) else type(want))
    pairs = zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]
    for a, b in pairs:
        if b is None:
            assert a is None
            continue
        assert type(a) is np.ndarray
        same_bits(torch.from_numpy(a), b, name)


def test_arrays_by_keyword_and_as_levels():
    """All operands by keyword; 0-d arrays and NumPy scalars as levels beside arrays."""
    h, x = draw(2, 1, 3, 4, 2), draw(2, 1, 3, 2, 8)
    assert isinstance(sf.blockdiag_apply(h=h.numpy(), x=x.numpy()), np.ndarray)
    want = sf.pvd_update(*[h] * 5, **LEVELS, noise=h)[0]
    for sigma in (np.float64(0.5), np.array(0.5), np.array(0.5, dtype=np.float32)):
        out = sf.pvd_update(*[h.numpy()] * 5, **(LEVELS | {"sigma": sigma}), noise=h.numpy())
        same_bits(torch.from_numpy(out[0]), want)
    same_bits(sf.pvd_update(*[h] * 5, **(LEVELS | {"sigma": np.float64(0.5)}), noise=h)[0], want)


@pytest.mark.parametrize("sigma", [np.array(0.5), np.float32(0.5)], ids=["0-d array", "float32 scalar"])
def test_numpy_levels_beside_tensors(sigma):
    """A NumPy level beside tensors means its value or is refused by name; it is never misread."""
    h = draw(2, 1, 3, 4, 2)
    try:
        out = sf.pvd_update(*[h] * 5, **(LEVELS | {"sigma": sigma}), noise=h)
    except TypeError as err:
        assert "pvd_update: sigma must be a number or a tensor" in str(err)
    else:
        same_bits(out[0], sf.pvd_update(*[h] * 5, **LEVELS, noise=h)[0])


@pytest.mark.parametrize("name", [n for n in _calls() if n != "power_normalise"])
def test_mixed_kinds(name):
    """Arrays and tensors in one call are a TypeError, whichever operand differs."""
    fn, args, kwargs = _calls()[name]
    tensors = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor)]
    for i in tensors:
        mixed = [_numpy(a) if i == j else a for j, a in enumerate(args)]
        with pytest.raises(TypeError, match=r"torch|numpy|NumPy"):
            fn(*mixed, **kwargs)
        flipped = [a if i == j else _numpy(a) for j, a in enumerate(args)]
        if len(tensors) > 1:
            with pytest.raises(TypeError, match=r"torch|numpy|NumPy"):
                fn(*flipped, **kwargs)
    for key, value in kwargs.items():
        if isinstance(value, torch.Tensor):
            with pytest.raises(TypeError, match=r"torch|numpy|NumPy|tensor"):
                fn(*args, **(kwargs | {key: value.numpy()}))


def test_numpy_input_is_not_written_to():
    """Outputs own their memory: changing a result leaves the operands alone."""
    z = draw(2, 3, 4).numpy()
    before = z.copy()
    x, _ = sf.power_normalise(z)
    x[:] = 0
    assert np.array_equal(z, before)


def test_cupy_arrays_go_through_dlpack(monkeypatch):
    """CuPy's protocol with a stand-in module: arrays are exchanged by DLPack and come back as that kind."""

    class Stub:
        def __init__(self, tensor):
            self.tensor, self.ndim = tensor, tensor.ndim

        def __dlpack__(self, **kwargs):
            return self.tensor.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    module = types.ModuleType("cupy")
    module.ndarray, module.from_dlpack = Stub, lambda t: Stub(torch.from_dlpack(t))
    monkeypatch.setitem(sys.modules, "cupy", module)
    h, x = draw(2, 1, 3, 4, 2), draw(2, 1, 3, 2, 8)
    got = sf.blockdiag_apply(Stub(h), Stub(x))
    assert isinstance(got, Stub)
    same_bits(got.tensor, sf.blockdiag_apply(h, x))
    with pytest.raises(TypeError, match="cupy and numpy"):
        sf.blockdiag_apply(Stub(h), x.numpy())


def test_numpy_path_does_not_import_cupy():
    """CuPy is never imported on its own."""
    code = (
        "import sys, numpy as np, semcom_fast as sf\n"
        "sf.power_normalise(np.ones((2, 3, 4))); assert 'cupy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
