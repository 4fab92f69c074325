"""Soft edge maps, their kept form and the captions of the photographs."""

import pytest
import torch

from semcom_fast.data.captions import caption_of, crop_captions, photo_captions
from semcom_fast.data.edges import _soften, edge_uncertainty, kept_edges, luminance, soft_edges
from semcom_fast.data.photos import PACKAGE_SETS, manifest

canny = pytest.importorskip("skimage.feature").canny


def square(side: int = 32) -> torch.Tensor:
    image = torch.zeros(1, 3, side, side)
    image[..., 8:24, 8:24] = 1
    return image


def test_an_edge_lies_where_the_brightness_steps() -> None:
    edges = soft_edges(square())
    assert edges.shape == (1, 1, 32, 32) and edges.dtype == torch.float32
    row = edges[0, 0, 16]
    assert row.max() == 1 and set(row.topk(4).indices.tolist()) <= {6, 7, 8, 9, 22, 23, 24, 25}
    assert float(row[:4].max()) == 0 and float(row[12:20].max()) == 0
    assert torch.equal(soft_edges(torch.full((2, 3, 32, 32), 0.3)), torch.zeros(2, 1, 32, 32))


def test_without_blur_it_is_canny_on_the_luminance() -> None:
    images = torch.rand(3, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    grey = luminance(images)
    assert torch.allclose(grey, 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2], atol=1e-6)
    expected = torch.stack([torch.from_numpy(canny(g.double().numpy(), sigma=1.2)) for g in grey]).float()
    assert expected.sum() > 0
    assert torch.equal(soft_edges(images, sigma=1.2, blur=0)[:, 0], expected)


def test_a_straight_line_peaks_at_one_and_falls_like_a_gaussian() -> None:
    line = torch.zeros(1, 1, 24, 24)
    line[..., 12] = 1
    row = _soften(line, 0.8)[0, 0, 12]
    expected = torch.exp(-torch.tensor([0.0, 1.0, 2.0]).square() / (2 * 0.8**2))
    assert torch.allclose(row[12:15], expected, atol=1e-6) and torch.allclose(row[10:13], expected.flip(0), atol=1e-6)
    assert _soften(torch.ones(1, 1, 24, 24), 0.8).max() == 1  # clamped


def test_batch_and_number_formats_change_nothing() -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whole = soft_edges(images)
    assert torch.equal(whole, torch.cat([soft_edges(images[:1]), soft_edges(images[1:])]))
    assert torch.equal(whole, soft_edges(images.float() / 255))
    assert torch.equal(soft_edges(images[:0]), torch.zeros(0, 1, 32, 32))
    assert whole.min() >= 0 and whole.max() <= 1


def test_uncertainty_is_the_mean_over_scales() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    expected = (soft_edges(images, sigma=1.0) + soft_edges(images, sigma=2.0)) / 2
    assert torch.allclose(edge_uncertainty(images, sigmas=(1.0, 2.0)), expected)
    assert torch.equal(edge_uncertainty(images, sigmas=(1.5,)), soft_edges(images, sigma=1.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: soft_edges(x, sigma=0), "sigma must be positive"),
        (lambda x: soft_edges(x, blur=-1), "blur at least 0"),
        (lambda x: soft_edges(x[0]), "need images"),
        (lambda x: soft_edges(x.expand(1, 2, 3, 8, 8)[0, :, :2]), "need images"),
        (lambda x: edge_uncertainty(x, sigmas=()), "at least one sigma"),
        (lambda x: kept_edges(x), "uint8"),
    ],
)
def test_wrong_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 3, 8, 8))


def test_the_missing_extra_is_named(monkeypatch) -> None:
    from semcom_fast.errors import MissingExtra

    monkeypatch.setitem(__import__("sys").modules, "skimage.feature", None)
    with pytest.raises(MissingExtra, match=r"semcom-fast\[images\]"):
        soft_edges(torch.zeros(1, 3, 16, 16))


def test_kept_edges_are_made_once(tmp_path, monkeypatch) -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    edges = kept_edges(images, cache=tmp_path)
    assert torch.equal(edges, soft_edges(images).mul(255).round().to(torch.uint8))
    (file,) = tmp_path.iterdir()
    other = kept_edges(images, sigma=2.0, cache=tmp_path)
    kept_edges(images.flip(0), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 and not torch.equal(other, edges)
    with monkeypatch.context() as patch:
        patch.setattr("semcom_fast.data.edges.soft_edges", lambda *a, **k: pytest.fail("made again"))
        assert torch.equal(kept_edges(images, cache=tmp_path), edges)
    file.write_bytes(file.read_bytes()[:-100])  # cut short: made anew
    assert torch.equal(kept_edges(images, cache=tmp_path), edges)


def test_captions_are_of_photographs_in_the_manifest() -> None:
    captions = photo_captions()
    names = {photo.name for photo in manifest()}
    assert set(captions) <= names
    fetched = {photo.name for photo in manifest() if photo.package in PACKAGE_SETS["default"]}
    bundled = {photo.name for photo in manifest() if photo.package.startswith("scikit")}
    assert fetched | bundled <= set(captions)
    assert all(3 < len(text.split()) < 25 and text.isascii() for text in captions.values())
    assert len(set(captions.values())) == len(captions)
    assert "coffee" in caption_of("coffee") and caption_of("no such photograph") == ""


def test_captions_of_crops() -> None:
    photos = [photo for photo in manifest() if photo.name in ("coffee", "rocket", "Kite")]
    found = crop_captions(photos, torch.tensor([1, 0, 1, 2]))
    assert found == [caption_of(photos[place].name) for place in (1, 0, 1, 2)]
