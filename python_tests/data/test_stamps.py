"""STAMPS-10: balanced labels, objects and backgrounds of one split, reproducible images."""

import numpy as np
import pytest
import torch

from semcom_fast.data import PhotoCrops, StampsTask
from semcom_fast.data.images import data_home
from semcom_fast.data.photos import manifest
from semcom_fast.data.stamps import CLASSES, EXTENT

Image = pytest.importorskip("PIL.Image")
SIZE, EACH = 32, 16
GREY = {"train": 40, "val": 80, "test": 120}  # of the photographs


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Grey photographs that tell their split; stamps whose red tells the class and green the place in it."""
    home = tmp_path_factory.mktemp("home")
    (home / "photos").mkdir()
    for photo in manifest():
        Image.new("RGB", (600, 600), (GREY[photo.split],) * 3).save(home / "photos" / f"{photo.name}.jpg", format="PNG")
    for label, folders in enumerate(CLASSES.values()):
        for place in range(EACH):
            # folders are taken together, sorted by path
            folder = home / "stamps" / sorted(folders)[place * len(folders) // EACH]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.zeros((80, 100, 4), np.uint8)  # a margin all around is cut off
            pixels[10:70, 20:80] = (label * 25 + 5, place * 15 + 5, 255, 255)
            pixels[10:70, 20:30, 2] = 0  # a dark edge at the left
            Image.fromarray(pixels).save(folder / f"{place:02}.png")
    for extra in ("cartoon/a.png", "toys/b.png", "0_mirror.png", "00/plastic/c.png"):
        file = home / "stamps" / "animals/fish" / extra
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (50, 50), (255, 255, 0, 255)).save(file)
    return home


@pytest.fixture
def task(home, tmp_path):
    photos = PhotoCrops(home / "photos", SIZE, photos="fetched", cache=tmp_path)
    return StampsTask(home / "stamps", photos, SIZE, 200)


def inside(images: torch.Tensor) -> torch.Tensor:
    """Where a stamp's bright part is: blue 255, away from its soft edges."""
    return images[:, 2] > 250


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_objects_and_backgrounds_are_of_the_split(task, split):
    found = task.load(split)
    assert found.images.shape == (200, 3, SIZE, SIZE) and found.images.dtype is torch.uint8
    assert found.names == tuple(CLASSES) and found.labels.bincount().tolist() == [20] * 10
    assert found.labels[:30].unique().numel() > 5  # mixed
    wanted = {"train": {0, 2, 4, 5, 6, 8, 10, 12, 13, 14}, "val": {1, 9}, "test": {3, 7, 11, 15}}[split]
    places = set()
    for image, label, mask in zip(found.images, found.labels, inside(found.images), strict=True):
        assert mask.sum() > 30
        assert abs(float(image[0][mask].double().median()) - (int(label) * 25 + 5)) <= 2
        places.add(round((float(image[1][mask].double().median()) - 5) / 15))
        greys = {name: int(((image.int() - grey).abs() <= 3).all(0).sum()) for name, grey in GREY.items()}
        assert all((count > 0) == (name == split) for name, count in greys.items())
    assert places == wanted
    assert len({stamp.path.name for stamp in task.stamps(split)}) == len(wanted)
    assert found.sources[0].startswith(f"{10 * len(wanted)} objects")


def test_stamps_are_varied_within_their_bounds(task):
    everything = task.load("train", 2000)
    found = everything.images[everything.labels >= 5]  # their red stands out from the background's
    other = (found.double() - GREY["train"]).abs().amax(1) > 60
    extents = torch.stack((other.any(2).sum(1), other.any(1).sum(1))).amax(0)
    assert float(extents.min()) >= EXTENT[0] * SIZE - 3 and float(extents.max()) <= SIZE
    assert extents.unique().numel() > 8
    mask = inside(found)
    rows, columns = torch.arange(SIZE).view(-1, 1), torch.arange(SIZE)
    middle = [(mask * axis).sum((1, 2)) / mask.sum((1, 2)) for axis in (rows, columns)]
    assert all(float(axis.min()) < 12 and float(axis.max()) > 20 for axis in middle)  # placed here and there
    # the dark edge lies left of the bright part, or right of it where mirrored
    dark = other & (found[:, 2] < 10)
    shift = (dark * columns).sum((1, 2)) / dark.sum((1, 2)) - middle[1]
    share = float((shift > 0).double().mean())
    assert not shift.isnan().any() and abs(share - 0.5) < 4 * 0.5 / 1000**0.5
    # turned one way as often as the other, by 20 degrees at most
    tilt = torch.atan2((dark * rows).sum((1, 2)) / dark.sum((1, 2)) - middle[0], shift.abs()).rad2deg()
    assert float(tilt.abs().max()) < 20 + 5 and float(tilt.std()) > 20 / 3**0.5 - 3 and abs(float(tilt.mean())) < 2


def test_the_seed_decides_and_images_are_kept(task, home, tmp_path, monkeypatch):
    first = task.load("val").images.clone()
    again = StampsTask(home / "stamps", task.photos, SIZE, 200, cache=tmp_path / "elsewhere").load("val")
    assert torch.equal(again.images, first)
    assert not torch.equal(StampsTask(home / "stamps", task.photos, SIZE, 200, seed=1).load("val").images, first)
    monkeypatch.setattr(StampsTask, "_paste", lambda *_: pytest.fail("made again"))
    assert torch.equal(task.load("val").images, first)


def test_a_changed_stamp_or_background_makes_new_images(home, tmp_path):
    import shutil

    shutil.copytree(home, tmp_path / "own")
    photos = PhotoCrops(tmp_path / "own" / "photos", SIZE, photos="fetched", cache=tmp_path / "kept")
    task = StampsTask(tmp_path / "own" / "stamps", photos, SIZE, 200)
    first = task.load("val").images.clone()
    Image.new("RGB", (600, 600), (9, 9, 9)).save(tmp_path / "own" / "photos" / "greentock.jpg", format="PNG")
    second = task.load("val").images.clone()
    assert 0 < (first != second).any(-1).any(-1).any(-1).sum() <= 100  # half the backgrounds
    Image.new("RGBA", (60, 60), (255, 255, 0, 255)).save(tmp_path / "own" / "stamps" / "animals/birds/01.png")
    third = task.load("val")
    changed = (second != third.images).flatten(1).any(1)
    assert changed.any() and set(third.labels[changed].tolist()) == {list(CLASSES).index("birds")}


def test_errors(task, home, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"0 stamps of mammals .*tools/get_photos\.sh --tuxpaint"):
        StampsTask(tmp_path / "nothing", task.photos).load("train")
    with pytest.raises(FileNotFoundError, match=r"photographs of the train split .*tools/get_photos\.sh"):
        StampsTask(home / "stamps", PhotoCrops(tmp_path / "nothing", cache=tmp_path)).load("train")
    with pytest.raises(ValueError, match="backgrounds have 32 pixels a side, the task 64"):
        StampsTask(home / "stamps", task.photos, 64)
    with pytest.raises(ValueError, match="no split 'both'"):
        task.load("both")
    with pytest.raises(ValueError, match="n must be positive"):
        task.load("train", 0)
    with pytest.raises(ValueError, match="size and n must be positive"):
        StampsTask(home / "stamps", task.photos, SIZE, 0)


def test_the_fetched_stamps_are_those_described():
    folder = data_home() / "stamps"
    if not (folder / "COPYRIGHT").is_file():
        pytest.skip(f"no stamps in {folder}: tools/get_photos.sh --tuxpaint fetches them")
    task = StampsTask()
    stamps = {split: task.stamps(split) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in stamps.items()} == {"train": 147, "val": 35, "test": 55}
    assert [sum(stamp.label == 9 for stamp in found) for found in stamps.values()] == [6, 2, 2]
    files = [stamp.path for found in stamps.values() for stamp in found]
    assert len(files) == len(set(files))
    assert not any("cartoon" in str(file) or "_mirror" in file.name for file in files)
