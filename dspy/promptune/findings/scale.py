"""The units that scores are told in: percent where all are from 0 to 1, the metric's own otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dspy.promptune.counted import bounded
from dspy.promptune.findings.statistics import Difference

__all__ = ["Scale", "chance", "scale_of"]

MOST_PLACES = 6


@dataclass(frozen=True)
class Scale:
    """How the scores of a run are told.

    Attributes:
        percent: Whether in percent; otherwise as the metric gave them.
        span: From the lowest score to the highest; 1 for percent.
    """

    percent: bool = True
    span: float = 1.0

    @property
    def factor(self) -> float:
        """What a score is multiplied with to be shown."""
        return 100.0 if self.percent else 1.0

    @property
    def unit(self) -> str:
        """Of an axis."""
        return "%" if self.percent else "metric's units"

    @property
    def points(self) -> str:
        """What stands behind a difference of scores."""
        return " points" if self.percent else ""

    @property
    def places(self) -> int:
        """Decimals of a number: a thousandth of the span can be seen."""
        if self.percent:
            return 1
        return min(MOST_PLACES, max(0, 3 - math.ceil(math.log10(self.span))))

    def number(self, value: float, *, short: bool = False, sign: str = "") -> str:
        """A score without its unit; a dash where there is none. ``short``: one decimal less."""
        if value != value:
            return "–"
        return f"{self.factor * value:{sign},.{max(0, self.places - short)}f}"

    def score(self, value: float, *, short: bool = False) -> str:
        """A score with its unit, as far as it has one: ``83.3 %``."""
        return self.number(value, short=short) + (" %" if self.percent else "")

    def change(self, value: float, *, short: bool = False) -> str:
        """A difference of scores with its sign."""
        return self.number(value, short=short, sign="+")

    def gain(self, gain: Difference, *, short: bool = False) -> str:
        """A difference with its interval."""
        mean, low, high = (self.change(each, short=short) for each in (gain.mean, gain.low, gain.high))
        return f"{mean}{self.points} (95 %: {low} to {high})"

    def range(self, low: float, high: float, *, short: bool = False) -> str:
        """The ends of an interval; a dash where there is none."""
        return "–" if low != low else f"{self.number(low, short=short)} to {self.number(high, short=short)}"


def scale_of(scores: Iterable[float]) -> Scale:
    """The scale of a run with these scores."""
    found = [score for score in scores if math.isfinite(score)]
    if bounded(found):
        return Scale()
    return Scale(percent=False, span=(max(found) - min(found)) or abs(found[0]))


def chance(probability: float) -> str:
    """A probability as people read it; what is estimated from draws is never said to be 0 %."""
    return "< 1 %" if probability < 0.005 else f"{100 * probability:.0f} %"
