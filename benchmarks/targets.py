"""What a row is asked to reach, as text that people write and a program reads: `">= 30x, >= 60 % of copy, >= 80x Sionna"`.

A clause `>= Rx` asks for R times best torch, `>= Rx NAME` for R times another package (its `<name>_ratio` column), and
`>= P % of copy|cgemm|floor` for a share. Anything else is a remark.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

_RATIO = re.compile(r">= ([\d.]+)x(?: (\w+))?$")
_SHARE = re.compile(r">= ([\d.]+) % of (copy|cgemm|floor)$")


class Verdict(NamedTuple):
    """One clause of a target, what was measured for it (times or a share; NaN where it was not), and whether it holds."""

    clause: str
    value: float
    met: bool


def _number(text: object) -> float:
    return float(str(text)) if str(text) not in ("", "None") else float("nan")


def verdicts(target: str, row: Mapping[str, object]) -> list[Verdict]:
    """Every clause of `target` held against a row's columns; an unmeasured clause is not met."""
    out = []
    for clause in (part.strip() for part in target.split(",")):
        ratio, share = _RATIO.match(clause), _SHARE.match(clause)
        if ratio:
            column = f"{ratio[2].lower()}_ratio" if ratio[2] else "ratio"
            value, wanted = _number(row.get(column, "")), float(ratio[1])
        elif share:
            value, wanted = _number(row.get(f"{share[2]}_share", "")), float(share[1]) / 100
        else:
            continue
        out.append(Verdict(clause, value, value >= wanted))
    return out
