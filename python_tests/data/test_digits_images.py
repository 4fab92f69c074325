"""The digits as 32x32 colour images."""

import pytest
import torch

from semcom_fast.data import Digits, load_digits
from semcom_fast.data.digits import as_images

pytest.importorskip("sklearn")


def test_pixels_are_repeated_and_scaled():
    raw = load_digits()
    for split, flat, labels in (("train", raw.train, raw.train_labels), ("test", raw.test, raw.test_labels)):
        found = Digits().load(split)
        assert found.images.shape == (len(flat), 3, 32, 32) and found.images.dtype is torch.uint8
        assert torch.equal(found.labels, labels) and found.names == tuple("0123456789")
        level = ((as_images(flat).double() + 1) * 8).round()  # 0..16
        for row, column in ((0, 0), (3, 3), (4, 3), (17, 30), (31, 31)):
            wanted = (level[:, row // 4, column // 4] / 16 * 255).round()
            assert all(torch.equal(found.images[:, channel, row, column].double(), wanted) for channel in range(3))
    assert len(Digits().load("train")) == 1500 and len(Digits().load("test")) == 297


def test_validation_is_taken_from_training():
    everything, held = Digits().load("train"), Digits(val=150)
    train, val = held.load("train"), held.load("val")
    assert len(train) == 1350 and len(val) == 150
    assert torch.equal(torch.cat((train.images, val.images)), everything.images)
    assert torch.equal(torch.cat((train.labels, val.labels)), everything.labels)
    assert torch.equal(held.load("test").images, Digits().load("test").images)
    assert torch.equal(Digits().load("test", 9).labels, load_digits().test_labels[:9])
    with pytest.raises(ValueError, match=r"no split 'val'.*val="):
        Digits().load("val")
    with pytest.raises(ValueError, match="below the 1500 training images"):
        Digits(val=1500)
    with pytest.raises(ValueError, match="298 images asked for; there are 297"):
        Digits().load("test", 298)
