"""CIFAR-10 from the user's own copy of the Python version (cs.toronto.edu/~kriz/cifar.html): folder or .tar.gz."""

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from .images import ImageSet, check_held_out, check_split

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
TRAIN_FILES, TEST_FILES = tuple(f"data_batch_{index}" for index in range(1, 6)), ("test_batch",)
ROWS_PER_FILE = 10_000
SIDE, CLASSES = 32, 10
SOURCE = "CIFAR-10 (A. Krizhevsky, 2009; states no licence), the user's copy"


def _from_buffer(buffer: bytes | bytearray, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """What pickles of protocol 5 rebuild arrays with."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in pickles of protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused: _codecs.encode to {encoding!r}")
    return text.encode("latin1")


_MODULES = ("numpy.core", "numpy._core")  # before and since NumPy 2
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    **{(f"{module}.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0] for module in _MODULES},  # type: ignore[misc]
    **{(f"{module}.numeric", "_frombuffer"): _from_buffer for module in _MODULES},
}


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds NumPy arrays and Python's own containers, numbers and strings; a pickle may name nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = _ALLOWED.get((module, name))
        if allowed is None:
            raise pickle.UnpicklingError(f"refused: it names {module}.{name}, which no CIFAR-10 file needs")
        return allowed


def read_pickle(data: bytes, where: str) -> Any:
    """Read a pickle of arrays and plain values; nothing else in it is ever looked up or called.

    Raises:
        ValueError: not such a pickle; the message starts with `where`.
    """
    try:
        return _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except Exception as err:  # a broken pickle raises nearly anything
        raise ValueError(f"{where}: not a pickle of NumPy arrays and plain values ({err})") from err


class Cifar10Python:
    """CIFAR-10's Python version: 50,000 training and 10,000 test images of 32x32, labelled.

    Not downloaded and not part of this project: the user brings it. The pickles are read by an unpickler that rebuilds
    NumPy arrays and plain values only.

    Args:
        root: the folder cifar-10-batches-py, the folder it lies in, or cifar-10-python.tar.gz as it is.
        val: how many of the last training images are held out for the split "val"; 0 trains on all 50,000.

    Raises:
        FileNotFoundError: nothing of the kind at `root`.
        ValueError: `val` out of range.
    """

    def __init__(self, root: Path | str, val: int = 0):
        self.root = _find(Path(root))
        self.val = check_held_out(val, len(TRAIN_FILES) * ROWS_PER_FILE)

    def load(self, split: str, n: int | None = None) -> ImageSet:
        """The images of "train", "val" or "test" in the files' order, cut to the first `n` when given.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is not CIFAR-10's (shape, type, row count, labels), no such split, or too few images.
        """
        check_split(split, ("train", "val", "test") if self.val else ("train", "test"))
        files = self._read(("batches.meta", *(TEST_FILES if split == "test" else TRAIN_FILES)))
        names = _label_names(files.pop("batches.meta"))
        batches = [_batch(content, name) for name, content in files.items()]
        images = torch.from_numpy(np.concatenate([images for images, _ in batches]))
        labels = torch.from_numpy(np.concatenate([labels for _, labels in batches]))
        if self.val and split != "test":
            kept = slice(-self.val, None) if split == "val" else slice(None, -self.val)
            images, labels = images[kept], labels[kept]
        return ImageSet(images, labels, names, (SOURCE,)).first(n)

    def _read(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The unpickled files, by name, in the order asked for."""
        if self.root.is_dir():
            missing = [name for name in names if not (self.root / name).is_file()]
            raw = {name: (self.root / name).read_bytes() for name in names if name not in missing}
        else:
            raw = _members(self.root, names)
            missing = [name for name in names if name not in raw]
        if missing:
            raise FileNotFoundError(f"{self.root} has no {', '.join(missing)}: not a whole copy of {FOLDER}")
        return {name: read_pickle(raw[name], f"{self.root}: {name}") for name in names}


def _find(root: Path) -> Path:
    """The folder of the batches, or the archive."""
    if root.is_file():
        return root
    for folder in (root, root / FOLDER):
        if (folder / "batches.meta").is_file():
            return folder
    if (root / ARCHIVE).is_file():
        return root / ARCHIVE
    raise FileNotFoundError(
        f"no CIFAR-10 at {root}: it should be the folder {FOLDER}, the folder that one lies in, or {ARCHIVE} "
        "(the Python version, from https://www.cs.toronto.edu/~kriz/cifar.html)"
    )


def _members(archive: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Files of the archive's folder, read in one pass without unpacking anything to disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if member.isfile() and path.name in names and path.parent.name == FOLDER:
                    file = tar.extractfile(member)
                    assert file is not None  # it is a file
                    found[path.name] = file.read()
    except (tarfile.TarError, EOFError, OSError) as err:
        raise ValueError(f"{archive}: not a readable tar archive ({err})") from err
    return found


def _label_names(content: Any) -> tuple[str, ...]:
    names = content.get(b"label_names") if isinstance(content, dict) else None
    if not isinstance(names, list) or len(names) != CLASSES or not all(isinstance(name, bytes | str) for name in names):
        raise ValueError(f"batches.meta: label_names should be a list of {CLASSES} names")
    return tuple(name.decode() if isinstance(name, bytes) else name for name in names)


def _batch(content: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [rows,3,32,32] and labels [rows] of one file: rows are the planes R, G, B of 1,024, each row by row."""
    if not isinstance(content, dict) or not {b"data", b"labels"} <= content.keys():
        raise ValueError(f"{where}: should hold a dictionary with b'data' and b'labels'")
    data, labels = content[b"data"], content[b"labels"]
    shape = (ROWS_PER_FILE, 3 * SIDE * SIDE)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != shape:
        got = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{where}: data should be uint8 {list(shape)}, got {got}")
    if not isinstance(labels, list) or len(labels) != ROWS_PER_FILE:
        got = f"{len(labels)}" if isinstance(labels, list) else type(labels).__name__
        raise ValueError(f"{where}: labels should be a list of {ROWS_PER_FILE}, got {got}")
    if not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise ValueError(f"{where}: labels should be whole numbers 0..{CLASSES - 1}")
    return data.reshape(-1, 3, SIDE, SIDE), np.array(labels, np.int64)
