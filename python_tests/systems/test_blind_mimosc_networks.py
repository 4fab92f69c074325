"""The networks of Blind-MIMOSC: exact relations, and the quality their cards claim."""

import math

import pytest
import torch
from sf_testing import draw, same_bits

from semcom_fast import weights
from semcom_fast.data import load_digits
from semcom_fast.systems.blind_mimosc import (
    DigitDenoiser,
    DigitEncoder,
    GaussianMixturePrior,
    RandomLinearEncoder,
    load_denoiser,
    load_encoder,
    measures,
)
from semcom_fast.systems.blind_mimosc.train import DENOISER, ENCODERS
from semcom_fast.systems.blind_mimosc.variance import VarianceTable


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def _random_denoiser() -> DigitDenoiser:
    """One whose every weight matters: the zero-initialised layers are drawn too."""
    torch.manual_seed(3)
    net = DigitDenoiser(width=32, blocks=2).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    net.mean.normal_()
    net.scale.fill_(0.6)
    return net.requires_grad_(False).eval()


@pytest.mark.parametrize("sigma", [0.01, 0.3, 40.0])
def test_evaluation_form_is_the_training_form(sigma):
    net = _random_denoiser()
    x = draw(5, 2, 64, dtype=torch.float64)
    level = torch.tensor(sigma, dtype=torch.float64)
    flat = x.reshape(-1, 64)
    total = level**2 + net.scale**2
    skip, out = net.scale**2 / total, level * net.scale / total.sqrt()
    want = net.mean + skip * (flat - net.mean) + out * net.residual(flat, level.expand(10))
    got, var = net(x, level)
    torch.testing.assert_close(got, want.view_as(x), rtol=1e-11, atol=1e-11)
    assert var.shape == (5, 2) and float(var.max()) <= sigma**2
    # and what training asks of F vanishes exactly where the denoiser is right
    target = net.residual_target(flat, want, level.expand(10))
    torch.testing.assert_close(target, net.residual(flat, level.expand(10)), rtol=1e-8, atol=1e-8)


def test_denoiser_gradient():
    net = _random_denoiser()
    x = draw(2, 1, 64, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: net(t, torch.tensor(0.5, dtype=torch.float64))[0], x)


def test_kept_levels_never_go_stale():
    net = _random_denoiser()
    x = draw(2, 1, 64, dtype=torch.float64)
    sigma = torch.tensor(0.5, dtype=torch.float64)
    before = net(x, sigma)[0]
    sigma.fill_(2.0)  # the same tensor object, another value
    assert not torch.equal(net(x, sigma)[0], before)
    sigma.fill_(0.5)
    same_bits(net(x, sigma)[0], before)
    net.load_state_dict({k: v * 1.1 for k, v in net.state_dict().items()})
    assert not torch.equal(net(x, sigma)[0], before)
    wrapped = torch.nn.ModuleDict({"net": net})  # loaded as part of something larger
    wrapped.load_state_dict({k: v / 1.1 for k, v in wrapped.state_dict().items()})
    torch.testing.assert_close(net(x, sigma)[0], before, rtol=1e-12, atol=1e-12)
    variance = net(x, sigma)[1]
    net.tabulate(torch.full((54,), 1e-3))
    assert not torch.equal(net(x, sigma)[1], variance)
    net.to(torch.float32)
    assert net(x.float(), sigma.float())[0].dtype is torch.float32


@pytest.mark.parametrize("make", [lambda: _random_denoiser().float(), DigitEncoder, lambda: DigitEncoder(users=2)])
def test_frozen_weights_that_thaw_get_gradients_again(make):
    net = make().requires_grad_(False).eval()
    d = draw(2, getattr(net, "users", 1), 64, dtype=torch.float32)

    def output():
        out = net(d) if isinstance(net, DigitEncoder) else net(d, 0.5)[0]
        return torch.view_as_real(out) if out.is_complex() else out

    frozen = output()
    assert not frozen.requires_grad
    net.requires_grad_(True)  # still in evaluation mode
    (output() ** 3).sum().backward()
    # (the table, masks and frequencies are no parameters: each weight matters)
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in net.parameters())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    net.requires_grad_(False)
    assert not torch.equal(output(), frozen)


def test_variance_table_interpolates_and_stays_in_range():
    table = VarianceTable(0.1, 10.0, 3)  # at 0.1, 1 and 10
    table.set(torch.tensor([1e-3, 1e-1, 1e-1]))
    assert float(table(torch.tensor(1.0))) == pytest.approx(0.1, rel=1e-5)
    assert float(table(torch.tensor(10**-0.5))) == pytest.approx(1e-2, rel=1e-4)  # half way in both logarithms
    assert float(table(torch.tensor(50.0))) == pytest.approx(0.1, rel=1e-5)
    assert float(table(torch.tensor(0.001))) == pytest.approx(1e-6, rel=1e-5)  # never above sigma^2
    with pytest.raises(ValueError, match="3 positive errors"):
        table.set(torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize("variant", sorted(ENCODERS))
def test_encoder_power_and_users(variant, digits):
    one, three = load_encoder(variant), load_encoder(variant, users=3)
    d = digits.test[:4].unsqueeze(1)
    x = one(d)
    assert x.shape == (4, 1, 8, 1, 8) and x.dtype is torch.complex64
    energy = x.abs().double().square().sum((-3, -2, -1))
    torch.testing.assert_close(energy, torch.full_like(energy, 64.0), rtol=1e-6, atol=0)
    many = three(d.expand(-1, 3, -1))
    torch.testing.assert_close(many[:, :1], x, rtol=1e-4, atol=1e-5)  # user 0 is the network itself
    # masks and permutations keep each symbol's size, and make users' codewords unrelated
    torch.testing.assert_close(many[:, 1].abs().flatten(1).sort().values, x[:, 0].abs().flatten(1).sort().values,
                               rtol=1e-4, atol=1e-5)  # fmt: skip
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert float(measures.correlation(many[:, a], many[:, b]).abs().max()) < 0.5
    relaid = load_encoder(variant, 4, 2, 8)(d)
    torch.testing.assert_close(relaid.flatten(1), x.flatten(1))


def test_encoder_errors(digits):
    with pytest.raises(ValueError, match=r"need d \[B,1,n\]"):
        load_encoder()(digits.test[:2].unsqueeze(1).expand(-1, 2, -1))
    with pytest.raises(ValueError, match="64 symbols"):
        load_encoder("plain", 8, 1, 4)
    with pytest.raises(ValueError, match="unknown encoder 'fancy'"):
        load_encoder("fancy")


def test_training_and_evaluation_give_the_same_codewords(digits):
    encoder = DigitEncoder(users=2)
    d = digits.test[:3].unsqueeze(1).expand(-1, 2, -1)
    trained = encoder(d)
    encoder.requires_grad_(False).eval()
    torch.testing.assert_close(encoder(d), trained.detach())


def test_random_linear_encoder(digits):
    encoder = RandomLinearEncoder(8, 1, 8, users=2, seed=5)
    d = digits.test[:3].unsqueeze(1).expand(-1, 2, -1)
    x = encoder(d)
    torch.testing.assert_close(x.abs().square().sum((-3, -2, -1)), torch.full((3, 2), 64.0))
    torch.testing.assert_close(encoder(2 * d), x)  # linear before the normaliser
    assert float(measures.correlation(x[:, 0], x[:, 1]).abs().max()) < 0.5


def _small_mixture() -> tuple[GaussianMixturePrior, tuple[torch.Tensor, ...]]:
    n, k = 5, 3
    root = draw(k, n, n, dtype=torch.float64)
    covariances = root @ root.mT / n + 0.05 * torch.eye(n, dtype=torch.float64)
    means = draw(k, n, seed=1, dtype=torch.float64)
    given = (torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), means, covariances)
    return GaussianMixturePrior(*given), given


def test_mixture_keeps_its_tables_where_the_data_are():
    """A copy in every call would make a GPU's host wait, and no graph could be captured through it."""
    prior, _ = _small_mixture()
    for dtype in (torch.float32, torch.float64):
        x = draw(2, 5, dtype=dtype)
        first = prior._like(x)
        assert all(t.dtype is dtype for t in first)
        assert all(a is b for a, b in zip(first, prior._like(x), strict=True))
    other, _ = _small_mixture()
    with torch.inference_mode():
        assert not any(t.is_inference() for t in other._like(x.float()))
    prior.means = prior.means + 1
    assert torch.equal(prior._like(x)[1], first[1] + 1)


@pytest.mark.parametrize("sigma", [0.05, 0.7, 20.0])
def test_mixture_is_tweedie_of_its_own_density(sigma):
    """mean = x + sigma^2 grad ln p_sigma and var = sigma^2 + sigma^4 Laplacian/n, both by autograd of the density."""
    prior, (w, mu, cov) = _small_mixture()
    noisy = [
        torch.distributions.MultivariateNormal(m, c + sigma**2 * torch.eye(5, dtype=torch.float64))
        for m, c in zip(mu, cov, strict=True)
    ]

    def log_density(x):
        return torch.logsumexp(torch.stack([p.log_prob(x) for p in noisy]) + w.log(), 0)

    x = draw(5, seed=7, dtype=torch.float64) * (1 + sigma)
    mean, var = prior(x, sigma)
    score = torch.autograd.functional.jacobian(log_density, x)
    trace = torch.autograd.functional.hessian(log_density, x).trace()
    scale = 1 + sigma**2  # what Tweedie's formula cancels at large sigma
    torch.testing.assert_close(mean, x + sigma**2 * score, rtol=1e-10, atol=1e-11 * scale)
    torch.testing.assert_close(var, sigma**2 + sigma**4 * trace / 5, rtol=1e-9, atol=1e-11 * scale**2)
    assert float(prior(x.float(), sigma)[1]) == pytest.approx(float(var), rel=1e-3)  # no cancellation in float32


def test_mixture_gradient_and_errors():
    prior, given = _small_mixture()
    x = draw(2, 1, 5, seed=3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: prior(t, 0.4)[0], x)
    with pytest.raises(ValueError, match="covariances"):
        GaussianMixturePrior(given[0], given[1], given[2][:2])


def test_denoiser_is_as_good_as_its_card_says(digits):
    _, card = weights.load(DENOISER)
    claimed = card["metrics"]["test_mse_over_var"]
    levels = torch.tensor([float(name.removeprefix("sigma=")) for name in claimed])
    net = load_denoiser()
    measured = measures.denoising_errors(net, digits.test, levels) / measures.pixel_variance(digits.train[:-150])
    torch.testing.assert_close(measured, torch.tensor(list(claimed.values())), rtol=0.01, atol=1e-4)
    assert claimed["sigma=0.1"] < 0.021 and claimed["sigma=1"] < 0.42
    # the table is honest on digits it was not made from: within 10 % of the measured error
    table = torch.stack([net(digits.test[:1], sigma)[1][0] for sigma in levels])
    torch.testing.assert_close(table, measured * measures.pixel_variance(digits.train[:-150]), rtol=0.1, atol=0)


@pytest.mark.parametrize("variant", sorted(ENCODERS))
def test_encoders_are_as_their_cards_say(variant, digits):
    claimed = weights.load(ENCODERS[variant])[1]["metrics"]
    encoder = load_encoder(variant)
    reflected = measures.reflection_correlation(encoder, digits.test, digits.train.mean(0))
    constant = measures.mean_codeword_fraction(encoder, digits.test)
    assert reflected == pytest.approx(claimed["reflection_correlation"], abs=1e-3)
    assert constant == pytest.approx(claimed["mean_codeword_energy_fraction"], abs=1e-3)
    if variant == "plain":
        assert reflected < -0.7 and constant < 0.15  # nearly odd, hardly any implicit pilot
    else:
        assert abs(reflected) < 0.1 and constant > 0.3


def test_mean_codeword_fraction_of_known_encoders():
    images = draw(4000, 64, dtype=torch.float32)

    def constant(d):
        return torch.ones(d.shape[0], 1, 2, 1, 3, dtype=torch.complex64)

    assert measures.mean_codeword_fraction(constant, images) == pytest.approx(1.0)
    odd = RandomLinearEncoder(2, 1, 3, seed=1)
    assert measures.mean_codeword_fraction(odd, images) < 5 / math.sqrt(4000)
    assert measures.reflection_correlation(odd, images, torch.zeros(64)) == pytest.approx(-1, abs=1e-5)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there: none"):
        load_denoiser(tmp_path)
    own = {DENOISER, *ENCODERS.values()}
    assert own <= set(weights.available())
    assert sum((weights.SHIPPED / f"{name}.safetensors").stat().st_size for name in own) < 2_000_000
