"""A CSV file that grows row by row: one process writes at a time, and a row is there whole or not at all."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]


class Line(NamedTuple):
    """A row and its line number in the file, by which messages name it."""

    number: int
    values: dict[str, str]


def _encode(values: Sequence[object]) -> bytes:
    """One line; white space in a value becomes single blanks, so that only the end of a line ends it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([" ".join(str(value).split()) for value in values])
    return text.getvalue().encode()


def _parse(data: bytes, columns: Sequence[str], path: Path) -> tuple[list[Line], int]:
    """The whole rows in the bytes of a file, and how many bytes they and the header take: after those, a torn line."""
    size = data.rfind(b"\n") + 1
    if not size:  # nothing, or a header torn by a kill
        if not _encode(columns).startswith(data):
            raise ValueError(f"{path} is not a table of this sweep; give another --out")
        return [], 0
    try:
        lines = list(csv.reader(data[:size].decode().split("\n")[:-1], strict=True))
    except (UnicodeDecodeError, csv.Error) as err:
        raise ValueError(f"{path} is not a CSV file: {err}") from err
    if lines[0] != list(columns):
        raise ValueError(f"{path} has other columns than this sweep: {_differences(lines[0], columns)}")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if line and len(line) != len(columns):
            raise ValueError(f"{path}, line {number}: {len(line)} values under {len(columns)} columns")
        if line:
            rows.append(Line(number, dict(zip(columns, line, strict=True))))
    return rows, size


def _differences(found: Sequence[str], wanted: Sequence[str]) -> str:
    missing = [name for name in wanted if name not in found]
    strange = [name for name in found if name not in wanted]
    parts = [f"{what} {', '.join(names)}" for what, names in (("without", missing), ("with", strange)) if names]
    return " and ".join(parts) or "in another order"


def read_rows(path: Path, columns: Sequence[str]) -> list[Line]:
    """The whole rows of a journal, which another process may be writing; it is left alone.

    Raises:
        FileNotFoundError: no such file. ValueError: it is no journal of these columns.
    """
    return _parse(path.read_bytes(), columns, path)[0]


class Journal:
    """A CSV file held by this process alone, to which rows are appended for good.

    A row is written by one call, ends in the only newline it has and is on the disk when `append` returns; a kill
    leaves at most one line without its end, which the next `Journal` of the file takes off. The lock is the system's
    (flock), so it ends with the process, however that ends.

    Args:
        path: of the file; it is made, with its folders and its header, if need be.
        columns: names of the values of a row.
        restart: begin a new file; the old one is kept beside it as PATH.bak, or .bak2, ... where that is taken.

    Attributes:
        rows: those found. torn: whether a torn line was taken off.

    Raises:
        BlockingIOError: another process writes to the file. ValueError: it is no journal of these columns.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, restart: bool = False) -> None:
        self.path, self.columns = path, tuple(columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _locked(path)
        try:
            if restart and os.fstat(self._file.fileno()).st_size:
                path.rename(_backup(path))
                old, self._file = self._file, _locked(path)
                old.close()
            self._file.seek(0)
            data = self._file.read()
            self.rows, size = _parse(data, self.columns, path)
            self.torn = size < len(data)
            if self.torn:
                self._file.truncate(size)
            if not size:
                self._write(_encode(self.columns))
        except BaseException:
            self._file.close()
            raise

    def append(self, row: Mapping[str, object]) -> None:
        """Write a row, which has a value for every column; it is on the disk when this returns."""
        if set(row) != set(self.columns):
            raise ValueError(f"row {_differences(list(row), self.columns)}")
        self._write(_encode([row[name] for name in self.columns]))

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def _locked(path: Path) -> IO[bytes]:
    """The file at `path`, made if need be, open for appending and locked."""
    if fcntl is None:
        raise OSError("sweeps need a system with flock (Linux, macOS): nothing else keeps two processes apart")
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            file.close()
            raise BlockingIOError(
                f"another process is writing to {path}: wait for it, or give this one other --seeds and another --out "
                "(the rows of one file may be appended to the other later)"
            ) from None
        except BaseException:
            file.close()
            raise
        file.close()  # between opening and locking it was moved away: the path is another file now


def _backup(path: Path) -> Path:
    """A name beside `path` that is not taken."""
    number, free = 1, path.with_name(f"{path.name}.bak")
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.bak{number}")
    return free
