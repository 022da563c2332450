"""What each block on a worker may spend, so that all of them together stay within the run's limits."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dspy.promptune.limits.budgets import KINDS, BudgetLimits, BudgetMeter

__all__ = ["WorkerAllowances"]

SPARE = 2.0  # times what its examples are expected to take: an allowance that is too short costs a second block


class WorkerAllowances:
    """Shares of what a meter's limits leave, for blocks that spend where the meter cannot see it.

    What is out counts as spent until it is settled, so the limits hold whatever the blocks do: a worker's own meter
    refuses a call beyond its allowance. Not thread-safe.

    Args:
        meter: Counts what comes back, and has the limits.
        calls_per_example: Calls that an example takes, until enough have been counted.
    """

    def __init__(self, meter: BudgetMeter, calls_per_example: float) -> None:
        self._meter, self._calls_per_example = meter, calls_per_example
        self._out = dict.fromkeys(KINDS, 0.0)
        self._spare = SPARE

    def take(self, examples: int, blocks: int) -> BudgetLimits | None:
        """What a block may spend; ``None`` where the limits do not pay for it now.

        Args:
            examples: Of the block.
            blocks: That may be out at once: while it is not known what an example takes, each has an equal share.
        """
        given: dict[str, float] = {}
        for name, limit in self._meter.caps.given().items():
            left = self._meter.left(name) - self._out.get(name, 0.0)
            rate = self._meter.rate(name, self._calls_per_example) if name in KINDS else 0.0
            need = (rate or 0.0) * examples
            whole = name in ("max_lm_calls", "max_tokens_spent")
            if left < max(need, 1 if whole else 1e-9 * limit):
                return None
            share = left if name == "timeout" else left / blocks if rate is None else self._spare * need
            given[name] = min(math.floor(left), max(1, math.ceil(share))) if whole else min(left, share or left)
        caps = BudgetLimits(**given)  # type: ignore[arg-type]
        for name in KINDS:
            self._out[name] += getattr(caps, name) or 0.0
        self._meter.lend(_amounts(caps))
        return caps

    def settle(self, allowance: BudgetLimits, spent: Mapping[str, float]) -> None:
        """A block has come back with what it spent."""
        self._give_back(allowance)
        self._meter.charge(spent)

    def lose(self, allowance: BudgetLimits) -> None:
        """A block will not come back: it may have spent all that it was allowed."""
        self._give_back(allowance)
        self._meter.charge(_amounts(allowance))

    def widen(self) -> None:
        """A block's allowance was too short: the next ones get more."""
        self._spare *= 2

    def _give_back(self, allowance: BudgetLimits) -> None:
        for name in KINDS:
            self._out[name] -= getattr(allowance, name) or 0.0
        self._meter.lend(_amounts(allowance), -1)


def _amounts(allowance: BudgetLimits) -> dict[str, float]:
    return {kind: getattr(allowance, name) or 0.0 for name, kind in KINDS.items()}
