"""Tiny networks for photographs and smooth random crops."""

from dataclasses import replace
from types import SimpleNamespace

import torch

from semcom_fast.data.images import ImageSet
from semcom_fast.systems.blind_mimosc.photo_codec import PhotoCodec, PhotoCodecConfig
from semcom_fast.systems.blind_mimosc.photo_denoiser import PhotoDenoiser, UNetConfig
from semcom_fast.systems.blind_mimosc.photo_images import GreyCrops, as_source, crop_covariance
from semcom_fast.systems.blind_mimosc.photo_reception import Networks
from semcom_fast.systems.blind_mimosc.photo_settings import PhotoTrainSettings

REAL = torch.float64
CODEC = PhotoCodecConfig(width=8, encoder_blocks=1, decoder_width=8, decoder_blocks=1)
UNET = UNetConfig(widths=(4, 4, 8), embedding=8, features=4)


def photo_shaken(module, std=0.1):
    """Every weight counts, those that start at zero too."""
    torch.manual_seed(7)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return module


def photo_images(count, seed=0):
    """Smooth random uint8 crops [count,1,32,32]."""
    rough = torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(rough, size=32, mode="bicubic")
    return (127 + 60 * smooth).clamp(0, 255).to(torch.uint8)


def photo_crops(count=24, seed=0):
    return GreyCrops(photo_images(count, seed), ("one", "two"))


def photo_source(count=24):
    return SimpleNamespace(
        load=lambda split, n=None: ImageSet(photo_images(n or count).expand(-1, 3, -1, -1), sources=("one", "two"))
    )


def photo_networks() -> Networks:
    """Tiny codecs and denoiser that know the crops' statistics."""
    torch.manual_seed(0)
    denoiser = PhotoDenoiser(UNET)
    denoiser.set_statistics(as_source(photo_images(200)))
    covariance = crop_covariance(photo_images(2000))
    covariance.diagonal().add_(1e-3)
    plain = {slots * 16: PhotoCodec(replace(CODEC, slots=slots)) for slots in (16, 14, 12)}
    parts = [part.requires_grad_(False).eval() for part in (PhotoCodec(CODEC), denoiser, *plain.values())]
    return Networks(*parts[:2], torch.linalg.inv(covariance), plain.__getitem__)


def photo_settings(**changes):
    return PhotoTrainSettings(**({"steps": 6, "batch": 4, "bf16": False, "progress": False} | changes))
