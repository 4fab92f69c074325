"""The comparison of channel priors: its oracle, its statistics, and that a stopped run goes on where it was."""

import csv
import math

import numpy as np
import pytest
import torch
from sf_testing import draw, within

import semcom_fast as sf
from semcom_fast.links import transmit
from semcom_fast.systems.blind_mimosc import evaluate_channels as ec
from semcom_fast.systems.blind_mimosc.channel_laws import ChannelLaw
from semcom_fast.systems.blind_mimosc.channel_prior import ChannelDenoiser

QUICK = sf.PVDConfig(users=1, nt=2, J=12, Jin=2)  # fewer outer steps diverge, and a diverging run amplifies rounding


def _protocol(**changes):
    settings = {"laws": ("kronecker",), "snrs_db": (5.0,), "images": 4, "config": QUICK} | changes
    return ec.Protocol(**settings)


@pytest.fixture(autouse=True)
def _untrained(monkeypatch):
    """An untrained network in place of the weights: what is compared here is the machinery."""

    def load(law, folder):
        torch.manual_seed(0)
        return ChannelDenoiser(law.nr, law.nt).requires_grad_(False).eval()

    monkeypatch.setattr(ec, "load_channel_denoiser", load)


def _nmse_db(h, estimate):
    return 10 * math.log10(float(ec.channel_nmse(h, estimate).mean()))


def test_covariance_lmmse_is_the_dense_posterior_mean():
    """E[h|y] by the textbook formula with the explicit matrix y = (I (x) X^T) vec h + n; the white case is LMMSE."""
    nr, nt, t, noise_var = 3, 2, 5, 0.4
    a = draw(nr * nt, nr * nt, seed=1)
    cov = a @ a.mH / (nr * nt)
    x, y = draw(2, 1, 3, nt, t, seed=2), draw(2, 3, nr, t, seed=3)
    got = ec.covariance_lmmse(y, x, noise_var, cov)
    for b in range(2):
        for k in range(3):
            link = torch.kron(torch.eye(nr, dtype=cov.dtype), x[b, 0, k].mT.contiguous())
            total = link @ cov @ link.mH + noise_var * torch.eye(nr * t, dtype=torch.float64)
            want = cov @ link.mH @ torch.linalg.solve(total, y[b, k].flatten())
            within(got[b, 0, k], want.reshape(nr, nt), 1e-12, "covariance LMMSE")
    white = ec.covariance_lmmse(y, x, noise_var, torch.eye(nr * nt))
    tall = x[:, 0] @ x[:, 0].mH + noise_var * torch.eye(nt, dtype=torch.float64)
    want = (y @ x[:, 0].mH) @ torch.linalg.inv(tall)
    within(white[:, 0], want, 1e-12, "white LMMSE")


def test_known_codeword_with_the_exact_prior_is_near_that_lmmse():
    """X known, 5 dB: the exact Kronecker prior ends within 0.6 dB of LMMSE with the covariance, Rayleigh 0.5 dB higher."""
    law, b, noise_var = ChannelLaw(nr=4, nt=2), 48, 2 * 10**-0.5
    x = sf.power_normalise(draw(b, 1, 2, 2, 8, dtype=torch.complex64))[0]
    h = law.draw(b, 1, 2, seed=0)
    y = transmit(h, x, noise_var, 0)
    best = _nmse_db(h, ec.covariance_lmmse(y, x, noise_var, torch.kron(*law.covariances())))
    config = sf.PVDConfig(nt=2, source_shape=(1,), sigma_max=10.0)

    def nmse(prior):
        receiver = sf.PVD(ec.KnownCodeword(x), prior, ec._no_source, config)
        return _nmse_db(h, receiver.run(y, noise_var, seed=1).h)

    exact, rayleigh = nmse(law.gaussian_prior()), nmse(sf.GaussianChannelPrior())
    assert -0.1 < exact - best < 0.6
    assert rayleigh - exact > 0.5


def test_standard_errors_match_the_scatter():
    """Delta-method errors of means, gains and shares against the scatter over 400 independent sets of 100 images."""
    rng = np.random.default_rng(0)
    common = rng.gamma(4.0, size=(400, 100, 1)) * 0.02
    base, learned, exact = np.moveaxis(common * rng.gamma(30.0, size=(400, 100, 3)) / 30 * [1.0, 0.8, 0.7], -1, 0)
    for found in (
        [ec.mean_db(row) for row in base],
        [ec.gain_db(*pair) for pair in zip(base, learned, strict=True)],
        [ec.gain_per_image(*pair) for pair in zip(base, learned, strict=True)],
        [ec.gain_share(*three) for three in zip(base, learned, exact, strict=True)],
    ):
        values, errors = np.array(found).T
        assert abs(errors.mean() / values.std() - 1) < 0.12
    assert ec.gain_db(base[0], base[0]) == (0.0, 0.0)
    one = ec.gain_share(base[0], exact[0], exact[0])
    assert one.value == 1 and one.se < 1e-12


def test_rows_and_resumption(tmp_path, monkeypatch):
    """Every prior on the same problems; a second run finds what the first kept; a split batch changes nothing."""
    out, keep = tmp_path / "table.csv", tmp_path / "kept"
    first = ec.evaluate(_protocol(), out, keep=keep, progress=False)
    table = out.read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert [(r["codeword"], r["prior"]) for r in rows] == [(c, p) for c in ec.KNOWLEDGE for p in ec.PRIORS]
    # an untrained network is the Rayleigh prior: no gain, in any column
    assert all(abs(float(r["gain_db"])) < 1e-3 for r in rows if r["prior"] == "learned")
    assert len({r["lmmse_db"] for r in rows}) == 1 and rows[0]["gain_db"] == ""

    monkeypatch.setattr(ec.Evaluation, "_measure", None)
    again = ec.evaluate(_protocol(), tmp_path / "again.csv", keep=keep, progress=False)
    assert again.found.keys() == first.found.keys() and (tmp_path / "again.csv").read_text() == table
    with pytest.raises(TypeError):  # other channels are other figures
        ec.evaluate(_protocol(seed=1), tmp_path / "other.csv", keep=keep, progress=False)


def test_split_batches_see_the_same_problems(monkeypatch):
    protocol = _protocol(laws=("cdl",), knowledge=("blind",), priors=("rayleigh",))
    job = ec.Job("cdl", "blind", 5.0, "rayleigh")
    whole = ec.Evaluation(protocol)._measure(job)
    monkeypatch.setattr(ec, "BATCH", 3)
    split = ec.Evaluation(protocol)._measure(job)
    for name in ("nmse", "lmmse", "source"):
        np.testing.assert_allclose(split[name], whole[name], rtol=1e-4)


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ec, "data_home", lambda: tmp_path)
    line = ["--images", "2", "--laws", "kronecker", "--codeword", "known", "--priors", "rayleigh", "--snr", "0"]
    assert ec.main([*line, "--out", str(tmp_path / "t.csv")]) == 0
    assert "kronecker_0.7,known,0,rayleigh" in capsys.readouterr().out
    with pytest.raises(ValueError, match="images must be 2 to 297"):
        ec.Protocol(images=1)
    with pytest.raises(ValueError, match="at least one SNR"):
        ec.Protocol(snrs_db=())
