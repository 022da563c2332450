"""How sure a mean of scores is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

__all__ = ["Difference", "difference", "interval"]

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, its 95 % interval, and on how many examples."""

    mean: float
    low: float
    high: float
    n: int


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the mean behind some scores: Wilson's for scores of 0 and 1, else Student's.

    Of scores from 0 to 1 it ends there. NaN where there are too few: none, or one that is neither 0 nor 1.
    """
    n = len(scores)
    if n and all(score in (0.0, 1.0) for score in scores):
        found = stats.binomtest(round(math.fsum(scores)), n).proportion_ci(LEVEL, method="wilson")
        return float(found.low), float(found.high)
    low, high = _student(scores)
    if n > 1 and all(0.0 <= score <= 1.0 for score in scores):
        return max(low, 0.0), min(high, 1.0)
    return low, high


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """How much higher ``second`` is on the examples that both have; ``None`` with fewer than two of them.

    The interval is that of the paired t-test: it is wide where there are few examples. Of scores from 0 to 1 it ends at
    -1 and 1.
    """
    gaps = [second[example] - first[example] for example in first if example in second]
    if len(gaps) < 2:
        return None
    low, high = _student(gaps)
    if all(0.0 <= score <= 1.0 for row in (first, second) for score in row.values()):
        low, high = max(low, -1.0), min(high, 1.0)
    return Difference(math.fsum(gaps) / len(gaps), low, high, len(gaps))


def _student(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of a mean; NaN of fewer than two values, no width where all are equal."""
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    center = math.fsum(values) / n
    error = math.sqrt(math.fsum((value - center) ** 2 for value in values) / (n - 1) / n)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    return center - half, center + half
