"""LMMSE channel estimates: exact values, the paper's pilot figures, and the error they must have."""

import pytest
import torch
from sf_testing import draw, within

from semcom_fast import SingularChannelError
from semcom_fast.baselines import gaussian_pilots, lmmse_pilot_channel, orthogonal_pilots, pilot_lmmse_nmse
from semcom_fast.links import channel_nmse, draw_channel, noise_var_from_snr_db, to_db, transmit

# Table I's pilot rows: one user with sixteen antennas, 128 receive antennas, 0 dB.
NR, NT = 128, 16
NOISE_VAR = noise_var_from_snr_db(0.0, nt=NT)


def test_golden_values(golden):
    got = lmmse_pilot_channel(golden["y"], golden["x"], float(golden["noise_var"]))
    # a 4x4 solve whose condition number is below 100, in double precision
    within(got, golden["lmmse"], 100 * 4 * 8 * 2.0**-53 * float(golden["lmmse"].abs().max()), "lmmse golden")


@pytest.mark.parametrize(("length", "paper_db"), [(NT, -2.09), (2 * NT, -3.82)])
def test_gaussian_pilots_give_the_papers_rows(length, paper_db):
    """With many antennas Np = M tends to -2.09 dB (the golden section) and Np = 2M to -3.82 dB."""
    nmse = pilot_lmmse_nmse(draw_channel(200, 1, 4, NR, NT, seed=1), length, NOISE_VAR, seed=1)
    assert float(to_db(nmse.mean())) == pytest.approx(paper_db, abs=0.02)


@pytest.mark.parametrize(("length", "exact_db"), [(NT, -3.0103), (2 * NT, -4.7712)])
def test_orthogonal_pilots_would_give_less(length, exact_db):
    """noise_var/(noise_var + Np P) = 1/2 and 1/3."""
    h = draw_channel(100, 1, 4, NR, NT, seed=2)
    x = orthogonal_pilots(1, NT, length)
    y = transmit(h, x.expand(100, 1, 4, NT, length), NOISE_VAR, seed=2)
    assert float(to_db(channel_nmse(h, lmmse_pilot_channel(y, x, NOISE_VAR)).mean())) == pytest.approx(
        exact_db, abs=0.02
    )


def test_stacking_users_is_one_user_with_all_antennas():
    y, x = draw(2, 3, 4, 8), draw(2, 2, 3, 2, 8, seed=1)
    stacked = x.transpose(1, 2).flatten(2, 3).unsqueeze(1)
    two = lmmse_pilot_channel(y, x, 0.4)
    one = lmmse_pilot_channel(y, stacked, 0.4)
    torch.testing.assert_close(torch.cat((two[:, 0], two[:, 1]), -1), one[:, 0], rtol=1e-12, atol=1e-12)


def test_no_noise_and_enough_pilots_recover_the_channel():
    h = draw_channel(3, 2, 2, 4, 2, seed=3, dtype=torch.complex128)
    x = gaussian_pilots(3, 2, 2, 2, 8, seed=3, dtype=torch.complex128)
    y = transmit(h, x, 0.0, seed=3)
    assert float(channel_nmse(h, lmmse_pilot_channel(y, x, 1e-12)).max()) < 1e-18


def test_error_is_the_posterior_variance():
    """E|H - Hhat|^2 per entry = tr((X X^H/noise_var + I/v)^-1)/M for the pilots drawn."""
    var, noise_var = 2.0, 0.7
    h = draw_channel(2000, 1, 1, 16, 2, seed=4, var=var, dtype=torch.complex128)
    x = gaussian_pilots(2000, 1, 1, 2, 3, seed=4, dtype=torch.complex128)
    y = transmit(h, x, noise_var, seed=4)
    error = (h - lmmse_pilot_channel(y, x, noise_var, channel_var=var)).abs().square().mean()
    gram = (x @ x.mH).squeeze(1).squeeze(1)
    exact = torch.linalg.inv(gram / noise_var + torch.eye(2) / var).diagonal(dim1=-2, dim2=-1).real.mean()
    assert float(error) == pytest.approx(float(exact), rel=5 / 2000**0.5 / 4)
    wrong = (h - lmmse_pilot_channel(y, x, noise_var)).abs().square().mean()
    assert float(wrong) > 1.01 * float(error)  # the prior's variance matters


def test_noise_variance_per_item_and_bad_shapes():
    y, x = draw(2, 3, 4, 8), draw(2, 1, 3, 2, 8, seed=1)
    both = lmmse_pilot_channel(y, x, torch.tensor([0.1, 5.0], dtype=torch.float64))
    torch.testing.assert_close(both[1:], lmmse_pilot_channel(y[1:], x[1:], 5.0), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"need y \[B,K,Nr,Np\]"):
        lmmse_pilot_channel(y[..., :7], x, 0.1)
    with pytest.raises(ValueError, match="at least 4 slots"):
        orthogonal_pilots(2, 2, 3)


def test_pilots_without_rank_are_named():
    """At noise_var = 0 equal pilots in one block are an error with its index; fewer than streams give the limit."""
    y, x = draw(2, 3, 4, 5), draw(2, 2, 3, 2, 5, seed=1)
    lmmse_pilot_channel(y, x, 0.0)
    few = y[..., :3].contiguous(), x[..., :3].contiguous()
    limit = lmmse_pilot_channel(*few, 1e-9)
    within(lmmse_pilot_channel(*few, 0.0), limit, 1e-6 * limit.abs().max(), "few pilots")
    x[1, 1, 2] = x[1, 0, 2]
    with pytest.raises(SingularChannelError, match=r"^lmmse_pilot_channel: 1 of 6 .*\(1, 2\)") as caught:
        lmmse_pilot_channel(y, x, 0.0)
    assert caught.value.index == (1, 2)
