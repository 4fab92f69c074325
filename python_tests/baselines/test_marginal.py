"""The exact evidence of a codeword behind an unknown Rayleigh channel: Bayes' rule, symmetries, images told apart."""

import math

import pytest
import torch
from sf_testing import draw, within

from semcom_fast.baselines import lmmse_pilot_channel, log_marginal
from semcom_fast.links import transmit
from semcom_fast.systems.blind_mimosc import RandomLinearEncoder, load_encoder

V, NOISE = 0.7, torch.tensor([0.3, 0.02], dtype=torch.float64)


def _log_normal(z, covariance):
    """ln CN(z; 0, C) of row vectors z [n], C = E[z^H z]."""
    quadratic = (z @ torch.linalg.solve(covariance, z.mH)).real.diagonal(dim1=-2, dim2=-1)
    return -quadratic - torch.linalg.slogdet(math.pi * covariance)[1].unsqueeze(-1)


@pytest.mark.parametrize("users, nt, slots", [(1, 2, 6), (2, 2, 3), (1, 3, 8)])
def test_bayes_rule_holds_at_any_channel(users, nt, slots):
    """ln p(Y|X) = ln p(Y|H,X) + ln p(H) - ln p(H|Y,X), whatever H."""
    y, x, h = draw(2, 3, 4, slots), draw(2, users, 3, nt, slots, seed=1), draw(2, users, 3, 4, nt, seed=2)
    stacked, wide = x.transpose(1, 2).flatten(2, 3), h.permute(0, 2, 3, 1, 4).flatten(3)  # [B,K,M,T], [B,K,Nr,M]
    mean = lmmse_pilot_channel(y, x, NOISE, channel_var=V).permute(0, 2, 3, 1, 4).flatten(3)
    noise = NOISE.reshape(-1, 1, 1, 1)
    m, eye = users * nt, lambda n: torch.eye(n, dtype=torch.complex128)
    likelihood = _log_normal(y - wide @ stacked, noise * eye(slots))
    prior = _log_normal(wide, (V * eye(m)).expand(2, 3, m, m))
    posterior = _log_normal(wide - mean, noise * torch.linalg.inv(stacked @ stacked.mH + noise / V * eye(m)))
    want = (likelihood + prior - posterior).sum((-2, -1))
    within(log_marginal(y, x, NOISE, channel_var=V), want, 1e-11 * want.abs(), "Bayes")


def test_a_unitary_factor_cannot_be_seen():
    """X and Q X with a unitary Q, -X among them, have the same evidence; another codeword has not."""
    y, x = draw(2, 3, 4, 6), draw(2, 1, 3, 2, 6, seed=1)
    turned = torch.linalg.qr(draw(2, 2, seed=2)).Q @ x
    want = log_marginal(y, x, NOISE)
    within(log_marginal(y, turned, NOISE), want, 1e-12 * want.abs(), "turned")
    within(log_marginal(y, -x, NOISE), want, 1e-14 * want.abs(), "minus")
    assert bool((log_marginal(y, x.roll(1, -1), NOISE) - want).abs().gt(1).all())


def _evidence_of_all(encoder, images, sent, noise_var):
    """ln p of every image for what was received of `sent` [n] of them: [n, images]."""
    x = encoder(images.unsqueeze(1))  # [N,1,K,Nt,T]
    h = draw(len(sent), 1, x.shape[2], 4, x.shape[3], seed=3, dtype=torch.complex64)
    y = transmit(h, x[sent], noise_var, seed=4)
    return torch.stack([log_marginal(one.expand(len(x), *one.shape[1:]), x, noise_var) for one in y.split(1)])


def test_digits_are_identifiable_but_for_reflections():
    """Among 60 held-out digits the one that was sent has the highest evidence; under an odd encoder its reflection has the
    same, under the trained one less."""
    from semcom_fast.data import load_digits

    images = load_digits().test[:60]
    both, sent = torch.cat([images, -images]), torch.arange(0, 60, 5)
    linear = _evidence_of_all(RandomLinearEncoder(8, 1, 8), both, sent, 0.03)
    trained = _evidence_of_all(load_encoder("penalised"), both, sent, 0.03)
    for evidence in (linear, trained):
        assert torch.equal(evidence[:, :60].argmax(-1), sent)
    own, reflected = linear[range(12), sent], linear[range(12), sent + 60]
    within(reflected, own, 1e-5 * own.abs(), "odd encoder")
    assert bool((trained[range(12), sent] - trained[range(12), sent + 60]).gt(10).all())


@pytest.mark.parametrize("noise_var", [0.0, torch.tensor([0.1, 0.0])])
def test_there_is_no_density_without_noise(noise_var):
    y, x = draw(2, 1, 3, 4), draw(2, 1, 1, 2, 4)
    with pytest.raises(ValueError, match="log_marginal: without noise"):
        log_marginal(y, x, noise_var)
