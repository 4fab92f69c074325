"""The exact covariance of the channel's score: the formula, and what it gains where the codeword is known."""

import pytest
import torch
from pvd_toys import GaussianSource, KnownCodeword, LinearEncoder, link
from sf_testing import draw, within

import semcom_fast as sf
from semcom_fast.receivers.exact_score import exact_channel_score

B, K, NR, T = 4, 4, 4, 8


def test_formula():
    """Against R (s I + sum_u v_u X_u^H X_u)^-1 X_u^H with the T x T inverse written out."""
    u, nt = 3, 2
    x, r = draw(2, u, K, nt, T, seed=1), draw(2, K, NR, T, seed=2)
    var, noise = draw(2, u, seed=3, dtype=torch.float64).square(), torch.tensor([0.1, 0.7], dtype=torch.float64)
    covariance = (var[..., None, None, None] * (x.mH @ x)).sum(1) + noise[:, None, None, None] * torch.eye(T)
    want = (r @ torch.linalg.inv(covariance)).unsqueeze(1) @ x.mH
    got = exact_channel_score(r.unsqueeze(1) @ x.mH, x, var, noise)
    within(got, want, 1e-11 * want.abs().max(), "exact channel score")


def _case(users, nt, noise_var, variances=None):
    """Codewords, channels with a variance per user, what is received, and the LMMSE estimate that knows all of these."""
    x = sf.power_normalise(draw(B, users, K, nt, T, seed=11))[0]
    scale = torch.tensor(variances or [1.0] * users, dtype=torch.float64)
    h, y = link(B, users, K, NR, x * scale.sqrt().reshape(-1, 1, 1, 1), noise_var)
    tall = x.permute(0, 2, 1, 3, 4).reshape(B, 1, K, users * nt, T)
    load = torch.linalg.inv(tall @ tall.mH + noise_var * torch.diag(1 / scale.repeat_interleave(nt)))
    best = (y.unsqueeze(1) @ tall.mH) @ load
    h = h * scale.sqrt().reshape(-1, 1, 1, 1)
    return x, h, y, best.reshape(B, K, NR, users, nt).permute(0, 3, 1, 2, 4)


@pytest.mark.parametrize("users, nt, variances", [(1, 1, None), (2, 2, None), (2, 2, [2.0, 0.02])])
def test_reaches_lmmse(users, nt, variances):
    """X known, Gaussian codewords, 20 dB, no sample noise: within 1e-3 of LMMSE's error of LMMSE; with (42) it is not.

    Also where the users' channels have different variances, each with its own prior.
    """
    noise_var = users * nt / 100
    x, h, y, best = _case(users, nt, noise_var, variances)
    prior = [sf.GaussianChannelPrior(v) for v in variances] if variances else sf.GaussianChannelPrior()

    def share(prior, **changes):
        config = sf.PVDConfig(users=users, nt=nt, source_shape=(1,), sample_noise=False, **changes)
        receiver = sf.PVD(KnownCodeword(x), prior, GaussianSource(), config)
        got = receiver.run(y, noise_var, seed=1).h
        return (got - best).abs().square().sum() / (best - h).abs().square().sum()

    within(share(prior, exact_covariance=True), torch.tensor(0.0), 1e-3, f"exact covariance, U={users} {variances}")
    if variances:  # one prior for both is another estimator
        assert float(share(sf.GaussianChannelPrior(), exact_covariance=True)) > 1e-2
    else:
        assert float(share(prior)) > 1e-3


def test_blind_run_and_options():
    """It runs blindly with several samples; a split batch is the batch; "moment" has no channel part to leave out."""
    encoder = LinearEncoder(1, 8, K, 1, T, torch.complex128)
    _, _, y, _ = _case(1, 1, 0.1)
    config = sf.PVDConfig(source_shape=(8,), J=4, Jin=3, L=2, sigma_max=10.0, exact_covariance=True)
    receiver = sf.PVD(encoder, sf.GaussianChannelPrior(), GaussianSource(), config)
    whole = receiver.run(y[:4], 0.1, seed=1)
    assert torch.isfinite(whole.energy).all()
    within(receiver.run(y[2:4], 0.1, seed=1, first_item=2).h, whole.h[2:], 1e-10, "split batch, exact covariance")
    with pytest.raises(ValueError, match="needs calibration 'secant'"):
        sf.PVDConfig(exact_covariance=True, calibration="moment")
