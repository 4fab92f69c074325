"""The whole loop with the codeword known: sf.PVD against LMMSE, and the variants that must fail.

K = 8 blocks, Nr = 4, T = 8, 20 dB, 64 channels. The loops with exact covariance and without calibration are written
out here from the ops.
"""

import math

import pytest
import torch
from pvd_toys import GaussianSource, KnownCodeword, link
from sf_testing import draw, within

import semcom_fast as sf

K, NR, T, IMAGES, SNR = 8, 4, 8, 64, 100.0
CASES = pytest.mark.parametrize("users, nt, gap_db", [(1, 1, 0.6), (2, 2, 1.3)])


def _codeword(users, nt, dtype, kind):
    """Gaussian symbols, or random orthonormal rows over all streams of a block (X X^H = T I); power 1 per symbol."""
    x = draw(IMAGES, users, K, nt, T, seed=11)
    if kind == "orthonormal":
        rows = x.permute(0, 2, 1, 3, 4).reshape(IMAGES, K, users * nt, T)
        x = torch.linalg.qr(rows.mT).Q.mT.reshape(IMAGES, K, users, nt, T).transpose(1, 2)
    return sf.power_normalise(x.to(dtype))[0]


def _case(users, nt, dtype=torch.complex64, kind="gaussian"):
    noise_var = users * nt / SNR
    x = _codeword(users, nt, dtype, kind)
    h, y = link(IMAGES, users, K, NR, x, noise_var)
    return y, h, x, noise_var


def _stack(h, x):
    """[B,U,K,Nr,Nt], [B,U,K,Nt,T] -> one user with M = U*Nt antennas."""
    b, u, k, nr, nt = h.shape
    return h.permute(0, 2, 3, 1, 4).reshape(b, 1, k, nr, u * nt), x.permute(0, 2, 1, 3, 4).reshape(
        b, 1, k, u * nt, x.shape[-1]
    )


def _unstack(h, users):
    b, _, k, nr, m = h.shape
    return h.reshape(b, k, nr, users, m // users).permute(0, 3, 1, 2, 4)


def _lmmse(y, h, x, noise_var):
    users = h.shape[1]
    _, tall = _stack(h, x)
    gram = tall @ tall.mH + noise_var * torch.eye(tall.shape[-2])
    return _unstack(torch.linalg.solve(gram.mT, (y.unsqueeze(1) @ tall.mH).mT).mT, users)


def _nmse_db(h, estimate):
    ratio = (h - estimate).abs().square().sum((2, 3, 4)) / h.abs().square().sum((2, 3, 4))
    return 10 * math.log10(float(ratio.mean()))


def _energy(t):
    return float(t.abs().double().square().sum())


def _pvd(x, users, nt, **config):
    c = sf.PVDConfig(users=users, nt=nt, source_shape=(1,), **config)
    return sf.PVD(KnownCodeword(x), sf.GaussianChannelPrior(), GaussianSource(), c)


def _against_lmmse(users, nt, calibration, kind, limit_db):
    y, h, x, noise_var = _case(users, nt, kind=kind)
    out = _pvd(x, users, nt, calibration=calibration).run(y, noise_var, seed=1)
    best = _lmmse(y, h, x, noise_var)
    gap = _nmse_db(h, out.h) - _nmse_db(h, best)
    label = f"U={users} Nt={nt} {calibration} {kind}"
    within(torch.tensor(max(gap, 0.0)), torch.tensor(0.0), limit_db, f"dB above LMMSE {label}")
    assert gap > -0.3  # nothing beats LMMSE on a linear-Gaussian problem by more than the scatter of 64 channels
    return _energy(out.h - best) / _energy(best - h)


@pytest.mark.parametrize(
    "users, nt, limit_db, calibration, kind",
    [(1, 1, 0.6, c, k) for c in ("secant", "moment") for k in ("orthonormal", "gaussian")]
    + [(2, 2, 1.3, "secant", "orthonormal"), (2, 2, 1.3, "moment", "orthonormal"), (2, 2, 1.3, "moment", "gaussian")],
)
def test_pvd_reaches_lmmse(users, nt, limit_db, calibration, kind):
    """With sample noise and the default schedule: within 0.6 dB (U=1, Nt=1) and 1.3 dB (U=2, Nt=2) of LMMSE.

    Gaussian codewords of four streams in eight slots with the secant form are apart, in the next test.
    """
    share = _against_lmmse(users, nt, calibration, kind, limit_db)
    within(torch.tensor(share), torch.tensor(0.0), 0.3, f"|PVD-LMMSE|^2/|LMMSE-H|^2 U={users} {calibration} {kind}")


def test_isotropic_calibration_costs_weak_streams():
    """(42) stands in for a covariance that is not white: where X X^H has weak modes it pulls them to the prior.

    Four Gaussian streams in eight slots have a Gram matrix of condition number around 30; the run stays 2.1 dB above
    LMMSE, where orthonormal rows cost 0.3 dB and the exact covariance nothing.
    """
    share = _against_lmmse(2, 2, "secant", "gaussian", 2.5)
    assert share > 0.3  # the cost is real: this case is not covered by the limits above


def _loop(y, x, noise_var, *, exact, sample_noise, zeta=0.1, levels=30, stop_above=math.inf):
    """The channel half of the algorithm from the ops, codeword known, users stacked (x [B,1,K,M,T]).

    exact: score with the covariance sn2 I + v X^H X; else the uncalibrated likelihood variance sn2.
    """
    c = sf.PVDConfig(J=levels)
    s = c.schedule()
    shape = (*x.shape[:3], NR, x.shape[-2])
    anchor = s[-1] * sf.philox_normal(shape, seed=2, stream=3, dtype=y.dtype)
    mean = s[-2] * sf.philox_normal(shape, seed=2, stream=3, step=1, dtype=y.dtype)
    sample, n = mean, 0
    for j in range(c.J - 1, -1, -1):
        w, v = 1 / (1 + s[j] ** 2), s[j] ** 2 / (1 + s[j] ** 2)
        load = torch.linalg.inv(noise_var * torch.eye(x.shape[-2]) + v * x @ x.mH)
        for _ in range(c.Jin):
            raw = sf.likelihood_score(y, w * sample, x).score_h
            score = w * (raw @ load if exact else raw / noise_var)
            draw_next = {"seed": 2, "step": n + 1, "stream": 1} if sample_noise else {"next_var": 0}
            mean, sample = sf.pvd_update(mean, anchor, sample, w * sample, score, sigma=s[j], sigma_above=s[j + 1],
                                         zeta=zeta, **draw_next)  # fmt: skip
            n += 1
            if float(mean.abs().max()) > stop_above:
                return mean, j
        anchor = mean
    return mean, -1


@CASES
def test_exact_covariance_is_lmmse(users, nt, gap_db):
    """With the exact covariance and no sample noise the relative gap to LMMSE is below 1e-3."""
    y, h, x, noise_var = _case(users, nt, torch.complex128)
    _, tall = _stack(h, x)
    got, _ = _loop(y, tall, noise_var, exact=True, sample_noise=False)
    best = _lmmse(y, h, x, noise_var)
    share = _energy(_unstack(got, users) - best) / _energy(best - h)
    within(torch.tensor(share), torch.tensor(0.0), 1e-3, f"exact covariance gap U={users} Nt={nt}")


@CASES
@pytest.mark.parametrize("sample_noise", [True, False])
def test_uncalibrated_variance_diverges(users, nt, gap_db, sample_noise):
    """sigma_dN = 0 at 20 dB: the right sign does not help, the mean passes 1e6 (entries of H are of order one)."""
    y, h, x, noise_var = _case(users, nt)
    _, tall = _stack(h, x)
    got, level = _loop(y, tall, noise_var, exact=False, sample_noise=sample_noise, stop_above=1e6)
    assert level >= 0 and float(got.abs().max()) > 1e6


@CASES
def test_printed_sign_diverges(users, nt, gap_db):
    """A negative zeta is the printed sign: the whole run overflows and says so, naming an image."""
    y, _, x, noise_var = _case(users, nt)
    with pytest.raises(sf.DivergedError, match="image 0 diverged"):
        _pvd(x, users, nt, zeta_h=-0.1).run(y, noise_var, seed=1)


def test_printed_sign_leaves_the_solution():
    """The loop from the ops with exact covariance and the printed sign passes 1e6 within a few levels."""
    y, _, x, noise_var = _case(1, 1, torch.complex128)
    _, level = _loop(y, x, noise_var, exact=True, sample_noise=False, zeta=-0.1, stop_above=1e6)
    assert level >= 15, level


def test_without_sample_noise_is_no_worse():
    """Evaluating at the mean is deterministic given the start, and at least as good within 0.1 dB."""
    y, h, x, noise_var = _case(1, 1)
    noisy, still = (_nmse_db(h, _pvd(x, 1, 1, sample_noise=n).run(y, noise_var, seed=1).h) for n in (True, False))
    assert still < noisy + 0.1, (still, noisy)
