"""The linearised bound: its Jacobian, and the limits in which the answer is known in closed form."""

import pytest
import torch
from sf_testing import draw

from semcom_fast.links import draw_channel
from semcom_fast.ops import blockdiag_apply, power_normalise
from semcom_fast.systems.blind_mimosc import RandomLinearEncoder
from semcom_fast.systems.blind_mimosc.bound import codeword_jacobian, linearised_bound, received_jacobian
from semcom_fast.systems.blind_mimosc.photo_codec import PhotoCodecConfig, PhotoEncoder

REAL, COMPLEX = torch.float64, torch.complex128


def _channel(users, blocks, nr, nt, seed=1):
    return draw_channel(1, users, blocks, nr, nt, seed=seed, dtype=COMPLEX)[0]


class _Linear:
    """x = A d, unnormalised, so that the model with a known channel is linear."""

    def __init__(self, blocks, nt, slots, n):
        self.shape, self.matrix = (blocks, nt, slots), draw(n, blocks * nt * slots, seed=3, dtype=COMPLEX)

    def __call__(self, d):
        return (d.to(COMPLEX) @ self.matrix).unflatten(-1, self.shape)


@pytest.mark.parametrize(
    ("sizes", "n", "rank"),
    # 2 U K Nr Nt + U min(n - 1, 2 K Nt (T - M)): the scale of a source is not seen by a normalised linear encoder
    [((8, 4, 1, 8, 1), 64, 127), ((8, 4, 1, 4, 1), 64, 112), ((4, 4, 2, 8, 1), 64, 127), ((8, 4, 1, 8, 2), 64, 254)],
)
def test_rank_is_that_of_the_degrees_of_freedom(sizes, n, rank):
    blocks, nr, nt, slots, users = sizes
    encoder = RandomLinearEncoder(blocks, nt, slots, users=users, dim=n, dtype=COMPLEX)
    parts = received_jacobian(
        _channel(users, blocks, nr, nt), *codeword_jacobian(encoder, draw(users, n, seed=2, dtype=REAL))
    )
    rows = torch.cat(parts, 1)
    assert torch.linalg.matrix_rank(torch.cat((rows.real, rows.imag))) == rank


def test_jacobian_is_the_derivative_of_the_received_signal():
    torch.manual_seed(0)
    config = PhotoCodecConfig(side=8, blocks=2, nt=2, slots=4, width=6, encoder_blocks=1)
    encoder = PhotoEncoder(config).double().requires_grad_(False)
    torch.nn.init.normal_(encoder.outer.weight, std=0.3)
    d, h = draw(1, 1, 8, 8, seed=4, dtype=REAL), _channel(1, 2, 3, 2)

    def received(h, d):
        return blockdiag_apply(h.unsqueeze(0), encoder(d.unsqueeze(0))).squeeze(0).flatten()

    in_h, in_d = received_jacobian(h, *codeword_jacobian(encoder, d, chunk=5))
    dh, dd, step = draw(*h.shape, seed=5, dtype=COMPLEX), draw(*d.shape, seed=6, dtype=REAL), 1e-6
    want = (received(h + step * dh, d + step * dd) - received(h - step * dh, d - step * dd)) / (2 * step)
    moved = torch.cat((dh.real.flatten(), dh.imag.flatten())).to(COMPLEX)
    torch.testing.assert_close(in_h @ moved + in_d @ dd.flatten().to(COMPLEX), want, rtol=1e-7, atol=1e-7)


def test_known_codeword_gives_the_lmmse_error():
    encoder, h = RandomLinearEncoder(2, 2, 6, dim=9, dtype=COMPLEX), _channel(1, 2, 3, 2)
    d, noise_var, channel_var = draw(1, 9, seed=2, dtype=REAL), 0.3, 0.7
    found = linearised_bound(encoder, h, d, noise_var, 1e12 * torch.eye(9, dtype=REAL), channel_var=channel_var)
    x = encoder(d.unsqueeze(0))[0, 0]
    inverse = torch.linalg.inv(x @ x.mH / noise_var + torch.eye(2, dtype=COMPLEX) / channel_var)
    want = 3 * inverse.diagonal(dim1=-2, dim2=-1).real.sum() / h.abs().square().sum()
    torch.testing.assert_close(found.nmse[0], want, rtol=1e-6, atol=0)


def test_known_channel_gives_the_linear_posterior():
    encoder, h = _Linear(2, 1, 5, 7), _channel(1, 2, 3, 1)
    root = draw(7, 7, seed=8, dtype=REAL)
    covariance, noise_var = root @ root.T + 0.1 * torch.eye(7, dtype=REAL), 0.2
    precision = torch.linalg.inv(covariance)
    d = draw(1, 7, seed=9, dtype=REAL)
    found = linearised_bound(encoder, h, d, noise_var, precision, channel_var=1e-12)
    a = torch.einsum("ukrm,kmtn->krtn", h, encoder.matrix.T.view(2, 1, 5, 7)).flatten(0, 2)
    want = torch.linalg.inv(precision + 2 / noise_var * (a.mH @ a).real).diagonal().mean()
    torch.testing.assert_close(found.source_mse_known[0], want, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.source_mse[0], want, rtol=1e-6, atol=0)
    free = linearised_bound(encoder, h, d, noise_var, precision)
    assert free.source_mse[0] > 1.01 * want  # not knowing the channel costs


def test_without_noise_only_the_prior_tells_blocks_apart():
    # T = M: every codeword block is as large as the factor that may pass between channel and codeword.
    encoder = lambda d: power_normalise(_Linear(2, 2, 2, 16)(d))[0]  # noqa: E731
    h, d = _channel(1, 2, 4, 2), draw(1, 16, seed=10, dtype=REAL)
    weak = linearised_bound(encoder, h, d, 1e-9, torch.eye(16, dtype=REAL))
    strong = linearised_bound(encoder, h, d, 1e-9, 1e4 * torch.eye(16, dtype=REAL))
    assert weak.nmse[0] > 0.1 and strong.nmse[0] < 1e-2 and weak.source_mse_known[0] < 0.1


@pytest.mark.parametrize("change", [{"noise_var": 0.0}, {"h": torch.ones(2, 2, 3, 1)}, {"precision": torch.eye(3)}])
def test_bad_arguments_are_refused(change):
    good = {"noise_var": 0.1, "h": _channel(1, 2, 3, 1), "precision": torch.eye(4, dtype=REAL)} | change
    encoder = RandomLinearEncoder(2, 1, 4, dim=4, dtype=COMPLEX)
    with pytest.raises(ValueError, match="noise_var > 0"):
        linearised_bound(encoder, good["h"], torch.ones(1, 4, dtype=REAL), good["noise_var"], good["precision"])
