"""PSNR and SSIM of images against closed forms and scikit-image."""

import pytest
import torch
from sf_testing import within

from semcom_fast.links import psnr, ssim


def _images(count=3, side=32):
    return torch.rand(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_psnr_of_a_constant_error_and_its_cap():
    images = torch.full((2, 3, 4, 4), 0.5)
    recovered = images + torch.tensor([0.1, 0.0]).view(2, 1, 1, 1)
    values = psnr(images, recovered, low=0.0, high=1.0, cap_db=100.0)
    within(values, torch.tensor([20.0, 100.0]), 1e-4, "psnr")
    assert psnr(images, images).isinf().all()
    within(psnr(images, images + 10, low=0.0, high=1.0), torch.full((2,), 6.0206), 1e-4, "psnr, clamped")


def test_ssim_is_one_only_for_equal_images():
    images = _images()
    within(ssim(images, images, low=0.0, high=1.0), torch.ones(3), 1e-12, "ssim of equals")
    assert (ssim(images, 1 - images, low=0.0, high=1.0) < 0).all()
    # a constant against another constant: structure and contrast agree, only the luminance term is left
    a, b = (torch.full((1, 1, 16, 16), level, dtype=torch.float64) for level in (0.4, 0.6))
    expected = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    within(ssim(a, b, low=0.0, high=1.0), torch.tensor([expected], dtype=torch.float64), 1e-12, "ssim of constants")


def test_ssim_does_not_depend_on_the_scale():
    images, noisy = _images(), (_images() + 0.1 * _images().flip(0)).clamp(0, 1)
    moved = ssim(2 * images - 1, 2 * noisy - 1)
    within(moved, ssim(images, noisy, low=0.0, high=1.0), 1e-12, "ssim, [-1,1] against [0,1]")


def test_ssim_equals_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    images = _images()
    noisy = (images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    expected = [
        metrics.structural_similarity(
            a.numpy(), b.numpy(), channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(images, noisy, strict=True)
    ]  # fmt: skip
    within(ssim(images, noisy, low=0.0, high=1.0), torch.tensor(expected), 1e-9, "ssim, scikit-image")


def test_ssim_needs_room_for_its_window():
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(_images(side=10), _images(side=10))


def test_psnr_of_other_shapes():
    """Nothing broadcasts: one image is not compared with many."""
    with pytest.raises(ValueError, match=r"psnr: need images of one shape, got \(3, 1, 8, 8\) and \(1, 1, 8, 8\)"):
        psnr(torch.zeros(3, 1, 8, 8), torch.zeros(1, 1, 8, 8))
