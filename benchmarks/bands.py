"""What a list of repeated measurements says: a median, and a band that another run of the same program stays in.

A row is visited several times, some seconds apart and with fresh buffers each time, and every visit has a few rounds. Rounds
of one visit share their page placement and the state of the machine, so their scatter alone understates how two runs
differ: with as much scatter between visits as inside them, quartiles of one long visit miss another run's in a third of
all pairs, those below in under a hundredth (python_tests/test_benchmarks.py repeats that experiment).
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

LEAST_CHANGE = 0.03  # relative; less is not called a change whatever the bands say


class Band(NamedTuple):
    """Median, and the quartiles of all rounds, widened where needed to hold the median of every visit."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Half the band's width over the median."""
        return (self.high - self.low) / (2 * self.median)


def band(visits: Sequence[Sequence[float]]) -> Band:
    """The band of a quantity measured in several visits of several rounds."""
    visits = [v for v in visits if v]
    pooled = sorted(x for v in visits for x in v)
    if not pooled:
        raise ValueError("no measurement to take a band of")
    centres = [statistics.median(v) for v in visits]
    if len(pooled) < 4:
        return Band(statistics.median(pooled), pooled[0], pooled[-1])
    low, middle, high = statistics.quantiles(pooled, n=4, method="inclusive")
    return Band(middle, min(low, *centres), max(high, *centres))


def paired(visits: Sequence[Sequence[dict[str, float]]], side: str, base: str) -> list[list[float]]:
    """Time of `side` over time of `base`, round by round, where both took part."""
    return [[r[side] / r[base] for r in rounds if side in r and base in r] for rounds in visits]


def change(before: Band, after: Band, least: float = LEAST_CHANGE) -> int:
    """+1 when `after` is higher beyond both bands and by at least `least`, -1 when lower, 0 when they agree."""
    if abs(after.median / before.median - 1) < least:
        return 0
    return 1 if after.low > before.high else -1 if after.high < before.low else 0
