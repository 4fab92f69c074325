"""Diffusion posterior sampling: its step written out, its two limits, and reproducible draws."""

import pytest
import torch
from sf_testing import draw, same_bits

from semcom_fast.baselines.dps import dps_receive
from semcom_fast.links import draw_channel, transmit
from semcom_fast.ops import blockdiag_apply, philox_normal
from semcom_fast.systems.blind_mimosc import RandomLinearEncoder

N, VAR = 6, 0.5


def gaussian(x, sigma):
    """Denoiser of a source of variance VAR per entry."""
    share = VAR / (VAR + sigma**2)
    return share * x, (share * sigma**2).expand(x.shape[:2])


def _case(batch=3, users=1, noise_var=0.1, dtype=torch.complex128):
    encoder = RandomLinearEncoder(2, 1, 8, users=users, dim=N, dtype=dtype)
    d = VAR**0.5 * draw(batch, users, N, seed=1, dtype=dtype.to_real())
    h = draw_channel(batch, users, 2, 4, 1, seed=2, dtype=dtype)
    return encoder, d, h, transmit(h, encoder(d), noise_var, 2)


def test_steps_are_those_of_the_definition():
    encoder, _, h, y = _case()
    steps, high, low, noise_var, scale = 8, 2.0, 0.1, 0.1, 0.2
    got = dps_receive(y, h, noise_var, encoder, gaussian, source_shape=(N,), steps=steps, sigma_max=high,
                      sigma_min=low, scale=scale, channel_error=0.2, seed=5)  # fmt: skip
    levels = [low * (high / low) ** (j / steps) for j in range(steps + 1)]
    d = high * philox_normal((3, 1, N), seed=5, stream=4, dtype=torch.float64)
    cut = []
    for j in range(steps - 1, -1, -1):
        leaf = d.clone().requires_grad_()
        above, sigma = levels[j + 1], levels[j]
        d0, var = gaussian(leaf, torch.tensor(above, dtype=torch.float64))
        energy = (y - blockdiag_apply(h, encoder(d0))).abs().square().flatten(1).sum(1)
        z = philox_normal((3, 1, N), seed=5, step=steps - j, stream=5, dtype=torch.float64)
        probe = encoder(d0.detach() + var.sqrt().unsqueeze(-1) * z) - encoder(d0.detach())
        s = noise_var + 0.2 + blockdiag_apply(h, probe).abs().square().flatten(1).sum(1) / y[0].numel()
        (gradient,) = torch.autograd.grad((energy / s).sum(), leaf)
        gap = above**2 - sigma**2
        length = scale * gap * gradient.norm(dim=-1, keepdim=True)
        cut.append(length > (gap * N) ** 0.5)
        gradient = gradient * ((gap * N) ** 0.5 / length).clamp_max(1)
        d = d + gap / above**2 * (d0.detach() - d) - scale * gap * gradient
        if j:
            z = philox_normal((3, 1, N), seed=5, step=steps - j, stream=2, dtype=torch.float64)
            d = d + (gap * sigma**2 / above**2) ** 0.5 * z
    torch.testing.assert_close(got, d, rtol=1e-10, atol=1e-10)
    assert 0 < torch.cat(cut).double().mean() < 1  # both kinds of step were seen


def test_without_guidance_it_samples_the_prior():
    encoder, _, h, y = _case(batch=400, dtype=torch.complex64)
    d = dps_receive(y, h, 0.1, encoder, gaussian, source_shape=(N,), steps=100, sigma_max=20.0, scale=0.0)
    assert d.var().item() == pytest.approx(VAR, rel=5 * (2 / d.numel()) ** 0.5 + 0.03)
    assert abs(d.mean().item()) < 5 * (VAR / d.numel()) ** 0.5


def test_it_finds_the_source_through_a_known_channel():
    encoder, d, h, y = _case(batch=8, users=2, noise_var=1e-3)
    found = dps_receive(y, h, 1e-3, encoder, gaussian, source_shape=(N,), steps=300)
    # A power-normalised linear encoder leaves the scale to the prior: compare directions.
    cosine = torch.nn.functional.cosine_similarity(found, d, -1)
    assert cosine.min() > 0.98


def test_a_split_batch_draws_the_same_numbers():
    encoder, _, h, y = _case()
    common = {"source_shape": (N,), "steps": 5, "seed": 3}
    whole = dps_receive(y, h, 0.1, encoder, gaussian, **common)
    part = dps_receive(y[1:], h[1:], 0.1, encoder, gaussian, first_item=1, **common)
    torch.testing.assert_close(part, whole[1:], rtol=1e-12, atol=1e-12)
    same_bits(dps_receive(y, h, 0.1, encoder, gaussian, **common), whole)
    assert (dps_receive(y, h, 0.1, encoder, gaussian, **(common | {"seed": 4})) - whole).abs().max() > 0.1


@pytest.mark.parametrize("change", [{"steps": 0}, {"sigma_min": 200.0}])
def test_bad_schedules_are_refused(change):
    encoder, _, h, y = _case()
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        dps_receive(y, h, 0.1, encoder, gaussian, source_shape=(N,), **change)
