"""Importing, errors that concern the installation, and the choice of the backend."""

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sf_testing import draw

import semcom_fast as sf
from semcom_fast import _backend, _native
from semcom_fast.ops import _levels

ROOT = Path(sf.__file__).parent.parent
RUN = "import torch, semcom_fast as sf; h = torch.ones(1,1,1,2,2)+0j; "


def _python(code, **env):
    """Run code in a fresh interpreter; returns the completed process."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith("SEMCOM_FAST")}
    path = os.pathsep.join([str(ROOT), *filter(None, [keep.get("PYTHONPATH")])])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
                          env=keep | {"PYTHONPATH": path} | env)  # fmt: skip


def test_public_names():
    """Everything in __all__ exists; the ops and the loop of the documentation are among it."""
    for name in sf.__all__:
        assert hasattr(sf, name), name
    need = {
        "blockdiag_apply",
        "blockdiag_adjoint",
        "likelihood_score",
        "power_normalise",
        "pvd_update",
        "pvd_calibrate",
        "philox_normal",
        "rzf_precode",
        "rzf_matrix",
        "lmmse_equalise",
        "lmmse_channel",
        "cir_to_ofdm",
        "SingularChannelError",
        "PVD",
        "PVDConfig",
        "GaussianChannelPrior",
        "use_backend",
        "BackendUnavailable",
        "__version__",
    }
    assert need <= set(sf.__all__)
    assert issubclass(sf.BackendUnavailable, RuntimeError) and issubclass(sf.MissingExtra, ImportError)
    assert issubclass(sf.DivergedError, ValueError) and issubclass(sf.SingularChannelError, ValueError)


def test_import_needs_torch_and_numpy_alone():
    """Optional packages are not imported with the package, and their absence does not matter."""
    extras = ("sklearn", "matplotlib", "PIL", "safetensors", "tqdm", "triton", "jaxtyping", "scipy", "skimage", "cupy")
    code = (
        "import sys\n"
        f"extras = {extras!r}\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in extras: raise ImportError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Block())\n"
        "import torch, semcom_fast as sf\n"
        "h = torch.ones(1, 1, 1, 2, 2) + 0j\n"
        "assert sf.blockdiag_apply(h, h).shape == (1, 1, 2, 2)\n"
        "loaded = [m for m in extras if m in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = _python(code)
    assert done.returncode == 0, done.stderr


def test_missing_extras_are_named():
    """require_extra turns a missing module into an ImportError with the command that brings it."""
    from semcom_fast.errors import require_extra

    with pytest.raises(sf.MissingExtra, match=r"'no_such_module'.*pip install.*semcom-fast\[demo\]"):
        require_extra("no_such_module", "demo")
    assert require_extra("math", "demo").pi > 3


BLOCKED = (
    "import sys\n"
    "class Block:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name == 'semcom_fast._core': raise ImportError('no extension here')\n"
    "sys.meta_path.insert(0, Block())\n"
    "import torch, semcom_fast as sf\n"
    "h = torch.ones(1, 1, 1, 2, 2) + 0j\n"
)


def test_source_tree_without_its_extension():
    """The import works; the first op says what is missing and how to build it; the reference backend still runs."""
    code = BLOCKED + (
        "state, v = [h] * 5, torch.ones(2, 1)\n"
        "calls = [lambda: sf.blockdiag_apply(h, h), lambda: sf.blockdiag_adjoint(h, h[0]),\n"
        "         lambda: sf.likelihood_score(h[0], h, h), lambda: sf.philox_normal((2, 3), seed=1),\n"
        "         lambda: sf.power_normalise(h), lambda: sf.pvd_update(*state, sigma=.5, sigma_above=.7, zeta=.1, seed=1),\n"
        "         lambda: sf.pvd_calibrate(.1, v, v, v[:, 0], x_energy=1., nr=1, count=1),\n"
        "         lambda: sf.rzf_precode(h, h[..., 0], .1), lambda: sf.rzf_matrix(h, .1),\n"
        "         lambda: sf.lmmse_equalise(h[..., 0], h, .1), lambda: sf.lmmse_channel(h, h, .1),\n"
        "         lambda: sf.cir_to_ofdm(h, h.real, v[:, 0])]\n"
        "for call in calls:\n"
        "    try:\n"
        "        call()\n"
        "    except sf.BackendUnavailable as err:\n"
        "        text = str(err)\n"
        "        assert 'pip install' in text and 'extension' in text and 'no extension here' in text, text\n"
        "        assert 'reference' in text\n"
        "    else:\n"
        "        raise SystemExit('an op ran without the extension')\n"
        "with sf.use_backend('reference'):\n"
        "    for call in calls: call()\n"
        "from semcom_fast._native import info\n"
        "assert 'not built' in info()['extension']\n"
        "print('fine')\n"
    )
    done = _python(code)
    assert done.returncode == 0 and "fine" in done.stdout, done.stdout + done.stderr


def test_info():
    """Versions, threads, instruction set and what was built, as plain strings."""
    lines = _native.info()
    assert all(isinstance(v, str) for v in lines.values())
    assert lines["semcom_fast"] == sf.__version__ and lines["torch"] == torch.__version__
    assert lines["cpu level running"] in lines["cpu levels built"].split()
    assert "torch" in lines["thread pool"]


def test_default_backend_is_native_and_silent():
    """CPU tensors run the CPU kernels without a warning."""
    h = draw(1, 1, 1, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.blockdiag_apply(h, h)
    assert _backend.select("blockdiag_apply", ("cpu", "cuda"), torch.device("cpu")) == "cpu"


def test_use_backend_selects_and_restores():
    """Nested contexts restore the outer choice, also after an exception."""
    device, homes = torch.device("cpu"), ("cpu", "cuda")

    def now():
        return _backend.select("blockdiag_apply", homes, device)

    with sf.use_backend("reference"):
        assert now() == "reference"
        with sf.use_backend("cpu"):
            assert now() == "cpu"
        with pytest.raises(KeyError), sf.use_backend("cpu"):
            raise KeyError
        assert now() == "reference"
    assert now() == "cpu"


def test_use_backend_unknown():
    """An unknown name lists the choices."""
    with pytest.raises(ValueError, match=r"unknown backend 'gpu'.*cpu, cuda, triton, reference"), sf.use_backend("gpu"):
        pass


@pytest.mark.parametrize(
    "name, op, message",
    [
        ("cuda", "block", "move them to a CUDA device"),
        ("triton", "normal", "move them to a CUDA device|CUDA"),
        ("cuda", "normal", "philox_normal has no cuda kernel.*cpu, triton"),
        ("triton", "block", "blockdiag_apply has no triton kernel"),
    ],
)
def test_forced_backend_that_cannot_run(name, op, message):
    """A forced backend raises BackendUnavailable with what is missing; nothing falls back silently."""
    h = draw(1, 1, 1, 2, 2)
    with sf.use_backend(name), pytest.raises(sf.BackendUnavailable, match=message):
        sf.blockdiag_apply(h, h) if op == "block" else sf.philox_normal((2, 2), seed=1)


def test_forced_backend_holds_in_the_loop():
    """A forced backend reaches the ops inside PVD.run."""
    c = sf.PVDConfig(J=1, Jin=1, source_shape=(4,))
    pvd = sf.PVD(
        lambda d: sf.power_normalise(torch.view_as_complex(d.reshape(-1, 1, 1, 1, 2, 2)))[0],
        sf.GaussianChannelPrior(),
        lambda x, s: (x, s.square().expand(x.shape[:2])),
        c,
    )
    with sf.use_backend("cuda"), pytest.raises(sf.BackendUnavailable):
        pvd.run(draw(1, 1, 2, 2, dtype=torch.complex64), 0.1)


def test_forced_backend_holds_in_backward_passes(monkeypatch):
    """Autograd runs those of CUDA tensors in a thread of its own, where the caller's context is not known."""
    h, x = draw(1, 1, 1, 2, 2), draw(1, 1, 1, 2, 3).requires_grad_()
    asked = []
    with sf.use_backend("reference"):
        loss = sf.blockdiag_apply(h, x).abs().sum()
    select = _backend.select
    monkeypatch.setattr(_backend, "select", lambda *args: asked.append(select(*args)) or asked[-1])
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert x.grad is not None and asked == ["reference"]


@pytest.mark.parametrize(
    "built, usable, runs, message",
    [
        (False, False, False, "built without CUDA kernels"),
        (True, False, False, "runtime sees no usable device"),
        (True, True, False, "built for 80;90 and cuda:0 is another architecture"),
        (True, True, True, None),
    ],
)
def test_why_cuda_kernels_are_not_used(built, usable, runs, message, monkeypatch):
    monkeypatch.setattr(_native, "core", SimpleNamespace(cuda_archs="80;90"))
    monkeypatch.setattr(_native, "cuda_built", lambda: built)
    monkeypatch.setattr(_native, "cuda_usable", lambda: usable)
    monkeypatch.setattr(_native, "cuda_runs_on", lambda index: runs)
    device, homes = torch.device("cuda", 0), ("cpu", "cuda")
    if message is None:
        assert _backend.select("blockdiag_apply", homes, device) == "cuda"
        return
    monkeypatch.setattr(_backend, "_warned", set())
    with pytest.warns(UserWarning, match=message):
        assert _backend.select("blockdiag_apply", homes, device) == "reference"
    with sf.use_backend("cuda"), pytest.raises(sf.BackendUnavailable, match=message):
        _backend.select("blockdiag_apply", homes, device)


def test_numbers_in_host_memory_travel_with_the_launch():
    """A 0-d tensor on the CPU beside data on a GPU: copying it would make the host wait, and no capture allows it."""
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    level = torch.tensor(0.25)
    assert _levels.off_host(level, gpu) == 0.25 and isinstance(_levels.off_host(level, gpu), float)
    assert _levels.off_host(level, cpu) is level
    for kept in (torch.ones(1), torch.tensor(0.25, requires_grad=True), 0.25):
        assert _levels.off_host(kept, gpu) is kept


def test_environment_backend():
    """SEMCOM_FAST_BACKEND forces a whole process; use_backend overrides it; an unknown name lists the choices."""
    ask = "from semcom_fast import _backend as b; d = torch.device('cpu'); pick = lambda: b.select('x', ('cpu',), d); "
    done = _python(RUN + ask + "assert pick() == 'reference'; sf.blockdiag_apply(h, h)\n"
                   "with sf.use_backend('cpu'): assert pick() == 'cpu'", SEMCOM_FAST_BACKEND="reference")  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = _python(RUN + "sf.blockdiag_apply(h, h)", SEMCOM_FAST_BACKEND="cuda")
    assert done.returncode != 0 and "BackendUnavailable" in done.stderr
    done = _python(RUN + "sf.blockdiag_apply(h, h)", SEMCOM_FAST_BACKEND="fastest")
    assert done.returncode != 0 and "unknown backend 'fastest'" in done.stderr and "reference" in done.stderr


def test_meta_tensors():
    """Meta tensors give meta results of the right shapes and dtypes, for every op, without a kernel."""
    h, x, y = (
        torch.empty(s, dtype=torch.complex64, device="meta") for s in ((2, 1, 3, 4, 2), (2, 1, 3, 2, 8), (2, 3, 4, 8))
    )
    v = torch.empty(3, 2, device="meta")
    out = sf.likelihood_score(y, h, x, 0.5, probe=x)
    assert [tuple(t.shape) for t in out] == [(2, 1, 3, 4, 2), (2, 1, 3, 2, 8), (2,), (2, 1), (2,)]
    assert out.energy.dtype is torch.float32 and all(t.is_meta for t in out)
    assert sf.blockdiag_apply(h, x).shape == (2, 3, 4, 8) and sf.blockdiag_adjoint(h, y).shape == (2, 1, 3, 2, 8)
    assert [t.shape for t in sf.pvd_update(*[h] * 5, sigma=0.5, sigma_above=0.7, zeta=0.1, seed=1)] == [
        h.shape,
        h.shape,
    ]
    assert [tuple(t.shape) for t in sf.power_normalise(x)] == [(2, 1, 3, 2, 8), (2, 1)]
    assert sf.pvd_calibrate(0.1, v, v, v[:, 0], x_energy=1.0, nr=4, count=12).is_meta
    assert sf.philox_normal((2, 3), seed=1, device="meta").is_meta
