"""The digits: scale, split and order."""

import torch

from semcom_fast.data import load_digits
from semcom_fast.data.digits import as_images


def test_split_is_fixed_and_complete():
    digits = load_digits()
    assert digits.train.shape == (1500, 64) and digits.test.shape == (297, 64)
    assert digits.train.dtype is torch.float32 and digits.train_labels.dtype is torch.int64
    together = torch.cat((digits.train, digits.test))
    assert float(together.min()) == -1 and float(together.max()) == 1
    assert torch.equal((together + 1) * 8, ((together + 1) * 8).round())  # sixteenths of the scale
    assert torch.equal(load_digits().test, digits.test)
    # what the shipped weights were trained on; a moved split would leak test digits into training
    assert digits.test_labels[:10].tolist() == [2, 2, 9, 8, 8, 3, 6, 0, 4, 4]
    assert torch.unique(together, dim=0).shape[0] > 1790


def test_images_are_rows():
    flat = torch.arange(128.0).reshape(2, 64)
    assert as_images(flat)[1, 0].tolist() == list(range(64, 72))
