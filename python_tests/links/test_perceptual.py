"""Edge scores, MS-SSIM and Fréchet distance against closed forms; loaders of users' weights with random ones."""

import math

import pytest
import torch
from torch import nn

from semcom_fast.links import ssim
from semcom_fast.links.perceptual import (
    ClipScore,
    Inception,
    Lpips,
    WeightsNotGiven,
    edge_dice,
    edge_f1,
    frechet_distance,
    latent_features,
    ms_ssim,
)


def test_edge_f1_by_hand() -> None:
    true, found = torch.zeros(4, 1, 5, 5), torch.zeros(4, 1, 5, 5)
    true[0, 0, 2, :4] = 1  # 4 pixels, 3 of them found beside 1 wrong one: P = R = 3/4
    found[0, 0, 2, 1:] = 0.6
    true[1, 0, 0, 0] = 0.5  # the threshold itself counts
    found[1, 0, 0, 0] = 0.5
    true[2, 0, 0] = 1  # nothing found
    assert torch.allclose(edge_f1(true, found), torch.tensor([0.75, 1.0, 0.0, 1.0]))


def test_edge_tolerance() -> None:
    true, found = torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)
    true[..., 1, :], found[..., 2, :] = 1, 1
    assert edge_f1(true, found).item() == 0
    assert edge_f1(true, found, tolerance=1).item() == 1


def test_dice_by_hand() -> None:
    a, b = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    a[0, 0, 0] = torch.tensor([1.0, 0.5])
    b[0, 0, 0] = torch.tensor([0.5, 0.0])
    assert torch.allclose(edge_dice(a, b), torch.tensor([2 * 0.5 / (1.25 + 0.25), 1.0]))


def test_ms_ssim_of_one_scale_is_ssim() -> None:
    a = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    b = (a + 0.05 * torch.randn_like(a)).clamp(0, 1)
    assert torch.allclose(ms_ssim(a, b, low=0.0, scales=1), ssim(a, b, low=0.0), atol=1e-10)


def test_ms_ssim_forgives_fine_noise_and_not_coarse() -> None:
    random = torch.Generator().manual_seed(0)
    a = nn.functional.interpolate(torch.rand(4, 3, 8, 8, generator=random), scale_factor=8, mode="bilinear")
    fine = 0.1 * torch.randn(4, 3, 64, 64, generator=random)
    coarse = nn.functional.interpolate(0.1 * torch.randn(4, 3, 8, 8, generator=random), scale_factor=8)
    assert torch.allclose(ms_ssim(a, a, low=0.0), torch.ones(4))

    def gain(noise: torch.Tensor) -> float:
        return float((ms_ssim(a, a + noise, low=0.0) - ssim(a, a + noise, low=0.0)).mean())

    print(f"fine noise {gain(fine):.3f}, coarse noise of the same power {gain(coarse):.3f}")
    assert gain(fine) > 1.5 * gain(coarse)


def test_ms_ssim_scales_that_fit() -> None:
    small = torch.rand(1, 1, 64, 64)
    assert torch.equal(ms_ssim(small, 1 - small), ms_ssim(small, 1 - small, scales=3))
    with pytest.raises(ValueError, match="3 of which fit"):
        ms_ssim(small, small, scales=4)
    assert ms_ssim(torch.rand(1, 1, 176, 176), torch.rand(1, 1, 176, 176), scales=5).shape == (1,)


def test_frechet_distance_of_gaussians() -> None:
    random = torch.Generator().manual_seed(0)
    a = torch.randn(200_000, 3, generator=random, dtype=torch.float64)
    b = 2 * torch.randn(200_000, 3, generator=random, dtype=torch.float64) + torch.tensor([1.0, 0.0, -2.0])
    expected = 1 + 4 + 3 * (1 - 2) ** 2
    got = frechet_distance(a, b)
    print(f"{got:.4f} for {expected}")
    assert got == pytest.approx(expected, rel=0.02)
    assert frechet_distance(a, a) < 1e-9
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_frechet_distance_of_commuting_sample_covariances_is_exact() -> None:
    a = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]], dtype=torch.float64)
    var = 2 / 3 * torch.tensor([1.0, 4.0], dtype=torch.float64)
    expected = float((var.sqrt() * (1 - 3)).square().sum()) + 25
    assert frechet_distance(a, 3 * a + torch.tensor([3.0, 4.0])) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="n, m >= 2"):
        frechet_distance(a[:1], a)


def test_latent_features() -> None:
    f = torch.randn(5, 16, 8, 8)
    features = latent_features(3 * f + 1)
    assert features.shape == (5, 32)
    assert torch.allclose(features[:, :16], 3 * f.mean((2, 3)) + 1, atol=1e-5)
    assert torch.allclose(features[:, 16:], 3 * f.std((2, 3), correction=0), atol=1e-5)


@pytest.mark.parametrize(("loader", "figure"), [(Lpips, "LPIPS"), (ClipScore, "CLIP score"), (Inception, "FID")])
def test_without_weights_one_clear_line(loader, figure: str, tmp_path) -> None:
    with pytest.raises(WeightsNotGiven, match=f"{figure} not computed: its weights are not given") as caught:
        loader()
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="nothing is downloaded") as missing:
        loader(*[tmp_path / "nowhere"] * (2 if loader is Lpips else 1))
    assert not isinstance(missing.value, WeightsNotGiven)


def test_lpips_plumbing_with_random_weights(tmp_path) -> None:
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    trunk = {f"features.{k}.weight": 0.05 * torch.randn(o, i, s, s) for k, (o, i, s) in shapes.items()}
    trunk |= {f"features.{k}.bias": torch.zeros(o) for k, (o, _, _) in shapes.items()}
    heads = {f"lin{n}.model.1.weight": torch.rand(1, o, 1, 1) for n, (o, _, _) in enumerate(shapes.values())}
    torch.save(trunk, tmp_path / "alexnet.pth")
    torch.save(heads, tmp_path / "alex.pth")
    lpips = Lpips(tmp_path / "alexnet.pth", tmp_path / "alex.pth")
    a = torch.rand(2, 3, 64, 64)
    b = (a + 0.3 * torch.randn_like(a)).clamp(0, 1)
    assert torch.equal(lpips(a, a), torch.zeros(2))
    assert bool((lpips(a, b) > 0).all()) and bool((lpips(a, b) > lpips(a, (2 * a + b) / 3)).all())


class _Features(nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return images.float().mean((2, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_inception_plumbing(tmp_path) -> None:
    torch.jit.script(_Features()).save(str(tmp_path / "features.pt"))
    features = Inception(tmp_path / "features.pt")(torch.full((2, 3, 64, 64), 0.2))
    assert torch.allclose(features, torch.full((2, 3), 51.0)) and math.isfinite(frechet_distance(features, features))
