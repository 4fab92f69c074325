"""CSV tables that grow by settings: rows of one run replace their like and leave the others."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...data.kept import whole_file

Row = Mapping[str, object]
IDENTITY = ("set", "array", "data", "estimator", "over", "profile", "snr_db", "density")
_OWNER = IDENTITY[:4]


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Rows as CSV, the file replaced as a whole; no rows make no file."""
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    with whole_file(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def gains_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}_gains{path.suffix}")


def _values(row: Row, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(row.get(name) or "") for name in names)


def merged(before: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """`before` with the rows of `new` in the place of those of the same identity, the rest appended.

    A row without profile names an estimator that is missing; it goes when rows of that estimator come.
    """
    rows = {_values(row, IDENTITY): row for row in before}
    rows |= {_values(row, IDENTITY): row for row in new}
    there = {_values(row, _OWNER) for row in rows.values() if row.get("profile")}
    return [row for row in rows.values() if row.get("profile") or _values(row, _OWNER) not in there]
