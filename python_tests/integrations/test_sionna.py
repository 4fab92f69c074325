"""The stand-ins for Sionna's functions: same results, shapes, dtypes and gradients, and a patch that leaves no trace."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from sf_testing import draw, within

mimo = pytest.importorskip("sionna.phy.mimo", reason="needs the extra sionna")

import sionna.phy.channel as channel  # noqa: E402
import sionna.phy.ofdm as ofdm  # noqa: E402
from sionna.phy import config  # noqa: E402

import semcom_fast.integrations.sionna as fast  # noqa: E402
from semcom_fast.integrations._sionna_patch import Patch, Swap  # noqa: E402

ROOT = Path(__file__).parents[2]
NAMES = ("rzf_precoding_matrix", "rzf_precoder", "lmmse_equalizer", "cir_to_ofdm_channel")
THEIRS = {name: getattr(channel if name.startswith("cir") else mimo, name) for name in NAMES}
BOUNDS = {"double": 1e-12, "single": 1e-5}  # of results of order 1 on channels of condition below about 30
COMPLEX = {"double": torch.complex128, "single": torch.complex64}


def both(name, *args, precision, **kwargs):
    """Sionna's and our results, as tuples; shapes and dtypes must agree."""
    results = []
    for function in (THEIRS[name], getattr(fast, name)):
        out = function(*args, **kwargs) if precision is None else function(*args, precision=precision, **kwargs)
        results.append(out if isinstance(out, tuple) else (out,))
    for theirs, ours in zip(*results, strict=True):
        assert ours.shape == theirs.shape and ours.dtype is theirs.dtype
    return results


def compare(name, *args, precision="double", bound=None, **kwargs):
    theirs, ours = both(name, *args, precision=precision, **kwargs)
    for a, b in zip(theirs, ours, strict=True):
        scale = max([1.0, *a.detach().abs().flatten().tolist()])
        within(b, a, (BOUNDS[precision] if bound is None else bound) * scale, f"{name}, {precision}")
    return ours


def covariance(kind, *lead, m):
    """Noise covariances [*lead,m,m] of the kinds that take different ways."""
    eye = torch.eye(m, dtype=torch.complex128)
    if kind == "multiple of I":
        return 0.3 * eye.expand(*lead, m, m).clone()
    if kind == "expanded":
        return (0.1 + draw(*lead[:1], dtype=torch.float64).abs()).reshape(-1, *(1,) * (len(lead) + 1)).expand(
            *lead, 1, 1
        ) * eye
    if kind == "diagonal":
        return torch.diag_embed(0.2 + draw(*lead, m, dtype=torch.float64).abs()).to(eye)
    g = draw(*lead, m, m, seed=9)
    return g @ g.mH / m + 0.3 * eye


@pytest.mark.parametrize("precision", ["double", "single"])
@pytest.mark.parametrize("shape", [(4, 8), (5, 4, 8), (2, 3, 4, 6), (2, 3, 1, 1), (0, 4, 4)])
def test_rzf(shape, precision):
    h, x = draw(*shape), draw(*shape[:-1], seed=1)
    compare("rzf_precoding_matrix", h, 0.3, precision=precision)
    compare("rzf_precoder", x, h, 0.3, precision=precision)
    g = compare("rzf_precoder", x, h, 0.3, return_precoding_matrix=True, precision=precision)[1]
    norms = torch.linalg.vector_norm(g, dim=-2)
    within(norms, torch.ones_like(norms), BOUNDS[precision], f"unit columns, {precision}")


def test_zero_forcing():
    h = draw(20, 4, 8)
    compare("rzf_precoding_matrix", h)
    x = draw(20, 4, seed=1)
    g = fast.rzf_precoding_matrix(h, precision="double")
    leak = h @ g
    within(leak - torch.diag_embed(leak.diagonal(dim1=-2, dim2=-1)), torch.zeros_like(leak), 1e-12, "no interference")
    compare("rzf_precoder", x, h)


@pytest.mark.parametrize(
    "alpha_shape", [(), (3,), (3, 1), (3, 5), (1, 5), (3, 5, 1, 1), (1, 1, 1, 1), (3, 5, 1, 4)], ids=str
)
def test_alpha_broadcasts_like_sionnas(alpha_shape):
    h, x = draw(3, 5, 4, 6), draw(3, 5, 4, seed=1)
    alpha = 0.1 + draw(*alpha_shape, seed=2, dtype=torch.float64).abs()
    compare("rzf_precoding_matrix", h, alpha)
    compare("rzf_precoder", x, h, alpha.to(torch.complex64))


def test_operands_broadcast_like_sionnas():
    h = draw(3, 1, 4, 6)
    compare("rzf_precoder", draw(5, 4, seed=1), h, 0.2)
    compare("rzf_precoder", draw(2, 1, 5, 4, seed=1), h, torch.tensor([0.1, 0.2, 0.3]))
    compare("rzf_precoder", draw(4, seed=1), h, 0.2)
    y, s = draw(5, 6, seed=1), covariance("full", 5, m=6)
    compare("lmmse_equalizer", y, draw(3, 1, 6, 2), s)
    compare("lmmse_equalizer", draw(3, 5, 6, seed=1), draw(6, 2), torch.eye(6) * 0.5)
    for kind in ("diagonal", "multiple of I", "full"):
        compare("lmmse_equalizer", draw(6, seed=1), draw(6, 2), covariance(kind, 5, m=6))
        compare("lmmse_equalizer", draw(2, 5, 6, seed=1), draw(1, 6, 2), covariance(kind, 5, m=6))
    compare("lmmse_equalizer", draw(6, seed=1), draw(6, 2), (0.5 * torch.eye(6)).expand(5, 6, 6))


def test_singular_channels_give_zero():
    h = draw(3, 4, 4)
    h[1, 2] = h[1, 0]
    g = fast.rzf_precoding_matrix(h, 0.0, precision="double")
    assert torch.equal(g[1], torch.zeros_like(g[1]))
    within(g[[0, 2]], THEIRS["rzf_precoding_matrix"](h[[0, 2]], 0.0, "double"), 1e-12, "the others are untouched")
    nobody = draw(2, 3, 4)
    nobody[0, 1] = 0
    compare("rzf_precoding_matrix", nobody, 0.5)


def test_operands_that_are_not_finite_stay_by_themselves():
    h, y = draw(3, 4, 4), draw(3, 4, seed=1)
    y[1, 2] = torch.nan
    h[2, 0, 3] = torch.inf
    x_hat, no_eff = fast.lmmse_equalizer(y, h, torch.eye(4), precision="double")
    assert not x_hat[1:].any() and bool(no_eff[1:].isinf().all())
    want = THEIRS["lmmse_equalizer"](y[:1], h[:1], torch.eye(4), precision="double")
    within(x_hat[:1], want[0], 1e-12, "beside a NaN")
    g = fast.rzf_precoding_matrix(h, 0.3, precision="double")
    assert not g[2].any() and bool(g.isfinite().all())
    with pytest.raises(ValueError, match="finite"):
        fast.cir_to_ofdm_channel(
            torch.zeros(1), torch.full((1, 1, 1, 1, 1, 1, 1), torch.nan + 0j), torch.zeros(1, 1, 1, 1)
        )


@pytest.mark.parametrize("precision", ["double", "single"])
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("kind", ["multiple of I", "expanded", "diagonal", "full"])
@pytest.mark.parametrize(("m", "k"), [(4, 1), (4, 4), (6, 3), (2, 3)])
def test_lmmse(m, k, kind, whiten, precision):
    y, h = draw(3, 5, m), draw(3, 5, m, k, seed=1)
    compare("lmmse_equalizer", y, h, covariance(kind, 3, 5, m=m), whiten_interference=whiten, precision=precision)


def test_diagonal_covariances_are_not_whitened(monkeypatch):
    """The short ways are taken, and a covariance that takes part in differentiation never takes them."""
    taken = []

    def count(*args, **kwargs):
        taken.append(1)
        return original(*args, **kwargs)

    original = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", count)
    y, h = draw(3, 5, 4), draw(3, 5, 4, 2, seed=1)
    for kind in ("multiple of I", "expanded", "diagonal"):
        fast.lmmse_equalizer(y, h, covariance(kind, 3, 5, m=4), precision="double")
    assert not taken
    nearly = covariance("diagonal", 3, 5, m=4)
    nearly[2, 4, 0, 1] = nearly[2, 4, 1, 0] = 0.05
    compare("lmmse_equalizer", y, h, nearly)
    assert taken


def test_singular_covariance_without_whitening():
    """Sionna's other formula needs no inverse of s alone."""
    s = torch.diag(torch.tensor([0.5, 0.0, 0.2])).to(torch.complex128)
    compare("lmmse_equalizer", draw(7, 3), draw(7, 3, 3, seed=1), s, whiten_interference=False)


@pytest.mark.parametrize("precision", ["double", "single"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("per_antenna", [False, True])
def test_cir_to_ofdm(per_antenna, normalize, precision):
    real = torch.float64 if precision == "double" else torch.float32
    frequencies = channel.subcarrier_frequencies(24, 15e3, precision=precision)
    a = draw(2, 3, 2, 1, 4, 6, 5, dtype=COMPLEX[precision])
    a[1, 2] = 0  # a link without gain must stay zero
    tau = draw(*((2, 3, 2, 1, 4, 6) if per_antenna else (2, 3, 1, 6)), seed=1, dtype=real).abs() * 1e-6
    theirs, ours = both("cir_to_ofdm_channel", frequencies, a, tau, normalize, precision=None)
    assert ours[0].shape == (2, 3, 2, 1, 4, 5, 24)
    within(ours[0], theirs[0], BOUNDS[precision] * 10, f"cir_to_ofdm_channel, {precision}")
    assert not ours[0][1, 2].any()


def test_precision_follows_sionnas_setting():
    h = draw(4, 6)
    assert fast.rzf_precoding_matrix(h, 0.1).dtype is torch.complex64
    before = config.precision
    config.precision = "double"
    try:
        assert fast.rzf_precoding_matrix(h.to(torch.complex64), 0.1).dtype is torch.complex128
        assert [t.dtype for t in fast.lmmse_equalizer(draw(4), h[:, :2], torch.eye(4))] == [
            torch.complex128,
            torch.float64,
        ]
    finally:
        config.precision = before


def test_gradients_are_sionnas():
    def gradients(function, *operands, **kwargs):
        leaves = [t.clone().requires_grad_() for t in operands]
        out = function(*leaves, **kwargs)
        out = out if isinstance(out, tuple) else (out,)
        weighed = [(t * draw(*t.shape, seed=7, dtype=t.dtype)).sum() for t in out]
        sum(w.real if w.is_complex() else w for w in weighed).backward()
        return [t.grad for t in leaves]

    def check(name, *operands, **kwargs):
        theirs = gradients(THEIRS[name], *operands, **kwargs)
        ours = gradients(getattr(fast, name), *operands, **kwargs)
        for i, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            within(b, a, 1e-11 * max(1.0, float(a.abs().max())), f"gradient {i} of {name}")

    h, alpha = draw(3, 4, 6), torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    check("rzf_precoding_matrix", h, alpha, precision="double")
    check("rzf_precoder", draw(3, 4, seed=1), h, alpha, precision="double")
    for kind in ("multiple of I", "diagonal", "full"):
        noise = covariance(kind, 3, m=6)
        check("lmmse_equalizer", draw(3, 6, seed=1), h.mT.contiguous(), noise, precision="double")
    frequencies = channel.subcarrier_frequencies(8, 15e3, precision="double")
    tau = draw(2, 3, 1, 4, seed=1, dtype=torch.float64).abs() * 1e-6

    def response(function):
        return lambda a: function(frequencies, a, tau, True)

    a = draw(2, 3, 1, 1, 4, 4, 2)
    pair = [gradients(response(f), a)[0] for f in (THEIRS["cir_to_ofdm_channel"], fast.cir_to_ofdm_channel)]
    within(pair[1], pair[0], 1e-11, "gradient of cir_to_ofdm_channel")


def references():
    """Every name in a module of Sionna that refers to one of its functions or of ours."""
    known = [*THEIRS.values(), *(getattr(fast, name) for name in NAMES)]
    return {
        (module, name): value
        for module, loaded in list(sys.modules.items())
        if module.split(".")[0] == "sionna" and isinstance(loaded, ModuleType)
        for name, value in vars(loaded).items()
        if any(value is function for function in known)
    }


def test_patch_reaches_every_module_and_leaves_no_trace():
    before = references()
    holders = {module for module, _ in before}
    assert {"sionna.phy.mimo", "sionna.phy.ofdm.precoding", "sionna.phy.ofdm.equalization"} <= holders
    assert {"sionna.phy.mimo.detection", "sionna.phy.channel.generate_ofdm_channel"} <= holders
    with fast.patch():
        inside = references()
        assert inside.keys() == before.keys()
        assert not any(value is theirs for value in inside.values() for theirs in THEIRS.values())
        assert mimo.rzf_precoder is fast.rzf_precoder
    after = references()
    assert after.keys() == before.keys() and all(after[key] is before[key] for key in before)


def test_patches_nest():
    theirs = THEIRS["lmmse_equalizer"]
    fast.unpatch()  # without a patch: nothing
    fast.patch()
    with pytest.raises(KeyError), fast.patch():
        assert mimo.lmmse_equalizer is fast.lmmse_equalizer
        raise KeyError
    assert mimo.lmmse_equalizer is fast.lmmse_equalizer
    fast.unpatch()
    assert mimo.lmmse_equalizer is theirs
    fast.unpatch()
    with fast.patch():
        assert mimo.lmmse_equalizer is fast.lmmse_equalizer
    assert mimo.lmmse_equalizer is theirs


def test_modules_loaded_meanwhile_are_restored_and_others_left_alone(monkeypatch):
    late = ModuleType("sionna.late")
    own = ModuleType("sionna.own")
    own.rzf_precoder = custom = object()
    monkeypatch.setitem(sys.modules, "sionna.late", late)
    monkeypatch.setitem(sys.modules, "sionna.own", own)
    with fast.patch():
        late.precoder = mimo.rzf_precoder
        assert own.rzf_precoder is custom
    assert late.precoder is THEIRS["rzf_precoder"] and own.rzf_precoder is custom


def test_another_signature_is_refused(monkeypatch):
    module = ModuleType("sionna.changed")

    def theirs(x, h, alpha=1.0):
        return x

    module.rzf = theirs
    monkeypatch.setitem(sys.modules, "sionna.changed", module)
    with pytest.raises(RuntimeError, match=r"theirs\(x, h, alpha=1\.0\) is not the one of 2\.2"):
        Patch([Swap(theirs, fast.rzf_precoder)]).apply()
    assert module.rzf is theirs
    for name in NAMES:
        ours = inspect.signature(getattr(fast, name)).parameters
        assert list(ours) == list(inspect.signature(THEIRS[name]).parameters)


def test_sionnas_blocks_give_the_same():
    """Precoder, effective channel and equaliser blocks, with imperfect channel estimates."""
    grid = ofdm.ResourceGrid(
        num_ofdm_symbols=6, fft_size=16, subcarrier_spacing=15e3, num_tx=1, num_streams_per_tx=4,
        pilot_pattern="kronecker", pilot_ofdm_symbol_indices=[1, 4], precision="double",
    )  # fmt: skip
    streams = mimo.StreamManagement(np.ones([4, 1]), 4)
    h = draw(3, 4, 1, 1, 6, 6, 16)
    x, y = draw(3, 1, 4, 6, 16, seed=1), draw(3, 4, 1, 6, 16, seed=2)
    h_hat, error = draw(3, 4, 1, 1, 4, 6, 16, seed=3), torch.full((1,), 0.05, dtype=torch.float64)

    def results():
        precoder = ofdm.RZFPrecoder(grid, streams, return_effective_channel=True, precision="double")
        effective = ofdm.RZFPrecodedChannel(grid, streams, precision="double")
        equalizer = ofdm.LMMSEEqualizer(grid, streams, precision="double")
        power = torch.ones(3, 1, 4, 6, 16, dtype=torch.float64)
        out = [*precoder(x, h, 0.2), effective(h, power, alpha=0.2)]
        return [*out, *equalizer(y, h_hat, error, torch.tensor(0.3, dtype=torch.float64))]

    theirs = results()
    with fast.patch():
        ours = results()
    for i, (a, b) in enumerate(zip(theirs, ours, strict=True)):
        assert a.shape == b.shape and a.dtype is b.dtype
        # diag(G h)^-1 - 1 of weak streams loses as many digits as it is large: 8 units of 2^-53 relative to diag(G h)
        lost = (1 + theirs[4]) if i >= 3 else 1.0
        within(b, a, 1e-12 + 8 * 2**-53 * lost * a.abs(), f"sionna block output {i}")
    assert any(not torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))  # they did take another way


def test_example_runs_with_equal_results():
    command = [sys.executable, str(ROOT / "examples" / "sionna_link.py"), "--batch", "4", "--batches", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = {line.split(" largest")[0].strip(): line.split() for line in done.stdout.splitlines() if "largest" in line}
    assert set(lines) == {"h", "x", "symbols", "no_eff", "bit errors"}
    differences = {name: float(words[-4].rstrip(",")) for name, words in lines.items()}
    assert differences["bit errors"] == 0
    assert 0 < differences["x"] < 1e-4 and differences["h"] < 1e-4
    for block in ("precoder", "equalizer", "frequency_response", "decoder", "whole simulation"):
        assert re.search(rf"{block} +\d+\.\d+ -> \d+\.\d+\n", done.stdout), done.stdout
