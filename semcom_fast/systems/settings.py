"""Settings of a sweep: a frozen dataclass of numbers, words and truths, read from options, files and tables.

A field's name is its column in the table, its key in a file and, with hyphens, its option (`described` gives it a help
text). A field of type `T | None` is filled in by the class itself in `__post_init__`.
"""

import functools
import itertools
import json
import math
import tomllib
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    S = TypeVar("S", bound=DataclassInstance)
else:
    S = TypeVar("S")

Value = bool | int | float | str
Grid = Mapping[str, Sequence[Value]]  # values of some fields; the settings are all combinations
_TRUTHS = {"true": True, "false": False}
_METAVARS = {bool: "true|false", int: "N", float: "X", str: "NAME"}


def described(default: object, text: str) -> Any:
    """A field of a settings class, with its help."""
    return field(default=default, metadata={"help": text})


@functools.cache
def kinds_of(kind: type[S]) -> dict[str, type]:
    """Type of each field, in the class's order."""
    hints = get_type_hints(kind)
    return {f.name: next(t for t in (get_args(hints[f.name]) or (hints[f.name],)) if t is not NoneType)
            for f in fields(kind)}  # fmt: skip


def text_of(value: Value) -> str:
    """A value as tables and messages have it; `value_of` gives back the same."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def value_of(kind: type, text: str) -> Value:
    """The value of a text.

    Raises:
        ValueError: it is none of that kind, or not a finite number.
    """
    if kind is bool:
        if text not in _TRUTHS:
            raise ValueError(f"{text!r} is neither true nor false")
        return _TRUTHS[text]
    if kind is int:
        return int(text)
    if kind is float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text} is not a finite number")
        return number
    return " ".join(text.split())  # as a journal writes it


def texts_of(setting: S) -> dict[str, str]:
    """The fields of a setting as columns of a table."""
    return {name: text_of(getattr(setting, name)) for name in kinds_of(type(setting))}


def setting_of(kind: type[S], texts: Mapping[str, str]) -> S:
    """The setting of some columns; ValueError names the one that is wrong."""
    return kind(**{name: _value(kind, name, texts[name]) for name in kinds_of(kind)})


def difference(settings: Iterable[S]) -> list[str]:
    """Names of the fields in which settings differ."""
    values: dict[str, set[str]] = {}
    for setting in settings:
        for name, text in texts_of(setting).items():
            values.setdefault(name, set()).add(text)
    return [name for name, found in values.items() if len(found) > 1]


def _value(kind: type[S], name: str, given: Any) -> Value:
    kinds = kinds_of(kind)
    if name not in kinds:
        raise ValueError(f"no setting named {name!r}; there: {', '.join(kinds)}")
    try:
        if not isinstance(given, (bool, int, float, str)):
            raise ValueError(f"{given!r} is no number, word or truth")
        return value_of(kinds[name], text_of(given))
    except ValueError as err:
        raise ValueError(f"setting {name}: {err}") from err


def grid_of(kind: type[S], given: Mapping[str, Any]) -> Grid:
    """Values by field name, one or a list of them each; keys may have hyphens."""
    return {
        name: [_value(kind, name, value) for value in (values if isinstance(values, list) else [values])]
        for name, values in ((key.replace("-", "_"), values) for key, values in given.items())
    }


def combinations(kind: type[S], common: Grid, special: Sequence[Grid] = ()) -> list[S]:
    """Every combination in `common`, joined with every one of each grid in `special`; each setting once.

    Raises:
        ValueError: a field is both in `common` and in `special`.
    """
    settings = []
    for grid in special or [{}]:
        twice = [name for name in grid if name in common]
        if twice:
            raise ValueError(f"{twice[0]} is given for all settings and for single ones too: choose one")
        both = {**common, **grid}
        settings += [kind(**dict(zip(both, values, strict=True))) for values in itertools.product(*both.values())]
    return list(dict.fromkeys(settings))


def _entry(kind: type[S]) -> Callable[[str], Grid]:
    """Reads KEY=VALUE,KEY=VALUE."""

    def read(text: str) -> Grid:
        pairs = [part.partition("=") for part in text.split(",")]
        if not all(name and equals for name, equals, _ in pairs):
            raise ArgumentTypeError(f"{text!r} is not KEY=VALUE,KEY=VALUE")
        try:
            return grid_of(kind, {name.strip(): value.strip() for name, _, value in pairs})
        except ValueError as err:
            raise ArgumentTypeError(str(err)) from err

    return read


def read_settings(kind: type[S], path: Path) -> list[Grid]:
    """Grids of a TOML file (tables [[setting]]) or a JSON file (a list of objects, or {"setting": [...]})."""
    data = path.read_bytes().decode()
    try:
        found = tomllib.loads(data) if path.suffix == ".toml" else json.loads(data)
    except ValueError as err:
        raise ValueError(f"{path}: {err}") from err
    entries = found.get("setting") if isinstance(found, dict) else found
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path} holds no settings: tables [[setting]] in TOML, a list of objects in JSON")
    try:
        return [grid_of(kind, entry) for entry in entries]
    except ValueError as err:
        raise ValueError(f"{path}: {err}") from err


def add_settings(parser: ArgumentParser, kind: type[S]) -> None:
    """An option with a list of values for every field, --setting and --settings."""
    group = parser.add_argument_group("settings (lists: every combination is run)")
    kinds = kinds_of(kind)
    for f in fields(kind):
        note = [f.metadata["help"]] if "help" in f.metadata else []
        if f.default is not None:
            note.append(f"default: {text_of(f.default)}")  # type: ignore[arg-type]

        def value(text: str, name: str = f.name) -> Value:
            try:
                return _value(kind, name, text)
            except ValueError as err:
                raise ArgumentTypeError(str(err)) from err

        group.add_argument(
            f"--{f.name.replace('_', '-')}", dest=f"setting_{f.name}", type=value, help="; ".join(note),
            nargs="*" if kinds[f.name] is bool else "+", metavar=_METAVARS[kinds[f.name]],
        )  # fmt: skip
    group.add_argument(
        "--setting", action="append", default=[], type=_entry(kind), metavar="KEY=VALUE,...",
        help="a setting of its own, with the lists above for what it leaves open; may be repeated",
    )  # fmt: skip
    group.add_argument("--settings", type=Path, metavar="FILE", help="such settings from a TOML or JSON file")


def settings_from(args: Namespace, kind: type[S]) -> list[S]:
    """The settings of parsed options; a bare option of a truth means true."""
    given = {name: getattr(args, f"setting_{name}") for name in kinds_of(kind)}
    common: Grid = {name: values or [True] for name, values in given.items() if values is not None}
    special = [*args.setting, *(read_settings(kind, args.settings) if args.settings else [])]
    return combinations(kind, common, special)
