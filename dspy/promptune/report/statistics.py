"""How sure a mean of scores is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Difference", "difference", "interval"]

Z = 1.959964  # of a normal distribution's middle 95 %


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, its 95 % interval, and on how many examples."""

    mean: float
    low: float
    high: float
    n: int


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the mean behind some scores: Wilson's for scores of 0 and 1, else the normal one.

    NaN where there are too few: none, or one that is neither 0 nor 1.
    """
    n = len(scores)
    if n and all(score in (0.0, 1.0) for score in scores):
        p, z2 = math.fsum(scores) / n, Z * Z / n
        half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n)) / (1 + z2)
        centre = (p + z2 / 2) / (1 + z2)
        return max(0.0, centre - half), min(1.0, centre + half)
    if n < 2:
        return math.nan, math.nan
    centre, half = math.fsum(scores) / n, Z * _error(scores)
    return centre - half, centre + half


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """How much higher ``second`` is on the examples that both have; ``None`` with fewer than two of them."""
    gaps = [second[example] - first[example] for example in first if example in second]
    if len(gaps) < 2:
        return None
    centre, half = math.fsum(gaps) / len(gaps), Z * _error(gaps)
    return Difference(centre, centre - half, centre + half, len(gaps))


def _error(values: Sequence[float]) -> float:
    """Standard error of a mean."""
    n = len(values)
    centre = math.fsum(values) / n
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (n - 1) / n)
