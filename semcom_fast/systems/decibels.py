"""Mean error ratios in dB with their standard errors, and paired differences of them, to first order (delta method)."""

import math
from typing import NamedTuple

import numpy as np

from ..links import to_db


class Estimate(NamedTuple):
    """A figure and its standard error."""

    value: float
    se: float


def influence(ratios: np.ndarray) -> np.ndarray:
    """What each item moves 10 log10 of the mean ratio by, to first order."""
    return 10 / math.log(10) * (ratios / ratios.mean() - 1)


def standard_error(values: np.ndarray) -> float:
    """Of the mean over items; NaN where there is one."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else math.nan


def mean_db(ratios: np.ndarray) -> Estimate:
    """10 log10 of the mean ratio."""
    return Estimate(float(to_db(float(ratios.mean()))), standard_error(influence(ratios)))


def gain_db(base: np.ndarray, better: np.ndarray) -> Estimate:
    """By how many dB the mean of `better` is below that of `base`, item by item the same problems."""
    value = float(to_db(float(base.mean() / better.mean())))
    return Estimate(value, standard_error(influence(base) - influence(better)))
