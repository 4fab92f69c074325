"""CIFAR-10's files: read as they are, checked, and never executed."""

import io
import os
import pickle
import tarfile
from typing import ClassVar

import numpy as np
import pytest
import torch

from semcom_fast.data import Cifar10Python, cifar10

ROWS = 20
NAMES = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
FILES = [*cifar10.TRAIN_FILES, *cifar10.TEST_FILES]


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings: what the published files contain."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    dispatch[bytes] = save_string


def dumps(value, protocol=None) -> bytes:
    if protocol is not None:
        return pickle.dumps(value, protocol)
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(value)
    return file.getvalue()


def batch(index: int, rows: int = ROWS) -> dict:
    random = np.random.default_rng(index)
    data = random.integers(0, 256, (rows, 3072), np.uint8)
    labels = [int(label) for label in random.integers(0, 10, rows)]
    return {b"batch_label": b"a batch", b"labels": labels, b"data": data, b"filenames": [b"x.png"] * rows}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cifar10, "ROWS_PER_FILE", ROWS)


def write(folder, protocol=None, **replaced):
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: batch(index) for index, name in enumerate(FILES)}
    files["batches.meta"] = {b"num_cases_per_batch": ROWS, b"label_names": NAMES, b"num_vis": 3072}
    for name, content in (files | replaced).items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else dumps(content, protocol))
    return folder


def pack(folder, archive):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, cifar10.FOLDER)
    return archive


@pytest.mark.parametrize("protocol", [None, 2, 4, 5])
def test_the_folder_is_read_as_published(tmp_path, small, protocol):
    write(tmp_path / cifar10.FOLDER, protocol)
    for root in (tmp_path, str(tmp_path / cifar10.FOLDER)):
        cifar = Cifar10Python(root)
        train, test = cifar.load("train"), cifar.load("test")
        assert train.images.shape == (5 * ROWS, 3, 32, 32) and test.images.shape == (ROWS, 3, 32, 32)
        assert train.images.dtype is torch.uint8 and train.labels.dtype is torch.int64
        assert train.names == tuple(name.decode() for name in NAMES)
    # rows are planes of R, G, B, each row by row
    data = batch(2)[b"data"]
    for channel, row, column in ((0, 0, 1), (1, 3, 0), (2, 31, 30)):
        pixel = train.images[2 * ROWS + 5, channel, row, column]
        assert pixel == data[5, 1024 * channel + 32 * row + column]
    assert train.labels[2 * ROWS : 3 * ROWS].tolist() == batch(2)[b"labels"]
    assert test.labels.tolist() == batch(5)[b"labels"]


def test_the_archive_is_read_as_it_is(tmp_path, small):
    folder = write(tmp_path / "made" / "cifar")
    archive = pack(folder, tmp_path / cifar10.ARCHIVE)
    before = sorted(path.name for path in tmp_path.iterdir())
    for root in (archive, tmp_path):
        assert torch.equal(Cifar10Python(root).load("test").images, Cifar10Python(folder).load("test").images)
    assert sorted(path.name for path in tmp_path.iterdir()) == before  # nothing unpacked


def test_validation_is_the_end_of_training(tmp_path, small):
    write(tmp_path)
    everything, held = Cifar10Python(tmp_path).load("train"), Cifar10Python(tmp_path, val=30)
    train, val = held.load("train"), held.load("val")
    assert len(train) == 5 * ROWS - 30 and len(val) == 30
    assert torch.equal(torch.cat((train.images, val.images)), everything.images)
    assert torch.equal(torch.cat((train.labels, val.labels)), everything.labels)
    assert torch.equal(held.load("train", 7).labels, everything.labels[:7]) and len(held.load("train", 7)) == 7
    with pytest.raises(ValueError, match=r"no split 'val'; there: train, test .*val="):
        Cifar10Python(tmp_path).load("val")
    with pytest.raises(ValueError, match="val must be at least 0 and below the 100 training images"):
        Cifar10Python(tmp_path, val=100)
    with pytest.raises(ValueError, match="21 images asked for; there are 20"):
        held.load("test", 21)


class Evil:
    """Creates a file when a pickle of it is loaded by Python's own unpickler."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("archived", [False, True])
def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path, small, protocol, archived):
    target = tmp_path / "made_by_the_pickle"
    content = pickle.dumps({b"data": Evil(target), b"labels": []}, protocol)
    root = write(tmp_path / "cifar", test_batch=content)
    root = pack(root, tmp_path / "cifar.tar.gz") if archived else root
    with pytest.raises(
        ValueError, match=r"test_batch: not a pickle of NumPy arrays and plain values.*refused: .*mkdir"
    ):
        Cifar10Python(root).load("test")
    assert not target.exists()
    pickle.loads(content)  # it would have
    assert target.exists()


@pytest.mark.parametrize(
    "named",
    [
        *("builtins.eval", "builtins.getattr", "builtins.exec", "os.system", "posix.system", "subprocess.Popen"),
        *("numpy.load", "numpy.fromfile", "numpy.core.multiarray.scalar", "importlib.import_module", "_codecs.decode"),
    ],
)
def test_only_arrays_may_be_named(named):
    module, _, name = named.rpartition(".")
    with pytest.raises(ValueError, match=f"refused: it names {named}"):
        cifar10.read_pickle(f"c{module}\n{name}\n.".encode(), "here")
    dotted = b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93."  # protocol 4 may name attributes of what is allowed
    with pytest.raises(ValueError, match=r"refused: it names numpy\.ndarray\.dump"):
        cifar10.read_pickle(dotted, "here")


def test_only_latin1_is_encoded():
    pickled = b"c_codecs\nencode\n(Vtext\nVrot13\ntR."
    with pytest.raises(ValueError, match=r"refused: _codecs\.encode to 'rot13'"):
        cifar10.read_pickle(pickled, "here")


def test_real_row_counts_are_demanded(tmp_path):
    write(tmp_path)  # 20 rows where the published files have 10,000
    with pytest.raises(ValueError, match=r"data_batch_1: data should be uint8 \[10000, 3072\], got uint8 \[20, 3072\]"):
        Cifar10Python(tmp_path).load("train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"labels": [0] * (ROWS - 1)}, "labels should be a list of 20, got 19"),
        ({b"labels": np.zeros(ROWS, np.int64)}, "labels should be a list of 20, got ndarray"),
        ({b"labels": [10] * ROWS}, r"labels should be whole numbers 0\.\.9"),
        ({b"labels": [b"cat"] * ROWS}, r"labels should be whole numbers 0\.\.9"),
        ({b"data": np.zeros((ROWS, 3072), np.float32)}, r"got float32 \[20, 3072\]"),
        ({b"data": np.zeros((ROWS + 1, 3072), np.uint8)}, r"got uint8 \[21, 3072\]"),
        ({b"data": np.zeros((ROWS, 3, 32, 32), np.uint8)}, r"got uint8 \[20, 3, 32, 32\]"),
        ({b"data": [1, 2, 3]}, "got list"),
    ],
)
def test_wrong_contents_are_named(tmp_path, small, change, message):
    write(tmp_path, test_batch=batch(5) | change)
    with pytest.raises(ValueError, match=f"^test_batch: .*{message}"):
        Cifar10Python(tmp_path).load("test")
    assert len(Cifar10Python(tmp_path).load("train")) == 5 * ROWS  # the other files are fine


def test_other_files_are_named(tmp_path, small):
    folder = write(tmp_path / "cifar", **{"batches.meta": {b"label_names": NAMES[:9]}})
    with pytest.raises(ValueError, match=r"batches\.meta: label_names should be a list of 10"):
        Cifar10Python(folder).load("test")
    write(folder, test_batch=dumps([1, 2]))
    with pytest.raises(ValueError, match="test_batch: should hold a dictionary"):
        Cifar10Python(folder).load("test")
    write(folder, test_batch=dumps(batch(5))[:-50])
    with pytest.raises(ValueError, match="test_batch: not a pickle"):
        Cifar10Python(folder).load("test")
    (folder / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no data_batch_3: not a whole copy"):
        Cifar10Python(folder).load("train")
    with pytest.raises(FileNotFoundError, match=r"has no data_batch_3"):
        Cifar10Python(pack(folder, tmp_path / "part.tar.gz")).load("train")
    with pytest.raises(FileNotFoundError, match=r"no CIFAR-10 at .*cifar-10-batches-py.*cifar-10-python\.tar\.gz"):
        Cifar10Python(tmp_path / "nothing")
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes((tmp_path / "part.tar.gz").read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a readable tar archive"):
        Cifar10Python(broken).load("train")
