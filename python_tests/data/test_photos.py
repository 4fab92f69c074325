"""Crops of photographs: what a crop is, that splits never mix, what the cache keeps, and the script that fetches."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from semcom_fast.data import PhotoCrops, photos
from semcom_fast.data.images import data_home
from semcom_fast.data.photos import PACKAGE_SETS, manifest
from semcom_fast.errors import MissingExtra

Image = pytest.importorskip("PIL.Image")

SCRIPT = Path(__file__).parents[2] / "tools" / "get_photos.sh"
FETCHED = {photo.name: place for place, photo in enumerate(manifest()) if photo.sha256}
WIDE, HIGH = 256, 200
SIZE, SCALES = 8, (1 / 8, 1 / 2)
LEVEL = 6  # of red between one photograph and the next


def name_of(red: float) -> str:
    """The photograph that red level marks."""
    return list(FETCHED)[round(red / LEVEL)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Every photograph of the manifest: red says which, green falls left to right, blue rises top to bottom, 1 a pixel."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.empty((HIGH, WIDE, 3), np.uint8)
    pixels[..., 1] = np.arange(WIDE)[::-1]
    pixels[..., 2] = np.arange(HIGH)[:, None]
    for place, name in enumerate(FETCHED):
        pixels[..., 0] = place * LEVEL
        Image.fromarray(pixels).save(folder / f"{name}.jpg", format="PNG")  # exact; Pillow goes by the content
    return folder


@pytest.fixture
def crops(root, tmp_path):
    return PhotoCrops(root, SIZE, 400, scales=SCALES, photos="fetched", cache=tmp_path / "crops")


def reds(images: torch.Tensor) -> list[str]:
    return [name_of(float(image[0].float().mean())) for image in images]


def names(split: str, sets=("default",)) -> set[str]:
    packages = {package for name in sets for package in PACKAGE_SETS[name]}
    return {photo.name for photo in manifest() if photo.split == split and photo.package in packages}


def test_the_split_is_the_published_one():
    by_split = {split: {p.name for p in manifest() if p.split == split} for split in ("train", "val", "test")}
    assert by_split["test"] == {
        *("Dragonfly", "picosdeeuropa", "friends", "Garden", "Dune", "EveningGlow", "ColorfulCups", "Kleiber"),
        *("astronaut", "coffee", "chelsea", "rocket", "china", "flower"),
    }
    assert by_split["val"] == {"greentock", "LadyBird", "Path"}
    assert len(manifest()) == len({photo.name for photo in manifest()}) == 37 + 6
    assert all(photo.licence and photo.author for photo in manifest())
    assert {len(photo.sha256) for photo in manifest()} == {0, 64}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_crops_come_from_their_split_alone_and_in_equal_shares(crops, split):
    found = crops.load(split)
    assert found.images.shape == (400, 3, SIZE, SIZE) and found.images.dtype is torch.uint8
    assert found.labels is None and found.names == ()
    seen = reds(found.images)
    assert set(seen) == names(split)
    counts = [seen.count(name) for name in names(split)]
    assert max(counts) - min(counts) <= 1
    assert seen != sorted(seen)  # mixed
    assert sorted(line.split()[0] for line in found.sources) == sorted(names(split))


def test_splits_share_no_photograph(crops):
    seen = [set(reds(crops.load(split).images)) for split in ("train", "val", "test")]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 25


def test_a_crop_is_a_square_window_at_a_log_uniform_scale_and_half_are_mirrored(crops):
    images = crops.load("train", 4000).images.double()
    # Slopes give the window's side over SIZE. Two values rounded to bytes are off by 1 together, over SIZE-3 pixels; the
    # outermost pixels are left out, where the filter may see the photograph's edge.
    error = 1 / (SIZE - 3)
    across = (images[:, 1, :, -2] - images[:, 1, :, 1]).mean(1) / (SIZE - 3)
    down = (images[:, 2, -2] - images[:, 2, 1]).mean(1) / (SIZE - 3)
    assert float((across.abs() - down).abs().max()) <= 2 * error  # square
    mirrored = across > 0  # green falls in the photograph
    assert abs(float(mirrored.double().mean()) - 0.5) < 4 * 0.5 / 4000**0.5
    assert abs(float(down.min()) - 1 / SCALES[1]) <= error and abs(float(down.max()) - 1 / SCALES[0]) <= error
    # ln of the scale is uniform over 2 octaves: the Kolmogorov-Smirnov distance of 4,000 draws stays below 0.031 in 999
    # cases of 1,000, and at 2 pixels a slope's error is at most log2(1 + error/2) = 0.14 octaves.
    octaves = torch.sort(torch.log2(down)).values - 1
    assert float((octaves / 2 - torch.arange(1, 4001) / 4000).abs().max()) < 0.031 + 0.14 / 2
    # centres are uniform on what the window leaves free
    centre = images[:, 2].mean((1, 2)) + 0.5
    free = HIGH - SIZE * down
    place = (centre - SIZE * down / 2) / free
    assert -0.05 < float(place.min()) < 0.05 and 0.95 < float(place.max()) < 1.05
    assert abs(float(place.mean()) - 0.5) < 0.03


def test_the_seed_decides(root, tmp_path):
    def load(seed, folder, **options):
        return PhotoCrops(root, SIZE, 60, seed, photos="fetched", cache=tmp_path / folder, **options).load("val").images

    assert torch.equal(load(3, "a"), load(3, "b"))
    one, other = ({crop.numpy().tobytes() for crop in load(seed, "a")} for seed in (3, 4))
    assert len(one) > 55 and not one & other  # other crops, not the same in another order
    # a photograph more leaves the crops of the others alone
    more = load(3, "a", sets=("default", "plasma"))
    seen, before = reds(more), load(3, "a")
    assert set(seen) == names("val", ("default", "plasma"))
    ladybird = more[[name == "LadyBird" for name in seen]]
    assert all(any(torch.equal(crop, old) for old in before) for crop in ladybird)


def test_what_lies_in_the_folder_beyond_the_chosen_sets_decides_nothing(crops):
    assert "Kite" not in reds(crops.load("train").images)
    assert crops.file(next(photo for photo in manifest() if photo.name == "Kite")).exists()


def test_crops_are_made_once(crops, monkeypatch):
    first = crops.load("val").images.clone()
    (kept,) = crops.cache.glob("*.npy")
    note = json.loads(kept.with_suffix(".json").read_text())
    files = {photo.name: crops.file(photo) for photo in crops.photographs("val")}
    assert {source["name"]: source["sha256"] for source in note["recipe"]["sources"]} == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    }
    assert {path.suffix for path in crops.cache.iterdir()} == {".npy", ".json"}

    monkeypatch.setattr(PhotoCrops, "_cut", lambda *_: pytest.fail("cut again"))
    again = crops.load("val")
    assert torch.equal(again.images, first)
    again.images.zero_()  # the caller's own
    assert torch.equal(crops.load("val").images, first)


@pytest.mark.parametrize("harm", ["cut short", "no recipe", "another recipe", "another shape"])
def test_a_damaged_cache_is_made_again(crops, harm):
    first = crops.load("val").images.clone()
    (kept,) = crops.cache.glob("*.npy")
    note = kept.with_suffix(".json")
    if harm == "cut short":
        kept.write_bytes(kept.read_bytes()[:-100])
    elif harm == "no recipe":
        note.unlink()
    elif harm == "another recipe":
        note.write_text(note.read_text().replace('"seed": 0', '"seed": 1'))
        np.save(kept, np.zeros((400, 3, SIZE, SIZE), np.uint8))
    else:
        np.save(kept, np.zeros((399, 3, SIZE, SIZE), np.uint8))
    assert torch.equal(crops.load("val").images, first)


def test_a_changed_photograph_makes_new_crops(root, tmp_path):
    own = tmp_path / "photos"
    shutil.copytree(root, own)
    crops = PhotoCrops(own, SIZE, 50, cache=tmp_path / "crops")
    before = crops.load("val").images.clone()
    Image.new("RGB", (WIDE, HIGH), (1, 2, 3)).save(own / "LadyBird.jpg", format="PNG")
    after = crops.load("val").images
    assert not torch.equal(before, after)
    assert (after[:, 2] == 3).all((1, 2)).sum() == 25
    assert len(list(crops.cache.glob("*.npy"))) == 2


def test_each_setting_has_its_own_crops(root, tmp_path):
    for options in ({"size": 9}, {"size": 8}, {"size": 8, "seed": 1}, {"size": 8, "scales": (0.25, 0.5)}):
        PhotoCrops(root, n=20, cache=tmp_path, **options).load("val")
    assert len(list(tmp_path.glob("*.npy"))) == 4


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_without_photographs_the_message_names_the_script(tmp_path, split):
    empty = PhotoCrops(tmp_path / "nothing", SIZE, 10, cache=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tools/get_photos\.sh") as caught:
        empty.load(split)
    assert ("bundled" in str(caught.value)) == (split == "test")
    assert SCRIPT.is_file() and os.access(SCRIPT, os.X_OK)


def test_a_missing_set_names_its_flag(root, tmp_path):
    own = tmp_path / "photos"
    shutil.copytree(root, own)
    (own / "Kite.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"^1 photographs .*Kite.*get_photos\.sh --plasma"):
        PhotoCrops(own, SIZE, sets=("default", "plasma"), cache=tmp_path).load("train")


def test_the_test_split_needs_nothing_fetched(tmp_path):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    bundled = PhotoCrops(tmp_path / "nothing", 32, photos="bundled", cache=tmp_path).load("test", 60)
    assert bundled.images.shape == (60, 3, 32, 32)
    found = {line.split()[0] for line in bundled.sources}
    assert found == {"astronaut", "coffee", "chelsea", "rocket", "china", "flower"}
    with pytest.raises(FileNotFoundError, match=r"get_photos\.sh"):  # nothing may train on them
        PhotoCrops(tmp_path / "nothing", 32, photos="bundled", cache=tmp_path).load("train", 60)


def test_all_test_photographs_are_fetched_and_bundled(root, tmp_path):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    found = PhotoCrops(root, SIZE, 11, cache=tmp_path).load("test").sources
    assert len(found) == 11 and {line.split()[0] for line in found} >= {"Dune", "chelsea", "flower"}


def test_only_installed_packages_give_photographs(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    there = {"skimage": False, "sklearn": True}
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: object() if there[name] else None)
    crops = PhotoCrops(tmp_path, 32, photos="bundled", cache=tmp_path)
    assert [photo.name for photo in crops.photographs("test")] == ["china", "flower"]
    there["sklearn"] = False
    monkeypatch.setitem(__import__("sys").modules, "skimage", None)
    with pytest.raises(MissingExtra, match=r"\[images\]"):
        crops.load("test", 5)


def test_bad_settings_are_refused(root, tmp_path):
    for options in ({"scales": (0, 0.5)}, {"scales": (0.5, 0.25)}, {"scales": (0.5, 2)}, {"size": 0}, {"n": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            PhotoCrops(root, **options)
    with pytest.raises(ValueError, match="photos must be"):
        PhotoCrops(root, photos="some")
    with pytest.raises(ValueError, match="sets must name some of default, plasma"):
        PhotoCrops(root, sets=("kde",))
    with pytest.raises(ValueError, match="no photograph in the val split"):
        PhotoCrops(root, sets=("lomiri-20.04",), cache=tmp_path).load("val")
    with pytest.raises(ValueError, match="no split 'eval'"):
        PhotoCrops(root, cache=tmp_path).load("eval")
    with pytest.raises(ValueError, match="n must be positive"):
        PhotoCrops(root, cache=tmp_path).load("val", 0)
    with pytest.raises(ValueError, match=r"256x200 pixels: too small for crops of 128"):
        PhotoCrops(root, 128, cache=tmp_path).load("val", 5)


def test_a_photograph_too_small_for_some_scales_uses_the_others(root, tmp_path):
    images = PhotoCrops(root, 64, cache=tmp_path).load("val", 40).images.double()  # 64/(1/8) = 512 > 200
    down = (images[:, 2, -2] - images[:, 2, 1]).mean(1) / 61
    assert float(down.min()) > 2 - 1 / 61 and float(down.max()) < 200 / 64 + 1 / 61


def test_the_fetched_photographs_are_those_of_the_manifest():
    folder = data_home() / "photos"
    here = [photo for photo in manifest() if photo.sha256 and (folder / f"{photo.name}.jpg").is_file()]
    if not here:
        pytest.skip(f"no photographs in {folder}: tools/get_photos.sh fetches them")
    for photo in here:
        assert hashlib.sha256((folder / f"{photo.name}.jpg").read_bytes()).hexdigest() == photo.sha256, photo.name


def run_script(home: Path, tools: Path | None, *options: str) -> subprocess.CompletedProcess:
    path = os.environ["PATH"] if tools is None else f"{tools}:{os.environ['PATH']}"
    environment = {**os.environ, "SEMCOM_DATA": str(home), "PATH": path}
    return subprocess.run(["bash", str(SCRIPT), *options], env=environment, capture_output=True, text=True, check=False)


def fake_tool(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def packages(tmp_path, root) -> Path:
    """An apt that knows the packages and serves them from a folder, without a network."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed: the script is for Debian and Ubuntu")
    served, tools = tmp_path / "served", tmp_path / "tools"
    for package in {photo.package for photo in manifest() if photo.sha256}:
        tree = tmp_path / "tree" / package
        for photo in manifest():
            if photo.package == package:
                (tree / photo.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(root / f"{photo.name}.jpg", tree / photo.path)
        _package(tree, package, served)
    stamps = tmp_path / "tree" / "tuxpaint-stamps-default"
    for name in ("tuxpaint/stamps/animals/fish/cod.png", "doc/tuxpaint-stamps-default/copyright"):
        (stamps / "usr/share" / name).parent.mkdir(parents=True, exist_ok=True)
        (stamps / "usr/share" / name).write_text(name)
    _package(stamps, "tuxpaint-stamps-default", served)
    fake_tool(tools, "apt-cache", 'echo "Package: $2"')
    fake_tool(tools, "apt-get", f'for last; do :; done; echo "$last" >>{tmp_path}/asked; cp {served}/"$last".deb .')
    return tools


def _package(tree: Path, name: str, served: Path) -> None:
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: none\n"
    )
    served.mkdir(exist_ok=True)
    subprocess.run(["dpkg-deb", "-Znone", "-b", tree, served / f"{name}.deb"], check=True, capture_output=True)


def test_the_script_fetches_once_what_is_asked_for(packages, tmp_path, root):
    home, asked = tmp_path / "home", tmp_path / "asked"
    first = run_script(home, packages)
    assert first.returncode == 0, first.stderr
    assert {path.stem for path in (home / "photos").iterdir()} == {
        photo.name for photo in manifest() if photo.package in PACKAGE_SETS["default"]
    }
    assert "differs from the file the published figures were made with" in first.stderr  # they are not the real ones
    again = run_script(home, packages, "--tuxpaint", "--plasma", "--lomiri-20.04")
    assert again.returncode == 0, again.stderr
    assert {path.name for path in (home / "photos").iterdir()} == {path.name for path in root.iterdir()}
    assert (home / "stamps/animals/fish/cod.png").is_file() and (home / "stamps/COPYRIGHT").is_file()
    every = [package for names in PACKAGE_SETS.values() for package in names]
    assert asked.read_text().split() == [*every, "tuxpaint-stamps-default"]
    (home / "photos/Wood.jpg").unlink()
    assert run_script(home, packages, "--tuxpaint").returncode == 0
    assert asked.read_text().split()[len(every) + 1 :] == ["mate-backgrounds"]
    assert (home / "photos/Wood.jpg").is_file()


def test_the_script_says_what_is_wrong(tmp_path):
    tools = tmp_path / "tools"
    fake_tool(tools, "apt-cache", "exit 100")
    for name in ("apt-get", "dpkg-deb"):
        fake_tool(tools, name, "exit 1")
    lists = run_script(tmp_path / "home", tools)
    assert lists.returncode == 1 and "apt-get update" in lists.stderr
    option = run_script(tmp_path / "home", tools, "--all")
    assert option.returncode == 1 and "unknown option --all" in option.stderr
    fake_tool(tools, "apt-cache", "echo Package")
    failed = run_script(tmp_path / "home", tools)
    assert failed.returncode == 1 and "downloading lomiri-wallpapers-16.04 failed" in failed.stderr
    assert not list((tmp_path / "home/photos").iterdir())
