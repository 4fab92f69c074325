"""FFHQ folders: layouts, split by number, area averaging."""

import numpy as np
import pytest
import torch

from semcom_fast.data import FfhqFolder

Image = pytest.importorskip("PIL.Image")
NUMBERS = (0, 999, 1000, 59_998, 59_999, 60_000, 69_999)


def face(number: int, side: int) -> np.ndarray:
    """Red and green say the number; blue is noise."""
    pixels = np.empty((side, side, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = number // 1000, number % 1000 // 4
    pixels[..., 2] = np.random.default_rng(number).integers(0, 256, (side, side))
    return pixels


def write(folder, side, nested=True):
    for number in NUMBERS:
        place = folder / f"{number // 1000 * 1000:05}" if nested else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(face(number, side)).save(place / f"{number:05}.png")
    return folder


def numbers(found) -> list[int]:
    return [1000 * r + 4 * g for r, g in found.images[:, :2, 0, 0].tolist()]


def coarse(*wanted: int) -> list[int]:
    return [number // 1000 * 1000 + number % 1000 // 4 * 4 for number in wanted]


@pytest.mark.parametrize("layout", ["thumbnails128x128", "", "flat"])
def test_layouts_and_split(tmp_path, layout):
    write(tmp_path / layout, 128, nested=layout != "flat")
    (tmp_path / layout / "LICENSE.txt").write_text("")
    data = FfhqFolder(tmp_path / layout if layout == "flat" else tmp_path, 128)
    train, test = data.load("train"), data.load("test")
    assert train.images.shape == (5, 3, 128, 128) and train.images.dtype is torch.uint8 and train.labels is None
    assert numbers(train) == coarse(*NUMBERS[:5]) and numbers(test) == coarse(*NUMBERS[5:])
    assert torch.equal(train.images[2], torch.from_numpy(face(1000, 128)).permute(2, 0, 1))
    assert numbers(data.load("train", 2)) == coarse(*NUMBERS[:2])
    held = FfhqFolder(data.root, 128, val=2)
    assert numbers(held.load("val")) == coarse(59_998, 59_999) and numbers(held.load("train")) == coarse(*NUMBERS[:3])


def test_reduction_is_the_mean_over_areas(tmp_path):
    write(tmp_path, 128)
    small = FfhqFolder(tmp_path, 64).load("train", 1).images[0].double()
    means = (
        torch.from_numpy(face(0, 128))
        .double()
        .permute(2, 0, 1)
        .unflatten(1, (64, 2))
        .unflatten(3, (64, 2))
        .mean((2, 4))
    )
    assert float((small - means).abs().max()) <= 1.0  # two passes, each rounded to a byte


def test_the_smallest_images_that_are_large_enough_are_read(tmp_path):
    write(tmp_path / "thumbnails128x128", 128)
    with pytest.raises(ValueError, match=r"smaller than 256 pixels \(thumbnails128x128: 128x128\)"):
        FfhqFolder(tmp_path, 256)
    write(tmp_path / "images1024x1024", 256)  # the side is checked where an image is read, not here
    assert FfhqFolder(tmp_path, 256).load("test").images.shape == (2, 3, 256, 256)
    assert torch.equal(
        FfhqFolder(tmp_path, 128).load("test", 1).images[0], torch.from_numpy(face(60_000, 128)).permute(2, 0, 1)
    )


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="res must be one of 64, 128, 256, got 100"):
        FfhqFolder(tmp_path, 100)
    with pytest.raises(FileNotFoundError, match=r"no FFHQ images .*00000\.png.*thumbnails128x128"):
        FfhqFolder(tmp_path)
    folder = write(tmp_path / "a", 64)
    with pytest.raises(ValueError, match=r"smaller than 128 pixels \(\.: 64x64\)"):
        FfhqFolder(folder, 128)
    data = FfhqFolder(folder, 64)
    with pytest.raises(ValueError, match=r"6 faces asked for; .* has 5 with numbers 0\.\.59999"):
        data.load("train", 6)
    with pytest.raises(ValueError, match=r"no split 'val'.*val="):
        data.load("val")
    for number in NUMBERS[5:]:
        (folder / f"{number // 1000 * 1000:05}" / f"{number:05}.png").unlink()
    with pytest.raises(ValueError, match=r"has 0 with numbers 60000\.\.69999"):
        FfhqFolder(folder, 64).load("test")
    Image.new("RGB", (64, 70)).save(folder / "00000" / "00001.png")
    with pytest.raises(ValueError, match=r"00001\.png has 64x70 pixels, not a square of at least 64"):
        FfhqFolder(folder, 64).load("train")
    (folder / "00000" / "00001.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"00001\.png cannot be read"):
        FfhqFolder(folder, 64).load("train")
