"""The suite's rows under pytest-benchmark: every side of a row is a benchmark in that row's group.

pytest benchmarks/ --benchmark-only --quick [--stems rzf_precode,renoise]

The runner (`semcom-fast bench`) interleaves the sides and is what ratios are quoted from; this is for pytest-benchmark's
histories and comparisons.
"""

import pytest

from . import timing
from .cases import STEMS, Case, collect
from .conftest import HAS_PLUGIN, is_quick
from .rows import QUICK, SLOW_START, WrongResult, check, input_sets

CALLS = 200  # input sets a rotated row walks through
SECONDS = 0.1  # about so long per side, three rounds at least
_checked: dict[int, str] = {}


def pytest_generate_tests(metafunc):
    """One test per row, cache state and side; nothing is measured while collecting."""
    config = metafunc.config
    if not HAS_PLUGIN:
        metafunc.parametrize(("case", "side", "cache"), [pytest.param(None, "", "", id="none")])
        return
    stems = [s for s in config.getoption("--stems").split(",") if s] or STEMS
    unknown = sorted(set(stems) - set(STEMS))
    if unknown:
        raise pytest.UsageError(f"--stems: unknown stem {unknown[0]!r}; there: {', '.join(STEMS)}")
    found = []
    for case in collect(stems, is_quick(config)):
        for cache in ("hot", "rotated"):
            for side in ("ours", *case.peers, "reference", *case.rivals):
                mark = f"{case.op} {case.size} {case.dtype} {cache}"
                found.append(pytest.param(case, side, cache, id=f"{mark}-{side}"))
    metafunc.parametrize(("case", "side", "cache"), found)


def _right(case: Case) -> str:
    """Empty when ours agrees with the float64 definition; checked once a row, before anything is timed."""
    if id(case) not in _checked:
        try:
            check(case)
            _checked[id(case)] = ""
        except WrongResult as err:
            _checked[id(case)] = str(err)
    return _checked[id(case)]


def _callable(case: Case, side: str, quick: bool):
    """The function behind a side's name; skips with the reason where there is none."""
    sides = {"ours": case.ours, "reference": case.reference, **case.peers, **case.rivals}
    fn = sides[side]
    if isinstance(fn, str):
        pytest.skip(f"{side}: {fn}")
    if quick and getattr(fn, "slow_start", False):
        pytest.skip(f"{side}: {SLOW_START}")
    return fn


@pytest.mark.skipif(not HAS_PLUGIN, reason="pytest-benchmark is not installed: pip install 'semcom-fast[test]'")
def test_row(case: Case, side: str, cache: str, benchmark, request):
    """Time one side of one row."""
    wrong = _right(case)
    if wrong:
        pytest.fail(f"{case.op} {case.size}: {wrong}")
    fn = _callable(case, side, is_quick(request.config))
    benchmark.group = f"{case.op} {case.size} {case.dtype} {cache}"
    benchmark.extra_info.update(timing.machine(), bytes=case.min_bytes, flops=case.flops, side=side)
    sets = input_sets(case, cache == "hot", CALLS)
    if hasattr(fn, "prepare"):
        sets = [fn.prepare(*s) for s in sets]
    state = [0]

    def call():
        state[0] += 1
        return fn(*sets[state[0] % len(sets)])

    once = min(timing.Side(side, lambda i: call()).seconds(0) for _ in range(3))
    if cache == "rotated":
        timing.evict()
    rounds = max(3, min(QUICK.rounds * QUICK.visits, int(SECONDS / once)))
    benchmark.pedantic(call, rounds=rounds, iterations=max(1, int(QUICK.target / once)))
