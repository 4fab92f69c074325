"""docs/api.md: every public name with the first sentence of its docstring."""

import importlib
import inspect
import re
from collections.abc import Callable

from .source import table

_END = re.compile(r"(?<!i\.d)\.(?= [A-Z`])")
_PLAIN = {r"\,": " ", r"\mathrm": "", "{": "", "}": "", "\\": ""}  # what a formula is without its markup


def _sentence(thing: object) -> str:
    """The first sentence, on one line; references and formulas as code."""
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    text = _END.split(text)[0].rstrip(".") + "." if text else ""
    for markup, plain in _PLAIN.items():
        text = re.sub(r":math:`[^`]*`", lambda m, a=markup, b=plain: m[0].replace(a, b), text)
    return re.sub(r":\w+:`", "`", text).replace("|", "\\|")


def _call(name: str, thing: object) -> str:
    """A function with its arguments, those by keyword only behind the star; anything else by its name."""
    if not inspect.isfunction(thing):
        return f"`{name}`"
    parts, star = [], False
    for p in inspect.signature(thing).parameters.values():
        if p.kind is p.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        parts.append(p.name if p.default is p.empty else f"[{p.name}]")
    return f"`{name}({', '.join(parts)})`"


def of(module: str, only: Callable[[object], bool] = lambda _: True) -> Callable[[], list[str]]:
    """The table of a module's documented names in `__all__` that `only` picks; a part leaves out what the package shows."""

    def rows() -> list[str]:
        home, package = importlib.import_module(module), importlib.import_module("semcom_fast")
        shown = set() if home is package else set(package.__all__)
        found = {name: getattr(home, name) for name in home.__all__ if name not in shown and not name.startswith("__")}
        return table(
            ["name", ""], [[_call(n, t), _sentence(t)] for n, t in found.items() if only(t) and inspect.getdoc(t)]
        )

    return rows
