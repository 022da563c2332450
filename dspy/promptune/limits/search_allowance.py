"""What the limits of a run leave to its search, in examples."""

from __future__ import annotations

import math

from dspy.promptune.limits.budgets import BudgetMeter

__all__ = ["SearchAllowance"]


class SearchAllowance:
    """What the limits of a meter leave to a search, in examples.

    What a full evaluation of the best prompt takes is kept back from the beginning, but at most half of what there is:
    where that does not pay for it, the search spends it, and the best prompt is returned as it is.

    Args:
        meter: Counts, and has the limits.
        n_examples: Size of the validation set.
        calls_per_example: Calls that an example takes, until enough have been counted.

    Attributes:
        ended: The limit that has ended the search, in words.
    """

    def __init__(self, meter: BudgetMeter, *, n_examples: int, calls_per_example: float) -> None:
        self.ended: str | None = None
        self._meter, self._calls_per_example = meter, calls_per_example
        affordable = self._affordable()
        self._reserve = min(n_examples, int(affordable // 2)) if affordable < math.inf else n_examples
        self._released = self._limited = self._spared = False

    def left(self) -> float:
        """Examples that may still be paid for, without the reserve; may be infinite."""
        return self._affordable() - (0 if self._released else self._reserve)

    def over(self) -> bool:
        """Whether a limit is reached, or only the reserve was left and is released."""
        if self._spared:
            return self._meter.reached() is not None
        if self.ended is None:
            self.ended = self._meter.reached()
        return self.ended is not None or self._released

    def release(self) -> bool:
        """The search found nothing to do: whether it was a limit that left nothing, and the reserve is free now.

        After such a limit it is so again until the reserve is spared: the best prompt may have become another.
        """
        if self._released:
            return self._limited and not self._spared
        self._released = True
        affordable, scarcest = self._meter.scarcest(self._calls_per_example)
        if affordable > self._reserve:
            return False
        self.ended = self.ended or f"{scarcest}: only the reserve for the last full evaluation was left"
        self._limited = True
        return True

    def spare(self) -> None:
        """The reserve, released, pays for no full evaluation, or none is needed: the search spends it."""
        self._spared = True
        self.ended = f"{self._meter.scarcest(self._calls_per_example)[1]} is nearly spent"

    def _affordable(self) -> float:
        return self._meter.affordable(self._calls_per_example)
