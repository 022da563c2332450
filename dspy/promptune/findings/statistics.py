"""How sure a mean of scores is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from dspy.promptune.counted import bounded

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
    return _student(scores, 0.0 if bounded(scores) else None)


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """How much higher ``second`` is on the examples that both have; ``None`` with fewer than two of them.

    The interval is that of the paired t-test: it is wide where there are few examples. Of scores from 0 to 1 it ends at
    -1 and 1.
    """
    gaps = [second[example] - first[example] for example in first if example in second]
    if len(gaps) < 2:
        return None
    low, high = _student(gaps, -1.0 if all(bounded(row.values()) for row in (first, second)) else None)
    return Difference(math.fsum(gaps) / len(gaps), low, high, len(gaps))


def _student(values: Sequence[float], least: float | None) -> tuple[float, float]:
    """Student's 95 % interval of a mean; NaN of fewer than two values.

    Of values from ``least`` to 1 it ends there, and where all are equal it has the width that one more value with the
    greatest spread would give: a few equal values are no certainty. Without bounds it has no width, then.
    """
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    center = math.fsum(values) / n
    variance = math.fsum((value - center) ** 2 for value in values) / (n - 1)
    if least is not None and variance < 1e-12:
        likely = (math.fsum(values) + (least + 1) / 2) / (n + 1)  # drawn to the middle by half an example
        variance = (likely - least) * (1 - likely) / n
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * math.sqrt(variance / n)
    low, high = center - half, center + half
    return (low, high) if least is None else (max(low, least), min(high, 1.0))
