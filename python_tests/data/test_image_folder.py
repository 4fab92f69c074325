"""A folder of images: split by name, labels from folders, one square of each."""

import hashlib

import numpy as np
import pytest
import torch

from semcom_fast.data import ImageFolder

Image = pytest.importorskip("PIL.Image")


def save(path, size=(16, 12), colour=(10, 20, 30), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """90 images in three folders of the first level, some deeper; red is the number, blue the class."""
    for index in range(90):
        label = ("cat", "dog", "tree")[index % 3]
        below = "deep/er/" if index % 2 else ""
        save(tmp_path / "images" / label / f"{below}{index:03}.png", colour=(index, 7, index % 3))
    return tmp_path / "images"


def numbers(images) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


def test_every_image_is_in_the_split_its_path_says(folder):
    data = ImageFolder(folder, 8)
    seen = []
    for split in ("train", "val", "test"):
        found = data.load(split)
        assert found.images.shape == (len(found), 3, 8, 8) and found.images.dtype is torch.uint8
        assert found.names == ("cat", "dog", "tree") and found.labels.dtype is torch.int64
        assert found.labels.tolist() == [number % 3 for number in numbers(found)] == found.images[:, 2, 0, 0].tolist()
        for name in data.files(split):
            remainder = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10
            assert split == {0: "test", 1: "val"}.get(remainder, "train")
        assert numbers(found) == [int(name[-7:-4]) for name in data.files(split)]
        seen += numbers(found)
    assert sorted(seen) == list(range(90))
    assert len(set(data.load("train", 12).labels.tolist())) == 3  # the first n are a mixture


def test_a_new_file_moves_no_other(folder):
    before = {name: split for split in ("train", "val", "test") for name in ImageFolder(folder, 8).files(split)}
    for index in range(20):
        save(folder / "bird" / f"new{index}.webp")
    after = {name: split for split in ("train", "val", "test") for name in ImageFolder(folder, 8).files(split)}
    assert len(after) == 110 and before.items() <= after.items()


def test_a_split_file_decides(folder, tmp_path):
    split_file = tmp_path / "splits.txt"
    split_file.write_text("# mine\ntrain cat/000.png\ntest dog/deep/er/001.png\n\ntrain tree/002.png\n")
    data = ImageFolder(folder, 8, split_file=split_file)
    assert sorted(numbers(data.load("train"))) == [0, 2] and numbers(data.load("test")) == [1]
    with pytest.raises(ValueError, match=r"the val split of .* has 0"):
        data.load("val")
    for text, error, message in (
        ("train cat/000.png\ntest cat/000.png\n", ValueError, "line 2: cat/000.png appears twice"),
        ("train cat/999.png\n", FileNotFoundError, "line 1: no image cat/999.png"),
        ("learn cat/000.png\n", ValueError, "line 1: should be 'SPLIT PATH'"),
        ("train\n", ValueError, "line 1: should be 'SPLIT PATH'"),
        ("# none\n", ValueError, "names no image"),
    ):
        split_file.write_text(text)
        with pytest.raises(error, match=message):
            ImageFolder(folder, 8, split_file=split_file)


def only(root, size, crop, **options):
    data = ImageFolder(root, size, crop, **options)
    return next(data.load(split).images[0] for split in ("train", "val", "test") if data.files(split))


def test_crops(tmp_path):
    ramp = np.zeros((20, 60, 3), np.uint8)
    ramp[..., 0] = np.arange(60) * 4
    (tmp_path / "one").mkdir()
    Image.fromarray(ramp).save(tmp_path / "one" / "ramp.png")
    centre, whole = only(tmp_path, 20, "centre"), only(tmp_path, 20, "whole")
    assert torch.equal(centre[0], torch.from_numpy(ramp[:, 20:40, 0]))  # columns 20..39, unfiltered at this size
    assert abs(int(whole[0, 0, 0]) - 4) <= 2 and abs(int(whole[0, 0, -1]) - 58 * 4) <= 2
    starts = {int(only(tmp_path, 20, "random", seed=seed)[0, 0, 5]) for seed in range(30)}
    assert len(starts) > 15 and min(starts) < 60 and max(starts) > 130
    assert torch.equal(only(tmp_path, 20, "random", seed=3), only(tmp_path, 20, "random", seed=3))


def test_images_beside_the_folders_leave_the_set_without_labels(folder):
    save(folder / "loose.jpg")
    found = ImageFolder(folder, 8).load("train")
    assert found.labels is None and found.names == ()


def test_other_modes_and_turned_photographs(tmp_path):
    save(tmp_path / "a" / "grey.png", colour=90, mode="L")
    save(tmp_path / "a" / "alpha.png", colour=(90, 90, 90, 10), mode="RGBA")
    save(tmp_path / "a" / ".hidden.png")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    assert (only(tmp_path, 4, "centre") == 90).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # stands on its side
    turned = tmp_path / "turned"
    half = np.zeros((10, 10, 3), np.uint8)
    half[:, :5] = 200  # its left is the upright picture's top
    turned.mkdir()
    Image.fromarray(half).save(turned / "x.png", exif=exif)
    upright = only(turned, 10, "centre")[0]
    assert (upright[:5] == 200).all() and (upright[5:] == 0).all()


def test_what_cannot_be_read_is_named(tmp_path, folder):
    for options, message in (({"size": 0}, "size"), ({"size": 8, "crop": "middle"}, "crop must be one of centre")):
        with pytest.raises(ValueError, match=message):
            ImageFolder(folder, **options)
    with pytest.raises(FileNotFoundError, match="no folder"):
        ImageFolder(tmp_path / "nowhere", 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images \(\.jpg, "):
        ImageFolder(tmp_path / "empty", 8)
    with pytest.raises(ValueError, match=r"1000 images asked for; the train split of .* has"):
        ImageFolder(folder, 8).load("train", 1000)
    with pytest.raises(ValueError, match="no split 'all'"):
        ImageFolder(folder, 8).load("all")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image"):
        only(tmp_path / "bad", 8, "centre")
    save(tmp_path / "deep" / "x.png", colour=40000, mode="I;16")
    with pytest.raises(ValueError, match=r"x\.png: images must have 8 bits a channel"):
        only(tmp_path / "deep", 8, "centre")
