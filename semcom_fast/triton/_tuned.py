"""Launch choices per GPU architecture: what a sweep measured to be faster than the kernels' own defaults.

tuned.json maps an architecture to choices by kernel, size class and dtype; benchmarks/tune.py writes it. A size class is
a length of the kernel's row (never the batch, so a split batch gives the same bits) rounded up to a power of two. Where
nothing is stored the kernel's default stands. A choice changes no bit of elementwise results; where a kernel sums over a
row, the order of a float64 sum may change, which moves results by the roundings of that sum.

The environment variable SEMCOM_FAST_TUNED names another table; "off" leaves every kernel at its default.
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

PATH = Path(__file__).with_name("tuned.json")
FORMAT = 1


class Choice(NamedTuple):
    """How one kernel is launched.

    block: what one program covers, in the kernel's own unit (quads of a row, reals, rays), a power of two; 0 where the
    shape alone decides. num_warps, num_stages: of the compiler; None is its own number of stages.
    """

    block: int
    num_warps: int
    num_stages: int | None = None

    def options(self) -> dict[str, int]:
        """The compiler's options among the keywords of a launch."""
        own = {"num_warps": self.num_warps}
        return own if self.num_stages is None else own | {"num_stages": self.num_stages}


_forced: dict[str, Choice] = {}
_asked: dict[str, tuple[int, torch.dtype, Choice]] | None = None  # by op, while somebody watches


def key(op: str, size: int, dtype: torch.dtype) -> str:
    """The name of a choice in the table: "pvd_update 512 float32"."""
    return f"{op} {size} {str(dtype.to_real() if dtype.is_complex else dtype).removeprefix('torch.')}"


def size_class(length: int, largest: int) -> int:
    """`length` rounded up to a power of two, at most `largest`."""
    return min(1 << max(length - 1, 0).bit_length(), largest)


def _power_of_two(value: object, least: int) -> bool:
    return isinstance(value, int) and value >= least and value & (value - 1) == 0


def parse(text: str, source: str = "tuned.json") -> dict[str, dict[str, Choice]]:
    """Choices by architecture ("sm_90") and key. Raises ValueError, naming the entry, for what is no table."""
    table: Any = json.loads(text)
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise ValueError(f"{source}: not a table of launch choices of format {FORMAT}")
    found: dict[str, dict[str, Choice]] = {}
    for arch, entry in table["architectures"].items():
        found[arch] = {}
        for name, c in entry["choices"].items():
            stages = c.get("num_stages")
            good = _power_of_two(c["num_warps"], 1) and c["num_warps"] <= 32
            good = good and (c["block"] == 0 or _power_of_two(c["block"], 1))
            if not good or not (stages is None or (isinstance(stages, int) and 1 <= stages <= 8)):
                raise ValueError(f"{source}: {arch}, {name!r}: {c} is no launch choice")
            found[arch][name] = Choice(c["block"], c["num_warps"], stages)
    return found


@functools.cache
def _table() -> dict[str, dict[str, Choice]]:
    name = os.environ.get("SEMCOM_FAST_TUNED", "")
    if name == "off":
        return {}
    path = Path(name) if name else PATH
    return parse(path.read_text(), str(path))


def architecture(device: torch.device) -> str | None:
    """ "sm_90" of a CUDA device; None of others, which have no choices."""
    if device.type != "cuda":
        return None
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


@functools.lru_cache(maxsize=1024)
def _stored(op: str, size: int, dtype: torch.dtype, device: torch.device) -> Choice | None:
    arch = architecture(device)
    return None if arch is None else _table().get(arch, {}).get(key(op, size, dtype))


def choose(op: str, size: int, dtype: torch.dtype, device: torch.device, default: Choice) -> Choice:
    """The launch of kernel `op` for a row of size class `size`: the stored choice, else `default`."""
    if _asked is not None:
        _asked[op] = (size, dtype, default)
    if _forced:
        return _forced.get(op, default)
    return _stored(op, size, dtype, device) or default


@contextlib.contextmanager
def forced(op: str, choice: Choice) -> Iterator[None]:
    """Launch `op` with this choice, and every other kernel with its default, whatever is stored: for sweeps."""
    before = dict(_forced)
    _forced[op] = choice
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


@contextlib.contextmanager
def watching() -> Iterator[dict[str, tuple[int, torch.dtype, Choice]]]:
    """What the launches inside ask for: op -> (size class, dtype, the kernel's default)."""
    global _asked
    _asked = {}
    try:
        yield _asked
    finally:
        _asked = None


def reload() -> None:
    """Read the table again, after it was written."""
    _table.cache_clear()
    _stored.cache_clear()
